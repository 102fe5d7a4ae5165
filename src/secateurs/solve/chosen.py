"""A choice that was made before, for solvers that adjust what stays after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateurs.patterns import as_units
from secateurs.types import Scores, SecateursError, Site, Solution, Stats


@dataclass(frozen=True)
class Chosen:
    """The units that masks keep, whatever their number: for solvers that adjust what stays after a choice that was made before.

    Raises `SecateursError` where the plan says another number.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> model, task = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Task(torch.zeros(1, 4))
    >>> masks = prune_(model, Channel(), TopK(magnitude()), uniform(sparsity=0.5), task)
    >>> again = prune_(model, Channel(), Chosen(masks), masks.plan, task)
    >>> all(torch.equal(again[name], masks[name]) for name in masks)
    True
    """

    masks: Mapping[str, Tensor] = field(repr=False)

    needs = ()

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """1 for the units that stay, else 0."""
        for site in sites:
            yield self._kept(site).float()

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        return Solution(self._kept(site))

    def _kept(self, site: Site) -> Tensor:
        index = next((index for index, member in enumerate(site.members) if member.parameter in self.masks), None)
        if index is None:
            raise SecateursError(f"{site.name}: the masks say nothing of it; they hold {', '.join(list(self.masks)[:3])}, …")
        units = as_units(site, self.masks[site.members[index].parameter], index)
        return units.reshape(site.contest_count, site.units // site.contest_count, -1).any(2)
