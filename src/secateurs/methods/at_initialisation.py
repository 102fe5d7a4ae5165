"""Pruning before training: which connections of a fresh network are worth training at all."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import grasp, snip, synflow
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.tried import taken_back_on_error
from secateurs.types import Pattern, SecateursError, Task


def snip_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    batches: int = 1,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Keep the connections of a fresh network by |g·w| on the first `batches`, one threshold for all layers (1810.02340).

    Train it afterwards with ``train_(..., masks=masks)``.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> round(snip_(digits_cnn(), digits(), sparsity=0.9).sparsity, 3)
    0.9
    """
    solver, allocate = TopK(snip()), global_threshold(sparsity=sparsity)
    return prune_(model, pattern, solver, allocate, _first(task, batches), only=only, skip=skip)


def grasp_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    batches: int = 1,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Keep the connections of a fresh network whose removal would reduce the flow of gradients most, on the first `batches` (2002.07376).

    Train it afterwards with ``train_(..., masks=masks)``.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> round(grasp_(digits_cnn(), digits(), sparsity=0.8).sparsity, 3)
    0.8
    """
    solver, allocate = TopK(grasp()), global_threshold(sparsity=sparsity)
    return prune_(model, pattern, solver, allocate, _first(task, batches), only=only, skip=skip)


def synflow_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    rounds: int = 100,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Keep the connections of a fresh network by the flow through them, without data, in rounds that each take the same fraction
    of what is left (2006.05467): in one round a layer may be lost as a whole, in many none is.

    Of the task the example alone is used. Train the network afterwards with ``train_(..., masks=masks)``.

    >>> from secateurs.models import digits_cnn
    >>> import torch
    >>> masks = synflow_(digits_cnn(), Task(example=torch.zeros(1, 1, 8, 8)), sparsity=0.9, rounds=5)
    >>> round(masks.sparsity, 3)
    0.9
    """
    if rounds < 1:
        raise SecateursError(f"synflow_: rounds={rounds} must be at least 1; the paper has 100")
    masks: Masks | None = None
    with taken_back_on_error(model):
        for number in range(1, rounds + 1):
            allocate = global_threshold(sparsity=1 - (1 - sparsity) ** (number / rounds))
            chosen: dict[str, Any] = {"only": only, "skip": skip, "masks": masks, "recalibrate": False}  # it looks at no data
            masks = prune_(model, pattern, TopK(synflow()), allocate, task, **chosen)
    assert masks is not None
    return masks


def _first(task: Task, batches: int) -> Task:
    """The same task with the first batches alone to observe."""
    if batches < 1:
        raise SecateursError(f"batches={batches} must be at least 1")
    given = task.calibration if task.calibration is not None else task.train
    return task if given is None else replace(task, calibration=list(islice(given, batches)))
