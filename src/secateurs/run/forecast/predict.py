"""How long a layer will take once it is pruned, before it is: a stand-in with random zeros is measured, and remembered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from secateurs.allocate import fraction_kept, uniform
from secateurs.criteria import random
from secateurs.nested import Value
from secateurs.patterns import find_sites
from secateurs.prune import prune_
from secateurs.run.choosing.limits import limits
from secateurs.run.choosing.table import KERNELS
from secateurs.run.choosing.tune import Tuned, alone, is_layer, recalled, reckon, signature, tune
from secateurs.run.clock.memory import Memory, read_seconds
from secateurs.run.clock.timing import measure, torch_threads
from secateurs.run.explain import kernel_name
from secateurs.run.kernels.machine import InstructionSet, instruction_set
from secateurs.run.lowering.lower import lower
from secateurs.run.network.interpret import interpreter, step
from secateurs.run.network.nodes import Conv, Linear, Network, inputs_of
from secateurs.run.planning.layers import Choice, as_linear, positions_of
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of
from secateurs.solve import TopK
from secateurs.types import Pattern, SecateursError, Task, TaskError

_ROUNDS = 21
_TORCH = InstructionSet("torch", 1)

Weighted = Conv | Linear
"""Layers of which predictions are made; an LSTM, whose two weights need not be equally sparse, takes what it takes now."""


@dataclass(frozen=True)
class Prediction:
    """What a layer takes with that pattern at that sparsity: by the kernel, or dense where that is faster.

    >>> Prediction(pattern=None, sparsity=0.9, sparse_ms=0.5, dense_ms=3.0, kernel="spmm 1x1, 12 KiB").speed_up
    6.0
    """

    pattern: Pattern | None
    sparsity: float
    sparse_ms: float
    dense_ms: float
    kernel: str
    measured: bool = True

    @property
    def speed_up(self) -> float:
        return self.dense_ms / self.sparse_ms


def predict(
    layer: nn.Module, pattern: Pattern, sparsity: float, *, example: Any = None, threads: int | None = None, tune: bool = True
) -> Prediction:
    """How long a layer will take if it is pruned to a sparsity with a pattern, and how long it takes dense.

    Units are removed at random from a stand-in, which is measured once on this machine and then remembered; the layer itself stays
    as it is, and its numbers do not matter. Of a `Channel` or `Head` the layer loses outputs, and runs dense; the inputs that it
    would lose with its neighbour are not known here (`latency_ms` knows them).

    ``example`` is an input of the layer, by default one vector for a Linear. Without ``tune`` times are reckoned from the machine's
    limits. What is neither convolution nor linear layer gets torch's time at any sparsity, and ``kernel`` says so.

    Raises `PatternError` where the pattern does not fit, `PlanError` where it cannot have that sparsity, `TaskError` for the example.

    >>> from secateurs.patterns import Element
    >>> found = predict(nn.Linear(64, 64), Element(), 0.9, threads=1, tune=False)
    >>> found.sparse_ms <= found.dense_ms, found.measured
    (True, False)
    """
    fraction_kept("predict", sparsity=sparsity, keep=None)
    clock = Stopwatch(instruction_set(), torch.get_num_threads() if threads is None else threads, tune)
    if not pattern.removable:
        find_sites(layer, pattern, only="*")  # its errors name the layer's own weight, those of a stand-in would not
    given = _example(layer, example)
    network = lower(network_of(copy.deepcopy(layer).eval().requires_grad_(False), given))
    parts = weighted(network)
    if not parts:
        seconds = 1e3 * clock.seconds(f"{layer!r} {[tuple(each.shape) for each in network.inputs]}", running(network, given))
        return Prediction(pattern, sparsity, seconds, seconds, f"dense: of {_named(layer)} no sparse time is predicted")
    if len(parts) > 1:
        raise SecateursError(
            f"{_named(layer)} is {len(parts)} layers for the kernels, and predict takes one: give one of them, or ask for the whole "
            "with latency_ms"
        )
    dense, sparse = clock.thinned(parts[0], pattern, 0.0), clock.thinned(parts[0], pattern, sparsity)
    least = min(fastest(sparse), fastest(dense))
    return Prediction(pattern, sparsity, 1e3 * least, 1e3 * fastest(dense), kernel_name(sparse), sparse.measured)


def weighted(network: Network) -> list[Weighted]:
    """The layers that predictions are made of."""
    return [node for node in network.nodes if is_layer(node) and isinstance(node, (Conv, Linear))]


def fastest(tuned: Tuned) -> float:
    """Seconds by what a compiled model would take of the two."""
    return min(tuned.seconds, tuned.dense_seconds)


def _example(layer: nn.Module, example: Any) -> Any:
    if example is None and isinstance(layer, nn.Linear):
        return torch.zeros(1, layer.in_features, dtype=layer.weight.dtype)
    if example is None:
        raise TaskError(
            f"{_named(layer)}: how long it takes depends on the size of its input: give example=, for instance "
            f"{'torch.zeros(1, channels, height, width)' if isinstance(layer, nn.Conv2d) else 'what the layer is called with'}"
        )
    return example


def _named(layer: nn.Module) -> str:
    return repr(layer) if not list(layer.children()) else type(layer).__name__


def running(network: Network, example: Any) -> Callable[[], object]:
    """A call of torch for all that a network does."""
    run = interpreter(network)
    return lambda: run(example)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Stopwatch:
    """How long layers take with so many threads here: measured once and then remembered, or reckoned from the machine's limits."""

    isa: InstructionSet | None
    threads: int
    tuning: bool = True
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise SecateursError(f"threads={self.threads}: at least one is needed")

    def now(self, layer: Weighted) -> Tuned:
        """What a layer takes with the weights that it has."""
        values = [layer.x] if layer.residual is None else [layer.x, layer.residual]
        if self.isa is None:
            function, _, _ = step(layer)
            inputs = [torch.zeros(value.shape) for value in values]
            seconds = self.seconds(signature(layer, _TORCH, self.threads), lambda: function(*inputs))
            return Tuned(Choice(dense=True), seconds, seconds)
        network = Network(tuple(values), [layer], layer.out)
        if not self.tuning:
            return reckon(network, self.isa, self.threads, limits(self.isa, self.memory))[layer]
        tuned = tune(network, self.isa, self.threads, self.memory)[layer]
        if isinstance(layer, Linear) or as_linear(layer) is not None:
            return tuned
        key = f"{signature(layer, self.isa, self.threads)} behind a kernel"
        behind = self.memory.recall(key, read_seconds, partial(behind_a_kernel, layer, tuned.choice, self.isa, self.threads))
        return replace(tuned, choice=replace(tuned.choice, dense=tuned.dense_seconds < behind), seconds=behind)

    def thinned(self, layer: Weighted, pattern: Pattern, sparsity: float) -> Tuned:
        """What a layer of that shape takes at a sparsity. What is known is found without making the stand-in, which is not cheap."""
        whole = replace(layer, weight=torch.ones(layer.weight.shape))
        if self.isa is None or not self.tuning:
            return self.now(thinned(whole, pattern, sparsity))
        key = f"{signature(whole, self.isa, self.threads)} {pattern} {sparsity}"
        choices = [choice for kernel in KERNELS for choice in kernel.choices]
        read = partial(recalled, choices=choices)
        return self.memory.recall(key, read, lambda: self.now(thinned(whole, pattern, sparsity)), asdict)

    def seconds(self, key: str, call: Callable[[], object]) -> float:
        """What a call takes, remembered by a key."""
        key = f"torch {key} {self.threads}"

        def median() -> float:
            with torch.no_grad():
                return measure({key: call}, rounds=15, seconds=2.0, threads=self.threads)[key].median

        return self.memory.recall(key, read_seconds, median)

    def least(self, layer: Weighted, sparsity: float) -> float:
        """What the machine's limit allows."""
        if self.isa is None:
            return 0.0
        work = layer.weight.numel() * (1 - sparsity) * positions_of(layer)
        return limits(self.isa, self.memory).seconds(work, 0, self.threads)


def behind_a_kernel(layer: Conv, choice: Choice, isa: InstructionSet, threads: int) -> float:
    """Seconds of a convolution's own steps where its input comes from a kernel."""
    named = replace(layer, name="layer")
    tensors = [torch.zeros(value.shape) for value in inputs_of(layer)]
    return of_steps(alone(named, replace(choice, dense=False), isa, threads), tensors, lambda name: name == "layer", threads)[0]


def of_steps(runner: Runner, tensors: Sequence[Tensor], wanted: Callable[[str], bool], threads: int) -> tuple[float, float]:
    """Seconds of a run's steps of these names, and of what it does between the programs of kernels.

    Quartiles step by step, and the least of what lies between: other work on the machine makes some steps of some runs longer, and none
    shorter, and between them is where it comes in.
    """
    rounds = []
    with torch_threads(threads):
        for _ in range(_ROUNDS):
            start = perf_counter()
            steps = runner.timed(*tensors)
            outside = perf_counter() - start - sum(seconds for _, seconds in steps)
            rounds.append([outside, *(seconds for name, seconds in steps if wanted(name.removesuffix(" (windows)")))])
    inside = np.quantile(rounds, 0.25, axis=0)[1:]
    return float(inside.sum()), max(0.0, min(outside for outside, *_ in rounds))


# ---------------------------------------------------------------- stand-ins


def thinned(layer: Weighted, pattern: Pattern, sparsity: float) -> Weighted:
    """The layer with ones for weights, of which the pattern removed some at random; where it removes channels, with fewer outputs."""
    if pattern.removable:
        return narrowed(layer, round((1 - sparsity) * len(layer.weight)), layer.weight.shape[1])
    return replace(layer, weight=_thinned(layer, pattern, sparsity)) if sparsity else layer


def _thinned(layer: Weighted, pattern: Pattern, sparsity: float) -> Tensor:
    outputs, inputs, *kernel = layer.weight.shape
    if isinstance(layer, Linear):
        stand_in: nn.Module = skip_init(nn.Linear, inputs, outputs, bias=False)
    else:
        stand_in = skip_init(nn.Conv2d, inputs * layer.groups, outputs, kernel, groups=layer.groups, bias=False)
    weight = nn.init.ones_(stand_in.get_parameter("weight"))
    prune_(stand_in, pattern, TopK(random()), uniform(sparsity=sparsity, floor=0), Task(example=None), only="*")
    return weight.detach()


def narrowed(layer: Weighted, outputs: int, inputs: int, groups: int | None = None) -> Weighted:
    """The layer with other numbers of outputs, and of inputs (those of a group); of a depthwise one, groups go with its outputs.

    >>> layer = Linear("fc", Value((1, 8)), Value((1, 4)), torch.ones(4, 8), None)
    >>> small = narrowed(layer, 2, 3)
    >>> small.x, small.out, tuple(small.weight.shape)
    (Value(1, 3), Value(1, 2), (2, 3))
    """
    now = getattr(layer, "groups", 1)
    if groups is None:
        depthwise = now > 1 and layer.weight.shape[1] == 1
        groups = max(1, outputs * now // len(layer.weight)) if depthwise else now
    outputs, inputs = max(1, outputs // groups) * groups, max(1, inputs)
    channel = 1 if isinstance(layer, Conv) else -1
    out = _resized(layer.out, channel, outputs)
    made = replace(
        layer,
        x=_resized(layer.x, channel, inputs * groups),
        out=out,
        weight=torch.ones(outputs, inputs, *layer.weight.shape[2:]),
        bias=None if layer.bias is None else torch.zeros(outputs),
        residual=None if layer.residual is None else Value(out.shape),
    )
    return replace(made, groups=groups) if isinstance(made, Conv) else made


def _resized(value: Value, dim: int, size: int) -> Value:
    shape = list(value.shape)
    shape[dim] = size
    return Value(tuple(shape))
