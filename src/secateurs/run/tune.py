"""Which kernel each layer gets: measured here, or reckoned from the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from secateurs.run.execute import Runner
from secateurs.run.interpret import step
from secateurs.run.limits import Limits
from secateurs.run.machine import InstructionSet, native_module
from secateurs.run.memory import Memory
from secateurs.run.nodes import Conv, Linear, Network, Node
from secateurs.run.plan import SINGLE, Choice, as_linear, plan, positions_of
from secateurs.run.timing import torch_threads

Layer = Conv | Linear

_BLOCKS = (12 * 1024, 24 * 1024, 48 * 1024)
_ROUNDS = 7
_FILL = 2.0
"""Four rows that share places may hold at most so many times the weights that are not zero: beyond, sharing cannot pay."""


@dataclass(frozen=True)
class Tuned:
    """What a layer got, and what it takes: seconds by our kernel, and by torch, both with the layouts that they need."""

    choice: Choice
    seconds: float
    dense_seconds: float
    measured: bool = True


def is_layer(node: Node) -> bool:
    """Whether it has weights that a kernel could take."""
    return isinstance(node, (Conv, Linear)) and node.x.dtype == torch.float32 and all(node.x.shape) and node.weight.numel() > 0


def tune(network: Network, isa: InstructionSet, threads: int, memory: Memory) -> dict[Node, Tuned]:
    """Time every candidate for every layer where it stands; layers that are alike are timed once, here or in an earlier process."""
    found: dict[Node, Tuned] = {}
    for node in network.nodes:
        if not isinstance(node, (Conv, Linear)) or not is_layer(node):
            continue
        key = signature(node, isa, threads)
        known = memory.get(key)
        if known is None:
            made = _measured(node, isa, threads)
            with memory.changing() as entries:
                entries[key] = asdict(made)
            found[node] = made
        else:
            found[node] = Tuned(Choice(**known["choice"]), known["seconds"], known["dense_seconds"])
    return found


def reckon(network: Network, isa: InstructionSet, threads: int, limits: Limits) -> dict[Node, Tuned]:
    """Choices without measuring: from the machine's limits, and what kernels were found to reach of them."""
    return {node: _reckoned(node, isa, threads, limits) for node in network.nodes if isinstance(node, (Conv, Linear)) and is_layer(node)}


def signature(node: Layer, isa: InstructionSet, threads: int) -> str:
    """Layers of the same signature are taken to run alike: shapes, and how the nonzeros fill rows and groups of four rows."""
    rows = node.weight.detach().flatten(1) != 0
    density = [f"{rows.float().mean():.2f}", f"{_union(node):.2f}"]
    how = [node.stride, node.padding, node.dilation, node.groups] if isinstance(node, Conv) else []
    shape = [tuple(node.x.shape), tuple(node.weight.shape), *how, node.residual is not None]
    return " ".join(map(str, [type(node).__name__, *shape, *density, isa.name, threads]))


def candidates(node: Layer, isa: InstructionSet) -> Iterator[Choice]:
    """The kernels that are worth a try."""
    linear = as_linear(node)
    if linear is not None and positions_of(linear) <= SINGLE:
        finite = bool(torch.isfinite(node.weight).all())
        for form, values in native_module().gemv_formats(isa.name):
            if values == "float32" and (finite or form == "columns"):
                yield Choice(format=form)
        return
    density = float((node.weight != 0).float().mean())
    for block in _BLOCKS:
        yield Choice(1, block)
    if node.weight.shape[0] % 4 == 0 and _union(node) <= _FILL * density:
        for block in _BLOCKS[1:]:
            yield Choice(4, block)


def _union(node: Layer) -> float:
    """The share of places that at least one of four consecutive rows uses."""
    rows = node.weight.detach().flatten(1) != 0
    if len(rows) % 4:
        return 1.0
    return float(rows.view(-1, 4, rows.shape[1]).any(1).float().mean())


def _measured(node: Layer, isa: InstructionSet, threads: int) -> Tuned:
    """The fastest candidate and torch, timed in turns."""
    inputs = _inputs(node)
    runners = [(choice, _alone(node, choice, isa, threads)) for choice in candidates(node, isa)]
    timed: list[tuple[Choice, list[float]]] = [(choice, []) for choice, _ in runners]
    dense: list[float] = []
    layouts: list[float] = []
    function, _, _ = step(node)
    with torch_threads(threads), torch.no_grad():
        for _ in range(_ROUNDS):
            for (_, samples), (_, runner) in zip(timed, runners, strict=True):
                kernel, around = _seconds(runner, inputs)
                samples.append(kernel)
                layouts.append(around)
            dense.append(_clock(lambda: function(*inputs)))
    choice, best = min(((choice, float(np.median(samples))) for choice, samples in timed), key=lambda pair: pair[1])
    without = float(np.median(dense)) + (float(np.median(layouts)) if as_linear(node) is None else 0.0)
    return Tuned(replace(choice, dense=without < best), best, without)


def _inputs(node: Layer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [node.x] if node.residual is None else [node.x, node.residual]
    return [torch.randn(value.shape, generator=generator) for value in values]


def _alone(node: Layer, choice: Choice, isa: InstructionSet, threads: int) -> Runner:
    values = (node.x,) if node.residual is None else (node.x, node.residual)
    network = Network(values, [node], node.out)
    return Runner(network, plan(network, isa, threads, {node: choice}), threads)


def _seconds(runner: Runner, inputs: list[Tensor]) -> tuple[float, float]:
    """Seconds of the layer's own steps, and of those that change layouts before and after it."""
    own = around = 0.0
    for name, seconds in runner.timed(*inputs):
        if name == "layout":
            around += seconds
        else:
            own += seconds
    return own, around


def _clock(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _reckoned(node: Layer, isa: InstructionSet, threads: int, limits: Limits) -> Tuned:
    positions = positions_of(node)
    nonzeros = int((node.weight != 0).sum())
    dense = limits.seconds(node.weight.numel() * positions, node.weight.numel() * 4, threads) / 0.85
    linear = as_linear(node)
    if linear is not None and positions_of(linear) <= SINGLE:
        form = "lanes" if ("lanes", "float32") in native_module().gemv_formats(isa.name) else "columns"
        ours = limits.seconds(nonzeros * positions, nonzeros * 5) / 0.5
        return Tuned(Choice(format=form, dense=dense < ours), ours, dense, measured=False)
    union = _union(node) * node.weight.numel()
    rates = {1: (nonzeros, 0.6), 4: (union, 0.8)}
    shared = node.weight.shape[0] % 4 == 0 and union / 0.8 < nonzeros / 0.6
    work, rate = rates[4 if shared else 1]
    ours = limits.seconds(work * positions, work * 8, threads) / rate
    return Tuned(Choice(4 if shared else 1, dense=dense < ours), ours, dense, measured=False)


def choices(tuned: Mapping[Node, Tuned]) -> dict[Node, Choice]:
    """What `plan` takes."""
    return {node: each.choice for node, each in tuned.items()}

