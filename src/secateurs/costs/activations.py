"""The memory that activations need while a model runs: what is alive at each operation, and where that is most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import nn

from secateurs.costs.elements import checked
from secateurs.costs.workload import Numbers, known_axes, numbers_of, size_of
from secateurs.forward import parameters_in
from secateurs.given import COUNT, MODEL, require
from secateurs.graph import Structure, Value, analyse
from secateurs.types import Cost, Plan, SecateursError


@dataclass(frozen=True)
class Moment:
    """An operation of a pass, and the bytes of all activations that are alive while it runs."""

    module: str
    operation: str
    bytes: float


@dataclass(frozen=True)
class _Storage:
    """A piece of memory: from which operation to which one it is needed, what lies in it, and how wide a number of that is."""

    first: int
    last: int
    holds: Value
    width: int


def activation_memory(element_bytes: int | None = None, inputs: bool = True) -> Cost:
    """The peak of the bytes of activations that are alive at one time in a pass: what a microcontroller needs beside weights.

    A tensor is alive from the operation that makes it to the last one that reads it, outputs to the end; views lie where what they view
    does, and what is written in place takes no place of its own. ``inputs``: the model's inputs lie there too, until they are read last.
    ``element_bytes`` is how wide floating-point numbers are (1 for int8), else as they are. Not counted: parameters and buffers, results
    that nobody reads (places of maxima), and what a kernel needs for itself; attention counts as the operations that it is made of.

    Of channels and heads, what a plan promises is exact; of whole blocks it is what all of them need, which is never less. Masked weights
    change nothing. `activation_moments` tells which operation it is.

    >>> import torch
    >>> model, x = nn.Sequential(nn.Linear(4, 100), nn.ReLU(inplace=True), nn.Linear(100, 2)), torch.zeros(1, 4)
    >>> activation_memory()(model, x), activation_memory(element_bytes=1)(model, x), activation_memory(inputs=False)(model, x)
    (416.0, 104.0, 408.0)
    """
    _check("activation_memory", element_bytes, inputs)

    def prepare(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
        told = _alive(analyse(model, example), model, element_bytes, inputs)
        return lambda plan: max(told(plan), default=0.0)

    return Cost(f"activation_memory(element_bytes={element_bytes}, inputs={inputs})", "bytes", prepare)


def activation_moments(
    model: nn.Module, example: Any, plan: Plan | None = None, element_bytes: int | None = None, inputs: bool = True
) -> list[Moment]:
    """What is alive at each operation of a pass, in order; the largest is `activation_memory`.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    >>> max(activation_moments(model, torch.zeros(1, 4)), key=lambda moment: moment.bytes)
    Moment(module='1', operation='relu', bytes=800.0)
    """
    require("activation_moments", "model", model, MODEL)
    _check("activation_moments", element_bytes, inputs)
    structure = analyse(model, example)
    alive = _alive(structure, model, element_bytes, inputs)(plan)
    return [Moment(op.module, op.name, size) for op, size in zip(structure.trace.ops, alive, strict=True)]


def _check(who: str, element_bytes: int | None, inputs: bool) -> None:
    if element_bytes is not None:
        require(who, "element_bytes", element_bytes, COUNT)
        if element_bytes < 1:
            raise SecateursError(f"{who}: element_bytes={element_bytes}, but must be at least 1")
    if not isinstance(inputs, bool):
        raise SecateursError(f"{who}: inputs={inputs!r}, but must be True or False: whether the model's inputs count")


def _alive(structure: Structure, model: nn.Module, element_bytes: int | None, inputs: bool) -> Callable[[Plan | None], list[float]]:
    """The bytes that are alive at each operation, as a function of a plan."""
    sizes = {name: parameter.numel() for name, parameter in parameters_in(model).items()}
    storages, count = _storages(structure, element_bytes, inputs), len(structure.trace.ops)
    known: dict[frozenset[str], list[Numbers]] = {}
    fitting: list[object] = []  # the sizes that were last found to be this model's: a search asks about many plans of the same

    def alive(plan: Plan | None) -> list[float]:
        counts: Mapping[str, int] = {}
        if plan is not None:
            if not plan.extents or not any(plan.extents is each for each in fitting):
                checked(plan, sizes)
                fitting[:] = [plan.extents]
            counts = dict(plan)
        sites = frozenset(counts if plan is not None and plan.extents else ())
        if sites not in known:
            axes = known_axes(structure, plan)
            known[sites] = [numbers_of(structure.typing.types[each.holds], axes) for each in storages]
        change = [0.0] * (count + 1)
        for each, numbers in zip(storages, known[sites], strict=True):
            size = size_of(numbers, counts) * each.width
            change[each.first] += size
            change[each.last + 1] -= size
        return list(accumulate(change[:-1]))

    return alive


def _storages(structure: Structure, element_bytes: int | None, inputs: bool) -> list[_Storage]:
    """The memories that count; in a pass that computes nothing, none."""
    trace = structure.trace
    kept = {trace.storages[value] for value in (*trace.parameters.values(), *trace.buffers.values())}
    given = {trace.storages[value] for value in trace.inputs}
    holds: dict[int, Value] = {}
    for value, number in trace.storages.items():
        if number not in holds:
            holds[number] = value
    first, last, read = dict.fromkeys(given, 0), dict.fromkeys(given, 0), set(given)
    for place, op in enumerate(trace.ops):
        for value in op.outputs:
            if value in trace.storages:
                first.setdefault(trace.storages[value], place)
                last[trace.storages[value]] = place
        for value in op.inputs:
            if value in trace.storages:
                read.add(trace.storages[value])
                last[trace.storages[value]] = place
    for value in trace.outputs:
        read.add(trace.storages[value])
        last[trace.storages[value]] = max(0, len(trace.ops) - 1)
    counted = {number for number in read & first.keys() if number not in kept and (inputs or number not in given)}
    return [_Storage(first[each], last[each], holds[each], _width(holds[each], element_bytes)) for each in sorted(counted)]


def _width(value: Value, element_bytes: int | None) -> int:
    return element_bytes if element_bytes is not None and value.dtype.is_floating_point else value.dtype.itemsize
