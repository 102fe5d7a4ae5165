"""Factors for whole numbers: a 32-bit multiplier and a shift, rounded as TFLite does it."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.integers.layers import Numbers, Rescale


def rescale(factors: Any) -> Rescale:
    """Positive factors as multipliers in [2^30, 2^31) and shifts; 0 as 0.

    >>> rescale([0.75, 0.0]).multiplier.tolist(), rescale([0.75, 3.0]).shift.tolist()
    ([1610612736, 0], [0, 2])
    """
    fraction, exponent = np.frexp(np.atleast_1d(np.asarray(factors, np.float64)))
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    over = multiplier == 1 << 31
    multiplier, exponent = np.where(over, 1 << 30, multiplier), exponent + over
    gone = exponent < -31  # so small that whatever it multiplies becomes 0
    return Rescale(np.where(gone, 0, multiplier).astype(np.int32), np.where(gone | (multiplier == 0), 0, exponent).astype(np.int32))


def requantised(numbers: Numbers, by: Rescale) -> Numbers:
    """int32 numbers times factors, channel by channel (the last dimension): gemmlowp's two roundings, which TFLite's kernels have.

    The product with the multiplier is rounded to 31 bits (halves up), then shifted right with halves away from zero. What a shift to the
    left would carry beyond 32 bits saturates before it.

    >>> requantised(np.array([[10, -10, 7]]), rescale([0.25])).tolist()
    [[3, -3, 2]]
    """
    shift = by.shift.astype(np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    most = ((np.int64(1) << 31) - 1) >> left
    high = ((np.clip(numbers.astype(np.int64), -most - 1, most) << left) * by.multiplier.astype(np.int64) + (1 << 30)) >> 31
    mask = (np.int64(1) << right) - 1
    rest = high & mask
    return (high >> right) + (rest > (mask >> 1) + (high < 0))


def requantised_wide(numbers: Numbers, by: Rescale) -> Numbers:
    """64-bit sums of int16 arrays times factors: TFLite's single rounding with a multiplier of 16 bits.

    >>> requantised_wide(np.array([[10, -10, 7]]), rescale([0.25])).tolist()
    [[3, -2, 2]]
    """
    multiplier = by.multiplier.astype(np.int64)
    reduced = np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)
    total = 15 - by.shift.astype(np.int64)
    return (numbers.astype(np.int64) * reduced + (np.int64(1) << (total - 1))) >> total
