"""Milliseconds as a cost: what a plan would leave of a model's latency on this machine, from measurements of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.costs import params
from secateurs.nested import leaves
from secateurs.patterns import Element, Filter, Kernel, layout_of
from secateurs.run.choosing.race import race
from secateurs.run.choosing.tune import Tuned
from secateurs.run.clock.backends import DENSE
from secateurs.run.clock.memory import read_seconds
from secateurs.run.forecast.predict import Stopwatch, Weighted, fastest, narrowed, of_steps, running, weighted
from secateurs.run.kernels.machine import instruction_set
from secateurs.run.lowering.lower import lower
from secateurs.run.network.nodes import Conv, Linear, Network, Node
from secateurs.run.planning.layers import Choice
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of
from secateurs.types import Cost, Pattern, Plan, PlanError

GRID = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Sparsities that are measured; what lies between is interpolated, and beyond the last nothing more is promised."""
_THIN = 0.1


def latency(pattern: Pattern | None = None, *, threads: int | None = None) -> Cost:
    """Milliseconds of one call of the model that `compile` makes, with so many threads (by default, as many as torch uses).

    A plan tells how many units stay, and of their shape only the size. Single weights, kernels and filters are known by that; blocks
    and vectors are timed as if their weights were removed one by one, which takes longer: name the ``pattern`` to have its own times.

    >>> from secateurs.patterns import Block
    >>> latency(Block(4, 1), threads=1).unit
    'ms'
    """
    return Cost("latency_ms", "ms", lambda model, example: _prepare(model, example, pattern, threads))


latency_ms = latency()
"""Milliseconds of one call of the compiled model on this machine, measured; of a plan, as predicted from its layers' times.

A layer takes what a stand-in with random zeros took, never more than dense; what is neither convolution nor linear layer, and all between
layers, take what they take now. The sum is never more than the fastest dense runtime takes."""


# ---------------------------------------------------------------- one layer


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of a layer by the fraction of its weights that is removed: straight lines between what was measured.

    >>> LayerTimes((0.0, 0.5, 1.0), (4.0, 3.0, 1.0))(0.75)
    2.0
    """

    sparsities: Sequence[float]
    seconds: Sequence[float]

    def __call__(self, sparsity: float) -> float:
        return float(np.interp(sparsity, self.sparsities, self.seconds))


def falling(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest numbers, by least squares, of which none is above the one before: isotonic regression.

    >>> falling((5.0, 2.0, 3.0, 1.0))
    (5.0, 2.5, 2.5, 1.0)
    """
    places = range(len(values))
    return tuple(min(max(float(np.mean(values[a : b + 1])) for b in places[i:]) for a in places[: i + 1]) for i in places)


@dataclass(frozen=True)
class _Role:
    """What a plan may do to a layer: cut its parameter with a pattern, or, without one, make these of (outputs, inputs) fewer."""

    pattern: Pattern | None
    narrows: tuple[bool, bool] = (False, False)


def _times(layer: Weighted, role: _Role, now: float, clock: Stopwatch) -> LayerTimes:
    """Never above what the layer takes now, never below the machine's limit, never rising."""
    pattern, grid = role.pattern, GRID
    if pattern is not None and pattern.kept_of_each is not None:  # kernels see single elements in it
        pattern = Element()

    def measured(sparsity: float) -> float:
        if pattern is not None:
            return fastest(clock.thinned(layer, pattern, sparsity))
        factor = (1 - sparsity) ** (1 / max(1, sum(role.narrows)))
        sizes = [round(size * factor) if narrows else size for size, narrows in zip(layer.weight.shape, role.narrows, strict=False)]
        return fastest(clock.now(narrowed(layer, *sizes)))

    rest = [min(now, max(clock.least(layer, sparsity), measured(sparsity))) for sparsity in grid[1:]]
    return LayerTimes(grid, falling((now, *rest)))


# ---------------------------------------------------------------- a model


def _prepare(model: nn.Module, example: Any, pattern: Pattern | None, threads: int | None) -> Callable[[Plan | None], float]:
    check = params.prepare(model, example)
    clock = Stopwatch(instruction_set(), torch.get_num_threads() if threads is None else threads)
    own = copy.deepcopy(model).eval().requires_grad_(False)
    network = lower(network_of(own, example))
    owners = _owners(own, network)
    tuned = {layer: clock.now(layer) for layer in weighted(network)}
    now = {layer: fastest(each) for layer, each in tuned.items()}
    runtime, between = _whole(own, network, tuned, example, clock)
    kernels = between + sum(now.values())
    best = min(runtime, kernels)
    times: dict[tuple[Weighted, _Role], LayerTimes] = {}

    def seconds(layer: Weighted, plan: Plan) -> float:
        name = owners.get(layer)
        removed = 0 if name is None else plan.removed(name)
        if name is None or not removed:
            return now[layer]
        parameter = own.get_parameter(name)
        role = _narrowing(own, name, plan) if plan.extents else _Role(_shape(pattern, name, own, plan))
        if (layer, role) not in times:
            times[layer, role] = _times(layer, role, now[layer], clock)
        return times[layer, role](removed / parameter.numel())

    def milliseconds(plan: Plan | None) -> float:
        if plan is None:
            return 1e3 * best
        check(plan)
        total = between + sum(seconds(layer, plan) for layer in now)
        # Of a model with fewer channels, the runtime that is fastest now has less to do as well; zeros it does not see.
        return 1e3 * (best * total / kernels if plan.extents else min(best, total))

    return milliseconds


def _owners(model: nn.Module, network: Network) -> Mapping[Weighted, str]:
    """Whose weight a layer uses: whose memory, or, where a normalisation was folded into it, that of the module of its name."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
    memory = {parameter.untyped_storage().data_ptr(): name for name, parameter in parameters.items()}
    found: dict[Weighted, str] = {}
    for layer in weighted(network):
        name = memory.get(layer.weight.untyped_storage().data_ptr(), f"{layer.name}.weight".removeprefix("."))
        if name in parameters and parameters[name].numel() >= layer.weight.numel():
            found[layer] = name
    return found


def _shape(pattern: Pattern | None, name: str, model: nn.Module, plan: Plan) -> Pattern:
    """The pattern of a parameter's units: the one that was named, else what their size tells for sure."""
    shape = _canonical(model, name)
    _, _, inputs, *kernel = shape
    sizes = {share.elements[name] for share in plan.shares.values() if name in share.elements}
    if pattern is not None:
        size = None if pattern.removable else prod(pattern.cut(shape).elements)
        if sizes != {size}:
            raise PlanError(
                f"{name}: the plan's units hold {', '.join(map(str, sorted(sizes)))} of its weights, those of {pattern} "
                f"{'are whole channels' if size is None else size}: name the pattern of the plan in latency(...)"
            )
        return pattern
    if sizes == {inputs * prod(kernel)}:
        return Filter()
    return Kernel() if kernel and sizes == {prod(kernel)} else Element()


def _canonical(model: nn.Module, name: str) -> tuple[int, ...]:
    path, _, attribute = name.rpartition(".")
    layout, parameter = layout_of(model.get_submodule(path), attribute), model.get_parameter(name)
    return tuple(parameter[None].shape if layout is None else layout.canonical(parameter).shape)


def _narrowing(model: nn.Module, name: str, plan: Plan) -> _Role:
    """Which dimensions of a parameter the plan's sites reach."""
    path, _, attribute = name.rpartition(".")
    layout = layout_of(model.get_submodule(path), attribute)
    reached = [any(sites for _, sites in dim) for dim in plan.extents[name][0][:2]]
    first, second = reversed(reached) if layout is not None and layout.transposed else reached
    return _Role(None, (first, second))


def _whole(
    model: nn.Module, network: Network, layers: Mapping[Weighted, Tuned], example: Any, clock: Stopwatch
) -> tuple[float, float]:
    """Seconds of the fastest dense runtime, and of all that lies between layers where the kernels run them."""
    parts = "\n".join([*DENSE, *map(_told, network.nodes)])
    key = f"whole {sha256(parts.encode()).hexdigest()} {clock.isa} {clock.threads}"
    if clock.isa is None:
        whole = clock.seconds(key, running(network, example))
        return whole, max(0.0, whole - sum(map(fastest, layers.values())))

    def measured() -> tuple[float, float]:
        found = race(model, example, network, clock.threads)
        return found.timings[found.fastest_dense].median, _between(network, layers, example, clock)

    return clock.memory.recall(key, _two, measured)


def _two(value: Any) -> tuple[float, float]:
    whole, between = value
    return read_seconds(whole), read_seconds(between)


def _between(network: Network, layers: Mapping[Weighted, Tuned], example: Any, clock: Stopwatch) -> float:
    """Seconds of all steps but the layers, which are thin here: what stands between them when it matters."""
    assert clock.isa is not None
    generator = torch.Generator().manual_seed(0)
    thin = {layer: replace(layer, weight=(torch.rand(layer.weight.shape, generator=generator) < _THIN).float()) for layer in layers}
    nodes: list[Node] = [thin[node] if isinstance(node, (Conv, Linear)) and node in thin else node for node in network.nodes]
    choices: dict[Node, Choice] = {thin[layer]: replace(tuned.choice, dense=False) for layer, tuned in layers.items()}
    stand_in = replace(network, nodes=nodes)
    runner = Runner(stand_in, plan(stand_in, clock.isa, clock.threads, choices), clock.threads)
    names = {layer.name for layer in layers}
    tensors = [leaf for _, leaf in leaves(example) if isinstance(leaf, Tensor)]
    return sum(of_steps(runner, tensors, lambda name: name not in names, clock.threads))


def _told(node: Node) -> str:
    """All that a node's time can depend on, without the numbers in its weights."""
    parts = [getattr(node, each.name) for each in fields(node)]
    return " ".join(_shaped(part) if isinstance(part, Tensor) else getattr(part, "__name__", str(part)) for part in parts)


def _shaped(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {float((tensor != 0).float().mean()):.2f}"
