"""A tensor in the fewest bytes: its levels or its floats, by whichever positions and coders make it smallest, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from secateurs.coding import floats
from secateurs.coding.bits import BITS_OF, content_of, same, tensor_of
from secateurs.coding.coder import Coder, Numbers
from secateurs.coding.coders import context, fixed, huffman, mixed, rans
from secateurs.coding.fields import coder_in, field, split
from secateurs.coding.found import levels_in
from secateurs.coding.levels import Levels
from secateurs.coding.positions import Positions, There, bitmap, blocks, elias_fano, gaps, n_of_m, relative
from secateurs.coding.tables import decode_table, encode_table
from secateurs.given import COUNT, require
from secateurs.types import FileError, SecateursError

_LARGE = 1 << 20
"""From so many numbers on, positions are tried only where the zeros have a pattern: the coders of whole tensors see more than they."""


@dataclass(frozen=True)
class Codecs:
    """What is tried to make a tensor small; the smallest is taken.

    ``whole``: coders of all numbers, zeros too; ``sparse``: the same, where four of five are zero. ``numbers``: coders of the numbers
    that are left once their positions are written. ``positions``: the ways to write these, of where numbers are; ``always``: whether of
    large tensors too.
    """

    whole: tuple[Coder, ...]
    sparse: tuple[Coder, ...] = ()
    numbers: tuple[Coder, ...] = ()
    positions: Callable[[There], Iterator[Positions]] = lambda there: iter(())
    always: bool = False


@dataclass(frozen=True)
class Coded:
    """A tensor as a file holds it: what the index says of it, and its bytes. ``levels`` are those that it is of, however it is coded."""

    document: dict[str, Any]
    payload: bytes
    levels: Levels | None = None


def encode(name: str, tensor: Tensor, codecs: Codecs | None = None, levels: Levels | None = None) -> Coded:
    """The fewest bytes for a tensor that come back to the bit; `levels` where they are known, else they are looked for.

    Raises `SecateursError` for a dtype that has no name in the format, and for levels that are not those of the tensor.

    >>> coded = encode("w", torch.tensor([0.5, 0.0, -0.5, 0.0] * 64))
    >>> len(coded.payload) < 64, decode("w", coded.document, memoryview(coded.payload), (256,), torch.float32)[:3]
    (True, tensor([ 0.5000,  0.0000, -0.5000]))
    """
    codecs = codecs or SMALLEST
    if tensor.dtype not in NAMES:
        raise SecateursError(f"{name} is {tensor.dtype}, for which the format has no name; convert it first")
    if _is_small_float(tensor.dtype):
        return encode(name, tensor.view(torch.uint8), codecs)
    if levels is not None and not same(levels.values(), tensor):
        raise SecateursError(f"{name}: its levels do not give the tensor's values; was the weight changed since they were made?")
    found = [Coded({"is": "raw"}, content_of(tensor))]
    levels = levels if levels is not None else levels_in(tensor)
    if levels is not None:
        found.append(_encode_levels(levels, codecs))
    if tensor.numel() and tensor.dtype in BITS_OF and not _has_few_values(levels):
        found.append(Coded(*floats.encode(tensor, shape_of(tensor.shape), codecs.whole)))
    for coded in sorted(found, key=lambda each: len(each.payload)):
        if same(decode(name, coded.document, memoryview(coded.payload), tuple(tensor.shape), tensor.dtype), tensor):
            return replace(coded, levels=levels)
    raise SecateursError(f"{name} does not come back as it was from any coder; please report this with the tensor")


def _has_few_values(levels: Levels | None) -> bool:
    """Whether a tensor is smaller by its levels than by its floats for sure."""
    if levels is None:
        return False
    values = levels.table.numel() if levels.table is not None else levels.runs
    return 16 * values <= levels.numbers.numel()


def decode(name: str, document: Mapping[str, Any], payload: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor; raises `FileError`, which names it, where the bytes are not of one of this shape and dtype."""
    if _is_small_float(dtype):
        return decode(name, document, payload, shape, torch.uint8).view(dtype)
    try:
        kind = field(document, "is", str)
        if kind == "raw":
            return _raw(payload, shape, dtype)
        if kind == "floats" and dtype in BITS_OF:
            return floats.decode(document, payload, shape_of(shape), dtype).reshape(shape)
        if kind == "levels":
            return _decode_levels(document, payload, shape, dtype).values()
        raise FileError(f"it is coded as {kind[:40]}, which this version does not know: update secateurs, or the file is damaged")
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def levels_of(
    name: str, document: Mapping[str, Any], payload: memoryview, shape: tuple[int, ...], dtype: torch.dtype
) -> Levels | None:
    """The levels of a tensor that is coded by them, or nothing."""
    if document.get("is") != "levels" or _is_small_float(dtype):
        return None
    try:
        return _decode_levels(document, payload, shape, dtype)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error


def shape_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A tensor's shape as rows, columns, and the numbers of a kernel: ``(O, I, h, w)`` is ``(O, I, h * w)``, a vector is one row."""
    rows = shape[0] if len(shape) > 1 else 1
    columns = shape[1] if len(shape) > 1 else shape[0] if shape else 1
    return rows, columns, int(numpy.prod(shape[2:]))


def _is_small_float(dtype: torch.dtype) -> bool:
    """Floats of one byte, with which torch cannot compute: their bytes are coded as whole numbers."""
    return dtype.is_floating_point and dtype.itemsize == 1


def _raw(payload: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    expected = int(numpy.prod(shape)) * dtype.itemsize
    if len(payload) != expected:
        raise FileError(f"it has {len(payload)} bytes, and {expected} are needed; the file is damaged")
    if dtype is torch.bool and any(byte > 1 for byte in bytes(payload)):
        raise FileError("it is of yes and no, and has something else; the file is damaged")
    return tensor_of(bytes(payload), dtype, shape)


# ---------------------------------------------------------------- levels


def _encode_levels(levels: Levels, codecs: Codecs) -> Coded:
    numbers = numpy.ascontiguousarray(levels.numbers.reshape(shape_of(tuple(levels.numbers.shape))).numpy())
    values, table = encode_table(levels, codecs.whole)
    there = numbers != 0
    whole = (*codecs.whole, *codecs.sparse) if numpy.count_nonzero(there) <= numbers.size / 5 else codecs.whole
    found = [(None, coder, [coder.encode(numbers)]) for coder in whole]
    few = codecs.always or numbers.size <= _LARGE
    for positions in codecs.positions(there) if few else structured(there):
        data, places = positions.encode(there)
        left = numbers.reshape(-1)[places]
        found += [(positions.document, coder, [data, coder.encode(left.reshape(1, -1, 1))]) for coder in codecs.numbers]  # type: ignore[misc]
    positions_document, coder, parts = min(found, key=lambda one: sum(map(len, one[2])) + (12 if one[0] else 0))
    parts = [table, *parts]
    document = {
        "is": "levels",
        **values,
        "positions": positions_document,
        "numbers": coder.name,
        "parts": [len(each) for each in parts[:-1]],
    }
    return Coded(document, b"".join(parts))


def _decode_levels(document: Mapping[str, Any], payload: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Levels:
    told = field(document, "positions", (dict, type(None)))
    table, *parts = split(document, payload, 2 if told is None else 3)
    coder, flat = coder_in(field(document, "numbers", str)), shape_of(shape)
    if told is None:
        numbers = coder.decode(parts[0], *flat)
    else:
        places = _positions(told).decode(parts[0], flat)
        numbers = numpy.zeros(int(numpy.prod(flat)), numpy.int32)
        numbers[places] = coder.decode(parts[1], 1, len(places), 1).reshape(-1)
    return decode_table(document, table, _tensor(numbers, shape), dtype)


def _tensor(numbers: Numbers, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(numpy.ascontiguousarray(numbers)).reshape(shape)


def _positions(told: Mapping[str, Any]) -> Positions:
    """What an index says of positions."""
    kind = field(told, "is", str)
    if kind == "bitmap":
        return bitmap()
    if kind == "elias-fano":
        return elias_fano()
    coder = coder_in(field(told, "coder", str))
    if kind == "relative":
        return relative(field(told, "bits", int, 1, 16), coder)
    if kind == "gaps":
        return gaps(coder)
    if kind == "blocks":
        return blocks(field(told, "height", int, 1), field(told, "width", int, 1), coder)
    if kind == "n of m":
        try:
            return n_of_m(field(told, "kept", int, 1), field(told, "of", int, 2), coder)
        except SecateursError as error:
            raise FileError(f"{error}; the file is damaged") from error
    raise FileError(
        f"positions are told as {kind[:40]}, which this version does not know: update secateurs, or the file is damaged"
    )


# ---------------------------------------------------------------- what is tried


def structured(there: There) -> Iterator[Positions]:
    """Positions that fit the pattern of the zeros: N of M columns, blocks, where nearly all of what they keep is there."""
    rows, columns, inner = there.shape
    count = numpy.count_nonzero(there)
    if not count or count > 0.9 * there.size:
        return
    for of in (4, 8, 16):
        if columns % of == 0:
            kept = int(there.transpose(0, 2, 1).reshape(-1, of).sum(1).max())
            if kept < of and count >= 0.8 * there.size * kept / of:
                yield n_of_m(kept, of, context)
    sizes = [(1, 4), (1, 8), (1, 16), (4, 1), (8, 1), (16, 1), (4, 4), (1, inner), (rows, 1), (1, columns * inner)]
    for height, width in dict.fromkeys(sizes):
        if rows % height == 0 and columns * inner % width == 0 and height * width > 1:
            whole = there.reshape(rows // height, height, -1, width).any((1, 3))
            if count >= 0.9 * numpy.count_nonzero(whole) * height * width:
                yield blocks(height, width, context)


def every(there: There) -> Iterator[Positions]:
    """All kinds of positions, with more than one coder."""
    yield from structured(there)
    yield bitmap()
    yield elias_fano()
    for coder in (huffman, rans):
        yield from (relative(4, coder), relative(8, coder), gaps(coder))


SMALLEST = Codecs(whole=(mixed, context, huffman, fixed), numbers=(mixed, huffman, fixed), positions=every)
"""The smallest file that there is; about a million numbers are read in a second on one core."""

FAST = Codecs(whole=(rans, huffman, fixed), sparse=(context,), numbers=(rans, fixed), positions=every)
"""Large tensors are read at 100 MB of float32 a second and more on one core, networks of many small ones at half of that."""


def deep_compression(bits: int) -> Codecs:
    """What Deep Compression's files are made of: relative indices of so many bits, Huffman's code for them and for levels (1510.00149).

    Raises `SecateursError` where ``bits`` are not from 1 to 16, which is what a file may tell.
    """
    require("deep_compression", "bits", bits, COUNT)
    if not 1 <= bits <= 16:
        raise SecateursError(f"deep_compression: bits={bits} must be from 1 to 16")
    return Codecs(whole=(huffman,), numbers=(huffman,), positions=lambda there: iter((relative(bits, huffman),)), always=True)


def _named() -> dict[str, torch.dtype]:
    names = "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex64 complex128"
    small = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    return {name: getattr(torch, name) for name in (names + " " + small).split() if hasattr(torch, name)}


DTYPES = _named()
"""Names of dtypes in the format."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
