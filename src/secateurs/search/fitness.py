"""How good a candidate is: the model with the weights of its levels, and how its answers differ from the dense one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from secateurs.batch import loss_of, own_loss, run_batch, size_of, split
from secateurs.forward import check_fit, evaluating, parameters_in
from secateurs.nested import tensors_in
from secateurs.search.database import Database
from secateurs.search.genes import Gene, Levels
from secateurs.types import SecateursError, Sites, Task, TaskError

Measure = Literal["divergence", "loss"]


class Candidate:
    """The model with the weights of any levels while the block runs; afterwards with its own."""

    def __init__(self, model: nn.Module, sites: Sites, genes: Sequence[Gene], database: Database) -> None:
        self._parameters, self._genes, self._database = parameters_in(model), genes, database
        self._before: dict[str, Tensor] = {}
        self._now: list[int | None] = [None] * len(genes)

    def __enter__(self) -> Candidate:
        return self

    @torch.no_grad()
    def become_(self, levels: Levels) -> None:
        """Put in place what differs from the levels before."""
        for place, (gene, level) in enumerate(zip(self._genes, levels, strict=True)):
            if self._now[place] == level:
                continue
            for name, kept in gene.counts[level].items():
                self._write(self._database.weights(name, kept))
            self._now[place] = level

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            parameter = self._parameters[name]
            if name not in self._before:
                self._before[name] = parameter.detach().clone()
            parameter.copy_(value)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with torch.no_grad():
            for name, value in self._before.items():
                self._parameters[name].copy_(value)


class Fitness:
    """The mean over some calibration batches of the divergence from the dense model's answers, or of the task's loss; lower is better.

    Made with the dense model, whose answers to as many batches as are needed it holds. Raises `TaskError` where there are fewer.
    """

    def __init__(self, model: nn.Module, task: Task, by: Measure, needed: Sequence[int]) -> None:
        if by not in ("divergence", "loss"):
            raise SecateursError(f'evolve: by={by!r} is none of "divergence" and "loss"')
        self._model, self._task, self._by = model, task, by
        given = task.calibration if task.calibration is not None else task.train
        scored = "Task.loss" if by == "loss" and task.loss is not None else None
        self._batches = [split(model, task, batch, scored) for batch in islice(() if given is None else given, max(needed))]
        if len(self._batches) < max(needed):
            raise TaskError(
                f"evolve: rounds= ask for {max(needed)} calibration batches, but there are {len(self._batches)}: give more, or "
                "ask for fewer"
            )
        self._dense: list[Tensor] = []
        if by == "divergence":
            for inputs, _ in self._batches:
                check_fit(model, inputs, "a calibration batch")
                self._dense.append(_logits(self._answer(inputs)))

    def __call__(self, places: Sequence[int]) -> float:
        total, samples = 0.0, 0
        for place in places:
            inputs, target = self._batches[place]
            size = size_of(inputs, target)
            total += size * self._measured(place, self._answer(inputs), target)
            samples += size
        return total / samples

    def _answer(self, inputs: Any) -> Any:
        with evaluating(self._model):
            return run_batch(self._model, inputs, "a calibration batch", self._task.example)

    def _measured(self, place: int, output: Any, target: Any) -> float:
        if self._by == "loss":
            loss = own_loss(output) if self._task.loss is None else self._task.loss(output, target)
            return float(loss_of(self._task, output, target) if loss is None else loss)
        return divergence(self._dense[place], _logits(output))


def divergence(dense: Tensor, other: Tensor) -> float:
    """KL(p ‖ q) of the dense model's and another one's probabilities, the mean over samples and positions.

    >>> round(divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])), 4)
    0.1201
    """
    dim = 1 if dense.ndim == 4 else -1
    known, found = (torch.log_softmax(each.float(), dim) for each in (dense, other))
    return float(kl_div(found, known, reduction="none", log_target=True).sum(dim).mean())


def _logits(output: Any) -> Tensor:
    """The logits in an answer: its field of that name, else its first tensor of floating-point numbers."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = named if isinstance(named, Tensor) else next((each for each in tensors_in(output) if each.is_floating_point()), None)
    if found is None or found.ndim < 2:
        raise TaskError('evolve: the model gives no logits (samples, …, classes) to compare: take by="loss"')
    return found.detach()
