"""Random: the baseline that every criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from secateurs.types import Criterion, Evidence


def random(seed: int = 0) -> Criterion:
    """A random score for every unit; the same seed and the same layer name give the same scores on every machine.

    >>> import torch
    >>> from secateurs.types import Evidence
    >>> a, b = (random(seed=3).element(Evidence("fc1", torch.zeros(4))) for _ in range(2))
    >>> bool((a == b).all())
    True
    """
    return Criterion(f"random(seed={seed})", _Draw(seed), _first)


@dataclass(frozen=True)
class _Draw:
    """Random numbers of the shape of a weight."""

    seed: int

    def __call__(self, evidence: Evidence) -> Tensor:
        # A generator of its own for each layer: scores do not depend on which layers are asked, or in which order.
        # Of a seed it takes the lower 32 bits alone, so seed and name are hashed together.
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {evidence.name}".encode()))
        return torch.rand(evidence.weight.shape, generator=generator).to(evidence.weight.device)


def _first(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    for dim in sorted((dim % values.ndim for dim in dims), reverse=True):
        values = values.select(dim, 0)
    return values
