"""A recipe: one way to prune a model, with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

from torch import nn

from secateurs.allocate import uniform, within_budget
from secateurs.evidence import at_once
from secateurs.given import PATTERN, SOLVER, require
from secateurs.masks import Masks
from secateurs.prune import prune_
from secateurs.recover import geometric
from secateurs.recover.schedules import Schedule
from secateurs.solve import TopK
from secateurs.types import (
    Allocator,
    Budget,
    Cost,
    Criterion,
    KindError,
    Pattern,
    SecateursError,
    Selection,
    Sites,
    Solver,
    Task,
)


class Prunes(Protocol):
    """Prunes a model in place to a fraction kept, from the masks of the round before on; gives masks, or nothing where none are needed."""

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None) -> Masks | None: ...


@dataclass(frozen=True)
class Pruning:
    """How `prune_` is called: all but how much stays, which comes later.

    ``solver`` may be a function of the seed that makes one, for choices that are drawn. ``allocate`` makes allocators of ``keep=``. With
    a ``cost``, the fraction kept is of that and not of the units: ``cost=macs`` for channels.

    >>> from secateurs import Element, magnitude
    >>> Pruning(Element(), TopK(magnitude()))
    Pruning(Element(), TopK(criterion=magnitude(p=2)), uniform)
    """

    pattern: Pattern
    solver: Solver | Callable[[int], Solver]
    allocate: Callable[..., Allocator] = uniform
    cost: Cost | None = None
    only: Selection | None = None
    skip: Selection | None = None
    walk: Callable[[Sites], Sequence[Sites]] = at_once

    def __post_init__(self) -> None:
        require("Pruning", "pattern", self.pattern, PATTERN)
        given: Any = self.solver
        if not callable(given):
            require("Pruning", "solver", given, SOLVER)

    def __call__(self, model: nn.Module, task: Task, keep: float, seed: int, masks: Masks | None = None) -> Masks:
        """Prune a model in place; raises what `prune_` raises."""
        solver: Any = self.solver
        if not SOLVER.holds(solver):
            solver = solver(seed)
        chosen: dict[str, Any] = {"only": self.only, "skip": self.skip, "masks": masks, "walk": self.walk}
        # What is compared is what the choice of units loses; the same epochs of training follow for all.
        chosen["recalibrate"] = False
        return prune_(model, self.pattern, solver, self._allocator(keep), task, **chosen)

    def _allocator(self, keep: float) -> Allocator | None:
        if self.pattern.kept_of_each is not None:
            return None
        if self.cost is None or keep == 1:
            return self.allocate(keep=keep)
        return within_budget(Budget(self.cost, keep=keep), self.allocate)

    def __repr__(self) -> str:
        cost = "" if self.cost is None else f", cost={self.cost.name}"
        chosen = "".join(f", {name}={getattr(self, name)!r}" for name in ("only", "skip") if getattr(self, name) is not None)
        return f"Pruning({self.pattern!r}, {named(self.solver)}, {named(self.allocate)}{cost}{chosen})"


def named(value: Any) -> str:
    """A function by its name, with what is given to it already; anything else as it shows itself.

    >>> named(partial(uniform, floor=2)), named(uniform), named(3)
    ('uniform(floor=2)', 'uniform', '3')
    """
    if isinstance(value, partial):
        given = [*map(repr, value.args), *(f"{name}={each!r}" for name, each in value.keywords.items())]
        return named(value.func) + (f"({', '.join(given)})" if given else "")
    return getattr(value, "__qualname__", "") or repr(value)


@dataclass(frozen=True)
class Recipe:
    """One way to prune, by a name: how units go, in how many rounds, and how long is trained after each of them.

    ``prune(model, task, keep, seed, masks)`` prunes in place and gives the masks: a `Pruning`, or any function. In round i of n the
    sparsity is ``schedule(1 - keep)(i / n)``. ``epochs`` are those after each round. Raises `SecateursError` for numbers that cannot be.

    >>> from secateurs import Element, magnitude
    >>> Recipe("magnitude", Pruning(Element(), TopK(magnitude())), epochs=1).rounds
    1
    """

    name: str
    prune: Prunes
    epochs: int = 0
    rounds: int = 1
    schedule: Callable[[float], Schedule] = geometric

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise SecateursError(f"Recipe: name is {self.name!r}, but must be a text that tells it from the others")
        if not callable(self.prune):
            raise KindError(
                f"Recipe({self.name!r}): prune is {self.prune!r}, but must be a Pruning, or a function (model, task, keep, seed, masks)"
            )
        if not callable(self.schedule):
            raise KindError(
                f"Recipe({self.name!r}): schedule is {self.schedule!r}, but must make one of a sparsity, such as geometric"
            )
        if self.epochs < 0 or self.rounds < 1:
            raise SecateursError(
                f"Recipe({self.name!r}): epochs={self.epochs} must be at least 0, and rounds={self.rounds} at least 1"
            )

    def __repr__(self) -> str:
        trained = f", epochs={self.epochs}" if self.epochs else ""
        times = f", rounds={self.rounds}, schedule={named(self.schedule)}" if self.rounds > 1 else ""
        return f"Recipe({self.name!r}, {named(self.prune)}{trained}{times})"

    def keeps(self, keeps: Sequence[float]) -> tuple[float, ...]:
        """The fractions kept that it is tried at: those asked for, or the one that its pattern means (half for 2:4)."""
        pattern = self.prune.pattern if isinstance(self.prune, Pruning) else None
        if pattern is not None and pattern.kept_of_each is not None and isinstance(pattern.within, int):
            return (pattern.kept_of_each / pattern.within,)
        return tuple(keeps)

    def steps(self, keep: float) -> list[float]:
        """The fraction kept after each round; the last is ``keep`` itself.

        >>> from secateurs import Element, magnitude
        >>> [round(part, 3) for part in Recipe("m", Pruning(Element(), TopK(magnitude())), rounds=2).steps(0.25)]
        [0.5, 0.25]
        """
        grows = self.schedule(1 - keep)
        return [1 - grows(step / self.rounds) for step in range(1, self.rounds)] + [keep]


Choices = Mapping[str, Any] | Iterable[Any] | Any
"""One thing, several, or several by names of one's own."""


def recipes(
    criteria: Choices,
    patterns: Choices,
    allocators: Choices = uniform,
    schedules: Choices = geometric,
    *,
    epochs: int | Iterable[int] = 0,
    rounds: int | Iterable[int] = 1,
    cost: Cost | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> list[Recipe]:
    """Every criterion with every pattern, allocator, schedule, number of epochs and of rounds: recipes named by what differs.

    Each is one thing, a list, or a dict with names of one's own. A criterion may be a solver, or a function of the seed that makes a
    criterion: ``random`` draws anew with each seed.

    >>> from secateurs import Element, global_threshold, magnitude, random
    >>> [recipe.name for recipe in recipes([magnitude(), random], Element(), [uniform, global_threshold])]
    ['magnitude(p=2), uniform', 'magnitude(p=2), global_threshold', 'random, uniform', 'random, global_threshold']
    """
    parts = [_by_name(choices) for choices in (criteria, patterns, allocators, schedules)]
    counts = [
        {f"{number} {what}": number for number in _several(numbers)} for what, numbers in (("epochs", epochs), ("rounds", rounds))
    ]
    found = []
    for chosen in product(*(each.items() for each in (*parts, *counts))):
        differing = [name for (name, _), choices in zip(chosen, (*parts, *counts), strict=True) if len(choices) > 1]
        criterion, pattern, allocate, schedule, trained, times = (value for _, value in chosen)
        pruning = Pruning(pattern, _solver(criterion), allocate, cost, only, skip)
        found.append(Recipe(", ".join(differing) or chosen[0][0], pruning, trained, times, schedule))
    return found


def _several(choices: Any) -> list[Any]:
    return list(choices) if isinstance(choices, Iterable) and not isinstance(choices, str) else [choices]


def _by_name(choices: Any) -> dict[str, Any]:
    if isinstance(choices, Mapping):
        return dict(choices)
    several = _several(choices)
    by_name = {named(value): value for value in several}
    if len(by_name) < len(several):
        raise SecateursError(f"recipes: two of {', '.join(map(named, several))} have one name: give a dict that names them")
    return by_name


def _solver(criterion: Any) -> Any:
    if isinstance(criterion, Criterion):
        return TopK(criterion)
    return criterion if SOLVER.holds(criterion) else Drawn(criterion)


@dataclass(frozen=True)
class Drawn:
    """Keeps the units that a criterion of the seed scores highest."""

    criterion: Callable[[int], Criterion]

    def __call__(self, seed: int) -> Solver:
        return TopK(self.criterion(seed))

    def __repr__(self) -> str:
        return f"TopK({named(self.criterion)})"
