"""How many of the numbers that layers take are not zero: measured, for costs of machines that skip zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import run_batch, split
from secateurs.costs.trace import FIRST_OPERAND, Owners
from secateurs.forward import check_fit, evaluating
from secateurs.given import MODEL, TASK, require
from secateurs.types import KindError, SecateursError, Task, TaskError
from secateurs.watch import Operations, plain


def activation_density(model: nn.Module, task: Task) -> dict[str, float]:
    """Layer → the fraction of the numbers that it takes which are not zero, over the calibration batches (else the training batches).

    Of every product of a weight with activations, by the names of `Work.layer`; padding does not count. The model stays as it is. Give it
    to costs as ``activations=``. Raises `TaskError` where there are no batches, or the model rejects one.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> activation_density(model, Task(example=None, calibration=[(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), None)]))
    {'0': 0.75, '2': 0.5}
    """
    require("activation_density", "model", model, MODEL)
    require("activation_density", "task", task, TASK)
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        raise TaskError("activation_density: activations are measured on data: give Task(calibration=...) or Task(train=...)")
    counting = _Counting(model)
    fused = any(isinstance(module, nn.RNNBase) for module in model.modules())  # oneDNN runs these as one operation
    with evaluating(model), torch.no_grad(), plain(kernels=not fused):
        for batch in batches:
            inputs, _ = split(model, task, batch)
            check_fit(model, inputs, "a calibration batch")
            with Operations(counting.see):
                run_batch(model, inputs, "a calibration batch", task.example)
    if not counting.seen:
        raise TaskError("activation_density: no batch came, or none passed a layer with a weight")
    return {name: nonzero / numbers for name, (nonzero, numbers) in counting.seen.items()}


class _Counting:
    """Of each weight, what of the other side of its products is not zero."""

    def __init__(self, model: nn.Module) -> None:
        self.owners, self.seen = Owners(model), dict[str, tuple[int, int]]()

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        first = FIRST_OPERAND.get(func.overloadpacket)
        if first is None:
            self.owners.follow(args, out)
            return out
        one, other = args[first : first + 2]
        for weight, taken in ((one, other), (other, one)):
            name = self.owners.of(weight)
            if name is not None and self.owners.of(taken) is None and taken.numel():
                layer = name.removesuffix(".weight")
                nonzero, numbers = self.seen.get(layer, (0, 0))
                self.seen[layer] = (nonzero + _nonzeros(taken), numbers + taken.numel())
        return out


def _nonzeros(taken: Tensor) -> int:
    return int(torch.count_nonzero(taken))


def checked_activations(who: str, activations: object) -> Mapping[str, float] | None:
    """Fractions by layer, or nothing; raises `KindError` and `SecateursError` for anything else."""
    if activations is None:
        return None
    if not isinstance(activations, Mapping):
        raise KindError(f"{who}: activations is {activations!r}, but must be what activation_density(model, task) returns")
    for name, value in activations.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise SecateursError(f"{who}: activations[{name!r}] is {value!r}, but must be a fraction, from 0 to 1")
    return activations
