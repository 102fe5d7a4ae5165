"""What a network answers, layer by layer and plainly: of integers to the bit what the C code computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from secateurs.integers.functions import function_of
from secateurs.integers.layers import (
    LIMITS,
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Layer,
    Mean,
    Multiply,
    Network,
    Numbers,
    Pad,
    Pool,
    Recurrent,
    Reorder,
    Rescale,
    Softmax,
    Table,
    View,
    read,
    written,
)
from secateurs.integers.recurrent import recurrent
from secateurs.integers.rounding import requantised, requantised_wide

_AT_ONCE = 64
"""Samples that go through a network at one time: more would only take memory."""
_LARGEST = 1 << 24
"""Of the numbers that all places of a convolution read, so many lie in memory at one time, 128 MB."""


def run(network: Network, inputs: Sequence[Numbers]) -> list[Numbers]:
    """What a network answers: inputs and outputs as `Face.packed` has them, (samples, height, width, channels), in the arrays' kinds.

    >>> array = Array("x", (1, 1, 2))
    >>> run(Network((), (), ()), [])
    []
    """
    samples = len(inputs[0]) if inputs else 0
    parts = [values_of(network, [each[start : start + _AT_ONCE] for each in inputs]) for start in range(0, samples, _AT_ONCE)]
    return [np.concatenate([part[face.array.name] for part in parts]) for face in network.outputs]


def values_of(
    network: Network, inputs: Sequence[Numbers], see: Callable[[Array, Numbers], None] | None = None
) -> dict[str, Numbers]:
    """What the outputs are, by the names of their arrays; ``see`` is shown each array once it is written, inputs too."""
    values = {face.array.name: given for face, given in zip(network.inputs, inputs, strict=True)}
    last = {array.name: place for place, layer in enumerate(network.layers) for array in read(layer)}
    stays = {face.array.name for face in network.outputs}
    for face in network.inputs:
        if see is not None:
            see(face.array, values[face.array.name])
    for place, layer in enumerate(network.layers):
        for array, made in zip(written(layer), answers(layer, values), strict=True):
            values[array.name] = made
            if see is not None:
                see(array, made)
        for array in read(layer):
            if last[array.name] == place and array.name not in stays:
                values.pop(array.name, None)
    return {name: values[name] for name in stays}


def answers(layer: Layer, values: Mapping[str, Numbers]) -> tuple[Numbers, ...]:
    """What one layer writes, given what it reads by the names of the arrays."""
    if isinstance(layer, Recurrent):
        start = [None if each is None else values[each.name] for each in layer.start]
        return recurrent(layer, values[layer.x.name], start)
    if isinstance(layer, Concat):
        return (_concat(layer, [values[part.name] for part in layer.parts]),)
    if isinstance(layer, (Add, Multiply)):
        both = values[layer.x.name], values[layer.other.name]
        return (_add(layer, *both) if isinstance(layer, Add) else _multiply(layer, *both),)
    return (_RULES[type(layer)](layer, values[layer.x.name]),)


def finished(sums: Numbers, y: Array, by: Rescale | None, low: float = -np.inf, high: float = np.inf) -> Numbers:
    """Sums as numbers of an array: rescaled, moved by its zero and clamped; of floats only clamped."""
    if y.kind == "float32":
        return np.clip(sums, low, high).astype(np.float32)
    assert by is not None
    found = (requantised(sums, by) if y.kind == "int8" else requantised_wide(sums, by)) + y.zero
    least, most = LIMITS[y.kind]
    return np.clip(found, max(low, least), min(high, most)).astype(y.kind)


# ---------------------------------------------------------------- products


def windows(x: Numbers, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], grid: Sequence[int]) -> Numbers:
    """A padded array (samples, height, width, channels) as (samples, *grid, *kernel, channels), without a copy."""
    samples, down, along, each = x.strides
    steps = (samples, down * stride[0], along * stride[1], down * dilation[0], along * dilation[1], each)
    shape = (x.shape[0], *grid, *kernel, x.shape[3])
    return np.lib.stride_tricks.as_strided(x, shape, steps, writeable=False)


def _padded(x: Numbers, padding: Sequence[int], value: float) -> Numbers:
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def sums_of(layer: Conv, x: Numbers) -> Numbers:
    """What a convolution adds up, bias included, before it is rescaled: exact whole numbers, or float64 of floats."""
    read = layer.y.shape[0] * layer.y.shape[1] * layer.kernel[0] * layer.kernel[1] * layer.x.shape[2]
    some = max(1, _LARGEST // max(1, read))
    if len(x) > some:
        return np.concatenate([sums_of(layer, x[start : start + some]) for start in range(0, len(x), some)])
    centred = _padded(x.astype(np.float64) - (layer.x.zero if layer.x.kind != "float32" else 0), layer.padding, 0.0)
    seen = windows(centred, layer.kernel, layer.stride, layer.dilation, layer.y.shape[:2])
    weight = layer.weight.astype(np.float64)
    samples, height, width = seen.shape[:3]
    if layer.is_depthwise:
        per = weight.shape[0] // layer.groups
        by = weight[..., 0].reshape(layer.groups, per, *layer.kernel)
        found = np.einsum("nhwklc,cpkl->nhwcp", seen, by, optimize=True).reshape(samples, height, width, -1)
    else:
        inputs, outputs = weight.shape[3], weight.shape[0] // layer.groups
        parts = []
        for group in range(layer.groups):
            one = seen[..., group * inputs : (group + 1) * inputs].reshape(samples * height * width, -1)
            parts.append(one @ weight[group * outputs : (group + 1) * outputs].reshape(outputs, -1).T)
        found = np.concatenate(parts, 1).reshape(samples, height, width, -1)
    found += layer.bias.astype(np.float64)
    return found if layer.x.kind == "float32" else np.rint(found).astype(np.int64)


def _conv(layer: Conv, x: Numbers) -> Numbers:
    return finished(sums_of(layer, x), layer.y, layer.rescale, layer.low, layer.high)


# ---------------------------------------------------------------- places together


def _pool(layer: Pool, x: Numbers) -> Numbers:
    """Windows of what is there: a maximum never takes padding, an average does where it counts."""
    real = x.dtype.kind == "f"
    wide = x.astype(np.float64 if real else np.int64)
    there = np.ones_like(wide[:1, :, :, :1])
    ends = ends_of(layer)
    if not layer.average:
        least = -np.inf if real else LIMITS[layer.x.kind][0]
        seen = windows(_padded(wide, ends, least), layer.window, layer.stride, layer.dilation, layer.y.shape[:2])
        return seen.max((3, 4)).astype(x.dtype)
    zero = 0 if real else layer.x.zero
    seen = windows(_padded(wide, ends, 0), layer.window, layer.stride, layer.dilation, layer.y.shape[:2])
    count = windows(_padded(there, ends, 0), layer.window, layer.stride, layer.dilation, layer.y.shape[:2]).sum((3, 4))
    total = seen.sum((3, 4))
    if layer.counts_padding:
        whole = windows(_padded(there, ends, 1), layer.window, layer.stride, layer.dilation, layer.y.shape[:2]).sum((3, 4))
        total, count = total + (whole - count) * zero, whole
    if real:
        return (total / count).astype(np.float32)
    return (np.sign(total) * ((np.abs(total) + count // 2) // count)).astype(x.dtype)


def ends_of(layer: Pool) -> tuple[int, int, int, int]:
    """The padding, larger at the end where windows stick out."""
    top, bottom, left, right = layer.padding
    need = [
        (layer.y.shape[axis] - 1) * layer.stride[axis] + layer.dilation[axis] * (layer.window[axis] - 1) + 1 - layer.x.shape[axis]
        for axis in (0, 1)
    ]
    return top, max(bottom, need[0] - top), left, max(right, need[1] - left)


def _mean(layer: Mean, x: Numbers) -> Numbers:
    if x.dtype.kind == "f":
        return x.astype(np.float64).mean((1, 2), keepdims=True).astype(np.float32)
    total = (x.astype(np.int64) - layer.x.zero).sum((1, 2), keepdims=True)
    return finished(total, layer.y, layer.rescale)


# ---------------------------------------------------------------- two arrays, or several


def _add(layer: Add, x: Numbers, other: Numbers) -> Numbers:
    if x.dtype.kind == "f":
        return np.clip(x + np.float32(layer.sign) * other, layer.low, layer.high).astype(np.float32)
    assert layer.of_x is not None and layer.of_other is not None
    left = ADD_SHIFT[layer.x.kind]
    one = requantised((x.astype(np.int64) - layer.x.zero) << left, layer.of_x)
    two = requantised((other.astype(np.int64) - layer.other.zero) << left, layer.of_other)
    total = one + layer.sign * two
    assert layer.rescale is not None
    found = requantised(total, layer.rescale) + layer.y.zero
    least, most = LIMITS[layer.y.kind]
    return np.clip(found, max(layer.low, least), min(layer.high, most)).astype(layer.y.kind)


ADD_SHIFT = {"int8": 20, "int16": 15}
"""How far terms of a sum are shifted before they are rescaled to one scale, as in TFLite."""


def _multiply(layer: Multiply, x: Numbers, other: Numbers) -> Numbers:
    if x.dtype.kind == "f":
        return x * other
    product = (x.astype(np.int64) - layer.x.zero) * (other.astype(np.int64) - layer.other.zero)
    assert layer.rescale is not None
    found = requantised(product, layer.rescale) + layer.y.zero
    return np.clip(found, *LIMITS[layer.y.kind]).astype(layer.y.kind)


def _concat(layer: Concat, parts: Sequence[Numbers]) -> Numbers:
    found = []
    for part, array, by in zip(parts, layer.parts, layer.rescales or (None,) * len(parts), strict=True):
        if by is not None:
            moved = requantised(part.astype(np.int64) - array.zero, by) + layer.y.zero
            part = np.clip(moved, *LIMITS[layer.y.kind]).astype(layer.y.kind)
        found.append(part)
    return np.concatenate(found, 3)


# ---------------------------------------------------------------- number by number


def _table(layer: Table, x: Numbers) -> Numbers:
    if x.dtype.kind == "f":
        return function_of(layer.function)(x.astype(np.float64)).astype(np.float32)
    assert layer.table is not None
    if layer.x.kind == "int8":
        return layer.table[x.astype(np.int64) + 128].astype(layer.y.kind)
    place = x.astype(np.int64) + 32768  # 512 pieces of 128 numbers, and a line in each
    piece, rest = place >> 7, place & 127
    start, end = layer.table[piece].astype(np.int64), layer.table[piece + 1].astype(np.int64)
    return (start + (((end - start) * rest + 64) >> 7)).astype(layer.y.kind)


def _softmax(layer: Softmax, x: Numbers) -> Numbers:
    if x.dtype.kind == "f":
        powers = np.exp(x.astype(np.float64) - x.max(3, keepdims=True))
        return (powers / powers.sum(3, keepdims=True)).astype(np.float32)
    assert layer.table is not None
    wide = x.astype(np.int64)
    below = wide.max(3, keepdims=True) - wide
    table = layer.table.astype(np.int64)
    # int16: 256 exponentials of the upper eight bits, then 256 of the lower ones
    powers = table[below] if layer.x.kind == "int8" else (table[below >> 8] * table[256 + (below & 255)]) >> 15
    total = powers.sum(3, keepdims=True)
    if layer.y.kind == "int16":
        return np.minimum(32767, (powers * 32768 + total // 2) // total).astype(np.int16)
    return (np.minimum(255, (powers * 256 + total // 2) // total) - 128).astype(np.int8)


def _reorder(layer: Reorder, x: Numbers) -> Numbers:
    order = (0, *(place + 1 for place in layer.order))
    return np.ascontiguousarray(x.reshape(len(x), *layer.sizes).transpose(order)).reshape(len(x), *layer.y.shape)


def _cut(layer: Cut, x: Numbers) -> Numbers:
    places = tuple(
        slice(start, start + step * (size - 1) + 1, step)
        for start, step, size in zip(layer.start, layer.step, layer.y.shape, strict=True)
    )
    every = (slice(None), *places)
    return np.ascontiguousarray(x[every])


def _view(layer: View, x: Numbers) -> Numbers:
    return x.reshape(len(x), *layer.y.shape)


def _pad(layer: Pad, x: Numbers) -> Numbers:
    found = _padded(x, layer.padding, layer.value)
    return np.pad(found, ((0, 0), (0, 0), (0, 0), layer.channels), constant_values=layer.value)


_RULES: dict[type, Callable[[Any, Numbers], Numbers]] = {
    Conv: _conv,
    Pool: _pool,
    Mean: _mean,
    Table: _table,
    Softmax: _softmax,
    Pad: _pad,
    Cut: _cut,
    Reorder: _reorder,
    View: _view,
}
