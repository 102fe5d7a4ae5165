"""Where the numbers of a tensor lie: relative indices, gaps, a bitmap, Elias-Fano, places within N of M, whole blocks.

Each kind writes which of n numbers are not zero, and tells for which of them levels are coded after it: for these at least. The way back
gives the same places. Numbers are of shape (rows, columns, inner), a place is an index among all of them in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb

import numpy
from numpy.typing import NDArray

from secateurs.coding.coder import Coder, count_of, counted
from secateurs.types import FileError, SecateursError

Places = NDArray[numpy.int64]
There = NDArray[numpy.bool_]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Positions:
    """A way to tell where numbers lie.

    ``encode(there)``: the bytes, and the places for which levels are coded, ascending. ``decode(data, shape)``: the same places; raises
    `FileError` where the bytes are not of such places. ``document``: what the index of a file says of it.
    """

    document: dict[str, object]
    encode: Callable[[There], tuple[bytes, Places]]
    decode: Callable[[memoryview, Shape], Places]


# ---------------------------------------------------------------- distances


def relative(bits: int, coder: Coder) -> Positions:
    """Distances of at most 2^bits from one number to the next, and a zero where it is farther (Deep Compression, 1510.00149, §2).

    >>> from secateurs.coding import fixed
    >>> there = numpy.array([True, False, False, False, False, False, True]).reshape(1, 7, 1)
    >>> data, places = relative(2, fixed).encode(there)
    >>> places, relative(2, fixed).decode(memoryview(data), (1, 7, 1))
    (array([0, 4, 6]), array([0, 4, 6]))
    """
    if not 1 <= bits <= 16:
        raise SecateursError(f"relative indices have 1 to 16 bits, not {bits}")
    span = 1 << bits

    def encode(there: There) -> tuple[bytes, Places]:
        places = there.reshape(-1).nonzero()[0]
        before = numpy.concatenate([[-1], places[:-1]]) if len(places) else places
        steps = (places - before + span - 1) // span  # the last of them is the number itself
        ends = numpy.cumsum(steps)
        kept = numpy.repeat(before, steps) + span * (
            numpy.arange(ends[-1] if len(ends) else 0) - numpy.repeat(ends - steps, steps) + 1
        )
        kept[ends - 1] = places
        return coder.line(_gaps(kept)), kept

    return Positions(
        {"is": "relative", "bits": bits, "coder": coder.name}, encode, lambda data, shape: _from_gaps(coder, data, shape, span)
    )


def gaps(coder: Coder) -> Positions:
    """How many zeros lie before each number, however many."""

    def encode(there: There) -> tuple[bytes, Places]:
        places = there.reshape(-1).nonzero()[0]
        return coder.line(_gaps(places)), places

    return Positions({"is": "gaps", "coder": coder.name}, encode, lambda data, shape: _from_gaps(coder, data, shape))


def _gaps(places: Places) -> NDArray[numpy.int32]:
    return (numpy.diff(places, prepend=-1) - 1).astype(numpy.int32)


def _from_gaps(coder: Coder, data: memoryview, shape: Shape, span: int = 1 << 31) -> Places:
    zeros = coder.from_line(data, numpy.prod(shape, dtype=object)).astype(numpy.int64)
    if len(zeros) and not 0 <= zeros.min() <= zeros.max() < span:
        raise FileError(f"a number lies {zeros.min()} or {zeros.max()} zeros after another; the file is damaged")
    return _inside(numpy.cumsum(zeros + 1) - 1, shape)


def _inside(places: Places, shape: Shape) -> Places:
    if len(places) and places[-1] >= numpy.prod(shape, dtype=object):
        raise FileError(f"a number lies at {places[-1]}, outside of the tensor; the file is damaged")
    return places


# ---------------------------------------------------------------- bits


def bitmap() -> Positions:
    """A bit for each number, the first one the most significant of its byte."""

    def decode(data: memoryview, shape: Shape) -> Places:
        count = numpy.prod(shape, dtype=object)
        return _bits(data, count).nonzero()[0]

    return Positions(
        {"is": "bitmap"},
        lambda there: (numpy.packbits(there.reshape(-1)).tobytes(), there.reshape(-1).nonzero()[0]),
        decode,
    )


def _bits(data: memoryview, count: int) -> NDArray[numpy.uint8]:
    """So many bits, no more and no less; those that fill the last byte are 0."""
    if len(data) != -(-count // 8):
        raise FileError(f"there are {len(data)} bytes for {count} bits; the file is damaged")
    found = numpy.unpackbits(numpy.frombuffer(data, numpy.uint8))
    if found[count:].any():
        raise FileError("bits are set after the last one; the file is damaged")
    return found[:count]


def elias_fano() -> Positions:
    """The low bits of each place as they are, the high ones in unary: at most two bits more than the logarithm of the mean distance."""

    def encode(there: There) -> tuple[bytes, Places]:
        places = there.reshape(-1).nonzero()[0]
        return ascending(places, there.size), places

    return Positions(
        {"is": "elias-fano"}, encode, lambda data, shape: from_ascending(data, int(numpy.prod(shape, dtype=object)), strictly=True)
    )


def ascending(numbers: Places, bound: int) -> bytes:
    """Whole numbers that do not descend, below a bound of at most 2^62: how many, low bits, high bits (Elias-Fano).

    >>> from_ascending(memoryview(ascending(numpy.array([3, 5, 900]), 1000)), 1000)
    array([  3,   5, 900])
    """
    low = _low_bits(len(numbers), bound)
    lows = (numbers[:, None] >> numpy.arange(low - 1, -1, -1)) & 1
    high = numbers >> low
    unary = numpy.zeros(int(high[-1]) + len(numbers) if len(high) else 0, numpy.uint8)
    unary[high + numpy.arange(len(high))] = 1
    return counted(len(numbers)) + b"".join(
        numpy.packbits(each).tobytes() for each in (lows.astype(numpy.uint8).reshape(-1), unary)
    )


def from_ascending(data: memoryview, bound: int, strictly: bool = False) -> Places:
    """The way back; raises `FileError` where it is not of such numbers."""
    count, rest = count_of(data)
    if count > 8 * len(rest):
        raise FileError(f"there are {len(rest)} bytes for {count} places; the file is damaged")
    low = _low_bits(count, bound)
    split = -(-count * low // 8)
    lows = _bits(rest[:split], count * low).reshape(count, low).astype(numpy.int64)
    unary = numpy.unpackbits(numpy.frombuffer(rest[split:], numpy.uint8)).nonzero()[0]
    if len(unary) != count or (count and len(rest) - split != unary[-1] // 8 + 1) or (not count and len(rest)):
        raise FileError(f"there are {len(unary)} places where {count} are told; the file is damaged")
    found = (unary - numpy.arange(count) << low) + lows @ (1 << numpy.arange(low - 1, -1, -1, dtype=numpy.int64))
    if count and (found[-1] >= bound or (numpy.diff(found) < strictly).any()):
        raise FileError("places do not ascend, or lie outside of the tensor; the file is damaged")
    return found


def _low_bits(count: int, bound: int) -> int:
    return max(0, (bound // count).bit_length() - 1) if count else 0


# ---------------------------------------------------------------- patterns


def n_of_m(kept: int, of: int, coder: Coder) -> Positions:
    """Which `kept` of each `of` consecutive columns: a number for each of them, the rank of the choice among all in lexical order."""
    if not 0 < kept < of <= 32 or comb(of, kept) > 1 << 16:
        raise SecateursError(f"positions within {kept} of {of} are for at most 32, and 65,536 choices")

    def encode(there: There) -> tuple[bytes, Places]:
        rows, columns, inner = there.shape
        groups = there.transpose(0, 2, 1).reshape(-1, of)
        order = numpy.sort(numpy.argsort(~groups, axis=1, kind="stable")[:, :kept], axis=1)  # zeros fill what is missing
        ranks = numpy.searchsorted(_words(kept, of), _as_word(order, of)).astype(numpy.int32)
        return coder.encode(ranks.reshape(rows, inner * columns // of, 1)), _places_of(order, (rows, columns, inner))

    def decode(data: memoryview, shape: Shape) -> Places:
        rows, columns, inner = shape
        if columns % of:
            raise FileError(f"{columns} columns are no groups of {of}; the file is damaged")
        ranks = coder.decode(data, rows, inner * columns // of, 1).reshape(-1)
        if len(ranks) and not 0 <= ranks.min() <= ranks.max() < comb(of, kept):
            raise FileError(f"there is no choice {ranks.max()} of {kept} among {of}; the file is damaged")
        return _places_of(_choices(kept, of)[ranks], shape)

    def _places_of(order: NDArray[numpy.int64], shape: Shape) -> Places:
        rows, columns, inner = shape
        there = numpy.zeros((len(order), of), bool)
        numpy.put_along_axis(there, order, True, axis=1)
        return there.reshape(rows, inner, columns).transpose(0, 2, 1).reshape(-1).nonzero()[0]

    return Positions({"is": "n of m", "kept": kept, "of": of, "coder": coder.name}, encode, decode)


@cache
def _choices(kept: int, of: int) -> NDArray[numpy.int64]:
    return numpy.array(list(combinations(range(of), kept)), numpy.int64)


def _as_word(choices: NDArray[numpy.int64], of: int) -> NDArray[numpy.int64]:
    """A number for each choice, in their lexical order."""
    return -(1 << of - 1 - choices).sum(1)


@cache
def _words(kept: int, of: int) -> NDArray[numpy.int64]:
    return _as_word(_choices(kept, of), of)


def blocks(height: int, width: int, coder: Coder) -> Positions:
    """Which blocks of so many rows and numbers of a row have anything in them; all numbers of these are coded, zeros too."""

    def cut(there: There) -> NDArray[numpy.bool_]:
        rows, wide = there.shape[0], there.shape[1] * there.shape[2]
        return there.reshape(rows // height, height, wide // width, width)

    def places(whole: NDArray[numpy.bool_], shape: Shape) -> Places:
        spread = numpy.broadcast_to(whole[:, None, :, None], (len(whole), height, whole.shape[1], width))
        return spread.reshape(-1).nonzero()[0]

    def encode(there: There) -> tuple[bytes, Places]:
        whole = numpy.asarray(cut(there).any((1, 3)), dtype=numpy.bool_)
        return coder.encode(whole.astype(numpy.int32)[:, :, None]), places(whole, there.shape)  # type: ignore[arg-type]

    def decode(data: memoryview, shape: Shape) -> Places:
        rows, wide = shape[0], shape[1] * shape[2]
        if rows % height or wide % width:
            raise FileError(f"a tensor of {rows} x {wide} has no blocks of {height} x {width}; the file is damaged")
        whole = coder.decode(data, rows // height, wide // width, 1)
        if whole.size and not 0 <= whole.min() <= whole.max() <= 1:
            raise FileError("whether a block is there is neither yes nor no; the file is damaged")
        return places(whole[:, :, 0] != 0, shape)

    return Positions({"is": "blocks", "height": height, "width": width, "coder": coder.name}, encode, decode)
