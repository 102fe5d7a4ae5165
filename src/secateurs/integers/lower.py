"""From the layers of a recorded model to layers on arrays with channels last, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.integers.building import Building, Unsupported
from secateurs.integers.layers import Add, Array, Concat, Conv, Mean, Multiply, Pool, Recurrent, Table
from secateurs.integers.placed import Placed, columns, lying, natural, of_image
from secateurs.nested import Value
from secateurs.run.network import nodes
from secateurs.run.network.nodes import Activation, Torch

# ---------------------------------------------------------------- layers


def numbers_of(tensor: Tensor | None, size: int) -> np.ndarray[Any, Any]:
    """A tensor as float32; zeros where there is none."""
    return np.zeros(size, np.float32) if tensor is None else tensor.detach().float().cpu().contiguous().numpy()


def _conv(to: Building, node: nodes.Conv) -> None:
    x, (_, channels, height, width) = to.image(node.x), node.out.shape
    weight = np.ascontiguousarray(numbers_of(node.weight, 0).transpose(0, 2, 3, 1))
    padding = (node.padding[0], node.padding[0], node.padding[1], node.padding[1])
    y = to.array(node.name or "conv", (height, width, channels))
    bias = numbers_of(node.bias, channels)
    to.layers.append(Conv(y.name, x, y, weight, bias, node.stride, padding, node.dilation, node.groups))
    finished(to, node, of_image(y, node.out.shape))


def _linear(to: Building, node: nodes.Linear) -> None:
    weight, placed = numbers_of(node.weight, 0), to.of(node.x)
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
    to.layers.append(Conv(y.name, x, y, weight, numbers_of(node.bias, weight.shape[0])))
    finished(to, node, natural(y, shape))


def _blocks(weight: np.ndarray[Any, Any]) -> int:
    """How many blocks of four inputs have no weight: of each four multiplications that go, a few pay for a number moved."""
    return int((weight[:, : weight.shape[1] // 4 * 4].reshape(-1, 4) == 0).all(1).sum())


def finished(to: Building, node: Any, placed: Placed) -> None:
    """What a layer made, after the sum and the activation that were fused into it."""
    if getattr(node, "residual", None) is not None:
        placed = sum_of(to, f"{placed.array.name}.sum", placed, to.of(node.residual))
    to.places[node.out] = activated(to, placed, getattr(node, "activation", None)).reshaped(node.out.shape)


def activated(to: Building, placed: Placed, activation: Activation | None) -> Placed:
    """A tensor after an activation: a clamp of the layer that made it, or a table."""
    if activation is None:
        return placed
    bounds = (activation.low, activation.high) if activation.kind == "clamp" else ()
    return each(to, placed, activation.kind, *bounds)


def each(to: Building, placed: Placed, function: str, *numbers: float) -> Placed:
    """A tensor after a function of single numbers, one of `functions.FUNCTIONS`, or of `SHAPED` with its numbers."""
    y = to.array(f"{placed.array.name}.{function}", placed.array.shape)
    to.layers.append(Table(y.name, placed.array, y, " ".join([function, *(f"{number:.9g}" for number in numbers)])))
    return replace(placed, array=y)


def sum_of(to: Building, name: str, x: Placed, other: Placed, sign: int = 1) -> Placed:
    """The sum, or the difference, of two tensors of one shape."""
    x, first, second = alike(to, x, other)
    y = to.array(name, first.shape)
    to.layers.append(Add(y.name, first, second, y, sign=sign))
    return replace(x, array=y)


def alike(to: Building, x: Placed, other: Placed) -> tuple[Placed, Array, Array]:
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
    value, constant = (node.y, node.x) if node.x in to.constants else (node.x, node.y)
    if constant in to.constants:
        with_fixed(to, node, value, 1.0, to.constants[constant])
        return
    placed = sum_of(to, node.name or "add", to.of(node.x), to.of(node.y))
    to.places[node.out] = activated(to, placed, node.activation)


def _multiply(to: Building, node: nodes.Multiply) -> None:
    value, constant = (node.y, node.x) if node.x in to.constants else (node.x, node.y)
    if constant in to.constants:
        with_fixed(to, node, value, to.constants[constant], 0.0)
        return
    product(to, node.name, to.of(node.x), to.of(node.y), node.out)


def with_fixed(to: Building, node: Any, value: Value, scale: Tensor | float, shift: Tensor | float) -> None:
    """``scale * x + shift`` with fixed numbers, one for all or one for each index of some dimensions, which lie as channels then."""
    placed, (scale, shift) = to.of(value), (torch.as_tensor(each).detach().float().cpu() for each in (scale, shift))
    sizes, count = torch.broadcast_shapes(scale.shape, shift.shape), len(value.shape)
    if torch.broadcast_shapes(sizes, value.shape) != torch.Size(value.shape):
        raise Unsupported(f"an operand {tuple(value.shape)} that a constant of the shape {tuple(sizes)} makes larger")
    varied = [dim for dim, size in enumerate(sizes, count - len(sizes)) if size > 1]
    order = [*range(count)] if placed.dims is None else [*placed.dims]
    channels = [dim for dim in order if dim in varied]
    if not varied:
        array, order = placed.array, []
    elif channels == [1] and count == 4 and value.shape[0] == 1:
        array, order = to.image(value), [0, 2, 3, 1]
    else:
        order = [*(dim for dim in order if dim not in varied), *channels]
        size = prod(value.shape[dim] for dim in channels)
        array = to.ordered(value, order, (1, prod(value.shape) // size, size))

    def numbers(fixed: Tensor) -> Any:
        seen = fixed.expand([value.shape[dim] if dim in varied else 1 for dim in range(count)]) if varied else fixed.reshape(1)
        return (seen.permute(order) if varied else seen.expand(array.shape[2])).reshape(-1).numpy().copy()

    by_channel(
        to,
        node,
        array,
        numbers(scale),
        numbers(shift),
        lambda y, shape: lying(y, shape, order) if varied else replace(placed, array=y),
    )


def product(to: Building, name: str, x: Placed, other: Placed, out: Value) -> None:
    """The product of two tensors of one shape."""
    x, first, second = alike(to, x, other)
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
    by_channel(to, node, x, numbers_of(node.scale, 0), numbers_of(node.shift, 0), placed_y)


def by_channel(to: Building, node: Any, x: Array, scale: Any, shift: Any, placed: Callable[[Array, Sequence[int]], Placed]) -> None:
    """A factor and a summand for each channel: a depthwise convolution of one place."""
    y, channels = to.array(node.name or "affine", x.shape), x.shape[2]
    to.layers.append(Conv(y.name, x, y, np.ascontiguousarray(scale.reshape(channels, 1, 1, 1)), shift, groups=channels))
    out = node.outputs[0] if isinstance(node, Torch) else node.out
    to.places[out] = activated(to, placed(y, out.shape), getattr(node, "activation", None))


def _activate(to: Building, node: nodes.Activate) -> None:
    to.places[node.out] = activated(to, to.of(node.x), node.activation)


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


def _mean(to: Building, node: nodes.Mean) -> None:
    x = to.image(node.x)
    y = to.array(node.name or "mean", (1, 1, x.shape[2]))
    to.layers.append(Mean(y.name, x, y))
    to.places[node.out] = natural(y, node.out.shape)


def _concat(to: Building, node: nodes.Concat) -> None:
    if node.out.shape[0] != 1:
        one_after_another(to, node.name, node.parts, node.out, 1)
        return
    parts = tuple(to.image(part) for part in node.parts)
    _, channels, height, width = node.out.shape
    y = to.array(node.name or "concat", (height, width, channels))
    to.layers.append(Concat(y.name, parts, y))
    to.places[node.out] = of_image(y, node.out.shape)


def one_after_another(to: Building, name: str, tensors: Sequence[Value], out: Value, dim: int) -> None:
    """Tensors along any dimension, each as torch has it."""
    dim %= len(out.shape)
    outer = prod(out.shape[:dim])
    parts = tuple(to.ordered(each, range(len(each.shape)), (1, outer, prod(each.shape[dim:]))) for each in tensors)
    y = to.array(name or "concat", (1, outer, prod(out.shape[dim:])))
    to.layers.append(Concat(y.name, parts, y))
    to.places[out] = natural(y, out.shape)


def _lstm(to: Building, node: nodes.Lstm) -> None:
    steps, samples, _ = node.x.shape
    if samples != 1:
        raise Unsupported(f"an LSTM over {samples} sequences at a time: give an example of one sample")
    x, units = to.rows(node.x), node.recurrent.shape[1]
    y = to.array(node.name or "lstm", (1, steps, units))
    last = tuple(to.array(f"{y.name}.{which}", (1, 1, units)) for which in ("hidden", "cell"))
    start = tuple(start_of(to, each) for each in (node.hidden, node.cell))
    gates = node.recurrent.shape[0]
    weights = numbers_of(node.weight, 0), numbers_of(node.recurrent, 0), numbers_of(node.bias, gates), np.zeros(gates, np.float32)
    to.layers.append(Recurrent(y.name, x, y, *weights, False, start, last, node.backwards))
    for value, array in ((node.out, y), (node.last_hidden, last[0]), (node.last_cell, last[1])):
        to.places[value] = natural(array, value.shape)


def start_of(to: Building, value: Value) -> Array | None:
    """What a recurrent layer starts with; nothing for zeros."""
    constant = to.constants.get(value)
    if constant is not None and not constant.any():
        return None
    return to.ordered(value, range(len(value.shape)), (1, 1, value.shape[-1]))


Rule = Callable[[Building, Any], None]
LAYERS: dict[type, Rule] = {
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
}
"""By the kinds of `run.network.nodes`."""
