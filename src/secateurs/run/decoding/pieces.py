"""A decoder as it was recorded for a whole sequence, cut into what some tokens need that come after others.

Every step is shown to treat tokens one by one, or to be causal attention, which sees those before through their keys and values. So what
holds for the sequence holds for a piece of it, wherever it begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import Value, leaves
from secateurs.run.network.error import CompileError
from secateurs.run.network.nodes import (
    Activate,
    Add,
    Attention,
    Linear,
    Multiply,
    Network,
    Node,
    Norm,
    Past,
    Rotary,
    Torch,
    inputs_of,
    needed,
    outputs_of,
    with_values,
)

aten = torch.ops.aten

_OF_NUMBERS = (aten.add, aten.sub, aten.mul, aten.div, aten.tanh, aten.clone)
"""Operations of torch that treat each number alone, save for constants that they take beside."""
_MOVING = (aten.reshape, aten.view, aten.permute, aten.transpose, aten.slice, aten.expand, aten.clone, aten.cat, aten.split)
"""Operations that only move numbers."""


@dataclass(frozen=True)
class Sequence:
    """A decoder for a sequence of ``length`` tokens: ``body`` makes what the ``head`` turns into logits, followed by ``tail``.

    ``tables`` are constants that have a row for each position.
    """

    length: int
    body: tuple[Node, ...]
    head: Linear
    tail: tuple[Node, ...]
    logits: Value
    ids: Value
    constants: Mapping[Value, Tensor]
    tables: Mapping[Value, Tensor]


@dataclass(frozen=True)
class Piece:
    """What ``count`` tokens need, as a network: of their ids, their position, their rows of ``tables`` and what is kept of earlier ones."""

    network: Network
    count: int
    tables: tuple[Value, ...]
    layers: tuple[Past, ...]


def sequence_of(network: Network, logits: Value) -> Sequence:
    """The parts of a recorded decoder that make its logits (1, length, words).

    Raises `CompileError` for a step that may mix tokens in another way than causal attention does.
    """
    (ids,) = network.inputs
    nodes = needed(replace(network, result=logits)).nodes
    flowing = {ids, *(value for node in nodes for value in outputs_of(node))}
    tables: dict[Value, Tensor] = {}
    wrong: list[tuple[bool, CompileError]] = []
    for node in nodes:
        try:
            _check(node, flowing, network, ids.shape[1], tables)
        except CompileError as error:  # what only moves numbers is there for something else, which tells more
            wrong.append((_packet(node) in _MOVING, error))
    if wrong:
        raise min(wrong, key=lambda pair: pair[0])[1]
    heads = [place for place, node in enumerate(nodes) if isinstance(node, Linear)]
    head = nodes[heads[-1]] if heads else None
    if not isinstance(head, Linear) or head.residual is not None:
        raise CompileError("no linear layer makes the logits: a decoder ends in one")
    tail = _after(nodes, head)
    body = tuple(node for node in nodes if node is not head and node not in tail)
    constants = {value: tensor for value, tensor in network.constants.items() if value not in tables}
    return Sequence(ids.shape[1], body, head, tail, logits, ids, constants, tables)


def piece_of(sequence: Sequence, count: int, room: int) -> Piece:
    """The piece of ``count`` tokens, with room for ``room`` of them and those before."""
    now: dict[Value, Value] = {}

    def sized(value: Value) -> Value:
        if value in sequence.constants:
            return value
        if value not in now:
            shape = (1, count, *value.shape[2:]) if len(value.shape) > 1 else value.shape
            shape = (count, *value.shape[1:]) if value in sequence.tables and value.shape[0] == sequence.length else shape
            now[value] = Value(shape, value.dtype)
        return now[value]

    position, layers, nodes = Value((1,)), list[Past](), list[Node]()
    for node in sequence.body:
        made = with_values(node, sized)
        if isinstance(made, Attention):
            layers.append(Past(position, *(Value((room, made.keys.shape[-1])) for _ in range(2))))
            made = replace(made, past=layers[-1])
        nodes.append(made)
    tables = tuple(sized(value) for value in sequence.tables)
    kept = [value for past in layers for value in (past.keys, past.values)]
    inputs = (sized(sequence.ids), position, *tables, *kept)
    network = Network(inputs, nodes, sized(sequence.head.x), dict(sequence.constants), inputs)
    return Piece(network, count, tables, tuple(layers))


def ending(sequence: Sequence) -> Network:
    """From what the head takes of one token, (1, 1, channels), to its logits."""
    now: dict[Value, Value] = {}

    def sized(value: Value) -> Value:
        if value in sequence.constants:
            return value
        return now.setdefault(value, Value((1, 1, *value.shape[2:]), value.dtype))

    nodes = [with_values(node, sized) for node in (sequence.head, *sequence.tail)]
    x = sized(sequence.head.x)
    return Network((x,), nodes, sized(sequence.logits), dict(sequence.constants), x)


def vocabulary(sequence: Sequence) -> int | None:
    """How many words the tables have that are asked for the tokens themselves; None without such a table."""
    looked_up = (node for node in sequence.body if isinstance(node, Torch) and node.function is aten.embedding.default)
    return min((node.args[0].shape[0] for node in looked_up if node.args[1] is sequence.ids), default=None)


def _after(nodes: list[Node], head: Node) -> tuple[Node, ...]:
    made, found = set(outputs_of(head)), []
    for node in nodes[nodes.index(head) + 1 :]:
        if not made.isdisjoint(inputs_of(node)):
            made.update(outputs_of(node))
            found.append(node)
    return tuple(found)


# ---------------------------------------------------------------- what treats tokens one by one


def _check(node: Node, flowing: set[Value], network: Network, length: int, tables: dict[Value, Tensor]) -> None:
    """Raise unless a step treats tokens one by one, or is causal attention; note which of its constants have a row for each position."""
    if not outputs_of(node):
        raise _refusal(node, "writes into memory that others read")
    moved = (*(value for value in inputs_of(node) if value in flowing), *outputs_of(node)[:1])
    for value in moved:
        if value.shape[:2] != (1, length):
            raise _refusal(node, f"makes or takes {value.shape}, which is not (1, {length} tokens, ...)")
    if (
        _packet(node) is not aten.embedding and len({len(value.shape) for value in moved}) > 1
    ):  # what broadcasts has its tokens elsewhere
        raise _refusal(node, f"takes numbers of tokens beside vectors of tokens: {', '.join(str(value.shape) for value in moved)}")
    if not isinstance(node, Torch) and len(moved[-1].shape) != 3:
        raise _refusal(node, f"makes {moved[-1].shape}, which is not (1, {length} tokens, channels)")
    if isinstance(node, Torch):
        _check_torch(node, flowing, network, length, tables)
    elif isinstance(node, Attention):
        if not node.causal:
            raise _refusal(node, "lets tokens see those after them")
    elif isinstance(node, (Rotary, Add, Multiply)):
        for value in inputs_of(node):
            if value not in flowing:
                tables[value] = network.constants[value]
    elif not isinstance(node, (Linear, Norm, Activate)):
        raise _refusal(node, "is none that is known to treat tokens one by one")


def _check_torch(node: Torch, flowing: set[Value], network: Network, length: int, tables: dict[Value, Tensor]) -> None:
    if _packet(node) is aten.embedding:
        if node.args[0] in flowing or node.args[1] not in flowing:
            raise _refusal(node, "looks up what depends on the input")
        return
    if _packet(node) not in _OF_NUMBERS:
        raise _refusal(node, "is none that is known to treat tokens one by one")
    for value in inputs_of(node):
        if value in flowing:
            continue
        rank = len(node.outputs[0].shape)
        shape = (1,) * (rank - len(value.shape)) + value.shape
        if rank == 3 and shape[:2] == (1, length):
            tables[value] = network.constants[value]
        elif shape[:2] != (1, 1):
            raise _refusal(node, f"takes a constant of {tuple(value.shape)}")


def _packet(node: Node) -> Any:
    """Which operation of torch a step is, whatever its kind of arguments; None for a kernel's."""
    return getattr(node.function, "overloadpacket", None) if isinstance(node, Torch) else None


def _refusal(node: Node, why: str) -> CompileError:
    called = type(node).__name__.lower()
    if isinstance(node, Torch):
        called = str(getattr(node.function, "overloadpacket", node.function)).removeprefix("aten.")
        if "attention" in called:
            why = "has a mask, or is of a kind that the kernels do not know: " + why
    return CompileError(
        f"{node.name or 'the model'}: {called} {why}, so tokens cannot be run one after the other with what is kept of earlier ones; "
        "run whole sequences with sc.run.compile(model, example)"
    )


def logits_of(network: Network, length: int) -> Value:
    """The first value of a result that has numbers for each token."""
    for _, value in leaves(network.result):
        if isinstance(value, Value) and value.dtype.is_floating_point and len(value.shape) == 3 and value.shape[:2] == (1, length):
            return value
    raise CompileError(f"the model returns nothing of the shape (1, {length} tokens, words): it is no decoder")
