"""From operations of torch to layers on arrays with channels last, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from secateurs.integers.building import Building, Unsupported
from secateurs.integers.gru import gru
from secateurs.integers.layers import Array, Concat, Conv, Cut, Mean, Pad, Pool, Recurrent, Softmax, Table
from secateurs.integers.lower import LAYERS, Rule, each, numbers_of, one_after_another, product, start_of, sum_of, with_fixed
from secateurs.integers.placed import Placed, lying, natural, of_image
from secateurs.nested import Value
from secateurs.run.network.nodes import Node, Torch

aten = torch.ops.aten


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


def _gru(to: Building, node: Torch) -> None:
    """One layer of a GRU in one direction (`integers.gru`)."""
    x, hidden, *given, backwards = node.args
    steps, samples, _ = x.shape
    if samples != 1:
        raise Unsupported(f"a GRU over {samples} sequences at a time: give an example of one sample")
    if any(each not in to.constants for each in given):
        raise Unsupported("a GRU whose weights depend on the inputs")
    weight, recurrent, bias, recurrent_bias = (numbers_of(to.constants[each], 0) for each in given)
    rows, units = to.rows(x), recurrent.shape[1]
    y = to.array(node.name or "gru", (1, steps, units))
    last = to.array(f"{y.name}.hidden", (1, 1, units))
    start = (start_of(to, hidden),)
    to.layers.append(Recurrent(y.name, rows, y, weight, recurrent, bias, recurrent_bias, True, start, (last,), backwards))
    for value, array in zip(node.outputs, (y, last), strict=True):
        to.places[value] = natural(array, value.shape)


def operation(to: Building, node: Any) -> None:
    """The layers of an operation of torch, if there are any for it."""
    rule = _RULES.get(getattr(node.function, "overloadpacket", node.function))
    if rule is None or len(node.outputs) == 0 or (node.function is aten.constant_pad_nd.default and len(node.args) < 2):
        raise Unsupported(f"the operation {called(node)}")
    rule(to, node)


def called(node: Torch) -> str:
    """What an operation is called in messages."""
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
    one_after_another(to, node.name, node.args[0], node.outputs[0], node.args[1] if len(node.args) > 1 else 0)


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
    """Sums, differences and products of two tensors, or of one and fixed numbers; quotients by fixed numbers."""
    packet, (out,) = node.function.overloadpacket, node.outputs
    x, other = node.args[:2]
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") or len(node.args) > 2:
        raise Unsupported(f"{called(node)} with {dict(node.kwargs) or node.args[2:]}")
    tensors = [each for each in (x, other) if isinstance(each, Value) and each not in to.constants]
    if len(tensors) == 2:
        if packet is aten.mul:
            product(to, node.name, to.of(x), to.of(other), out)
        elif packet in (aten.add, aten.sub):
            to.places[out] = sum_of(to, node.name or "add", to.of(x), to.of(other), 1 if packet is aten.add else -1)
        elif packet is aten.div and (found := _softsign(to, to.of(x), to.of(other))) is not None:
            to.places[out] = found
        else:
            raise Unsupported(f"{called(node)} of two tensors")
        return
    if not tensors:
        raise Unsupported(f"{called(node)} of two constants")
    x, other = (other, x) if packet is aten.rsub else (x, other)
    turned = tensors[0] is not x
    number = x if turned else other
    fixed = to.constants[number].double() if isinstance(number, Value) else torch.tensor(float(number), dtype=torch.float64)
    if packet is aten.mul:
        with_fixed(to, node, tensors[0], fixed, 0.0)
    elif packet is aten.div and turned:
        raise Unsupported("a number divided by a tensor")
    elif packet is aten.div:
        with_fixed(to, node, tensors[0], 1 / fixed, 0.0)
    elif packet is aten.add:
        with_fixed(to, node, tensors[0], 1.0, fixed)
    else:
        with_fixed(to, node, tensors[0], -1.0 if turned else 1.0, fixed if turned else -fixed)


def _softsign(to: Building, x: Placed, other: Placed) -> Placed | None:
    """x / (1 + |x|), as torch records softsign; None where the divisor is another."""
    made = {layer.y.name: layer for layer in to.layers}
    more = made.get(other.array.name)
    if (
        not isinstance(more, Conv)
        or more.weight.size != more.y.shape[2]
        or not (more.weight == 1).all()
        or not (more.bias == 1).all()
    ):
        return None
    size = made.get(more.x.name)
    same = isinstance(size, Table) and size.function == "abs" and replace(other, array=size.x) == x
    return each(to, x, "softsign") if same else None


def _of_each(function: str, *defaults: float) -> Rule:
    """A function of single numbers; ``defaults`` stand for those of its numbers that are not given."""

    def rule(to: Building, node: Torch) -> None:
        given = [float(number) for number in node.args[1:]]
        to.places[node.outputs[0]] = each(to, to.of(node.args[0]), function, *given, *defaults[len(given) :])

    return rule


def _celu(to: Building, node: Torch) -> None:
    alpha = float(node.args[1]) if len(node.args) > 1 else 1.0
    to.places[node.outputs[0]] = each(to, to.of(node.args[0]), "elu", alpha, 1.0, 1 / alpha)


def _prelu(to: Building, node: Torch) -> None:
    x, slope = node.args
    if slope not in to.constants or to.constants[slope].numel() != 1:
        raise Unsupported(f"a PReLU with {prod(slope.shape)} slopes, where one for all channels, PReLU(), has a kernel")
    to.places[node.outputs[0]] = each(to, to.of(x), "leaky_relu", float(to.constants[slope]))


def _convolution(to: Building, node: Torch) -> None:
    """Those that the recording left as they are: none has a kernel."""
    weight, transposed = node.args[1], bool(node.args[6])
    if transposed:
        raise Unsupported("a transposed convolution")
    if len(weight.shape) == 5:
        raise Unsupported("a convolution in three dimensions")
    raise Unsupported(
        "a convolution whose weights depend on the inputs" if weight not in to.constants else "the operation convolution"
    )


def _pow(to: Building, node: Torch) -> None:
    if node.args[1] != 2:
        raise Unsupported(f"the power {node.args[1]} of a tensor, where its square has a kernel")
    to.places[node.outputs[0]] = each(to, to.of(node.args[0]), "square")


def _neg(to: Building, node: Torch) -> None:
    with_fixed(to, node, node.args[0], -1.0, 0.0)


def _all_of_one_size(to: Building, node: Torch) -> None:
    if node.args[0].shape != node.outputs[0].shape:
        raise Unsupported(f"{called(node)} from {tuple(node.args[0].shape)} to {tuple(node.outputs[0].shape)}")
    to.places[node.outputs[0]] = to.of(node.args[0])


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
    aten.leaky_relu: _of_each("leaky_relu", 0.01),
    aten.elu: _of_each("elu", 1.0, 1.0, 1.0),
    aten.celu: _celu,
    aten.softplus: _of_each("softplus", 1.0, 20.0),
    aten.mish: _of_each("mish"),
    aten.log_sigmoid_forward: _of_each("log_sigmoid"),
    aten._prelu_kernel: _prelu,
    aten.abs: _of_each("abs"),
    aten.exp: _of_each("exp"),
    aten.pow: _pow,
    aten.neg: _neg,
    aten.convolution: _convolution,
    gru._opoverload.overloadpacket: _gru,
}


def build(to: Building, steps: Iterable[Node]) -> list[str]:
    """Write the layers of a network; what no layer stands for is told, a line each."""
    refused = []
    for node in steps:
        rule = operation if isinstance(node, Torch) else LAYERS.get(type(node))
        try:
            if rule is None:
                raise Unsupported(f"a layer of the kind {type(node).__name__}")
            rule(to, node)
        except Unsupported as error:
            where = node.name or "the model itself"
            if str(error) != "an operand comes from an operation that is not supported":
                refused.append(f"{where}: {error}")
    return refused
