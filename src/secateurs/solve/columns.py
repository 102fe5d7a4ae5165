"""Whole columns of a weight, one after the other, while the others make up for each (OBC, 2208.11580)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.solve.layer import Layer
from secateurs.solve.without import without_
from secateurs.types import Solution


def remove_columns(layer: Layer, keep: int, factors: Tensor) -> Solution:
    """Remove columns until `keep` are left, each time the one whose removal changes the layer's answers least when all others make up for
    it; in float64. ``factors`` are the lower Cholesky factors of the products of the inputs.

    Each removal takes outputs · features + features² steps.
    """
    inverse = torch.cholesky_inverse(factors.double())
    weight = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, :, None]], dim=2)
    weight, size = weight.double(), layer.weight.shape[2]
    dead = layer.gram.diagonal(dim1=1, dim2=2)[:, :size] == 0
    units, alive = layer.units.any(1), layer.alive.any(1)  # (groups, features)
    there, losses = units & alive, torch.full(units.shape, torch.inf, dtype=torch.float64, device=weight.device)

    def remove(group: int, column: int) -> None:
        without_(weight[group], inverse[group], torch.tensor([column], device=weight.device))
        there[group, column] = False

    def update(group: int) -> None:
        changes = weight[group, :, :size].square().sum(0) / inverse[group].diagonal()[:size]
        losses[group] = changes.masked_fill(dead[group], 0).masked_fill(~there[group], torch.inf)

    for group, column in (units & ~alive).nonzero().tolist():
        remove(group, column)
    for group in range(len(weight)):
        update(group)
    for _ in range(int(there.sum()) - keep):
        group, column = divmod(int(losses.argmin()), size)
        remove(group, column)
        update(group)
    stays = (there | ~units)[:, None, :].expand(layer.weight.shape)
    bias = weight[:, :, size] if layer.bias is not None else None
    return layer.solution(stays, weight[:, :, :size].masked_fill(~stays, 0).float(), bias)
