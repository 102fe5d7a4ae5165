"""Numbers that stand in flash for a layer, and factors as kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.firmware.call import Constant
from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Numbers, Rescale


def bytes_of(kind: str) -> int:
    """What a number takes.

    >>> bytes_of("int16")
    2
    """
    return np.dtype(kind).itemsize


def constant(prefix: str, end: str, ctype: str, numbers: Sequence[float] | Numbers) -> Constant:
    """Numbers in flash under a name that begins with a layer's."""
    kind = "float32" if ctype == "float" else ctype.removesuffix("_t")
    return Constant(f"{prefix}_{end}", ctype, np.ascontiguousarray(np.asarray(numbers).astype(kind)))


def factors(by: Rescale | None) -> tuple[int, int]:
    """The multiplier and the shift that all channels share; a shift to the right by more than 29 is a factor of 0."""
    assert by is not None
    multiplier, shift = int(by.multiplier[0]), int(by.shift[0])
    return (0, 0) if shift < -29 else (multiplier, shift)


def small(by: Rescale | None, kind: str, most: int, name: str) -> tuple[int, int, int]:
    """Of numbers of at most ``most``: the multiplier, what they are multiplied by before it and shifted by after it, as in ``rescale.c``.

    Where the factor would lead out of 32 bits it is as good as a smaller one if even that one leads from 1 out of the result; else raises
    `FirmwareError`.
    """
    multiplier, shift = factors(by)
    room = 31 - most.bit_length() - 1
    if shift > room and (1 << room) < 2 << np.iinfo(kind).bits:
        raise FirmwareError(
            f"{name}: a factor of {2.0**shift:.3g} from its numbers to those of its result; give it its ranges anew"
        )
    return multiplier, 2 << min(max(shift, 0), room), max(-shift, 0)
