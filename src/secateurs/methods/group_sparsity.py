"""Fang et al. 2023: DepGraph's group sparsity, all that is coupled to a channel made small together (2301.12900)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.criteria import magnitude, normalised
from secateurs.patterns import Channel, Selection
from secateurs.recover import group_lasso, prune_at, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Pattern, Run, SecateursError, Task


def group_sparsity_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    allocate: Allocator,
    sparse_epochs: int,
    epochs: int,
    strength: float = 5e-4,
    growth: float = 4.0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train for `sparse_epochs` with ``strength · Σ γ · ‖channel‖²``, remove those with the smallest norm, and fine-tune for `epochs`.

    The norm is that of everything coupled to the channel, and γ = 2^(growth · (I_max − I)/(I_max − I_min)) with I = ‖channel‖² and the
    extremes of its site: the less important, the harder it is pressed. ``allocate`` says how many stay: ``uniform(sparsity=0.5)``, or a
    budget, ``within_budget(Budget(macs, keep=0.5), global_threshold)``; norms are compared by the mean of their site. `shrink_` takes out
    what was removed. ``training`` goes to `train_`.

    >>> from secateurs import uniform
    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> run = group_sparsity_(model, digits(), optimizer, allocate=uniform(sparsity=0.5), sparse_epochs=1, epochs=1, show=False)
    >>> int(run.masks["conv1.bias"].sum())
    8
    """
    if sparse_epochs < 1 or epochs < 1:
        raise SecateursError(f"group_sparsity_: sparse_epochs={sparse_epochs} and epochs={epochs} must both be at least 1")
    small = group_lasso(
        pattern, strength, squared=True, growth=growth, step="subgradient", until=sparse_epochs, only=only, skip=skip
    )
    solver = TopK(normalised(magnitude(members="all")))
    cut = prune_at(sparse_epochs, pattern, solver, allocate, only=only, skip=skip)
    return train_(model, task, optimizer, sparse_epochs + epochs, hooks=[small, cut], **training)
