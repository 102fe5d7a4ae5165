"""Exact optimal brain surgery: the inverse of the second derivatives by all weights of a network, and what one weight less does to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.solve.without import without_
from secateurs.types import NonFiniteError, SecateursError

_MOST = 1 << 13
_AT_ONCE = 64


def inverse_of(rows: Iterable[Tensor], number: int, damping: float) -> Tensor:
    """The inverse of damping·I + Σ x·xᵀ over rows x of `number` weights, by recursion (Hassibi & Stork 1993, eq. 8), float64.

    Rows are taken in by the dozen, ``H⁻¹ ← H⁻¹ − H⁻¹Xᵀ(I + XH⁻¹Xᵀ)⁻¹XH⁻¹``, which for one is the paper's. Raises `SecateursError` for
    more than 8,192 weights or a damping that is not positive, `NonFiniteError` for rows of NaN.

    >>> inverse_of([torch.tensor([[1.0, 0.0], [0.0, 3.0]])], 2, damping=1.0)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.1000]], dtype=torch.float64)
    """
    if number > _MOST:
        raise SecateursError(
            f"the inverse of the second derivatives by {number:,} weights is too large (at most {_MOST:,}): name fewer layers with only=, "
            "or take TopK(obd()), or LeastSquares, layer by layer"
        )
    if not damping > 0:
        raise SecateursError(f"damping={damping} must be above 0: the second derivatives alone have no inverse; 1e-6 is small")
    inverse: Tensor | None = None
    for batch in rows:
        if not bool(batch.isfinite().all()):
            raise NonFiniteError("the gradients of what the model answers are NaN or infinite: look at the calibration batches")
        for part in batch.double().split(_AT_ONCE):
            if inverse is None:
                inverse = torch.eye(number, dtype=torch.float64, device=part.device) / damping
            reach = part @ inverse
            inner = torch.eye(len(part), dtype=torch.float64, device=part.device) + reach @ part.T
            inverse -= reach.T @ torch.cholesky_solve(reach, torch.linalg.cholesky(inner))
    if inverse is None:
        raise SecateursError("there are no rows to make second derivatives of")
    return (inverse + inverse.T) / 2


@dataclass
class Surgeon:
    """Weights of a network as one vector, those that are alive, and the inverse of the second derivatives by them.

    In ``inverse`` what is gone stands alone: no other weight makes up for it.

    >>> surgeon = Surgeon(torch.tensor([1.0, 1.0]).double(), torch.tensor([True, True]), torch.tensor([[2.0, 1.0], [1.0, 1.0]]).double())
    >>> surgeon.remove(), surgeon.values, surgeon.alive
    (0, tensor([0.0000, 0.5000], dtype=torch.float64), tensor([False,  True]))
    """

    values: Tensor
    alive: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, weights: Sequence[Tensor], alive: Tensor, rows: Iterable[Tensor], damping: float) -> Surgeon:
        """What is alive of some weights, and the inverse of second derivatives damping·I + Σ x·xᵀ by it (`inverse_of`)."""
        places = alive.nonzero()[:, 0]
        found = inverse_of((part[:, places] for part in rows), len(places), damping)
        inverse = found.new_zeros(len(alive), len(alive))
        inverse[places[:, None], places[None]] = found
        return cls(in_a_row(weights) * alive, alive.clone(), inverse)

    def saliencies(self) -> Tensor:
        """w²/(2·[H⁻¹]qq) of each weight: what its removal costs where all others make up for it; infinite for what is gone."""
        diagonal = self.inverse.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        return (self.values.square() / (2 * diagonal)).masked_fill(~self.alive, torch.inf)

    def remove(self) -> int:
        """Take away the weight that is missed least, let all others make up for it, and tell which it was."""
        place = int(self.saliencies().argmin())
        without_(self.values[None], self.inverse, torch.tensor([place], device=self.values.device))
        self.alive[place] = False
        return place


def in_a_row(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors as one vector, float64."""
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])


def in_shape(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector as tensors again, each as one of those that it was made of.

    >>> in_shape(torch.arange(3), [torch.zeros(2, 1), torch.zeros(1)])
    [tensor([[0],
            [1]]), tensor([2])]
    """
    parts = row.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@torch.no_grad()
def write_(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """New numbers into weights, in place."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
