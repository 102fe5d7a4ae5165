"""Xiao, Wang and Rajasekaran, NeurIPS 2019: AutoPrune, automatic network pruning by regularizing auxiliary parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.patterns import Selection
from secateurs.recover import indicators, train_
from secateurs.types import Run, Task


def autoprune_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    end: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train while a number beside each weight learns whether the weight is there, until `sparsity` of all are not.

    `secateurs.indicators` states its equations; the strength of the penalty is found on the way, and the rest, if any, cut by what was
    learned. From epoch `end` on, by default after three quarters, the choice stands. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = digits_cnn()
    >>> run = autoprune_(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), 3, sparsity=0.8)
    >>> run.masks.sparsity >= 0.8
    True
    """
    prune = indicators(target=sparsity, end=max(1, epochs * 3 // 4) if end is None else end, strict=True, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
