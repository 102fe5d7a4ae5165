"""How sparsity grows while training goes on: functions of progress in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.types import KindError, SecateursError

Schedule = Callable[[float], float]
"""Progress in (0, 1] → sparsity in [0, 1). Any function of that kind is a schedule."""


def one_shot(sparsity: float) -> Schedule:
    """Everything at once, at the first pruning.

    >>> one_shot(0.9)(0.1)
    0.9
    """
    _check(sparsity)
    return lambda progress: sparsity


def linear(sparsity: float, *, initial: float = 0.0) -> Schedule:
    """The same amount at each pruning.

    >>> linear(0.8)(0.5)
    0.4
    """
    _check(sparsity, initial)
    return lambda progress: initial + (sparsity - initial) * progress


def cubic(sparsity: float, *, initial: float = 0.0) -> Schedule:
    """Fast while there is much to remove, slow towards the end: s_f + (s_i − s_f)(1 − t)³ (Zhu & Gupta, 1710.01878).

    >>> round(cubic(0.8)(0.5), 6)
    0.7
    """
    _check(sparsity, initial)
    return lambda progress: sparsity + (initial - sparsity) * (1 - progress) ** 3


def geometric(sparsity: float, *, initial: float = 0.0) -> Schedule:
    """The same fraction of what is left at each pruning, as in the search for lottery tickets (1803.03635).

    >>> round(geometric(0.75)(0.5), 6)
    0.5
    """
    _check(sparsity, initial)
    return lambda progress: 1 - (1 - initial) * ((1 - sparsity) / (1 - initial)) ** progress


def _check(*sparsities: float) -> None:
    for sparsity in sparsities:
        if not isinstance(sparsity, (int, float)):
            raise KindError(f"a schedule's sparsity is {sparsity!r}, but must be a number, for example cubic(0.9)")
        if not 0 <= sparsity < 1:
            raise SecateursError(f"sparsity {sparsity} is not in [0, 1); 0.9 removes 90 %")
