"""Functions of probabilities as tables, made of whole numbers only, so that every machine codes alike."""

from __future__ import annotations

_STEP = 18374827034086858296
"""e^(-1/256), in units of 2^-64."""


def _exponentials() -> list[int]:
    """e^(-i/256) in units of 2^-32, for i up to 4096."""
    found, power = [], 1 << 60
    for _ in range(4097):
        found.append(power >> 28)
        power = power * _STEP >> 64
    return found


def _squash(powers: list[int]) -> list[int]:
    upper = [min(65504, (1 << 48) // ((1 << 32) + power)) for power in powers[:2048]]
    lower = [65536 - p for p in upper]
    return [lower[2047], *lower[:0:-1], *upper]


def _stretch(squash: list[int]) -> list[int]:
    found, x = [], -2047
    for p in range(4096):
        while x < 2047 and squash[x + 2048] < p * 16 + 8:
            x += 1
        found.append(x)
    return found


def _logistic(powers: list[int]) -> list[int]:
    upper = [(1 << 62) // ((1 << 32) + power) for power in powers[::2]]
    return [(1 << 30) - p for p in upper[:0:-1]] + upper


def _cost(p: int) -> int:
    x = 2 * p + 1
    log = x.bit_length() - 1
    x <<= 31 - log
    bits = (13 - log) << 16
    for at in range(15, -1, -1):
        x = x * x >> 31
        if x >> 32:
            x >>= 1
            bits -= 1 << at
    return bits


_POWERS = _exponentials()

SQUASH = _squash(_POWERS)
"""x = -2048 … 2047, in 1/256: 2^16 / (1 + e^-x)."""

STRETCH = _stretch(SQUASH)
"""A probability in 1/4096: its logit in 1/256."""

LOGISTIC = _logistic(_POWERS)
"""x = -2048 … 2048, in 1/128: 2^30 / (1 + e^-x)."""

COST = [_cost(p) for p in range(4096)]
"""A probability in 1/4096: what a decision of that probability takes, in 2^-16 bits."""

COUNT = [131072 // (2 * n + 3) for n in range(1024)]
"""n: 2^16 / (n + 3/2)."""

SHARE = [65536 // (n + 1) for n in range(2048)]
"""n: 2^16 / (n + 1)."""

INVERSE = [178 << 16] + [(178 << 16) // s for s in range(1, 8192)]
"""s: 178 · 2^16 / s."""


def clamp(value: int, lowest: int, highest: int) -> int:
    """The nearest number that is neither below nor above."""
    return max(lowest, min(highest, value))


def squash(x: int) -> int:
    """2^16 times the probability whose logit is x/256."""
    return SQUASH[clamp(x, -2047, 2047) + 2048]


def quarters(x: int) -> int:
    """1 + the logarithm in quarters of an octave; 0 for 0.

    >>> [quarters(x) for x in (0, 1, 2, 3, 4, 5, 8)]
    [0, 1, 5, 7, 9, 10, 13]
    """
    if not x:
        return 0
    log = x.bit_length() - 1
    return log * 4 + ((x >> (log - 2) if log >= 2 else x << (2 - log)) & 3) + 1
