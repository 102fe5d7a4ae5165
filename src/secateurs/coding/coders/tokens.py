"""Numbers as few tokens: 0, -1, 1, -2, … one each as far as 512 go, the others by their number of bits, which then follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from secateurs.coding.coders.payload import Malformed, check_end
from secateurs.coding.coders.ranges import Chance, Coder, RangeDecoder, RangeEncoder, decide

DIRECT, MOST = 512, 535


class Token(NamedTuple):
    """What a number is coded as, and how many bits of which number follow."""

    token: int
    width: int
    rest: int


def token_of(number: int) -> Token:
    """What a number is coded as.

    >>> [token_of(number).token for number in (0, -1, 1, -2)], token_of(1000)
    ([0, 1, 2, 3], Token(token=513, width=10, rest=976))
    """
    folded = -2 * number - 1 if number < 0 else 2 * number
    if folded < DIRECT:
        return Token(folded, 0, 0)
    width = folded.bit_length() - 1
    return Token(DIRECT + width - 9, width, folded - (1 << width))


def rest_width(token: int) -> int:
    """How many bits follow."""
    return 0 if token < DIRECT else token - DIRECT + 9


def number_of(token: int, rest: int) -> int:
    """The number again."""
    folded = token if token < DIRECT else (1 << rest_width(token)) + rest
    return -(folded + 1 >> 1) if folded & 1 else folded >> 1


def counts_of(tokens: Sequence[Token]) -> list[int]:
    """How often each token comes, up to the last one that does."""
    return np.bincount([each.token for each in tokens]).tolist()


def encode_table(table: Sequence[int]) -> bytes:
    """Numbers below 2^15, one a token: how many, how many bytes they take, and the bytes."""
    coder = RangeEncoder()
    _code_table(coder, table)
    coded = coder.finish()
    return len(table).to_bytes(2, "big") + len(coded).to_bytes(2, "big") + coded


def decode_table(data: bytes) -> tuple[list[int], int]:
    """The table, and where the payload goes on."""
    entries, size = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
    if len(data) < 4 or len(data) - 4 < size:
        raise Malformed("it ends too early")
    if not 0 < entries <= MOST:
        raise Malformed("a table of no length that there is")
    coder = RangeDecoder(data[4 : 4 + size], 0)
    table = _code_table(coder, [0] * entries)
    check_end(data[4 : 4 + size], coder.at - 8, coder.at, 0)
    if not table[-1]:
        raise Malformed("a table that ends in nothing")
    return table, 4 + size


def _code_table(coder: Coder, table: Sequence[int]) -> list[int]:
    """Each as its number of bits (four decisions, by that of the one before), and then the bits below the highest."""
    chances: defaultdict[tuple[int, int], Chance] = defaultdict(Chance)
    before, found = 0, []
    for entry in table:
        wanted, node = entry.bit_length(), 1
        for at in range(3, -1, -1):
            node = node * 2 + decide(coder, bool(wanted >> at & 1), chances[before, node], 30)
        before = node - 16
        value = min(before, 1)
        for at in range(before - 2, -1, -1):
            value = value * 2 + coder.code(bool(entry >> at & 1), 32768)
        found.append(value)
    return found
