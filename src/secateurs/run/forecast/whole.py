"""Seconds of a whole model, as it is and half as wide: what its layers' times, measured one by one, come to together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.allocate import uniform
from secateurs.criteria import random
from secateurs.nested import leaves
from secateurs.patterns import Channel, find_sites
from secateurs.prune import prune_
from secateurs.run.choosing.tune import Tuned
from secateurs.run.clock.backends import DENSE
from secateurs.run.clock.memory import read_seconds
from secateurs.run.compiled import compile
from secateurs.run.forecast.predict import Stopwatch, Weighted, fastest, of_steps, running, weighted
from secateurs.run.lowering.lower import lower
from secateurs.run.network.nodes import Attention, Conv, Linear, Network, Node
from secateurs.run.planning.layers import Choice
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of
from secateurs.shrink import shrink_
from secateurs.solve import TopK
from secateurs.types import Plan, SecateursError, Task

KERNELS = "kernels"
HALF = 0.5
"""How much of each channel site the second model keeps that is measured as a whole."""
_THIN = 0.1


@dataclass(frozen=True)
class Whole:
    """Seconds of a model in each runtime that was there, the kernels among them, and where these run it, of attention and of all else
    that lies between layers."""

    runtimes: Mapping[str, float]
    attention: float
    rest: float

    @property
    def between(self) -> float:
        return self.attention + self.rest

    @property
    def dense(self) -> str:
        """The fastest dense runtime."""
        return min((name for name in self.runtimes if name != KERNELS), key=self.runtimes.__getitem__)


@dataclass(frozen=True)
class Line:
    """Seconds of a whole model from the sum over its parts: ``constant`` + ``factor`` × sum."""

    constant: float
    factor: float

    def __call__(self, total: float) -> float:
        return self.constant + self.factor * total


def line(first: tuple[float, float], second: tuple[float, float] | None) -> Line:
    """The line through two points (sum, seconds), none of whose parts is negative; in proportion where it would be or there is only one.

    >>> line((4.0, 10.0), (2.0, 6.0)), line((4.0, 10.0), None)
    (Line(constant=2.0, factor=2.0), Line(constant=0.0, factor=2.5))
    >>> line((4.0, 16.0), (2.0, 2.0))
    Line(constant=0.0, factor=2.0)
    """
    (x, y), own = first, first[1] / first[0]
    if second is None or second[0] > 0.95 * x or second[1] >= y:
        return Line(0.0, own)
    factor = (y - second[1]) / (x - second[0])
    constant = y - factor * x
    return Line(constant, factor) if constant >= 0 else Line(0.0, sqrt(own * second[1] / second[0]))


def narrower(model: nn.Module, example: Any) -> tuple[nn.Module, Plan] | None:
    """A copy that keeps half of the units of every channel site, and the plan of that; None where no channels can go."""
    try:
        small = copy.deepcopy(model)
        masks = prune_(small, Channel(), TopK(random(0)), uniform(keep=HALF), Task(example=example))
        shrink_(small, masks, example)
    except SecateursError:
        return None
    assert masks.plan is not None
    return small.eval().requires_grad_(False), masks.plan


def half_plan(model: nn.Module, example: Any) -> Plan | None:
    """The plan that `narrower` follows."""
    try:
        return uniform(keep=HALF)(find_sites(model, Channel(), example), lambda: iter([]))
    except SecateursError:
        return None


def whole(model: nn.Module, network: Network, layers: Mapping[Weighted, Tuned], example: Any, clock: Stopwatch) -> Whole:
    """What a model takes as it is; remembered by all that its time can depend on."""
    return clock.memory.recall(
        _key("whole", network, clock), _read, lambda: _measured(model, network, layers, example, clock), asdict
    )


def half(model: nn.Module, network: Network, example: Any, clock: Stopwatch) -> Whole | None:
    """What it takes half as wide, where channels can go."""

    def measured() -> Whole:
        assert made is not None
        small = made[0]
        inner = lower(network_of(small, example))
        return _measured(small, inner, {layer: clock.now(layer) for layer in weighted(inner)}, example, clock)

    key = _key("half", network, clock)
    known = clock.memory.get(key, _read)
    if known is not None:
        return known
    made = narrower(model, example)
    return None if made is None else clock.memory.recall(key, _read, measured, asdict)


def _key(what: str, network: Network, clock: Stopwatch) -> str:
    parts = "\n".join([*DENSE, *map(_told, network.nodes)])
    return f"{what} {sha256(parts.encode()).hexdigest()} {clock.isa} {clock.threads}"


def _read(value: Any) -> Whole:
    runtimes = {str(name): read_seconds(seconds) for name, seconds in value["runtimes"].items()}
    if not runtimes.keys() - {KERNELS}:
        raise ValueError(f"{value!r} names no dense runtime")
    return Whole(runtimes, *(float(value[name]) and read_seconds(value[name]) for name in ("attention", "rest")))


def _measured(model: nn.Module, network: Network, layers: Mapping[Weighted, Tuned], example: Any, clock: Stopwatch) -> Whole:
    if clock.isa is None:
        seconds = clock.seconds(_key("torch", network, clock), running(network, example))
        return Whole({"torch": seconds}, 0.0, max(0.0, seconds - sum(map(fastest, layers.values()))))
    raced = compile(model, example, threads=clock.threads, isa=clock.isa.name, dense=DENSE).raced
    runtimes = {name: min(timing.samples) for name, timing in raced.items()}  # other work makes some runs longer, and none shorter
    if not runtimes:  # the kernels' answers were others than torch's, and did not run
        runtimes = {"torch": clock.seconds(_key("torch", network, clock), running(network, example))}
    attentions = {node.name for node in network.nodes if isinstance(node, Attention)}
    return Whole(runtimes, *_between(network, layers, attentions, example, clock))


def _between(
    network: Network, layers: Mapping[Weighted, Tuned], attentions: Iterable[str], example: Any, clock: Stopwatch
) -> tuple[float, float]:
    """Seconds of attention, and of all steps else but the layers, which are thin here: what stands between them when it matters."""
    assert clock.isa is not None
    generator = torch.Generator().manual_seed(0)
    thin = {layer: replace(layer, weight=(torch.rand(layer.weight.shape, generator=generator) < _THIN).float()) for layer in layers}
    nodes: list[Node] = [thin[node] if isinstance(node, (Conv, Linear)) and node in thin else node for node in network.nodes]
    choices: dict[Node, Choice] = {thin[layer]: replace(tuned.choice, dense=False) for layer, tuned in layers.items()}
    stand_in = replace(network, nodes=nodes)
    runner = Runner(stand_in, plan(stand_in, clock.isa, clock.threads, choices), clock.threads)
    names = {layer.name for layer in layers}
    tensors = [leaf for _, leaf in leaves(example) if isinstance(leaf, Tensor)]
    total = max(0.0, sum(of_steps(runner, tensors, lambda name: name not in names, clock.threads)))
    named = set(attentions) - names
    attention = of_steps(runner, tensors, lambda name: name in named, clock.threads)[0] if named else 0.0
    return min(attention, total), max(0.0, total - attention)


def _told(node: Node) -> str:
    """All that a node's time can depend on, without the numbers in its weights."""
    parts = [getattr(node, each.name) for each in fields(node)]
    return " ".join(_shaped(part) if isinstance(part, Tensor) else getattr(part, "__name__", str(part)) for part in parts)


def _shaped(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {float((tensor != 0).float().mean()):.2f}"
