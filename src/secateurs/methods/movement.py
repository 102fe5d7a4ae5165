"""Sanh et al. 2020: movement pruning, adaptive sparsity by fine-tuning (2005.07683)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.patterns import Element, Selection
from secateurs.recover import cubic, movement_pruning, soft_movement, train_
from secateurs.types import Pattern, Run, SecateursError, Task


def movement_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    soft: bool = False,
    end: int | None = None,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Fine-tune a trained model for `epochs` while weights that move towards zero go, and may come back, from every layer alike.

    The hard variant with straight-through scores: `secateurs.movement_pruning` states its equations. Sparsity grows along a cubic up to
    epoch `end`, by default three quarters of all; after it the choice stands. ``soft=True``: by a threshold on scores that cost something
    (`secateurs.soft_movement`), of single weights alone. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = movement_(model, digits(), torch.optim.Adam(model.parameters()), 2, sparsity=0.8)
    >>> round(run.masks.sparsity, 3)
    0.8
    """
    if soft and pattern != Element():
        raise SecateursError(f"movement_: soft=True prunes single weights, not {pattern}")
    last = max(1, epochs * 3 // 4) if end is None else end
    prune = (
        soft_movement(target=sparsity, end=last, strict=True, only=only, skip=skip)
        if soft
        else movement_pruning(cubic(sparsity), pattern=pattern, end=end, only=only, skip=skip)
    )
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
