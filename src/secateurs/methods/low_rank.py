"""Denton et al. 2014: low rank, by singular value decomposition, to a number of parameters of the whole model (1404.0736)."""

from __future__ import annotations

from torch import nn

from secateurs.patterns import Selection
from secateurs.shrink import LowRank, low_rank_
from secateurs.types import Task


def svd_(
    model: nn.Module,
    task: Task,
    *,
    keep: float,
    weighted: bool | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> LowRank:
    """Make two layers of each, with ranks such that at most ``keep`` of all the model's parameters are left.

    The directions stay that hold most of their layer's energy for their weights: `low_rank_` with ``total=keep``, and as that in all else.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> found = svd_(digits_cnn(), digits(), keep=0.25)
    >>> found.parameters[1] <= 0.25 * found.parameters[0]
    True
    """
    return low_rank_(model, task, total=keep, weighted=weighted, only=only, skip=skip)
