"""Arithmetic coding of decisions between two, each with a probability of 16 bits; and the probabilities that learn.

A decision is coded as a part of a range: yes takes the lower one. 64 bits of the number that is the code are open, of which 32 leave at a
time. What follows the last byte is read as zeros.
"""

from __future__ import annotations

from typing import Protocol

from secateurs.coding.coders.payload import Malformed
from secateurs.coding.coders.tables import COST, COUNT


class Coder(Protocol):
    """Takes a decision and gives it back; one that decodes does not look at what it is given."""

    def code(self, yes: bool, probability: int) -> bool:
        """The decision, of which yes had this probability (in 2^-16, neither 0 nor 1)."""
        ...


class RangeEncoder:
    """Writes decisions."""

    def __init__(self) -> None:
        self._low, self._range, self._words = 0, (1 << 64) - 1, 0

    def code(self, yes: bool, probability: int) -> bool:
        """Codes the decision."""
        part = (self._range >> 16) * probability
        self._low, self._range = (self._low, part) if yes else (self._low + part, self._range - part)
        if self._range >> 32 == 0:
            self._low, self._range, self._words = self._low << 32, self._range << 32, self._words + 1
        return yes

    def finish(self) -> bytes:
        """The fewest bytes of a number within the range."""
        for count in range(9):
            unit = 1 << (64 - 8 * count)
            number = -(-self._low // unit) * unit
            if number < self._low + self._range:
                break
        length = 4 * self._words + count
        return (number >> (64 - 8 * count)).to_bytes(length, "big")


class RangeDecoder:
    """Reads decisions."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self.at, self._range, self._code = data, start, (1 << 64) - 1, 0
        for _ in range(2):
            self._next()

    def _next(self) -> None:
        if self.at + 4 > len(self._data) + 8:
            raise Malformed("it ends too early")
        self._code = self._code << 32 | int.from_bytes(self._data[self.at : self.at + 4].ljust(4, b"\0"), "big")
        self.at += 4

    def code(self, yes: bool, probability: int) -> bool:
        """The decision that comes next."""
        part = (self._range >> 16) * probability
        found = self._code < part
        self._range, self._code = (part, self._code) if found else (self._range - part, self._code - part)
        if self._range >> 32 == 0:
            self._range <<= 32
            self._next()
        return found


class BitCounter:
    """Codes nothing, and counts what it would take."""

    def __init__(self) -> None:
        self.bits = 0
        """In 2^-16 bits."""

    def code(self, yes: bool, probability: int) -> bool:
        """Counts the decision."""
        self.bits += COST[(probability if yes else 65536 - probability) >> 4]
        return yes


class Chance:
    """A probability of 22 bits, and how many decisions it has seen: the mean of them, and after ``limit`` a sliding one."""

    __slots__ = ("p", "seen")

    def __init__(self) -> None:
        self.p, self.seen = 1 << 21, 0

    def learn(self, yes: bool, limit: int) -> None:
        """Moves towards what was decided."""
        self.p += ((((1 << 22) - 1 if yes else 0) - self.p) * COUNT[self.seen]) >> 16
        self.seen += self.seen < limit


def sure(probability: int) -> int:
    """The probability, where it is no surer than coding can be."""
    return max(32, min(65504, probability))


def decide(coder: Coder, yes: bool, chance: Chance, limit: int) -> bool:
    """One decision by one probability."""
    yes = coder.code(yes, sure(chance.p >> 6))
    chance.learn(yes, limit)
    return yes
