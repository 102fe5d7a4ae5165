"""Kwon et al. 2022: a fast post-training pruning framework for transformers (2204.09656)."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from secateurs.allocate import global_threshold, within_budget
from secateurs.blockwise import in_blocks
from secateurs.evidence import in_order
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection
from secateurs.prune import prune_
from secateurs.solve import Chosen, GateFisher, Rescale
from secateurs.types import Budget, Pattern, Task


def kwon2022_(
    model: nn.Module,
    task: Task,
    *,
    budget: Budget,
    damping: float = 1e-2,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Remove the heads and inner units of a transformer without training, within a budget such as ``Budget(macs, keep=0.5)``.

    How many of each layer: those without which the loss changes least for what they cost, by the diagonal of the Fisher information of
    gates on them. Which ones: by all of it, swapped until no swap helps (`GateFisher`). Then, layer after layer, what stays is multiplied
    by numbers with which the layer answers as it would with all of its units (`Rescale`; ``damping`` is its ridge). The paper fits these to
    what the dense model has at the sum behind the layer; `reconstruct_` does that, and trains more than the numbers. The calibration
    batches need targets for the loss. `shrink_` takes out what was removed.

    Raises as `prune_` does, and `SecateursError` where units are read by several layers.

    >>> import torch
    >>> from secateurs import macs
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> task = Task(data, calibration=[(data, torch.randn(64, 2))], loss=nn.functional.mse_loss)
    >>> kwon2022_(model, task, budget=Budget(macs, keep=0.5)).plan["0"]
    4
    """
    allocate = within_budget(budget, partial(global_threshold, per=budget.cost))
    chosen = prune_(copy.deepcopy(model), pattern, GateFisher(), allocate, task, only=only, skip=skip)
    solver, walk = Rescale(Chosen(chosen), damping), in_blocks(each_layer=True, otherwise=in_order())
    return prune_(model, pattern, solver, chosen.plan, task, only=only, skip=skip, walk=walk)
