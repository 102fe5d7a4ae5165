"""Layers and data whose features tell about each other, for the tests of solvers that let some weights make up for others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs.evidence import observe
from secateurs.patterns import find_sites
from secateurs.solve.reconstruct import GRAM
from secateurs.types import Site, Stats, Task


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """Data whose features (dimension 1) tell about each other, with means that are not zero and unequal sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x + 0.8 * x.roll(1, dims=1) + 0.6 * x.roll(3, dims=1) + 0.5
    return x * torch.linspace(0.5, 1.5, shape[1]).view(-1, *(1,) * (len(shape) - 2))


def redundant(rows: int, features: int, seed: int = 0) -> Tensor:
    """Data that a quarter as many numbers nearly tell."""
    generator = torch.Generator().manual_seed(seed)
    few, mixed = torch.randn(rows, features // 4, generator=generator), torch.randn(features // 4, features, generator=generator)
    return few @ mixed + 0.5 * torch.randn(rows, features, generator=generator) + 0.5


def observed(layer: nn.Module, pattern: Any, x: Tensor, masks: Any = None) -> tuple[Site, Stats]:
    sites = find_sites(layer, pattern, x[:1], only="*", masks=masks)
    return sites[0], observe(layer, sites, [GRAM], Task(x[:1], calibration=[(x, None)]))


def change(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean())


class Experts(nn.Module):
    """Two matrices in one parameter, each of which meets every second row."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(2, 12, 8))  # (experts, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[::2] @ self.matrices[0], x[1::2] @ self.matrices[1]])
