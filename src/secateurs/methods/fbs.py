"""Gao et al. 2018: feature boosting and suppression, channels that are chosen for each input (1810.05331)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.given import OPTIMIZER, require
from secateurs.per_input import PerInput, boost_, saliency_penalty
from secateurs.recover import train_
from secateurs.types import Run, Selection, Task


def fbs_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    keep: float,
    strength: float = 1e-8,
    spread: float = 0.1,
    only: Selection | None = None,
    skip: Selection | None = None,
    seed: int = 0,
    **training: Any,
) -> tuple[PerInput, Run]:
    """Put gates on a model's convolutions that let a fraction ``keep`` of their channels pass (`boost_`), and train both for `epochs`
    with ``strength · Σ |saliency|`` in the loss; returns the gates and the run.

    The gates' parameters join the last group of the optimizer's. ``training`` goes to `train_`, hooks among it.
    Raises as these do; the gates are then off again.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> gates, run = fbs_(model, digits(), torch.optim.Adam(model.parameters(), lr=1e-2), epochs=1, keep=0.5, show=False)
    >>> list(gates.parts)
    ['conv1', 'conv2']
    """
    require("fbs_", "optimizer", optimizer, OPTIMIZER)
    gates = boost_(model, task.example, keep=keep, spread=spread, only=only, skip=skip, seed=seed)
    hooks = [saliency_penalty(strength), *training.pop("hooks", ())]
    trained = optimizer.param_groups[-1]["params"]
    before = len(trained)
    trained.extend(parameter for gate in gates.parts.values() for parameter in gate.parameters())
    try:
        return gates, train_(model, task, optimizer, epochs, hooks=hooks, **training)
    except BaseException:
        for parameter in trained[before:]:
            optimizer.state.pop(parameter, None)
        del trained[before:]
        gates.remove()
        raise
