"""The k-th largest of very many numbers that arrive in pieces, without sorting or joining them.

The idea is Floyd and Rivest's (1975): a sample brackets the answer between two pivots, one pass counts what lies above each of
them, and the answer is found among the few numbers inside the bracket. The pieces are computed anew for each pass, so that they
never have to be in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Pieces = Callable[[], Iterable[Tensor]]

_SAMPLE = 1 << 18
_FEW = 1 << 22
_INFINITY = float("inf")


@dataclass(frozen=True)
class Threshold:
    """The k-th largest number, and how many numbers are strictly above it."""

    value: float
    above: int


@dataclass(frozen=True)
class _Bracket:
    """The answer is in ``[low, high]``, which holds ``inside`` numbers; ``above`` numbers are larger than ``high``."""

    low: float
    high: float
    inside: int
    above: int


def kth_largest(pieces: Pieces, k: int, total: int) -> Threshold:
    """The k-th largest number of all the pieces, exactly, with ties and infinities; NaN is the caller's to exclude.

    ``pieces()`` yields float32 tensors of any shape, ``total`` numbers in all; it is nearly always called three times. Extra memory
    is one piece's comparison and a few million numbers, whatever the total.

    >>> kth_largest(lambda: [torch.tensor([5.0, 1.0]), torch.tensor([3.0, 3.0, 2.0])], k=3, total=5)
    Threshold(value=3.0, above=1)
    """
    if not 1 <= k <= total:
        raise ValueError(f"k = {k} is not in 1..{total}")
    bracket = _Bracket(-_INFINITY, _INFINITY, total, above=0)
    pivots = _sampled_pivots(pieces, k, total) if total > _FEW else (0.0, 0.0)
    while bracket.inside > _FEW:
        narrowed = _narrow(pieces, bracket, pivots, k)
        if isinstance(narrowed, Threshold):
            return narrowed
        bracket = narrowed
        pivots = (_middle(bracket.low, bracket.high),) * 2
    rest = torch.cat([piece[(piece >= bracket.low) & (piece <= bracket.high)] for piece in pieces()])
    value = rest.kthvalue(rest.numel() + 1 - (k - bracket.above)).values
    return Threshold(float(value), bracket.above + int(torch.count_nonzero(rest > value)))


def _sampled_pivots(pieces: Pieces, k: int, total: int) -> tuple[float, float]:
    """Two numbers between which the k-th largest lies, nearly always: six standard deviations of its rank to either side."""
    # An odd stride keeps clear of the periods, powers of two, that the layouts of weights have.
    stride = (total // _SAMPLE) | 1
    sample = torch.cat([piece.reshape(-1)[::stride] for piece in pieces()]).sort().values
    n = sample.numel()
    fraction = k / total
    centre = (1 - fraction) * n
    slack = 6 * (n * fraction * (1 - fraction)) ** 0.5 + 6
    return float(sample[max(0, int(centre - slack))]), float(sample[min(n - 1, int(centre + slack))])


def _narrow(pieces: Pieces, bracket: _Bracket, pivots: tuple[float, float], k: int) -> _Bracket | Threshold:
    """The part of the bracket, as the pivots cut it, that holds the k-th largest; or the answer where it is a pivot."""
    lower, upper = pivots
    above_upper = from_upper = above_lower = from_lower = 0
    for piece in pieces():
        above_upper += int(torch.count_nonzero(piece > upper))
        from_upper += int(torch.count_nonzero(piece >= upper))
        above_lower += int(torch.count_nonzero(piece > lower))
        from_lower += int(torch.count_nonzero(piece >= lower))
    if k <= above_upper:
        return _Bracket(_next(upper, _INFINITY), bracket.high, above_upper - bracket.above, bracket.above)
    if k <= from_upper:
        return Threshold(upper, above_upper)
    if k <= above_lower:
        return _Bracket(_next(lower, _INFINITY), _next(upper, -_INFINITY), above_lower - from_upper, from_upper)
    if k <= from_lower:
        return Threshold(lower, above_lower)
    return _Bracket(bracket.low, _next(lower, -_INFINITY), bracket.inside + bracket.above - from_lower, from_lower)


def _next(value: float, towards: float) -> float:
    return float(torch.nextafter(torch.tensor(value), torch.tensor(towards)))


def _middle(low: float, high: float) -> float:
    """The float32 half way between two others in their order, so that halving ends after at most 32 rounds."""
    bits = torch.tensor([low, high]).view(torch.int32).tolist()
    ranks = [b if b >= 0 else -(b & 0x7FFFFFFF) for b in bits]
    middle = sum(ranks) // 2
    pattern = middle if middle >= 0 else -middle - (1 << 31)
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))
