"""What the coders have in common: what they take, what they give, and how a payload ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateurs.coding.coders.native import native, say_that_there_is_none
from secateurs.types import FileError, SecateursError

Numbers: TypeAlias = NDArray[np.int32]
Payload: TypeAlias = bytes | bytearray | memoryview

NUMBERS_A_BYTE, FREE_BYTES = 8192, 64


class Malformed(ValueError):
    """Bytes that no encoder wrote."""


@dataclass(frozen=True)
class Shape:
    """A tensor as it is coded: rows × columns × what lies within one pair of them (a kernel's positions)."""

    rows: int
    columns: int
    inner: int

    @property
    def numbers(self) -> int:
        """How many numbers there are."""
        return self.rows * self.columns * self.inner

    def walked(self) -> Shape:
        """The shape in which coders that look around see it: kernels of very many positions are rows of their own."""
        return Shape(self.rows * self.columns, self.inner, 1) if self.inner > 256 else self


def most_numbers(size: int) -> int:
    """How many numbers a payload of so many bytes may hold at most; every coder fills up what would hold more with zeros.

    >>> most_numbers(0), most_numbers(1000)
    (524288, 8716288)
    """
    return NUMBERS_A_BYTE * (size + FREE_BYTES)


def least_bytes(numbers: int) -> int:
    """How many bytes a payload of so many numbers has at least.

    >>> least_bytes(524288), least_bytes(524289), least_bytes(10**8)
    (0, 1, 12144)
    """
    return max(0, -(-numbers // NUMBERS_A_BYTE) - FREE_BYTES)


def require_levels(levels: Numbers) -> None:
    """Raises `SecateursError` where they are no levels as coders take them."""
    if not isinstance(levels, np.ndarray) or levels.dtype != np.int32 or levels.ndim != 3 or not levels.flags.c_contiguous:
        given = f"{levels.dtype} of shape {levels.shape}" if isinstance(levels, np.ndarray) else type(levels).__name__
        raise SecateursError(
            f"a coder takes int32 levels (rows, columns, inner), C-contiguous, not {given}; np.ascontiguousarray helps"
        )


def encoded(levels: Numbers, name: str, plain: Callable[[Numbers, Shape], bytes]) -> bytes:
    """The payload of levels (rows, columns, inner), by the compiled coder of that name, else by the plain one."""
    require_levels(levels)
    if native is not None:
        found: bytes = getattr(native, f"{name}_encode")(levels)
        return found
    say_that_there_is_none()
    bytes_ = plain(levels, Shape(*levels.shape)) if levels.size else b""
    return bytes_ + bytes(max(0, least_bytes(levels.size) - len(bytes_)))


def decoded(
    data: Payload, rows: int, columns: int, inner: int, name: str, plain: Callable[[bytes, Shape], list[int] | Numbers]
) -> Numbers:
    """The levels of a payload; raises `FileError` where no coder wrote it, and where it asks for more than its size allows."""
    shape = Shape(rows, columns, inner)
    if min(rows, columns, inner) < 0 or shape.numbers > most_numbers(len(data)):
        raise FileError(
            f"{rows} × {columns} × {inner} levels of {len(data)} bytes coded with {name!r}: {most_numbers(len(data))} at most"
        )
    try:
        if native is None:
            say_that_there_is_none()
            if shape.numbers == 0:
                check_end(data, 0, 0, 0)
                return np.zeros((rows, columns, inner), np.int32)
            return np.asarray(plain(bytes(data), shape), np.int32).reshape(rows, columns, inner)
        found = np.empty((rows, columns, inner), np.int32)
        getattr(native, f"{name}_decode")(np.frombuffer(data, np.uint8), found)
    except ValueError as error:  # of the kernels' own kind, which is another in each build that is loaded
        raise FileError(
            f"{rows} × {columns} × {inner} levels coded with {name!r} in {len(data)} bytes are damaged: {error}"
        ) from error
    return found


def check_end(data: Payload, least: int, most: int, numbers: int) -> None:
    """A payload whose coder needs at least ``least`` bytes and may look at up to ``most`` ends here."""
    if len(data) < least:
        raise Malformed("it ends too early")
    if len(data) > most and (len(data) != least_bytes(numbers) or any(data[most:])):
        raise Malformed("bytes are left over")
