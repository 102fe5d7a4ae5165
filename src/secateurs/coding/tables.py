"""What levels stand for, in a file: a table of floats that ascend, tables of channels, or scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from secateurs.coding import floats
from secateurs.coding.bits import BITS_OF, content_of, tensor_of
from secateurs.coding.coder import Coder, count_of, counted
from secateurs.coding.fields import field
from secateurs.coding.found import order_of, value_of
from secateurs.coding.levels import Levels
from secateurs.coding.positions import ascending, from_ascending
from secateurs.types import FileError


def encode_table(levels: Levels, coders: tuple[Coder, ...]) -> tuple[dict[str, Any], bytes]:
    """What the index says of the values of levels, and their bytes."""
    if levels.scale is not None and levels.runs == 1:
        return {"values": "scale", "runs": 1}, content_of(levels.scale.float())
    if levels.scale is not None:
        about, data = floats.encode(levels.scale.float(), (1, levels.runs, 1), coders)
        return {"values": "scale", "runs": levels.runs, "scales": about}, data
    if levels.table is None:
        return {"values": "numbers"}, b""
    low, about = levels.lowest, {"values": "table", "lowest": levels.lowest, "runs": levels.runs, "levels": levels.table.shape[1]}
    if levels.runs == 1:
        order = order_of(levels.table[0])
        ordered = bool((order[1:] > order[:-1]).all()) and int(order[-low]) == 0 if len(order) > -low >= 0 else False
        if ordered:
            return about, _ends(order[-low + 1 :]) + _ends(-1 - order[:-low].flip(0)) if low else _ends(order[1:]) + _ends(
                order[:0]
            )
    found, data = floats.encode(levels.table, (levels.runs, levels.table.shape[1], 1), coders)
    return {**about, "tables": found}, data


def decode_table(document: Mapping[str, Any], data: memoryview, numbers: Tensor, dtype: torch.dtype) -> Levels:
    """Levels of these numbers; raises `FileError` where a number stands for nothing."""
    kind = field(document, "values", str)
    if kind == "numbers":
        return _numbers_alone(numbers, dtype, data)
    if dtype not in BITS_OF:
        raise FileError(f"its levels stand for floats, and it is {dtype}; the file is damaged")
    runs = field(document, "runs", int, 1, max(1, numbers.numel()))
    if numbers.numel() % runs:
        raise FileError(f"{numbers.numel()} numbers are no {runs} equally long runs; the file is damaged")
    if kind == "scale" and runs == 1:
        if len(data) != 4:
            raise FileError(f"its scale has {len(data)} bytes, not 4; the file is damaged")
        return Levels(numbers, scale=tensor_of(bytes(data), torch.float32, (1,)), dtype=dtype)
    if kind == "scale":
        scale = floats.decode(field(document, "scales", dict), data, (1, runs, 1), torch.float32)
        return Levels(numbers, scale=scale, dtype=dtype)
    if kind != "table":
        raise FileError(
            f"its levels stand for {kind[:40]}, which this version does not know: update secateurs, or the file is damaged"
        )
    return _by_table(document, data, numbers, dtype, runs)


def _by_table(document: Mapping[str, Any], data: memoryview, numbers: Tensor, dtype: torch.dtype, runs: int) -> Levels:
    levels, lowest = field(document, "levels", int, 1, 1 << 24), field(document, "lowest", int, -(1 << 24), 0)
    if runs * levels > max(1 << 16, 2 * numbers.numel()):
        raise FileError(f"tables of {runs} x {levels} values for {numbers.numel()} numbers; the file is damaged")
    if "tables" in document:
        table = floats.decode(field(document, "tables", dict), data, (runs, levels, 1), dtype).reshape(runs, levels)
    else:
        above, rest = _from_ends(data, dtype)
        below, rest = _from_ends(rest, dtype)
        if runs != 1 or len(below) != -lowest or len(above) + len(below) + 1 != levels or len(rest):
            raise FileError("the table of its levels is not as long as told; the file is damaged")
        table = value_of(torch.cat([-1 - below.flip(0), above.new_zeros(1), above]), dtype)[None]
    if numbers.numel() and not lowest <= int(numbers.min()) <= int(numbers.max()) < lowest + levels:
        raise FileError(
            f"a level is {int(numbers.min())} or {int(numbers.max())}, for which there is no value; the file is damaged"
        )
    return Levels(numbers, table=table, lowest=lowest, dtype=dtype)


def _numbers_alone(numbers: Tensor, dtype: torch.dtype, data: memoryview) -> Levels:
    if dtype.is_floating_point or dtype.is_complex or len(data):
        raise FileError(f"its numbers stand for themselves, and it is {dtype}; the file is damaged")
    bounds = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if numbers.numel() and not bounds[0] <= int(numbers.min()) <= int(numbers.max()) <= bounds[1]:
        raise FileError(f"a number is {int(numbers.min())} or {int(numbers.max())}, which no {dtype} is; the file is damaged")
    return Levels(numbers, dtype=dtype)


def _ends(order: Tensor) -> bytes:
    """Ascending whole numbers of at least 0: the first, how far it is to the last, and Elias-Fano of what lies between; with its length."""
    if not len(order):
        return counted(0)
    first, reach = int(order[0]), int(order[-1] - order[0])
    data = counted(first) + counted(reach) + ascending((order - first).numpy(), reach + 1)
    return counted(len(data)) + data


def _from_ends(data: memoryview, dtype: torch.dtype) -> tuple[Tensor, memoryview]:
    length, rest = count_of(data)
    if length > len(rest):
        raise FileError("the table of its levels is cut off; the file is damaged")
    if not length:
        return torch.zeros(0, dtype=torch.int64), rest
    first, inside = count_of(rest[:length])
    reach, inside = count_of(inside)
    if first + reach > torch.iinfo(BITS_OF[dtype]).max:
        raise FileError("the table of its levels has values that no float is; the file is damaged")
    return torch.from_numpy(numpy.ascontiguousarray(from_ascending(inside, reach + 1, strictly=True))) + first, rest[length:]
