"""Which positions of a batch count, and means over those: padding teaches nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.types import SecateursError

Counted = Callable[[Any], Tensor]
"""The inputs of a batch → which positions count, ``(batch, positions)``, ``True`` or nonzero where they do."""


def counted_in(inputs: Any, shape: torch.Size, counted: Counted | None) -> Tensor | None:
    """Which positions of a batch are no padding, ``(batch, positions)``; ``None`` where nobody says."""
    there = counted(inputs) if counted is not None else inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if counted is not None and (not isinstance(there, Tensor) or there.shape != shape):
        shown = tuple(there.shape) if isinstance(there, Tensor) else type(there).__name__
        raise SecateursError(f"counted(inputs) gave {shown}, but must say of each of {tuple(shape)} positions whether it counts")
    return there != 0 if isinstance(there, Tensor) and there.shape == shape else None


def mean_over(values: Tensor, there: Tensor | None) -> Tensor:
    """The mean of values ``(batch, positions, …)`` over the positions that count; over all where nobody says which.

    >>> mean_over(torch.tensor([[1.0, 3.0, torch.inf]]), torch.tensor([[True, True, False]]))
    tensor(2.)
    """
    if there is None:
        return values.mean()
    more = (1,) * (values.ndim - there.ndim)
    total = values.masked_fill(~there.view(*there.shape, *more), 0).sum()
    return total / (there.sum() * (values[0, 0].numel() if values.numel() else 1)).clamp_min(1)
