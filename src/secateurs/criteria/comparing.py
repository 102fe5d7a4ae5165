"""Units beside each other: those that others can stand for are missed least."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.criteria.parts import weights_alone
from secateurs.types import Counted, Criterion, PatternError

_PAIRS = 1 << 24  # distances that are computed at once
_MOST = 1 << 15  # units of several elements that are compared each with each


def fpgm(members: Counted = "producers") -> Criterion:
    """The sum of the distances to all other units: those nearest to the geometric median are replaceable (1811.00250).

    Raises `PatternError` for more than 32,768 units of several elements in one contest.

    >>> fpgm().compare(torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]]))
    tensor([[10.,  5.,  5.]])
    """
    return Criterion(_named("fpgm", members), weights_alone, _unused, members=members, compare=_distances)


def cosine(members: Counted = "producers") -> Criterion:
    """1 minus the largest |cosine| to another unit of the contest: of two units that point the same way one can go (1507.06149).

    >>> cosine().compare(torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]]))
    tensor([[0., 0., 1.]])
    """
    return Criterion(_named("cosine", members), weights_alone, _unused, members=members, compare=_alone)


def lamp(members: Counted = "producers") -> Criterion:
    """A unit's squared norm as a part of those of its site that are at least as large, so that layers can be compared (2010.07611).

    Take it with `global_threshold`: the largest unit of each layer scores 1.

    >>> lamp().compare(torch.tensor([[[1.0], [-2.0], [3.0]]])).round(decimals=4)
    tensor([[0.0714, 0.3077, 1.0000]])
    """
    return Criterion(_named("lamp", members), weights_alone, _unused, members=members, compare=_shares)


def _named(name: str, members: Counted) -> str:
    return f"{name}()" if members == "producers" else f"{name}(members={members!r})"


def _unused(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Never called where units are compared; the norm, so that a product with another criterion is defined."""
    return torch.linalg.vector_norm(values, 2, dims)


def _require_few(values: Tensor, name: str) -> None:
    if values.shape[1] > _MOST:
        raise PatternError(
            f"{name} compares each unit with each, and here {values.shape[1]:,} compete: take units of more elements (Filter(), "
            "Channel()), or another criterion"
        )


def _distances(values: Tensor) -> Tensor:
    if values.shape[2] == 1:
        return _distances_on_a_line(values[:, :, 0])
    _require_few(values, "fpgm")
    step = max(1, _PAIRS // max(1, values.shape[1]))
    exact = "donot_use_mm_for_euclid_dist"  # differences of large numbers would lose the small distances
    parts = [torch.cdist(part, values, compute_mode=exact).sum(2) for part in values.split(step, dim=1)]
    return torch.cat(parts, dim=1)


def _distances_on_a_line(values: Tensor) -> Tensor:
    """Σ|x - y| over all others, of single numbers, from their order."""
    ordered, order = values.double().sort(dim=1)
    count, before = ordered.shape[1], ordered.cumsum(1) - ordered
    rank = torch.arange(count, device=values.device)
    sums = ordered * (2 * rank - count + 1) - 2 * before - ordered + ordered.sum(1, keepdim=True)
    return torch.empty_like(sums).scatter_(1, order, sums).float()


def _alone(values: Tensor) -> Tensor:
    if values.shape[2] == 1:
        raise PatternError(
            "cosine compares directions, and single numbers have none: take units of more elements (Filter(), Channel())"
        )
    _require_few(values, "cosine")
    directions = torch.nn.functional.normalize(values, dim=2)
    step = max(1, _PAIRS // max(1, values.shape[1]))
    found = []
    for start in range(0, values.shape[1], step):
        alike = (directions[:, start : start + step] @ directions.transpose(1, 2)).abs()
        own = torch.arange(start, min(start + step, values.shape[1]), device=values.device)
        alike[:, own - start, own] = 0
        found.append(1 - alike.amax(2).clamp(max=1))
    return torch.cat(found, dim=1)


def _shares(values: Tensor) -> Tensor:
    sizes = values.double().square().sum(2)
    ordered, order = sizes.sort(dim=1)
    at_least = ordered.flip(1).cumsum(1).flip(1)
    shares = ordered / at_least.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).scatter_(1, order, shares).float()
