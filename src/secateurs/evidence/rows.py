"""How each sample's answer depends on each weight: what the second derivatives by all weights of a network are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import in_float64, widened
from secateurs.batch import loss_of, run_batch, size_of, split
from secateurs.evidence.second_order import answers_of, roots_of
from secateurs.forward import evaluating
from secateurs.types import Task, TaskError


def gauss_newton_rows(model: nn.Module, task: Task, weights: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """Rows x, of all weights one after the other, with Σ x·xᵀ = the Gauss–Newton part of the second derivatives of the mean loss over
    the task's calibration batches (else its training batches).

    One tensor a batch, ``(samples · numbers, weights)``, float64: each row a direction in which one sample's loss curves. The model is
    as it was. Raises `TaskError` where there is no batch or no loss; `SecateursError` where the loss is no function of one tensor.

    >>> layer, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> task = Task(x, calibration=[(x, torch.zeros(2, 1))], loss=nn.functional.mse_loss)
    >>> (rows,) = gauss_newton_rows(layer, task, [layer.weight])
    >>> rows.T @ rows
    tensor([[10.,  2.],
            [ 2.,  4.]], dtype=torch.float64)
    """
    samples = sum(size_of(inputs, target) for inputs, target in _batches(model, task))
    for inputs, target in _batches(model, task):
        with ExitStack() as around:
            for each in (evaluating(model), torch.random.fork_rng(devices=[]), in_float64(model), torch.enable_grad()):
                around.enter_context(each)
            around.enter_context(torch.backends.cudnn.flags(enabled=False))
            output = run_batch(model, widened(inputs), "a calibration batch", task.example)
            loss = loss_of(task, output, widened(target)) * (size_of(inputs, target) / samples)
            answers = answers_of(loss, output)
            found = _rows(answers, roots_of(loss, answers), weights)
        yield found


def _rows(answers: Tensor, roots: Tensor, weights: Sequence[nn.Parameter]) -> Tensor:
    rows = []
    for sample, directions in enumerate(roots):
        for direction in directions.T:
            if not bool(direction.any()):
                continue
            vector = torch.zeros_like(answers)
            vector[sample] = direction.view(answers.shape[1:])
            found = torch.autograd.grad(answers, list(weights), vector, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(weight) if each is None else each for weight, each in zip(weights, found, strict=True)]
            rows.append(torch.cat([part.double().reshape(-1) for part in parts]))
    return torch.stack(rows) if rows else answers.new_zeros(0, sum(weight.numel() for weight in weights), dtype=torch.float64)


def mean_loss(model: nn.Module, task: Task) -> float:
    """The task's loss over its calibration batches (else its training batches), each weighted by its size, in evaluation mode.

    >>> x = torch.ones(3, 2)
    >>> mean_loss(nn.Identity(), Task(x, calibration=[(x, x + 2)], loss=lambda out, to: nn.functional.mse_loss(out.requires_grad_(), to)))
    4.0
    """
    total, samples = 0.0, 0
    with evaluating(model), torch.random.fork_rng(devices=[]), torch.enable_grad():
        for inputs, target in _batches(model, task):
            size = size_of(inputs, target)
            total += float(loss_of(task, run_batch(model, inputs, "a calibration batch", task.example), target).detach()) * size
            samples += size
    return total / samples


def _batches(model: nn.Module, task: Task) -> Iterator[tuple[Any, Any]]:
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        raise TaskError("second derivatives must be observed on data: give Task(calibration=...) or Task(train=...)")
    empty = True
    for batch in batches:
        yield split(model, task, batch, None if task.loss is None else "Task.loss")
        empty = False
    if empty:
        raise TaskError("the calibration loader is empty: it gave no batch to observe")
