"""What passes through a unit: how often it is silent, how large it is, how much it varies."""

from __future__ import annotations

from typing import Literal

from secateurs.criteria.parts import total, weights_alone
from secateurs.evidence import activation_size, activation_variance, nonzero_activations
from secateurs.types import Criterion, SecateursError, Statistic


def apoz() -> Criterion:
    """Units that are zero least often stay: 1 minus the average percentage of zeros that their readers are given (1607.03250).

    For coupled units (`Channel`, `Head`), behind whatever lies between the layer that makes them and those that read them.

    >>> apoz().needs[0].watches
    'values'
    """
    return _of("apoz()", nonzero_activations())


def activation(p: Literal[1, 2] = 1) -> Criterion:
    """The mean size of what a unit's readers are given: the mean of \\|a\\|, or for ``p=2`` the root of the mean of a² (1611.06440, §2.2).

    >>> activation(p=2).name
    'activation(p=2)'
    """
    if p not in (1, 2):
        raise SecateursError(f"activation(p={p!r}): p is 1 or 2")
    return _of(f"activation(p={p})", activation_size(p))


def variance() -> Criterion:
    """The variance of what a unit's readers are given: a unit that is always the same can be folded into a bias.

    >>> variance().name
    'variance()'
    """
    return _of("variance()", activation_variance())


def _of(name: str, statistic: Statistic) -> Criterion:
    return Criterion(name, weights_alone, total, (statistic,), units=statistic)
