"""What is recorded: operations on values."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.graph.calls import ModuleCall, ModulePass
from secateurs.graph.size_calls import SizeCall
from secateurs.graph.tagged_sizes import Source
from secateurs.nested import Value, among


@dataclass(frozen=True)
class Op:
    """One call of an ATen operation, with values in place of tensors; ``where`` is the line of the user's code."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...]
    module: str
    where: str

    @functools.cached_property
    def name(self) -> str:
        return str(self.func.overloadpacket).removeprefix("aten.")

    @functools.cached_property
    def inputs(self) -> tuple[Value, ...]:
        """Every value among the arguments."""
        found: list[Value] = []
        for item in (*self.args, *self.kwargs.values()):
            if type(item) is Value:
                found.append(item)
            elif type(item) in (tuple, list, dict):
                found.extend(among(item, Value))
        return tuple(found)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by the name that the operation's schema gives it."""
        declared = _declared(self.func).get(name)
        if declared is None:
            return default
        place, usual = declared
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, *(usual or (default,)))


@functools.cache
def _declared(func: Any) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """The arguments of an operation: name → its place, and its default value if it has one."""
    arguments = enumerate(func._schema.arguments)
    return {each.name: (place, (each.default_value,) if each.has_default_value() else ()) for place, each in arguments}


@dataclass
class Trace:
    """The operations of one forward pass in order; which values are parameters, buffers, inputs and outputs.

    Each value is written once: it is the output of one operation, or was there before, and what an operation reads is what is there at
    that time. In-place operations are told as those that are none (``relu_`` is ``relu`` with a new value), ``out=`` as the operation and
    a ``copy``; what was written through a view comes into its base by ``slice_scatter``, ``select_scatter`` and their like, and other
    views of it are taken anew where they are read. Where no such operation fits it is ``as_strided_scatter`` and ``as_strided``, after
    which anything may be anywhere in that memory. ``written`` are parameters and buffers that the pass writes, and what they are at its
    end: the next pass begins with that, so that they are no constants.

    ``calls`` are those of its modules, ``passes`` all tensors that go into them and come out; ``sized`` is where the code first computes
    with a size, if it does, so that it may do something else at another one. ``sizes`` are the calls that take sizes; ``computed``, the
    attributes that the code divides by or takes a root of; ``measured``, the dimensions whose size it computes with, and where;
    ``floats``, each module's attributes that are floating-point numbers.
    """

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    passes: list[ModulePass] = field(default_factory=list)
    sizes: list[SizeCall] = field(default_factory=list)
    sized: str | None = None
    parameters: dict[str, Value] = field(default_factory=dict)
    buffers: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    written: dict[str, Value] = field(default_factory=dict)
    computed: set[Source] = field(default_factory=set)
    measured: dict[tuple[Value, int], str] = field(default_factory=dict)
    floats: dict[str, set[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    storages: dict[Value, int] = field(default_factory=dict)
    fake: bool = True

    @functools.cached_property
    def makers(self) -> dict[Value, Op]:
        """Value → the operation that makes it."""
        return {value: op for op in self.ops for value in op.outputs}

    @functools.cached_property
    def made_at(self) -> dict[Value, int]:
        """Value → the place of the operation that makes it."""
        return {value: place for place, op in enumerate(self.ops) for value in op.outputs}

    @functools.cached_property
    def read_at(self) -> dict[Value, list[int]]:
        """Value → the places of the operations that read it, in order."""
        found: dict[Value, list[int]] = {}
        for place, op in enumerate(self.ops):
            for value in dict.fromkeys(op.inputs):
                found.setdefault(value, []).append(place)
        return found

    @functools.cached_property
    def readers(self) -> dict[Value, list[Op]]:
        """Value → the operations that read it, in order."""
        return {value: [self.ops[place] for place in places] for value, places in self.read_at.items()}


SAME_NUMBERS = ("view", "_unsafe_view", "reshape", "clone", "detach", "alias", "_to_copy")
"""Operations that give the numbers of their operand in another shape or type."""


def summands(op: Op) -> tuple[Value, Value] | None:
    """The two tensors of one shape that an operation adds, as at the end of a residual branch; ``None`` where it does nothing like that."""
    both = [each for each in op.args[:2] if isinstance(each, Value)]
    return (both[0], both[1]) if op.name == "add" and len(both) == 2 and both[0].shape == both[1].shape else None


def after(ops: Iterable[Op], starts: Iterable[Value], without: Value | None = None) -> set[Value]:
    """Some values and all that is computed from them, but by way of ``without``."""
    found = set(starts)
    for op in ops:
        if not found.isdisjoint(op.inputs):
            found.update(value for value in op.outputs if value is not without)
    return found


def making(trace: Trace, value: Value, stops: Container[Value] = ()) -> tuple[set[int], set[Value]]:
    """The places of the operations that make a value, up to where they read one of ``stops``; and which of these they read."""
    ops: set[int] = set()
    reached: set[Value] = set()
    waiting = [value]
    while waiting:
        place = trace.made_at.get(waiting.pop())
        if place is None or place in ops:
            continue
        ops.add(place)
        for each in trace.ops[place].inputs:
            if each in stops:
                reached.add(each)
            else:
                waiting.append(each)
    return ops, reached


def used(trace: Trace) -> list[bool]:
    """Which operations' results find their way into the outputs, or into what the next pass begins with."""
    needed, found = {*trace.outputs, *trace.written.values()}, []
    for op in reversed(trace.ops):
        found.append(any(value in needed for value in op.outputs))
        if found[-1]:
            needed.update(op.inputs)
    return found[::-1]
