"""Which kernel each layer gets: measured here, or reckoned from the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from time import perf_counter, sleep
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from secateurs.nested import Value
from secateurs.progress import track
from secateurs.run.choosing.limits import Limits
from secateurs.run.choosing.table import candidates, has_fours, is_single, union
from secateurs.run.clock.memory import Memory, read_seconds
from secateurs.run.clock.timing import torch_threads
from secateurs.run.kernels.gemv import Values
from secateurs.run.kernels.machine import InstructionSet
from secateurs.run.network.interpret import step
from secateurs.run.network.nodes import Conv, Linear, Lstm, Network, Node, inputs_of
from secateurs.run.planning.layers import Choice, Layer, as_linear, positions_of, weights_of
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner

_ROUNDS, _SLOW, _BEHIND = 9, 3, 1.5
"""Rounds of all candidates, of those that take a tenth of a second or more, and how far behind one may be after its first two rounds to
stay."""
_LONG = 0.1
_ENOUGH = 2**21
"""Weights that tell how all rows of a layer run, where many vectors are multiplied with each."""
_ALIKE = 0.1
"""Layers whose nonzeros differ by a tenth get the same kernel."""
_SETTLE = 0.01
_BEFORE = "(before)"

AnyLayer = TypeVar("AnyLayer", bound=Layer)


@dataclass(frozen=True)
class Tuned:
    """What a layer got, and what it takes: seconds by our kernel, and by torch, both with the layouts that they need."""

    choice: Choice
    seconds: float
    dense_seconds: float
    measured: bool = True


def is_layer(node: Node) -> TypeGuard[Layer]:
    """Whether it has weights that a kernel could take."""
    if not isinstance(node, (Conv, Linear, Lstm)) or (isinstance(node, Lstm) and not is_single(node)):
        return False
    return node.x.dtype == torch.float32 and all(node.x.shape) and node.weight.numel() > 0


def tune(network: Network, isa: InstructionSet, threads: int, memory: Memory, values: Values = "float32") -> dict[Node, Tuned]:
    """Time every candidate for every layer where it stands; layers that are alike are timed once, here or in an earlier process.

    What was timed of a layer of the same shape, with a tenth more nonzeros or less, serves for others too: their seconds are reckoned from
    their nonzeros.
    """
    found: dict[Node, Tuned] = {}
    timed: dict[str, tuple[float, Tuned]] = {}
    layers = [node for node in network.nodes if is_layer(node)]
    with closing(track(layers, "timing kernels, layer by layer")) as bar:
        for node in bar:
            first = node.x in network.inputs
            density, shared = densities(node)
            what, where = described(node), f" {isa.name} {threads} {values}" + " first" * first
            read = partial(recalled, choices=_tried(node, isa, values, first))
            key, kind = (f"{what} {told}{where}" for told in (_exactly(density, shared), _roughly(density, shared)))
            known = memory.get(key, read)
            if known is None and kind in timed:
                of, other = timed[kind]
                known = replace(other, seconds=other.seconds * density / of)
            found[node] = known or memory.recall(key, read, partial(_measured, node, isa, threads, values, first), asdict)
            timed.setdefault(kind, (max(density, 1e-9), found[node]))
    return found


def recalled(value: Any, choices: Iterable[Choice]) -> Tuned:
    """What was remembered of a layer, for which there are these choices; raises like any function that reads a `Memory`."""
    dense = value["choice"]["dense"]
    choice = next((each for each in choices if each == Choice(**{**value["choice"], "dense": False})), None)
    if choice is None or not isinstance(dense, bool):
        raise ValueError(f"{value!r} names no kernel of this layer")
    return Tuned(replace(choice, dense=dense), read_seconds(value["seconds"]), read_seconds(value["dense_seconds"]))


def reckon(network: Network, isa: InstructionSet, threads: int, limits: Limits, values: Values = "float32") -> dict[Node, Tuned]:
    """Choices without measuring: from the machine's limits, and what kernels were found to reach of them."""
    return {
        node: _reckoned(node, isa, threads, limits, values)
        for node in network.nodes
        if isinstance(node, (Conv, Linear)) and is_layer(node)
    }


def signature(node: Layer, isa: InstructionSet, threads: int) -> str:
    """Layers of the same signature are taken to run alike: shapes, and how the nonzeros fill rows and groups of four rows."""
    return f"{described(node)} {_exactly(*densities(node))} {isa.name} {threads}"


def described(node: Layer) -> str:
    """A layer's kind and shapes."""
    how = [node.stride, node.padding, node.dilation, node.groups] if isinstance(node, Conv) else []
    shape = [tuple(node.x.shape), tuple(node.weight.shape), *how, *(tuple(each.shape) for each in inputs_of(node)[1:])]
    return " ".join(map(str, [type(node).__name__, *shape]))


def densities(node: Layer) -> tuple[float, float]:
    """The share of weights that are not zero, and of places that at least one of four consecutive rows uses."""
    return float((weights_of(node) != 0).float().mean()), union(node)


def _exactly(density: float, shared: float) -> str:
    return f"{density:.2f} {shared:.2f}"


def _roughly(density: float, shared: float) -> str:
    """Which of the layers of a shape are alike: where all weights are there, only those."""
    return " ".join("all" if each == 1 else str(round(np.log(each + 1e-9) / _ALIKE)) for each in (density, shared))


def _measured(whole: Layer, isa: InstructionSet, threads: int, values: Values, first: bool) -> Tuned:
    """The fastest candidate and torch, timed in turns."""
    node, times = sample(whole)
    inputs = _inputs(node)
    runners = [(choice, alone(node, choice, isa, threads, first)) for choice in _tried(node, isa, values, first)]
    timed: list[tuple[Choice, list[float]]] = [(choice, []) for choice, _ in runners]
    dense: list[float] = []
    layouts: list[float] = []
    function, _, _ = step(node)
    with torch_threads(threads), torch.no_grad():
        for turn in range(_ROUNDS):
            for (_, samples), (_, runner) in zip(timed, runners, strict=True):
                if _is_behind(samples, timed):
                    continue
                kernel, around = _seconds(runner, inputs)
                samples.append(kernel)
                layouts.append(around)
            dense.append(_clock(lambda: function(*inputs)))
            if turn + 1 >= _SLOW and min(min(samples) for _, samples in timed) > _LONG:
                break
            if threads > 1:
                sleep(_SETTLE)  # torch's threads still keep the cores busy
    choice, best = min(((choice, _usual(samples)) for choice, samples in timed), key=lambda pair: pair[1])
    dense_too = values == "float32" or not is_single(node)  # who asks for rounded weights gets them
    without = _usual(dense) + (_usual(layouts) if isinstance(node, Conv) and as_linear(node) is None else 0.0)
    return Tuned(replace(choice, dense=dense_too and without < best), best * times, without * times)


def _is_behind(samples: list[float], timed: list[tuple[Choice, list[float]]]) -> bool:
    """Whether a candidate has no chance any more."""
    return len(samples) >= 2 and min(samples) > _BEHIND * min(min(others, default=float("inf")) for _, others in timed)


def sample(node: AnyLayer) -> tuple[AnyLayer, float]:
    """Some of the rows of a large layer over many vectors, and how often they go into it: rows know nothing of each other. One that reads
    single vectors is timed whole, as what matters there is whether its weights stay in a cache."""
    outputs, inputs = node.weight.shape[0], node.weight[0].numel()
    some = max(_ENOUGH // inputs // 16 * 16, 16)
    if not isinstance(node, Linear) or is_single(node) or outputs < 2 * some:
        return node, 1.0
    bias, shape = None if node.bias is None else node.bias[:some], (*node.out.shape[:-1], some)
    residual = None if node.residual is None else Value(shape)
    return replace(node, weight=node.weight[:some], bias=bias, out=Value(shape), residual=residual), outputs / some


def _tried(node: Layer, isa: InstructionSet, values: Values, first: bool) -> list[Choice]:
    """Only what reads an image of torch can be masked."""
    return [choice for choice in candidates(node, isa, values) if first or not choice.masked]


def _usual(seconds: list[float]) -> float:
    """The first quartile: other work on the machine makes some runs longer, and none shorter."""
    return float(np.quantile(seconds, 0.25))


def _inputs(node: Layer) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(value.shape, generator=generator) for value in inputs_of(node)]


def alone(node: Layer, choice: Choice, isa: InstructionSet, threads: int, first: bool = False) -> Runner:
    """The layer as a network of its own. Unless it is the first of its network, and gets its image from torch, another layer leaves the
    image in panels for it."""
    given: list[Value] = inputs_of(node)
    nodes: list[Node] = [node]
    if isinstance(node, Conv) and as_linear(node) is None and not first:
        channels = node.x.shape[1]
        given = [Value(node.x.shape), *given[1:]]
        nodes = [Conv(_BEFORE, given[0], node.x, torch.ones(channels, 1, 1, 1), None, groups=channels), node]
    network = Network(tuple(given), nodes, node.out)
    return Runner(network, plan(network, isa, threads, {node: choice}, direct=first), threads)


def _seconds(runner: Runner, inputs: list[Tensor]) -> tuple[float, float]:
    """Seconds of the layer's own steps, and of those that change layouts before and after it."""
    own = around = 0.0
    for name, seconds in runner.timed(*inputs):
        if name == "layout":
            around += seconds
        elif name != _BEFORE:
            own += seconds
    return own, around


def _clock(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _reckoned(node: Layer, isa: InstructionSet, threads: int, limits: Limits, values: Values) -> Tuned:
    positions = positions_of(node)
    weights = weights_of(node)
    nonzeros = int((weights != 0).sum())
    dense = limits.seconds(weights.numel() * positions, weights.numel() * 4, threads) / 0.85
    if is_single(node):
        choice = next(candidates(node, isa, values))
        ours = limits.seconds(nonzeros * positions, nonzeros * 5) / 0.5
        return Tuned(replace(choice, dense=choice.values == "float32" and dense < ours), ours, dense, measured=False)
    together = union(node) * weights.numel()
    rates = {1: (nonzeros, 0.6), 4: (together, 0.8)}
    shared = has_fours(node) and together / 0.8 < nonzeros / 0.6
    work, rate = rates[4 if shared else 1]
    ours = limits.seconds(work * positions, work * 8, threads) / rate
    return Tuned(Choice(4 if shared else 1, dense=dense < ours), ours, dense, measured=False)


def choices(tuned: Mapping[Node, Tuned]) -> dict[Node, Choice]:
    """What `plan` takes."""
    return {node: each.choice for node, each in tuned.items()}
