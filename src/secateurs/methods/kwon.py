"""Kwon et al. 2022: a fast post-training pruning framework for transformers (2204.09656)."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from secateurs.allocate import global_threshold, within_budget
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection
from secateurs.prune import prune_
from secateurs.recover import rescale_
from secateurs.solve import GateFisher
from secateurs.tried import taken_back_on_error
from secateurs.types import Budget, Pattern, Task


def kwon2022_(
    model: nn.Module,
    task: Task,
    *,
    budget: Budget,
    damping: float = 1.0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Remove the heads and inner units of a transformer without training, within a budget such as ``Budget(macs, keep=0.5)``.

    How many of each layer: those without which the loss changes least for what they cost, by the diagonal of the Fisher information of
    gates on them. Which ones: by all of it, swapped until no swap helps (`GateFisher`). Then, layer after layer, what stays is multiplied
    by numbers with which the sum behind the layer is that of the dense model (`rescale_`; ``damping`` is its ridge). The calibration
    batches need targets for the loss. `shrink_` takes out what was removed.

    Raises as `prune_` does, and `SecateursError` where units are read by several layers.

    >>> import torch
    >>> from secateurs import macs
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> task = Task(data, calibration=[(data, torch.randn(64, 2))], loss=nn.functional.mse_loss)
    >>> kwon2022_(model, task, budget=Budget(macs, keep=0.5)).plan["0"]
    4
    """
    dense, allocate = copy.deepcopy(model), within_budget(budget, partial(global_threshold, per=budget.cost))
    with taken_back_on_error(model):
        masks = prune_(model, pattern, GateFisher(), allocate, task, only=only, skip=skip)
        rescale_(model, dense, task, masks, damping=damping, pattern=pattern, only=only, skip=skip)
    return masks
