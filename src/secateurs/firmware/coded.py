"""Dense weights that are entropy coded in flash: a layer decodes them each time it runs, all of them into its scratch."""

from __future__ import annotations

import numpy as np

from secateurs.coding.coders.prefix_code import lengths_of
from secateurs.firmware.call import Call, Constant
from secateurs.firmware.dense import chunk_of, packed
from secateurs.firmware.products import Place, flat, lines_of, rows_of, shape_of, statement, whole
from secateurs.integers.layers import Conv, Numbers

_PEEK = 16
"""Bits that the decoder looks at: no word is longer."""
_BEYOND = 3
"""Bytes that it may read behind the last word."""


def coded(numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """int8 numbers as words of the best prefix code: bits (uint8), what `sec_decode` finds words by (uint16), and the numbers in the order
    of their words.

    Canonical (Huffman 1952): words of one length are neighbours, shorter ones come first.

    >>> [each.tolist() for each in coded(np.array([0, 0, 5, 0, -1, 0], np.int8))]
    [[52, 0, 0, 0], [1, 2, 32767, 65535, 0, 65535], [0, -1, 5]]
    """
    symbols, where, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    lengths = np.array(lengths_of(counts.tolist()))
    order = np.lexsort((symbols, lengths))
    shortest, longest = int(lengths.min()), int(lengths.max())
    words, word, last, offset = np.zeros(len(symbols), np.int64), 0, [], []
    start = 0
    for length in range(shortest, longest + 1):
        some = order[lengths[order] == length]
        words[some] = word + np.arange(len(some))
        offset.append(start - word)
        start, word = start + len(some), word + len(some)
        last.append((word << (_PEEK - length)) - 1)
        word *= 2
    last[-1] = (1 << _PEEK) - 1
    code = np.array([shortest, longest, *last, *offset], np.int64) % (1 << 16)
    return _written(words[where.ravel()], lengths[where.ravel()]), code.astype(np.uint16), symbols[order]


def _written(words: Numbers, lengths: Numbers) -> Numbers:
    """Words one after another, the first bit of each byte the highest, and some bytes more."""
    ends = np.cumsum(lengths)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for back in range(int(lengths.max())):
        has = lengths > back
        bits[ends[has] - 1 - back] = (words[has] >> back) & 1
    return np.concatenate([np.packbits(bits), np.zeros(_BEYOND, np.uint8)])


def coded_call(layer: Conv, name: str, place: Place | None = None) -> Call:
    """A layer of int8 whose weights are decoded into scratch before they are used, as dense ones; ``name`` begins its names in C.

    Raises `FirmwareError` where `dense_call` does.
    """
    place = place or whole(layer)
    rows, lines, taps = rows_of(layer), lines_of(layer, place), flat(layer).shape[2]
    both = packed(layer)
    even = (both & 255).astype(np.uint8).view(np.int8)
    odd = ((both.astype(np.int64) - even) >> 8).astype(np.int8)
    bits, code, symbols = coded(np.stack([even, odd], 1).ravel())
    constants = (
        Constant(f"{name}_shape", "int16_t", shape_of(layer, rows.easy, lines > 0, chunk_of(layer))),
        Constant(f"{name}_bits", "uint8_t", bits),
        Constant(f"{name}_code", "uint16_t", code),
        Constant(f"{name}_symbols", "int8_t", symbols),
        Constant(f"{name}_rows", "int32_t", rows.numbers.ravel()),
    )
    call = statement("sec_coded", name, place, "shape", "bits", "code", "symbols", "rows")
    scratch = both.nbytes + 5 * taps + lines
    return Call(layer, ("arithmetic.c", "columns.c", "dense.c", "coded.c"), constants, call, scratch=scratch, label="Huffman")
