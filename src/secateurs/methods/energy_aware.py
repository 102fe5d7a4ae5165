"""Yang et al. 2017: energy-aware pruning, the layers that take most first (1611.05128)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateurs.allocate import fraction_kept, uniform
from secateurs.costs import energy
from secateurs.criteria import magnitude
from secateurs.given import COST, require
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection
from secateurs.prune import prune_
from secateurs.recover import train_
from secateurs.solve import LeastSquares, Restored, TopK
from secateurs.types import Allocator, Cost, Criterion, Pattern, SecateursError, Sites, Task


def energy_aware_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    cost: Cost = energy,
    sparsity: float | None = None,
    keep: float | None = None,
    allocate: Allocator | None = None,
    restore: float = 0.1,
    damping: float = 1e-4,
    epochs: int = 0,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    criterion: Criterion = magnitude(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Masks:
    """Prune layer after layer, those first that take most energy: by magnitude, the weights back that are missed most, least squares.

    Each layer is observed with those before it in this order pruned already; what comes early has most freedom to be made up for by what
    comes later. ``cost`` says what each layer takes: energy, or any cost that tells its layers. Each keeps the same fraction, or what
    ``allocate`` says, an allocator that asks for no scores or a plan; of what stays, the part ``restore`` is what its answers miss most
    (`Restored`). Then all is trained for `epochs`, where any are given, as the paper does; ``training`` goes to `train_`. The paper
    prunes each layer as far as its error admits, and repeats all until the accuracy falls: here that is for a loop around it.

    Raises `SecateursError` where the cost does not tell its layers, and as `prune_` and `train_` do.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> round(energy_aware_(digits_cnn(), digits(), sparsity=0.8).sparsity, 2)
    0.8
    """
    require("energy_aware_", "cost", cost, COST)
    if epochs and optimizer is None:
        raise SecateursError(f"energy_aware_: epochs={epochs} need an optimizer to train with: give one, or epochs=0")
    chosen = allocate or uniform(keep=fraction_kept("energy_aware_", sparsity, keep))
    solver = LeastSquares(Restored(TopK(criterion), restore), damping)
    masks = prune_(model, pattern, solver, chosen, task, only=only, skip=skip, walk=dearest_first(cost))
    if epochs and optimizer is not None:
        train_(model, task, optimizer, epochs, masks=masks, **training)
    return masks


def dearest_first(cost: Cost) -> Callable[[Sites], list[Sites]]:
    """A walk site by site, those whose layers cost most first; raises `SecateursError` where the cost tells of none of them."""

    def walk(sites: Sites) -> list[Sites]:
        told = cost.by_layer(sites.model, sites.example)
        layers: dict[str, float] = {}
        for name, value in told.items():
            layers[name.removesuffix(".weight")] = layers.get(name.removesuffix(".weight"), 0.0) + value
        places = {site.name: {member.parameter.removesuffix(".weight") for member in site.members} for site in sites}
        if not any(place in layers for found in places.values() for place in found):
            raise SecateursError(f"{cost.name} tells of {', '.join(told) or 'no layer'}, none of which is to be pruned")
        order = sorted(sites, key=lambda site: sum(layers.get(place, 0.0) for place in places[site.name]), reverse=True)
        return [replace(sites, found=(site,)) for site in order]

    return walk
