"""Large tensors a piece at a time: what is made of a piece is still in the processor's cache when it is read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

LARGE = 1 << 20
"""Numbers of a tensor that does not stay in the cache."""

_PIECE = 1 << 18


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with the same rows, as many at a time as hold a quarter of a million numbers of the first one; small ones whole.

    >>> import torch
    >>> [a.shape[0] for a, b in pieces(torch.zeros(300, 1000), torch.zeros(300, 1000))]
    [262, 38]
    """
    one = tensors[0]
    if one.numel() <= _PIECE:
        return iter([tensors])
    rows = max(1, _PIECE * one.shape[0] // one.numel())
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
