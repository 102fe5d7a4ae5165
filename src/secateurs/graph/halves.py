"""The parts of a block that stand between its residual sums, such as its attention and its feed-forward half, found in the trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from secateurs.graph.calls import ModulePass
from secateurs.graph.ops import Op, Trace
from secateurs.nested import Value


@dataclass(frozen=True)
class Seen:
    """Where a value can be seen while a block runs: it is the tensor of that number that the module is given."""

    module: str
    number: int


@dataclass(frozen=True)
class Half:
    """A part of a block: the parameters that it reads and nothing before it or outside the block does, and where its result can be seen;
    ``None`` for that of the last part, which is what the block gives."""

    parameters: tuple[str, ...]
    result: Seen | None


def halves_of(trace: Trace, block: str) -> list[Half]:
    """A block in parts, in order: it is cut where all that follows depends on one sum alone, which goes on beside what is computed of it.

    A block whose branches are computed side by side, or that has but one, is one part.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import trace_of
    >>> class Branch(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.fc(x)
    >>> trace = trace_of(nn.Sequential(nn.Sequential(Branch(), Branch())), torch.zeros(1, 4))
    >>> [(half.parameters, half.result and half.result.module) for half in halves_of(trace, "0")]
    [(('0.0.fc.weight', '0.0.fc.bias'), '0.1'), (('0.1.fc.weight', '0.1.fc.bias'), None)]
    """
    here = next(each for each in trace.passes if each.module == block)
    ops = [trace.ops[place] for place in here.ops]
    cuts = [(value, seen) for value in _cuts(here, ops) if (seen := _seen(trace, here, value)) is not None]
    readers = {id(op) for op in ops}
    own = [
        (name, trace.readers.get(value, []))
        for name, value in trace.parameters.items()
        if trace.readers.get(value) and all(id(op) in readers for op in trace.readers[value])
    ]
    found: list[Half] = []
    taken: set[str] = set()
    for value, seen in [*cuts, (None, None)]:
        making = readers if value is None else _making(trace, value)
        names = tuple(name for name, reading in own if name not in taken and any(id(op) in making for op in reading))
        taken |= set(names)
        found.append(Half(names, seen))
    return [half for half in found if half.parameters]


def _cuts(here: ModulePass, ops: Sequence[Op]) -> list[Value]:
    """The sums in a block through which all that follows goes, in order."""
    result = here.gives[0]
    stream = [value for value in here.given if value.shape == result.shape][
        :1
    ]  # what else is given, as masks are, may be read anywhere
    inside = {value for op in ops for value in op.outputs}
    found: list[Value] = []
    for op in ops:
        both = [each for each in op.args[:2] if isinstance(each, Value)]
        if op.name != "add" or len(both) != 2 or both[0].shape != both[1].shape:
            continue
        for value, other in (both, both[::-1]):
            goes_on = value in inside and value is not result and value not in found and other in _after(ops, [value])
            if goes_on and prod(value.shape) == prod(result.shape) and result not in _after(ops, stream, without=value):
                found.append(value)
    return found


def _after(ops: Sequence[Op], starts: Iterable[Value], without: Value | None = None) -> set[Value]:
    """All values that are computed from some, not by way of one."""
    found = set(starts)
    for op in ops:
        if not found.isdisjoint(op.inputs):
            found.update(value for value in op.outputs if value is not without)
    return found


def _making(trace: Trace, value: Value) -> set[int]:
    """The operations that a value is made by, as objects' numbers."""
    found: set[int] = set()
    waiting = [value]
    while waiting:
        op = trace.makers.get(waiting.pop())
        if op is not None and id(op) not in found:
            found.add(id(op))
            waiting += op.inputs
    return found


def _seen(trace: Trace, here: ModulePass, value: Value) -> Seen | None:
    """The first module in a block that is given a value."""
    names = [each.module for each in trace.passes]
    given = [
        each
        for each in trace.passes
        if each.module.startswith(f"{here.module}.") and names.count(each.module) == 1 and any(one is value for one in each.given)
    ]
    if not given:
        return None
    first = min(given, key=lambda each: (each.ops.start, each.module.count(".")))
    return Seen(first.module, next(number for number, one in enumerate(first.given) if one is value))
