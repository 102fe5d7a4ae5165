"""The parts of a block that stand between its residual sums, such as its attention and its feed-forward half, found in the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from secateurs.graph.calls import ModulePass, Seen, seen
from secateurs.graph.ops import Op, Trace, after, making, summands
from secateurs.nested import Value


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
    cuts = [(value, where) for value in _cuts(here, ops) if (where := seen(trace.passes, value, block)) is not None]
    reading = {name: trace.read_at.get(value, []) for name, value in trace.parameters.items()}
    own = {name: places for name, places in reading.items() if places and all(place in here.ops for place in places)}
    found: list[Half] = []
    taken: set[str] = set()
    for value, where in [*cuts, (None, None)]:
        serving = here.ops if value is None else making(trace, value)[0]
        names = tuple(name for name, places in own.items() if name not in taken and any(place in serving for place in places))
        taken |= set(names)
        found.append(Half(names, where))
    return [half for half in found if half.parameters]


def _cuts(here: ModulePass, ops: Sequence[Op]) -> list[Value]:
    """The sums in a block through which all that follows goes, in order."""
    result = here.gives[0]
    # What else is given, as masks are, may be read anywhere.
    stream = ([value for value in here.given if value.shape == result.shape] or list(here.given))[:1]
    inside = {value for op in ops for value in op.outputs}
    found: list[Value] = []
    for op in ops:
        both = summands(op)
        for value, other in () if both is None else (both, both[::-1]):
            goes_on = value in inside and value is not result and value not in found and other in after(ops, [value])
            if goes_on and prod(value.shape) == prod(result.shape) and result not in after(ops, stream, without=value):
                found.append(value)
    return found
