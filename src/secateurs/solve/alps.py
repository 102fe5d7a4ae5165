"""ALPS: the weights that stay by operator splitting, their values by conjugate gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.given import COUNT, require
from secateurs.solve.layer import Layer, layer_of
from secateurs.solve.reconstruct import GRAM, require_damping
from secateurs.solve.sparsegpt import damped, losses_alone
from secateurs.types import Scores, SecateursError, Site, Solution, Statistic, Stats

_EVERY = 3  # iterations between two looks at what stays


@dataclass(frozen=True)
class ALPS:
    """Single weights, N:M or whole columns of one layer by operator splitting (2406.07831): weights that are free and near the dense ones
    in the metric of the inputs, and weights that are sparse, drawn to each other ever more strongly until the same ones stay; then those
    that stay minimise the change of the layer's answers, by conjugate gradients.

    The strength grows by a tenth to a third every third iteration, the faster the more what stays still changes, at most ``iterations``
    times; features are scaled to a mean square of 1. ``damping`` as in `SparseGPT`. Takes an eigendecomposition of the products of the
    inputs and 2 · outputs · features² steps an iteration, in float32.

    >>> from torch import nn
    >>> from secateurs import Element, Task, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> layer, data = nn.Linear(16, 8), torch.randn(256, 4) @ torch.randn(4, 16)
    >>> before, task = layer(data), Task(data, calibration=[(data, None)])
    >>> masks = prune_(layer, Element(), ALPS(), uniform(sparsity=0.5), task, only="*")
    >>> masks.kept, bool((layer(data) - before).square().mean() < 0.01 * before.var())
    (64, True)
    """

    damping: float = 0.01
    iterations: int = 300

    def __post_init__(self) -> None:
        require_damping("ALPS", self.damping)
        require("ALPS", "iterations", self.iterations, COUNT)
        if self.iterations < 1:
            raise SecateursError(f"ALPS: iterations={self.iterations} is none: give a whole number from 1, such as 300")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (GRAM,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """By how much a layer's answers change in mean square when one unit goes and the others make up for it."""
        for site in sites:
            yield losses_alone(layer_of(site, stats, "ALPS"), self.damping)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        each, layer = site.each_of(kept), layer_of(site, stats, "ALPS")
        system, size = damped(layer, self.damping), layer.weight.shape[2]
        scale = system.diagonal(dim1=1, dim2=2).sqrt()[:, None]
        system = system / scale / scale.transpose(1, 2)
        dense = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, :, None]], dim=2)
        sparse, stays = _split(layer, dense * scale, system, each, self.iterations)
        found = conjugate_gradients(system, (dense * scale) @ system, stays, sparse) / scale
        bias = found[:, :, size] if layer.bias is not None else None
        return layer.solution(stays[:, :, :size], found[:, :, :size], bias)


def _split(layer: Layer, dense: Tensor, system: Tensor, each: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Sparse weights ``(groups, outputs, features, and the bias)``, and which of them stay, by the method of multipliers."""
    values, vectors = torch.linalg.eigh(system)
    size, wanted = layer.weight.shape[2], dense @ system
    dead = (layer.gram.diagonal(dim1=1, dim2=2)[:, None, :size] == 0).expand(layer.weight.shape)

    def chosen(free: Tensor) -> Tensor:
        worth = free[:, :, :size].square().masked_fill(dead, 0)
        stays = torch.ones_like(free, dtype=torch.bool)
        stays[:, :, :size] = layer.largest(worth, each)
        return stays

    strength, duals, sparse, looked = 0.1, torch.zeros_like(dense), dense, chosen(dense)
    for iteration in range(1, iterations + 1):
        towards = (wanted - duals + strength * sparse) @ vectors
        free = (towards / (values[:, None] + strength)) @ vectors.transpose(1, 2)
        drawn = free + duals / strength
        stays = chosen(drawn)
        sparse = drawn * stays
        duals = duals + strength * (free - sparse)
        if iteration % _EVERY == 0:
            changed, number = int((stays != looked).sum()), max(1, int(stays.sum()))
            if changed == 0:
                break
            strength *= 1.3 if changed >= 0.1 * number else 1.2 if changed >= 0.005 * number else 1.1
            looked = stays
    return sparse, stays


def conjugate_gradients(
    system: Tensor, wanted: Tensor, kept: Tensor, start: Tensor, iterations: int = 300, tolerance: float = 1e-6
) -> Tensor:
    """Rows x ``(…, outputs, features)``, zero where they are not kept, with x·system = wanted where they are; all rows at once.

    >>> system = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> conjugate_gradients(system, torch.tensor([[1.5, 1.5]]), torch.tensor([[True, False]]), torch.zeros(1, 2))
    tensor([[1.5000, 0.0000]])
    """
    found = start * kept
    rest = (wanted - found @ system) * kept
    way, size = rest, rest.square().sum(-1, keepdim=True)
    enough = tolerance**2 * wanted.square().sum(-1, keepdim=True)
    for _ in range(iterations):
        going = size > enough
        if not bool(going.any()):
            break
        seen = (way @ system) * kept
        step = torch.where(going, size / (way * seen).sum(-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny), 0)
        found = found + step * way
        rest = rest - step * seen
        size, before = rest.square().sum(-1, keepdim=True), size
        way = rest + size / before.clamp(min=torch.finfo(size.dtype).tiny) * way
    return found
