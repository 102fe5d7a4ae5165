"""Collins & Kohli 2014: memory bounded networks, whose weights are thresholded while they learn (1412.1442)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.recover import hard_threshold, train_
from secateurs.types import Run, Task


def memory_bounded_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    every: int = 10,
    until: int | None = None,
    **training: Any,
) -> Run:
    """Train for `epochs`, all but the largest weights of the whole model being set to zero after each `every`-th step (ℓ0).

    From epoch `until` on, by default the last quarter, the zeros are fixed: exactly ``sparsity`` of the weights. ``training`` goes to
    `train_`. The paper's ℓ1 is ``penalty(strength, p=1)`` as a proximal step, whose sparsity comes of a strength.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = memory_bounded_(model, digits(), torch.optim.Adam(model.parameters()), 2, sparsity=0.75)
    >>> round(run.masks.sparsity, 3)
    0.75
    """
    return train_(model, task, optimizer, epochs, hooks=[hard_threshold(sparsity, every=every, until=until)], **training)
