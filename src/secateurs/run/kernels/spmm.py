"""Sparse weights in the order in which the kernel walks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateurs.run.kernels import machine
from secateurs.run.kernels.records import BLOCK, ROW, Records, records

FIRST, LAST = 1, 2


@dataclass(frozen=True)
class Sparse:
    """Nonzeros by chunk of rows, block of inputs, row (those with most nonzeros first) and place.

    ``rows`` and ``blocks`` are tables of `ROW` and `BLOCK`; ``chunks``: where each chunk's blocks begin. ``values``: (nonzeros, height).
    ``counts``: (entries, places): the nonzeros of each place of the window.
    """

    height: int
    rows: Records
    offsets: NDArray[np.int32]
    values: NDArray[np.float32]
    blocks: Records
    chunks: NDArray[np.int64]
    counts: NDArray[np.int32]

    @property
    def bytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return sum(array.nbytes for array in (self.rows, self.offsets, self.values, self.blocks))


def pack(
    weight: NDArray[np.float32],
    offsets: NDArray[np.int64],
    block_of: NDArray[np.int64],
    height: int = 1,
    chunks: int = 1,
    places: int = 1,
) -> Sparse:
    """Pack a matrix (rows, inputs): ``offsets`` and ``block_of`` tell for each entry where its input is, and in which block.

    Both have the matrix' shape, or are one row that serves all rows. Where ``height`` is over 1, as many consecutive rows share places
    (an input that any of them reads is read by all). Inputs may be ordered by ``places`` of a window, equally many for each.

    >>> matrix = np.array([[0, 2.0], [3, 4]], np.float32)
    >>> packed = pack(matrix, np.array([[0, 16]]), np.array([[0, 0]]))
    >>> packed.offsets.tolist(), packed.values.ravel().tolist()  # the longer row first
    ([0, 16, 16], [3.0, 4.0, 2.0])
    """
    count, blocks = len(weight) // height, int(block_of.max(initial=0)) + 1
    inputs = _in_blocks(weight, offsets, block_of, height, blocks) if places == 1 else None
    if inputs is None:
        inputs = _anywhere(weight, offsets, block_of, height, blocks)
    edges = np.linspace(0, count, chunks + 1).round().astype(np.int64)
    chunk = np.searchsorted(edges, np.arange(count), side="right") - 1

    flags = _flags(inputs.counts.T)
    # Entries: every (block, row) with nonzeros or a flag, by chunk, block, falling count.
    its_block, its_row = np.nonzero((inputs.counts.T > 0) | (flags > 0))
    nonzeros = inputs.counts[its_row, its_block]
    order = np.lexsort((its_row, -nonzeros, its_block, chunk[its_row]))
    its_block, its_row, nonzeros = its_block[order], its_row[order], nonzeros[order]
    number = np.zeros((count, blocks), np.int64)
    number[its_row, its_block] = np.arange(len(order))
    begins = np.concatenate([[0], np.cumsum(nonzeros)])
    offset_of, value_of, of_place = inputs.ordered(number, begins, places)

    key = chunk[its_row] * blocks + its_block
    used, first = np.unique(key, return_index=True)
    return Sparse(
        height,
        records(ROW, row=its_row * height, count=nonzeros, flags=flags[its_block, its_row]),
        offset_of,
        value_of,
        records(BLOCK, first=first, last=np.append(first[1:], len(key)), nonzero=begins[first]),
        np.searchsorted(used // blocks, np.arange(chunks + 1)).astype(np.int64),
        of_place.reshape(-1, places).astype(np.int32),
    )


Ordered = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class _Inputs:
    """The nonzeros of a matrix: ``counts`` (rows, blocks), and a function of each row's and block's place in the order and of where that
    begins, which gives offsets, values, and the nonzeros of each place of a window, in that order."""

    counts: NDArray[np.int64]
    ordered: Callable[[NDArray[np.int64], NDArray[np.int64], int], Ordered]


def _in_blocks(
    weight: NDArray[np.float32], offsets: NDArray[np.int64], block_of: NDArray[np.int64], height: int, blocks: int
) -> _Inputs | None:
    """By the extension, where blocks of inputs follow each other and are the same for all rows: ten times as fast as NumPy."""
    native, rising = machine.native, len(block_of) == 1 and bool((np.diff(block_of[0]) >= 0).all())
    if not hasattr(native, "fill_nonzeros") or not rising or not weight.size:
        return None
    weight, offsets = np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(offsets, np.int64)
    edges = np.searchsorted(block_of[0], np.arange(blocks + 1)).astype(np.int64)
    counts = np.zeros((len(weight) // height, blocks), np.int64)
    native.count_nonzeros(weight, height, edges, counts)

    def ordered(number: NDArray[np.int64], begins: NDArray[np.int64], places: int) -> Ordered:
        offset_of, value_of = np.empty(begins[-1], np.int32), np.empty((begins[-1], height), np.float32)
        native.fill_nonzeros(weight, height, edges, counts, begins[number], offsets, offset_of, value_of)
        return offset_of, value_of, np.diff(begins)

    return _Inputs(counts, ordered)


def _anywhere(
    weight: NDArray[np.float32], offsets: NDArray[np.int64], block_of: NDArray[np.int64], height: int, blocks: int
) -> _Inputs:
    """By NumPy, wherever the inputs are."""
    rows, inputs = weight.shape
    tall = weight.reshape(rows // height, height, inputs)
    row, place = np.nonzero((tall != 0).any(1))
    offset, block = (np.broadcast_to(each, (rows, inputs))[row * height, place] for each in (offsets, block_of))
    counts = np.bincount(row * blocks + block, minlength=rows // height * blocks).reshape(rows // height, blocks)

    def ordered(number: NDArray[np.int64], begins: NDArray[np.int64], places: int) -> Ordered:
        entry = number[row, block]
        order = np.argsort(entry, kind="stable")
        of_place = np.bincount(entry * places + place // (inputs // places), minlength=(len(begins) - 1) * places)
        values = tall[row, :, place][order]
        return np.ascontiguousarray(offset[order], np.int32), np.ascontiguousarray(values, np.float32), of_place

    return _Inputs(counts, ordered)


def _flags(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each row begins and ends; a row without nonzeros does both in block 0."""
    used = counts > 0
    blocks, rows = counts.shape
    flags = np.zeros_like(counts)
    empty = ~used.any(0)
    flags[np.where(empty, 0, used.argmax(0)), np.arange(rows)] |= FIRST
    flags[np.where(empty, 0, blocks - 1 - used[::-1].argmax(0)), np.arange(rows)] |= LAST
    return flags


def reference(packed: Sparse, bias: NDArray[np.float32], x: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(rows, positions): each row's nonzeros times the inputs at ``starts + offset``, plus its bias, in the order of the kernel.

    >>> packed = pack(np.array([[0, 2.0], [3, 4]], np.float32), np.array([[0, 1]]), np.array([[0, 0]]))
    >>> reference(packed, np.zeros(2, np.float32), np.array([10, 1.0], np.float32), np.array([0])).ravel().tolist()
    [2.0, 34.0]
    """
    sums = np.zeros((len(bias), len(starts)), np.float32)
    for first, last, at in packed.blocks.tolist():
        for row, count, flags in packed.rows[first:last].tolist():
            rows = slice(row, row + packed.height)
            if flags & FIRST:
                sums[rows] = bias[rows, None]
            for place in range(at, at + count):
                sums[rows] += packed.values[place][:, None] * x[starts + packed.offsets[place]]
            at += count
    return sums
