"""Tensors as the bits that they are: bytes, whole numbers of the same width, and whether two are the same."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

BITS_OF = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""Floats and the whole numbers as wide."""


def content_of(tensor: Tensor) -> bytes:
    """A tensor's bytes in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tensor_of(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in memory of its own from its bytes; as many as the shape needs."""
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(numpy.frombuffer(content, numpy.uint8).copy()).view(dtype).reshape(shape)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits: NaN is NaN, and -0.0 is not 0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return not a.numel() or torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
