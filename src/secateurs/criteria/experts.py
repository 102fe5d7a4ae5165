"""Experts of mixtures: by what they add to the tokens that are sent to them, and by how many these are."""

from __future__ import annotations

from secateurs.criteria.parts import total, weights_alone
from secateurs.evidence import expert_saliency, tokens_routed
from secateurs.types import Criterion, Statistic


def reap() -> Criterion:
    """The mean over the tokens that are sent to an expert of its weight × the norm of its answer (2510.13999). For `Expert`.

    >>> reap().needs[0].watches
    'routing'
    """
    return _of("reap()", expert_saliency())


def routed() -> Criterion:
    """How many tokens are sent to an expert: the plain choice that `reap` must beat. For `Expert`.

    >>> routed().name
    'routed()'
    """
    return _of("routed()", tokens_routed())


def _of(name: str, statistic: Statistic) -> Criterion:
    return Criterion(name, weights_alone, total, (statistic,), units=statistic)
