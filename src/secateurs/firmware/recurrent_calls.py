"""LSTM and GRU as calls of C kernels, in integers and in float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.constants import constant, factors
from secateurs.firmware.dense import in_fours
from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Numbers, Recurrent
from secateurs.integers.recurrent_quantise import largest_gates


def recurrent_call(layer: Recurrent, prefix: str) -> Call:
    """All steps of an LSTM or GRU in int8 or int16: states of 32 bits and what a step reads are in the scratch memory."""
    fixed = layer.fixed
    if fixed is None:
        raise FirmwareError(
            f"{layer.name}: it has arrays of {layer.x.kind}, but no factors for integers; quantise the network first"
        )
    _, steps, inputs = layer.x.shape
    units, gates = layer.recurrent.shape[1], len(layer.recurrent) // layer.recurrent.shape[1]
    weights = [in_fours(_padded(each)) for each in (layer.weight, layer.recurrent)]
    pairs = ((layer.bias, fixed.of_x), (layer.recurrent_bias, fixed.of_hidden))
    rows = [np.stack([bias, by.multiplier, by.shift], 1) for bias, by in pairs]
    sizes = _sizes(layer, prefix, int(layer.x.kind == "int16"), int(_is_easy(layer)))
    constants = (
        sizes,
        constant(prefix, "weights", "int8_t", _by_unit(weights, gates)),
        constant(prefix, "rows", "int32_t", _by_unit(rows, gates)),
        constant(prefix, "by", "int32_t", _by(layer)),
    )
    kernels = ("arithmetic.c", "rescale.c", "dot.c", "recurrent.c", "gru.c" if layer.gru else "lstm.c")
    taps = sum(each.shape[1] for each in weights)
    cost = steps * (units * gates * (taps * 2.1 + 70) + units * (190 if layer.gru else 130) + inputs * 6)
    scratch = 4 * units + 2 * taps
    return Call(
        layer, kernels, constants, _statement(layer, "", constants), scratch, instructions=cost, label=f"{layer.x.kind}, dense"
    )


def float_recurrent_call(layer: Recurrent, prefix: str) -> Call:
    """All steps of an LSTM or GRU in float32."""
    _, steps, inputs = layer.x.shape
    units, gates = layer.recurrent.shape[1], len(layer.recurrent) // layer.recurrent.shape[1]
    weights = [np.concatenate([layer.weight, layer.recurrent], 1)]
    biases = np.stack([layer.bias, layer.recurrent_bias], 1) if layer.gru else (layer.bias + layer.recurrent_bias)[:, None]
    constants = (
        _sizes(layer, prefix),
        constant(prefix, "weights", "float", _by_unit(weights, gates)),
        constant(prefix, "biases", "float", _by_unit([biases], gates)),
    )
    kernels = ("float_functions.c", "float_recurrent.c", "float_gru.c" if layer.gru else "float_lstm.c")
    cost = steps * (units * gates * (inputs + units) * 4.0 + units * 450)
    scratch = 4 * units * (1 if layer.gru else 2)
    return Call(layer, kernels, constants, _statement(layer, "float_", constants), scratch, instructions=cost, label="float32")


def _statement(layer: Recurrent, kind: str, constants: tuple[Constant, ...]) -> str:
    """The call, with 0 for what the layer neither begins with nor leaves."""
    states = 1 if layer.gru else 2
    names = [
        f"{{{which}_{place}}}" if place < len(arrays) and arrays[place] is not None else "0"
        for which, arrays in (("start", layer.start), ("last", layer.last))
        for place in range(states)
    ]
    inside = ", ".join(("{x}", "{y}", *names, "{scratch}", *(each.name for each in constants)))
    return f"sec_{kind}{'gru' if layer.gru else 'lstm'}({inside});"


def _sizes(layer: Recurrent, prefix: str, *more: int) -> Constant:
    _, steps, inputs = layer.x.shape
    sizes = (steps, inputs, layer.recurrent.shape[1], int(layer.backwards), *more)
    if max(sizes) > 32767:
        raise FirmwareError(f"{layer.name}: sizes above 32767 do not fit the kernel's table: {sizes}; give it shorter sequences")
    return constant(prefix, "sizes", "int16_t", sizes)


def _padded(weight: Numbers) -> Numbers:
    """Rows with zeros up to a multiple of four."""
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % 4)))


def _by_unit(numbers: Sequence[Numbers], gates: int) -> Numbers:
    """Of each unit the rows of its gates, of one matrix after the other, where torch has all units of a gate."""
    return np.concatenate(
        [each.reshape(gates, -1, each.shape[1]).swapaxes(0, 1).reshape(-1, gates * each.shape[1]) for each in numbers], 1
    )


def _is_easy(layer: Recurrent) -> bool:
    """Whether all sums can be doubled, and none of them is multiplied by more than 1."""
    fixed = layer.fixed
    assert fixed is not None
    largest = max(int(largest_gates(layer, which).max()) for which in ("weight", "recurrent"))
    shifts = [int(each) for by in (fixed.of_x, fixed.of_hidden) for each in (by.shift.min(), by.shift.max())]
    return largest < 1 << 30 and min(shifts) >= -29 and max(shifts) <= 0


def _by(layer: Recurrent) -> list[int]:
    """Zeros and factors in the order of ``recurrent.c``."""
    fixed = layer.fixed
    assert fixed is not None
    start = []
    for place in range(2):
        array = layer.start[place] if place < len(layer.start) else None
        by = fixed.start[place] if place < len(fixed.start) else None
        start += [0, 0, 0] if array is None or by is None else [array.zero, *factors(by)]
    last = [0, 0, 0]
    if len(layer.last) > 1 and layer.last[1] is not None:
        last = [*factors(fixed.to_last), layer.last[1].zero]
    return [layer.x.zero, layer.y.zero, *factors(fixed.to_y), *start, *last]
