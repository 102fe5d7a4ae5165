"""Measuring a model on held-back data."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from torch import nn

from secateurs.batch import run_batch, size_of, split
from secateurs.forward import check_fit, evaluating
from secateurs.given import MODEL, TASK, require
from secateurs.progress import track
from secateurs.types import Task, TaskError


def evaluate(model: nn.Module, task: Task, batches: Iterable[Any] | None, *, show: bool = True) -> float:
    """The task's metric over all batches, each weighted by its size; evaluation mode, no gradients, model's device.

    What the task's ``summary`` makes of the mean is told. Raises `TaskError` where there is no metric or no batch.

    >>> import torch
    >>> task = Task(example=torch.zeros(1, 2), metric=lambda output, target: (output.argmax(1) == target).float().mean())
    >>> model = nn.Identity()
    >>> evaluate(model, task, [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))])
    0.6666666666666666
    """
    total, count = measured(model, task, batches, show)
    return task.summarised(total / count)


def measured(model: nn.Module, task: Task, batches: Iterable[Any] | None, show: bool) -> tuple[float, int]:
    """The task's metric summed over all samples, and how many there are; raises as `evaluate` does."""
    require("evaluate", "model", model, MODEL)
    require("evaluate", "task", task, TASK)
    if task.metric is None:
        raise TaskError("there is no metric to evaluate: give Task(metric=...), a mean over a batch of (output, target)")
    if batches is None:
        raise TaskError("there are no batches to evaluate: give Task(validation=...) or Task(test=...)")
    total, count = 0.0, 0
    with evaluating(model), closing(track(batches, "evaluating", show=show)) as walk:
        for batch in walk:
            inputs, target = split(model, task, batch, scored="Task.metric")
            if not count:
                check_fit(model, inputs, "an evaluation batch")
            size = size_of(inputs, target)
            total += float(task.metric(run_batch(model, inputs, "an evaluation batch", task.example), target)) * size
            count += size
    if not count:
        raise TaskError("the loader to evaluate is empty: it gave no batch")
    return total, count
