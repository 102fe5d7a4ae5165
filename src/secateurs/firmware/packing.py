"""Where boxes lie in one arena: each takes some bytes from a first to a last step, and no two may overlap in both.

Boxes that are placed one after another, each at the lowest free place, lie best for some sequence of them. So sequences are searched:
a few that are known to be good, then changes to the best of these, then, where there are few boxes, all of them, as far as they differ.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

EXACT, NODES, CHANGES = 40, 20_000, 60_000  # boxes at most, nodes and steps of the searches


@dataclass(frozen=True)
class Box:
    """So many bytes, from the start of the step ``first`` to the end of the step ``last``."""

    bytes: int
    first: int
    last: int


def most_alive(boxes: Sequence[Box]) -> int:
    """The most bytes that are needed at one step: no arena is smaller.

    >>> most_alive([Box(8, 0, 1), Box(4, 1, 2), Box(8, 2, 3)])
    12
    """
    alive = [0] * (max((box.last for box in boxes), default=0) + 1)
    for box in boxes:
        for step in range(box.first, box.last + 1):
            alive[step] += box.bytes
    return max(alive)


def pack(boxes: Sequence[Box], enough: int = 0) -> tuple[list[int], int]:
    """The offset of each box, and the size of the smallest arena that was found; the search ends where it is as small as ``enough``.

    >>> pack([Box(8, 0, 1), Box(4, 1, 2), Box(8, 2, 3)])
    ([0, 8, 0], 12)
    """
    bound = max(enough, most_alive(boxes))
    together = [[j for j, b in enumerate(boxes) if j != i and b.first <= a.last and a.first <= b.last] for i, a in enumerate(boxes)]
    best: tuple[int, list[int], list[int]] | None = None
    for sequence in _sequences(boxes):
        offsets, top = first_fit(boxes, sequence, together)
        if best is None or top < best[0]:
            best = top, offsets, sequence
        if top <= bound:
            break
    assert best is not None
    top, offsets, sequence = best
    if top > bound:
        offsets, top = _changed(boxes, sequence, together, offsets, top, bound)
    if top > bound and len(boxes) <= EXACT:
        offsets, top = _Search(boxes, bound, offsets, top).found()
    return offsets, top


def _sequences(boxes: Sequence[Box]) -> list[list[int]]:
    """What is placed first: the large, the large that stay long, the long, those that come first."""
    keys = (
        lambda box: (-box.bytes, box.first),
        lambda box: (-box.bytes * (box.last - box.first + 1), box.first),
        lambda box: (box.first - box.last, -box.bytes),
        lambda box: (box.first, -box.bytes),
        lambda box: (-box.last, -box.bytes),
    )
    return [sorted(range(len(boxes)), key=lambda i, key=key: key(boxes[i])) for key in keys]  # type: ignore[misc]


def first_fit(boxes: Sequence[Box], sequence: Sequence[int], together: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Each box in turn at the lowest place that is free while it is needed: offsets, and the size of the arena."""
    offsets, top = [-1] * len(boxes), 0
    for each in sequence:
        size, place = boxes[each].bytes, 0
        taken: list[tuple[int, int]] = []
        for other in together[each]:
            if offsets[other] >= 0:
                insort(taken, (offsets[other], offsets[other] + boxes[other].bytes))
        for low, high in taken:
            if place + size <= low:
                break
            place = max(place, high)
        offsets[each] = place
        top = max(top, place + size)
    return offsets, top


def _changed(
    boxes: Sequence[Box], sequence: Sequence[int], together: Sequence[Sequence[int]], offsets: list[int], top: int, bound: int
) -> tuple[list[int], int]:
    """Boxes that reach the top go earlier in the sequence, others change places; what is not worse is kept."""
    random, now, best = Random(0), list(sequence), (offsets, top)
    for _ in range(CHANGES // max(1, len(boxes))):
        tried = list(now)
        high = [i for i in tried if offsets[i] + boxes[i].bytes == top]
        moved = tried.index(random.choice(high)) if random.random() < 0.5 else random.randrange(len(tried))
        tried.insert(random.randrange(moved + 1), tried.pop(moved))
        if random.random() < 0.5:
            i, j = random.randrange(len(tried)), random.randrange(len(tried))
            tried[i], tried[j] = tried[j], tried[i]
        found, reached = first_fit(boxes, tried, together)
        if reached <= top:
            now, offsets, top = tried, found, reached
            if reached < best[1]:
                best = found, reached
            if reached <= bound:
                break
    return best


class _Search:
    """All ways to pile up boxes, as far as they can be better than what is known; from the bottom up, each on what lies below it."""

    def __init__(self, boxes: Sequence[Box], bound: int, offsets: list[int], top: int) -> None:
        self.boxes, self.bound, self.best, self.top = boxes, bound, list(offsets), top
        self.nodes = 0
        self.seen = set[tuple[int, int, tuple[int, ...]]]()
        self.height = [0] * (max(box.last for box in boxes) + 1)
        self.waiting = [0] * len(self.height)
        for box in boxes:
            for step in range(box.first, box.last + 1):
                self.waiting[step] += box.bytes
        self.offsets = [-1] * len(boxes)

    def found(self) -> tuple[list[int], int]:
        """The best offsets, and the size of the arena."""
        self._pile(0, 0)
        return self.best, self.top

    def _pile(self, placed: int, floor: int) -> None:
        """Go on from boxes that are placed; none of the others lies below ``floor``."""
        if placed == (1 << len(self.boxes)) - 1:
            self.best, self.top = list(self.offsets), max(self.height)
            return
        self.nodes += 1
        state = placed, floor, tuple(self.height)
        if self.nodes > NODES or state in self.seen:
            return
        self.seen.add(state)
        places = {i: max(floor, *self.height[box.first : box.last + 1]) for i, box in enumerate(self.boxes) if not placed >> i & 1}
        # A box that fits below where another would begin is better placed first: nothing that comes later could lie there.
        ceiling = min(place + self.boxes[i].bytes for i, place in places.items())
        for i, place in sorted(places.items(), key=lambda item: (item[1], -self.boxes[item[0]].bytes)):
            if place < ceiling and self.top > self.bound:
                self._place(i, place, placed)

    def _place(self, i: int, place: int, placed: int) -> None:
        box = self.boxes[i]
        span = range(box.first, box.last + 1)
        before = self.height[box.first : box.last + 1]
        self.offsets[i] = place
        for step in span:
            self.height[step] = place + box.bytes
            self.waiting[step] -= box.bytes
        if all(
            max(height, place) + waiting < self.top for height, waiting in zip(self.height, self.waiting, strict=True) if waiting
        ) and (place + box.bytes < self.top):
            self._pile(placed | 1 << i, place)
        for step in span:
            self.waiting[step] += box.bytes
        self.height[box.first : box.last + 1] = before
        self.offsets[i] = -1
