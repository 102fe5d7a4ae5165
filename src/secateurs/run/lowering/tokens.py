"""What language models are made of between their linear layers: normalisations, rotary embeddings, gates and attention, recognised in the
operations that spell them, whatever their modules are called.

A value of heads, (batch, heads, tokens, size), is taken back to the (batch, tokens, heads * size) that a linear layer made; so
nothing is moved to where heads come first and back. What nothing reads any more is left out in the end; what something else reads too
stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from secateurs.nested import Value, changed
from secateurs.run.lowering.draft import reshape
from secateurs.run.lowering.reading import Reading
from secateurs.run.network.nodes import (
    Activate,
    Add,
    Attention,
    Linear,
    Multiply,
    Network,
    Node,
    Norm,
    Rotary,
    Torch,
    inputs_of,
    needed,
    outputs_of,
)

aten = torch.ops.aten

Made = list[Node] | Value | None
"""What takes a node's place: other nodes, the last of which make its outputs; a value that is there already; nothing."""


def of_tokens(network: Network) -> Network:
    """The same network with these steps in place of the operations that spell them.

    >>> from secateurs.run.lowering.lower import lower
    >>> from secateurs.run.recording.one_call import network_of
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    >>> [type(node).__name__ for node in lower(network_of(model, torch.zeros(1, 3, 8))).nodes]
    ['Linear', 'Norm', 'Linear']
    """
    reading = Reading(network)
    nodes: list[Node] = []
    for node in network.nodes:
        node = reading.current(node)
        made = _in_place_of(reading, node)
        if isinstance(made, Value):
            reading.now[outputs_of(node)[0]] = made
            continue
        for each in made or [node]:
            nodes.append(each)
            reading.makers.update(dict.fromkeys(outputs_of(each), each))
    result = changed(network.result, lambda value: reading.now.get(value, value), objects=True)
    return _ordered(needed(replace(network, nodes=nodes, result=result, constants={**network.constants, **reading.added})))


def _in_place_of(reading: Reading, node: Node) -> Made:
    """What the first rule that knows the node gives."""
    if reading.written.isdisjoint((*inputs_of(node), *outputs_of(node))):
        for rule in _RULES:
            made = rule(reading, node)
            if made is not None:
                return made
    return None


# ---------------------------------------------------------------- normalisations


def _root_mean_square(reading: Reading, node: Node) -> Made:
    """``x * rsqrt(mean(x ** 2) + eps)``, and a weight after it."""
    for x, other in _factors(node):
        maker, weight = reading.maker(x), reading.number(other)
        bare = isinstance(maker, Norm) and maker.bias is None and bool((maker.weight == 1).all())
        if isinstance(maker, Norm) and bare and weight is not None and weight.shape == x.shape[-1:] and maker.groups == 1:
            made = replace(maker, name=node.name, weight=weight, out=outputs_of(node)[0])
            return _norm_of_heads(reading, made) or [made]
        eps = _inverse_root(reading, x, other)
        if eps is not None:
            return [Norm(node.name, x, outputs_of(node)[0], torch.ones(x.shape[-1]), None, eps, centred=False)]
    return None


def _inverse_root(reading: Reading, x: Value, value: Value) -> float | None:
    """Eps, where a value is ``rsqrt(mean(x ** 2) + eps)`` over the last dimension."""
    root = reading.torchs(value, aten.rsqrt.default)
    plus = None if root is None else reading.torchs(root.args[0], aten.add.Tensor)
    if plus is None or plus.kwargs or len(plus.args) != 2 or not isinstance(plus.args[1], (int, float)):
        return None
    mean = reading.torchs(plus.args[0], aten.mean.dim)
    if mean is None or mean.kwargs or len(mean.args) != 3 or not mean.args[2]:
        return None
    if [axis % len(x.shape) for axis in mean.args[1]] != [len(x.shape) - 1]:
        return None
    square = reading.torchs(mean.args[0], aten.pow.Tensor_Scalar, aten.mul.Tensor)
    if square is None or square.args[0] is not x:
        return None
    if square.args[1] != 2 if square.function is aten.pow.Tensor_Scalar else square.args[1] is not x:
        return None
    return float(plus.args[1])


def _layer_norm(reading: Reading, node: Node) -> Made:
    if not isinstance(node, Torch) or node.function is not aten.native_layer_norm.default:
        return None
    x, shape, weight, bias, eps = node.args
    numbers = [None if each is None else reading.number(each) for each in (weight, bias)]
    unknown = any(each is not None and found is None for each, found in zip((weight, bias), numbers, strict=True))
    if unknown or len(shape) != 1 or x.dtype != torch.float32 or any(map(reading.is_read, node.outputs[1:])):
        return None
    scale = torch.ones(shape[0]) if numbers[0] is None else numbers[0]
    return [Norm(node.name, x, node.outputs[0], scale, numbers[1], float(eps), centred=True)]


def _norm_of_heads(reading: Reading, node: Norm) -> list[Node] | None:
    """A normalisation of each head alone, of what a linear layer made."""
    found = reading.flat(node.x)
    if found is None:
        return None
    x, heads = found
    flat = Value(x.shape)
    return [replace(node, x=x, out=flat, groups=heads), reshape(node.name, flat, node.out)]


# ---------------------------------------------------------------- products and sums


def _gate(reading: Reading, node: Node) -> Made:
    """A product of two values of one shape."""
    for x, y in _factors(node)[:1]:
        if x.shape == y.shape == outputs_of(node)[0].shape and reading.number(x) is None and reading.number(y) is None:
            return [Multiply(node.name, x, y, outputs_of(node)[0])]
    return None


def _factors(node: Node) -> list[tuple[Value, Value]]:
    """Both orders of the operands of a product in float32."""
    if isinstance(node, Multiply):
        return [(node.x, node.y), (node.y, node.x)]
    if not isinstance(node, Torch) or node.function is not aten.mul.Tensor or node.kwargs:
        return []
    x, y = node.args
    floats = isinstance(x, Value) and isinstance(y, Value) and x.dtype == y.dtype == torch.float32
    return [(x, y), (y, x)] if floats and x.shape and y.shape else []


def _terms(node: Node) -> list[tuple[Value, Value]]:
    """Both orders of the operands of a sum."""
    if isinstance(node, Add) and node.activation is None:
        return [(node.x, node.y), (node.y, node.x)]
    return []


# ---------------------------------------------------------------- rotary embeddings


def _rotary(reading: Reading, node: Node) -> Made:
    """``x * cos + cat(-second half of x, first half) * sin`` for each head."""
    for plain, turned in _terms(node):
        for x, cos in _product(reading, plain):
            for half_turned, sin in _product(reading, turned):
                if _turned(reading, half_turned) is x:
                    made = _rotated(reading, node, x, cos, sin)
                    if made is not None:
                        return made
    return None


def _product(reading: Reading, value: Value) -> list[tuple[Value, Value]]:
    maker = reading.maker(value)
    return [] if maker is None else _factors(maker)


def _turned(reading: Reading, value: Value) -> Value | None:
    """X, where a value is the concatenation of the second half of its last dimension, negated, and the first."""
    joined = reading.torchs(value, aten.cat.default)
    if joined is None or len(joined.args[0]) != 2 or _axis(joined, 1) != len(value.shape) - 1:
        return None
    negated, first = joined.args[0]
    minus = reading.torchs(negated, aten.neg.default)
    one = _slice_of(reading, first)
    two = None if minus is None else _slice_of(reading, minus.args[0])
    half = value.shape[-1] // 2
    if one is None or two is None or one[0] is not two[0] or one[0].shape != value.shape:
        return None
    return one[0] if one[1:] == (0, half) and two[1:] == (half, 2 * half) else None


def _slice_of(reading: Reading, value: Any) -> tuple[Value, int, int] | None:
    """What a value is a part of along the last dimension, and from where to where."""
    part = reading.torchs(value, aten.slice.Tensor)
    return None if part is None else _range(part)


def _range(part: Torch) -> tuple[Value, int, int] | None:
    """What a slice is of, and from where to where along the last dimension; nothing where it is along another, or leaves some out."""
    if (len(part.args) > 4 and part.args[4] != 1) or part.kwargs:
        return None
    x, axis, start, end = [*part.args, *[0, None, None][len(part.args) - 1 :]][:4]
    size = x.shape[-1]
    if axis % len(x.shape) != len(x.shape) - 1:
        return None
    first, last = (0 if start is None else start), (size if end is None else min(end, size))
    return x, first % size if first < 0 else first, last % size if last < 0 else last


def _axis(node: Torch, place: int) -> int:
    axis = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return axis % len(node.outputs[0].shape)


def _rotated(reading: Reading, node: Node, x: Value, cos: Value, sin: Value) -> Made:
    """Heads as a linear layer made them, turned; ``x`` may be the first part of each."""
    part = _slice_of(reading, x)
    whole = x if part is None else part[0]
    if part is not None and part[1] != 0:
        return None
    found = reading.tokens_of(whole)
    heads_first = found is not None
    found = found or reading.flat(whole)
    if found is None:
        return None
    flat, heads = found
    angles = [reading.angles(each, flat.shape, x.shape[-1], heads_first) for each in (cos, sin)]
    if angles[0] is None or angles[1] is None:
        return None
    out = Value(flat.shape)
    turned = Rotary(node.name, flat, angles[0], angles[1], out, heads)
    if part is None:
        return [turned, *_as_heads(node.name, out, heads, outputs_of(node)[0], heads_first)]
    all_heads = Value(whole.shape)
    last = len(whole.shape) - 1
    cut = Torch(node.name, aten.slice.Tensor, (all_heads, last, 0, x.shape[-1]), {}, outputs_of(node))
    return [turned, *_as_heads(node.name, out, heads, all_heads, heads_first), cut]


def _as_heads(name: str, flat: Value, heads: int, out: Value, heads_first: bool) -> list[Node]:
    """(batch, tokens, heads * size) as (batch, tokens, heads, size), or with heads before tokens."""
    batch, tokens, channels = flat.shape
    if not heads_first or heads == 1:
        return [reshape(name, flat, out)]
    apart = Value((batch, tokens, heads, channels // heads))
    return [reshape(name, flat, apart), Torch(name, aten.permute.default, (apart, [0, 2, 1, 3]), {}, (out,))]


def _partly_rotary(reading: Reading, node: Node) -> Made:
    """The turned part of each head and the rest of it, joined again."""
    if not isinstance(node, Torch) or node.function is not aten.cat.default or len(node.args[0]) != 2:
        return None
    turned, rest = node.args[0]
    one, other = _slice_of(reading, turned), _slice_of(reading, rest)
    if one is None or other is None or _axis(node, 1) != len(node.outputs[0].shape) - 1 or one[0].shape != node.outputs[0].shape:
        return None
    found, before = reading.tokens_of(one[0]), reading.tokens_of(other[0])
    if found is None and before is None:
        found, before = reading.flat(one[0]), reading.flat(other[0])
    maker = None if found is None else reading.maker(found[0])
    if before is None or not isinstance(maker, Rotary) or maker.x is not before[0]:
        return None
    width = maker.cos.shape[-1]
    return one[0] if one[1:] == (0, width) and other[1:] == (width, one[0].shape[-1]) else None


# ---------------------------------------------------------------- attention


def _attention(reading: Reading, node: Node) -> Made:
    """Attention without a mask, of heads that linear layers made."""
    if not isinstance(node, Torch) or node.function is not aten._scaled_dot_product_flash_attention_for_cpu.default:
        return None
    query, key, value, *more = node.args
    dropout, causal = (more[0] if more else 0.0), (more[1] if len(more) > 1 else False)
    if dropout or node.kwargs.get("attn_mask") is not None or any(map(reading.is_read, node.outputs[1:])):
        return None
    one, two, three = reading.tokens_of(query), reading.tokens_of(key, shared=True), reading.tokens_of(value, shared=True)
    if one is None or two is None or three is None:
        return None
    (x, heads), (keys, of_keys), (values, of_values) = one, two, three
    if any(each.dtype != torch.float32 for each in (x, keys, values)):
        return None
    if x.shape[:2] != keys.shape[:2] or keys.shape != values.shape or of_keys != of_values or heads % of_keys:
        return None
    if x.shape[-1] // heads != keys.shape[-1] // of_keys:
        return None
    scale = node.kwargs.get("scale")
    scale = (x.shape[-1] // heads) ** -0.5 if scale is None else float(scale)
    out = Value(x.shape)
    made = Attention(node.name, x, keys, values, out, heads, of_keys, scale, bool(causal))
    return [made, *_as_heads(node.name, out, heads, node.outputs[0], heads_first=True)]


def _turned_back(reading: Reading, node: Node) -> Made:
    """Heads after tokens again: what was before they came first. And a reshape of a reshape to the first shape."""
    if not isinstance(node, Torch) or node.function not in (aten.permute.default, aten.reshape.default):
        return None
    if node.function is aten.permute.default:
        before = reading.torchs(node.args[0], aten.permute.default)
        axes, rank = node.args[1], len(node.outputs[0].shape)
        back = before is not None and [before.args[1][axis] % rank for axis in axes] == list(range(rank))
        return before.args[0] if before is not None and back else None
    view = reading.torchs(node.args[0], aten.reshape.default)
    return view.args[0] if view is not None and view.args[0].shape == node.outputs[0].shape else None


# ---------------------------------------------------------------- parts of a layer's outputs


def _rows_of_layer(reading: Reading, node: Node) -> Made:
    """Parts of a linear layer's outputs, where nothing needs the whole: layers with those rows alone."""
    if not isinstance(node, Torch) or node.function not in _PARTS:
        return None
    x, last = node.args[0], len(node.outputs[0].shape) - 1
    if not all(isinstance(each, Torch) and each.function in _PARTS for each in reading.readers(x)):
        return None
    layer = reading.maker(x)
    found = (x, 1) if isinstance(layer, Linear) else reading.tokens_of(x) or (reading.flat(x) if len(x.shape) == 4 else None)
    layer = None if found is None else reading.maker(found[0])
    if found is None or not isinstance(layer, Linear) or layer.residual is not None:
        return None
    if node.function is aten.slice.Tensor:
        part = _range(node)
        if part is None or part[1] >= part[2] or x is not found[0]:
            return None  # a part of each head: `_rotated` knows what to do with it
        return _layer_of_rows(layer, found[1], part[1:], node.outputs[0], heads_first=False)
    if _axis(node, 2) != last:
        return None
    made: list[Node] = []
    first, heads_first = 0, x is not found[0] and reading.tokens_of(x) is not None
    for out in node.outputs:
        made += _layer_of_rows(layer, found[1], (first, first + out.shape[-1]), out, heads_first)
        first += out.shape[-1]
    return made


def _activated_rows(reading: Reading, node: Node) -> Made:
    """An activation of a part of a layer's outputs, into the layer of those rows."""
    layer = reading.maker(node.x) if isinstance(node, Activate) else None
    if (
        not isinstance(node, Activate)
        or not isinstance(layer, Linear)
        or layer.activation is not None
        or len(reading.readers(node.x)) != 1
    ):
        return None
    return [replace(layer, out=node.out, activation=node.activation)]


_PARTS = (aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default)


def _layer_of_rows(layer: Linear, heads: int, part: tuple[int, int], out: Value, heads_first: bool) -> list[Node]:
    """The layer with a part of the rows of each head."""
    rows = torch.arange(layer.weight.shape[0]).view(heads, -1)[:, slice(*part)].flatten()
    bias = None if layer.bias is None else layer.bias[rows]
    flat = (
        out
        if len(out.shape) == len(layer.out.shape) and not heads_first and heads == 1
        else Value((*layer.out.shape[:-1], len(rows)))
    )
    made: list[Node] = [replace(layer, weight=layer.weight[rows], bias=bias, out=flat)]
    return made if flat is out else [*made, *_as_heads(layer.name, flat, heads, out, heads_first)]


def _of_only_head(reading: Reading, node: Node) -> Made:
    """A linear layer of what one head gave, heads first: of (batch, tokens, size) instead."""
    if not isinstance(node, Linear) or node.residual is not None or len(node.x.shape) != 4 or node.x.shape[1] != 1:
        return None
    found = reading.tokens_of(node.x)
    if found is None:
        return None
    flat = Value((*found[0].shape[:-1], node.out.shape[-1]))
    return [replace(node, x=found[0], out=flat), reshape(node.name, flat, node.out)]


_RULES: tuple[Callable[[Reading, Node], Made], ...] = (
    _root_mean_square,
    _layer_norm,
    _rotary,
    _partly_rotary,
    _gate,
    _attention,
    _turned_back,
    _rows_of_layer,
    _activated_rows,
    _of_only_head,
)


# ---------------------------------------------------------------- in which order


def _ordered(network: Network) -> Network:
    """Operations of torch when they are needed, not before: kernels in between go on without waiting for what only the caller wants."""
    if network.written or any(not outputs_of(node) for node in network.nodes):
        return network
    waiting = {value: node for node in network.nodes if isinstance(node, Torch) for value in outputs_of(node)}
    ordered: dict[Node, None] = {}
    for node in network.nodes:
        if not isinstance(node, Torch):
            _put(node, waiting, ordered)
    for node in network.nodes:
        _put(node, waiting, ordered)
    return replace(network, nodes=list(ordered))


def _put(node: Node, waiting: Mapping[Value, Node], ordered: dict[Node, None]) -> None:
    """A node after those that it waits for."""
    stack: list[tuple[Node, Iterable[Value]]] = [(node, inputs_of(node))]
    while stack:
        now, needs = stack.pop()
        missing = [waiting[value] for value in needs if value in waiting and waiting[value] not in ordered]
        if now in ordered:
            continue
        if not missing:
            ordered[now] = None
            continue
        stack.append((now, needs))
        stack.extend((each, inputs_of(each)) for each in missing)
