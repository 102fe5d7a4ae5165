"""What an entropy coder of whole numbers is: there, and back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from secateurs.types import FileError

Numbers = NDArray[numpy.int32]


@dataclass(frozen=True)
class Coder:
    """A way to write whole numbers in few bytes; numbers are of shape (rows, columns, inner), as of a weight whose kernels are flat.

    ``decode(data, rows, columns, inner)`` raises `FileError` where the data are not of so many numbers, never anything else; its time
    and its memory are bounded by them.
    """

    name: str
    encode: Callable[[Numbers], bytes]
    decode: Callable[[memoryview, int, int, int], Numbers]

    def line(self, numbers: Numbers) -> bytes:
        """Numbers in one line, with their count before them."""
        return counted(len(numbers)) + self.encode(numpy.ascontiguousarray(numbers, dtype=numpy.int32).reshape(1, -1, 1))

    def from_line(self, data: memoryview, most: int) -> Numbers:
        """The way back, of at most so many numbers."""
        count, rest = count_of(data)
        if count > most:
            raise FileError(f"there are {count} numbers where at most {most} can be; the file is damaged")
        return self.decode(rest, 1, count, 1).reshape(-1)


def counted(count: int) -> bytes:
    """A whole number of at least 0 in as few bytes as it needs: seven bits in each, the lowest first, the top bit of all but the last set.

    >>> counted(300).hex()
    'ac02'
    """
    found = bytearray()
    while count >= 128:
        found.append(count & 127 | 128)
        count >>= 7
    return bytes([*found, count])


def count_of(data: memoryview) -> tuple[int, memoryview]:
    """A whole number, and what follows it; raises `FileError` where there is none below 2^63, or one written longer than it needs.

    >>> count_of(memoryview(b"\\xac\\x02rest"))[0]
    300
    """
    count = 0
    for place, byte in enumerate(data[:9]):
        count |= (byte & 127) << 7 * place
        if byte < 128:
            if place and not byte:
                break
            return count, data[place + 1 :]
    raise FileError("a count is cut off, or too long; the file is damaged")
