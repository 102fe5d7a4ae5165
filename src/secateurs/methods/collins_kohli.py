"""Collins & Kohli 2014: memory bounded networks, whose weights are thresholded while they learn (1412.1442)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude
from secateurs.patterns import Element
from secateurs.recover import hard_threshold, penalty, prune_at, train_
from secateurs.solve import TopK
from secateurs.types import Run, SecateursError, Task


def memory_bounded_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    strength: float | None = None,
    every: int = 10,
    until: int | None = None,
    **training: Any,
) -> Run:
    """Train for `epochs`, all but the largest weights of the whole model being set to zero after each `every`-th step (ℓ0).

    With a ``strength`` all weights are shrunk towards zero after each step instead (ℓ1). At the start of epoch `until`, by default
    after three quarters, exactly ``sparsity`` of the weights, the smallest, are zero for good. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = memory_bounded_(model, digits(), torch.optim.Adam(model.parameters()), 2, sparsity=0.75)
    >>> round(run.masks.sparsity, 3)
    0.75
    """
    last = max(1, epochs * 3 // 4) if until is None else until
    hooks = [hard_threshold(sparsity, every=every, until=until)]
    if strength is not None:
        if epochs <= last:
            raise SecateursError(f"memory_bounded_: until={last} must come before the last of {epochs} epochs")
        cut = prune_at(last, Element(), TopK(magnitude()), global_threshold(sparsity=sparsity))
        hooks = [penalty(strength, p=1, step="proximal", until=last), cut]
    return train_(model, task, optimizer, epochs, hooks=hooks, **training)
