"""Whole numbers of units that add up: shares that respect every layer's floor, ceiling and step."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from secateurs.types import KindError, Plan, PlanError, SecateursError, Share, Site, Sites


@dataclass(frozen=True)
class Bounds:
    """What a site may keep: from ``low`` to ``high`` units, those numbers that its contests make by keeping a multiple of ``step`` each."""

    low: int
    high: int
    step: int
    site: Site = field(repr=False, compare=False)

    def at_most(self, wanted: float) -> int:
        """The largest number of units that is not above `wanted`, or ``low`` where all are."""
        steps = bisect_right(range(self.site.fullest // self.step + 1), max(wanted, 0), key=self._made_by)
        return max(self._made_by(steps - 1), self.low)

    def after(self, kept: int) -> int:
        """The next larger number of units, or `kept` where it is the largest."""
        steps = bisect_right(range(self.site.fullest // self.step), kept, key=self._made_by)
        return max(self._made_by(steps), kept)

    def nearest(self, wanted: float) -> int:
        """The number of units that is nearest to `wanted`, of two the smaller."""
        below = self.at_most(wanted)
        above = self.after(below)
        return below if wanted - below <= above - wanted else above

    def _made_by(self, steps: int) -> int:
        return self.site.kept_by(steps * self.step)


def bounds(site: Site, floor: int, ceiling: float = 1.0) -> Bounds:
    """A site's bounds: all its contests keep the same number, or what they have left; at least `floor` units stay, unless it is one that
    may go as a whole, and no more than the fraction `ceiling` of all goes. Raises `SecateursError` where these two are no such numbers.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> site = find_sites(nn.Linear(8, 4), Element(within="row"))[0]
    >>> rows = bounds(site, floor=1)
    >>> rows, rows.at_most(10), rows.after(8), rows.nearest(10)
    (Bounds(low=4, high=32, step=1), 8, 12, 8)
    >>> bounds(site, floor=1, ceiling=0.7)
    Bounds(low=12, high=32, step=1)
    """
    if floor < 0 or not 0 < ceiling <= 1:
        raise SecateursError(
            f"floor={floor}, ceiling={ceiling}: floor is the number of units that stay at least in each site; ceiling, in (0, 1], the "
            "fraction that goes at most: 0.8 lets no site lose more than 80 % of its units"
        )
    step = max(1, min(site.step, site.fullest))
    steps = site.fullest // step
    high = site.kept_by(steps * step)
    if site.pattern.kept_of_each is not None:
        return Bounds(high, high, step, site)
    stay = max(0 if site.whole else floor, site.least, site.units - int(ceiling * site.units + 1e-9))
    least = bisect_left(range(steps), stay, key=lambda number: site.kept_by(number * step))
    return Bounds(site.kept_by(least * step), high, step, site)


Limits = Mapping[str, Bounds]
"""Site → its bounds."""


def limits_of(sites: Sites, floor: int, ceiling: float = 1.0) -> Limits:
    """The bounds of every site."""
    return {site.name: bounds(site, floor, ceiling) for site in sites}


def fraction_kept(name: str, sparsity: float | None, keep: float | None) -> float:
    """The fraction kept, from exactly one of ``sparsity`` in [0, 1) and ``keep`` in (0, 1]; raises `SecateursError` otherwise.

    >>> fraction_kept("uniform", sparsity=0.75, keep=None)
    0.25
    """
    if (sparsity is None) == (keep is None):
        raise SecateursError(f"{name}: give either sparsity= (the fraction removed) or keep= (the fraction kept)")
    for argument, value in (("sparsity", sparsity), ("keep", keep)):
        if value is not None and not isinstance(value, (int, float)):
            raise KindError(f"{name}: {argument} is {value!r}, but must be a number, for example {argument}=0.5")
    if sparsity is not None:
        if not 0 <= sparsity < 1:
            raise SecateursError(f"{name}: sparsity={sparsity} is not in [0, 1); 0.9 removes 90 % of the units")
        return 1 - sparsity
    if keep is None or not 0 < keep <= 1:
        raise SecateursError(f"{name}: keep={keep} is not in (0, 1]; 0.1 keeps 10 % of the units")
    return keep


def apportion(sites: Sites, weights: Sequence[float], total: int, bounds_of: Limits, who: str) -> dict[str, int]:
    """Share `total` units among the sites in proportion to `weights`, within their bounds, exactly.

    Where sites keep multiples of a step (rows that compete apart, say) the sum may fall short of `total`, never exceed it. Raises
    `PlanError` where the bounds do not admit `total`.
    """
    limits = [bounds_of[site.name] for site in sites]
    low, high = sum(limit.low for limit in limits), sum(limit.high for limit in limits)
    if any(site.step > 1 for site in sites):  # widths round down to what the hardware likes
        total = min(max(total, low), high)
    if low > total or total > high:
        raise PlanError(_out_of_bounds(sites, who, total, low, high))
    wanted = _fill(weights, limits, total)
    counts = [limit.at_most(share) for share, limit in zip(wanted, limits, strict=True)]
    rest = total - sum(counts)
    gaps = [limit.after(count) - count for count, limit in zip(counts, limits, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - wanted[i]) / max(1, gaps[i]))
    for i in [*by_remainder, *by_remainder]:
        more = limits[i].after(counts[i]) - counts[i]
        if more <= rest:
            counts[i] += more
            rest -= more
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
        view = member.cut(torch.empty(member.shape, device="meta"))
        found[member.parameter] = found.get(member.parameter, 0) + view.numel() // site.units
    return found


def _out_of_bounds(sites: Sites, who: str, total: int, low: int, high: int) -> str:
    units = sum(site.units for site in sites)
    asked = f"{who} keeps {total} of {units} units"
    fixed = next((site.pattern for site in sites if site.pattern.kept_of_each is not None), None)
    if fixed is not None:
        fraction = fixed.kept_of_each / fixed.within  # type: ignore[operator]
        return (
            f"{asked}, but {fixed} keeps {low} by itself: leave the allocator out (or ask keep={fraction:g}), "
            f"or choose freely with Element(within={fixed.within})"
        )
    if total < low and low == sum(site.least for site in sites):
        sent = " or ".join(str(least) for least in sorted({site.least for site in sites}))
        return (
            f"{asked}, but each token is sent to {sent} experts, so that {low} stay in {len(sites)} mixtures: ask for less sparsity"
        )
    if total < low:
        return (
            f"{asked}, but what floor= and ceiling= leave in each of {len(sites)} sites already takes {low}: ask for less sparsity, "
            "a lower floor= or a higher ceiling="
        )
    return f"{asked}, but only {high} are left by the earlier pruning: what is gone stays gone, so ask for more sparsity"
