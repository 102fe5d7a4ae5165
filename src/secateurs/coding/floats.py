"""Floats of any values without loss: zeros by place, and the others byte by byte, of which the exponents alone repeat themselves."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateurs.coding.coder import Coder
from secateurs.coding.fields import coder_in, field, split
from secateurs.types import FileError

_MANY_ZEROS = 1 / 32

_UNSIGNED = {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32, 8: numpy.uint64}
Shape = tuple[int, int, int]


def encode(tensor: Tensor, shape: Shape, coders: tuple[Coder, ...]) -> tuple[dict[str, Any], bytes]:
    """Bytes of a float tensor seen as (rows, columns, inner), and what the index says of them.

    Each number's bits are turned by one, so that the sign comes last and the first byte is the exponent's; a plane has the same byte of all
    numbers, the first one first, and is written by the coder that makes it smallest, or as it is.
    """
    turned = _turned(_words(tensor)).reshape(shape)
    there = turned != 0  # +0.0 alone
    parts, zeros = [], None
    if numpy.count_nonzero(there) <= there.size * (1 - _MANY_ZEROS):
        zeros, data = min(((each.name, each.encode(there.astype(numpy.int32))) for each in coders), key=lambda one: len(one[1]))
        parts.append(data)
        turned = turned[there].reshape(1, -1, 1)
    planes = []
    for place in range(tensor.element_size() - 1, -1, -1):
        plane = (turned >> numpy.array(8 * place, turned.dtype)).astype(numpy.uint8)
        name, data = _smallest(plane, coders)
        planes.append(name)
        parts.append(data)
    return {"is": "floats", "zeros": zeros, "planes": planes, "parts": [len(each) for each in parts[:-1]]}, b"".join(parts)


def decode(document: Any, data: memoryview, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The way back, in one line; raises `FileError` where the bytes are not of such numbers."""
    zeros, planes = field(document, "zeros", (str, type(None))), field(document, "planes", list)
    if len(planes) != dtype.itemsize:
        raise FileError(f"there are {len(planes)} planes for floats of {dtype.itemsize} bytes; the file is damaged")
    parts = split(document, data, len(planes) + (zeros is not None))
    there, inside = None, shape
    if zeros is not None:
        flags = coder_in(zeros).decode(parts.pop(0), *shape)
        if flags.size and not 0 <= flags.min() <= flags.max() <= 1:
            raise FileError("whether a number is zero is neither yes nor no; the file is damaged")
        there = flags.reshape(-1) != 0
        inside = (1, int(numpy.count_nonzero(there)), 1)
    word = _UNSIGNED[dtype.itemsize]
    turned = numpy.zeros(int(numpy.prod(inside)), word)
    for name, part in zip(planes, parts, strict=True):
        if dtype.itemsize > 1:
            turned <<= word(8)
        turned |= _plane(name, part, inside).astype(word)
    if there is not None:
        whole = numpy.zeros(there.shape, word)
        whole[there] = turned
        turned = whole
    bits = turned >> word(1) | turned << word(8 * dtype.itemsize - 1)
    return torch.from_numpy(bits.view(numpy.uint8)).view(dtype)


def _words(tensor: Tensor) -> NDArray[Any]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().view(_UNSIGNED[tensor.element_size()])


def _turned(words: NDArray[Any]) -> NDArray[Any]:
    kind = words.dtype.type
    return words << kind(1) | words >> kind(8 * words.dtype.itemsize - 1)


def _smallest(plane: NDArray[numpy.uint8], coders: tuple[Coder, ...]) -> tuple[str | None, bytes]:
    """A plane as the coder writes it that makes it smallest; ``None`` where no coder does."""
    best: tuple[str | None, bytes] = (None, plane.tobytes())
    if not plane.size or _flat(plane):
        return best
    for coder in coders:
        data = coder.encode(plane.astype(numpy.int32))
        best = min(best, (coder.name, data), key=lambda one: len(one[1]))
    return best


def _flat(plane: NDArray[numpy.uint8]) -> bool:
    """Whether bytes come about equally often, as those of mantissas do: nothing is to be won, and the coders need not try."""
    count = numpy.bincount(plane.reshape(-1), minlength=256)
    share = count[count > 0] / plane.size
    return bool(-(share * numpy.log2(share)).sum() > 7.96)


def _plane(name: Any, data: memoryview, shape: Shape) -> NDArray[Any]:
    count = int(numpy.prod(shape))
    if name is None:
        if len(data) != count:
            raise FileError(f"there are {len(data)} bytes for {count} numbers; the file is damaged")
        return numpy.frombuffer(data, numpy.uint8)
    found = coder_in(name).decode(data, *shape).reshape(-1)
    if count and not 0 <= found.min() <= found.max() < 256:
        raise FileError(f"a byte is {found.min()} or {found.max()}; the file is damaged")
    return found
