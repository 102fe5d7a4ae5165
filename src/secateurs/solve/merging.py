"""Units that are alike, merged: without data, one of them stands for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.patterns import NORMALISATIONS, as_units, finite_weight_of
from secateurs.types import Member, PatternError, Scores, Site, Solution, Statistic, Stats

Pairs = list[tuple[int, int, float]]
"""Unit that goes, unit that stands for it, what that changes; in order."""


@dataclass(frozen=True)
class Merge:
    """Without data: of two units with similar incoming weights one goes, and its outgoing weights are added to the other's (1507.06149).

    Always the pair goes together whose merging changes the layers that read them least, to judge by mean(a²)·‖Δw‖², a being the outgoing
    weights of the one that goes and Δw the difference of their incoming weights, biases included; a BatchNorm that follows the only
    layer that makes them is folded into those. Units that are equal are merged without any change. For `Channel` and `Head`.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, prune_, uniform
    >>> model, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(8, 2)
    >>> model[0].weight.data[2:], model[0].bias.data[2:] = model[0].weight.data[:2].clone(), model[0].bias.data[:2].clone()
    >>> before = model(x)
    >>> masks = prune_(model, Channel(), Merge(), uniform(sparsity=0.5), Task(x))
    >>> bool(torch.allclose(model(x), before, atol=1e-6))
    True
    """

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return ()

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """What merging has changed by when a unit goes, ``(contests, competitors)``: those that go later score higher."""
        for site in sites:
            yield torch.stack([_scores(group) for group in _groups(site)])

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        each, groups = site.each_of(kept), _groups(site)
        chosen = torch.stack([group.alive for group in groups]) & (each > 0)  # none can stand for the last one
        merges = [group.merges()[: max(0, int(group.alive.sum()) - each)] for group in groups]
        for contest, pairs in enumerate(merges):
            for gone, _, _ in pairs:
                chosen[contest, gone] = False
        return Solution(chosen, _with_outgoing(site, merges))


@dataclass(frozen=True)
class _Group:
    """The units of one contest: their incoming weights ``(units, numbers)``, their outgoing ones, and which are left."""

    incoming: Tensor
    outgoing: Tensor
    alive: Tensor

    def merges(self) -> Pairs:
        """One after the other, until one is left, for which none can stand."""
        distances = _squared_distances(self.incoming)
        distances.fill_diagonal_(torch.inf)
        distances[:, ~self.alive] = torch.inf
        there, outgoing, found = self.alive.clone(), self.outgoing.clone(), []
        nearest = distances.argmin(1)
        sizes = outgoing.square().mean(1)
        for _ in range(int(there.sum()) - 1):
            costs = sizes * distances.gather(1, nearest[:, None])[:, 0]
            gone = int(costs.masked_fill(~there, torch.inf).argmin())
            into = int(nearest[gone])
            found.append((gone, into, float(costs[gone])))
            outgoing[into] += outgoing[gone]
            sizes[into] = outgoing[into].square().mean()
            there[gone] = False
            distances[:, gone] = torch.inf
            stale = (nearest == gone) & there
            nearest[stale] = distances[stale].argmin(1)
        return found


def _scores(group: _Group) -> Tensor:
    scores = torch.full(group.alive.shape, -torch.inf, dtype=torch.float64, device=group.alive.device)
    changed, left = 0.0, group.alive.clone()
    for gone, _, cost in group.merges():
        changed += cost
        scores[gone], left[gone] = changed, False
    last = changed + (group.outgoing.square().mean(1) * group.incoming.square().sum(1))
    return torch.where(left, last, scores).float()


def _squared_distances(rows: Tensor) -> Tensor:
    """Of differences: the products of large numbers would lose the small distances."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()


def _groups(site: Site) -> list[_Group]:
    outgoing = [
        as_units(site, finite_weight_of(member), index).flatten(2)
        for index, member in enumerate(site.members)
        if member.role == "consumer"
    ]
    if not outgoing:
        raise PatternError(
            f"{site.name}: Merge adds the weights that read one unit to those that read another, so it needs Channel() or Head(), not "
            f"{site.pattern}"
        )
    incoming = _incoming(site)
    alive = torch.ones(incoming.shape[:2], dtype=torch.bool) if site.alive is None else site.alive
    read = torch.cat([each.to(incoming.device) for each in outgoing], dim=2).double()
    return [_Group(*parts) for parts in zip(incoming, read, alive.to(incoming.device), strict=True)]


def _incoming(site: Site) -> Tensor:
    """All that makes units what they are, ``(contests, competitors, numbers)``, float64: where it is equal, they are."""
    made = [(index, member) for index, member in enumerate(site.members) if member.role != "consumer"]
    norms = [(index, member) for index, member in made if _is_scale(member)]
    makers = [(index, member) for index, member in made if member.role == "producer" and member.weight.ndim > 1]
    if len(norms) == len(makers) == 1 and _can_be_folded(site, norms[0][1]):
        return _folded(site, *makers[0], *norms[0])
    parts = [_flat(site, finite_weight_of(member), index) for index, member in made]
    for index, member in norms:
        for buffer in (getattr(member.module, "running_mean", None), getattr(member.module, "running_var", None)):
            parts += [] if buffer is None else [_flat(site, buffer, index)]
    return torch.cat([part.double().to(parts[0].device) for part in parts], dim=2)


def _folded(site: Site, of_maker: int, maker: Member, of_norm: int, norm: Member) -> Tensor:
    """The weights and the bias of the only layer that makes the units, with the normalisation after it in them."""
    module = norm.module
    scale = finite_weight_of(norm).double() / (module.running_var.double() + module.eps).sqrt()  # type: ignore[operator]
    bias = getattr(maker.module, "bias", None)
    shift = -module.running_mean.double() * scale  # type: ignore[operator]
    if isinstance(module.bias, Tensor):
        shift = shift + module.bias.detach().double()
    if isinstance(bias, Tensor):
        shift = shift + bias.detach().double() * scale
    rows = _flat(site, finite_weight_of(maker).double(), of_maker)
    return torch.cat([rows * _flat(site, scale, of_norm), _flat(site, shift, of_norm)], dim=2)


def _flat(site: Site, values: Tensor, index: int) -> Tensor:
    """Numbers of which a unit has one or some, as ``(contests, competitors, numbers)``."""
    units = as_units(site, values, index)
    return units.reshape(*units.shape[:2], -1)


def _is_scale(member: Member) -> bool:
    return isinstance(member.module, NORMALISATIONS) and member.attribute == "weight"


def _can_be_folded(site: Site, norm: Member) -> bool:
    """Whether a normalisation scales each unit by one number, whatever the input."""
    return norm.weight.numel() == site.units and getattr(norm.module, "running_var", None) is not None


def _with_outgoing(site: Site, merges: list[Pairs]) -> dict[str, Tensor]:
    """The weights that read the units, after the merges of each contest."""
    found: dict[str, Tensor] = {}
    for member in site.members:
        if member.role != "consumer":
            continue
        weight = found.get(member.parameter, finite_weight_of(member)).clone()
        view = member.cut(member.canonical(weight))
        units = view.reshape(len(merges), -1, *view.shape[len(site.contests) + len(site.competitors) :]).double()
        for contest, pairs in enumerate(merges):
            for gone, into, _ in pairs:
                units[contest, into] += units[contest, gone]
        view.copy_(units.reshape(view.shape))
        found[member.parameter] = weight
    return found
