"""A weight that is pruned by itself, as matrices beside the products of its inputs: what solvers of single layers look at."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateurs.patterns import as_units, finite_weight_of, marked
from secateurs.solve.reconstruct import GRAM, gram_of
from secateurs.solve.topk import highest
from secateurs.types import PatternError, SecateursError, Site, Solution, Stats

LAYER, ROWS, COLUMNS = "layer", "rows", "columns"


@dataclass(frozen=True)
class Layer:
    """One weight in its canonical view with the kernel flattened, ``(groups, outputs, features)``, float32, and who competes in it.

    - ``gram``: the mean of x·xᵀ, ``(groups, features + 1, features + 1)``, float32, the constant 1 last
    - ``units`` (bool, like the weight): what may go; ``alive``: what no earlier pruning removed
    - ``among``: single weights within the whole ``LAYER`` or its ``ROWS``, whole ``COLUMNS`` within the layer, or, as a tensor
      ``(contests, consecutive)``, the features that compete with each other in every row
    """

    site: Site
    weight: Tensor
    bias: Tensor | None
    gram: Tensor
    units: Tensor
    alive: Tensor
    among: str | Tensor

    @property
    def candidates(self) -> Tensor:
        """What may still go."""
        return self.units & self.alive

    def stays(self, kept: Tensor) -> Tensor:
        """A choice of units, ``(contests, competitors)``, as one of ``(groups, outputs, features)``; what is in no unit stays."""
        member = self.site.members[0]
        return member.canonical(marked(self.site, kept.to(self.weight.device))).flatten(2)

    def largest(self, values: Tensor, each: int) -> Tensor:
        """Which of ``(groups, outputs, features)`` stay where every contest keeps the `each` units of the largest sums, or all it has."""
        chosen = highest(self.scores(values), each)
        return self.stays(chosen if self.site.alive is None else chosen & self.site.alive.to(chosen.device))

    def scores(self, losses: Tensor) -> Tensor:
        """Scores of units, ``(contests, competitors)``, from losses ``(groups, outputs, features)``; of what is gone already −∞."""
        member = self.site.members[0]
        units = member.cut(losses.reshape(member.shape)).reshape(self.site.contest_count, prod(self.site.competitors), -1).sum(2)
        return units if self.site.alive is None else units.masked_fill(~self.site.alive.to(units.device), -torch.inf)

    def kept(self, stays: Tensor) -> Tensor:
        """A choice ``(groups, outputs, features)`` as one of units, ``(contests, competitors)``."""
        mask = torch.empty(self.site.members[0].weight.shape, dtype=torch.bool, device=stays.device)
        view = self.site.members[0].canonical(mask)
        view.copy_(stays.reshape(view.shape))
        return as_units(self.site, mask).reshape(self.site.contest_count, prod(self.site.competitors), -1)[..., 0]

    def solution(self, stays: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Solution:
        """What stays, and what the weight ``(groups, outputs, features)`` and the bias ``(groups, outputs)`` become."""
        member, found = self.site.members[0], {}
        if weight is not None:
            made = torch.empty(member.weight.shape, dtype=member.weight.dtype, device=weight.device)
            view = member.canonical(made)
            view.copy_(weight.reshape(view.shape))
            found[member.parameter] = made
        if bias is not None:
            old: Any = member.module.bias
            found[member.parameter.removesuffix("weight") + "bias"] = bias.reshape(old.shape).to(old.dtype)
        return Solution(self.kept(stays), found)


def layer_of(site: Site, stats: Stats, who: str) -> Layer:
    """A site as a `Layer`; raises `PatternError` where its units are neither single weights nor whole columns of one weight,
    `SecateursError` where its inputs were not observed, `NonFiniteError` where they or the weights are NaN or infinite."""
    member = site.members[0]
    among = _competition(site) if len(site.members) == 1 else None
    if among is None:
        raise PatternError(
            f"{site.name}: {who} chooses single weights, or whole columns, of one layer, so it needs Element(), NofM(2, 4) or "
            f'Vector("outputs"), not {site.pattern}; for that take LeastSquares(TopK(magnitude()))'
        )
    if GRAM not in stats.get(member.parameter, {}):
        raise SecateursError(
            f"{site.name}: {who} needs {GRAM.name} of {member.parameter}, which was not observed: give the stats that observe(...) found, "
            f"or skip=[{site.name!r}]"
        )
    gram = gram_of(member, stats, torch.float32)
    weight = member.canonical(finite_weight_of(member)).flatten(2).float()
    nothing = torch.zeros(site.contest_count, prod(site.competitors), dtype=torch.bool, device=weight.device)
    units = ~member.canonical(marked(site, nothing)).flatten(2)
    alive = torch.ones_like(units)
    if site.alive is not None:
        alive = member.canonical(marked(site, site.alive.to(weight.device))).flatten(2)
    bias, rows = getattr(member.module, "bias", None) if member.attribute == "weight" else None, weight.shape[:2]
    if not isinstance(bias, Tensor) or bias.numel() != rows.numel():
        return Layer(site, weight, None, gram, units, alive, among)
    return Layer(site, weight, bias.detach().float().reshape(rows), gram, units, alive, among)


def _competition(site: Site) -> str | Tensor | None:
    """Who competes with whom in a weight; ``None`` where units are of another kind."""
    member, competitors = site.members[0], prod(site.competitors)
    groups, outputs, *rest = member.shape
    features = prod(rest)
    if site.elements_per_unit == 1 and site.contest_count == 1:
        return LAYER
    columns = torch.arange(groups * features, dtype=torch.int32).view(groups, 1, *rest).expand(member.shape)
    columns = member.cut(columns).reshape(site.contest_count, competitors, -1)
    if site.elements_per_unit > 1:
        whole = site.contest_count == 1 and columns.shape[2] == outputs and bool((columns == columns[..., :1]).all())
        return COLUMNS if whole else None
    rows = torch.arange(groups * outputs, dtype=torch.int32).view(groups, outputs, *(1 for _ in rest)).expand(member.shape)
    rows = member.cut(rows).reshape(site.contest_count, competitors)
    if not bool((rows == rows[:, :1]).all()):
        return None
    return ROWS if competitors == features else columns[rows[:, 0] == 0, :, 0].long()
