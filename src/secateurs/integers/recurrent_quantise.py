"""LSTM and GRU from float32 to integers, and the proof that nothing in them overflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from secateurs.integers.layers import LIMITS, Array, Fixed, Network, Numbers, Recurrent
from secateurs.integers.recurrent import GATE_BITS, STATE_BITS
from secateurs.integers.rounding import rescale
from secateurs.types import SecateursError

_STATE = 2.0**-STATE_BITS
_ROOM = 2**31 - 1


def with_states_alike(network: Network, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges, where a state that a layer begins with and the one that it leaves have the same: what leaves can go in again as it is.

    >>> x, y, begun = Array("x", (1, 5, 2)), Array("y", (1, 5, 3)), Array("h", (1, 1, 3))
    >>> layer = Recurrent("gru", x, y, np.ones((9, 2)), np.ones((9, 3)), np.ones(9), np.ones(9), True, (begun,))
    >>> with_states_alike(Network((), (), (layer,)), {"x": (-1, 1), "y": (-0.5, 0.7), "h": (0.0, 0.0)})["h"]
    (-0.5, 0.7)
    """
    found = dict(ranges)
    for layer in network.layers:
        if isinstance(layer, Recurrent):
            for left, begun in zip((layer.y, *layer.last[1:]), layer.start, strict=False):
                if left is not None and begun is not None and left.name in found and begun.name in found:
                    both = found[left.name], found[begun.name]
                    low, high = min(each[0] for each in both), max(each[1] for each in both)
                    found[left.name] = found[begun.name] = low, high
    return found


def in_integers(layer: Recurrent, x: Array, y: Array, start: Sequence[Array | None], last: Sequence[Array | None]) -> Recurrent:
    """A recurrent layer on arrays of integers: weights of 8 bits, symmetric around zero for each row of a gate, biases of 32.

    ``y`` must hold the hidden state that it begins with too, and the last hidden state has its scale. Raises `SecateursError` where a sum
    or a state could leave 32 bits.
    """
    weight, steps, bias = _whole(layer.weight, layer.bias, x.scale)
    recurrent, further, recurrent_bias = _whole(layer.recurrent, layer.recurrent_bias, y.scale)
    by = [1 / y.scale if place == 0 and not layer.gru else 1 / _STATE for place in range(len(start))]
    fixed = Fixed(
        of_x=rescale(steps * x.scale * 2.0**GATE_BITS),
        of_hidden=rescale(further * y.scale * 2.0**GATE_BITS),
        to_y=rescale(_STATE / y.scale if layer.gru else _STATE**2 / y.scale),
        start=tuple(None if each is None else rescale(each.scale * factor) for each, factor in zip(start, by, strict=True)),
        to_last=rescale(_STATE / last[1].scale) if len(last) > 1 and last[1] is not None else None,
    )
    numbers: dict[str, Any] = {"weight": weight, "recurrent": recurrent, "bias": bias, "recurrent_bias": recurrent_bias}
    found = replace(layer, x=x, y=y, start=tuple(start), last=tuple(last), fixed=fixed, **numbers)
    for which, factors, step in (("weight", steps, x), ("recurrent", further, y)):
        _require_room(found, which, factors * step.scale * 2.0**GATE_BITS)
    _require_steps(found)
    return found


def _whole(weight: Numbers, bias: Numbers, scale: float) -> tuple[Numbers, Numbers, Numbers]:
    """Weights as int8, what a step of each row is worth, biases in steps of the sums, which take at most half of 32 bits."""
    wide, offset = weight.astype(np.float64), bias.astype(np.float64)
    steps = np.maximum(np.abs(wide).max(1, initial=0.0) / 127, np.abs(offset) / (2.0**30 * scale))
    steps = np.where(steps <= 1e-30, 1.0, steps)
    whole = np.clip(np.rint(wide / steps[:, None]), -127, 127).astype(np.int8)
    return whole, steps, np.rint(offset / (steps * scale)).astype(np.int32)


def largest_gates(layer: Recurrent, which: str) -> Numbers:
    """For each row of ``weight`` or ``recurrent``, the largest absolute value that its sum with the bias can have, whatever the input."""
    weight, bias, read = (
        (layer.weight, layer.bias, layer.x) if which == "weight" else (layer.recurrent, layer.recurrent_bias, layer.y)
    )
    least, most = LIMITS[read.kind]
    reach = max(most - read.zero, read.zero - least)
    found: Numbers = np.abs(weight.astype(np.int64)).sum(1) * reach + np.abs(bias.astype(np.int64))
    return found


def _require_room(layer: Recurrent, which: str, factors: Numbers) -> None:
    """Sums of products and bias stay in 32 bits, and in steps of a gate in 30, for two of them to be added."""
    read, largest = layer.x if which == "weight" else layer.y, largest_gates(layer, which)
    worst = int(largest.argmax())
    if largest[worst] > _ROOM:
        raise SecateursError(
            f"{layer.name}: the sum of row {worst} of its {which} can reach {int(largest[worst])}, more than 32 bits hold: it has too many "
            f"inputs ({read.shape[2]}) for {read.kind}; make it narrower"
        )
    gates = largest * factors
    worst = int(gates.argmax())
    if gates[worst] > 2.0**29:
        raise SecateursError(
            f"{layer.name}: row {worst} of its {which} can reach {gates[worst] / 2**GATE_BITS:.3g} before the gate, more than kernels take "
            f"({2 ** (29 - GATE_BITS)}): scale its weights or its inputs down"
        )


def _require_steps(layer: Recurrent) -> None:
    """The state of a GRU stays within what it begins with and 1; the cell of an LSTM moves by at most 1 a step."""
    begun = layer.start[-1] if layer.start else None
    first = 0.0
    if begun is not None:
        least, most = LIMITS[begun.kind]
        first = max(most - begun.zero, begun.zero - least) * begun.scale
    reached = max(first, 1.0) if layer.gru else first + layer.x.shape[1]
    if reached >= 2.0 ** (31 - STATE_BITS) - 1:
        room, steps = 2 ** (31 - STATE_BITS) - 1, layer.x.shape[1]
        raise SecateursError(
            f"{layer.name}: its state can reach {reached:.6g} within {steps} steps, more than {room}: give it shorter sequences, or "
            "smaller numbers to start with"
        )
