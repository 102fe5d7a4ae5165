"""Convolutions and linear layers in int8 as calls of C kernels: what stands in flash for them, whichever the format of the weights."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Conv, Numbers

LARGEST = 1 << 30
"""Sums below it can be doubled in 32 bits."""


@dataclass(frozen=True)
class Place:
    """What part of its arrays a layer reads and writes, as a C kernel is told: sizes, numbers from row to row, padding that is left.

    The pointers that go with it point at the first number of the part. What lies right and below of it is padding too.
    """

    in_h: int
    in_w: int
    in_row: int
    out_h: int
    out_w: int
    out_row: int
    top: int
    left: int


@dataclass(frozen=True, eq=False)
class Rows:
    """What becomes of each output's sum: ``numbers`` is int32 (outputs, 3): where it starts, multiplier, shift.

    ``easy``: the start is doubled and the shift is to the right, since all sums can be doubled.
    """

    numbers: Numbers
    easy: bool


def whole(layer: Conv) -> Place:
    """All of both arrays."""
    (in_h, in_w, inputs), (out_h, out_w, outputs) = layer.x.shape, layer.y.shape
    return Place(in_h, in_w, in_w * inputs, out_h, out_w, out_w * outputs, layer.padding[0], layer.padding[2])


def limits(layer: Conv) -> tuple[int, int]:
    """The least and the largest number that the result may hold."""
    return int(max(layer.low, -128)), int(min(layer.high, 127))


def rows_of(layer: Conv) -> Rows:
    """Bias, zero points and factors as the kernels take them; int8 only.

    Raises `FirmwareError` where the arrays are not int8, or sums may leave 32 bits.
    """
    if layer.x.kind != "int8" or layer.y.kind != "int8" or layer.rescale is None:
        raise FirmwareError(
            f"{layer.name}: these kernels are for int8, and this layer reads {layer.x.kind} and writes {layer.y.kind}"
        )
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    start = layer.bias.astype(np.int64) - layer.x.zero * weight.sum(1)
    bound = np.abs(start) + 128 * np.abs(weight).sum(1)
    if bound.max() >= 2 * LARGEST:
        raise FirmwareError(f"{layer.name}: sums of up to {bound.max()} do not fit 32 bits; scale its inputs or its bias down")
    multiplier = np.broadcast_to(layer.rescale.multiplier, start.shape).astype(np.int64)
    shift = np.broadcast_to(layer.rescale.shift, start.shape).astype(np.int64)
    shift = np.where(multiplier == 0, -1, shift)
    easy = bool(shift.max() < 0 and bound.max() < LARGEST)
    numbers = np.stack([2 * start, multiplier, -shift] if easy else [start, multiplier, shift], 1)
    return Rows(numbers.astype(np.int32), easy)


def lines_of(layer: Conv, place: Place) -> int:
    """Bytes for the rows that a row of the result reads, with their padding: where there is any, they are copied; 0 where none are."""
    height, width = layer.kernel
    if layer.groups > 1 or (height, width) == (1, 1) or not any(layer.padding):
        return 0
    across = (place.out_w - 1) * layer.stride[1] + (width - 1) * layer.dilation[1] + 1
    return height * across * layer.x.shape[2]


def shape_of(layer: Conv, easy: bool, *more: int) -> Numbers:
    """What does not change from part to part, int16, in the order of ``arithmetic.c``; ``more`` is the format's own."""
    outputs, height, width, inputs = layer.weight.shape
    sizes = (height, width, *layer.stride, *layer.dilation, inputs, outputs // layer.groups, layer.groups)
    numbers = np.array(
        [*sizes, layer.x.zero, layer.y.zero, *limits(layer), easy, easy and limits(layer) != (-128, 127), *more], np.int64
    )
    if np.abs(numbers).max() > 32767:
        raise FirmwareError(f"{layer.name}: sizes above 32767 do not fit the kernels' tables: {numbers.tolist()}; split the layer")
    return numbers.astype(np.int16)


def flat(layer: Conv) -> Numbers:
    """The weights as (groups, outputs / groups, taps), taps in the order height, width, inputs, with zeros up to a multiple of four."""
    outputs = len(layer.weight) // layer.groups
    weight = layer.weight.reshape(layer.groups, outputs, -1)
    return np.pad(weight, ((0, 0), (0, 0), (0, -weight.shape[2] % 4)))


def statement(function: str, name: str, place: Place, *arrays: str) -> str:
    """The C that calls a kernel: ``arrays`` are the ends of the names of its constants."""
    numbers = ", ".join(str(each) for each in astuple(place))
    return f"{function}({{x}}, {{y}}, {{scratch}}, {', '.join(f'{name}_{each}' for each in arrays)}, {numbers});"
