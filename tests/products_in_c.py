"""Random convolutions of int8 for the tests of kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from secateurs.firmware.call import Call
from secateurs.integers.layers import Array, Conv
from secateurs.integers.rounding import rescale

Random = np.random.Generator


def conv(
    random: Random,
    x: tuple[int, int, int],
    outputs: int,
    kernel: tuple[int, int] = (1, 1),
    *,
    factor: float | None = None,
    zero: int = -128,
    largest: int = 127,
    **more: Any,
) -> Conv:
    """A convolution of an array of shape ``x``; answers spread over int8 unless a ``factor`` is given; ``more`` are fields of `Conv`."""
    stride, dilation = more.get("stride", (1, 1)), more.get("dilation", (1, 1))
    padding, inputs = more.get("padding", (0, 0, 0, 0)), x[2] // more.get("groups", 1)
    weight = random.integers(-largest, largest + 1, (outputs, *kernel, inputs)).astype(np.int8)
    out = [
        (x[axis] + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    spread = largest * np.sqrt(weight[0].size) * 0.5
    factors = random.uniform(0.3, 1.7, outputs) / spread if factor is None else np.full(outputs, factor)
    bias = random.integers(-20000, 20000, outputs).astype(np.int32)
    read, made = (
        Array("x", x, "int8", 0.05, int(random.integers(-128, 128))),
        Array("y", (out[0], out[1], outputs), "int8", 0.05, zero),
    )
    return Conv("conv", read, made, weight, bias, rescale=rescale(factors), **more)


def any_conv(random: Random) -> Conv:
    """Any size, stride, dilation, padding, groups, clamps and factors."""
    groups = int(random.choice([1, 1, 1, 2, 3]))
    inputs, outputs = groups * int(random.integers(1, 10)), groups * int(random.integers(1, 8))
    if random.random() < 0.4:
        groups = inputs
        outputs = inputs * int(random.choice([1, 1, 1, 2, 3]))
    kernel = (3, 3) if random.random() < 0.4 else (int(random.integers(1, 6)), int(random.integers(1, 6)))
    stride = (int(random.integers(1, 4)), int(random.integers(1, 4))) if random.random() < 0.5 else (1, 1)
    stride = (2, 2) if random.random() < 0.2 else stride
    dilation = (int(random.integers(1, 3)), int(random.integers(1, 3))) if random.random() < 0.2 else (1, 1)
    padding = tuple(int(random.integers(0, each + 1)) for each in (kernel[0], kernel[0], kernel[1], kernel[1]))
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 - padding[2 * axis] - padding[2 * axis + 1]) for axis in (0, 1)]
    x = least[0] + int(random.integers(0, 12)), least[1] + int(random.integers(0, 12)), inputs
    more: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    if random.random() < 0.3:
        more |= {"low": float(random.integers(-128, 0)), "high": float(random.integers(0, 128))}
    factor = float(random.choice([0.6, 1.5, 1e-12])) if random.random() < 0.1 else None
    found = conv(random, x, outputs, kernel, factor=factor, zero=int(random.integers(-128, 128)), **more)
    return pruned(found, random, float(random.random()), 1, 1) if random.random() < 0.4 else found


def pruned(layer: Conv, random: Random, keep: float, tall: int, wide: int) -> Conv:
    """The layer with some of its blocks of ``tall`` rows times ``wide`` taps, the others zeros."""
    flat = layer.weight.reshape(len(layer.weight), -1)
    blocks = random.random((-(-flat.shape[0] // tall), -(-flat.shape[1] // wide))) < keep
    kept = np.kron(blocks, np.ones((tall, wide), np.int8))[: flat.shape[0], : flat.shape[1]]
    return replace(layer, weight=(flat * kept).astype(np.int8).reshape(layer.weight.shape))


def of_four(layer: Conv, random: Random, most: int) -> Conv:
    """The layer with at most so many of each four taps of a row."""
    flat = layer.weight.reshape(len(layer.weight), -1)
    fours = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))).reshape(len(flat), -1, 4)
    kept = np.argsort(np.argsort(random.random(fours.shape), 2), 2) < most
    weight = (fours * kept).astype(np.int8).reshape(len(flat), -1)[:, : flat.shape[1]]
    return replace(layer, weight=weight.reshape(layer.weight.shape))


def apart(calls: list[Call]) -> list[Call]:
    """Calls that were made with the name ``c``, with names of their own."""
    found = []
    for place, call in enumerate(calls):
        constants = tuple(replace(each, name=f"c{place}{each.name[1:]}") for each in call.constants)
        found.append(replace(call, constants=constants, statement=call.statement.replace(" c_", f" c{place}_")))
    return found
