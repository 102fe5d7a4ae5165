"""How many instructions a convolution of int8 takes on a core, in each format: coefficients that were fitted to counts of an emulator.

``instructions.json`` holds them; ``python benchmarks/firmware_kernels.py`` counts anew and writes it, with the errors of the fit on its
page. A core without coefficients of its own takes those of the Cortex-M4, whose instructions it has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import ceil

from secateurs.firmware.call import Call
from secateurs.firmware.dense import chunk_of
from secateurs.firmware.depthwise import is_depthwise, is_turned, planes
from secateurs.firmware.products import Place, flat, limits, lines_of, rows_of, whole
from secateurs.integers.layers import Conv

USUAL = "cortex-m4"
"""The core whose coefficients are taken for those that have none."""
_COLUMNS = {"dense": 2, "Huffman": 2, "blocks of 2 x 4": 2, "blocks of 4 x 4": 2}


@dataclass(frozen=True)
class Size:
    """What the instructions of a convolution depend on.

    ``inputs`` and ``outputs`` are those of one group; ``kept`` counts what a format keeps: blocks, weights, for N of 4 fours of weights,
    for Huffman bytes; ``lined``: rows are copied with their padding first; ``clamped``: not by the width of the result alone; ``split``: no
    four rows of dense weights can be summed at once. ``band``: the rows that a depthwise layer works on at a time.
    """

    high: int
    wide: int
    kernel: tuple[int, int]
    inputs: int
    outputs: int
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    lined: bool = False
    padded: bool = False
    clamped: bool = False
    split: bool = False
    kept: int = 0
    band: int = 0


def size_of(layer: Conv, place: Place | None = None, kept: int = 0) -> Size:
    """A layer's, or that of a part of it."""
    place = place or whole(layer)
    size = Size(
        place.out_h,
        place.out_w,
        layer.kernel,
        int(layer.weight.shape[3]),
        len(layer.weight) // layer.groups,
        layer.groups,
        layer.stride,
        layer.dilation,
        lines_of(layer, place) > 0,
        any(layer.padding),
        limits(layer) != (-128, 127),
        not rows_of(layer).easy or chunk_of(layer) < flat(layer).shape[2] // 2,
        kept,
    )
    if not is_depthwise(layer):
        return size
    turned, band = is_turned(layer), planes(layer, place)[0]
    if not turned:
        across = (size.kernel[1] - 1) * size.dilation[1] + 1
        return replace(size, kernel=(size.kernel[0], across), dilation=(size.dilation[0], 1), band=band)
    swapped = replace(size, high=size.wide, wide=size.high, kernel=size.kernel[::-1], stride=size.stride[::-1])
    return replace(swapped, dilation=size.dilation[::-1], band=band)


def features(format: str, size: Size) -> tuple[float, ...]:
    """What is counted with a coefficient each; see `names`."""
    return tuple(_features(format, size).values())


def names(format: str) -> tuple[str, ...]:
    """What the coefficients of a format stand beside."""
    return tuple(_features(format, Size(1, 1, (1, 1), 4, 4)))


def _features(format: str, size: Size) -> dict[str, float]:
    if format == "depthwise":
        return _depthwise(size)
    rule = {"dense": _dense, "Huffman": _dense, "blocks of 2 x 4": _tall, "blocks of 4 x 4": _tall}.get(format, _rows)
    most = _COLUMNS.get(format, 4)
    places = size.high * size.wide
    batches, singles = divmod(places, most)
    found = _gathering(size) | {"batch": batches, "place alone": singles}
    if format == "Huffman":
        decoded = (size.outputs + 1) // 2 * 2 * ceil(size.kernel[0] * size.kernel[1] * size.inputs / 4) * 4
        found |= {"weight": decoded, "bit": 8 * size.kept / size.groups}
    found |= rule(format, size, batches, singles) | {"clamped number": places * size.outputs * size.clamped}
    return {name: float(size.groups * value) for name, value in found.items()}


def _gathering(size: Size) -> dict[str, float]:
    """Columns of what each place reads."""
    (rows, across), places = size.kernel, size.high * size.wide
    run = across * size.inputs
    taps = ceil(rows * run / 4) * 4
    loose = size.dilation[1] > 1 or size.groups > 1
    direct = not loose and run % 4 == 0 and (size.lined or not size.padded)
    fresh = (rows + (size.high - 1) * min(rows, size.stride[0])) * size.lined
    line = ((size.wide - 1) * size.stride[1] + across) * size.inputs
    return {
        "layer": 1,
        "place": places,
        "row of a window": places * rows * direct,
        "tap": places * taps * direct,
        "row of a window of four taps": places * rows * (direct and run == 4),
        "copied row of a window": places * rows * (not loose and not direct),
        "copied tap": places * taps * (not loose and not direct),
        "scattered row of a window": places * rows * across * loose,
        "scattered tap": places * taps * loose,
        "row of places": size.high * size.lined,
        "padded row": fresh,
        "number of padded rows": fresh * line,
        "moved number": max(0, rows - size.stride[0]) * (size.high - 1) * size.lined * line,
    }


def _dense(format: str, size: Size, batches: int, singles: int) -> dict[str, float]:
    taps = ceil(size.kernel[0] * size.kernel[1] * size.inputs / 4) * 4
    fours, rest = (0, (size.outputs + 1) // 2) if size.split else (size.outputs // 4, (size.outputs % 4 + 1) // 2)
    return {
        "four rows, two places": batches * fours,
        "four rows, two places, tap": batches * fours * taps,
        "four rows, two places, odd tap": batches * fours * (taps % 16),
        "four rows": singles * fours,
        "four rows, tap": singles * fours * taps,
        "two rows": (batches + singles) * rest,
        "two rows, tap": (batches + singles) * rest * taps,
    }


def _rows(format: str, size: Size, batches: int, singles: int) -> dict[str, float]:
    return {
        "row, four places": batches * size.outputs,
        "kept, four places": batches * size.kept,
        "row": singles * size.outputs,
        "kept": singles * size.kept,
    }


def _tall(format: str, size: Size, batches: int, singles: int) -> dict[str, float]:
    tall = int(format.split()[2])
    shared, left = size.outputs // tall, size.outputs % tall > 0
    part = size.kept / max(1, shared + left)
    return {
        "shared rows, two places": batches * shared,
        "kept, two places": batches * part * shared,
        "shared rows": singles * shared,
        "kept": singles * part * shared,
        "rest": (2 * batches + singles) * left,
        "kept of the rest": (2 * batches + singles) * left * part,
    }


def _depthwise(size: Size) -> dict[str, float]:
    """Kernels of 3 x 3 and strides of 1 or 2 have a way of their own."""
    outputs, (rows, across), (down, along) = size.groups * size.outputs, size.kernel, size.stride
    band = size.band or size.high
    bands, fours = ceil(size.high / band), ceil(size.groups / 4)
    reached = (size.high - bands) * down + bands * ((rows - 1) * size.dilation[0] + 1)
    pixels = reached * ((size.wide - 1) * along + across)
    own = rows == 3 and across == 3 and along in (1, 2)
    lines, pairs = size.high * outputs, (across + 1) // 2
    return {
        "layer": 1,
        "band of four channels": bands * fours,
        "row of four channels": reached * fours,
        "place of four channels": pixels * (size.groups // 4),
        "place of less": pixels * (size.groups % 4),
        "padding": reached * 4 * size.padded,
        "band of a channel": bands * outputs,
        "tap of a band": bands * outputs * rows * across,
        "line, 3 x 3": lines * own,
        "four places, 3 x 3": lines * own * (size.wide // 4),
        "four places, 3 x 3, stride 2": lines * own * (size.wide // 4) * (along == 2),
        "two places, 3 x 3": lines * own * ((size.wide % 4 + 1) // 2),
        "line": lines * (not own),
        "four places": lines * (not own) * ceil(size.wide / 4),
        "four places, row": lines * (not own) * ceil(size.wide / 4) * rows,
        "four places, pair of taps": lines * (not own) * ceil(size.wide / 4) * rows * pairs,
        "number": lines * (not own) * size.wide,
        "clamped line": lines * size.clamped,
        "clamped number": lines * size.wide * size.clamped,
    }


@cache
def _fitted() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = json.loads((files("secateurs.firmware") / "instructions.json").read_text("utf-8"))
    return found


def instructions(format: str, size: Size, core: str = USUAL) -> float:
    """Instructions of a pass in a format, on a core by its name.

    >>> dense = instructions("dense", Size(25, 5, (1, 1), 64, 64))
    >>> 0.95 < dense / (25 * 5 * 64 * 64) < 1.1
    True
    >>> instructions("CSR", Size(1, 1, (1, 1), 784, 300, kept=300 * 784 // 2)) > instructions("dense", Size(1, 1, (1, 1), 784, 300))
    True
    """
    table = _fitted()
    by = table.get(core, table[USUAL])[format]
    return sum(each * count for each, count in zip(by, features(format, size), strict=True))


def counted(call: Call, place: Place | None = None, core: str = USUAL) -> Call:
    """The call of a convolution with the instructions that it takes on a core."""
    layer = call.layer
    assert isinstance(layer, Conv)
    return replace(call, instructions=instructions(call.label, size_of(layer, place, kept_in(call)), core))


def kept_in(call: Call) -> int:
    """What a size counts as kept, of a call."""
    return next((len(each.numbers) for each in call.constants if each.name.endswith(("_gaps", "_bits"))), 0)
