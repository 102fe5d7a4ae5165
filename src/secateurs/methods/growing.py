"""Wang et al. 2021: neural pruning via growing regularization, GReg-1 (2012.09243)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.criteria import magnitude
from secateurs.patterns import Channel, Selection
from secateurs.recover import growing_penalty, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Pattern, Run, SecateursError, Solver, Task


def growing_regularisation_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    allocate: Allocator,
    sparse_epochs: int,
    epochs: int,
    delta: float = 1e-4,
    every: int = 10,
    ceiling: float = 1.0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    solver: Solver | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Choose what is to go by the 1-norm, press it to zero for `sparse_epochs` with an L2 factor that grows, cut, and fine-tune.

    The factor grows by `delta` every `every` steps up to the `ceiling`, in proximal steps, which are stable for any learning rate; a
    warning tells where `sparse_epochs` were too few for it. ``allocate`` says how many stay, ``uniform(sparsity=0.5)`` as in the paper, or
    a budget; another ``solver`` may choose. `shrink_` takes out what was removed. ``training`` goes to `train_`.

    >>> from secateurs import uniform
    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> optimizer, half = torch.optim.Adam(model.parameters()), uniform(sparsity=0.5)
    >>> press = {"delta": 20.0, "every": 2, "ceiling": 100.0}
    >>> run = growing_regularisation_(model, digits(), optimizer, allocate=half, sparse_epochs=1, epochs=1, show=False, **press)
    >>> int(run.masks["conv1.bias"].sum())
    8
    """
    if sparse_epochs < 1 or epochs < 1:
        raise SecateursError(f"growing_regularisation_: sparse_epochs={sparse_epochs} and epochs={epochs} must both be at least 1")
    choice = solver or TopK(magnitude(p=1))
    press: dict[str, Any] = {"delta": delta, "every": every, "ceiling": ceiling, "until": sparse_epochs, "step": "proximal"}
    grow = growing_penalty(pattern, choice, allocate, only=only, skip=skip, **press)
    return train_(model, task, optimizer, sparse_epochs + epochs, hooks=[grow], **training)
