"""Louizos, Welling and Kingma 2018: learning sparse neural networks through L0 regularization (1712.01312)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.patterns import Element, Selection
from secateurs.recover import l0_gates, train_
from secateurs.types import Pattern, Run, Task


def l0_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    end: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train with gates on weights, or on the units of a pattern, that are drawn anew in each step, until `sparsity` are closed.

    `secateurs.l0_gates` states its equations; the strength is found on the way, and the rest, if any, cut by the gates. From epoch
    `end` on, by default after three quarters, the choice stands. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = digits_cnn()
    >>> run = l0_(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), 3, sparsity=0.5)
    >>> run.masks.sparsity >= 0.5
    True
    """
    prune = l0_gates(
        target=sparsity, pattern=pattern, end=max(1, epochs * 3 // 4) if end is None else end, strict=True, only=only, skip=skip
    )
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
