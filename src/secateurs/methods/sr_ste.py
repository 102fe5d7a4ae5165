"""Zhou et al. 2021: learning N:M fine-grained structured sparse neural networks from scratch, SR-STE (2102.04010)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.patterns import Selection
from secateurs.recover import sparse_refined, train_
from secateurs.types import Run, Task


def sr_ste_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    n: int = 2,
    m: int = 4,
    strength: float = 2e-4,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train with the `n` largest of each `m` weights, chosen anew in each step, all of which go on learning.

    `secateurs.sparse_refined` states its equations; ``strength`` is the paper's λ_W. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = sr_ste_(model, digits(), torch.optim.Adam(model.parameters()), 1, skip=["conv1"])
    >>> run.masks.sparsity
    0.5
    """
    prune = sparse_refined(n=n, m=m, strength=strength, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
