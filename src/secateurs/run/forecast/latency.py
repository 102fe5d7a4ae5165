"""Milliseconds as a cost: what a plan would leave of a model's latency on this machine, from measurements of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.costs import Layer, Least, Workload, elements, workload
from secateurs.patterns import Element, Filter, Kernel, layout_of
from secateurs.run.forecast.dense_layers import ONNX, seconds_in_onnx
from secateurs.run.forecast.narrow import Narrow, matched
from secateurs.run.forecast.predict import Stopwatch, Weighted, fastest, weighted
from secateurs.run.forecast.whole import KERNELS, Line, Whole, half, half_plan, line, whole
from secateurs.run.kernels.machine import instruction_set
from secateurs.run.lowering.lower import lower
from secateurs.run.network.nodes import Network
from secateurs.run.recording.one_call import network_of
from secateurs.types import Cost, Pattern, Plan, PlanError, Prepared, Term

GRID = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Sparsities that are measured; what lies between is interpolated, and beyond the last nothing more is promised."""
BETWEEN, CALL = "between layers", "call"
"""What is told beside layers: all between them that no plan changes, and what a call takes whatever is in it."""
_NEAR = 2.0
"""Layers are timed in a dense runtime as well where it takes less than so many times what the fastest takes."""


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


def _times(layer: Weighted, pattern: Pattern, now: float, clock: Stopwatch) -> LayerTimes:
    """Never above what the layer takes now, never below the machine's limit, never rising."""
    if pattern.kept_of_each is not None:  # kernels see single elements in it
        pattern = Element()
    measured = [max(clock.least(layer, sparsity), fastest(clock.thinned(layer, pattern, sparsity))) for sparsity in GRID[1:]]
    return LayerTimes(GRID, falling((now, *(min(now, each) for each in measured))))


# ---------------------------------------------------------------- a model


def _prepare(model: nn.Module, example: Any, pattern: Pattern | None, threads: int | None) -> Prepared:
    clock = Stopwatch(instruction_set(), torch.get_num_threads() if threads is None else threads)
    own = copy.deepcopy(model).eval().requires_grad_(False)
    network = lower(network_of(own, example))
    load = workload(own, example)
    tuned = {layer: clock.now(layer) for layer in weighted(network)}
    now = {layer: fastest(each) for layer, each in tuned.items()}
    measured = _Measured(own, example, network, load, clock, now, whole(own, network, tuned, example, clock), pattern)
    return Least(lambda plan: measured.dense if plan is None else measured.narrow(plan) if plan.extents else measured.sparse(plan))


@dataclass(frozen=True)
class _Measured:
    """A model, and what is known of its time: of its layers ``now``, and of the ``whole``."""

    model: nn.Module
    example: Any
    network: Network
    load: Workload
    clock: Stopwatch
    now: Mapping[Weighted, float]
    whole: Whole
    pattern: Pattern | None
    _times: dict[tuple[Weighted, Pattern], LayerTimes] = field(default_factory=dict)

    @cached_property
    def owners(self) -> Mapping[Weighted, str]:
        return _owners(self.model, self.network)

    @cached_property
    def total(self) -> float:
        """Seconds of layers and what lies between them, one by one."""
        return self.whole.between + sum(self.now.values())

    @cached_property
    def runtimes(self) -> Mapping[str, float]:
        """Seconds in each runtime; of the kernels, where they were not timed as a whole, the sum."""
        return {KERNELS: self.total, **self.whole.runtimes}

    @cached_property
    def dense(self) -> list[list[Term]]:
        """In the runtime that is fastest now, in proportion to what layers take in the kernels."""
        factor = 1e3 * min(self.runtimes.values()) / self.total
        terms = [_term(layer.name, (), factor * seconds) for layer, seconds in self.now.items()]
        return [[_term(BETWEEN, (), factor * self.whole.between), *terms]]

    def sparse(self, plan: Plan) -> list[list[Term]]:
        """Where weights become zero, the kernels have less to do, and dense runtimes have not."""
        self.load.under(plan)  # it refuses a plan of another model
        terms = [_term(BETWEEN, (), 1e3 * self.whole.between)]
        for layer, seconds in self.now.items():
            name = self.owners.get(layer)
            if name is None or all(name not in share.elements for share in plan.shares.values()):
                terms.append(_term(layer.name, (), 1e3 * seconds))
            else:
                terms.append(self._thinned(layer, name, _shape(self.pattern, name, self.model, plan), plan))
        return [terms, *self.dense]

    def _thinned(self, layer: Weighted, name: str, pattern: Pattern, plan: Plan) -> Term:
        size = self.model.get_parameter(name).numel()
        left = elements(name, size, plan)

        def milliseconds(counts: Mapping[str, int]) -> float:
            removed = size - left.value(counts)
            if not removed:
                return 1e3 * self.now[layer]
            if (layer, pattern) not in self._times:
                self._times[layer, pattern] = _times(layer, pattern, self.now[layer], self.clock)
            return 1e3 * self._times[layer, pattern](removed / size)

        return Term(layer.name, left.sites, milliseconds)

    # ------------------------------------------------------------ fewer channels

    def narrow(self, plan: Plan) -> list[list[Term]]:
        """Where channels go, layers become narrower and all runtimes have less to do."""
        parts = {timed: self._parts(plan, timed) for timed in {self._timed(name) for name in self._lines}}
        return [
            [_term(CALL, (), 1e3 * by.constant), *(_scaled(part, 1e3 * by.factor) for part in parts[self._timed(name)])]
            for name, by in self._lines.items()
        ]

    def _timed(self, runtime: str) -> str:
        """The runtime whose layers' times tell how another one gains: its own where it comes near, else the kernels'."""
        near = _NEAR * min(self.runtimes.values())
        return ONNX if runtime == ONNX and self.clock.isa is not None and self.runtimes[ONNX] < near else KERNELS

    def _parts(self, plan: Plan, timed: str) -> list[Term]:
        """Seconds of layers, and of what lies between them."""
        products = self.load.under(plan)
        own, narrows = _listed(self._places), self._narrows[timed]
        parts = [Term(BETWEEN, (), lambda counts: self._gains[0])]
        parts += [_term(layer.name, (), self.now[layer]) for layer in self.now if layer not in self._places]
        parts += [
            _part(product, [narrows[layer] for layer in own.get(place, ())], *self._passing(place))
            for place, product in enumerate(products)
        ]
        return parts

    def _passing(self, place: int) -> tuple[float, float]:
        """Seconds for each number that a product takes or makes, and of attention, for each multiplication."""
        _, each, product = self._gains
        return each, product if self._dense[place].parameter is None else 0.0

    @cached_property
    def _dense(self) -> list[Any]:
        return [layer.left({}) for layer in self.load.under(None)]

    @cached_property
    def _places(self) -> Mapping[Weighted, int]:
        return matched(self.owners, self.load.under(None))

    @cached_property
    def _narrows(self) -> Mapping[str, Mapping[Weighted, Narrow]]:
        """By runtime, what tells the seconds of a layer at any width."""
        timers: dict[str, Callable[[Weighted], float]] = {
            KERNELS: lambda layer: self.now[layer] if layer in self.now else fastest(self.clock.now(layer)),
            ONNX: lambda layer: seconds_in_onnx(layer, self.clock),
        }
        lanes = max(8, 1 if self.clock.isa is None else self.clock.isa.lanes)
        return {
            name: {layer: Narrow(layer, self._dense[place], timer, lanes) for layer, place in self._places.items()}
            for name, timer in timers.items()
        }

    @cached_property
    def _halved(self) -> tuple[Plan, Whole] | None:
        """A model half as wide, and what it takes."""
        plan = half_plan(self.model, self.example)
        found = None if plan is None else half(self.model, self.network, self.example, self.clock)
        return None if plan is None or found is None else (plan, found)

    @cached_property
    def _gains(self) -> tuple[float, float, float]:
        """Seconds between layers that stay, those for each number that layers take and make, and those of attention for each
        multiplication of activations: what is measured of the model as it is, and half as wide."""
        attention = sum(work.macs for work in self._dense if work.parameter is None)
        each = self.whole.attention / attention if attention else 0.0
        stays = self.whole.rest if attention else self.whole.between
        if self._halved is None:
            return stays, 0.0, each
        plan, less = self._halved
        passed, left = (sum(work.taken + work.made for work in works) for works in (self._dense, self._left(plan)))
        saved = max(0.0, stays - (less.rest if attention else less.between))
        number = min(saved / max(1, passed - left), stays / max(1, passed))
        return stays - number * passed, number, each

    def _left(self, plan: Plan) -> list[Any]:
        return [layer.left(dict(plan)) for layer in self.load.under(plan)]

    @cached_property
    def _lines(self) -> Mapping[str, Line]:
        """How the time of each runtime follows from the sum: two models were measured, this one and one half as wide."""
        plan, less = (None, None) if self._halved is None else self._halved
        found = {}
        for name, now in self.runtimes.items():
            total, second = self._sum(Plan({}), name), None
            if plan is not None and less is not None and name in {KERNELS, *less.runtimes}:
                half_sum = self._sum(plan, name)
                second = half_sum, less.runtimes.get(name, half_sum)
            if second is not None or plan is None:
                found[name] = line((total, now), second)
        return found

    def _sum(self, plan: Plan, runtime: str) -> float:
        return sum(part.value(dict(plan)) for part in self._parts(plan, self._timed(runtime)))


def _term(layer: str, sites: tuple[str, ...], value: float) -> Term:
    return Term(layer, sites, lambda counts: value)


def _scaled(part: Term, factor: float) -> Term:
    return Term(part.layer, part.sites, lambda counts: factor * part.value(counts))


def _listed(places: Mapping[Weighted, int]) -> dict[int, list[Weighted]]:
    found: dict[int, list[Weighted]] = {}
    for layer, place in places.items():
        found.setdefault(place, []).append(layer)
    return found


def _part(product: Layer, narrows: Sequence[Narrow], each: float, multiplied: float) -> Term:
    """Seconds of a product of the pass: of the layers that it is to the runtime, and what passes it on."""

    def seconds(counts: Mapping[str, int]) -> float:
        work = product.left(counts)
        return sum(narrow(work) for narrow in narrows) + each * (work.taken + work.made) + multiplied * work.macs

    return Term(product.name, product.sites, seconds)


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
