"""The laws of allocators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import nan

import torch
from torch import Tensor

from secateurs.criteria import magnitude
from secateurs.patterns import Channel, Element, Filter, find_sites
from secateurs.solve import TopK
from secateurs.testing.specimens import COUPLED, NETWORKS, Specimen, earlier_masks, sites_of, unchanged
from secateurs.types import Allocator, Pattern, Plan, PlanError, Scores, SecateursError, Site, Sites

_TILINGS: tuple[Pattern, ...] = (Element(), Element(within="row"), Filter(), Element(within="model"), Filter(within="isomorphic"))
_COUPLINGS = (
    Channel(),
    Channel(within="model"),
    Channel(within="isomorphic"),
    Channel(round_to=4),
    Channel(within="model", round_to=4),
)
_KEEPS = (0.15, 0.4, 0.5, 0.55, 0.9, 1.0)
_OUT_OF_RANGE: tuple[dict[str, float], ...] = (
    {"sparsity": 1.0},
    {"sparsity": -0.1},
    {"sparsity": nan},
    {"keep": 0.0},
    {"keep": 1.5},
    {"keep": nan},
)


def check_allocator(
    make: Callable[..., Allocator], *, exact: bool = True, nested: bool = True, on: Sequence[Specimen] | None = None
) -> None:
    """Raise `AssertionError` where an allocator breaks a law, on small networks (``on=`` to choose others).

    ``make`` is called with ``keep=`` or with ``sparsity=``. `PlanError` is a fair answer to a pattern that does not suit the
    allocator, but not to every pattern.

    - plans name every site, with whole numbers of units that are there; the same plan each time, and after JSON
    - the total is exact; where contests keep the same number each it may fall short by less than one unit a contest, and is
      never over (``exact=False`` for allocators that decide site by site, or by another measure than units); with
      ``within="isomorphic"`` that of each kind is, where its floors leave room for it
    - with ``round_to`` sites keep multiples of their step, and smaller ones all that they have
    - no site is emptied, and none keeps what an earlier pruning removed
    - who keeps more keeps no less in total, and takes at most one unit a contest from a site (``nested=False`` for allocators that
      use up a budget: what is left over goes to other sites at another budget)
    - ``sparsity=1 - keep`` means the same as ``keep``, and fractions outside of their range are a `SecateursError`

    >>> from secateurs.allocate import uniform
    >>> check_allocator(uniform, on=NETWORKS[:1])
    """
    for wrong in _OUT_OF_RANGE:
        _check_refuses(make, wrong)
    plans = 0
    for specimen in on or NETWORKS:
        model = specimen.model()
        for pattern in _TILINGS:
            for masks in (None, earlier_masks(model, [name for name, _ in model.named_parameters()])):
                sites = find_sites(model, pattern, specimen.example, only="*", masks=masks)
                plans += _check_sites(make, sites, exact, nested, f"{make!r} with {pattern!r} on the {specimen.name}")
    for specimen in on or COUPLED:
        for coupling in _COUPLINGS:
            for earlier in (False, True):
                found = sites_of(specimen, coupling, earlier)
                if found is not None:
                    plans += _check_sites(make, found, exact, nested, f"{make!r} with {coupling!r} on the {specimen.name}")
    assert plans, f"{make!r} refuses every pattern that it was tried on"


def _check_refuses(make: Callable[..., Allocator], wrong: dict[str, float]) -> None:
    sites = find_sites(NETWORKS[0].model(), Element())
    try:
        make(**wrong)(sites, _scores_of(sites))
    except SecateursError:
        return
    raise AssertionError(f"{make!r}: {wrong} must be a SecateursError: sparsity is in [0, 1), keep in (0, 1]")


def _scores_of(sites: Sites) -> Callable[[], Iterator[Scores]]:
    return lambda: TopK(magnitude()).scores(sites, {})


def _check_sites(make: Callable[..., Allocator], sites: Sites, exact: bool, nested: bool, where: str) -> int:
    """Check the plans of all fractions; returns how many there were."""
    with unchanged(sites.model, f"{make!r}"):
        return _check_fractions(make, sites, exact, nested, where)


def _check_fractions(make: Callable[..., Allocator], sites: Sites, exact: bool, nested: bool, where: str) -> int:
    rounded = any(site.step > 1 for site in sites)
    previous: Plan | None = None
    plans = 0
    for keep in _KEEPS:
        if any(site.alive is not None for site in sites) and keep > 0.4:
            break
        said = f"{where}, keep={keep}"
        try:
            plan = make(keep=keep)(sites, _scores_of(sites))
        except PlanError:
            continue
        plans += 1
        _check_plan(plan, sites, said)
        if exact and not rounded:
            _check_total(plan, sites, keep, said)
        if keep == 1:
            everything = {site.name: _possible(site)[-1] for site in sites}
            assert dict(plan) == everything, f"{said}: keeps {dict(plan)}, not everything"
        assert make(keep=keep)(sites, _scores_of(sites)) == plan, f"{said}: another plan at the second call"
        if keep < 1:
            same = make(sparsity=1 - keep)(sites, _scores_of(sites))
            assert same == plan, f"{said}: sparsity={1 - keep} gives {dict(same)}, not {dict(plan)}"
        if previous is not None and nested:
            _check_grows(previous, plan, sites, said)
        previous = plan
    return plans


def _check_plan(plan: Plan, sites: Sites, where: str) -> None:
    assert list(plan) == [site.name for site in sites], f"{where}: the plan names {list(plan)}, not the sites"
    for site in sites:
        kept = plan[site.name]
        assert type(kept) is int, f"{where}: {site.name} keeps {kept!r}, which is no int"
        least, *_, most = possible = _possible(site)
        assert kept <= most, f"{where}: {site.name} keeps {kept} units, but only {most} can be kept"
        assert kept > least or most == 0, f"{where}: {site.name} is emptied"
        assert kept in possible, (
            f"{where}: {site.name} keeps {kept}, which is not the same in each of {site.contest_count} contests, or all that it has, "
            f"in multiples of {site.step}: {possible}"
        )
        share = plan.shares[site.name]
        expected = (site.units, _elements(site))
        assert (share.units, dict(share.elements)) == expected, f"{where}: the plan's share of {site.name} is {share}"
    assert Plan.from_json(plan.to_json()) == plan, f"{where}: the plan is another one after JSON"


def _possible(site: Site) -> list[int]:
    """All numbers of units that can stay: contests keep one number, or what they have; a site smaller than its step, what it has."""
    alive = [site.units // site.contest_count] * site.contest_count if site.alive is None else site.alive.sum(1).tolist()
    rounded = range(0, max(alive) + 1, site.step)
    return [sum(min(each, count) for count in alive) for each in (rounded if len(rounded) > 1 else (0, max(alive)))]


def _elements(site: Site) -> dict[str, int]:
    """Parameter → how many of its elements lie in one unit, in one member or in several."""
    held: dict[str, Tensor] = {}
    for member in site.members:
        mask = held.setdefault(member.parameter, torch.zeros(member.weight.shape, dtype=torch.int64))
        member.cut(member.canonical(mask)).add_(1)
    return {name: int(mask.sum()) // site.units for name, mask in held.items()}


def _check_total(plan: Plan, sites: Sites, keep: float, where: str) -> None:
    apart = sites[0].pattern.within == "isomorphic"
    for kind in dict.fromkeys(site.kind if apart else "" for site in sites):
        pool = [site for site in sites if site.kind == kind or not apart]
        wanted, total = round(keep * sum(site.units for site in pool)), sum(plan[site.name] for site in pool)
        if apart:
            wanted = min(max(wanted, len(pool)), sum(_possible(site)[-1] for site in pool))
        step = max(after - before for site in pool for before, after in pairwise(_possible(site)))
        assert total <= wanted, f"{where}: keeps {total} units in all, more than {wanted}"
        assert total > wanted - step, f"{where}: keeps {total} units in all, not {wanted}"


def _check_grows(less: Plan, more: Plan, sites: Sites, where: str) -> None:
    assert sum(more.values()) >= sum(less.values()), f"{where}: keeps fewer units in all than a lower keep"
    for site in sites:
        lost = less[site.name] - more[site.name]
        # One unit may go back and forth between sites when shares are rounded to whole numbers, or as many as another's step.
        assert lost <= site.contest_count * max(each.step for each in sites), (
            f"{where}: {site.name} keeps {lost} units fewer than with a lower keep"
        )
