"""You et al. 2020: drawing early-bird tickets, channels chosen in the first epochs of training (1909.11957)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.patterns import Channel, Selection
from secateurs.recover import early_bird, penalty, train_
from secateurs.types import Pattern, Run, Task


def early_bird_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    strength: float = 1e-4,
    window: int = 5,
    threshold: float = 0.1,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train for `epochs` with ``strength · Σ|γ|`` in the loss; once the channels with the largest |γ| are the same as in the epochs before,
    the others go, and training goes on without them (`secateurs.early_bird`). `shrink_` takes them out. ``training`` goes to `train_`.

    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> run = early_bird_(model, digits(), torch.optim.Adam(model.parameters()), 4, sparsity=0.5, window=2, threshold=0.25)
    >>> int(run.masks["1.weight"].sum())
    4
    """
    amount = global_threshold(sparsity=sparsity)
    draw = early_bird(amount, pattern=pattern, window=window, threshold=threshold, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[penalty(strength, p=1, of="scales"), draw], **training)
