"""The smallest payload, and the slowest: the decisions of the context coder, each foretold by many and mixed by a network that learns.

Six probabilities, each of a context of its own, and three that follow from a prediction: of the number itself, by a linear filter over
what stands around it (one for each position of the kernel, one for all), and that it is zero; the errors are taken to be logistically
distributed, and what comes out is corrected by what came of it before. In logits these are mixed by two sets of weights, one chosen by
the kind of decision, one also by a context, and their mean is taken, as in the PAQ archivers (Mahoney 2005). All numbers are whole: every
machine writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.coding.coders.around import Rows, decode_adaptively, encode_adaptively, moved, near, side, sign_of
from secateurs.coding.coders.mixing import PREDICTIONS, Mixer, Predictor
from secateurs.coding.coders.payload import Malformed, Numbers, Payload, Shape, decoded, encoded
from secateurs.coding.coders.ranges import Coder
from secateurs.coding.coders.tables import INVERSE, LOGISTIC, STRETCH, clamp, quarters


def encode(levels: Numbers) -> bytes:
    """Levels (rows, columns, inner), int32, as bytes.

    Raises `SecateursError` for another kind of array.

    >>> import numpy as np
    >>> len(encode(np.eye(32, dtype=np.int32)[..., None])), len(encode(np.zeros((32, 32, 1), np.int32)))
    (23, 1)
    """
    return encoded(levels, "mixed", encode_plain)


def decode(data: Payload, rows: int, columns: int, inner: int) -> Numbers:
    """The levels again, int32 (rows, columns, inner).

    Raises `FileError` where the bytes are not what `encode` gives for so many numbers.
    """
    return decoded(data, rows, columns, inner, "mixed", decode_plain)


def encode_plain(levels: Numbers, shape: Shape) -> bytes:
    """The same in Python, as `secateurs.coding._native` does it: the normative text of the format."""
    return encode_adaptively(levels, shape, Model)


def decode_plain(data: bytes, shape: Shape) -> list[int]:
    """As `encode_plain`, the other way."""
    return decode_adaptively(data, shape, Model)


@dataclass
class _Mean:
    """A mean in 1/16 of what came, over all while little has."""

    value: int = 0
    seen: int = 0

    def know(self, number: int) -> None:
        self.value = moved(self.value, number * 16, self.seen)
        self.seen += self.seen < 250


class Model:
    """What is known of a tensor, and what follows from it for the next number."""

    def __init__(self, shape: Shape, bits: int) -> None:
        self._inner, self._bits, self._side = shape.inner, bits, side(shape.inner)
        self._apart = shape.inner if shape.inner > 1 else 3
        self._near, self._normal, self._row = Rows(shape), Rows(shape), -1
        self._mixer, self._predictor = Mixer(), Predictor(shape, self._side)
        self._errors = [_Mean() for _ in range(256 + 128)]
        self._kernel_nonzero = self._all_seen = 0
        # Densities in 2^-16; mean sizes in 1/16 of a normal unit.
        self._column_nonzero, self._column_size = [32768] * shape.columns, [0] * shape.columns
        self._place_nonzero = [32768] * (shape.columns * shape.inner)
        self._all_nonzero, self._all_size = 32768, 0

    def next_row(self) -> None:
        """A row begins, the first one too."""
        if self._row >= 0:
            self._near.next()
            self._normal.next()
        self._row += 1
        self._row_nonzero, self._row_size, self._row_seen = self._all_nonzero, self._all_size, 7

    def look(self, column: int, position: int) -> None:
        """Looks around at the number that is to be coded."""
        self._column, self._position = column, position
        self._place = column * self._inner + position
        self._at = at = self._near.start + self._place
        if position == 0:
            self._kernel_nonzero = 0
        row, apart = self._near[0], self._apart
        self._last, self._second, self._across, self._over = row[at - 1], row[at - 2], row[at - apart], self._near[1][at]
        self._beneath = row[at - self._side] if self._side > 1 and position >= self._side else 0
        second_over, second_across = self._near[2][at], row[at - 2 * apart]
        neighbours = (self._last, self._second, self._across, self._over, self._beneath, second_over)
        self._around = sum((each != 0) << bit for bit, each in enumerate(neighbours))
        weighted = ((self._last, 2), (self._second, 1), (self._across, 2), (second_across, 1), (self._over, 2), (second_over, 1))
        self._near_count = sum(weight * (each != 0) for each, weight in (*weighted, (self._beneath, 1)))
        self._look_at_sizes(at)

    def _look_at_sizes(self, at: int) -> None:
        rows = [self._normal[back] for back in range(3)]
        row, apart = rows[0], self._apart
        self._predictor.look(rows, at, self._place, self._position)
        weighted = (
            (row[at - 1], 2),
            (row[at - 2], 1),
            (row[at - apart], 2),
            (row[at - 2 * apart], 1),
            (rows[1][at], 2),
            (rows[2][at], 1),
        )
        local = sum(weight * abs(each) for each, weight in weighted) >> 3
        row_size, column_size = self._row_size >> 4, self._column_size[self._column] >> 4
        self._local = min(63, quarters(local))
        self._size = min(63, quarters((2 * row_size + 2 * column_size + local) // 5))
        wide = min(63, quarters((row_size + column_size) // 2))
        self._error_of = [self._errors[each] for each in (min(self._position, 255), 256 + self._size, 256 + 64 + wide)]
        self._sharpness = [INVERSE[clamp(each.value >> 4, 1, 8191) if each.seen else 1200] for each in self._error_of]
        predictions = zip(self._predictor.predicted, self._sharpness[:2], strict=True)
        self._classes = [clamp((number * sharpness * 17 >> 24) + 24, 0, 47) for number, sharpness in predictions]

    def code(self, coder: Coder, number: int) -> int:
        """Codes it; gives the number that a decoder finds."""
        if not self._code_nonzero(coder, number != 0):
            return 0
        negative = self._code_sign(coder, number < 0)
        found = self._code_magnitude(coder, abs(number), negative)
        return -found if negative else found

    def _code_nonzero(self, coder: Coder, nonzero: bool) -> bool:
        row, column, position = self._row_nonzero, self._column_nonzero[self._column], self._position
        kernel = min(position, 9) * 6 + min(self._kernel_nonzero, 5) if self._inner > 1 else row * 40 >> 16
        context = [min(position, 63), self._around, kernel, (row * 8 >> 16) * 8 + (column * 8 >> 16), *self._classes]
        far = [abs(number) * sharp >> 16 for number, sharp in zip(self._predictor.predicted, self._sharpness[:2], strict=True)]
        placed = [clamp(each * 4 - 2047, -2047, 2047) for each in far] + [-2047]
        guesses = [STRETCH[density >> 4] for density in (row, column, self._place_nonzero[self._place])]
        return self._mixer.decide(coder, nonzero, context, (0, 0), guesses, placed, 0, min(self._near_count, 15))

    def _code_sign(self, coder: Coder, negative: bool) -> bool:
        last, across, over = sign_of(self._last), sign_of(self._across), sign_of(self._over)
        signs = last + 3 * across + 9 * over
        kernel = sign_of(self._beneath) + 3 * last + 9 * (self._position > 2)
        context = [min(self._position, 63), signs, kernel, over + 3 * across, *self._classes]
        predictions = zip(self._predictor.predicted, self._sharpness[:2], strict=True)
        guesses = [clamp(-(number * sharpness >> 15), -2047, 2047) for number, sharpness in predictions] + [0]
        return self._mixer.decide(coder, negative, context, (1, 1), guesses, guesses, 1, signs)

    def _code_magnitude(self, coder: Coder, wanted: int, negative: bool) -> int:
        octaves = min(7, abs(self._last).bit_length()) * 8 + min(7, abs(self._across).bit_length())
        context = [0, octaves, min(self._position, 63) if self._inner > 1 else self._local, self._size, *self._classes]
        sign, log = 512 if negative else 0, 0

        def decide(yes: bool, node: int, kind: int, bounds: Sequence[int]) -> bool:
            guesses = self._parts(negative, *bounds)
            return self._mixer.decide(coder, yes, context, (node + sign, node), guesses, guesses, kind, self._size)

        while log < self._bits - 1:
            if not decide(wanted.bit_length() - 1 > log, 2 + log, 2 + min(log, 9), (1 << log, 2 << log, 0)):
                break
            log += 1
        found = 1
        for at in range(log - 1, -1, -1):
            bit, depth = bool(wanted >> at & 1), log - 1 - at
            if log > 7 and depth > 2:
                found = found * 2 + coder.code(bit, 32768)
                continue
            node = 34 + ((1 << log) + found if log <= 7 else 256 + (log - 8) * 8 + found)
            bounds = (2 * found << at, 2 * found + 1 << at, 2 * found + 2 << at)
            found = found * 2 + decide(bit, node, 12 + min(log, 7) * 6 + min(depth, 5), bounds)
        if log == 31 and (not negative or found > 1 << 31):
            raise Malformed("a number of more than 32 bits")
        return found

    def _parts(self, negative: bool, low: int, middle: int, high: int) -> list[int]:
        """The logit, by each prediction, that a magnitude from ``low`` to below ``high`` (0: without end) is at least ``middle``."""
        found = []
        for at in range(PREDICTIONS):
            predicted = self._predictor.predicted[at] if at < 2 else 0

            def below(
                bound: int, towards: int = -predicted if negative else predicted, sharpness: int = self._sharpness[at]
            ) -> int:
                place = (2 * bound - 1) << 11 >> self._bits
                return LOGISTIC[clamp((place - towards) * sharpness >> 16, -2048, 2048) + 2048]

            least, most, between = below(low), below(high) if high else 1 << 30, below(middle)
            found.append(STRETCH[clamp(((most - between + 1) << 12) // (most - least + 2), 0, 4095)])
        return found

    def know(self, number: int) -> None:
        """Learns what it was."""
        size = (abs(number) << 12) >> self._bits
        normal = -size if number < 0 else size
        self._near[0][self._at] = near(number)
        self._normal[0][self._at] = normal
        if number:
            for error, predicted in zip(self._error_of, [*self._predictor.predicted, 0], strict=True):
                error.know(abs(normal - predicted))
            self._predictor.know(normal)
            self._kernel_nonzero += 1
        self._row_seen, self._all_seen = min(self._row_seen + 1, 1023), min(self._all_seen + 1, 1023)
        column, place, target = self._column, self._place, 65535 if number else 0
        seen = min(self._row * self._inner + self._position, 4 * self._inner + 10) + 1
        self._row_nonzero = moved(self._row_nonzero, target, self._row_seen)
        self._all_nonzero = moved(self._all_nonzero, target, self._all_seen)
        self._column_nonzero[column] = moved(self._column_nonzero[column], target, seen)
        self._place_nonzero[place] = moved(self._place_nonzero[place], target, min(self._row, 100) + 1)
        self._row_size = moved(self._row_size, size * 16, self._row_seen)
        self._all_size = moved(self._all_size, size * 16, self._all_seen)
        self._column_size[column] = moved(self._column_size[column], size * 16, seen)
