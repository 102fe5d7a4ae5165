"""Dense weights in C: two rows share the words of an int16, so that one product adds to both."""

from __future__ import annotations

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.products import Place, flat, lines_of, rows_of, shape_of, statement, whole
from secateurs.integers.layers import Conv, Numbers

EXACT = 1 << 23
"""Sums of the odd row must stay below it, for 256 times that to fit a word."""
_CHUNK = 256
"""Pairs of taps whose sums are below it whatever the weights."""


def in_fours(numbers: Numbers) -> Numbers:
    """The last dimension in the order in which a core widens four bytes: 0, 2, 1, 3 of each four."""
    return numbers.reshape(*numbers.shape[:-1], -1, 4)[..., [0, 2, 1, 3]].reshape(numbers.shape)


def mixed(even: Numbers, odd: Numbers, layer: Conv) -> Numbers:
    """256 times one row plus another, int16."""
    both = 256 * odd.astype(np.int64) + even
    if both.min(initial=0) < -32768:
        raise FirmwareError(f"{layer.name}: weights of -128 do not fit the kernels; round them to -127 … 127")
    return both.astype(np.int16)


def chunk_of(layer: Conv) -> int:
    """How many pairs of taps one sum over two rows can hold: all, or what is safe for any weights."""
    weight = flat(layer)
    pairs = weight.shape[2] // 2
    return pairs if 128 * np.abs(weight.astype(np.int64)).sum(2).max() < EXACT else _CHUNK


def packed(layer: Conv) -> Numbers:
    """Weights as `sec_dense` reads them: for each four rows, pair of taps by pair, the pair of the first two rows, then of the others."""
    weight = in_fours(flat(layer))
    groups, outputs, taps = weight.shape
    weight = np.pad(weight, ((0, 0), (0, outputs % 2), (0, 0)))
    words = mixed(weight[:, 0::2], weight[:, 1::2], layer).reshape(groups, -1, taps // 2, 2)
    parts = []
    for group in words:
        for start in range(0, len(group), 2):
            parts.append(group[start : start + 2].transpose(1, 0, 2).ravel())
    return np.concatenate(parts)


def dense_call(layer: Conv, name: str, place: Place | None = None) -> Call:
    """A convolution or linear layer of int8 with all of its weights; ``name`` begins the names of its constants.

    Raises `FirmwareError` where the layer is not int8 or has weights of -128.
    """
    rows = rows_of(layer)
    taps, place = flat(layer).shape[2], place or whole(layer)
    lines = lines_of(layer, place)
    constants = (
        Constant(f"{name}_shape", "int16_t", shape_of(layer, rows.easy, lines > 0, chunk_of(layer))),
        Constant(f"{name}_weight", "int16_t", packed(layer)),
        Constant(f"{name}_rows", "int32_t", rows.numbers.ravel()),
    )
    call = statement("sec_dense", name, place, "shape", "weight", "rows")
    return Call(layer, ("arithmetic.c", "columns.c", "dense.c"), constants, call, scratch=5 * taps + lines, label="dense")
