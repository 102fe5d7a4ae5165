"""Whole numbers of units that add up: shares that respect every layer's floor, ceiling and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from secateurs.types import Plan, PlanError, SecateursError, Share, Site, Sites


@dataclass(frozen=True)
class Bounds:
    """What a site may keep: multiples of ``step`` from ``low`` to ``high``."""

    low: int
    high: int
    step: int


def bounds(site: Site, floor: int) -> Bounds:
    """A site's bounds: all its contests keep the same number, at least `floor` units stay, at most those still alive.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> bounds(find_sites(nn.Linear(8, 4), Element(within="row"))[0], floor=1)
    Bounds(low=4, high=32, step=4)
    """
    # Where an earlier pruning left contests unequal, the fullest one decides: "at most" is what the others then mean.
    left = site.units if site.alive is None else int(site.alive.sum(1).max()) * site.contest_count
    step = site.contest_count * max(1, min(site.step, left // site.contest_count))
    if site.pattern.kept_of_each is not None:
        return Bounds(site.pattern.kept_of_each * step, site.pattern.kept_of_each * step, step)
    high = left // step * step
    return Bounds(min(ceil(floor / step) * step, high), high, step)


def fraction_kept(name: str, sparsity: float | None, keep: float | None) -> float:
    """The fraction kept, from exactly one of ``sparsity`` in [0, 1) and ``keep`` in (0, 1]; raises `SecateursError` otherwise.

    >>> fraction_kept("uniform", sparsity=0.75, keep=None)
    0.25
    """
    if (sparsity is None) == (keep is None):
        raise SecateursError(f"{name}: give either sparsity= (the fraction removed) or keep= (the fraction kept)")
    if sparsity is not None:
        if not 0 <= sparsity < 1:
            raise SecateursError(f"{name}: sparsity={sparsity} is not in [0, 1); 0.9 removes 90 % of the units")
        return 1 - sparsity
    if keep is None or not 0 < keep <= 1:
        raise SecateursError(f"{name}: keep={keep} is not in (0, 1]; 0.1 keeps 10 % of the units")
    return keep


def apportion(sites: Sites, weights: Sequence[float], total: int, floor: int, who: str) -> dict[str, int]:
    """Share `total` units among the sites in proportion to `weights`, within their bounds, exactly.

    Where sites keep multiples of a step (rows that compete apart, say) the sum may fall short of `total`, never exceed it. Raises
    `PlanError` where the bounds do not admit `total`.
    """
    limits = [bounds(site, floor) for site in sites]
    low, high = sum(limit.low for limit in limits), sum(limit.high for limit in limits)
    if any(site.step > 1 for site in sites):  # widths round down to what the hardware likes
        total = min(max(total, low), high)
    if low > total or total > high:
        raise PlanError(_out_of_bounds(sites, who, total, low, high, floor))
    wanted = _fill(weights, limits, total)
    counts = [limit.low + int((w - limit.low) // limit.step) * limit.step for w, limit in zip(wanted, limits, strict=True)]
    rest = total - sum(counts)
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - wanted[i]) / limits[i].step)
    for i in [*by_remainder, *by_remainder]:
        if limits[i].step <= rest and counts[i] + limits[i].step <= limits[i].high:
            counts[i] += limits[i].step
            rest -= limits[i].step
    return {site.name: count for site, count in zip(sites, counts, strict=True)}


def _fill(weights: Sequence[float], limits: Sequence[Bounds], total: int) -> list[float]:
    """Like water in vessels of those widths: the level at which all together hold `total`, each within its bounds."""

    def held(level: float) -> list[float]:
        return [min(max(level * width, limit.low), limit.high) for width, limit in zip(weights, limits, strict=True)]

    low, high = 0.0, 1.0
    while sum(held(high)) < total:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if sum(held(middle)) < total else (low, middle)
    return held(high)


def plan_of(sites: Sites, kept: dict[str, int]) -> Plan:
    """The plan that keeps that many units of each site."""
    return Plan(
        {site.name: Share(site.units, kept[site.name], _elements(site)) for site in sites},
        extents=sites.extents,
    )


def _elements(site: Site) -> dict[str, int]:
    """How many elements of each parameter one unit takes."""
    found: dict[str, int] = {}
    for member in site.members:
        view = member.cut(member.canonical(member.weight.detach()))
        found[member.parameter] = found.get(member.parameter, 0) + view.numel() // site.units
    return found


def _out_of_bounds(sites: Sites, who: str, total: int, low: int, high: int, floor: int) -> str:
    units = sum(site.units for site in sites)
    asked = f"{who} keeps {total} of {units} units"
    fixed = next((site.pattern for site in sites if site.pattern.kept_of_each is not None), None)
    if fixed is not None:
        fraction = fixed.kept_of_each / fixed.within  # type: ignore[operator]
        return (
            f"{asked}, but {fixed} keeps {low} by itself: leave the allocator out (or ask keep={fraction:g}), "
            f"or choose freely with Element(within={fixed.within})"
        )
    if total < low:
        return f"{asked}, but a floor of {floor} in each of {len(sites)} sites already takes {low}: ask for less sparsity or a lower floor="
    return f"{asked}, but only {high} are left by the earlier pruning: what is gone stays gone, so ask for more sparsity"
