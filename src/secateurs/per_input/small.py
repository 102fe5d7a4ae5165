"""Activations that are small are taken as zero, and the columns of a weight that they would meet are not read (TEAL, 2408.14690)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateurs.batch import run_batch, split
from secateurs.forward import evaluating, modules_in, parameters_in
from secateurs.given import MODEL, TASK, require, require_values
from secateurs.graph import blocks_of
from secateurs.per_input.attached import PerInput, attaching, selected
from secateurs.per_input.work import not_needed
from secateurs.ranks import any_sharded, gathered, together
from secateurs.types import SecateursError, Selection, Task, TaskError

CHILD = "small"
"""What a threshold is called in its layer: files have ``fc1.small.threshold`` beside ``fc1.weight``."""

_SAMPLE = 1 << 16
"""Magnitudes of a layer's inputs that are kept to find its threshold."""


class Threshold(nn.Module):
    """The magnitude below which the inputs of a linear layer are taken as zero."""

    threshold: Tensor

    def __init__(self, layer: nn.Linear, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float(threshold), device=layer.weight.device))
        self.on, self.skips = True, True
        self._layer = (layer,)
        self._inner: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        """Inputs without the small ones."""
        return torch.where(x.abs() > self.threshold, x, 0)

    def apply_layer(self, x: Tensor) -> Tensor:
        """In place of the layer: of one vector by the columns that it meets alone, of several with zeros in them."""
        if not self.on:
            return self._inner[0](x)
        (layer,) = self._layer
        if self.skips and x.numel() == x.shape[-1] and not torch.is_grad_enabled():
            return self._by_columns(layer, x)
        x = self(x)
        if not torch.is_grad_enabled():
            not_needed(float(x.numel() - x.count_nonzero()) * layer.out_features)
        return self._inner[0](x)

    def _by_columns(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """A sum of columns, each read once, where it lies: they lie side by side (`skip_small_` sees to that)."""
        flat, columns = x.flatten(), layer.weight.t()
        kept = (flat.abs() > self.threshold).nonzero()[:, 0]
        if not len(kept):
            y = flat.new_zeros(layer.out_features)
        elif flat.dtype == columns.dtype and flat.dtype in (torch.float32, torch.float64) and columns.is_contiguous():
            y = functional.embedding_bag(kept[None], columns, mode="sum", per_sample_weights=flat[kept][None])[0]
        else:
            y = flat[kept] @ columns[kept].to(flat.dtype)
        y = y if layer.bias is None else y + layer.bias
        return y.view(*x.shape[:-1], layer.out_features)

    def removed(self) -> None:
        """The weight lies row by row again."""
        _lay_(self._layer[0], by_columns=False)


@torch.no_grad()
def _lay_(layer: nn.Linear, by_columns: bool) -> None:
    weight = layer.weight
    weight.data = weight.data.t().contiguous().t() if by_columns else weight.data.contiguous()


def skip_small_(model: nn.Module, thresholds: Mapping[str, float]) -> PerInput:
    """Let linear layers take inputs of at most their threshold as zero; of a single vector, as in decoding, no column for them is read.

    ``thresholds`` are magnitudes by layer, as `small_inputs` finds them. Each weight keeps its name, its shape and its numbers, but
    lies column by column in memory from here on. In evaluation without gradients a layer that is given one vector adds up the
    columns that it needs; several vectors at once are multiplied as they are, with zeros in them: same answers, and nothing saved.
    2408.14690, section 4.

    Files of `save` hold the thresholds, so any will do to load one: ``load(path, lambda: skip_small_(make(), dict.fromkeys(names,
    0)).model)``.

    Raises `SecateursError` where a name is that of no linear layer, or a threshold is negative.

    >>> layer = nn.Linear(3, 2, bias=False)
    >>> attached = skip_small_(layer, {"": 0.5})
    >>> with torch.no_grad():
    ...     torch.allclose(layer(torch.tensor([0.4, 2.0, -0.5])), 2 * layer.weight[:, 1])
    True
    """
    require("skip_small_", "model", model, MODEL)
    require_values("skip_small_", model)
    modules = modules_in(model, again=True)
    if not thresholds:
        raise SecateursError("skip_small_: thresholds is empty: small_inputs(model, task, sparsity=0.4) finds them")
    if any_sharded(model.parameters()):
        raise SecateursError(
            "skip_small_: the model is sharded (fully_shard), and decoding is for whole ones: save and load it into one"
        )
    with attaching(PerInput(model)) as attached:
        for name, threshold in thresholds.items():
            layer = modules.get(name)
            if not isinstance(layer, nn.Linear) or isinstance(layer, NonDynamicallyQuantizableLinear):
                what = "nothing" if layer is None else f"a {type(layer).__name__}"
                raise SecateursError(
                    f"skip_small_: {name!r} is {what} in {type(model).__name__}, but must be an nn.Linear that is called"
                )
            if not 0 <= threshold < float("inf"):
                raise SecateursError(f"skip_small_: the threshold of {name} is {threshold}, but must be at least 0 and finite")
            part = Threshold(layer, threshold)
            attached.add_child(layer, CHILD, part.train(layer.training))
            attached.parts[name] = part
            part._inner.append(attached.take_over(layer, part.apply_layer))
            _lay_(layer, by_columns=True)
    return attached


# ---------------------------------------------------------------- which thresholds


def small_inputs(
    model: nn.Module, task: Task, *, sparsity: float, only: Selection | None = None, skip: Selection | None = None, seed: int = 0
) -> dict[str, float]:
    """Layer → the magnitude below which a fraction ``sparsity`` of its inputs lies on the calibration data (2408.14690, uniform).

    Of all linear layers in the model's blocks, or of all where it has none. Quantiles are those of 65,536 to 131,072 magnitudes of
    a layer, drawn evenly by ``seed``; of several processes, of the data of all. Raises `SecateursError` where sparsity is outside
    [0, 1) or there is no linear layer, `TaskError` without batches.

    >>> layer, x = nn.Linear(4, 1), torch.tensor([[1.0, 2, 3, 4]])
    >>> small_inputs(layer, Task(example=x, calibration=[(x, None)]), sparsity=0.5)
    {'': 2.0}
    """
    samples = samples_of(model, task, linear_layers(model, task, only, skip), seed)
    return {name: threshold_at(sample, sparsity) for name, sample in samples.items()}


def threshold_at(sample: Tensor, sparsity: float) -> float:
    """The magnitude that a fraction of a sample does not exceed; raises `SecateursError` for fractions outside [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise SecateursError(f"small_inputs: sparsity={sparsity!r} must be a fraction in [0, 1)")
    k = round(sparsity * len(sample))
    return float(sample.kthvalue(k).values) if k else 0.0


def linear_layers(model: nn.Module, task: Task, only: Selection | None = None, skip: Selection | None = None) -> list[str]:
    """The linear layers in a model's blocks, or all where it has none, or those asked for."""
    require("small_inputs", "model", model, MODEL)
    require("small_inputs", "task", task, TASK)
    linear = [name for name, module in modules_in(model).items() if type(module) is nn.Linear]
    if only is None:
        try:
            blocks = blocks_of(model, task.example)
        except TaskError:
            raise
        except SecateursError:
            blocks = None
        linear = [name for name in linear if blocks is None or blocks.of(name)]
    found = selected(model, linear, only, skip)
    if not found:
        raise SecateursError(
            f"small_inputs: {type(model).__name__} has no linear layer to take part (nn.Linear); look at only= and skip="
        )
    return found


def samples_of(model: nn.Module, task: Task, names: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Layer → magnitudes of its inputs on the calibration data, of all processes."""
    modules, samples = modules_in(model), {name: _Sample(seed) for name in names}
    with together(), evaluating(model), ExitStack() as hooks:
        for name in names:
            hooks.callback(modules[name].register_forward_pre_hook(samples[name].see).remove)
        for inputs in calibration(model, task):
            run_batch(model, inputs, "a calibration batch", task.example)
    unseen = [name for name, sample in samples.items() if not len(sample.kept)]
    if unseen:
        raise TaskError(f"small_inputs: no calibration batch passed {unseen[0]}: give such batches, or skip=[{unseen[0]!r}]")
    return {name: torch.cat(gathered(sample.kept)) for name, sample in samples.items()}


def calibration(model: nn.Module, task: Task) -> Iterator[Any]:
    """The inputs of a task's calibration batches, else of its training batches."""
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        raise TaskError("small_inputs: thresholds are found on data: give Task(calibration=...) or Task(train=...)")
    empty = True
    for batch in batches:
        empty = False
        yield split(model, task, batch)[0]
    if empty:
        raise TaskError("small_inputs: the calibration loader is empty: it gave no batch")


class _Sample:
    """Magnitudes drawn evenly from all that pass: halved, and from then on every other one taken, when there are too many."""

    def __init__(self, seed: int) -> None:
        self.kept, self.rate = torch.empty(0), 1.0
        self.generator = torch.Generator().manual_seed(seed)

    def see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        found = args[0].detach().abs().float().flatten().cpu()
        if self.rate < 1:
            found = found[torch.rand(len(found), generator=self.generator) < self.rate]
        self.kept = torch.cat([self.kept, found])
        while len(self.kept) > 2 * _SAMPLE:
            self.kept = self.kept[torch.rand(len(self.kept), generator=self.generator) < 0.5]
            self.rate /= 2


def activation_sparsity(attached: PerInput, task: Task) -> dict[str, float]:
    """Layer → the fraction of its inputs that `skip_small_` takes as zero on the calibration data.

    >>> layer, x = nn.Linear(4, 1), torch.tensor([[1.0, 2, 3, 4]])
    >>> activation_sparsity(skip_small_(layer, {"": 2.5}), Task(example=x, calibration=[(x, None)]))
    {'': 0.5}
    """
    zeros = {name: [0, 0] for name in attached.parts}

    def noting(name: str) -> Any:
        def note(module: Threshold, args: tuple[Any, ...]) -> None:
            zeros[name][0] += int((args[0].abs() <= module._modules[CHILD].threshold).sum())  # type: ignore[union-attr]
            zeros[name][1] += args[0].numel()

        return note

    model, modules = attached.model, modules_in(attached.model)
    with evaluating(model), ExitStack() as hooks:
        for name in attached.parts:
            hooks.callback(modules[name].register_forward_pre_hook(noting(name)).remove)
        for inputs in calibration(model, task):
            run_batch(model, inputs, "a calibration batch", task.example)
    return {name: none / max(1, of) for name, (none, of) in zeros.items()}


def weights_of(model: nn.Module, names: list[str]) -> dict[str, int]:
    """Layer → how many weights it has."""
    sizes = parameters_in(model, again=True)
    return {name: sizes[f"{name}.weight" if name else "weight"].numel() for name in names}
