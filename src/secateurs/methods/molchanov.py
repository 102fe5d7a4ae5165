"""Molchanov et al. 2017, 2019: channels by what their removal does to the loss, some at a time, while training (1611.06440, 1906.10771)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import normalised, taylor
from secateurs.patterns import Channel, Selection
from secateurs.recover import gradual, linear, train_
from secateurs.solve import TopK
from secateurs.types import Pattern, Run, Task


def taylor_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    rounds: int = 10,
    epochs_per_round: int = 1,
    last_epochs: int = 0,
    activations: bool = False,
    shrink: bool = False,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """In each round remove as many channels, those of the whole network that matter least to the loss to first order, and train.

    By (Σ g·w)² of the weights (1906.10771), or with ``activations=True`` by |Σ g·a|, over the norm of its layer's (1611.06440).
    ``last_epochs`` are added after the rounds; `shrink_` takes out what was removed, and ``shrink=True`` does so after each round.
    ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = taylor_(model, digits(), torch.optim.Adam(model.parameters()), sparsity=0.5, rounds=2)
    >>> sum(int(run.masks[name].sum()) for name in ("conv1.bias", "conv2.bias", "fc1.bias"))
    56
    """
    criterion = normalised(taylor(activations=True), "norm") if activations else taylor()
    end, solver = rounds * epochs_per_round, TopK(criterion)
    prune = gradual(
        pattern,
        solver,
        global_threshold,
        linear(sparsity),
        end=end,
        every=epochs_per_round,
        shrink=shrink,
        dropout=False,
        dead=False,
        only=only,
        skip=skip,
    )
    return train_(model, task, optimizer, end + last_epochs, hooks=[prune], **training)
