"""What stands around the number that is next, and how tensors are walked."""

from __future__ import annotations

from typing import Protocol

from secateurs.coding.coders.payload import Malformed, Numbers, Shape, check_end
from secateurs.coding.coders.ranges import Coder, RangeDecoder, RangeEncoder
from secateurs.coding.coders.tables import SHARE, clamp


class Model(Protocol):
    """Foretells numbers in order; each is looked at, coded and known before the next."""

    def next_row(self) -> None:
        """A row begins, the first one too."""
        ...

    def look(self, column: int, position: int) -> None:
        """Looks around at the number that is to be coded."""
        ...

    def code(self, coder: Coder, number: int) -> int:
        """Codes it; gives the number that a decoder finds."""
        ...

    def know(self, number: int) -> None:
        """Learns what it was."""
        ...


class Models(Protocol):
    """Makes a model for numbers whose largest magnitude has so many bits."""

    def __call__(self, shape: Shape, bits: int) -> Model:
        """The model, which knows nothing."""
        ...


def walk(model: Model, coder: Coder, shape: Shape, numbers: list[int]) -> list[int]:
    """All numbers in order, each foretold by the model and coded."""
    found: list[int] = []
    for _ in range(shape.rows):
        model.next_row()
        for column in range(shape.columns):
            for position in range(shape.inner):
                model.look(column, position)
                number = model.code(coder, numbers[len(found)])
                model.know(number)
                found.append(number)
    return found


def encode_adaptively(levels: Numbers, shape: Shape, models: Models) -> bytes:
    """How many bits the largest magnitude has, then the decisions; none where all numbers are zero."""
    numbers = levels.ravel().tolist()
    bits = max(abs(number) for number in numbers).bit_length()
    coder = RangeEncoder()
    if bits:
        walk(models(shape.walked(), bits), coder, shape.walked(), numbers)
    return bytes([bits]) + coder.finish()


def decode_adaptively(data: bytes, shape: Shape, models: Models) -> list[int]:
    """As `encode_adaptively`, the other way."""
    if not data:
        raise Malformed("it ends too early")
    if data[0] > 32:
        raise Malformed("a number of more than 32 bits")
    if not data[0]:
        check_end(data, 1, 1, shape.numbers)
        return [0] * shape.numbers
    coder = RangeDecoder(data, 1)
    found = walk(models(shape.walked(), data[0]), coder, shape.walked(), [0] * shape.numbers)
    check_end(data, coder.at - 8, coder.at, shape.numbers)
    return found


class Rows:
    """Three rows, of which the last is being filled; zeros stand before their beginnings and behind their ends."""

    def __init__(self, shape: Shape) -> None:
        self.start = 3 * max(shape.inner, 4) + 8
        self._length = self.start + shape.columns * shape.inner + shape.inner + 1
        self._rows = [[0] * self._length for _ in range(3)]

    def next(self) -> None:
        """A new row begins."""
        self._rows = [[0] * self._length, *self._rows[:2]]

    def __getitem__(self, back: int) -> list[int]:
        return self._rows[back]


def side(inner: int) -> int:
    """The side of a square kernel; 0 where it is none.

    >>> side(9), side(10), side(1)
    (3, 0, 1)
    """
    root = round(inner**0.5)
    return root if root * root == inner else 0


def near(number: int) -> int:
    """A number as neighbours see it: no larger than 127."""
    return clamp(number, -127, 127)


def sign_of(number: int) -> int:
    """0, 1 for what is positive, 2 for what is negative."""
    return 1 if number > 0 else 2 if number < 0 else 0


def moved(mean: int, target: int, seen: int) -> int:
    """A mean as it moves: over all that came while ``seen`` is small."""
    return mean + ((target - mean) * SHARE[seen] >> 16)
