"""Weights of which only some are kept, in C: blocks of the width of the core's arithmetic, and single ones."""

from __future__ import annotations

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.dense import EXACT, in_fours, mixed
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.products import Place, flat, lines_of, rows_of, shape_of, statement, whole
from secateurs.integers.layers import Conv, Numbers


def gaps_of(kept: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Where what is kept lies, row by row: places, how many are left out before each, and how many each row has.

    A gap is at most 255: where more are left out, something of zeros is kept in between. ``kept`` is (rows, places) bool.

    >>> [each.tolist() for each in gaps_of(np.array([[True, False, False, True], [False, False, False, True]]))]
    [[0, 3, 3], [0, 2, 3], [2, 1]]
    """
    places: list[int] = []
    gaps: list[int] = []
    counts: list[int] = []
    for row in kept:
        last, before = -1, len(places)
        for place in np.flatnonzero(row).tolist():
            while place - last > 256:
                last += 256
                places.append(last)
                gaps.append(255)
            places.append(place)
            gaps.append(place - last - 1)
            last = place
        counts.append(len(places) - before)
    return np.array(places, np.int64), np.array(gaps, np.uint8), np.array(counts, np.uint16)


def _one_group(layer: Conv) -> Numbers:
    """The weights as (outputs, taps in fours). Raises `FirmwareError` where the layer has groups."""
    if layer.groups > 1:
        raise FirmwareError(f"{layer.name}: weights of {layer.groups} groups cannot be left out; its format must be dense")
    return flat(layer)[0]


def _call(
    layer: Conv, name: str, place: Place, streams: tuple[Numbers, Numbers, Numbers], more: int, label: str, taps: int
) -> Call:
    """The call of any format: ``streams`` are weights, gaps (or what stands for them) and counts."""
    rows, lines = rows_of(layer), lines_of(layer, place)
    is_blocks = label.startswith("blocks")
    columns = 2 if is_blocks and more > 1 else 4
    weight, gaps, counts = streams
    constants = (
        Constant(f"{name}_shape", "int16_t", shape_of(layer, rows.easy, lines > 0, more)),
        Constant(f"{name}_weight", "int16_t" if weight.dtype == np.int16 else "int8_t", _some(weight)),
        Constant(f"{name}_gaps", "uint8_t", _some(gaps)),
        Constant(f"{name}_counts", "uint16_t", counts),
        Constant(f"{name}_rows", "int32_t", rows.numbers.ravel()),
    )
    function = "sec_blocks" if is_blocks else "sec_scattered"
    call = statement(function, name, place, "shape", "weight", "gaps", "counts", "rows")
    kernels = ("arithmetic.c", "columns.c", "blocks.c" if is_blocks else "scattered.c")
    return Call(layer, kernels, constants, call, scratch=(2 * columns + 1) * taps + lines, label=label)


def _some(numbers: Numbers) -> Numbers:
    """The numbers, or a zero where there are none: C has no arrays of nothing."""
    return numbers if numbers.size else np.zeros(1, numbers.dtype)


def _kept(kept: Numbers, weight: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """What is kept of (rows, places, …) with the gaps between."""
    places, gaps, counts = gaps_of(kept)
    return weight[np.repeat(np.arange(len(counts)), counts), places].ravel(), gaps, counts


def blocks_call(layer: Conv, name: str, place: Place | None = None, tall: int = 1) -> Call:
    """A layer of int8 with those blocks of four taps of ``tall`` rows (1, 2, 4) that are not all zeros; ``name`` begins its names in C.

    Scalpel (Yu et al., ISCA 2017) cuts weights to the width of the core's arithmetic like this. Raises `FirmwareError` where the layer
    has groups, or where sums over two rows do not fit.
    """
    weight = _one_group(layer)
    taps = weight.shape[1]
    weight = np.pad(weight, ((0, -len(weight) % tall), (0, 0)))
    kept = (weight.reshape(-1, tall, taps // 4, 4) != 0).any((1, 3))
    place = place or whole(layer)
    if tall == 1:
        return _call(layer, name, place, _kept(kept, weight.reshape(-1, taps // 4, 4)), 1, "blocks of 4", taps)
    if 128 * np.abs(weight.astype(np.int64)).sum(1).max() >= EXACT:
        raise FirmwareError(f"{layer.name}: the sums of two rows do not fit one word; its format must be dense or blocks of 4")
    words = mixed(weight[0::2], weight[1::2], layer)
    ordered = in_fours(words).reshape(-1, tall // 2, taps // 4, 2, 2).transpose(0, 2, 3, 1, 4)
    blocks = np.ascontiguousarray(ordered).reshape(len(kept), taps // 4, -1)
    return _call(layer, name, place, _kept(kept, blocks), tall, f"blocks of {tall} x 4", taps)


def scattered_call(layer: Conv, name: str, place: Place | None = None) -> Call:
    """A layer of int8 with single weights and 8 bits for the gap before each: CSR with relative indices, as in Deep Compression.

    Han et al., arXiv 1510.00149. Raises `FirmwareError` where the layer has groups.
    """
    weight = _one_group(layer)
    return _call(layer, name, place or whole(layer), _kept(weight != 0, weight), 0, "CSR", weight.shape[1])


def of_four_call(layer: Conv, name: str, place: Place | None = None, most: int = 1) -> Call:
    """A layer of int8 that keeps at most ``most`` (1 or 2) of each four taps, with two bits for where each lies.

    Mishra et al., arXiv 2104.08378, for 2 of 4. Raises `FirmwareError` where the layer has groups, or four taps hold more.
    """
    weight = _one_group(layer)
    weight = np.pad(weight, ((0, 0), (0, -weight.shape[1] % (16 // most))))
    fours = weight.reshape(len(weight), -1, 4)
    if (kept := int((fours != 0).sum(2).max())) > most:
        raise FirmwareError(f"{layer.name}: four taps in a row hold up to {kept} weights, not {most}; its format must be another")
    where = np.sort(np.argsort(fours == 0, axis=2, kind="stable")[..., :most], axis=2)
    numbers = np.take_along_axis(fours, where, 2).reshape(-1, 4)
    bits = (where.reshape(-1, 4) << np.array([0, 2, 4, 6])).sum(1)
    counts = np.full(len(weight), weight.shape[1] * most // 16)
    streams = numbers.ravel(), bits.astype(np.uint8), counts.astype(np.uint16)
    return _call(layer, name, place or whole(layer), streams, most, f"{most} of 4", weight.shape[1])
