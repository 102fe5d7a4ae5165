"""Depthwise convolutions in C: each channel as a plane of int16 while it is worked on."""

from __future__ import annotations

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.products import Place, rows_of, shape_of, statement, whole
from secateurs.integers.layers import Conv, Numbers

ROOM = 4096
"""Bytes that the planes of four channels may take, where so few rows of the result can be worked on at a time."""


def is_depthwise(layer: Conv) -> bool:
    """Whether each output reads one channel."""
    return layer.weight.shape[3] == 1 and layer.groups == layer.x.shape[2] and layer.groups > 1


def is_turned(layer: Conv) -> bool:
    """Whether the result's columns are what is worked along: where they are longer, and its rows would leave much of fours over."""
    height, width = layer.y.shape[:2]

    def work(length: int) -> float:
        return (length // 4 * 4 + (length % 4 + 1) // 2 * 2 * 1.5) / length

    return work(height) < work(width) and layer.dilation[0] == 1


def _even(number: int) -> int:
    return (number + 1) // 2 * 2


def _taps(layer: Conv) -> Numbers:
    """Kernels (outputs, height, width) as they are worked on: turned where the layer is, with zeros between the taps of a dilated row."""
    weight, dilation = layer.weight[..., 0], layer.dilation[1]
    if is_turned(layer):
        return weight.transpose(0, 2, 1)
    wide = np.zeros((*weight.shape[:2], (weight.shape[2] - 1) * dilation + 1), np.int8)
    wide[..., ::dilation] = weight
    return wide


def planes(layer: Conv, place: Place) -> tuple[int, int]:
    """How many rows of the result to work on at a time, and the bytes of the planes and taps."""
    turned, (rows, across) = is_turned(layer), _taps(layer).shape[1:]
    high, wide = (place.out_w, place.out_h) if turned else (place.out_h, place.out_w)
    (down, along), gaps = (layer.stride[::-1] if turned else layer.stride), layer.dilation[1 if turned else 0]
    pitch = _even((wide + -wide % 4 - 1) * along + _even(across))
    taps = 2 * rows * _even(across)

    def taken(band: int) -> int:
        return 8 * pitch * ((band - 1) * down + (rows - 1) * gaps + 1) + taps

    band = next((each for each in range(high, 1, -1) if taken(each) <= ROOM), 1)
    return band, taken(band)


def depthwise_call(layer: Conv, name: str, place: Place | None = None) -> Call:
    """A depthwise convolution of int8; ``name`` begins the names of its constants. Raises `FirmwareError` where the layer is not int8."""
    rows, taps, turned = rows_of(layer), _taps(layer), is_turned(layer)
    band, _ = planes(layer, whole(layer))
    shape = shape_of(layer, rows.easy, turned, band)
    strides, gaps = (layer.stride[::-1], layer.dilation[1]) if turned else (layer.stride, layer.dilation[0])
    shape[:6] = [*taps.shape[1:], *strides, gaps, 1]
    constants = (
        Constant(f"{name}_shape", "int16_t", shape),
        Constant(f"{name}_weight", "int8_t", np.ascontiguousarray(taps).ravel()),
        Constant(f"{name}_rows", "int32_t", rows.numbers.ravel()),
    )
    call = statement("sec_depthwise", name, place or whole(layer), "shape", "weight", "rows")
    return Call(
        layer, ("arithmetic.c", "depthwise.c"), constants, call, scratch=planes(layer, place or whole(layer))[1], label="depthwise"
    )
