"""How much where: from one number to whole numbers of units, layer by layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from secateurs.allocate.apportion import Limits, apportion, fraction_kept, limits_of, plan_of
from secateurs.allocate.blocks import equal_in_blocks
from secateurs.allocate.within import refuse_model_wide, total_of
from secateurs.given import COST, require
from secateurs.patterns import layout_of
from secateurs.select import Threshold, kth_largest
from secateurs.types import Allocator, Cost, KindError, Plan, PlanError, Scores, SecateursError, Site, Sites

ScoresOf = Callable[[], Iterator[Scores]]


def uniform(
    *,
    sparsity: float | None = None,
    keep: float | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """Every site keeps the same fraction; the total is exact; no site keeps fewer than `floor` units, or loses more than `ceiling`.

    With a pattern whose units compete ``within="model"`` the whole model is one contest, so one threshold decides.
    ``same_in_every_block=True`` gives what stands at the same place of every block of a stack the same number of units, so that a
    configuration can say it (`secateurs.allocate.equal_in_blocks`); the total may then fall short by less than one unit in every block.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), Element())
    >>> dict(uniform(sparsity=0.75)(sites, lambda: iter([])))
    {'0': 8, '1': 2}
    """
    fraction = fraction_kept("uniform", sparsity, keep)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        if sites[0].pattern.within in ("model", "isomorphic"):
            plan = _by_threshold(sites, scores, fraction, floor, ceiling, "uniform")
            return equal_in_blocks(sites, plan, floor, ceiling) if same_in_every_block else plan
        limits, units = limits_of(sites, floor, ceiling), [site.units for site in sites]
        plan = plan_of(sites, apportion(sites, units, total_of(sites, fraction), limits, f"uniform(keep={fraction:g})"))
        return equal_in_blocks(sites, plan, floor, ceiling) if same_in_every_block else plan

    return allocate


def erdos_renyi(
    *,
    sparsity: float | None = None,
    keep: float | None = None,
    kernel: bool = True,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """Density in proportion to Σ dimensions / Π dimensions: large layers give most (1707.04780; with kernels, 1911.11134).

    ``kernel=False`` leaves the kernel's dimensions out. Layers that would be denser than dense are, and the others make up for it.
    ``same_in_every_block`` as of `uniform`.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10)), Element())
    >>> plan = erdos_renyi(sparsity=0.9)(sites, lambda: iter([]))
    >>> dict(plan), sum(plan.values())
    ({'0': 710, '1': 390}, 1100)
    """
    fraction = fraction_kept("erdos_renyi", sparsity, keep)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        refuse_model_wide(sites, "erdos_renyi")
        weights = [site.units * _erdos_renyi_density(site, kernel) for site in sites]
        limits = limits_of(sites, floor, ceiling)
        plan = plan_of(sites, apportion(sites, weights, total_of(sites, fraction), limits, f"erdos_renyi(keep={fraction:g})"))
        return equal_in_blocks(sites, plan, floor, ceiling) if same_in_every_block else plan

    return allocate


def _erdos_renyi_density(site: Site, kernel: bool) -> float:
    makers = [member for member in site.members if member.role == "producer" and member.weight.ndim > 1]
    member = (makers or site.members)[0]
    sizes = list(member.weight.shape)
    if layout_of(member.module, member.attribute) is not None:  # a bare parameter has no groups, and its dimensions no names
        groups, outputs, *others = member.shape
        sizes = [groups * outputs, *others]
    sizes = sizes if kernel else sizes[:2]
    return sum(sizes) / torch.Size(sizes).numel()


def global_threshold(
    *,
    sparsity: float | None = None,
    keep: float | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
    per: Cost | None = None,
) -> Allocator:
    """One threshold for the scores of all sites together: each keeps what scores above it (1506.02626, 1803.03635).

    No site loses more than the fraction `ceiling` of its units, however low they score: without it, a ranking of all layers may strip
    the last stages. The total is exact; units that score exactly the threshold are shared out evenly. Scores are computed anew in about
    three passes, so that those of the whole model never lie in memory together.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)), Element())
    >>> plan = global_threshold(keep=0.5)(sites, lambda: iter([torch.tensor([[4.0, 3.0]]), torch.tensor([[1.0, 0.0]])]))
    >>> dict(plan)
    {'0': 1, '1': 1}
    """
    fraction = fraction_kept("global_threshold", sparsity, keep)
    if per is not None:
        require("global_threshold", "per", per, COST)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        if any(site.contest_count > 1 for site in sites):
            raise PlanError(
                f"{sites[0].pattern} lets units compete within {sites[0].pattern.within!r}, but global_threshold compares the whole "
                'model: use within="layer", or uniform(...)'
            )
        plan = _by_threshold(sites, _priced(sites, scores, per), fraction, floor, ceiling, "global_threshold")
        return equal_in_blocks(sites, plan, floor, ceiling) if same_in_every_block else plan

    return allocate


def _by_threshold(sites: Sites, scores: ScoresOf, fraction: float, floor: int, ceiling: float, who: str) -> Plan:
    """The plan of one threshold; raises `PlanError`, which names `who`, where the bounds do not admit it."""
    limits = limits_of(sites, floor, ceiling)
    apportion(sites, [1.0] * len(sites), total_of(sites, fraction), limits, f"{who}(keep={fraction:g})")
    return plan_of(sites, _above_threshold(sites, scores, fraction, limits))


def _above_threshold(sites: Sites, scores: ScoresOf, fraction: float, limits: Limits) -> dict[str, int]:
    """Counts by one threshold, or by one for each kind of sites."""
    if sites[0].pattern.within != "isomorphic":
        return _pooled(sites, scores, total_of(sites, fraction), limits)
    kept: dict[str, int] = {}
    for kind in dict.fromkeys(site.kind for site in sites):
        alike = replace(sites, found=tuple(site for site in sites if site.kind == kind))
        kept |= _pooled(alike, _only(sites, scores, kind), total_of(alike, fraction), limits)
    return kept


def _priced(sites: Sites, scores: ScoresOf, per: Cost | None) -> ScoresOf:
    """Scores by what a unit of each site costs; raises `PlanError` where one costs nothing."""
    if per is None:
        return scores
    price, counts = per.prepare(sites.model, sites.example), {site.name: site.available for site in sites}
    whole, prices = price(plan_of(sites, counts)), []
    for site in sites:
        prices.append(whole - price(plan_of(sites, counts | {site.name: max(site.available - 1, 0)})))
        if site.available and not prices[-1] > 0:
            raise PlanError(
                f"{site.name}: a unit costs {prices[-1]:g} {per.unit}, so scores per={per.name} mean nothing: skip it, or leave per= away"
            )
    return lambda: (piece / (each or 1.0) for piece, each in zip(scores(), prices, strict=True))


def _only(sites: Sites, scores: ScoresOf, kind: str) -> ScoresOf:
    """The scores of the sites of one kind."""
    return lambda: (piece for site, piece in zip(sites, scores(), strict=True) if site.kind == kind)


def _pooled(sites: Sites, scores: ScoresOf, total: int, limits: Limits) -> dict[str, int]:
    """Counts by one threshold. Sites that it would leave under their least keep that, and the others compete for the rest."""
    total = min(max(total, sum(limits[site.name].low for site in sites)), sum(site.available for site in sites))
    at_least: dict[str, int] = {}
    while True:
        pool = [site.name not in at_least for site in sites]
        counts = _counts_at_threshold(sites, scores, total - sum(at_least.values()), pool) | at_least
        starved = {site.name: limits[site.name].low for site in sites if counts[site.name] < limits[site.name].low}
        if not starved:
            return {name: limits[name].nearest(count) for name, count in counts.items()}
        at_least |= starved


def _counts_at_threshold(sites: Sites, scores: ScoresOf, k: int, pool: list[bool]) -> dict[str, int]:
    """How many units of each site in the pool are among the k highest of the pool."""
    names = [site.name for site, taking_part in zip(sites, pool, strict=True) if taking_part]
    if k == 0:
        return dict.fromkeys(names, 0)

    def pieces() -> Iterator[Scores]:
        return (piece for piece, taking_part in zip(scores(), pool, strict=True) if taking_part)

    units = sum(site.units for site, taking_part in zip(sites, pool, strict=True) if taking_part)
    threshold = kth_largest(pieces, k, units)
    above, ties = _above_and_at(pieces, threshold)
    shares = _share_evenly(ties, k - sum(above))
    return {name: count + share for name, count, share in zip(names, above, shares, strict=True)}


def _above_and_at(pieces: Callable[[], Iterator[Scores]], threshold: Threshold) -> tuple[list[int], list[int]]:
    above, ties = [], []
    for piece in pieces():
        above.append(int(torch.count_nonzero(piece > threshold.value)))
        ties.append(int(torch.count_nonzero(piece == threshold.value)))
    return above, ties


def _share_evenly(ties: list[int], wanted: int) -> list[int]:
    """Of each layer's ties, its share of `wanted`: in proportion, exact in sum."""
    total = sum(ties)
    passed, given, shares = 0, 0, []
    for count in ties:
        passed += count
        shares.append(passed * wanted // total - given if total else 0)
        given += shares[-1]
    return shares


def by_layer(sparsities: Mapping[str, float], *, default: float = 0.0, floor: int = 1, ceiling: float = 1.0) -> Allocator:
    """Sparsities by hand: layer name or glob → sparsity in [0, 1); the first key that means a layer counts, else `default`.

    Raises `SecateursError` for a key that means no site, or a sparsity out of range.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), Element())
    >>> dict(by_layer({"0": 0.5})(sites, lambda: iter([])))
    {'0': 16, '1': 8}
    """
    if not isinstance(sparsities, Mapping):
        raise KindError(f'by_layer: sparsities is {sparsities!r}, but must say them by name, for example {{"conv1": 0.5}}')
    for name, sparsity in [*sparsities.items(), ("default", default)]:
        fraction_kept(f"by_layer: {name}", sparsity, None)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        refuse_model_wide(sites, "by_layer")
        _require_known(sparsities, [site.name for site in sites])
        kept, limits = {}, limits_of(sites, floor, ceiling)
        for site in sites:
            sparsity = next((value for key, value in sparsities.items() if fnmatchcase(site.name, key)), default)
            wanted = (1 - sparsity) * site.units
            if round(wanted) > site.available:
                raise PlanError(
                    f"{site.name}: by_layer keeps {round(wanted)} units, but only {site.available} of {site.units} can be kept: "
                    "what an earlier pruning removed stays gone, and a pattern such as 2:4 decides by itself"
                )
            kept[site.name] = limits[site.name].nearest(wanted)
        return plan_of(sites, kept)

    return allocate


def _require_known(sparsities: Mapping[str, float], names: list[str]) -> None:
    for key in sparsities:
        if not any(fnmatchcase(name, key) for name in names):
            close = difflib.get_close_matches(key, names, n=3) or names[:5]
            raise SecateursError(f"by_layer: no site is called {key!r}; did you mean {', '.join(close)}?")


def as_pattern() -> Allocator:
    """For patterns that decide by themselves how many units stay: 2:4 keeps two of four, everywhere.

    >>> from torch import nn
    >>> from secateurs.patterns import NofM, find_sites
    >>> dict(as_pattern()(find_sites(nn.Linear(8, 4), NofM(2, 4), only="*"), lambda: iter([])))
    {'weight': 16}
    """

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        free = next((site.pattern for site in sites if site.pattern.kept_of_each is None), None)
        if free is not None:
            raise PlanError(f"{free} does not say how many units stay: give an allocator, for example uniform(sparsity=0.5)")
        return plan_of(sites, {site.name: site.available for site in sites})

    return allocate
