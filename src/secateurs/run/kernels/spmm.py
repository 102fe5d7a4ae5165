"""Sparse weights in the order in which the kernel walks them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    rows, inputs = weight.shape
    tall = weight.reshape(rows // height, height, inputs)
    row, place = np.nonzero((tall != 0).any(1))
    values = tall[row, :, place]
    full = (rows, inputs)
    offset = np.broadcast_to(offsets, full)[row * height, place]
    block = np.broadcast_to(block_of, full)[row * height, place]
    count, blocks = rows // height, int(block_of.max(initial=0)) + 1
    edges = np.linspace(0, count, chunks + 1).round().astype(np.int64)
    chunk = np.searchsorted(edges, np.arange(count), side="right") - 1

    counts = np.bincount(block * count + row, minlength=blocks * count).reshape(blocks, count)
    flags = _flags(counts)
    # Entries: every (block, row) with nonzeros or a flag, by chunk, block, falling count.
    its_block, its_row = np.nonzero((counts > 0) | (flags > 0))
    nonzeros = counts[its_block, its_row]
    order = np.lexsort((its_row, -nonzeros, its_block, chunk[its_row]))
    its_block, its_row, nonzeros = its_block[order], its_row[order], nonzeros[order]
    number = np.zeros((blocks, count), np.int64)
    number[its_block, its_row] = np.arange(len(order))
    by_entry = np.argsort(number[block, row], kind="stable")
    of_place = np.bincount(number[block, row] * places + place // (inputs // places), minlength=len(order) * places)

    key = chunk[its_row] * blocks + its_block
    used, first = np.unique(key, return_index=True)
    last = np.append(first[1:], len(key))
    begins = np.concatenate([[0], np.cumsum(nonzeros)])[first]
    return Sparse(
        height,
        records(ROW, row=its_row * height, count=nonzeros, flags=flags[its_block, its_row]),
        np.ascontiguousarray(offset[by_entry], np.int32),
        np.ascontiguousarray(values[by_entry], np.float32),
        records(BLOCK, first=first, last=last, nonzero=begins),
        np.searchsorted(used // blocks, np.arange(chunks + 1)).astype(np.int64),
        of_place.reshape(-1, places).astype(np.int32),
    )


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
