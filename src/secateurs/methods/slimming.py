"""Liu et al. 2017: network slimming, channels whose BatchNorm scales an L1 penalty has driven to zero (1708.06519)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import batchnorm_scale
from secateurs.patterns import NORMALISATIONS, Channel, Selection, find_sites
from secateurs.recover import gradual, one_shot, penalty, train_
from secateurs.solve import TopK
from secateurs.types import Pattern, PatternError, Run, SecateursError, Task


def network_slimming_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    sparse_epochs: int,
    epochs: int,
    strength: float = 1e-4,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train for `sparse_epochs` with ``strength · Σ|γ|`` in the loss, remove the channels with the smallest |γ| of the whole network, and
    fine-tune for `epochs` without the penalty.

    Channels that pass no normalisation are left alone. `shrink_` takes out what was removed. ``training`` goes to `train_`. Raises
    `PatternError` where no channel has a scale.

    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> run = network_slimming_(model, digits(), torch.optim.Adam(model.parameters()), sparsity=0.5, sparse_epochs=1, epochs=1)
    >>> int(run.masks["1.weight"].sum())
    4
    """
    if sparse_epochs < 1 or epochs < 1:
        raise SecateursError(f"network_slimming_: sparse_epochs={sparse_epochs} and epochs={epochs} must both be at least 1")
    scaled = {site.name: _has_scale(site) for site in find_sites(model, pattern, task.example, only=only, skip=skip)}
    if not any(scaled.values()):
        raise PatternError(
            f"network_slimming_: none of {', '.join(scaled)} passes a normalisation with a scale; put one behind each layer"
        )
    choose = [name for name, has in scaled.items() if has]
    solver, schedule, end = TopK(batchnorm_scale()), one_shot(sparsity), sparse_epochs + 1
    prune = gradual(
        pattern, solver, global_threshold, schedule, begin=sparse_epochs, end=end, dropout=False, dead=False, only=choose
    )
    cost = penalty(strength, p=1, of="scales")
    slim = replace(cost, loss=lambda run: cost.loss(run) if run.epoch < sparse_epochs else None)
    return train_(model, task, optimizer, sparse_epochs + epochs, hooks=[slim, prune], **training)


def _has_scale(site: Any) -> bool:
    return any(isinstance(member.module, NORMALISATIONS) and member.attribute == "weight" for member in site.members)
