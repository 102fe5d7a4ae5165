"""What attentions would keep of each place of a sequence: keys and values, as many heads of them as there are."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from secateurs.graph.axes import Dim
from secateurs.graph.ops import Op, Trace
from secateurs.graph.structure import Structure
from secateurs.nested import Value

_SHAPES = (
    "view",
    "_unsafe_view",
    "reshape",
    "clone",
    "detach",
    "alias",
    "transpose",
    "t",
    "permute",
    "expand",
    "unsqueeze",
    "squeeze",
)
_SCORES = (
    *("add", "mul", "div", "sub", "tanh", "where", "masked_fill", "cat"),
    *("view", "_unsafe_view", "reshape", "_to_copy", "clone", "expand"),
)
"""Operations between the product of queries and keys and the softmax: scales, masks, biases, caps."""


def keys_and_values(structure: Structure) -> list[tuple[int, int, list[Dim]]]:
    """For the keys and for the values of each attention, of one place of a sequence: where in the trace they meet the weights of the
    softmax, the bytes of a number, and the dimensions that weights of the model make.

    As they are before heads are repeated for the queries that share them: what a cache holds.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import analyse
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 5, 8)
    >>> [(size, prod(dim.size for dim in dims)) for _, size, dims in keys_and_values(analyse(attention, (x, x, x)))]
    [(4, 8), (4, 8)]
    """
    trace, made = structure.trace, set(structure.producers)
    found = []
    for place, key, value in _attentions(trace):
        for tensor in (key, value):
            kept = _before_repeats(trace, tensor)
            dims = [dim for dim in structure.typing.dims(kept) if any(axis in made for axis in dim.axes())]
            found.append((place, kept.dtype.itemsize, dims))
    return found


def attention_weights(structure: Structure) -> list[tuple[int, list[Dim]]]:
    """For each attention, where in the trace its weights meet the values, and their dimensions: heads, queries, keys, the batch before or
    with the heads.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import analyse
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 5, 8)
    >>> [[dim.size for dim in dims] for _, dims in attention_weights(analyse(attention, (x, x, x)))]
    [[2, 5, 5]]
    """
    found = ((place, _softmax(structure.trace, structure.trace.ops[place])) for place, _, _ in _attentions(structure.trace))
    return [(place, structure.typing.dims(softmax.outputs[0])) for place, softmax in found if softmax is not None]


def _attentions(trace: Trace) -> Iterator[tuple[int, Value, Value]]:
    """Place, keys and values of each product that takes what a softmax gives."""
    for place, op in enumerate(trace.ops):
        weights = _softmax(trace, op) if op.name in ("bmm", "mm", "baddbmm") else None
        scores = None if weights is None else _product(trace, weights.args[0])
        if scores is not None:
            yield place, scores.args[1], op.args[1]


def _softmax(trace: Trace, op: Op) -> Op | None:
    maker = trace.makers.get(op.args[0])
    while maker is not None and maker.name in (*_SHAPES, "mul", "div", "_to_copy", "slice"):
        maker = trace.makers.get(maker.args[0])
    return maker if maker is not None and "softmax" in maker.name else None


def _product(trace: Trace, value: Value) -> Op | None:
    """The product of two tensors that scores are made of."""
    waiting, seen = [value], set[Value]()
    while waiting:
        op = trace.makers.get(waiting.pop())
        if op is None or op.outputs[0] in seen:
            continue
        seen.add(op.outputs[0])
        if op.name in ("bmm", "baddbmm", "mm"):
            return op
        if op.name in _SCORES:
            waiting += [each for each in op.inputs if op.name == "cat" or prod(each.shape) == prod(op.outputs[0].shape)]
    return None


def _before_repeats(trace: Trace, value: Value) -> Value:
    """The smallest of the tensors that are these numbers in other shapes, the first that was made."""
    smallest = value
    while (op := trace.makers.get(value)) is not None:
        tensors = [each for each in op.inputs if prod(each.shape)]
        scaled = op.name in ("mul", "div") and len(op.inputs) == 1
        if not tensors or not (op.name in (*_SHAPES, "_to_copy") or scaled or (op.name == "cat" and len(tensors) == 1)):
            break
        value = tensors[0]
        if prod(value.shape) <= prod(smallest.shape):
            smallest = value
    return smallest
