"""Kusupati et al. 2020: soft threshold weight reparameterization for learnable sparsity, STR (2002.03231)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.patterns import Selection
from secateurs.recover import soft_threshold, train_
from secateurs.types import Run, Task


def str_(
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
    """Train while each layer learns its own threshold, below which weights are zero, so that `sparsity` of all is.

    `secateurs.soft_threshold` states its equations; the strength is found on the way, and the rest, if any, cut by size. From epoch
    `end` on, by default after three quarters, the choice stands. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = digits_cnn()
    >>> run = str_(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), 8, sparsity=0.8)
    >>> run.masks.sparsity >= 0.8
    True
    """
    prune = soft_threshold(target=sparsity, end=max(1, epochs * 3 // 4) if end is None else end, strict=True, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
