"""An adaptive binary range coder whose probabilities are chosen by neighbours, in the manner of DeepCABAC (arXiv 1907.11900).

A number is coded as: is it other than zero; is it negative; how many bits its magnitude has (one decision each: more?); the bits below the
highest. Each probability is the mean of two, which know different neighbours and forget at different speeds.
"""

from __future__ import annotations

from collections import defaultdict

from secateurs.coding.coders.around import Rows, decode_adaptively, encode_adaptively, moved, near, side, sign_of
from secateurs.coding.coders.payload import Malformed, Numbers, Payload, Shape, decoded, encoded
from secateurs.coding.coders.ranges import Chance, Coder, sure
from secateurs.coding.coders.tables import COST

SIGNS, NODES, PLAIN = 4096, 4096 + 512, 512 * 16
SLOW, FAST = 1023, 127


def encode(levels: Numbers) -> bytes:
    """Levels (rows, columns, inner), int32, as bytes.

    Raises `SecateursError` for another kind of array.

    >>> import numpy as np
    >>> len(encode(np.eye(32, dtype=np.int32)[..., None])), len(encode(np.zeros((32, 32, 1), np.int32)))
    (28, 1)
    """
    return encoded(levels, "context", encode_plain)


def decode(data: Payload, rows: int, columns: int, inner: int) -> Numbers:
    """The levels again, int32 (rows, columns, inner).

    Raises `FileError` where the bytes are not what `encode` gives for so many numbers.
    """
    return decoded(data, rows, columns, inner, "context", decode_plain)


def encode_plain(levels: Numbers, shape: Shape) -> bytes:
    """The same in Python, as `secateurs.coding._native` does it: the normative text of the format."""
    return encode_adaptively(levels, shape, Model)


def decode_plain(data: bytes, shape: Shape) -> list[int]:
    """As `encode_plain`, the other way."""
    return decode_adaptively(data, shape, Model)


class Model:
    """Which probability decides on what, by the neighbours that are known."""

    def __init__(self, shape: Shape, bits: int) -> None:
        self._inner, self._bits, self._side = shape.inner, bits, side(shape.inner)
        self._apart = shape.inner if shape.inner > 1 else 3
        self._rows, self._row = Rows(shape), -1
        self._own: defaultdict[int, Chance] = defaultdict(Chance)
        self._shared: defaultdict[int, Chance] = defaultdict(Chance)
        self._columns_nonzero, self._lately_nonzero, self._kernel_nonzero = [32768] * shape.columns, 32768, 0

    def next_row(self) -> None:
        """A row begins, the first one too."""
        if self._row >= 0:
            self._rows.next()
        self._row += 1

    def look(self, column: int, position: int) -> None:
        """Looks around at the number that is to be coded."""
        self._column, self._position = column, position
        self._at = at = self._rows.start + column * self._inner + position
        if position == 0:
            self._kernel_nonzero = 0
        row = self._rows[0]
        self._last, self._second, self._across = row[at - 1], row[at - 2], row[at - self._apart]
        self._over, self._second_over = self._rows[1][at], self._rows[2][at]
        self._beneath = row[at - self._side] if self._side > 1 and position >= self._side else 0
        neighbours = (self._last, self._second, self._across, self._over, self._beneath, self._second_over)
        around = sum((each != 0) << bit for bit, each in enumerate(neighbours))
        self._zero_own = around | min(self._kernel_nonzero, 3) << 6
        lately, columns = self._lately_nonzero >> 12, self._columns_nonzero[column] >> 12
        self._zero_shared = (lately * 16 + columns) * 16 + min(position, 15)

    def look_closer(self) -> None:
        """What matters where the number is not zero."""
        last, second, across, over = self._last, self._second, self._across, self._over
        self._sign_own = SIGNS + sign_of(last) + 3 * sign_of(across) + 9 * sign_of(over) + 27 * sign_of(self._beneath)
        self._sign_shared = (
            SIGNS + sign_of(over) + 3 * sign_of(self._second_over) + 9 * sign_of(second) + 27 * min(self._position, 9)
        )
        self._size = (2 * abs(last) + 2 * abs(across) + abs(over) + abs(second)).bit_length()

    def code(self, coder: Coder, number: int) -> int:
        """Codes it; gives the number that a decoder finds."""
        if not self._decide(coder, number != 0, self._zero_own, self._zero_shared):
            return 0
        self.look_closer()
        negative = self._decide(coder, number < 0, self._sign_own, self._sign_shared)
        own, sized, wanted = NODES + 512 * negative, NODES + 512 * self._size, abs(number)
        log = 0
        while log < self._bits - 1 and self._decide(coder, wanted.bit_length() - 1 > log, own + log, sized + log):
            log += 1
        found = 1
        for at in range(log - 1, -1, -1):
            bit, depth = bool(wanted >> at & 1), log - 1 - at
            if log > 7 and depth > 2:
                found = found * 2 + coder.code(bit, 32768)
                continue
            node = 32 + ((1 << log) + found if log <= 7 else 256 + (log - 8) * 8 + found)
            found = found * 2 + self._decide(coder, bit, own + node, (sized if depth < 2 else NODES + PLAIN) + node)
        if log == 31 and (not negative or found > 1 << 31):
            raise Malformed("a number of more than 32 bits")
        return -found if negative else found

    def know(self, number: int) -> None:
        """Learns what it was."""
        nonzero = number != 0
        self._rows[0][self._at] = near(number)
        self._kernel_nonzero += nonzero
        seen = min(self._row * self._inner + self._position, 4 * self._inner + 12) + 1
        target = 65535 if nonzero else 0
        self._columns_nonzero[self._column] = moved(self._columns_nonzero[self._column], target, seen)
        self._lately_nonzero += (target - self._lately_nonzero) >> 6

    def _chance(self, own: int, shared: int) -> int:
        return sure(((self._own[own].p >> 6) + (self._shared[shared].p >> 6)) >> 1)

    def _decide(self, coder: Coder, yes: bool, own: int, shared: int) -> bool:
        yes = coder.code(yes, self._chance(own, shared))
        self._own[own].learn(yes, SLOW)
        self._shared[shared].learn(yes, FAST)
        return yes

    def cost(self, number: int) -> int:
        """What `code` would take now, in 2^-16 bits; `look` and `look_closer` come before."""
        bits = self._price(number != 0, self._zero_own, self._zero_shared)
        if not number:
            return bits
        negative, wanted = number < 0, abs(number)
        bits += self._price(negative, self._sign_own, self._sign_shared)
        own, sized, log = NODES + 512 * negative, NODES + 512 * self._size, wanted.bit_length() - 1
        for each in range(min(self._bits - 1, log + 1)):
            bits += self._price(log > each, own + each, sized + each)
        for at in range(log - 1, -1, -1):
            depth, found = log - 1 - at, wanted >> (at + 1)
            if log > 7 and depth > 2:
                return bits + ((at + 1) << 16)
            node = 32 + ((1 << log) + found if log <= 7 else 256 + (log - 8) * 8 + found)
            bits += self._price(bool(wanted >> at & 1), own + node, (sized if depth < 2 else NODES + PLAIN) + node)
        return bits

    def _price(self, yes: bool, own: int, shared: int) -> int:
        p = self._chance(own, shared)
        return COST[(p if yes else 65536 - p) >> 4]
