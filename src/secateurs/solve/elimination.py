"""Units taken out one by one, the others making up for each before the next is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.patterns import finite_weight_of
from secateurs.solve.reconstruct import GRAM, columns_of, gram_of, known_readers, require_damping
from secateurs.solve.regression import alive_units, require_read_units, with_least_squares
from secateurs.solve.without import without_
from secateurs.types import Scores, Site, Solution, Statistic, Stats


@dataclass(frozen=True)
class ZipLM:
    """Channels, neurons or heads one after the other, always the one that the others can best make up for: optimal brain surgery on
    whole units, by the inverse Hessian of the layers that read them (2302.04089; Castellano 1997 and 2208.11580 for neurons and weights).

    After each removal the weights that read the others are those of least squares, so that the next choice knows what was made up for.
    ``damping`` is the ridge, as a part of the mean square of the features. Takes time with the cube of the number of units: seconds for
    a thousand.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, prune_, uniform
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> prune_(model, Channel(), ZipLM(), uniform(sparsity=0.5), Task(data, calibration=[(data, None)])).plan["0"]
    4
    """

    damping: float = 1e-4

    def __post_init__(self) -> None:
        require_damping("ZipLM", self.damping)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (GRAM,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """What the readers' answers have changed by, at the best, when a unit goes, ``(1, units)``: those that go later score higher."""
        for site in sites:
            scores = torch.full((1, site.units), -torch.inf)
            changed = 0.0
            for index, cost in _removals(site, stats, self.damping):
                changed += cost
                scores[0, index] = changed
            yield scores

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        kept, chosen = site.each_of(kept), alive_units(site)
        for index, _ in _removals(site, stats, self.damping, int(chosen.sum()) - kept):
            chosen[index] = False
        return with_least_squares(site, chosen[None], stats, self.damping)


@dataclass
class _Reader:
    """A layer that reads the units: its weights ``(outputs, features)``, the inverse Hessian, and the features of each unit."""

    weights: Tensor
    inverse: Tensor
    features: Tensor

    def costs(self) -> Tensor:
        """How much the answers change without each unit, the others making up for it: tr(W_B (H⁻¹_BB)⁻¹ W_Bᵀ)."""
        return (self._made_up() * self.weights.T[self.features]).sum((1, 2)).clamp_min(0)

    def _made_up(self) -> Tensor:
        """(H⁻¹_BB)⁻¹ W_Bᵀ of each unit, ``(units, features, outputs)``."""
        blocks = self.inverse[self.features[:, :, None], self.features[:, None, :]]
        return torch.linalg.solve(blocks, self.weights.T[self.features])

    def take_out_(self, unit: int) -> None:
        """Remove a unit: the weights of the others and the inverse Hessian become those without it."""
        without_(self.weights, self.inverse, self.features[unit])


def _removals(site: Site, stats: Stats, damping: float, count: int | None = None) -> Iterator[tuple[int, float]]:
    """The units in the order in which they go, each with what its removal costs."""
    require_read_units(site, "ZipLM")
    there = alive_units(site)
    parts = [_reader(site, index, stats, damping) for index in known_readers(site, stats)]
    for gone in (~there).nonzero().flatten().tolist():
        for part in parts:
            part.take_out_(gone)
    for _ in range(int(there.sum()) if count is None else count):
        costs = torch.stack([part.costs().cpu() for part in parts]).sum(0).masked_fill(~there, torch.inf)
        index = int(costs.argmin())
        for part in parts:
            part.take_out_(index)
        there[index] = False
        yield index, float(costs[index])


def _reader(site: Site, index: int, stats: Stats, damping: float) -> _Reader:
    """Of groups, each of which has a Hessian of its own, the features lie one group after the other."""
    member = site.members[index]
    weights, gram = member.canonical(finite_weight_of(member)).flatten(2).double(), gram_of(member, stats)
    groups, outputs, features = weights.shape
    has_bias = member.attribute == "weight" and isinstance(getattr(member.module, "bias", None), Tensor)
    inverses = torch.stack([_inverse(each if has_bias else each[:-1, :-1], damping) for each in gram])[:, :features, :features]
    flat = weights.transpose(0, 1).reshape(outputs, groups * features)
    return _Reader(flat, torch.block_diag(*inverses), columns_of(site, index).to(flat.device))


def _inverse(gram: Tensor, damping: float) -> Tensor:
    """The inverse of a Gram matrix with a ridge; a constant feature, the last one, stays and makes up for the others too."""
    ridge = max(damping, 1e-12) * float(gram.diagonal().mean()) or 1.0
    return torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
