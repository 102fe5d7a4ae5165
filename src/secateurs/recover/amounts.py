"""How much `gradual` has removed after each pruning: a sparsity, or a part of the way to budgets; both of the model as it was at first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

from secateurs.allocate import within_budget
from secateurs.allocate.account import told
from secateurs.given import ALLOCATORS
from secateurs.ranks import of_first
from secateurs.recover.schedules import Schedule
from secateurs.types import Allocator, Budget, FileError, NonFiniteError, Plan, Run, Scores, SecateursError, Sites


class Amount(Protocol):
    """What is to be left after a pruning that is so far along, in (0, 1]; ``state`` and ``restore`` carry it through a checkpoint."""

    def begin(self, run: Run) -> None: ...

    def sparsity(self, progress: float) -> float | None: ...

    def allocator(self, progress: float) -> Allocator: ...

    def state(self) -> dict[str, float]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class BySparsity:
    """A fraction of the units, of as many as there were at the first pruning: once some are out of the model, of more than it has."""

    allocate: Callable[..., Allocator]
    schedule: Schedule
    shrinks: bool = False
    units: int = 0

    def begin(self, run: Run) -> None:
        """It is known at the first pruning."""

    def sparsity(self, progress: float) -> float:
        return self.schedule(progress)

    def allocator(self, progress: float) -> Allocator:
        sparsity = self.schedule(progress)
        return self._of_what_is_left(sparsity) if self.shrinks else self.allocate(sparsity=sparsity)

    def _of_what_is_left(self, sparsity: float) -> Allocator:
        def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
            here = sum(site.units for site in sites)
            self.units = max(self.units, here)
            gone = 1 - (1 - sparsity) * self.units / here
            return self.allocate(sparsity=round(max(0.0, gone), 12))(sites, scores)

        return allocate

    def state(self) -> dict[str, float]:
        return {"units": self.units}

    def restore(self, state: Mapping[str, Any]) -> None:
        units = state.get("units", 0)
        if type(units) is not int or units < 0:
            raise FileError(f"gradual: the checkpoint counts {str(units)[:60]} units")
        self.units = units


@dataclass
class ByBudget:
    """Budgets, approached along a schedule: after a pruning each cost is so far between what it was at first and its limit."""

    budgets: tuple[Budget, ...]
    allocate: Callable[..., Allocator]
    schedule: Schedule
    dense: dict[str, float] = field(default_factory=dict)

    def begin(self, run: Run) -> None:
        """What the model costs as it is, where it is not known from before a stop; what is measured, the first process has measured."""
        if not self.dense:
            dense = {budget.cost.name: budget.cost(run.model, run.task.example) for budget in self.budgets}
            for budget, cost in zip(self.budgets, dense.values(), strict=True):
                if not (isfinite(cost) and cost > 0):
                    raise NonFiniteError(
                        f"gradual: {told(budget)}: the model as it is costs {cost} {budget.cost.unit}, which bounds nothing"
                    )
            self.dense = of_first(dense)

    def sparsity(self, progress: float) -> None:
        return None

    def allocator(self, progress: float) -> Allocator:
        way = min(1.0, max(0.0, self.schedule(progress) / self.schedule(1.0)))
        limits = [Budget(budget.cost, limit=self._limit(budget, way)) for budget in self.budgets]
        return within_budget(limits, self.allocate) if ALLOCATORS.holds(self.allocate) else self.allocate(limits)

    def _limit(self, budget: Budget, way: float) -> float:
        dense = self.dense[budget.cost.name]
        limit = budget.limit if budget.limit is not None else (budget.keep or 0) * dense
        return limit if way == 1 else dense - way * (dense - min(limit, dense))

    def state(self) -> dict[str, float]:
        return dict(self.dense)

    def restore(self, state: Mapping[str, Any]) -> None:
        names = {budget.cost.name for budget in self.budgets}
        if state and (
            state.keys() != names or not all(type(cost) is float and isfinite(cost) and cost > 0 for cost in state.values())
        ):
            raise FileError(
                f"gradual: the checkpoint tells no costs of {', '.join(sorted(names))}: it was written with other budgets"
            )
        self.dense = dict(state)


def require_ends(schedule: Schedule, budgets: Sequence[Budget]) -> None:
    """Raise `SecateursError` where a schedule does not get anywhere, so that there is no way to budgets along it."""
    if budgets and not schedule(1.0) > 0:
        raise SecateursError(
            f"gradual: the schedule ends at {schedule(1.0)}, so that no pruning comes nearer to the budget: give one that ends above 0, "
            "for example linear(0.5); of its values only how far along they are counts"
        )
