"""Rewinding: retrain what is left from earlier weights (lottery tickets), or with the learning rate of earlier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude
from secateurs.patterns import Element
from secateurs.recover import geometric, gradual, train_
from secateurs.solve import TopK
from secateurs.types import Run, Task


def lottery_ticket_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    rounds: int,
    epochs_per_round: int,
    rewind_to: int = 0,
    **training: Any,
) -> Run:
    """Find a sparse subnetwork that trains from its initial weights: train, prune, set the rest back, and again (1803.03635).

    The model is trained for `epochs_per_round` before the first round and in each. ``rewind_to`` > 0 sets weights back to that epoch
    instead of the start (1903.01611). A ``scheduler`` begins anew in each round. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model, task = digits_cnn(), digits()
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> run = lottery_ticket_(model, task, optimizer, sparsity=0.75, rounds=2, epochs_per_round=1)
    >>> [round(epoch["sparsity"], 2) for epoch in run.history]
    [0.0, 0.5, 0.75]
    """
    return _rewound(model, task, optimizer, sparsity, rounds, epochs_per_round, rewind="weights", rewind_to=rewind_to, **training)


def learning_rate_rewinding_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    rounds: int,
    epochs_per_round: int,
    **training: Any,
) -> Run:
    """Prune, then retrain for as long and with the same learning rates as the network was trained at first, and again (2003.02389).

    The model is trained for `epochs_per_round` before the first round and in each; weights are kept. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model, task = digits_cnn(), digits()
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> run = learning_rate_rewinding_(model, task, optimizer, sparsity=0.75, rounds=1, epochs_per_round=1)
    >>> [round(epoch["sparsity"], 2) for epoch in run.history]
    [0.0, 0.75]
    """
    return _rewound(model, task, optimizer, sparsity, rounds, epochs_per_round, rewind="learning_rate", **training)


def _rewound(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    sparsity: float,
    rounds: int,
    epochs_per_round: int,
    *,
    rewind: Any,
    rewind_to: int = 0,
    **training: Any,
) -> Run:
    prune = gradual(
        Element(),
        TopK(magnitude()),
        global_threshold,
        geometric(sparsity),
        begin=epochs_per_round,
        every=epochs_per_round,
        rewind=rewind,
        rewind_to=rewind_to,
        dropout=False,
        dead=False,
    )
    return train_(model, task, optimizer, (rounds + 1) * epochs_per_round, hooks=[prune], **training)
