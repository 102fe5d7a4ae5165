"""Which units go, and which come back in their place: choices of one site, as many of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from secateurs.criteria import magnitude
from secateurs.patterns import as_units, marked, with_alive
from secateurs.ranks import whole
from secateurs.solve import highest, scores_of
from secateurs.types import Scores, Site


def cosine(fraction: float, progress: float) -> float:
    """What is exchanged at a progress in [0, 1]: α/2·(1 + cos(πt/T)) of what is there (1911.11134).

    >>> cosine(0.3, 0.0), round(cosine(0.3, 0.5), 6), cosine(0.3, 1.0)
    (0.3, 0.15, 0.0)
    """
    return fraction / 2 * (1 + cos(pi * progress))


@dataclass(frozen=True)
class Standing:
    """Where a site stands: the units that are kept, and those that may come back, each ``(contests, competitors)``, bool."""

    kept: Tensor
    free: Tensor

    @staticmethod
    def of(site: Site, masks: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> Standing:
        """By masks, and by what is held at zero by those of an earlier pruning (parameter → bool tensor, ``True`` = held)."""
        kept = with_alive(site, masks).alive
        if kept is None:
            shape = (site.contest_count, site.units // site.contest_count)
            kept = torch.ones(shape, dtype=torch.bool, device=site.members[0].weight.device)
        free = ~kept
        stays = held.get(site.members[0].parameter)
        if stays is not None:
            open_ = as_units(site, ~stays.to(free.device))
            free = free & (open_.flatten(2).any(2) if open_.ndim > 2 else open_)
        return Standing(kept, free)

    @property
    def count(self) -> int:
        return int(torch.count_nonzero(self.kept))


def exchanged(
    standing: Standing, scores: Scores, growth: Scores, wanted: int, *, missing: int = 0, again: bool = False
) -> tuple[Tensor, Tensor]:
    """The `wanted` units that go, lowest scores first, and as many that come back, highest growth first; ties to the first.

    Each contest gets back as many as it gives, so none gives more than can come back in it; of one contest `missing` more come back. With
    ``again=True`` what goes may come back at once: then it stays as it is.

    >>> there = torch.tensor([[True, True, False, False]])
    >>> standing = Standing(there, ~there)
    >>> exchanged(standing, torch.tensor([[2.0, 1.0, 0.0, 0.0]]), torch.tensor([[9.0, 8.0, 1.0, 3.0]]), 1)
    (tensor([[False,  True, False, False]]), tensor([[False, False, False,  True]]))
    """
    kept, free = standing.kept, standing.free
    room = free.sum(1, keepdim=True) - missing
    leaving = kept
    if len(kept) > 1:
        leaving = kept & (_places(scores.masked_fill(~kept, torch.inf)) < room)
    elif int(room) < wanted:
        wanted = max(0, int(room))
    wanted = min(wanted, int(torch.count_nonzero(leaving)))
    gone = highest((-scores).masked_fill(~leaving, -torch.inf).view(1, -1), wanted).view_as(kept) & leaving
    lost = gone.sum(1, keepdim=True) + missing
    choice = free | gone if again else free
    if len(kept) > 1:
        back = choice & (_places((-growth).masked_fill(~choice, torch.inf)) < lost)
    else:
        back = highest(growth.masked_fill(~choice, -torch.inf), min(int(lost), int(choice.sum()))) & choice
    return gone & ~back, back & ~gone


def _places(values: Tensor) -> Tensor:
    """The place of each number in its row, the lowest first."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def least(site: Site) -> Scores:
    """Scores of a site's units by which they go: the lowest magnitudes."""
    return scores_of(site, magnitude(), {})


def steepest(site: Site, held: Mapping[str, Tensor]) -> Scores | None:
    """The sum of |g| over each unit, of the gradient by weights that are at zero, too; ``None`` where the weight has no gradient."""
    member = site.members[0]
    if member.weight.grad is None:
        return None
    gradient = whole(member.weight.grad.detach()).float().abs()
    if member.parameter in held:
        gradient = gradient.masked_fill(held[member.parameter].to(gradient.device), 0)
    units = as_units(site, gradient)
    return units.flatten(2).sum(2) if units.ndim > 2 else units


def in_weight(site: Site, units: Tensor) -> Tensor:
    """Bool tensor of the weight's shape that marks some units."""
    return ~marked(site, ~units.to(site.members[0].weight.device))
