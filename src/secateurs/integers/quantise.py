"""From a network in float32 to one in integers, given the range of each array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from secateurs.integers.bounds import require_room
from secateurs.integers.functions import function_of
from secateurs.integers.layers import (
    LIMITS,
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Kind,
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
    with_layers,
    written,
)
from secateurs.integers.recurrent_quantise import in_integers, with_states_alike
from secateurs.integers.reference import ADD_SHIFT
from secateurs.integers.rounding import rescale
from secateurs.types import SecateursError

Range = tuple[float, float]
_FIXED: dict[str, Range] = {"sigmoid": (0.0, 255 / 256), "hard_sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
"""Ranges that follow from the function, as TFLite has them for int8: a step is a power of two, and what is left out is rounded."""


def quantised(network: Network, ranges: Mapping[str, Range], kind: Kind = "int8") -> Network:
    """A network in integers: weights symmetric around zero for each output, arrays with one scale each, biases of 32 bits.

    ``ranges`` are the least and largest number of each array, by its name. int8 arrays have a zero point, int16 ones are symmetric; weights
    have 8 bits in both. Arrays that hold the same numbers in another order share a scale.

    Raises `SecateursError` where a range is missing or not finite, or sums could leave 32 bits (64 for int16).

    >>> x, y = Array("x", (1, 1, 2)), Array("y", (1, 1, 1))
    >>> one = Conv("fc", x, y, np.array([[[[1.0, -0.5]]]], np.float32), np.zeros(1, np.float32))
    >>> made = quantised(Network((), (), (one,)), {"x": (0, 2.55), "y": (-1.275, 1.275)}).layers[0]
    >>> made.weight.ravel().tolist(), made.x.zero, made.y.zero
    ([127, -64], -128, 0)
    """
    if kind == "float32":
        return network
    ranges = with_states_alike(network, ranges)
    arrays = {array.name: of_range(array, _range(array, ranges), kind) for array in _sources(network)}
    layers = []
    for layer in network.layers:
        made = _RULES[type(layer)](layer, arrays, ranges, kind)
        arrays.update({array.name: array for array in written(made)})
        layers.append(made)
    found = with_layers(network, layers, arrays)
    for layer in found.layers:
        if isinstance(layer, Conv):
            require_room(layer)
    return found


def _sources(network: Network) -> list[Array]:
    """What no layer writes: the inputs, and whatever a network that is only part of one begins with."""
    made = {array.name for layer in network.layers for array in written(layer)}
    found = {face.array.name: face.array for face in network.inputs}
    for layer in network.layers:
        found.update({array.name: array for array in read(layer) if array.name not in made and array.name not in found})
    return list(found.values())


def _range(array: Array, ranges: Mapping[str, Range]) -> Range:
    if array.name not in ranges:
        raise SecateursError(
            f"{array.name}: calibration never saw its range; calibrate on inputs with which the whole network runs"
        )
    low, high = ranges[array.name]
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise SecateursError(
            f"{array.name}: the range ({low:g}, {high:g}) that calibration saw is none: the model overflows on these inputs"
        )
    return float(low), float(high)


def of_range(array: Array, within: Range, kind: Kind) -> Array:
    """An array of integers that hold a range, zero exactly among them.

    >>> found = of_range(Array("x", (1, 1, 1)), (-1.0, 3.0), "int8")
    >>> found.zero, round(found.scale * (127 - found.zero), 2), round(found.scale * (-128 - found.zero), 2)
    (-64, 3.0, -1.0)
    """
    low, high = min(within[0], 0.0), max(within[1], 0.0)
    if kind == "int16":
        scale = _step(max(-low, high) / 32767)
        return replace(array, kind=kind, scale=scale, zero=0)
    scale = _step((high - low) / 255)
    return replace(array, kind=kind, scale=scale, zero=int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def _step(size: float) -> float:
    """A scale as float32 holds it, which is what other runtimes read; 1 for an array that is always 0."""
    found = float(np.float32(size))
    return found if found > 1e-30 else 1.0


def to_integers(numbers: Any, array: Array) -> Numbers:
    """What is meant, as numbers of an array: rounded to the nearest, clamped.

    >>> to_integers([0.26, 9.0], Array("x", (1, 1, 1), "int8", 0.1, -3)).tolist()
    [0, 87]
    """
    if array.kind == "float32":
        return np.asarray(numbers, np.float32)
    found = np.rint(np.asarray(numbers, np.float32) / np.float32(array.scale)) + array.zero
    return np.clip(found, *LIMITS[array.kind]).astype(array.kind)


def from_integers(numbers: Numbers, array: Array) -> Numbers:
    """What numbers of an array mean, in float32.

    >>> from_integers(np.array([-3, 7], np.int8), Array("x", (1, 1, 1), "int8", 0.5, -3)).tolist()
    [0.0, 5.0]
    """
    return numbers if array.kind == "float32" else ((numbers.astype(np.int64) - array.zero) * array.scale).astype(np.float32)


# ---------------------------------------------------------------- layers

Arrays = Mapping[str, Array]


def _written(layer: Layer, ranges: Mapping[str, Range], kind: Kind, unit: float) -> Array:
    """What a layer writes, given what 1 in its sums is worth: steps are not finer than a part of that, so that factors stay small."""
    y = of_range(layer.y, _range(layer.y, ranges), kind)
    return y if y.scale >= unit / 256 else replace(y, scale=_step(unit / 256))


def _conv(layer: Conv, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x = arrays[layer.x.name]
    weight, steps, bias = integers_of(layer, x, kind)
    y = _written(layer, ranges, kind, float(steps[weight.any((1, 2, 3))].max(initial=0.0)) * x.scale)
    low, high = _clamp(layer, y)
    return replace(
        layer,
        x=x,
        y=y,
        weight=weight,
        bias=bias,
        low=low,
        high=high,
        rescale=rescale(steps * x.scale / y.scale),
        weight_scale=steps,
    )


def integers_of(layer: Conv, x: Array, kind: Kind) -> tuple[Numbers, Numbers, Numbers]:
    """A layer's weights as int8, what a step of each output's is worth, and its biases in steps of the sums.

    Steps are as small as the weights allow, and large enough that the bias stays below 2^24, whatever the kind:
    what weights add beside a larger one is less than a step of the result.
    """
    weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
    steps = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    steps = np.maximum(steps, np.maximum(np.abs(bias) / (2.0**24 * x.scale), 1e-30))
    largest = steps.max(initial=0.0)
    steps = np.where(steps > 1e-30, steps, largest if largest > 1e-30 else 1 / x.scale)
    whole = np.clip(np.rint(weight / steps[:, None, None, None]), -127, 127).astype(np.int8)
    return whole, steps, np.rint(bias / (steps * x.scale)).astype(np.int32 if kind == "int8" else np.int64)


def _clamp(layer: Conv | Add, y: Array) -> tuple[int, int]:
    least, most = LIMITS[y.kind]
    low = least if layer.low == -np.inf else int(to_integers(layer.low, y))
    high = most if layer.high == np.inf else int(to_integers(layer.high, y))
    return low, high


def _same(layer: Any, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    """The numbers of ``x``, or some of them, so with its scale."""
    x = arrays[layer.x.name]
    y = replace(layer.y, kind=kind, scale=x.scale, zero=x.zero)
    return replace(layer, x=x, y=y)


def _pad(layer: Pad, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    found = _same(layer, arrays, ranges, kind)
    assert isinstance(found, Pad)
    return replace(found, value=int(to_integers(layer.value, found.x)))


def _mean(layer: Mean, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x = arrays[layer.x.name]
    unit = x.scale / (x.shape[0] * x.shape[1])
    y = _written(layer, ranges, kind, unit)
    return replace(layer, x=x, y=y, rescale=rescale(unit / y.scale))


def _add(layer: Add, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x, other = arrays[layer.x.name], arrays[layer.other.name]
    twice = 2 * max(x.scale, other.scale)
    unit = twice / 2.0 ** ADD_SHIFT[kind]
    y = _written(layer, ranges, kind, unit)
    low, high = _clamp(layer, y)
    by = rescale(x.scale / twice), rescale(other.scale / twice), rescale(unit / y.scale)
    return replace(layer, x=x, other=other, y=y, low=low, high=high, of_x=by[0], of_other=by[1], rescale=by[2])


def _multiply(layer: Multiply, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x, other = arrays[layer.x.name], arrays[layer.other.name]
    y = _written(layer, ranges, kind, x.scale * other.scale)
    return replace(layer, x=x, other=other, y=y, rescale=rescale(x.scale * other.scale / y.scale))


def _concat(layer: Concat, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    parts = tuple(arrays[part.name] for part in layer.parts)
    y = _written(layer, ranges, kind, max(part.scale for part in parts))
    if len({(part.scale, part.zero) for part in parts}) == 1:
        y = replace(y, scale=parts[0].scale, zero=parts[0].zero)
    by: tuple[Rescale | None, ...] = tuple(
        None if (part.scale, part.zero) == (y.scale, y.zero) else rescale(part.scale / y.scale) for part in parts
    )
    return replace(layer, parts=parts, y=y, rescales=by)


def _table(layer: Table, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x = arrays[layer.x.name]
    y = of_range(layer.y, _FIXED.get(layer.function) or _range(layer.y, ranges), kind)
    places = np.arange(-128, 128) if kind == "int8" else np.arange(-32768, 32769, 128)
    meant = function_of(layer.function)((places.astype(np.float64) - x.zero) * x.scale)
    table = np.clip(np.rint(meant / y.scale) + y.zero, *LIMITS[kind]).astype(kind)
    return replace(layer, x=x, y=y, table=table)


def _softmax(layer: Softmax, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    x = arrays[layer.x.name]
    steps = np.arange(256, dtype=np.float64) * x.scale
    if kind == "int8":
        y, table = replace(layer.y, kind=kind, scale=1 / 256, zero=-128), np.exp(-steps) * 2**16
    else:
        y, table = replace(layer.y, kind=kind, scale=1 / 32768), np.exp(-np.concatenate([steps * 256, steps])) * 2**15
    return replace(layer, x=x, y=y, table=np.rint(table).astype(np.uint32))


def _recurrent(layer: Recurrent, arrays: Arrays, ranges: Mapping[str, Range], kind: Kind) -> Layer:
    """The hidden state is quantised as ``y`` is, so its range is that of both; the cell within has 32 bits and needs none."""
    start = tuple(None if each is None else arrays[each.name] for each in layer.start)
    low, high = _range(layer.y, ranges)
    if layer.start and layer.start[0] is not None:
        begun = _range(layer.start[0], ranges)
        low, high = min(low, begun[0]), max(high, begun[1])
    y = of_range(layer.y, (low, high), kind)
    last: list[Array | None] = [
        None if each is None else replace(each, kind=kind, scale=y.scale, zero=y.zero) for each in layer.last
    ]
    if len(layer.last) > 1 and layer.last[1] is not None:
        last[1] = of_range(layer.last[1], _range(layer.last[1], ranges), kind)
    return in_integers(layer, arrays[layer.x.name], y, start, last)


_RULES: dict[type, Callable[[Any, dict[str, Array], Mapping[str, Range], Kind], Any]] = {
    Conv: _conv,
    Pool: _same,
    Mean: _mean,
    Add: _add,
    Multiply: _multiply,
    Concat: _concat,
    Table: _table,
    Softmax: _softmax,
    Pad: _pad,
    Cut: _same,
    Reorder: _same,
    View: _same,
    Recurrent: _recurrent,
}
