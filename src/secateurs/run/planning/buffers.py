"""Memory between the steps: who needs which piece from when to when, and where in one arena it lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from secateurs.run.planning.layout import Layout, Packed

ALIGNMENT = 64  # floats: panels begin on cache lines, and two buffers do not share one


@dataclass(eq=False)
class Buffer:
    """A piece of memory of so many floats; ``index`` is 0 in the arena, else the number of a tensor from outside."""

    floats: int
    index: int = 0
    offset: int = 0
    first: int = -1
    last: int = -1

    def use(self, time: int) -> None:
        """Something reads or writes it at this time."""
        self.first = time if self.first < 0 else min(self.first, time)
        self.last = max(self.last, time)


@dataclass(frozen=True)
class Place:
    """A part of a buffer, by its distance from the beginning in floats."""

    buffer: Buffer
    offset: int = 0

    def at(self) -> tuple[int, int]:
        """What the program's steps take, once the buffers have been laid out."""
        return self.buffer.index, self.buffer.offset + self.offset


@dataclass(frozen=True, eq=False)
class Home:
    """Where a value lies, and how."""

    layout: Layout
    place: Place

    @property
    def packed(self) -> Packed:
        """The layout of one that lies in panels."""
        assert isinstance(self.layout, Packed)
        return self.layout


NOWHERE = (-1, 0)


def lay_out(buffers: Iterable[Buffer]) -> int:
    """Give each buffer its offset so that no two that live at the same time overlap; returns the arena's size in floats.

    The largest first, each at the lowest place that is free while it lives.

    >>> a, b, c = Buffer(100, first=0, last=1), Buffer(50, first=1, last=2), Buffer(80, first=2, last=3)
    >>> lay_out([a, b, c]), a.offset, b.offset, c.offset
    (192, 0, 128, 0)
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda each: -each.floats):
        others = sorted(
            (each for each in placed if each.first <= buffer.last and buffer.first <= each.last), key=lambda e: e.offset
        )
        offset = 0
        for other in others:
            if offset + _rounded(buffer.floats) <= other.offset:
                break
            offset = max(offset, other.offset + _rounded(other.floats))
        buffer.offset = offset
        placed.append(buffer)
    return max((each.offset + _rounded(each.floats) for each in placed), default=0)


def _rounded(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT
