"""Layers in float32 as calls of C kernels."""

from __future__ import annotations

from dataclasses import astuple
from math import isinf

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.constants import constant
from secateurs.firmware.products import Place, whole
from secateurs.firmware.simple_calls import conv_sizes, everywhere, period, pool_shape
from secateurs.integers.layers import Add, Conv, Mean, Multiply, Numbers, Pool, Softmax, Table

_FAR = 255
"""How many taps further the next weight can be; where it is more, a weight of 0 stands between."""

_CHEAP = ("hard_swish", "hard_sigmoid", "leaky_relu", "softsign", "abs", "square")
"""Functions without exp and the like."""


def literal(number: float) -> str:
    """A float32 as C has it.

    >>> literal(0.1), literal(6), literal(-np.inf)
    ('0.100000001f', '6.0f', '-INFINITY')
    """
    if isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return f"{float(f'{np.float32(number):.9g}')!r}f"


def conv_call(layer: Conv, prefix: str, place: Place | None = None) -> Call:
    """A convolution or linear layer, dense, or with the weights that are not 0 where that takes less."""
    sizes, bias = conv_sizes(layer, prefix), constant(prefix, "bias", "float", layer.bias)
    place = place or whole(layer)
    ends = f"{literal(layer.low)}, {literal(layer.high)}, {', '.join(str(each) for each in astuple(place))}"
    places, weight = place.out_h * place.out_w, layer.weight
    if layer.is_depthwise:
        weights = constant(prefix, "weights", "float", weight[..., 0].transpose(1, 2, 0))
        statement = f"sec_float_depthwise({{x}}, {{y}}, {sizes.name}, {weights.name}, {bias.name}, {ends});"
        dense = ("arithmetic.c", "window.c", "float_depthwise.c")
        return Call(layer, dense, (sizes, weights, bias), statement, instructions=places * weight.size * 11.5, label="float32")
    listed = _listed(layer, prefix)
    if listed is not None:
        taps = weight[0].size
        names = ", ".join(each.name for each in (sizes, *listed, bias))
        statement = f"sec_float_sparse({{x}}, {{y}}, {{scratch}}, {names}, {ends});"
        cost = places * (taps * layer.groups * 1.5 + listed[0].numbers.size / layer.groups * 7 + len(weight) * 15)
        sparse = ("arithmetic.c", "float_sparse.c")
        return Call(layer, sparse, (sizes, *listed, bias), statement, 4 * taps, instructions=cost, label="float32, those not 0")
    weights = constant(prefix, "weights", "float", weight)
    statement = f"sec_float_conv({{x}}, {{y}}, {sizes.name}, {weights.name}, {bias.name}, {ends});"
    kernels = ("arithmetic.c", "window.c", "float_conv.c")
    return Call(layer, kernels, (sizes, weights, bias), statement, instructions=places * weight.size * 4.0, label="float32")


def _listed(layer: Conv, prefix: str) -> tuple[Constant, Constant, Constant] | None:
    """Weights, gaps and how many an output has; nothing where all weights take less."""
    weights, gaps, counts = relative(layer.weight.reshape(len(layer.weight), -1))
    if 5 * len(weights) + 2 * len(counts) >= layer.weight.nbytes or max(counts, default=0) > 65535:
        return None
    return (
        constant(prefix, "weights", "float", weights),
        constant(prefix, "gaps", "uint8_t", gaps),
        constant(prefix, "counts", "uint16_t", counts),
    )


def relative(weight: Numbers) -> tuple[list[float], list[int], list[int]]:
    """Of a matrix the numbers that are not 0, how many places each is from the one before in its row, and how many there are in each row.

    >>> relative(np.array([[0.0, 2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]]))
    ([2.0, 3.0], [1, 2], [2, 0])
    """
    weights: list[float] = []
    gaps: list[int] = []
    counts = []
    for row in weight:
        before, at = len(weights), 0
        for place in np.flatnonzero(row).tolist():
            while place - at > _FAR:
                weights.append(0.0)
                gaps.append(_FAR)
                at += _FAR
            weights.append(float(row[place]))
            gaps.append(place - at)
            at = place
        counts.append(len(weights) - before)
    return weights, gaps, counts


def pool_call(layer: Pool, prefix: str, place: Place | None = None) -> Call:
    """A maximum or an average over windows."""
    shape, place = pool_shape(layer, prefix), place or everywhere(layer)
    numbers = ", ".join(str(each) for each in (int(layer.average), *astuple(place)))
    cost = 30 + place.out_h * place.out_w * (80 + layer.x.shape[2] * (28 + 10 * layer.window[0] * layer.window[1]))
    statement = f"sec_float_pool({{x}}, {{y}}, {shape.name}, {numbers});"
    return Call(layer, ("window.c", "float_pool.c"), (shape,), statement, instructions=cost)


def mean_call(layer: Mean, prefix: str) -> Call:
    """The mean of each channel over all places."""
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    statement = f"sec_float_mean({{x}}, {{y}}, {places}, {channels});"
    return Call(layer, ("float_mean.c",), (), statement, instructions=20 + channels * (10 + 6 * places))


def add_call(layer: Add, prefix: str) -> Call:
    """The sum or difference of two arrays."""
    statement = (
        f"sec_float_add({{x}}, {{other}}, {{y}}, {layer.y.size}, {layer.sign}.0f, {literal(layer.low)}, {literal(layer.high)});"
    )
    return Call(layer, ("float_add.c",), (), statement, in_place="x", instructions=20 + 14 * layer.y.size)


def multiply_call(layer: Multiply, prefix: str) -> Call:
    """The product of two arrays, or of one with a number for each channel."""
    statement = f"sec_float_multiply({{x}}, {{other}}, {{y}}, {layer.y.size}, {period(layer)});"
    return Call(layer, ("float_multiply.c",), (), statement, in_place="x", instructions=20 + 11 * layer.y.size)


def table_call(layer: Table, prefix: str) -> Call:
    """A function of single numbers, or a clamp."""
    if layer.function.startswith("clamp "):
        low, high = map(float, layer.function.split()[1:])
        statement = f"sec_float_clamp({{x}}, {{y}}, {layer.y.size}, {literal(low)}, {literal(high)});"
        return Call(layer, ("float_clamp.c",), (), statement, in_place="x", instructions=20 + 12 * layer.y.size)
    kind, *given = layer.function.split()
    cost = 20 + layer.y.size * (25 if kind in _CHEAP else 120)
    kernels, statement = ("float_functions.c", "float_each.c"), f"sec_float_each({{x}}, {{y}}, {layer.y.size}, sec_{kind});"
    if given:
        numbers = ", ".join([*map(literal, map(float, given)), *["0.0f"] * (3 - len(given))])
        statement = f"sec_float_shaped({{x}}, {{y}}, {layer.y.size}, sec_{kind}, {numbers});"
        kernels = ("float_functions.c", "float_shaped.c")
    return Call(layer, kernels, (), statement, in_place="x", instructions=cost)


def softmax_call(layer: Softmax, prefix: str) -> Call:
    """exp(x - largest) / sum over the channels."""
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    statement = f"sec_float_softmax({{x}}, {{y}}, {places}, {channels});"
    return Call(layer, ("float_softmax.c",), (), statement, in_place="x", instructions=20 + places * (20 + 110 * channels))
