"""Magnitude: the larger a unit's weights, the more the network would miss it."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from secateurs.types import Criterion, SecateursError


def magnitude(p: float = 2, mean: bool = False) -> Criterion:
    """The p-norm of a unit's weights, (Σ|w|ᵖ)^(1/p); for single weights that is |w| for every p (1506.02626, 1608.08710).

    ``p`` is in (0, ∞]. ``mean=True`` takes the mean over the unit instead of the sum, so that units of different sizes can compete
    over a whole model; take it also for a p below about 0.1, whose sums leave the range of float32.

    >>> import torch
    >>> magnitude(p=1).reduce(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), (1,))
    tensor([7., 1.])
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 < p <= inf:
        raise SecateursError(f"magnitude(p={p!r}): p must be in (0, inf]; 1, 2 and inf are the usual ones")

    def norm(values: Tensor, dims: tuple[int, ...]) -> Tensor:
        sizes = values.abs()
        largest = sizes.amax(dims, keepdim=True)
        if p == inf:
            return largest.squeeze(dims)
        # As parts of the largest one, so that no power leaves the range of float32.
        powers = (sizes / largest.clamp_min(torch.finfo(sizes.dtype).tiny)).pow(p)
        joined = powers.mean(dims) if mean else powers.sum(dims)
        return joined.pow(1 / p) * largest.squeeze(dims)

    return Criterion(f"magnitude(p={p})" if not mean else f"magnitude(p={p}, mean=True)", lambda e: e.weight.abs(), norm)
