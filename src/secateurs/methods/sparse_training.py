"""Masks that move: RigL (1911.11134) and SET (1707.04780), sparse all along; GraNet (2106.10404) and AC/DC (2106.12379), dense at first."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import erdos_renyi, global_threshold
from secateurs.patterns import Element, Selection
from secateurs.recover import ac_dc, cubic, gradual_regrowth, rigl, sparse_evolutionary, train_
from secateurs.types import Pattern, Run, Task


def rigl_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    every: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    rescale: bool = True,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train a fresh network sparse: a random start, more in small layers (Erdős–Rényi), and every `every` steps a fraction of each layer
    goes for as many of the largest gradients (1911.11134; `secateurs.rigl` states how). ``rescale=False`` leaves the weights at the start
    as small as a dense network's, which few of them bear without normalisations. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = rigl_(model, digits(), torch.optim.Adam(model.parameters()), 1, sparsity=0.9, every=3)
    >>> round(run.masks.sparsity, 3)
    0.9
    """
    amount = erdos_renyi(sparsity=sparsity)
    grow = rigl(
        amount, pattern=pattern, every=every, fraction=fraction, until=until, again=True, rescale=rescale, only=only, skip=skip
    )
    return train_(model, task, optimizer, epochs, hooks=[grow], **training)


def sparse_evolutionary_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    fraction: float = 0.3,
    rescale: bool = True,
    seed: int = 0,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train a fresh network sparse: a random start, more in small layers (Erdős–Rényi), and after each epoch but the last a fraction of
    each layer goes for as many at random (SET, 1707.04780; `secateurs.sparse_evolutionary`), ``rescale`` as in `rigl_`. ``training``
    goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = sparse_evolutionary_(model, digits(), torch.optim.Adam(model.parameters()), 2, sparsity=0.9)
    >>> round(run.masks.sparsity, 3)
    0.9
    """
    amount = erdos_renyi(sparsity=sparsity, kernel=False)
    evolve = sparse_evolutionary(amount, pattern=pattern, fraction=fraction, rescale=rescale, seed=seed, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[evolve], **training)


def granet_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    every: int = 100,
    fraction: float = 0.5,
    until: float = 0.75,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Prune a network along a cubic while it trains, one threshold for all layers, and exchange a fraction of each layer for the largest
    gradients each time (2106.10404; `secateurs.gradual_regrowth`). ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = granet_(model, digits(), torch.optim.Adam(model.parameters()), 2, sparsity=0.9, every=3)
    >>> round(run.masks.sparsity, 3)
    0.9
    """
    schedule = cubic(sparsity)
    regrow = gradual_regrowth(schedule, global_threshold, every=every, fraction=fraction, until=until, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[regrow], **training)


def ac_dc_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    sparsity: float,
    warmup: int | None = None,
    phase: int | None = None,
    final: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train with masks and without by turns, pruned anew each time by magnitude, one threshold for all layers, and compressed at the end
    (2106.12379; `secateurs.ac_dc` says what the phases are by default). ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = ac_dc_(model, digits(), torch.optim.Adam(model.parameters()), 4, sparsity=0.9)
    >>> [round(epoch["sparsity"], 2) for epoch in run.history]
    [0.9, 0.0, 0.9, 0.9]
    """
    turns = ac_dc(global_threshold(sparsity=sparsity), warmup=warmup, phase=phase, final=final, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[turns], **training)
