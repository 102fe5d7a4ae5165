"""Bits in bytes, the first bit highest."""

from __future__ import annotations

from secateurs.coding.coders.payload import Malformed, check_end


class BitWriter:
    """Numbers of a given width, one after the other, behind a head of whole bytes."""

    def __init__(self, head: bytes) -> None:
        self._bytes, self._open, self._filled = bytearray(head), 0, 0

    def put(self, value: int, width: int) -> None:
        """Appends a number."""
        self._open = self._open << width | value
        self._filled += width
        while self._filled >= 8:
            self._filled -= 8
            self._bytes.append(self._open >> self._filled)
            self._open &= (1 << self._filled) - 1

    def finish(self) -> bytes:
        """All of it; the last byte is filled up with zeros."""
        if self._filled:
            self.put(0, 8 - self._filled)
        return bytes(self._bytes)


class BitReader:
    """Reads what `BitWriter` wrote."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._at = data, 8 * start

    def get(self, width: int) -> int:
        """The next number."""
        first, last = self._at // 8, -(-(self._at + width) // 8)
        self._at += width
        if last > len(self._data) + 8:
            raise Malformed("it ends too early")
        word = int.from_bytes(self._data[first:last].ljust(last - first, b"\0"), "big")
        return word >> (8 * last - self._at) & ((1 << width) - 1)

    def skip(self, width: int) -> None:
        """Goes on without looking."""
        self._at += width

    def finish(self, numbers: int) -> None:
        """Raises where more was asked for than was there, or something is left."""
        end = -(-self._at // 8)
        check_end(self._data, end, end, numbers)
        if self._at % 8 and self._data[end - 1] & ((1 << -self._at % 8) - 1):
            raise Malformed("the last byte is not filled with zeros")
