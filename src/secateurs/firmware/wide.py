"""Layers of int16 arrays with weights of 8 bits as calls of C kernels: they answer as `integers.reference` does, to the bit."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np

from secateurs.firmware.call import Call
from secateurs.firmware.constants import constant, factors
from secateurs.firmware.dense import in_fours
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.products import Place, flat, whole
from secateurs.firmware.simple_calls import (
    add_by,
    conv_sizes,
    everywhere,
    period,
    pool_shape,
    require_exponentials,
    require_sums,
)
from secateurs.integers.bounds import largest_sums
from secateurs.integers.layers import Add, Conv, Mean, Multiply, Numbers, Pool, Rescale, Softmax, Table

_ROOM = 1 << 47
"""Sums below it times a multiplier of 16 bits fit 64."""


def single(by: Rescale | None, name: str) -> tuple[Numbers, Numbers]:
    """Multipliers of 16 bits and shifts to the right, as `integer.rounding.requantised_wide` has them."""
    assert by is not None
    multiplier, shift = by.multiplier.astype(np.int64), 15 - by.shift.astype(np.int64)
    if shift.min() < 1:
        raise FirmwareError(
            f"{name}: a factor of {2.0 ** (15 - int(shift.min()))} or more between its sums and its result; give it its ranges anew"
        )
    return np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF), shift


def conv_call(layer: Conv, prefix: str, place: Place | None = None) -> Call:
    """A convolution or linear layer with all of its weights; sums have 64 bits."""
    reached = int(largest_sums(layer).max())
    if reached >= _ROOM:
        raise FirmwareError(f"{layer.name}: sums can reach {reached}, more than kernels take ({_ROOM}); scale its bias down")
    place, outputs = place or whole(layer), len(layer.weight)
    multiplier, shift = (np.broadcast_to(each, outputs) for each in single(layer.rescale, layer.name))
    sizes = conv_sizes(layer, prefix)
    depthwise = layer.is_depthwise
    weight = layer.weight[..., 0].transpose(1, 2, 0) if depthwise else in_fours(flat(layer))
    numbers = (
        sizes,
        constant(prefix, "weights", "int8_t", weight),
        constant(prefix, "bias", "int64_t", layer.bias),
        constant(prefix, "rows", "int32_t", np.stack([multiplier, shift], 1)),
    )
    ends = ", ".join(str(int(each)) for each in (max(layer.low, -32768), min(layer.high, 32767), *astuple(place)))
    names, places = ", ".join(each.name for each in numbers), place.out_h * place.out_w
    if depthwise:
        statement = f"sec_wide_depthwise({{x}}, {{y}}, {names}, {ends});"
        by_channel = ("arithmetic.c", "window.c", "wide.c", "wide_depthwise.c")
        return Call(
            layer, by_channel, numbers, statement, instructions=places * (layer.weight.size * 8.0 + outputs * 40), label="dense"
        )
    statement, taps = f"sec_wide_conv({{x}}, {{y}}, {{scratch}}, {names}, {ends});", weight.shape[2]
    cost = places * (layer.groups * taps * 3 + outputs * (taps * 2.3 + 30))
    kernels = ("arithmetic.c", "wide.c", "wide_conv.c")
    return Call(layer, kernels, numbers, statement, 2 * taps, instructions=cost, label="dense")


def pool_call(layer: Pool, prefix: str, place: Place | None = None) -> Call:
    """A maximum or an average over windows."""
    require_sums(layer.name, layer.window[0] * layer.window[1], layer.x)
    shape, place = pool_shape(layer, prefix), place or everywhere(layer)
    numbers = ", ".join(str(each) for each in (int(layer.average), *astuple(place)))
    cost = 30 + place.out_h * place.out_w * (80 + layer.x.shape[2] * (33 + 9 * layer.window[0] * layer.window[1]))
    statement = f"sec_wide_pool({{x}}, {{y}}, {shape.name}, {numbers});"
    return Call(layer, ("window.c", "wide_pool.c"), (shape,), statement, instructions=cost)


def mean_call(layer: Mean, prefix: str) -> Call:
    """The mean of each channel over all places."""
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    require_sums(layer.name, places, layer.x)
    multiplier, shift = (int(each[0]) for each in single(layer.rescale, layer.name))
    statement = f"sec_wide_mean({{x}}, {{y}}, {places}, {channels}, {multiplier}, {shift});"
    return Call(layer, ("wide.c", "wide_mean.c"), (), statement, instructions=20 + channels * (30 + 5 * places))


def add_call(layer: Add, prefix: str) -> Call:
    """The sum or difference of two arrays."""
    by = add_by(layer, prefix, 15)
    statement = f"sec_wide_add({{x}}, {{other}}, {{y}}, {layer.y.size}, {by.name});"
    kernels = ("arithmetic.c", "rescale.c", "terms.c", "wide_add.c")
    return Call(layer, kernels, (by,), statement, in_place="x", instructions=30 + 57 * layer.y.size)


def multiply_call(layer: Multiply, prefix: str) -> Call:
    """The product of two arrays, or of one with a number for each channel."""
    multiplier, shift = factors(layer.rescale)
    statement = f"sec_wide_multiply({{x}}, {{other}}, {{y}}, {layer.y.size}, {period(layer)}, {multiplier}, {shift});"
    kernels = ("arithmetic.c", "rescale.c", "wide_multiply.c")
    return Call(layer, kernels, (), statement, in_place="x", instructions=30 + 19 * layer.y.size)


def table_call(layer: Table, prefix: str) -> Call:
    """A function of single numbers, out of 513 numbers of it."""
    assert layer.table is not None
    table = constant(prefix, "table", "int16_t", layer.table)
    statement = f"sec_wide_table({{x}}, {{y}}, {layer.y.size}, {table.name});"
    return Call(layer, ("wide_table.c",), (table,), statement, in_place="x", instructions=20 + 14 * layer.y.size)


def softmax_call(layer: Softmax, prefix: str) -> Call:
    """exp(x - largest) / sum over the channels."""
    assert layer.table is not None
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    require_exponentials(layer)
    table = constant(prefix, "table", "uint32_t", layer.table)
    statement = f"sec_wide_softmax({{x}}, {{y}}, {places}, {channels}, {table.name});"
    return Call(layer, ("wide_softmax.c",), (table,), statement, in_place="x", instructions=20 + places * (20 + 42 * channels))
