"""LSTM and GRU over the steps of a sequence, in float32 and in integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.integer.functions import FUNCTIONS
from secateurs.integer.layers import Numbers, Recurrent

_sigmoid = FUNCTIONS["sigmoid"]


def recurrent(layer: Recurrent, x: Numbers, start: Sequence[Numbers | None]) -> tuple[Numbers, ...]:
    """The outputs at all steps, and what is asked of the last state: ``x`` (samples, 1, steps, inputs)."""
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
    last = [state.reshape(samples, 1, 1, units).astype(np.float32) for state, array in zip(states, layer.last) if array is not None]
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
