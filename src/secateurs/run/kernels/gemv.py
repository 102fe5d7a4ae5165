"""Sparse weights for one vector at a time, ``y = W x``, packed for the kernels of ``csrc/gemv.inc``.

Both formats sort the rows by their number of nonzeros and take 16 at a time: a *group*, one row a lane. A group is a sequence of
*steps*, and a step multiplies at most one nonzero of each row.

``"lanes"`` (AVX-512; the lane window). A step sees 32 consecutive inputs, held in two registers. Its code says by how many inputs
the window advances first (it starts at input 0 for each group, and never reaches past the last input unless there are fewer than
32). The place of the input within the window is kept in the lowest five bits of the value, and the value is the one nearest to the
weight among those with these bits. ``"float32"`` is off by at most 16 units in the last place (2e-6 of each weight, 0.7e-6 on
average); its code is two uint16, a mask of the busy lanes and the advance, and only the values of busy lanes are stored, lowest
lane first. ``"int8"`` takes 16 bits, eleven of which are the weight, so it is eight times finer than its name; its code is the
advance alone, and idle lanes are stored as 0. Each group has a multiple of four steps, the last of which may be empty. Weights
must be finite.

``"columns"`` (any instruction set). Steps are full: 16 uint16 columns and 16 values, zeros where a lane has run out, which the
kernel leaves out by the count of each lane. Columns count within blocks of 65536; a group has the steps of all its blocks one
after the other, a multiple of four for each. Values lie in words of 32 bits, [words, 16 lanes], that hold one ``"float32"`` step,
two of ``"bfloat16"`` or four of ``"int8"``. ``"float32"`` is exact; the others are rounded to nearest.

``"masks"`` (any instruction set). Rows are not sorted. Each has a code for every 16 columns, a bit for each that has a weight, and its
weights one after the other: half as much for a weight's place as ``"columns"`` takes, at 50 % and more of them. Weights must be finite.

``"int8"`` is symmetric, with one scale for each row. Sums are float32 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["lanes", "columns", "masks"]
Values = Literal["float32", "bfloat16", "int8"]
Array = NDArray[Any]

LANES = 16
WINDOW = 32
ALIGN = 8  # windows begin at multiples of this: finer needs fewer steps, coarser makes more of the loads aligned
UNROLL = 4
BLOCK = 65536
PADDING = 64  # bytes past the end of lanes of float32, because the kernel loads 16 values whatever it needs

_FORMATS: dict[tuple[str, str], type[np.generic]] = {
    ("lanes", "float32"): np.float32,
    ("lanes", "int8"): np.int16,
    ("columns", "float32"): np.float32,
    ("columns", "bfloat16"): np.uint16,
    ("columns", "int8"): np.int8,
    ("masks", "float32"): np.float32,
}


@dataclass(frozen=True)
class Packed:
    """A sparse matrix in one of the two formats; the arrays are those of ``Gemv`` in ``csrc/gemv.h``."""

    format: Format
    values: Values
    shape: tuple[int, int]
    rows: Array  # int32 [groups, 16]: the output of each lane, -1 for none
    steps: Array  # int64 [groups + 1]: where the steps of each group begin; masks: its codes
    nonzeros: Array  # int64 [groups + 1]: lanes, masks: where the values of each group begin
    spans: Array  # int32 [groups, blocks, 2]: columns: the steps in which every lane is busy, and all steps
    counts: Array  # int32 [groups, blocks, 16]: columns: the nonzeros of each lane
    codes: Array  # uint16: lanes: [steps, 2] (mask, advance), int8 [steps, 1] (advance); columns: [steps, 16]; masks: [rows, codes]
    data: Array  # the values
    scale: Array | None  # float32 [groups, 16]
    work: Array  # int64 [groups]: the cost of each group, to split them evenly

    @property
    def groups(self) -> int:
        return len(self.rows)

    @property
    def blocks(self) -> int:
        return int(self.spans.shape[1])

    @property
    def nbytes(self) -> int:
        """All that a product reads, without the vectors."""
        arrays = (self.rows, self.steps, self.nonzeros, self.spans, self.counts, self.codes, self.data, self.scale)
        return sum(array.nbytes for array in arrays if array is not None)


def pack(weight: Array, format: Format, values: Values = "float32") -> Packed:
    """Pack a matrix (outputs, inputs) of float32. Its zeros are left out.

    >>> packed = pack(np.eye(3, dtype=np.float32), "columns")
    >>> reference(packed, np.array([1, 2, 3], dtype=np.float32))
    array([1., 2., 3.], dtype=float32)
    """
    if (format, values) not in _FORMATS:
        known = ", ".join(f"{form} {value}" for form, value in _FORMATS)
        raise ValueError(f"format {format!r} with values {values!r} is not among those that can be packed: {known}")
    if weight.ndim != 2:
        raise ValueError(f"expected a matrix (outputs, inputs), got the shape {weight.shape}")
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if (format in ("lanes", "masks") or values == "int8") and not np.isfinite(weight).all():
        count = np.count_nonzero(~np.isfinite(weight))
        raise ValueError(
            f"{count} weights are infinite or NaN, which {format} {values} cannot hold; "
            "pack with format='columns', values='float32'"
        )
    present = weight != 0
    if format == "masks":
        return _masks(weight, present)
    counts = np.count_nonzero(present, axis=1)
    order = np.argsort(-counts, kind="stable")
    groups = -(-len(order) // LANES)
    rows = np.full(groups * LANES, -1, dtype=np.int32)
    rows[: len(order)] = order
    row, column = np.nonzero(present[order])
    value = weight[order[row], column]
    ends = np.zeros(groups * LANES + 1, dtype=np.int64)
    np.cumsum(counts[order], out=ends[1 : len(order) + 1])
    ends[len(order) + 1 :] = ends[len(order)]
    make = _lanes if format == "lanes" else _columns
    outputs, inputs = weight.shape
    return make(values, (outputs, inputs), rows.reshape(groups, LANES), row, column, value, ends)


def _masks(weight: Array, present: Array) -> Packed:
    outputs, inputs = weight.shape
    groups, codes = -(-outputs // LANES), -(-inputs // LANES)
    bits = np.zeros((groups * LANES, codes * LANES), dtype=bool)
    bits[:outputs, :inputs] = present
    counts = bits.sum(axis=1).reshape(groups, LANES)
    nonzeros = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int64)
    data = _aligned(int(nonzeros[-1]) + PADDING // 4, np.float32)
    data[: nonzeros[-1]] = weight[present]
    rows = np.arange(groups * LANES, dtype=np.int32)
    return Packed(
        format="masks",
        values="float32",
        shape=(outputs, inputs),
        rows=np.where(rows < outputs, rows, -1).astype(np.int32).reshape(groups, LANES),
        steps=np.arange(groups + 1, dtype=np.int64) * LANES * codes,
        nonzeros=nonzeros,
        spans=np.zeros((groups, 0, 2), dtype=np.int32),
        counts=np.zeros((groups, 0, LANES), dtype=np.int32),
        codes=np.packbits(bits, axis=1, bitorder="little").view(np.uint16).reshape(-1, 1),
        data=data,
        scale=None,
        work=np.diff(nonzeros) + LANES * codes,
    )


def _scales(row: Array, value: Array, lanes: int, largest: int) -> Array:
    """The scale that takes the largest weight of each row to ``largest``; never a denormal, which would not hold enough digits."""
    peak = np.zeros(lanes)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    if len(starts):
        peak[row[starts]] = np.maximum.reduceat(np.abs(value), starts)
    scale: Array = np.maximum(peak / largest, np.finfo(np.float32).tiny).astype(np.float32)
    return scale


def _lanes(values: Values, shape: tuple[int, int], rows: Array, row: Array, column: Array, value: Array, ends: Array) -> Packed:
    groups = len(rows)
    busy, advance, taken = _schedule(shape[1], groups, column, ends)
    count = busy.shape[1]
    used = (busy.any(axis=2) | (advance > 0)).sum(axis=1)  # steps of each group
    padded = -(-used // UNROLL) * UNROLL
    steps = np.concatenate([[0], np.cumsum(padded)]).astype(np.int64)
    keep = np.arange(count) < used[:, None]
    group, step = np.nonzero(keep)
    to = steps[group] + step
    slots = np.zeros((steps[-1], LANES), dtype=bool)
    slots[to] = busy[keep]

    window = np.cumsum(advance, axis=1, dtype=np.int64)
    order = taken[busy]
    inside = column[order] - np.broadcast_to(window[:, :, None], busy.shape)[busy]
    if values == "float32":
        codes = _aligned((steps[-1], 2), np.uint16)
        codes[:, 0] = np.packbits(slots, axis=-1, bitorder="little").view(np.uint16).reshape(-1)
        scale, nonzeros = None, ends[::LANES].copy()
        data = _aligned(len(order) + PADDING // 4, np.float32)
        data[: len(order)] = _nearest_float(value[order], inside.astype(np.int32))
    else:
        codes = _aligned((steps[-1], 1), np.uint16)
        scale, nonzeros = _scales(row, value, groups * LANES, 32767 - WINDOW // 2), steps * LANES
        exact = value[order].astype(np.float64) / scale[row[order]]
        data = _aligned((steps[-1], LANES), np.int16)
        data[slots] = np.rint((exact - inside) / WINDOW) * WINDOW + inside
        data, scale = data.reshape(-1), scale.reshape(groups, LANES)
    codes[to, -1] = advance[keep]
    return Packed(
        format="lanes",
        values=values,
        shape=shape,
        rows=rows,
        steps=steps,
        nonzeros=nonzeros,
        spans=np.zeros((groups, 0, 2), dtype=np.int32),
        counts=np.zeros((groups, 0, LANES), dtype=np.int32),
        codes=codes,
        data=data,
        scale=scale,
        work=padded + 8,
    )


def _schedule(inputs: int, groups: int, column: Array, ends: Array) -> tuple[Array, Array, Array]:
    """Steps of all groups side by side: busy lanes (groups, steps, lanes), the window's advance, and the nonzero that each lane takes.

    The window begins where the first of the 16 next nonzeros is, and every row whose next nonzero is within it has its turn.
    """
    far = np.int64(1) << 40
    column_or_end = np.append(column, far)
    at, end = ends[:-1].copy(), ends[1:]
    place = np.int32 if len(column) < 2**31 else np.int64
    start: Array = np.zeros(groups, dtype=np.int64)
    busy_steps, advance_steps, nonzero_steps = [], [], []
    while groups:
        following = np.where(at < end, column_or_end[at], far).reshape(groups, LANES)
        first = following.min(axis=1)
        live = first < far
        if not live.any():
            break
        wanted = np.minimum(first // ALIGN * ALIGN, max(inputs - WINDOW, 0))
        moved = np.where(live, np.minimum(wanted, start + 65535), start)
        busy = following < (moved + WINDOW)[:, None]
        busy_steps.append(busy)
        advance_steps.append((moved - start).astype(np.uint16))
        nonzero_steps.append(at.astype(place).reshape(groups, LANES))
        start = moved
        at += busy.reshape(-1)
    count = len(busy_steps)
    busy = np.array(busy_steps, dtype=bool).reshape(count, groups, LANES).swapaxes(0, 1)
    advance = np.array(advance_steps, dtype=np.uint16).reshape(count, groups).T
    taken = np.array(nonzero_steps, dtype=place).reshape(count, groups, LANES).swapaxes(0, 1)
    return busy, advance, taken


def _aligned(shape: int | tuple[int, ...], kind: type[np.generic]) -> Array:
    """Zeros that begin at a multiple of 64 bytes, so that the kernels' loads seldom cross a cache line."""
    count, size = int(np.prod(shape)), np.dtype(kind).itemsize
    room = np.zeros(count + 64 // size, dtype=kind)
    first = -room.ctypes.data % 64 // size
    return room[first : first + count].reshape(shape)


def _nearest_float(value: Array, low: Array) -> Array:
    """The float32 nearest to each value among those whose lowest five bits are ``low``."""
    bits = value.view(np.int32)
    magnitude = bits & 0x7FFFFFFF
    nearest = ((magnitude - low + WINDOW // 2) & -WINDOW) + low  # an integer that grows with the magnitude
    nearest = np.where(nearest < 0, low, nearest)
    nearest = np.where(nearest >= 0x7F800000, nearest - WINDOW, nearest)
    result: Array = (nearest | (bits & np.int32(-0x80000000))).astype(np.int32).view(np.float32)
    return result


def _columns(values: Values, shape: tuple[int, int], rows: Array, row: Array, column: Array, value: Array, ends: Array) -> Packed:
    groups, blocks = len(rows), max(-(-shape[1] // BLOCK), 1)
    block = column // BLOCK
    counts = np.bincount(row * blocks + block, minlength=groups * LANES * blocks).reshape(groups, LANES, blocks).swapaxes(1, 2)
    spans = np.zeros((groups, blocks, 2), dtype=np.int64)
    spans[:, :, 0], spans[:, :, 1] = counts.min(axis=2), -(-counts.max(axis=2) // UNROLL) * UNROLL
    total = spans[:, :, 1].sum(axis=1)
    steps = np.concatenate([[0], np.cumsum(total)]).astype(np.int64)
    begin = np.concatenate([[0], np.cumsum(spans[:, :, 1])]).astype(np.int64)[:-1].reshape(groups, blocks)

    begins = ends[:-1, None] + np.cumsum(counts, axis=1).swapaxes(1, 2).reshape(groups * LANES, blocks)
    begins -= counts.swapaxes(1, 2).reshape(groups * LANES, blocks)  # where each row's nonzeros of each block begin
    group, lane = np.divmod(row, LANES)
    step = begin[group, block] + np.arange(len(row)) - begins[row, block]

    codes = _aligned((steps[-1], LANES), np.uint16)
    codes[step, lane] = column - block * BLOCK
    scale, kind = None, _FORMATS["columns", values]
    if values == "bfloat16":
        value = _bfloat16(value)
    elif values == "int8":
        scale = _scales(row, value, groups * LANES, 127)
        value = np.rint(value.astype(np.float64) / scale[row])
        scale = scale.reshape(groups, LANES)
    each = 4 // np.dtype(kind).itemsize
    data = _aligned((steps[-1] // each, LANES, each), kind)
    data[step // each, lane, step % each] = value
    return Packed(
        format="columns",
        values=values,
        shape=shape,
        rows=rows,
        steps=steps,
        nonzeros=np.zeros(groups + 1, dtype=np.int64),
        spans=np.ascontiguousarray(spans, dtype=np.int32),
        counts=np.ascontiguousarray(counts, dtype=np.int32),
        codes=codes,
        data=data.reshape(-1),
        scale=scale,
        work=total + 8,
    )


def _bfloat16(value: Array) -> Array:
    """The upper halves of float32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = value.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    result: Array = np.where(np.isnan(value), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    return result


def unpack(packed: Packed) -> Array:
    """The matrix that the kernels multiply with, after any rounding; step by step, as they read it."""
    weight = np.zeros(packed.shape, dtype=np.float32)
    for group in range(packed.groups):
        walk = _WALKS[packed.format]
        for lane, column, value in walk(packed, group):
            scale = np.float32(1) if packed.scale is None else packed.scale[group, lane]
            weight[packed.rows[group, lane], column] = value * scale
    return weight


def reference(packed: Packed, x: Array) -> Array:
    """``W x``, where a row takes nothing from the inputs of its zeros, be they infinite."""
    y = np.zeros(packed.shape[0], dtype=np.float32)
    for group in range(packed.groups):
        walk = _WALKS[packed.format]
        sums = np.zeros(LANES, dtype=np.float32)
        for lane, column, value in walk(packed, group):
            sums[lane] += value * x[column]
        if packed.scale is not None:
            sums *= packed.scale[group]
        held = packed.rows[group] >= 0
        y[packed.rows[group][held]] = sums[held]
    return y


def _walk_lanes(packed: Packed, group: int) -> list[tuple[Array, Array, Array]]:
    """(lanes, columns, values) of each step."""
    found, start, at = [], 0, int(packed.nonzeros[group])
    for code in packed.codes[packed.steps[group] : packed.steps[group + 1]].tolist():
        start += code[-1]
        if packed.values == "float32":
            lane = np.flatnonzero([code[0] >> lane & 1 for lane in range(LANES)])
            value = packed.data[at : at + len(lane)]
            bits, at = value.view(np.int32), at + len(lane)
        else:
            lane = np.flatnonzero(packed.data[at : at + LANES])
            value = packed.data[at + lane]
            bits, at = value, at + LANES
        found.append((lane, start + (bits.astype(np.int64) & WINDOW - 1), value.astype(np.float32)))
    return found


def _walk_columns(packed: Packed, group: int) -> list[tuple[Array, Array, Array]]:
    """(lanes, columns, values) of each step."""
    found, step = [], packed.steps[group]
    for block in range(packed.blocks):
        for done in range(packed.spans[group, block, 1]):
            lane = np.flatnonzero(packed.counts[group, block] > done)
            each = 4 // packed.data.itemsize
            value = packed.data[(step // each * LANES + lane) * each + step % each]
            if packed.values == "bfloat16":
                value = (value.astype(np.uint32) << 16).view(np.float32)
            found.append((lane, packed.codes[step, lane].astype(np.int64) + block * BLOCK, value.astype(np.float32)))
            step += 1
    return found


def _walk_masks(packed: Packed, group: int) -> list[tuple[Array, Array, Array]]:
    """(lanes, columns, values) of each row."""
    found, at = [], int(packed.nonzeros[group])
    codes = packed.codes[packed.steps[group] : packed.steps[group + 1]].reshape(LANES, -1)
    for lane in np.flatnonzero(packed.rows[group] >= 0):
        bits = np.unpackbits(codes[lane].view(np.uint8), bitorder="little")
        for column in np.flatnonzero(bits):
            found.append((np.array([lane]), np.array([column]), packed.data[at : at + 1]))
            at += 1
    return found


_WALKS = {"lanes": _walk_lanes, "columns": _walk_columns, "masks": _walk_masks}
