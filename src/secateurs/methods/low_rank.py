"""Denton et al. 2014: low rank, by singular value decomposition, to a number of parameters of the whole model (1404.0736)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from secateurs.patterns import Selection
from secateurs.shrink import LowRank, low_rank_
from secateurs.shrink.low_rank import cuttable
from secateurs.types import SecateursError, Task


def svd_(
    model: nn.Module,
    task: Task,
    *,
    keep: float,
    weighted: bool | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> LowRank:
    """Make two layers of each, with ranks such that at most ``keep`` of all parameters are left, and one rank more would be too many.

    Layers keep the same fraction of their weights, rounded down to whole ranks; what layers that stay whole have counts too. As
    `low_rank_` in all else. Raises `SecateursError` where rank 1 everywhere leaves too many.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> found = svd_(digits_cnn(), digits(), keep=0.25)
    >>> found.parameters[1] <= 0.25 * found.parameters[0]
    True
    """
    sizes = {site.name: site.members[0].weight.flatten(1).shape for site in cuttable(model, task, only, skip)[0]}
    total = sum(parameter.numel() for parameter in model.parameters())
    tried = sorted({rank / _whole(each) for each in sizes.values() for rank in range(1, int(_whole(each)) + 2)})
    low, high = -1, len(tried)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _left(sizes, total, tried[middle]) <= keep * total else (low, middle)
    if low < 0:
        least = _left(sizes, total, 0.0) / total
        raise SecateursError(f"svd_: keep={keep} is too little: with rank 1 everywhere {least:.3f} of the parameters are left")
    return low_rank_(model, task, ranks=_ranks(sizes, tried[low]), weighted=weighted, only=only, skip=skip)


def _whole(size: Sequence[int]) -> float:
    """The rank at which two layers have as many weights as the one."""
    return size[0] * size[1] / (size[0] + size[1])


def _ranks(sizes: Mapping[str, Sequence[int]], part: float) -> dict[str, int]:
    """The ranks that a fraction of each layer's weights is enough for, of those that are smaller by it."""
    ranks = {name: max(1, int(part * _whole(size) + 1e-9)) for name, size in sizes.items()}
    return {name: rank for name, rank in ranks.items() if rank < _whole(sizes[name])}


def _left(sizes: Mapping[str, Sequence[int]], total: int, part: float) -> int:
    """The parameters of the whole model with these ranks."""
    ranks = _ranks(sizes, part)
    return total - sum(sizes[name][0] * sizes[name][1] - rank * sum(sizes[name]) for name, rank in ranks.items())
