"""Baselines beside a pruned network, each to the same fraction of all parameters, as recipes for `compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateurs.comparing.recipe import Prunes, Pruning, Recipe, named
from secateurs.costs import params
from secateurs.criteria import magnitude, random
from secateurs.masks import Masks
from secateurs.methods.collins_kohli import memory_bounded_
from secateurs.methods.controls import dense_of_size_, random_start_
from secateurs.methods.low_rank import svd_
from secateurs.patterns import Channel, Element, find_sites
from secateurs.recover.restart import other_than
from secateurs.shrink import fastfood_
from secateurs.solve import Merge, TopK
from secateurs.types import SecateursError, Task


@dataclass(frozen=True)
class LowRanked:
    """`svd_` as a recipe."""

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> None:
        svd_(model, task, keep=keep)


@dataclass(frozen=True)
class DeepFried:
    """`fastfood_` as a recipe."""

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> None:
        fastfood_(model, task, keep=keep, seed=seed)


@dataclass(frozen=True)
class DenseOfSize:
    """`dense_of_size_` as a recipe; ``make`` makes the dense model anew, where its layers do not say how they begin."""

    make: Callable[[], nn.Module] | None = None

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> None:
        dense_of_size_(model, task, keep=keep, seed=seed, fresh=made_anew(self.make, seed))


@dataclass(frozen=True)
class RandomStart:
    """What a recipe leaves of the model, begun anew (`random_start_`)."""

    prune: Prunes
    make: Callable[[], nn.Module] | None = None

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> Masks | None:
        def prune(model: nn.Module, task: Task) -> Masks | None:
            return self.prune(model, task, keep, seed, masks)

        return random_start_(model, task, prune, seed=seed, fresh=made_anew(self.make, seed))

    def __repr__(self) -> str:
        return f"RandomStart({named(self.prune)})"


@dataclass(frozen=True)
class MemoryBounded:
    """`memory_bounded_` as a recipe, with as many epochs of training of its own, by Adam at rate `lr`."""

    epochs: int
    lr: float = 1e-3

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> Masks:
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        told = replace(task, validation=None)
        sparsity = _of_weights(model, task, keep)
        return memory_bounded_(model, told, optimizer, self.epochs, sparsity=sparsity, show=False).masks


Baseline = LowRanked | DeepFried | DenseOfSize | RandomStart | MemoryBounded
"""Those of which no weight is zero but by a mask."""


def _of_weights(model: nn.Module, task: Task, keep: float) -> float:
    """The sparsity of the weights that may be pruned that leaves this fraction of all parameters."""
    weights = sum(site.units for site in find_sites(model, Element(), task.example))
    gone = (1 - keep) * params(model)
    if gone >= weights:
        raise SecateursError(
            f"keep={keep} is less than what is no weight ({params(model) - weights:,} of {params(model):,}): keep more"
        )
    return gone / weights


def made_anew(make: Callable[[], nn.Module] | None, seed: int) -> nn.Module | None:
    """A fresh model, other than the one of torch's random numbers of that seed, or none."""
    if make is None:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(other_than(seed))
        return make()


def baselines(
    *, epochs: int = 0, of: Recipe | None = None, make: Callable[[], nn.Module] | None = None, lr: float = 1e-3, only: Any = None
) -> list[Recipe]:
    """What a pruned network is to be compared with at the same fraction of all parameters, each trained for `epochs` after it.

    - ``low rank``: singular value decomposition of every layer (`svd_`, 1404.0736)
    - ``merged``: similar channels merged without data (`Merge`, 1507.06149), of `params`
    - ``Fastfood``: Fastfood layers in the place of linear ones (`fastfood_`, 1412.7149); only where these hold enough of the parameters
    - ``memory bounded``: thresholded while it learns (`memory_bounded_`, 1412.1442), for `epochs` more, by Adam at rate `lr`
    - ``random``: random weights, which any criterion must beat
    - ``dense, same size``: all layers narrower alike, from scratch (`dense_of_size_`)
    - ``random start``: what the recipe ``of`` leaves, by default magnitude, begun anew (`random_start_`, 1810.05270)

    ``make`` makes the model anew where layers do not say how they begin. `keep` is a fraction of all parameters, as that of ``Pruning(...,
    cost=params)`` is. ``only`` names those that are wanted.

    >>> [recipe.name for recipe in baselines(epochs=1, only=["low rank", "dense, same size"])]
    ['low rank', 'dense, same size']
    """
    pruning = Pruning(Element(), TopK(magnitude()), cost=params) if of is None else of.prune
    found = [
        Recipe("low rank", LowRanked(), epochs),
        Recipe("merged", Pruning(Channel(), Merge(), cost=params), epochs),
        Recipe("Fastfood", DeepFried(), epochs),
        *([Recipe("memory bounded", MemoryBounded(epochs, lr), epochs)] if epochs else []),
        Recipe("random", Pruning(Element(), _random, cost=params), epochs),
        Recipe("dense, same size", DenseOfSize(make), epochs),
        Recipe("random start", RandomStart(pruning, make), epochs),
    ]
    if of is not None and of.rounds > 1:
        raise SecateursError(
            f"baselines(of={of.name!r}): in {of.rounds} rounds it would prune what was begun anew, not what it has trained: give a Recipe "
            "whose function does its rounds by itself, as iterative_magnitude_ does"
        )
    names = [recipe.name for recipe in found]
    wanted = names if only is None else [only] if isinstance(only, str) else list(only)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise SecateursError(f"baselines: only= names {', '.join(map(str, unknown))}, but there are {', '.join(names)}")
    return [recipe for recipe in found if recipe.name in wanted]


def _random(seed: int) -> Any:
    return TopK(random(seed))
