"""Channels chosen so that the next layers answer as before, one layer after the other: ThiNet, and channel pruning by LASSO."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import uniform
from secateurs.evidence import in_order
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection
from secateurs.prune import prune_
from secateurs.recover import train_
from secateurs.solve import Lasso, ThiNet
from secateurs.types import Pattern, SecateursError, Solver, Task


def thinet_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    sparsity: float,
    epochs: int = 0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Masks:
    """Remove the same fraction of each layer's channels, greedily those that the layers which read them miss least, and let the others make
    up for them by least squares; layer after layer, each observed with those before it pruned already (1707.06342).

    Then train for `epochs`, where any are given: the paper fine-tunes after each layer, here it is once at the end. Neither labels nor a
    loss are needed without. `shrink_` takes out what was removed.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> int(thinet_(digits_cnn(), digits(), sparsity=0.5)["conv2.bias"].sum())
    16
    """
    return _in_order(model, ThiNet(), task, optimizer, sparsity, epochs, training, pattern=pattern, only=only, skip=skip)


def he2017_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    sparsity: float,
    epochs: int = 0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Masks:
    """As `thinet_`, the channels being the support of an L1-regularised regression of the answers on them (He et al., 1707.06168).

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> int(he2017_(digits_cnn(), digits(), sparsity=0.75)["conv2.bias"].sum())
    8
    """
    return _in_order(model, Lasso(), task, optimizer, sparsity, epochs, training, pattern=pattern, only=only, skip=skip)


def _in_order(
    model: nn.Module,
    solver: Solver,
    task: Task,
    optimizer: torch.optim.Optimizer | None,
    sparsity: float,
    epochs: int,
    training: dict[str, Any],
    *,
    pattern: Pattern,
    only: Selection | None,
    skip: Selection | None,
) -> Masks:
    if epochs and optimizer is None:
        raise SecateursError(f"epochs={epochs} need an optimizer to train with: give one, or epochs=0")
    masks = prune_(model, pattern, solver, uniform(sparsity=sparsity), task, only=only, skip=skip, walk=in_order())
    if epochs and optimizer is not None:
        train_(model, task, optimizer, epochs, masks=masks, **training)
    return masks
