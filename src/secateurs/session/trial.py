"""Before a long job: one batch of each kind through the model, and how many threads its training steps want."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from secateurs.batch import own_loss, run_batch, split
from secateurs.forward import call, describe, device_of
from secateurs.progress import waiting
from secateurs.run.clock.timing import measure, torch_threads
from secateurs.types import SecateursError, Task, TaskError

_GAIN = 1.15  # so much faster must a step be for more threads: on a busy machine they wait for each other


def try_out(model: nn.Module, task: Task) -> None:
    """Run the first batch of a task's training, validation and test data through a model, which stays as it was.

    Raises `TaskError` that names the batch and carries the model's own complaint where that fails.

    >>> task = Task(torch.zeros(1, 2), train=[(torch.ones(4, 3), torch.ones(4, 1))], loss=nn.functional.mse_loss)
    >>> try_out(nn.Linear(2, 1), task)
    Traceback (most recent call last):
    secateurs.types.TaskError: the model rejects a training batch of task ...: RuntimeError: ...
    """
    kinds = (
        ("a training batch", task.train, task.loss, "Task.loss"),
        ("a validation batch", task.validation, task.metric, "Task.metric"),
        ("a test batch", task.test, task.metric, "Task.metric"),
    )
    for what, batches, judge, name in kinds:
        if batches is not None and judge is not None:
            _try(model, task, batches, judge, what, name)


def _try(model: nn.Module, task: Task, batches: Iterable[Any], judge: Callable[[Any, Any], Any], what: str, name: str) -> None:
    tried = copy.deepcopy(model).train(judge is task.loss)
    with torch.no_grad(), torch.random.fork_rng():
        batch = next(iter(batches), None)
        if batch is None:
            raise TaskError(f"{task.name} has not one batch where {what} is taken from: its loader is empty")
        inputs, target = split(tried, task, batch, scored=name)
        output = run_batch(tried, inputs, f"{what} of {task.name}", task.example)
        try:
            judge(output, target)
        except SecateursError:
            raise
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise TaskError(
                f"{name} of {task.name} rejects {what} (output {describe(output)}, target {describe(target)}): "
                f"{type(error).__name__}: {first_line}"
            ) from error


def quickest_threads(model: nn.Module, task: Task) -> int:
    """How many threads torch should train a model with, found by timing a few steps; no more than torch has now.

    Small networks gain nothing from a second thread, and lose much where another process keeps a core busy. More threads are
    taken only where they are clearly faster. Model and random state stay as they were.

    >>> task = Task(torch.zeros(1, 2), train=[(torch.ones(4, 2), torch.ones(4, 1))], loss=nn.functional.mse_loss)
    >>> quickest_threads(nn.Linear(2, 1), task)
    1
    """
    most = torch.get_num_threads()
    if most == 1 or device_of(model).type != "cpu" or task.train is None:
        return most
    with waiting("finding the number of threads"), torch.random.fork_rng():
        step = _training_step(copy.deepcopy(model), task)
        counts = sorted({most, *(2**power for power in range(most.bit_length()))})
        calls = {str(count): partial(_with_threads, step, count) for count in counts}
        timings = measure(calls, rounds=7, seconds=2.0, settle=0.0)
    best = counts[0]
    for count in counts[1:]:
        if timings[str(count)].speed_over(timings[str(best)]) > _GAIN:
            best = count
    return best


def _training_step(model: nn.Module, task: Task) -> Callable[[], None]:
    """A forward and a backward pass of the first training batch."""
    inputs, target = split(model.train(), task, next(iter(task.train or ())))

    def step() -> None:
        output = call(model, inputs)
        loss = own_loss(output) if task.loss is None else task.loss(output, target)
        if loss is not None:
            loss.backward()

    return step


def _with_threads(step: Callable[[], None], count: int) -> None:
    with torch_threads(count):
        step()
