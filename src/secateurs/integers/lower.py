"""From a model's recorded operations to layers on arrays with channels last, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.integers.gru import gru
from secateurs.integers.layers import (
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Layer,
    Mean,
    Multiply,
    Pad,
    Pool,
    Recurrent,
    Reorder,
    Softmax,
    Table,
    View,
)
from secateurs.integers.placed import Placed, columns, long, lying, natural, of_image
from secateurs.nested import Value
from secateurs.run.network import nodes
from secateurs.run.network.nodes import Activation, Node, Torch

aten = torch.ops.aten


class Unsupported(Exception):
    """What no layer stands for; the message says what and why."""


@dataclass
class Building:
    """Layers while they are written: where the tensors of a model lie, and names."""

    layers: list[Layer] = field(default_factory=list)
    places: dict[Value, Placed] = field(default_factory=dict)
    constants: dict[Value, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        found, number = wanted, 2
        while found in self.names:
            found, number = f"{wanted}_{number}", number + 1
        self.names.add(found)
        return found

    def array(self, name: str, shape: tuple[int, int, int]) -> Array:
        return Array(self.name(name), shape)

    def of(self, value: Any) -> Placed:
        """Where an operand lies; raises `Unsupported` for constants and for what is no tensor."""
        if not isinstance(value, Value):
            raise Unsupported("an operand is no tensor")
        if value in self.constants:
            raise Unsupported("an operand is a constant tensor that belongs to no layer")
        if value not in self.places:
            raise Unsupported("an operand comes from an operation that is not supported")
        return self.places[value]

    def viewed(self, placed: Placed, shape: tuple[int, int, int]) -> Array:
        """The array of a tensor, seen in another shape where it has one."""
        if placed.array.shape == shape:
            return placed.array
        y = self.array(placed.array.name, shape)
        self.layers.append(View(y.name, placed.array, y))
        return y

    def ordered(self, value: Any, dims: Sequence[int], shape: tuple[int, int, int]) -> Array:
        """A tensor whose dimensions lie in a given order, in an array of a shape; moved only where it lies otherwise."""
        placed = self.of(value) if isinstance(value, Value) else value
        if placed.lies(dims):
            return self.viewed(placed, shape)
        if placed.base != long(placed.shape):
            placed = self._moved(placed, tuple(range(len(placed.base)))).reshaped(placed.shape)
            if placed.lies(dims):
                return self.viewed(placed, shape)
        wanted = lying(placed.array, placed.shape, dims).layout
        return self.viewed(self._moved(placed, wanted), shape)

    def _moved(self, placed: Placed, layout: tuple[int, ...]) -> Placed:
        """The same tensor with the dimensions of its base in another order in memory."""
        sizes = placed.sizes
        order = tuple(placed.layout.index(dim) for dim in layout)
        after = tuple(sizes[place] for place in order)
        y = self.array(f"{placed.array.name}.reordered", (1, prod(after[:-1]), after[-1]))
        self.layers.append(Reorder(y.name, placed.array, y, sizes, order))
        return replace(placed, array=y, layout=layout)

    def image(self, value: Any) -> Array:
        """A tensor (1, channels, height, width) as an array."""
        shape = value.shape
        if len(shape) != 4 or shape[0] != 1:
            raise Unsupported(f"a tensor {tuple(shape)} where one sample (1, channels, height, width) is needed")
        return self.ordered(value, (0, 2, 3, 1), (shape[2], shape[3], shape[1]))

    def rows(self, value: Any) -> Array:
        """A tensor (..., channels) as an array of height 1."""
        shape = value.shape
        return self.ordered(value, range(len(shape)), (1, prod(shape[:-1]), shape[-1] if shape else 1))


# ---------------------------------------------------------------- layers


def _numbers(tensor: Tensor | None, size: int) -> np.ndarray[Any, Any]:
    return np.zeros(size, np.float32) if tensor is None else tensor.detach().float().cpu().contiguous().numpy()


def _conv(to: Building, node: nodes.Conv) -> None:
    x, (_, channels, height, width) = to.image(node.x), node.out.shape
    weight = np.ascontiguousarray(_numbers(node.weight, 0).transpose(0, 2, 3, 1))
    padding = (node.padding[0], node.padding[0], node.padding[1], node.padding[1])
    y = to.array(node.name or "conv", (height, width, channels))
    bias = _numbers(node.bias, channels)
    to.layers.append(Conv(y.name, x, y, weight, bias, node.stride, padding, node.dilation, node.groups))
    _finished(to, node, of_image(y, node.out.shape))


def _linear(to: Building, node: nodes.Linear) -> None:
    weight, placed = _numbers(node.weight, 0), to.of(node.x)
    shape = (*node.x.shape[:-1], weight.shape[0])
    if node.x.shape[-1] == placed.array.size:  # a flattened image: its columns are permuted instead of its numbers
        order = columns(placed)
        if order is not None and _blocks(weight) - _blocks(weight[:, order]) > weight.shape[1]:
            x = to.rows(node.x)  # what is pruned in blocks of inputs is worth more than moving these
        else:
            x, weight = to.viewed(placed, (1, 1, weight.shape[1])), weight if order is None else weight[:, order]
    else:
        x = to.rows(node.x)
    y = to.array(node.name or "linear", (1, x.shape[1], weight.shape[0]))
    weight = np.ascontiguousarray(weight[:, None, None, :])
    to.layers.append(Conv(y.name, x, y, weight, _numbers(node.bias, weight.shape[0])))
    _finished(to, node, natural(y, shape))


def _blocks(weight: np.ndarray[Any, Any]) -> int:
    """How many blocks of four inputs have no weight: of each four multiplications that go, a few pay for a number moved."""
    return int((weight[:, : weight.shape[1] // 4 * 4].reshape(-1, 4) == 0).all(1).sum())


def _finished(to: Building, node: Any, placed: Placed) -> None:
    """What a layer made, after the sum and the activation that were fused into it."""
    if getattr(node, "residual", None) is not None:
        placed = _sum(to, f"{placed.array.name}.sum", placed, to.of(node.residual))
    to.places[node.out] = _activated(to, placed, getattr(node, "activation", None)).reshaped(node.out.shape)


def _activated(to: Building, placed: Placed, activation: Activation | None) -> Placed:
    if activation is None:
        return placed
    y = to.array(f"{placed.array.name}.{activation.kind}", placed.array.shape)
    function = f"clamp {activation.low:.9g} {activation.high:.9g}" if activation.kind == "clamp" else activation.kind
    to.layers.append(Table(y.name, placed.array, y, function))
    return replace(placed, array=y)


def _sum(to: Building, name: str, x: Placed, other: Placed, sign: int = 1) -> Placed:
    x, first, second = _alike(to, x, other)
    y = to.array(name, first.shape)
    to.layers.append(Add(y.name, first, second, y, sign=sign))
    return replace(x, array=y)


def _alike(to: Building, x: Placed, other: Placed) -> tuple[Placed, Array, Array]:
    """Two tensors of one shape, in arrays that lie alike."""
    if x.shape != other.shape:
        raise Unsupported(f"operands of different shapes, {x.shape} and {other.shape}")
    if (x.base, x.layout) == (other.base, other.layout):
        return x, x.array, to.viewed(other, x.array.shape)
    dims = tuple(range(len(x.shape)))
    shape = (1, prod(x.shape[:-1]), x.shape[-1] if x.shape else 1)
    if len(x.shape) == 4 and x.shape[0] == 1:
        dims, shape = (0, 2, 3, 1), (x.shape[2], x.shape[3], x.shape[1])
    first, second = to.ordered(x, dims, shape), to.ordered(other, dims, shape)
    return lying(first, x.shape, dims), first, second


def _add(to: Building, node: nodes.Add) -> None:
    placed = _sum(to, node.name or "add", to.of(node.x), to.of(node.y))
    to.places[node.out] = _activated(to, placed, node.activation)


def _multiply(to: Building, node: nodes.Multiply) -> None:
    _product(to, node.name, to.of(node.x), to.of(node.y), node.out)


def _product(to: Building, name: str, x: Placed, other: Placed, out: Value) -> None:
    x, first, second = _alike(to, x, other)
    y = to.array(name or "multiply", first.shape)
    to.layers.append(Multiply(y.name, first, second, y))
    to.places[out] = replace(x, array=y)


def _scale(to: Building, node: nodes.Scale) -> None:
    x = to.image(node.x)
    factors = to.ordered(node.factors, (0, 2, 3, 1), (1, 1, x.shape[2]))
    y = to.array(node.name or "scale", x.shape)
    to.layers.append(Multiply(y.name, x, factors, y))
    to.places[node.out] = of_image(y, node.out.shape)


def _affine(to: Building, node: nodes.Affine) -> None:
    placed = to.of(node.x)
    if len(node.x.shape) == 4:
        x, placed_y = to.image(node.x), of_image
    elif len(node.x.shape) == 3:  # (1, channels, length)
        _, channels, length = node.x.shape
        x = to.ordered(placed, (0, 2, 1), (1, length, channels))

        def placed_y(array: Array, shape: Sequence[int]) -> Placed:
            return lying(array, shape, (0, 2, 1))
    else:
        x, placed_y = to.rows(node.x), natural
    _by_channel(to, node, x, _numbers(node.scale, 0), _numbers(node.shift, 0), placed_y)


def _by_channel(
    to: Building, node: Any, x: Array, scale: Any, shift: Any, placed: Callable[[Array, Sequence[int]], Placed]
) -> None:
    """A factor and a summand for each channel: a depthwise convolution of one place."""
    y, channels = to.array(node.name or "affine", x.shape), x.shape[2]
    to.layers.append(Conv(y.name, x, y, np.ascontiguousarray(scale.reshape(channels, 1, 1, 1)), shift, groups=channels))
    out = node.outputs[0] if isinstance(node, Torch) else node.out
    to.places[out] = _activated(to, placed(y, out.shape), getattr(node, "activation", None))


def _activate(to: Building, node: nodes.Activate) -> None:
    to.places[node.out] = _activated(to, to.of(node.x), node.activation)


def _pool(to: Building, node: nodes.Pool) -> None:
    x, (_, channels, height, width) = to.image(node.x), node.out.shape
    if node.divisor is not None and node.divisor != prod(node.window):
        raise Unsupported(f"an average pooling with divisor_override={node.divisor}")
    padding = (node.padding[0], node.padding[0], node.padding[1], node.padding[1])
    y = to.array(node.name or "pool", (height, width, channels))
    average = node.kind == "average"
    if average and node.window == tuple(node.x.shape[2:]) and not any(node.padding):
        to.layers.append(Mean(y.name, x, y))
    else:
        to.layers.append(Pool(y.name, x, y, average, node.window, node.stride, padding, node.dilation, node.counts_padding))
    to.places[node.out] = of_image(y, node.out.shape)


def _pool_sticking_out(to: Building, node: Torch) -> None:
    """A pooling whose last windows stick out (``ceil_mode``)."""
    average = node.function is aten.avg_pool2d.default
    x, window, stride, padding, fifth, sixth = [*node.args, None, None, None, None, None][:6]
    window, stride, padding = (_two(each) for each in (window, stride or window, padding or 0))
    dilation, counts = ((1, 1), True if sixth is None else sixth) if average else (_two(fifth or 1), False)
    if len(node.args) > 6 and node.args[6] is not None:
        raise Unsupported(f"an average pooling with divisor_override={node.args[6]}")
    if counts and any(padding):
        raise Unsupported("an average pooling whose windows stick out of its padding (ceil_mode) and count that")
    array, (_, channels, height, width) = to.image(x), node.outputs[0].shape
    y = to.array(node.name or "pool", (height, width, channels))
    ends = padding[0], padding[0], padding[1], padding[1]
    to.layers.append(Pool(y.name, array, y, average, window, stride, ends, dilation))  # what sticks out never counts
    to.places[node.outputs[0]] = of_image(y, node.outputs[0].shape)


def _two(sizes: Any) -> tuple[int, int]:
    first, second = (sizes[0], sizes[-1]) if isinstance(sizes, (tuple, list)) else (sizes, sizes)
    return int(first), int(second)


def _mean(to: Building, node: nodes.Mean) -> None:
    x = to.image(node.x)
    y = to.array(node.name or "mean", (1, 1, x.shape[2]))
    to.layers.append(Mean(y.name, x, y))
    to.places[node.out] = natural(y, node.out.shape)


def _concat(to: Building, node: nodes.Concat) -> None:
    if node.out.shape[0] != 1:
        _one_after_another(to, node.name, node.parts, node.out, 1)
        return
    parts = tuple(to.image(part) for part in node.parts)
    _, channels, height, width = node.out.shape
    y = to.array(node.name or "concat", (height, width, channels))
    to.layers.append(Concat(y.name, parts, y))
    to.places[node.out] = of_image(y, node.out.shape)


def _lstm(to: Building, node: nodes.Lstm) -> None:
    steps, samples, _ = node.x.shape
    if samples != 1:
        raise Unsupported(f"an LSTM over {samples} sequences at a time, where one sample is needed")
    x, units = to.rows(node.x), node.recurrent.shape[1]
    y = to.array(node.name or "lstm", (1, steps, units))
    last = tuple(to.array(f"{y.name}.{which}", (1, 1, units)) for which in ("hidden", "cell"))
    start = tuple(_start(to, each) for each in (node.hidden, node.cell))
    gates = node.recurrent.shape[0]
    weights = _numbers(node.weight, 0), _numbers(node.recurrent, 0), _numbers(node.bias, gates), np.zeros(gates, np.float32)
    to.layers.append(Recurrent(y.name, x, y, *weights, False, start, last, node.backwards))
    for value, array in ((node.out, y), (node.last_hidden, last[0]), (node.last_cell, last[1])):
        to.places[value] = natural(array, value.shape)


def _gru(to: Building, node: Torch) -> None:
    """One layer of a GRU in one direction (`integers.gru`)."""
    x, hidden, *given, backwards = node.args
    steps, samples, _ = x.shape
    if samples != 1:
        raise Unsupported(f"a GRU over {samples} sequences at a time, where one sample is needed")
    if any(each not in to.constants for each in given):
        raise Unsupported("a GRU whose weights depend on the inputs")
    weight, recurrent, bias, recurrent_bias = (_numbers(to.constants[each], 0) for each in given)
    rows, units = to.rows(x), recurrent.shape[1]
    y = to.array(node.name or "gru", (1, steps, units))
    last = to.array(f"{y.name}.hidden", (1, 1, units))
    start = (_start(to, hidden),)
    to.layers.append(Recurrent(y.name, rows, y, weight, recurrent, bias, recurrent_bias, True, start, (last,), backwards))
    for value, array in zip(node.outputs, (y, last), strict=True):
        to.places[value] = natural(array, value.shape)


def _start(to: Building, value: Value) -> Array | None:
    """What a recurrent layer starts with; nothing for zeros."""
    constant = to.constants.get(value)
    if constant is not None and not constant.any():
        return None
    return to.ordered(value, range(len(value.shape)), (1, 1, value.shape[-1]))


# ---------------------------------------------------------------- operations of torch


def _torch(to: Building, node: Torch) -> None:
    rule = _RULES.get(getattr(node.function, "overloadpacket", node.function))
    if rule is None or len(node.outputs) == 0 or (node.function is aten.constant_pad_nd.default and len(node.args) < 2):
        raise Unsupported(f"the operation {_called(node)}")
    rule(to, node)


def _called(node: Torch) -> str:
    return str(getattr(node.function, "overloadpacket", getattr(node.function, "__name__", node.function))).removeprefix("aten.")


def _reshape(to: Building, node: Torch) -> None:
    to.places[node.outputs[0]] = to.of(node.args[0]).reshaped(node.outputs[0].shape)


def _permute(to: Building, node: Torch) -> None:
    x, order = node.args[0], [dim % len(node.args[0].shape) for dim in node.args[1]]
    found = to.of(x).permuted(order) or natural(to.rows(x), x.shape).permuted(order)
    assert found is not None  # what lies as in torch has no reshape in between
    to.places[node.outputs[0]] = found


def _clone(to: Building, node: Torch) -> None:
    to.places[node.outputs[0]] = to.of(node.args[0])


def _pad(to: Building, node: Torch) -> None:
    x, pads, (out,) = node.args[0], tuple(node.args[1]), node.outputs
    value = float(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else 0.0
    pads = (*pads, *(0 for _ in range(8 - len(pads))))
    if min(pads) < 0 or any(pads[6:]) or len(x.shape) not in (3, 4) or (len(x.shape) == 3 and any(pads[4:])):
        raise Unsupported(
            f"a padding {node.args[1]} of a tensor {tuple(x.shape)}: channels, height and width can be padded, by numbers from 0 on"
        )
    left, right, top, bottom = pads[:4]
    before, after = pads[4:6] if len(x.shape) == 4 else pads[2:4]
    if len(x.shape) == 4:
        array, placed = to.image(x), of_image
    else:
        array = to.ordered(x, (0, 2, 1), (1, x.shape[2], x.shape[1]))

        top = bottom = 0

        def placed(array: Array, shape: Sequence[int]) -> Placed:
            return lying(array, shape, (0, 2, 1))

    height, width, channels = array.shape
    y = to.array(node.name or "pad", (height + top + bottom, width + left + right, channels + before + after))
    to.layers.append(Pad(y.name, array, y, (top, bottom, left, right), value, (before, after)))
    to.places[out] = placed(y, out.shape)


def _softmax(to: Building, node: Torch) -> None:
    x, dim, (out,) = node.args[0], node.args[1] % max(1, len(node.args[0].shape)), node.outputs
    order = [*(each for each in range(len(x.shape)) if each != dim), dim]
    array = to.ordered(x, order, (1, prod(x.shape) // x.shape[dim], x.shape[dim]))
    y = to.array(node.name or "softmax", array.shape)
    to.layers.append(Softmax(y.name, array, y))
    to.places[out] = lying(y, out.shape, order)


def _mean_of(to: Building, node: Torch) -> None:
    x, (out,) = node.args[0], node.outputs
    count = len(x.shape)
    dims = sorted({dim % count for dim in node.args[1]}) if len(node.args) > 1 and node.args[1] else list(range(count))
    kept = [dim for dim in range(count) if dim not in dims]
    channels = prod(x.shape[dim] for dim in kept)
    array = to.ordered(x, [*dims, *kept], (1, prod(x.shape) // channels, channels))
    y = to.array(node.name or "mean", (1, 1, channels))
    to.layers.append(Mean(y.name, array, y))
    to.places[out] = natural(y, out.shape)


def _cat(to: Building, node: Torch) -> None:
    _one_after_another(to, node.name, node.args[0], node.outputs[0], node.args[1] if len(node.args) > 1 else 0)


def _one_after_another(to: Building, name: str, tensors: Sequence[Value], out: Value, dim: int) -> None:
    """Tensors along any dimension, each as torch has it."""
    dim %= len(out.shape)
    outer = prod(out.shape[:dim])
    parts = tuple(to.ordered(each, range(len(each.shape)), (1, outer, prod(each.shape[dim:]))) for each in tensors)
    y = to.array(name or "concat", (1, outer, prod(out.shape[dim:])))
    to.layers.append(Concat(y.name, parts, y))
    to.places[out] = natural(y, out.shape)


def _cut(to: Building, name: str, x: Value, out: Value, dim: int, start: int, step: int = 1) -> None:
    """Every ``step``-th index of a dimension from ``start`` on, as many as ``out`` has."""
    dim %= len(x.shape)
    placed = to.of(x)
    dims = placed.dims or tuple(range(len(x.shape)))
    sizes = [x.shape[each] for each in dims]
    at = dims.index(dim)
    outer, inner = prod(sizes[:at]), prod(sizes[at + 1 :])
    array = to.ordered(placed, dims, (outer, x.shape[dim], inner))
    taken = prod(out.shape) // max(1, outer * inner)
    y = to.array(name or "slice", (outer, taken, inner))
    to.layers.append(Cut(y.name, array, y, (0, start, 0), (1, step, 1)))
    whole = (*x.shape[:dim], taken, *x.shape[dim + 1 :])
    to.places[out] = lying(y, whole, dims).reshaped(out.shape)


def _select(to: Building, node: Torch) -> None:
    x, dim, index = node.args
    _cut(to, node.name, x, node.outputs[0], dim, index % x.shape[dim])


def _slice(to: Building, node: Torch) -> None:
    x, dim, start, _, step = [*node.args, None, None, None, None][:5]
    dim = dim or 0
    start = 0 if start is None else start + x.shape[dim] if start < 0 else start
    _cut(to, node.name, x, node.outputs[0], dim, min(max(0, start), x.shape[dim]), step or 1)


def _split(to: Building, node: Torch) -> None:
    x, dim = node.args[0], node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    start = 0
    for out in node.outputs:
        _cut(to, node.name, x, out, dim, start)
        start += out.shape[dim]


def _unbind(to: Building, node: Torch) -> None:
    x, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
    for index, out in enumerate(node.outputs):
        _cut(to, node.name, x, out, dim, index)


def _stack(to: Building, node: Torch) -> None:
    tensors, (out,) = node.args[0], node.outputs
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(out.shape)
    outer, inner = prod(out.shape[:dim]), prod(out.shape[dim + 1 :])
    parts = tuple(to.ordered(each, range(len(each.shape)), (1, outer, inner)) for each in tensors)
    y = to.array(node.name or "stack", (1, outer, inner * len(parts)))
    to.layers.append(Concat(y.name, parts, y))
    to.places[out] = natural(y, out.shape)


def _arithmetic(to: Building, node: Torch) -> None:
    """Sums, differences and products of two tensors, or of one and a number."""
    packet, (out,) = node.function.overloadpacket, node.outputs
    x, other = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") or len(node.args) > 2:
        raise Unsupported(f"{_called(node)} with {dict(node.kwargs) or node.args[2:]}")
    if isinstance(x, Value) and isinstance(other, Value) and packet is not aten.div and packet is not aten.rsub:
        if packet is aten.mul:
            _product(to, node.name, to.of(x), to.of(other), out)
        else:
            to.places[out] = _sum(to, node.name or "add", to.of(x), to.of(other), 1 if packet is aten.add else -1)
        return
    number = other if isinstance(x, Value) else x
    value = x if isinstance(x, Value) else other
    if isinstance(number, Value):
        raise Unsupported(f"{_called(node)} of two tensors")
    turned = packet is aten.rsub or not isinstance(x, Value)
    factor = {aten.mul: number, aten.div: 1 / number if number else np.inf}.get(
        packet, -1.0 if packet in (aten.sub, aten.rsub) and turned else 1.0
    )
    if packet is aten.div and turned:
        raise Unsupported("a number divided by a tensor")
    shift = 0.0 if packet in (aten.mul, aten.div) else -number if packet is aten.sub and not turned else number
    placed = to.of(value)
    channels = placed.array.shape[2]
    scale, offset = np.full(channels, factor, np.float32), np.full(channels, shift, np.float32)
    _by_channel(to, node, placed.array, scale, offset, lambda array, shape: replace(placed, array=array))


def _all_of_one_size(to: Building, node: Torch) -> None:
    if node.args[0].shape != node.outputs[0].shape:
        raise Unsupported(f"{_called(node)} from {tuple(node.args[0].shape)} to {tuple(node.outputs[0].shape)}")
    to.places[node.outputs[0]] = to.of(node.args[0])


Rule = Callable[[Building, Any], None]
_RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.reshape, aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze), _reshape),
    aten.permute: _permute,
    **dict.fromkeys((aten.clone, aten.alias, aten.detach), _clone),
    aten.expand: _all_of_one_size,
    aten.constant_pad_nd: _pad,
    **dict.fromkeys((aten.max_pool2d_with_indices, aten.avg_pool2d), _pool_sticking_out),
    aten._softmax: _softmax,
    aten.mean: _mean_of,
    aten.cat: _cat,
    aten.select: _select,
    aten.slice: _slice,
    **dict.fromkeys((aten.split, aten.unsafe_split, aten.split_with_sizes), _split),
    aten.unbind: _unbind,
    aten.stack: _stack,
    **dict.fromkeys((aten.add, aten.sub, aten.rsub, aten.mul, aten.div), _arithmetic),
    gru._opoverload.overloadpacket: _gru,
}
_NODES: dict[type, Rule] = {
    nodes.Conv: _conv,
    nodes.Linear: _linear,
    nodes.Pool: _pool,
    nodes.Mean: _mean,
    nodes.Add: _add,
    nodes.Multiply: _multiply,
    nodes.Scale: _scale,
    nodes.Affine: _affine,
    nodes.Activate: _activate,
    nodes.Concat: _concat,
    nodes.Lstm: _lstm,
    Torch: _torch,
}


def build(to: Building, steps: Iterable[Node]) -> list[str]:
    """Write the layers of a network; what no layer stands for is told, a line each."""
    refused = []
    for node in steps:
        rule = _NODES.get(type(node))
        try:
            if rule is None:
                raise Unsupported(f"a layer of the kind {type(node).__name__}")
            rule(to, node)
        except Unsupported as error:
            where = node.name or "the model itself"
            if str(error) != "an operand comes from an operation that is not supported":
                refused.append(f"{where}: {error}")
    return refused
