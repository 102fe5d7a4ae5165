"""Magnitude: the larger a unit's weights, the more the network would miss it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import get_args

import torch
from torch import Tensor

from secateurs.patterns import size
from secateurs.types import Counted, Criterion, SecateursError

_LEAST, _MOST = 1e-20, 1e30
"""Sums of powers between these lost nothing that counts to the range of float32."""


def magnitude(p: float = 2, mean: bool = False, members: Counted = "producers") -> Criterion:
    """The p-norm of a unit's weights, (Σ|w|ᵖ)^(1/p); for single weights that is |w| for every p (1506.02626, 1608.08710).

    ``p`` is in (0, ∞]. ``mean=True`` takes the mean over the unit instead of the sum, so that units of different sizes can compete
    over a whole model; take it also for a p below about 0.1, whose sums leave the range of float32. Of coupled weights those count
    that make a unit, or, with ``members="all"``, every one that it lies in (2301.12900).

    >>> import torch
    >>> magnitude(p=1).reduce(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), (1,))
    tensor([7., 1.])
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p <= inf:
        raise SecateursError(f"magnitude(p={p!r}): p must be in (0, inf]; 1, 2 and inf are the usual ones")
    if members not in get_args(Counted):
        raise SecateursError(f"magnitude(members={members!r}): members is one of {', '.join(get_args(Counted))}")
    name = f"magnitude(p={p}" + (", mean=True" if mean else "") + ("" if members == "producers" else f", members={members!r}") + ")"
    return Criterion(name, size, _Norm(p, mean), members=members)


def batchnorm_scale() -> Criterion:
    """|γ| of the normalisations that a unit passes, summed: what network slimming drives to zero while training (1708.06519).

    For coupled units (`Channel`). Raises `PatternError`, when it is used, at units that no normalisation scales.

    >>> batchnorm_scale().members
    'norms'
    """
    return Criterion("batchnorm_scale()", size, _Norm(1, mean=False), members="norms")


@dataclass(frozen=True)
class _Norm:
    """The p-norm over some dimensions, or that of their mean."""

    p: float
    mean: bool

    def __call__(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        joined = torch.linalg.vector_norm(values, self.p, dims)
        if self.p == inf:
            return joined
        powers = joined.pow(self.p)
        if bool(((powers > _LEAST) & (powers < _MOST)).all()):
            return joined / (values.numel() / joined.numel()) ** (1 / self.p) if self.mean else joined
        return self._scaled(values, dims)

    def _scaled(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Of parts of the largest value, so that no power leaves the range of float32."""
        sizes = values.abs()
        largest = sizes.amax(dims, keepdim=True)
        powers = (sizes / largest.clamp_min(torch.finfo(sizes.dtype).tiny)).pow(self.p)
        joined = powers.mean(dims) if self.mean else powers.sum(dims)
        return joined.pow(1 / self.p) * largest.squeeze(dims)
