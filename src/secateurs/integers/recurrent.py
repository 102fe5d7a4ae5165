"""LSTM and GRU over the steps of a sequence, in float32 and in integers.

In integers what goes into a gate is summed in 32 bits, inputs and hidden state apart, and rescaled to steps of 2^-12 (`gate`); sigmoid
and tanh come from one table (`TANH`), in steps of 2^-15, and the state that stays, the cell of an LSTM or the hidden state of a GRU, is a
32-bit number in steps of 2^-15, so that what a step adds to it is not lost. Only what the products of the next step read, and the result,
have the width of the array ``y``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.integers.functions import FUNCTIONS
from secateurs.integers.layers import LIMITS, Array, Numbers, Recurrent, Rescale
from secateurs.integers.rounding import requantised

_sigmoid = FUNCTIONS["sigmoid"]
GATE_BITS, STATE_BITS = 12, 15
"""A gate's sum is in steps of 2^-12, what functions give and what stays from step to step in steps of 2^-15."""
TANH = np.minimum(np.rint(np.tanh(np.arange(257) / 32) * 2**STATE_BITS), 32767).astype(np.int16)
"""tanh from 0 to 8: 257 numbers, lines between."""


def recurrent(layer: Recurrent, x: Numbers, start: Sequence[Numbers | None]) -> tuple[Numbers, ...]:
    """The outputs at all steps, and what is asked of the last state: ``x`` (samples, 1, steps, inputs)."""
    return _in_floats(layer, x, start) if layer.x.kind == "float32" else _in_integers(layer, x, start)


def _in_floats(layer: Recurrent, x: Numbers, start: Sequence[Numbers | None]) -> tuple[Numbers, ...]:
    samples, _, steps, _ = x.shape
    units = layer.recurrent.shape[1]
    states = [np.zeros((samples, units)) if each is None else each.reshape(samples, units).astype(np.float64) for each in start]
    while len(states) < (1 if layer.gru else 2):
        states.append(np.zeros((samples, units)))
    step = _gru if layer.gru else _lstm
    found = np.zeros((samples, 1, steps, units), np.float32)
    for place in range(steps)[:: -1 if layer.backwards else 1]:
        states = step(layer, x[:, 0, place].astype(np.float64), states)
        found[:, 0, place] = states[0]
    wanted = [state for state, array in zip(states, layer.last or (None, None), strict=False) if array is not None]
    last = [state.reshape(samples, 1, 1, units).astype(np.float32) for state in wanted]
    return (found, *last)


def _lstm(layer: Recurrent, x: Numbers, states: Sequence[Numbers]) -> list[Numbers]:
    hidden, cell = states
    gates = (
        x @ layer.weight.T.astype(np.float64) + hidden @ layer.recurrent.T.astype(np.float64) + layer.bias + layer.recurrent_bias
    )
    enter, forget, new, leave = np.split(gates, 4, 1)
    cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
    return [_sigmoid(leave) * np.tanh(cell), cell]


def _gru(layer: Recurrent, x: Numbers, states: Sequence[Numbers]) -> list[Numbers]:
    (hidden,) = states
    ours = np.split(x @ layer.weight.T.astype(np.float64) + layer.bias, 3, 1)
    theirs = np.split(hidden @ layer.recurrent.T.astype(np.float64) + layer.recurrent_bias, 3, 1)
    reset, update = _sigmoid(ours[0] + theirs[0]), _sigmoid(ours[1] + theirs[1])
    new = np.tanh(ours[2] + reset * theirs[2])
    return [(1 - update) * new + update * hidden]


# ---------------------------------------------------------------- in integers


def gate(sums: Numbers) -> Numbers:
    """Sums in steps of 2^-12, within (-8, 8).

    >>> gate(np.array([40000, 5])).tolist()
    [32767, 5]
    """
    return np.clip(sums, -32767, 32767)


def tanh(numbers: Numbers) -> Numbers:
    """Of numbers in steps of 2^-12 in steps of 2^-15, odd.

    >>> tanh(np.array([0, 4096, -4096])).tolist()
    [0, 24956, -24956]
    """
    return _line(numbers, 7) * np.sign(numbers)


def sigmoid(numbers: Numbers) -> Numbers:
    """The same for the logistic function, which is tanh of the half.

    >>> sigmoid(np.array([0, 4096, -4096])).tolist()
    [16384, 23955, 8813]
    """
    return 16384 + (_line(numbers, 8) >> 1) * np.sign(numbers)


def _line(numbers: Numbers, bits: int) -> Numbers:
    """Between two numbers of the table, each 2^bits from the next."""
    size = np.abs(numbers.astype(np.int64))
    piece, rest = size >> bits, size & ((1 << bits) - 1)
    table = TANH.astype(np.int64)
    return table[piece] + (((table[piece + 1] - table[piece]) * rest + (1 << (bits - 1))) >> bits)


def _within(numbers: Numbers, array: Array) -> Numbers:
    return np.clip(numbers, *LIMITS[array.kind])


def _in_integers(layer: Recurrent, x: Numbers, start: Sequence[Numbers | None]) -> tuple[Numbers, ...]:
    fixed = layer.fixed
    assert fixed is not None
    samples, _, steps, _ = x.shape
    units, y = layer.recurrent.shape[1], layer.y
    hidden, state = np.full((samples, units), y.zero, np.int64), np.zeros((samples, units), np.int64)
    for place, (each, array, by) in enumerate(zip(start, layer.start, fixed.start, strict=True)):
        if each is not None and array is not None and by is not None:
            begun = requantised(each.reshape(samples, units).astype(np.int64) - array.zero, by)
            if place == 0 and not layer.gru:
                hidden = _within(begun + y.zero, y)
            else:
                state = begun
    if layer.gru:
        hidden = _within(requantised(state, fixed.to_y) + y.zero, y)
    found = np.zeros((samples, 1, steps, units), y.kind)
    for place in range(steps)[:: -1 if layer.backwards else 1]:
        step = _integer_gru if layer.gru else _integer_lstm
        given, state = step(layer, x[:, 0, place].astype(np.int64) - layer.x.zero, hidden - y.zero, state)
        hidden = _within(requantised(given, fixed.to_y) + y.zero, y)
        found[:, 0, place] = hidden
    last = []
    for which, array in enumerate(layer.last):
        if array is not None:
            kept = hidden if which == 0 else _within(requantised(state, _known(fixed.to_last)) + array.zero, array)
            last.append(kept.reshape(samples, 1, 1, units).astype(array.kind))
    return (found, *last)


def _known(by: Rescale | None) -> Rescale:
    assert by is not None
    return by


def _sums(layer: Recurrent, x: Numbers, hidden: Numbers) -> tuple[Numbers, Numbers]:
    """What the inputs and what the hidden state adds to each gate, in steps of 2^-12."""
    assert layer.fixed is not None
    ours = x @ layer.weight.T.astype(np.int64) + layer.bias
    theirs = hidden @ layer.recurrent.T.astype(np.int64) + layer.recurrent_bias
    return requantised(ours, layer.fixed.of_x), requantised(theirs, layer.fixed.of_hidden)


def _half(numbers: Numbers, bits: int) -> Numbers:
    """Divided by 2^bits, halves upwards."""
    return (numbers + (1 << (bits - 1))) >> bits


def _integer_lstm(layer: Recurrent, x: Numbers, hidden: Numbers, cell: Numbers) -> tuple[Numbers, Numbers]:
    """What is to be rescaled to ``y``, in steps of 2^-30, and the cell."""
    ours, theirs = _sums(layer, x, hidden)
    enter, forget, new, leave = np.split(gate(ours + theirs), 4, 1)
    cell = _half(sigmoid(forget) * cell + sigmoid(enter) * tanh(new), STATE_BITS)
    return sigmoid(leave) * tanh(gate(_half(cell, STATE_BITS - GATE_BITS))), cell


def _integer_gru(layer: Recurrent, x: Numbers, hidden: Numbers, state: Numbers) -> tuple[Numbers, Numbers]:
    """The hidden state, which is also what is to be rescaled."""
    ours, theirs = (np.split(each, 3, 1) for each in _sums(layer, x, hidden))
    reset, update = sigmoid(gate(ours[0] + theirs[0])), sigmoid(gate(ours[1] + theirs[1]))
    new = tanh(gate(ours[2] + _half(reset * theirs[2], STATE_BITS)))
    state = _half(update * state + ((1 << STATE_BITS) - update) * new, STATE_BITS)
    return state, state
