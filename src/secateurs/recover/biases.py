"""The mean of what each layer answers, set back to the dense model's by its bias: a repair without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateurs.batch import run_batch, split
from secateurs.forward import check_fit, evaluating, modules_in, parameters_in
from secateurs.given import MASKS, MODEL, TASK, require, require_values
from secateurs.graph import Trace, analyse
from secateurs.masks import Masks
from secateurs.patterns import find_weights
from secateurs.progress import track
from secateurs.ranks import sharded_as, summed, together, whole
from secateurs.tried import taken_back_on_error
from secateurs.types import NonFiniteError, SecateursError, Skipped, Task, TaskError
from secateurs.watch import cut_short


@dataclass(frozen=True)
class Corrected:
    """What `correct_biases_` did: layer → by how much the means of its answers were off (root mean square), and what was left, and why."""

    layers: Mapping[str, float]
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)} corrected"]
        lines += [f"  {name}: off by {off:.3g}" for name, off in self.layers.items()]
        return "\n".join([*lines, *(f"  left as it was: {item.name}: {item.reason}" for item in self.skipped)])


def correct_biases_(model: nn.Module, dense: nn.Module, task: Task, masks: Masks) -> Corrected:
    """Add to each bias by how much the mean of its layer's answers, channel by channel, is off from that of the ``dense`` model, a copy
    made before the pruning: linear layers, convolutions and BatchNorms, one after the other in the order of the pass (as 1906.04721 does
    for quantised ones).

    Means are over the calibration batches (else those to train on), of all processes. Each layer is looked at once those before it are
    corrected, so afterwards all means are the dense model's; a layer whose weights are all gone answers the mean, not zero. What masks
    hold at zero stays so. A layer without a bias is made up for by the BatchNorm that reads it, else it is among ``skipped``. It takes
    one pass of the dense model, and of the pruned one a pass up to each layer: a hundred samples do. It is for answers
    whose means moved: after a large cut, which takes their variance too, it does harm (docs/repair.md). After an error the
    model is as it was.

    Raises `TaskError` where there are no batches, `NonFiniteError` where a mean is not finite, `SecateursError` where the models differ.

    >>> import copy
    >>> from secateurs import Element, TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> model, data = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(256, 4)
    >>> dense, task = copy.deepcopy(model), Task(data[:1], calibration=[(data, None)])
    >>> masks = prune_(model, Element(), TopK(magnitude()), uniform(sparsity=0.75), task)
    >>> list(correct_biases_(model, dense, task, masks).layers)
    ['0', '2']
    >>> torch.allclose(model(data).mean(0), dense(data).mean(0), atol=1e-6)
    True
    """
    for name, value, kind in (("model", model, MODEL), ("dense", dense, MODEL), ("task", task, TASK), ("masks", masks, MASKS)):
        require("correct_biases_", name, value, kind)
    require_values("correct_biases_", model)
    require_beside("correct_biases_", model, dense)
    layers = {name: module for name, module in modules_in(model).items() if _has_bias(module)}
    looking = _Looking(task, masks.named_as_in(model))
    with taken_back_on_error(model), evaluating(model), evaluating(dense):
        wanted, calls = looking.means(dense, list(layers)), looking.calls
        found: dict[str, float] = {}
        for name in track([name for name in calls if name in layers], "correcting biases"):
            now = looking.means(model, [name], until=calls[name])
            found[name] = looking.correct_(name, layers[name], wanted[name] - now[name])
        masks.apply_()
    return Corrected(found, tuple(_skipped(model, task, found)))


def require_beside(who: str, model: nn.Module, dense: nn.Module) -> None:
    """Raise `SecateursError` where a dense model is not a copy of the pruned one as it was."""
    ours, theirs = parameters_in(model), parameters_in(dense)
    shared = next((name for name, value in ours.items() if any(value is other for other in theirs.values())), None)
    unlike = next((name for name, value in ours.items() if name not in theirs or theirs[name].shape != value.shape), None)
    if shared is not None:
        raise SecateursError(f"{who}: the dense model shares {shared} with the pruned one: copy.deepcopy(model) before pruning")
    if unlike is not None:
        raise SecateursError(
            f"{who}: the dense model has no parameter {unlike} of the pruned one's shape: give a copy made before pruning, and call "
            "shrink_ after the repair, not before"
        )


def _has_bias(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd, _BatchNorm)) and isinstance(module.bias, nn.Parameter)


def _channel_of(module: nn.Module, output: Tensor) -> int:
    """The dimension of a layer's answer that its bias lies along."""
    if isinstance(module, nn.Linear):
        return output.ndim - 1
    return output.ndim - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else 1


@dataclass
class _Looking:
    """Means of what layers answer to the batches of a task; ``calls`` tells how often a batch calls each, in the order of the pass."""

    task: Task
    masks: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.calls: dict[str, int] = {}

    def means(self, model: nn.Module, names: Sequence[str], until: int | None = None) -> dict[str, Tensor]:
        """Layer → ``(channels,)``, float64; with ``until`` each pass ends at that call of the one layer. Of all processes together."""
        sums: dict[str, Tensor] = {}
        with together():
            for inputs in self._inputs(model):
                self.calls = calls = dict[str, int]()
                with ExitStack() as stack:
                    enough = stack.enter_context(cut_short())
                    note = partial(self._note, calls, sums, until, enough)
                    modules = modules_in(model)
                    for name in names:
                        stack.callback(modules[name].register_forward_hook(partial(note, name)).remove)
                    run_batch(model, inputs, "a calibration batch", self.task.example)
        totals = summed(sums)
        means = {name: total[:-1] / total[-1] for name, total in totals.items()}
        for name, mean in means.items():
            if not bool(mean.isfinite().all()):
                raise NonFiniteError(
                    f"{name}: what it answers to the calibration batches has no finite mean: look at them, and at the layers before it"
                )
        return means

    @staticmethod
    def _note(
        calls: dict[str, int],
        sums: dict[str, Tensor],
        until: int | None,
        enough: Callable[[], Any],
        name: str,
        module: nn.Module,
        inputs: Any,
        output: Tensor,
    ) -> None:
        calls[name] = calls.get(name, 0) + 1
        channel = _channel_of(module, output)
        total = output.detach().sum([dim for dim in range(output.ndim) if dim != channel], dtype=torch.float64)
        rows = total.new_tensor([output.numel() / max(1, output.shape[channel])])
        sums[name] = sums.get(name, 0) + torch.cat([total.flatten(), rows])
        if calls[name] == until:
            enough()

    def _inputs(self, model: nn.Module) -> Iterator[Any]:
        given, first = self.task.calibration if self.task.calibration is not None else self.task.train, True
        if given is None:
            raise TaskError("correct_biases_: means are taken on data: give Task(calibration=...) or Task(train=...)")
        for batch in given:
            inputs, _ = split(model, self.task, batch)
            if first:
                check_fit(model, inputs, "a calibration batch")
            first = False
            yield inputs
        if first:
            raise TaskError("correct_biases_: the calibration loader is empty: it gave no batch to take means on")

    @torch.no_grad()
    def correct_(self, name: str, layer: Any, off: Tensor) -> float:
        """Add to a layer's bias what its mean is off by; returns the root mean square of that."""
        mask = self.masks.get(f"{name}.bias" if name else "bias")
        stays = torch.ones_like(off, dtype=torch.bool) if mask is None else whole(mask).to(off.device)
        off = off.masked_fill(~stays, 0.0)
        before = whole(layer.bias.detach())
        layer.bias.copy_(sharded_as((before.double() + off).to(before.dtype), layer.bias))
        return float(off.square().mean().sqrt()) if off.numel() else 0.0


def _skipped(model: nn.Module, task: Task, corrected: Mapping[str, float]) -> Iterator[Skipped]:
    """The layers with weights whose means may still be off, and why."""
    modules, trace = modules_in(model), None
    for weight in find_weights(model)[0]:
        name = weight.parameter.rpartition(".")[0]
        module = modules.get(name)
        if name in corrected:
            continue
        if not isinstance(module, (nn.Linear, _ConvNd)):
            yield Skipped(weight.name, f"what a {type(module).__name__} answers is not a product and a bias")
        elif module.bias is not None:
            yield Skipped(weight.name, "the calibration batches do not call it as a module")
        else:
            trace = trace or analyse(model, task.example).trace
            if not _read_by_corrected(trace, name, corrected):
                yield Skipped(weight.name, "it has no bias, and is not read by corrected layers alone")


def _read_by_corrected(trace: Trace, name: str, corrected: Mapping[str, float]) -> bool:
    """Whether all that reads what a layer gives is within layers that were corrected, and only adds and multiplies channel by channel."""
    given = [value for each in trace.passes if each.module == name for value in each.gives]
    behind = [each for each in trace.passes if each.module in corrected]
    for value in given:
        places = trace.read_at.get(value, [])
        if not places or not all(
            any(place in each.ops and any(one is value for one in each.given) for each in behind) for place in places
        ):
            return False
    return bool(given)
