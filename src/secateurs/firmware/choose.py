"""Which format each layer gets: the fewest instructions of all choices that fit into flash."""

from __future__ import annotations

from collections.abc import Sequence

from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError

Points = list[tuple[float, int, tuple[int, ...]]]
"""Instructions, bytes and the choices that give them: more bytes, fewer instructions, in that order."""


def chosen(options: Sequence[Sequence[Call]], flash: int | None = None) -> list[Call]:
    """One call of each layer's options: the fewest instructions in all with at most ``flash`` bytes of constants; then the fewest bytes.

    Exact: all sums that no other beats in both are kept, layer after layer, but for those that even the cheapest rest cannot make fit
    and those that even the fastest rest cannot make faster than a sum that is known. Raises `FirmwareError` where nothing fits.
    """
    sizes, least = [[call.flash for call in each] for each in options], [min(call.flash for call in each) for each in options]
    if flash is not None and sum(least) > flash:
        raise FirmwareError(
            f"the weights take {sum(least):,} bytes of flash in their smallest formats, {sum(least) - flash:,} more than there are: "
            "prune with sc.Budget(sc.flash_bytes(), limit=...)"
        )
    room = sum(map(max, sizes)) if flash is None else flash
    fastest = [min(call.instructions for call in each) for each in options]
    known = _reached(options, room)
    points: Points = [(0.0, 0, ())]
    for place, each in enumerate(options):
        bytes_after, rest = sum(least[place + 1 :]), sum(fastest[place + 1 :])
        found = [
            (taken + call.instructions, size + call.flash, (*picks, pick))
            for taken, size, picks in points
            for pick, call in enumerate(each)
            if size + call.flash + bytes_after <= room and taken + call.instructions + rest <= known
        ]
        points = _front(found)
    _, _, picks = min(points, key=lambda point: point[:2])
    return [each[pick] for each, pick in zip(options, picks, strict=True)]


def _front(points: Points) -> Points:
    """Without those that another beats in bytes and in instructions."""
    found: Points = []
    for point in sorted(points, key=lambda point: (point[1], point[0], point[2])):
        if not found or point[0] < found[-1][0]:
            found.append(point)
    return found


def _reached(options: Sequence[Sequence[Call]], room: int) -> float:
    """The instructions of a good choice: from the smallest formats on, again and again the step that saves most for a byte, if it fits."""
    picks = [min(each, key=lambda call: (call.flash, call.instructions)) for each in options]
    left = room - sum(call.flash for call in picks)
    while True:
        steps = [
            ((picks[place].instructions - call.instructions) / max(1, call.flash - picks[place].flash), place, call)
            for place, each in enumerate(options)
            for call in each
            if call.instructions < picks[place].instructions and call.flash - picks[place].flash <= left
        ]
        if not steps:
            return sum(call.instructions for call in picks) * (1 + 1e-12)
        _, place, call = max(steps, key=lambda step: step[0])
        left -= call.flash - picks[place].flash
        picks[place] = call
