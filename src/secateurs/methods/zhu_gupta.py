"""Zhu & Gupta 2017: to prune, or not to prune; sparsity that grows while the network trains (1710.01878)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import uniform
from secateurs.criteria import magnitude
from secateurs.patterns import Element
from secateurs.recover import cubic, gradual, train_
from secateurs.solve import TopK
from secateurs.types import Run, Task


def gradual_magnitude_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    begin: int = 0,
    end: int | None = None,
    every: int = 1,
    **training: Any,
) -> Run:
    """Train for `epochs` while the same sparsity grows in every layer along a cubic, from epoch `begin` to `end`.

    By default the last quarter of the epochs is left for recovering. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model, task = digits_cnn(), digits()
    >>> run = gradual_magnitude_(model, task, torch.optim.Adam(model.parameters()), 4, sparsity=0.8)
    >>> [round(epoch["sparsity"], 2) for epoch in run.history]
    [0.56, 0.77, 0.8, 0.8]
    """
    last = max(begin + 1, epochs * 3 // 4) if end is None else end
    prune = gradual(
        Element(), TopK(magnitude()), uniform, cubic(sparsity), begin=begin, end=last, every=every, dropout=False, dead=False
    )
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
