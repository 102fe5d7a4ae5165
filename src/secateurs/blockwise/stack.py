"""What must be known of a stack of blocks to run it block by block, and the proof that this gives what the whole model gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateurs.graph import ModulePass, Trace, Value, after, trace_of
from secateurs.nested import leaves
from secateurs.types import SecateursError

_WAY_OUT = "prune without blocks (walk=in_order()), or skip it with skip=[...]"


@dataclass(frozen=True)
class Stack:
    """Blocks that follow on each other, and how the model is led past them without running them.

    ``stream`` is the place of the stream among the tensors that the first block is given. ``answers`` holds, for each block that need
    not be run to learn what the later ones are given beside the stream, what it gives with values in place of tensors, and the place
    of each value among the tensors that it is given; of the stream that is ``None``.
    """

    names: tuple[str, ...]
    stream: int
    answers: Mapping[str, tuple[Any, Mapping[Value, int | None]]]


@dataclass
class Stacks:
    """A stack as each kind of input shows it: one with a mask and one without may pass differently, and are traced apart.

    ``owners`` says in which block a parameter is pruned, ``changing`` names all that change from the first block on.
    """

    model: nn.Module
    names: tuple[str, ...]
    owners: Mapping[str, str]
    changing: frozenset[str]
    known: dict[Any, Stack] = field(default_factory=dict)

    def of(self, inputs: Any, trace: Trace | None = None) -> Stack:
        """The stack as inputs such as these pass it; raises as `stack_of` does."""
        kind = tuple(
            (path, (leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else repr(leaf))
            for path, leaf in leaves(inputs, objects=False)
        )
        if kind not in self.known:
            self.known[kind] = stack_of(trace or trace_of(self.model, inputs), self.names, self.owners, self.changing)
        return self.known[kind]


def stack_of(trace: Trace, names: tuple[str, ...], owners: Mapping[str, str], changing: Iterable[str]) -> Stack:
    """A stack from a trace of its model; ``owners`` says in which block a parameter is pruned, ``changing`` names all that will be.

    What a block is given beside the stream is taken from the model once, before any block is run; so nothing of it may depend on the
    stream or on what is pruned meanwhile, which is concluded from the trace. Raises `SecateursError` where it does, or a parameter that
    is pruned in one block is read elsewhere too.
    """
    passes = {each.module: each for each in trace.passes if each.module in names}
    where = {place: name for name, each in passes.items() for place in each.ops}
    _require_own(trace, owners, where)
    moving = _moving(trace, [passes[name] for name in names], changing)
    first = _stream_of_first(passes, names)
    streams = [passes[names[0]].given[first], *(passes[name].gives[0] for name in names[:-1])]
    for name, stream in zip(names, streams, strict=True):
        _require_settled(trace, passes[name], stream, moving)
    run = _run(trace, passes, where)
    answers = {name: found for name in names if name not in run and (found := _answer(passes[name])) is not None}
    return Stack(names, first, answers)


def _moving(trace: Trace, passes: list[ModulePass], changing: Iterable[str]) -> set[Value]:
    """Every value that is another one once some block was pruned."""
    streams = {each.gives[0] for each in passes}
    return after(trace.ops, streams | {trace.parameters[name] for name in changing if name in trace.parameters})


def _require_own(trace: Trace, pruned: Mapping[str, str], where: Mapping[int, str]) -> None:
    """Raise where a parameter that is pruned in one block is read outside it."""
    owners = {trace.parameters[name]: (name, block) for name, block in pruned.items() if name in trace.parameters}
    for place, op in enumerate(trace.ops):
        for value in op.inputs:
            name, block = owners.get(value, ("", None))
            if block is not None and where.get(place) != block:
                raise SecateursError(
                    f"{name} of block {block} is read in {where.get(place) or op.module or 'the model'} too ({op.where}), which would "
                    f"change while block {block} is pruned: {_WAY_OUT}"
                )


def _require_settled(trace: Trace, block: ModulePass, stream: Value, moving: set[Value]) -> None:
    """Raise where a block reads, beside the stream, what is another value once an earlier block was pruned."""
    inside = {value for place in block.ops for value in trace.ops[place].outputs} | set(trace.parameters.values())
    for place in block.ops:
        op = trace.ops[place]
        for value in op.inputs:
            if value in moving and value not in inside and value is not stream:
                maker = trace.makers.get(value)
                made = f"made in {maker.module or 'the model'} ({maker.where})" if maker is not None else "an input"
                raise SecateursError(
                    f"block {block.module} reads at {op.where} a tensor {value.shape}, {made}, that depends on what earlier blocks give, "
                    f"and not by the stream alone: it cannot be run by itself; {_WAY_OUT}"
                )


def _run(trace: Trace, passes: Mapping[str, ModulePass], where: Mapping[int, str]) -> set[str]:
    """The blocks of whose results, beside the stream, something is read outside them."""
    streams = {each.gives[0] for each in passes.values()}
    makers = {value: block for place, block in where.items() for value in trace.ops[place].outputs if value not in streams}
    return {
        makers[value]
        for place, op in enumerate(trace.ops)
        for value in op.inputs
        if value in makers and makers[value] != where.get(place)
    }


def _answer(block: ModulePass) -> tuple[Any, Mapping[Value, int | None]] | None:
    """What a block gives, where all but the stream is what it was given or says nothing."""
    stream, places = block.gives[0], {value: place for place, value in reversed(list(enumerate(block.given)))}
    simple = all(isinstance(leaf, (Value, str, bool, int, float, type(None))) for _, leaf in leaves(block.answer, objects=False))
    if not simple or any(value is not stream and value not in places for value in block.gives):
        return None
    return block.answer, {value: None if value is stream else places[value] for value in block.gives}


def _stream_of_first(passes: Mapping[str, ModulePass], names: tuple[str, ...]) -> int:
    """The place of the stream among what the first block is given: that of the second, where it fits."""
    first, size = passes[names[0]], passes[names[0]].gives[0].shape
    if len(names) > 1:
        place = next(place for place, value in enumerate(passes[names[1]].given) if value is first.gives[0])
        if place < len(first.given) and first.given[place].shape == size:
            return place
    return next((place for place, value in enumerate(first.given) if value.shape == size), 0)
