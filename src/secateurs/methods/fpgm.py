"""He et al. 2019: filter pruning via the geometric median, of filters that others can stand for (1811.00250)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import uniform
from secateurs.criteria import fpgm
from secateurs.patterns import Channel, Selection
from secateurs.prune import prune_
from secateurs.recover import train_
from secateurs.solve import TopK
from secateurs.types import Hook, Pattern, Run, SecateursError, Task


def fpgm_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    epochs: int,
    soft_epochs: int = 0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Remove the same fraction of each layer's channels, those nearest to the geometric median of their filters, and train for `epochs`.

    Before that, in each of `soft_epochs`, they are only set to zero at the start of the epoch and trained on, so that others may be chosen
    the next time, as in the paper. `shrink_` takes out what was removed. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = fpgm_(model, digits(), torch.optim.Adam(model.parameters()), sparsity=0.5, soft_epochs=1, epochs=1)
    >>> int(run.masks["conv1.bias"].sum())
    8
    """
    if epochs < 1 or soft_epochs < 0:
        raise SecateursError(f"fpgm_: epochs={epochs} must be at least 1, and soft_epochs={soft_epochs} at least 0")

    def prune(run: Run) -> None:
        if run.epoch <= soft_epochs:
            chosen: dict[str, Any] = {"only": only, "skip": skip, "recalibrate": False}  # an epoch of training follows
            masks = prune_(run.model, pattern, TopK(fpgm()), uniform(sparsity=sparsity), run.task, **chosen)
            if run.epoch == soft_epochs:
                run.masks.replace_(masks)

    return train_(model, task, optimizer, soft_epochs + epochs, hooks=[Hook("fpgm", epoch=prune)], **training)
