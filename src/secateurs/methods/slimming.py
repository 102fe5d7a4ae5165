"""Liu et al. 2017: network slimming, channels whose BatchNorm scales an L1 penalty has driven to zero (1708.06519)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import batchnorm_scale
from secateurs.patterns import NORMALISATIONS, Channel, Selection, find_sites
from secateurs.recover import Step, penalty, prune_at, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Pattern, PatternError, Run, SecateursError, Task


def network_slimming_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float | None = None,
    sparse_epochs: int,
    epochs: int,
    strength: float = 1e-4,
    allocate: Allocator | None = None,
    step: Step = "subgradient",
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train for `sparse_epochs` with ``strength · Σ|γ|`` in the loss, remove the channels with the smallest |γ| of the whole network, and
    fine-tune for `epochs` without the penalty.

    ``allocate`` takes the place of ``sparsity``: a budget, or ``above(1e-2)``; ``step="proximal"`` makes scales exactly zero. Channels that
    pass no normalisation are left alone. `shrink_` takes out what was removed. ``training`` goes to `train_`. Raises
    `PatternError` where no channel has a scale, `SecateursError` unless one of ``sparsity`` and ``allocate`` is given.

    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> run = network_slimming_(model, digits(), torch.optim.Adam(model.parameters()), sparsity=0.5, sparse_epochs=1, epochs=1)
    >>> int(run.masks["1.weight"].sum())
    4
    """
    if sparse_epochs < 1 or epochs < 1:
        raise SecateursError(f"network_slimming_: sparse_epochs={sparse_epochs} and epochs={epochs} must both be at least 1")
    if (sparsity is None) == (allocate is None):
        raise SecateursError(f"network_slimming_: give sparsity={sparsity} or allocate=, one of them")
    scaled = {site.name: _has_scale(site) for site in find_sites(model, pattern, task.example, only=only, skip=skip)}
    if not any(scaled.values()):
        raise PatternError(
            f"network_slimming_: none of {', '.join(scaled)} passes a normalisation with a scale; put one behind each layer"
        )
    choose = [name for name, has in scaled.items() if has]
    chosen = allocate or global_threshold(sparsity=sparsity)
    prune = prune_at(sparse_epochs, pattern, TopK(batchnorm_scale()), chosen, only=choose)
    slim = penalty(strength, p=1, of="scales", step=step, until=sparse_epochs)
    return train_(model, task, optimizer, sparse_epochs + epochs, hooks=[slim, prune], **training)


def _has_scale(site: Any) -> bool:
    return any(isinstance(member.module, NORMALISATIONS) and member.attribute == "weight" for member in site.members)
