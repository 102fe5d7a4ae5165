"""Levels that weigh error against bits, and what levels would take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from secateurs.coding.coder import Numbers
from secateurs.coding.coders.by_neighbours import Model
from secateurs.coding.coders.native import native, say_that_there_is_none
from secateurs.coding.coders.payload import Shape, require_levels
from secateurs.coding.coders.ranges import BitCounter
from secateurs.types import NonFiniteError, SecateursError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MOST = 1 << 24


@dataclass(frozen=True)
class _Table:
    """The values of levels lowest, lowest + 1, …: of each run of numbers its own."""

    table: Floats
    lowest: int

    @property
    def runs(self) -> int:
        return len(self.table)

    @property
    def levels(self) -> int:
        return self.table.shape[1]

    def value(self, run: int, level: int) -> float:
        return float(self.table[run, level - self.lowest])

    def nearest(self, run: int, values: Doubles) -> Doubles:
        table = self.table[run].astype(np.float64)
        above = np.searchsorted(table, values)  # the first that is not less
        over, under = table[np.minimum(above, len(table) - 1)] - values, values - table[np.maximum(above - 1, 0)]
        up = (above == 0) | ((above < len(table)) & ((over < under) | ((over == under) & (values < 0))))
        value = table[above - 1 + up]
        equal = np.where(value > 0, np.searchsorted(table, value), np.searchsorted(table, value, "right") - 1)
        return np.where(value == 0, 0, self.lowest + equal).astype(np.float64)


@dataclass(frozen=True)
class _Scale:
    """Levels times a scale, of each run of numbers its own."""

    scale: Floats
    most: int

    @property
    def runs(self) -> int:
        return len(self.scale)

    @property
    def levels(self) -> int:
        return 2 * self.most + 1

    @property
    def lowest(self) -> int:
        return -self.most

    def value(self, run: int, level: int) -> float:
        return float(np.float32(level) * self.scale[run])

    def nearest(self, run: int, values: Doubles) -> Doubles:
        if not self.scale[run]:
            return np.zeros_like(values)
        exact = values / float(self.scale[run])
        return np.clip(np.copysign(np.ceil(np.abs(exact) - 0.5), exact), -self.most, self.most)


def rate_distortion(
    values: Floats,
    table: Floats | None = None,
    lowest: int = 0,
    *,
    price: float,
    weights: Floats | None = None,
    scale: Floats | None = None,
    most: int = MOST,
) -> Numbers:
    """Levels of values, each the one that costs least: squared error × weight + price × bits.

    ``values``: float32 (rows, columns, inner). ``table``: float32 (levels,) or (runs, levels), the values of levels ``lowest``,
    lowest + 1, … in ascending order, with 0 for level 0 (of equal ones the nearest to level 0 is used); or ``scale``: float32 (runs,),
    where level l is l × scale and |l| ≤ ``most``. A run is an equally long stretch of numbers in row-major order. ``weights``: float32,
    what the squared error of each number counts; 1 without. ``price``: of a bit.

    Numbers are taken in the order in which they are coded, and bits are those that the adaptive coder `secateurs.coding.context` would
    spend at that moment (as DeepCABAC does, arXiv 1907.11900): of the nearest level, the two towards zero from it, and zero, the cheapest
    is taken and learned from. A price of 0 gives the nearest levels, of two equally near ones that nearer to zero. What is 0 stays 0.

    Raises `SecateursError` where arguments do not fit each other, and `NonFiniteError` where values, weights, table or scale are not
    finite.

    >>> values = np.array([[[0.0], [0.9], [-2.2], [0.4]]], np.float32)
    >>> rate_distortion(values, scale=np.array([0.5], np.float32), price=0.0).ravel()
    array([ 0,  2, -4,  1], dtype=int32)
    >>> rate_distortion(values, np.array([-2.0, 0.0, 1.0], np.float32), -1, price=0.1).ravel()
    array([ 0,  1, -1,  0], dtype=int32)
    """
    choices = _choices(values, table, lowest, scale, most)
    if weights is not None:
        _require(weights, "weights", 3)
        if weights.shape != values.shape or (weights < 0).any():
            raise SecateursError(f"weights are of the values' shape {values.shape} and not negative; these are of {weights.shape}")
    if not (math.isfinite(price) and price >= 0):
        raise SecateursError(f"the price of a bit is a number of at least 0, not {price}")
    if native is None:
        say_that_there_is_none()
        return rate_distortion_plain(values, choices, weights, price)
    found = np.empty(values.shape, np.int32)
    table, scale = (choices.table, None) if isinstance(choices, _Table) else (None, choices.scale)
    if values.size:
        native.rate_distortion(values, table, scale, choices.levels, choices.lowest, weights, float(price), found)
    return found


def _choices(values: Floats, table: Floats | None, lowest: int, scale: Floats | None, most: int) -> _Table | _Scale:
    _require(values, "values", 3)
    choices: _Table | _Scale
    if table is not None and scale is None:
        table = table[None] if table.ndim == 1 else table
        _require(table, "the table", 2)
        if not (0 <= -lowest < table.shape[1] and (table[:, -lowest] == 0).all() and (table[:, 1:] >= table[:, :-1]).all()):
            start = table.ravel()[:4].tolist()
            raise SecateursError(f"a table has ascending values, 0 at level 0; this one begins with level {lowest} and {start}")
        choices = _Table(table, lowest)
    elif scale is not None and table is None:
        _require(scale, "the scale", 1)
        if (scale < 0).any() or not 0 < most <= MOST:
            start = scale[:4].tolist()
            raise SecateursError(f"a scale is not negative, and levels go to between 1 and {MOST}; given {start} and {most}")
        choices = _Scale(scale, most)
    else:
        raise SecateursError("levels have a table or a scale: give one of the two")
    if not choices.runs or values.size % choices.runs:
        raise SecateursError(f"{values.size} values are not {choices.runs} equally long runs")
    return choices


def _require(array: Floats, what: str, dimensions: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != dimensions or not array.flags.c_contiguous:
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SecateursError(
            f"{what}: a float32 array of {dimensions} dimensions, C-contiguous, not {given}; np.ascontiguousarray helps"
        )
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{what}: {np.count_nonzero(~np.isfinite(array))} of {array.size} numbers are NaN or infinite")


def rate_distortion_plain(values: Floats, choices: _Table | _Scale, weights: Floats | None, price: float) -> Numbers:
    """The same in Python, slowly."""
    flat, run_length = values.ravel().astype(np.float64), max(1, values.size // choices.runs)
    nearest = [choices.nearest(run, flat[run * run_length : (run + 1) * run_length]) for run in range(choices.runs)]
    found = np.where(flat == 0, 0, np.concatenate(nearest)).astype(np.int64)
    bits = int(np.abs(found).max(initial=0)).bit_length()
    if bits and price > 0:
        counts = np.ones(len(flat)) if weights is None else weights.ravel().astype(np.float64)
        shape = Shape(*values.shape).walked()
        model, coder, at = Model(shape, bits), BitCounter(), 0
        for _ in range(shape.rows):
            model.next_row()
            for column in range(shape.columns):
                for position in range(shape.inner):
                    model.look(column, position)
                    if found[at]:
                        value = partial(choices.value, at // run_length)
                        found[at] = _cheapest(model, value, float(flat[at]), float(counts[at]), price, int(found[at]))
                    model.know(model.code(coder, int(found[at])))
                    at += 1
    return found.astype(np.int32).reshape(values.shape)


def _cheapest(model: Model, value_of: Callable[[int], float], value: float, weight: float, price: float, nearest: int) -> int:
    """Of the nearest level, two towards zero from it, and zero, the one that costs least; the first of equals."""
    model.look_closer()
    towards = 1 if nearest < 0 else -1
    levels = [level for level in (nearest, nearest + towards, nearest + 2 * towards) if level * nearest > 0]

    def cost(level: int) -> float:
        error = value - value_of(level)
        return error * error * weight + price * (model.cost(level) / 65536)

    return min([*levels, 0], key=cost)


def bits_of(levels: Numbers) -> float:
    """How many bits levels (rows, columns, inner) would take when coded, without coding them; for planning.

    With the compiled coders: what `secateurs.coding.context` would spend, to within a few bytes. Without: the entropy of zeros by row and
    of the other numbers by frequency, and half a logarithm of their number for each frequency that a coder has to learn.

    Raises `SecateursError` where they are not int32 levels.

    >>> bits_of(np.zeros((64, 64, 1), np.int32)), 1000 < bits_of(np.arange(256, dtype=np.int32).reshape(16, 16, 1)) < 3000
    (8.0, True)
    """
    require_levels(levels)
    return float(native.context_bits(levels)) if native is not None else bits_of_plain(levels)


def bits_of_plain(levels: Numbers) -> float:
    """The estimate without compiled coders."""
    if not levels.size:
        return 0.0
    if not levels.any():
        return 8.0
    rows = levels.reshape(len(levels), -1)
    nonzero = np.count_nonzero(rows, axis=1)
    counts = np.unique(levels[levels != 0], return_counts=True)[1].astype(np.float64)
    total = counts.sum()
    values = -(counts * np.log2(counts / total)).sum() + 0.5 * len(counts) * math.log2(1 + total / len(counts))
    both = np.stack((nonzero, rows.shape[1] - nonzero)).astype(np.float64)
    zeros = -(both * np.log2(np.maximum(both, 1) / rows.shape[1])).sum()
    return float(8 + zeros + values)
