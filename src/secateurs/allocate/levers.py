"""What is decided at once: how much a site keeps, or each of the sites that are to be alike in all blocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from secateurs.allocate.apportion import Bounds, limits_of
from secateurs.allocate.blocks import as_one, bounds_of_group, corresponding
from secateurs.types import NonFiniteError, Scores, Site, Sites


@dataclass(frozen=True)
class Lever:
    """One site, or those of a group that each keep the same number of units; ``whole`` is them as one, so that a count is that of all."""

    whole: Site
    group: tuple[Site, ...]
    bounds: Bounds

    def kept(self, count: int) -> dict[str, int]:
        """What each site keeps where all together keep so many."""
        if len(self.group) == 1:
            return {self.whole.name: count}
        each = self.whole.each_of(count)
        return {site.name: site.kept_by(each) for site in self.group}

    def now(self, counts: Mapping[str, int]) -> int:
        """What all together keep by a plan's counts."""
        return sum(counts[site.name] for site in self.group)

    @property
    def choices(self) -> int:
        """How many numbers of units there are to choose from."""
        return len(self._steps)

    def grid(self, most: int, low: int | None = None, high: int | None = None) -> tuple[int, ...]:
        """At most so many of the numbers to choose from, evenly spread, both ends among them, ascending; of those from low to high."""
        steps = self._steps
        if low is not None and high is not None:
            steps = steps[bisect_left(steps, low, key=self._made) : bisect_left(steps, high, key=self._made) + 1]
        many = min(most, len(steps))
        chosen = {steps[round(place * (len(steps) - 1) / max(1, many - 1))] for place in range(many)} | {steps[-1]}
        return tuple(sorted({min(max(self._made(step), self.bounds.low), self.bounds.high) for step in chosen}))

    @cached_property
    def _steps(self) -> range:
        whole = range(self.whole.fullest // self.bounds.step + 1)
        low, high = (bisect_left(whole, bound, key=self._made) for bound in (self.bounds.low, self.bounds.high))
        return range(low, max(low, min(high, whole[-1])) + 1)

    def _made(self, step: int) -> int:
        return self.whole.kept_by(step * self.bounds.step)


def levers_of(sites: Sites, floor: int, ceiling: float, same_in_every_block: bool) -> list[Lever]:
    """Each site as a lever of its own, or with those that stand at the same place of other blocks.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> [lever] = levers_of(find_sites(nn.Linear(8, 4), Element(within="row")), 1, 1.0, False)
    >>> lever.grid(3), lever.grid(100)
    ((4, 20, 32), (4, 8, 12, 16, 20, 24, 28, 32))
    """
    own = limits_of(sites, floor, ceiling)
    groups = corresponding(sites) if same_in_every_block else [(site,) for site in sites]
    found = []
    for group in groups:
        if len(group) == 1:
            found.append(Lever(group[0], group, own[group[0].name]))
        else:
            whole = as_one(group, own)
            found.append(Lever(whole, group, bounds_of_group(whole, group, own)))
    return found


LossesOf = Callable[[Sequence[Lever], Sequence[Sequence[int]]], list[list[float]]]
"""What is lost at each of some counts of each of some levers."""


def losses_of(
    sites: Sites, scores: Iterator[Scores], levers: Sequence[Lever], counts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """What is lost at each of some counts of each lever: the sum of the scores of the units that go. One site's scores at a time.

    Raises `NonFiniteError` where that is no number.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Linear(2, 2), Element())
    >>> losses_of(sites, iter([torch.tensor([[1.0, 4, 3, 2]])]), levers_of(sites, 1, 1.0, False), [[1, 2, 4]])
    [[6.0, 3.0, 0.0]]
    """
    place = {site.name: number for number, lever in enumerate(levers) for site in lever.group}
    found = [[0.0] * len(each) for each in counts]
    for site, piece in zip(sites, scores, strict=True):
        if site.name not in place:
            continue
        lever, row = levers[place[site.name]], found[place[site.name]]
        ordered = piece.double().sort(dim=1, descending=True).values
        ordered = ordered.masked_fill(ordered == -torch.inf, 0)  # gone by an earlier pruning
        stays = torch.cat([torch.zeros(1, dtype=torch.float64, device=piece.device), ordered.cumsum(1).sum(0)]).tolist()
        for number, count in enumerate(counts[place[site.name]]):
            row[number] += stays[-1] - stays[site.each_of(lever.kept(count)[site.name])]
        if not all(map(_is_finite, row)):
            raise NonFiniteError(
                f"{site.name}: its scores are NaN or infinite, so what it loses is not known: look at the criterion"
            )
    return found


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def next_scores(sites: Sites, scores: Iterator[Scores], levers: Sequence[Lever], counts: Mapping[str, int]) -> dict[str, float]:
    """For the ``whole`` of each lever what the next unit of each contest scores, in sum: for sites with too many units to sort."""
    names, found = {site.name: lever.whole.name for lever in levers for site in lever.group}, dict[str, float]()
    for site, piece in zip(sites, scores, strict=True):
        if site.name not in names:
            continue
        each, many = site.each_of(counts[site.name]), piece.shape[1]
        if each < many:
            following = piece.kthvalue(many - each, dim=1).values
            total = float(following.masked_fill(following == -torch.inf, 0).sum(dtype=torch.float64))
            found[names[site.name]] = found.get(names[site.name], 0.0) + total
    return found
