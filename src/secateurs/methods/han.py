"""Han et al. 2015: learn which connections matter, remove the others, retrain, and again (1506.02626)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude
from secateurs.patterns import Element, Selection
from secateurs.recover import geometric, gradual, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Criterion, Hook, Pattern, Run, Solver, Task


def iterative_magnitude_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    rounds: int = 10,
    epochs_per_round: int = 2,
    last_epochs: int = 0,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    criterion: Criterion | None = None,
    solver: Solver | None = None,
    allocate: Callable[..., Allocator] = global_threshold,
    only: Selection | None = None,
    skip: Selection | None = None,
    hooks: Sequence[Hook] = (),
    **training: Any,
) -> Run:
    """Prune a trained model by magnitude in rounds, each removing the same fraction of what is left and then retraining.

    Dropout rates follow the capacity (eq. 2 of the paper), and neurons that lost all their inputs or outputs are zeroed at the last
    pruning. ``last_epochs`` are added after the rounds; ``training`` goes to `train_` (``scheduler=``, ``checkpoint=``, ``amp=`` …).
    Other patterns, criteria (by default the 2-norm) and allocators may take the paper's place, and a ``solver`` that of
    the criterion.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model, task = digits_cnn(), digits()
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> run = iterative_magnitude_(model, task, optimizer, sparsity=0.9, rounds=2, epochs_per_round=1)
    >>> run.masks.sparsity >= 0.9
    True
    """
    end = rounds * epochs_per_round
    chosen = solver or TopK(criterion or magnitude())
    prune = gradual(pattern, chosen, allocate, geometric(sparsity), end=end, every=epochs_per_round, only=only, skip=skip)
    return train_(model, task, optimizer, end + last_epochs, hooks=[prune, *hooks], **training)
