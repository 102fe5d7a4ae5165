"""BatchNorm statistics of a model as it is now: what a pruning has left of them is of another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.batch import run_batch, split
from secateurs.forward import check_fit, evaluating, modules_in
from secateurs.given import COUNT, MODEL, TASK, require, require_values
from secateurs.ranks import summed, together
from secateurs.types import NonFiniteError, SecateursError, Task, TaskError

_STEADY = 1e-5
"""A channel whose deviation is a smaller part of its mean does not vary: float32 tells no more."""


def recalibrate_(model: nn.Module, task: Task, *, batches: int | None = None) -> tuple[str, ...]:
    """Take the statistics of every BatchNorm anew in one pass over the calibration batches (else those to train on); returns their names.

    A pruned layer answers with other means and variances than those that training has left in the BatchNorm behind it, and much of what
    pruning loses is lost there (2007.02491). In the pass each BatchNorm normalises by the batch, as in training, and dropout is off; then
    it holds mean and variance over all batches together (all processes'), not a moving average. Weights are not touched, and modules stay
    in their modes. A channel that never varies keeps its variance, so that nothing is divided by zero; layers that track no statistics,
    and those that the pass does not meet, stay as they are. ``batches`` takes only the first so many.

    Raises `SecateursError` where no BatchNorm tracks statistics, `TaskError` where there are no batches, or one shows a BatchNorm a
    single value a channel, and `NonFiniteError` where statistics are not finite: after an error the model is as it was.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> data = torch.randn(16, 1, 8, 8)
    >>> recalibrate_(model, Task(data[:1], calibration=[(data, None)]))
    ('1',)
    >>> torch.allclose(model[1].running_mean, model[0](data).mean((0, 2, 3)), atol=1e-6)
    True
    """
    require("recalibrate_", "model", model, MODEL)
    require("recalibrate_", "task", task, TASK)
    require_values("recalibrate_", model)
    if batches is not None:
        require("recalibrate_", "batches", batches, COUNT)
        if batches < 1:
            raise SecateursError(f"recalibrate_: batches={batches} must be at least 1, or None for all")
    layers = tracking(model)
    if not layers:
        raise SecateursError(
            f"recalibrate_: {type(model).__name__} has no BatchNorm that tracks statistics, so there is nothing to take anew; what other "
            "normalisations do depends on their input alone"
        )
    with _put_back_on_error(layers) as before:
        with together():
            seen = _observed(model, task, layers, batches)
        totals = {name: _Moments.of_all(name, moments) for name, moments in seen.items()}
        met = {name: moments for name, moments in totals.items() if moments.count}
        with together():
            for name, moments in met.items():
                _write(name, layers[name], moments, before[f"{name} running_var"])
    return tuple(met)


def tracking(model: nn.Module) -> dict[str, Any]:
    """Name → each BatchNorm of a model that holds statistics.

    >>> list(tracking(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.GroupNorm(1, 2))))
    ['0']
    """
    return {
        name: module
        for name, module in modules_in(model).items()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


@dataclass
class _Moments:
    """How many values a channel has shown, their mean, and the sum of their squared distances from it; float64."""

    mean: Tensor
    squares: Tensor
    count: int = 0
    batches: int = 0

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Some values more, of which mean and variance are known."""
        mean, squares = mean.double(), variance.double() * count
        apart, total = mean - self.mean, self.count + count
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + squares + apart.square() * (self.count * count / total)
        self.count, self.batches = total, self.batches + 1

    @staticmethod
    def of_all(name: str, own: _Moments) -> _Moments:
        """Those of all processes together."""
        counted = torch.tensor([own.count, own.batches], dtype=torch.float64)
        sums = summed({f"{name} counted": counted, f"{name} sum": own.mean * own.count})
        count, batches = (int(number) for number in sums[f"{name} counted"])
        mean = sums[f"{name} sum"] / max(1, count)
        here = own.squares + own.count * (own.mean - mean).square()
        return _Moments(mean, summed({f"{name} squares": here})[f"{name} squares"], count, batches)


def _observed(model: nn.Module, task: Task, layers: Mapping[str, Any], batches: int | None) -> dict[str, _Moments]:
    """What each BatchNorm is given in a pass in which it normalises by the batch."""
    given = task.calibration if task.calibration is not None else task.train
    if given is None:
        raise TaskError("recalibrate_: statistics are taken on data: give Task(calibration=...) or Task(train=...)")
    nothing = {name: torch.zeros_like(layer.running_mean, dtype=torch.float64) for name, layer in layers.items()}
    seen = {name: _Moments(none, none) for name, none in nothing.items()}
    any_batch = False
    with evaluating(model), _hooked(layers, seen):
        for batch in islice(given, batches):
            inputs, _ = split(model, task, batch)
            if not any_batch:
                check_fit(model, inputs, "a calibration batch")
            run_batch(model, inputs, "a calibration batch", task.example)
            any_batch = True
    if not any_batch:
        raise TaskError("recalibrate_: the calibration loader is empty: it gave no batch to take statistics on")
    return seen


@contextmanager
def _hooked(layers: Mapping[str, Any], seen: Mapping[str, _Moments]) -> Iterator[None]:
    """Within it these layers normalise by the batch, and tell what they are given; `evaluating` around it puts their modes back."""
    hooks = []
    try:
        for name, layer in layers.items():
            layer.training = True
            hooks.append(layer.register_forward_pre_hook(partial(_look, name, seen[name])))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _look(name: str, moments: _Moments, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    values = inputs[0].detach()
    count = values.numel() // max(1, values.shape[1])
    if count < 2:
        raise TaskError(
            f"{name}: a calibration batch shows it {count} value a channel, which have no variance: give batches of at least two samples "
            "(a DataLoader with drop_last=True leaves out the rest)"
        )
    values = values if values.dtype == torch.float64 else values.float()
    variance, mean = torch.var_mean(values, [dim for dim in range(values.ndim) if dim != 1], correction=0)
    moments.add(count, mean, variance)


@torch.no_grad()
def _write(name: str, layer: Any, moments: _Moments, earlier: Tensor) -> None:
    variance = moments.squares / max(1, moments.count - 1)
    steady = variance <= (_STEADY * moments.mean).square()
    layer.running_mean.copy_(moments.mean)
    layer.running_var.copy_(torch.where(steady, earlier.double(), variance))
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(moments.batches)
    if not bool(layer.running_mean.isfinite().all()) or not bool(layer.running_var.isfinite().all()):
        raise NonFiniteError(
            f"{name}: what it is given has no finite mean and variance: look at the calibration batches and at the layers before it"
        )


@contextmanager
def _put_back_on_error(layers: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Gives what the layers' buffers hold, which they hold again if the block fails (a pass in training mode moves them)."""
    buffers = {
        f"{name} {key}": buffer
        for name, layer in layers.items()
        for key in ("running_mean", "running_var", "num_batches_tracked")
        if (buffer := getattr(layer, key)) is not None
    }
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield before
    except BaseException:
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
        raise
