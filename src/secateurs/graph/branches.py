"""Residual branches: what a network computes from a stream of numbers and adds to it, found in the additions of a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from secateurs.graph.ops import SAME_NUMBERS, Op, Trace, after, making, summands, used
from secateurs.graph.structure import Structure
from secateurs.nested import Value


@dataclass(frozen=True)
class Operand:
    """A tensor at an addition: its place in the trace, and which operand it is; ``None`` for the result."""

    place: int
    which: int | None


@dataclass(frozen=True)
class Branch:
    """Something that is computed from the stream and added to it.

    ``added`` is what it adds, ``before`` the stream that it is computed from, each with the addition where it can be seen. ``ops`` are the
    places of all operations that serve it, ``parameters`` those that serve nothing else; ``shared`` tells that it has others too.
    ``attends``: places of a sequence see each other in it, through a softmax.
    """

    added: Value
    seen_added: Operand
    seen_before: Operand
    ops: frozenset[int]
    parameters: tuple[str, ...]
    shared: bool
    attends: bool


@dataclass(frozen=True)
class Branches:
    """The residual branches of a model in the order of the pass; and the places of sums whose parts are computed side by side, so that
    nothing passes unchanged."""

    found: tuple[Branch, ...]
    unlike: tuple[int, ...]


@dataclass
class _Sum:
    """Sums of sums: the places of the additions, the parts that are no sums themselves, and every value that is one of these."""

    places: list[int]
    parts: dict[Operand, Value]
    within: set[Value] = field(default_factory=set)


def branches_of(structure: Structure) -> Branches:
    """Every residual branch of a model.

    A sum of tensors of one shape has a branch where one of its parts is computed from another one by weights. Sums of sums are looked
    at together, so that branches side by side count each for itself.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import analyse
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + self.fc(x).relu()
    >>> branch, = branches_of(analyse(Residual(), torch.zeros(1, 4))).found
    >>> branch.parameters, branch.attends
    (('fc.weight', 'fc.bias'), False)
    """
    trace = structure.trace
    sums = _sums(trace)
    streams = [each for each in sums if any(reached for _, reached in _parts(trace, each).values())]
    drafts: list[tuple[Operand, Operand, frozenset[int]]] = []
    for each in streams:
        around = _elsewhere(trace, each, streams) if len(streams) > 1 else set()
        made = _parts(trace, each, around)
        drafts += [(part, _seen(trace, each, reached), frozenset(ops)) for part, (ops, reached) in made.items() if reached]
    found = [_branch(trace, draft, drafts) for draft in drafts]
    ordered = sorted((each for each in found if each.parameters or each.shared), key=lambda each: max(each.ops))
    others = [each for each in sums if not any(each is one for one in streams)]
    unlike = [each.places[-1] for each in others if _weighed(trace, structure, each)]
    return Branches(tuple(ordered), tuple(unlike))


def serving_alone(trace: Trace, branches: Sequence[Branch], others: Sequence[Branch]) -> tuple[str, ...]:
    """The parameters that serve some branches and nothing else in a model, in the order of the model."""
    inside = frozenset[int]().union(*(each.ops for each in branches))
    outside = frozenset[int]().union(*(each.ops for each in others))
    reading = {name: trace.read_at.get(value, []) for name, value in trace.parameters.items()}
    return tuple(name for name, places in reading.items() if places and all(place in inside - outside for place in places))


def additions(trace: Trace) -> dict[int, tuple[str, int]]:
    """Place of each addition of two tensors → the module that does it, and how many it did before in the pass."""
    done: Counter[str] = Counter()
    found: dict[int, tuple[str, int]] = {}
    for place, op in enumerate(trace.ops):
        if op.name == "add" and all(isinstance(each, Value) for each in op.args[:2]):
            found[place] = (op.module, done[op.module])
            done[op.module] += 1
    return found


def _sums(trace: Trace) -> list[_Sum]:
    """The sums of tensors of one shape; those that are parts of others are one with them."""
    makers: dict[Value, _Sum] = {}
    needed = used(trace)
    for place, op in enumerate(trace.ops):
        if not needed[place] or not _is_sum(op):
            continue
        here = _Sum([place], {}, {op.outputs[0]})
        for which, operand in enumerate(op.args[:2]):
            here.within |= _names(trace, operand)
            inner = makers.get(_source(trace, operand))
            if inner is None:
                here.parts[Operand(place, which)] = operand
            elif not set(inner.places) <= set(here.places):
                here = _Sum([*inner.places, *here.places], {**inner.parts, **here.parts}, inner.within | here.within)
        for each in here.places:
            makers[trace.ops[each].outputs[0]] = here
    return list({id(each): each for each in makers.values()}.values())


def _is_sum(op: Op) -> bool:
    both = summands(op)
    return both is not None and len(both[0].shape) > 1


def _source(trace: Trace, value: Value) -> Value:
    """The value whose numbers these are."""
    while (op := trace.makers.get(value)) is not None and op.name in SAME_NUMBERS and isinstance(op.args[0], Value):
        value = op.args[0]
    return value


def _names(trace: Trace, value: Value) -> set[Value]:
    """A value, and every earlier one that is the same numbers."""
    found = {value}
    while (op := trace.makers.get(value)) is not None and op.name in SAME_NUMBERS and isinstance(op.args[0], Value):
        value = op.args[0]
        found.add(value)
    return found


def _parts(trace: Trace, here: _Sum, around: set[Value] | None = None) -> dict[Operand, tuple[set[int], set[Value]]]:
    """Each part of a sum: what makes it from the others, or from what lies ``around``; and which of the others."""
    found = {}
    for part, value in here.parts.items():
        stops = here.within - _names(trace, value)
        ops, reached = making(trace, value, stops | (around or set()))
        found[part] = ops, reached & stops
    return found


def _elsewhere(trace: Trace, here: _Sum, streams: Sequence[_Sum]) -> set[Value]:
    """The sums of other streams that do not depend on this one: an encoder's, to a decoder that reads what comes of it."""
    following = after(trace.ops, here.within)
    results = [trace.ops[place].outputs[0] for each in streams if each is not here for place in each.places]
    return {value for value in results if value not in following}


def _seen(trace: Trace, here: _Sum, reached: set[Value]) -> Operand:
    """Where the stream can be seen of which a branch has read these values: the last of them."""
    sources = {_source(trace, each) for each in reached}
    results = [place for place in here.places if trace.ops[place].outputs[0] in sources]
    if results:
        return Operand(max(results), None)
    return next(part for part, value in here.parts.items() if _source(trace, value) in sources)


def _branch(
    trace: Trace,
    draft: tuple[Operand, Operand, frozenset[int]],
    drafts: Sequence[tuple[Operand, Operand, frozenset[int]]],
) -> Branch:
    added, before, ops = draft
    alone = ops.difference(*(other for part, _, other in drafts if part is not added))
    reading = {
        name: places for name, value in trace.parameters.items() if not ops.isdisjoint(places := trace.read_at.get(value, []))
    }
    own = tuple(name for name, places in reading.items() if all(place in alone for place in places))
    attends = any(trace.ops[place].name in ("bmm", "baddbmm") and _weighs(trace, trace.ops[place]) for place in ops)
    value = trace.ops[added.place].args[added.which or 0]
    return Branch(value, added, before, ops, own, len(own) < len(reading), attends)


def _weighs(trace: Trace, op: Op) -> bool:
    """Whether a product takes what a softmax gives as it is."""
    value = op.args[0]
    while (maker := trace.makers.get(value)) is not None and maker.name in (*SAME_NUMBERS, "expand", "mul", "div"):
        value = maker.args[0]
    return maker is not None and "softmax" in maker.name


def _weighed(trace: Trace, structure: Structure, here: _Sum) -> bool:
    """Whether a part of a sum is computed by weights of its own from what the other parts are computed from, and depends on the input."""
    made = [making(trace, value)[0] for value in here.parts.values()]
    common = set.intersection(*made)
    reads = set(trace.parameters.values())
    own = any(value in reads for ops in made for place in ops - common for value in trace.ops[place].inputs)
    return own and any(not structure.typing.is_fixed(value) for place in common for value in trace.ops[place].outputs)
