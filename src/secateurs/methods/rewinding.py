"""Rewinding: retrain what is left from earlier weights (lottery tickets), or with the learning rate of earlier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude, random
from secateurs.masks import Masks
from secateurs.patterns import Element
from secateurs.prune import prune_
from secateurs.recover import geometric, gradual, rewind_, shuffled, train_
from secateurs.solve import TopK
from secateurs.types import Pattern, Run, SecateursError, Task


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


def random_ticket_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    ticket: Masks,
    weights: Mapping[str, Tensor] | str | Path,
    control: Literal["reinitialised", "shuffled", "random"],
    seed: int = 0,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    **training: Any,
) -> Run:
    """Train what a lottery ticket must beat, from ``weights`` as `rewind_` takes them (1803.03635, 1903.01611).

    "reinitialised": the ticket's masks, and the ``weights`` of another fresh network. "shuffled": the weights that the ticket began with,
    and as many at random places of each parameter. "random": the same weights, and as many units of ``pattern`` as the ticket's plan
    says, at random. The optimizer must be a new one. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model, task, other = digits_cnn(), digits(), digits_cnn()
    >>> adam = lambda: torch.optim.Adam(model.parameters())
    >>> run = lottery_ticket_(model, task, adam(), sparsity=0.75, rounds=1, epochs_per_round=1)
    >>> again = random_ticket_(model, task, adam(), 1, ticket=run.masks, weights=other.state_dict(), control="reinitialised")
    >>> again.masks.kept == run.masks.kept
    True
    """
    if control not in ("reinitialised", "shuffled", "random"):
        raise SecateursError(f'random_ticket_: control={control!r} must be "reinitialised", "shuffled" or "random"')
    if control == "random" and ticket.plan is None:
        raise SecateursError('random_ticket_: the ticket has no plan that says how many units stay: take control="shuffled"')
    masks = shuffled(ticket, model, seed=seed) if control == "shuffled" else ticket.bind(model)
    rewind_(model, weights, Masks({}, model))
    if control == "random":
        masks = prune_(model, pattern, TopK(random(seed)), ticket.plan, task)
    return train_(model, task, optimizer, epochs, masks=masks.apply_(), **training)


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
