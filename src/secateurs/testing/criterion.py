"""The laws of criteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateurs.patterns import Channel, Element, Filter, Vector, find_sites
from secateurs.solve import evidence_of, joined, scores_of
from secateurs.testing.specimens import COUPLED, LAYERS, Specimen, sites_of, unchanged, with_evidence
from secateurs.types import Criterion, Evidence, Member, Pattern, Scores, SecateursError, Site, Sites, Stats

Counted = Sequence[tuple[int, Evidence]]
"""The evidence of each member of a site whose elements count in a score, by the member's index."""

_PATTERNS: tuple[Pattern, ...] = (Element(), Element(within="row"), Filter(), Vector("outputs", 2, tail="keep"))


def check_criterion(
    criterion: Criterion,
    *,
    stats: Stats | None = None,
    permutes: bool = True,
    keeps_order_when_scaled: bool = False,
    on: Sequence[Specimen] | None = None,
) -> None:
    """Raise `AssertionError` where a criterion breaks a law, on small layers of each kind and coupled ones (``on=`` to choose others).

    - scores are float32, finite, one a unit; ``reduce`` removes the dimensions that it is given
    - the same evidence gives the same scores, and weights and statistics are left as they were
    - units that change places take their scores with them (``permutes=False`` for random draws)
    - ``keeps_order_when_scaled=True``: weights times a positive number give the same order
    - a product multiplies element by element, before the reduction of the left one, or unit by unit where a criterion knows no elements

    What the criterion needs is observed on a random batch, where a layer can be observed, or is taken from ``stats``.

    >>> from secateurs.criteria import magnitude
    >>> check_criterion(magnitude(p=1), keeps_order_when_scaled=True)
    """
    checked = 0
    for specimen in on or LAYERS:
        model = specimen.model()
        for pattern in _PATTERNS:
            sites = find_sites(model, pattern, only="*")
            checked += _check_sites(criterion, specimen, sites, stats, permutes, keeps_order_when_scaled)
    for specimen in on or COUPLED:
        coupled = sites_of(specimen, Channel())
        if coupled is not None:
            checked += _check_sites(criterion, specimen, coupled, stats, permutes, keeps_order_when_scaled)
    assert checked, f"{criterion.name}: what it needs can be observed on none of {[specimen.name for specimen in on or LAYERS]}"


def _check_sites(criterion: Criterion, specimen: Specimen, sites: Sites, stats: Stats | None, permutes: bool, scales: bool) -> int:
    """Check the sites of which everything can be observed that the criterion needs; returns how many there were."""
    checked = 0
    for site, observed in with_evidence(specimen, sites, () if stats is not None else criterion.needs):
        where = f"{criterion.name} with {site.pattern!r} on {specimen.name}, {site.name}"
        known = observed if stats is None else stats
        try:
            evidence = evidence_of(site, criterion, known) if criterion.units is None and not criterion.factors else None
            if not criterion.by_elements:
                scores_of(site, criterion, known)
        except SecateursError:
            continue
        if evidence is None:
            with unchanged(sites.model, where):
                _check_whole(criterion, site, known, where)
            checked += 1
            continue
        with unchanged(sites.model, where):
            _check_scores(criterion, site, evidence, where)
        if criterion.by_elements:
            _check_product(criterion, site, evidence, where)
        if permutes and len(site.members) > 1:
            _check_coupled_permutation(criterion, site, evidence, where)
        elif permutes and site.pattern in (Element(), Filter()):
            _check_permutation(criterion, site, evidence[0][1], where)
        if scales:
            _check_scaling(criterion, site, evidence, where)
        _check_whole(criterion, site, known, where)
        checked += 1
    return checked


def _check_whole(criterion: Criterion, site: Site, stats: Stats, where: str) -> None:
    """Scores as solvers get them; and a product with another criterion of units multiplies unit by unit."""
    scores = scores_of(site, criterion, stats)
    shape = (site.contest_count, site.units // site.contest_count)
    assert scores.shape == shape, f"{where}: scores of shape {tuple(scores.shape)}, not {shape}"
    assert scores.dtype == torch.float32, f"{where}: scores are {scores.dtype}, not torch.float32"
    assert torch.isfinite(scores).all(), f"{where}: {int((~torch.isfinite(scores)).sum())} scores are NaN or infinite"
    assert torch.equal(scores, scores_of(site, criterion, stats)), f"{where}: scores differ from one call to the next"
    if not criterion.by_elements:
        double = Criterion("double", _whole, _first_is_two, members=criterion.members, compare=_first_is_two)
        got = scores_of(site, criterion * double, stats)
        assert torch.equal(got, 2 * scores), f"{where}: a product with a criterion of units must multiply unit by unit"


def _whole(evidence: Evidence) -> Tensor:
    return evidence.weight


def _first_is_two(values: Tensor, dims: tuple[int, ...] = (2,)) -> Tensor:
    return values.new_full(values.shape[:-1], 2.0)


def _scores(criterion: Criterion, site: Site, evidence: Counted, where: str) -> Scores:
    try:
        return joined(site, criterion, evidence)
    except (RuntimeError, IndexError) as error:
        raise AssertionError(
            f"{where}: no score for each unit ({error}); element must broadcast against the weight, reduce remove its dims"
        ) from error


def _check_scores(criterion: Criterion, site: Site, evidence: Counted, where: str) -> None:
    before = [{statistic: value.clone() for statistic, value in each.observed.items()} for _, each in evidence]
    scores = _scores(criterion, site, evidence, where)
    assert scores.shape == (site.contest_count, site.units // site.contest_count), f"{where}: scores of shape {tuple(scores.shape)}"
    assert scores.dtype == torch.float32, f"{where}: scores are {scores.dtype}, not torch.float32"
    assert torch.isfinite(scores).all(), f"{where}: {int((~torch.isfinite(scores)).sum())} scores are NaN or infinite"
    leading = len(site.contests) + len(site.competitors)
    for index, each in evidence if criterion.by_elements else ():
        values = site.members[index].cut(criterion.element(each).expand(each.weight.shape))
        if values.ndim > leading:
            one_each = criterion.reduce(values, tuple(range(leading, values.ndim)))
            assert one_each.shape == values.shape[:leading], (
                f"{where}: reduce gives {tuple(one_each.shape)} for {tuple(values.shape)}; it must remove {values.ndim - leading}"
            )
    assert torch.equal(scores, joined(site, criterion, evidence)), f"{where}: scores differ from one call to the next"
    for observed, (_, each) in zip(before, evidence, strict=True):
        for statistic, value in each.observed.items():
            assert torch.equal(observed[statistic], value), f"{where}: it changed the statistic {statistic.name}"


def _check_product(criterion: Criterion, site: Site, evidence: Counted, where: str) -> None:
    def factor(each: Evidence) -> Tensor:
        return torch.rand(each.weight.shape, generator=torch.Generator().manual_seed(2)) + 0.5

    other = Criterion("factor", factor, lambda values, dims: torch.full(values.shape[: -len(dims)], -1.0))
    product = criterion * other
    by_hand = replace(criterion, element=lambda e: criterion.element(e) * factor(e))
    got, expected = joined(site, product, evidence), joined(site, by_hand, evidence)
    assert torch.allclose(got, expected), (
        f"{where}: a product must multiply element by element, before the reduction of the left one"
    )


def _check_permutation(criterion: Criterion, site: Site, evidence: Evidence, where: str) -> None:
    # The competitors of Element and of Filter lie as the canonical view does: (groups, outputs, inputs or 1, ...).
    dims = (1, 2) if site.elements_per_unit == 1 else (1,)
    scores = joined(site, criterion, [(0, evidence)]).view(site.competitors)
    for dim in dims:
        order = torch.randperm(evidence.weight.shape[dim], generator=torch.Generator().manual_seed(dim))
        observed = {statistic: _reordered(value, dim, order) for statistic, value in evidence.observed.items()}
        moved = replace(evidence, weight=evidence.weight.index_select(dim, order), observed=observed)
        got = joined(site, criterion, [(0, moved)]).view(site.competitors)
        expected = _reordered(scores, dim, order)
        assert torch.allclose(got, expected, rtol=1e-4), (
            f"{where}: units that change places along the {('outputs', 'inputs')[dim - 1]} must take their scores with them "
            "(permutes=False if scores are drawn at random)"
        )


def _check_coupled_permutation(criterion: Criterion, site: Site, evidence: Counted, where: str) -> None:
    order = torch.randperm(site.units, generator=torch.Generator().manual_seed(site.units))
    moved = [(index, _with_units_moved(site.members[index], each, order)) for index, each in evidence]
    got, expected = joined(site, criterion, moved), joined(site, criterion, evidence)[:, order]
    assert torch.allclose(got, expected, rtol=1e-4), (
        f"{where}: units that change places in every weight must take their scores with them "
        "(permutes=False if scores are drawn at random)"
    )


def _with_units_moved(member: Member, evidence: Evidence, order: Tensor) -> Evidence:
    def moved(value: Tensor) -> Tensor:
        # Copied into the layout of the weight, since the cut of another one need not be a view.
        whole = member.canonical(torch.empty(member.weight.shape))
        whole.copy_(value.expand(evidence.weight.shape))
        units = member.cut(whole)
        units.copy_(units[order])
        return whole

    observed = {statistic: moved(value) for statistic, value in evidence.observed.items()}
    return replace(evidence, weight=moved(evidence.weight), observed=observed)


def _reordered(value: Tensor, dim: int, order: Tensor) -> Tensor:
    return value.index_select(dim, order) if value.ndim > dim and value.shape[dim] == order.numel() else value


def _check_scaling(criterion: Criterion, site: Site, evidence: Counted, where: str) -> None:
    scores = joined(site, criterion, evidence)
    order = scores.argsort(dim=1)
    for factor in (1e-3, 7.0):
        larger = [(index, replace(each, weight=each.weight * factor)) for index, each in evidence]
        scaled = joined(site, criterion, larger).gather(1, order)
        falls = scaled.diff(dim=1) < -1e-4 * scaled.abs()[:, 1:]
        assert not falls.any(), f"{where}: weights times {factor} give another order"
