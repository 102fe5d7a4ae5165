"""What criteria share: the weights as they are, and sums."""

from __future__ import annotations

from torch import Tensor

from secateurs.types import Evidence


def weights_alone(evidence: Evidence) -> Tensor:
    """The weights with their signs: the ``element`` of a criterion that compares units, or that scores units as a whole."""
    return evidence.weight


def total(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over a unit's elements."""
    return values.sum(dims)


def mean(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean over a unit's elements."""
    return values.mean(dims)
