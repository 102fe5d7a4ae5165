"""What a plan costs by each of several budgets, and what they still admit while it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from secateurs.costs import Tally
from secateurs.given import BUDGETS, require
from secateurs.types import Budget, NonFiniteError, Plan, SecateursError, Sites


def budgets_of(who: str, budgets: Budget | Sequence[Budget]) -> tuple[Budget, ...]:
    """One budget or several, each of another cost; raises `SecateursError` otherwise.

    >>> from secateurs.costs import params
    >>> len(budgets_of("mine", Budget(params, keep=0.5)))
    1
    """
    require(who, "budget", budgets, BUDGETS)
    found = (budgets,) if isinstance(budgets, Budget) else tuple(budgets)
    for place, budget in enumerate(found):
        twin = next((other for other in found[:place] if other.cost.name == budget.cost.name), None)
        if twin is not None:
            raise SecateursError(
                f"{who}: {told(twin)} and {told(budget)} limit costs of one name: give the one that is meant, or another name to "
                "one of the costs, as dataclasses.replace(cost, name=…) does"
            )
    return found


def told(budget: Budget) -> str:
    """A budget as one writes it."""
    return f"Budget({budget.cost.name}, {f'limit={budget.limit:g}' if budget.limit is not None else f'keep={budget.keep:g}'})"


@dataclass(frozen=True)
class Account:
    """Several budgets, made ready for the plans of a model: ``limits`` in the units of their costs."""

    budgets: tuple[Budget, ...]
    prepared: tuple[Callable[[Plan | None], float], ...]
    limits: tuple[float, ...]

    @staticmethod
    def of(budgets: Sequence[Budget], sites: Sites) -> Account:
        """Raises `NonFiniteError` where a cost of the model as it is is no number."""
        prepared = tuple(budget.cost.prepare(sites.model, sites.example) for budget in budgets)
        limits = tuple(
            budget.limit if budget.limit is not None else (budget.keep or 0) * _number(budget, price(None), "the model as it is")
            for budget, price in zip(budgets, prepared, strict=True)
        )
        return Account(tuple(budgets), prepared, limits)

    def costs(self, plan: Plan) -> tuple[float, ...]:
        """What a plan costs by each budget; raises `NonFiniteError` where that is no number."""
        kept = f"a plan that keeps {sum(plan.values())} units"
        return tuple(_number(budget, price(plan), kept) for budget, price in zip(self.budgets, self.prepared, strict=True))

    def admits(self, plan: Plan) -> bool:
        """Whether a plan meets all budgets."""
        return self.meet(self.costs(plan))

    def meet(self, costs: Sequence[float]) -> bool:
        """Whether such costs are within all limits."""
        return all(cost <= limit for cost, limit in zip(costs, self.limits, strict=True))

    def share(self, before: Sequence[float], after: Sequence[float]) -> float:
        """What a change costs: the largest part that it takes of any budget."""
        return max((b - a) / limit for a, b, limit in zip(before, after, self.limits, strict=True))

    def promised(self, plan: Plan) -> dict[str, float]:
        """Name → cost of a plan."""
        return {budget.cost.name: cost for budget, cost in zip(self.budgets, self.costs(plan), strict=True)}


def _number(budget: Budget, value: float, of: str) -> float:
    if not isfinite(value):
        raise NonFiniteError(
            f"{told(budget)}: the cost of {of} is {value}, so that no plan can be held against it: look at {budget.cost.name}"
        )
    return value


class Ledger:
    """A plan that changes site by site, with what it costs by each budget of an account."""

    def __init__(self, account: Account, plan: Plan) -> None:
        self.account, self._plan = account, plan
        self._tallies = [Tally(prepared, plan) for prepared in account.prepared]

    @property
    def counts(self) -> Mapping[str, int]:
        """What each site keeps."""
        return self._tallies[0].counts

    @property
    def now(self) -> tuple[float, ...]:
        """What the plan costs."""
        return tuple(tally.total for tally in self._tallies)

    @property
    def plan(self) -> Plan:
        return self._plan.with_counts(self.counts)

    @property
    def together(self) -> set[tuple[str, ...]]:
        """The sites whose changes do not just add up, as some part of a cost depends on all of them."""
        return {sites for tally in self._tallies for sites in tally.together}

    def at(self, kept: Mapping[str, int]) -> tuple[float, ...]:
        """What it would cost if some sites kept so many units."""
        if len(kept) == 1:
            ((site, count),) = kept.items()
            return tuple(tally.at(site, count) for tally in self._tallies)
        before = {site: self.counts[site] for site in kept}
        self.move_(kept)
        found = self.now
        self.move_(before)
        return found

    def move_(self, kept: Mapping[str, int]) -> None:
        """Let some sites keep so many units."""
        for tally in self._tallies:
            for site, count in kept.items():
                if tally.counts[site] != count:
                    tally.move_(site, count)
