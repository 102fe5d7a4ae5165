"""Optimal brain surgery: what other columns of a weight become when some go, and what the inverse Hessian is then."""

from __future__ import annotations

import torch
from torch import Tensor


def without_(weights: Tensor, inverse: Tensor, columns: Tensor) -> None:
    """Take columns out of weights ``(rows, n)`` whose rows share one inverse Hessian ``(n, n)``, in place, the others making up for them.

    Afterwards both are those without the columns (Hassibi & Stork 1993; of several at once 2208.11580): w ← w − w_B (H⁻¹_BB)⁻¹ H⁻¹_B,
    H⁻¹ ← H⁻¹ − H⁻¹_Bᵀ (H⁻¹_BB)⁻¹ H⁻¹_B. What is gone has weight 0 and stands in the inverse as if alone, with 1 on the diagonal.

    >>> weights, inverse = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    >>> without_(weights, inverse, torch.tensor([0]))
    >>> weights, inverse
    (tensor([[0.0000, 0.5000]]), tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]]))
    """
    beside = inverse[columns]
    made_up = torch.linalg.solve(beside[:, columns], torch.cat([beside, weights[:, columns].T], dim=1))
    of_inverse, of_weights = made_up.split([len(inverse), len(weights)], dim=1)
    weights -= of_weights.T @ beside
    inverse -= beside.T @ of_inverse
    weights[:, columns] = 0
    inverse[columns] = 0
    inverse[:, columns] = 0
    inverse[columns, columns] = 1
