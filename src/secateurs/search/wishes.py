"""From what each site would like to keep to a plan that meets budgets: what searches draw from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from secateurs.allocate import apportion, bounds, limits_of, plan_of, within_budget
from secateurs.allocate.account import budgets_of
from secateurs.types import Allocator, Budget, Cost, Plan, PlanError, Scores, SecateursError, Sites

Wishes = Mapping[str, float]
"""Site → the fraction of its units that it would like to keep, in [0, 1]."""


class Wished:
    """Plans of sites that meet budgets and keep in proportion to wishes, as much as the budgets admit; without a budget, the wishes
    themselves. No site keeps fewer than `floor` units, or loses more than the fraction `ceiling` of them.

    Raises `PlanError` where the budgets cannot be met, with the least that can be reached, and where a pattern decides by itself.
    """

    def __init__(self, who: str, sites: Sites, budget: Budget | Sequence[Budget] | None, floor: int, ceiling: float) -> None:
        fixed = next((site for site in sites if site.pattern.kept_of_each is not None), None)
        if fixed is not None:
            raise PlanError(
                f"{fixed.name}: {fixed.pattern} decides by itself how much stays, so there is nothing to search: take Element() or "
                f"Element(within={fixed.pattern.within})"
            )
        self.sites, self.floor, self.ceiling = sites, floor, ceiling
        self._limits = limits_of(sites, floor, ceiling)
        self.budgets = () if budget is None else tuple(_made_ready(each, sites) for each in budgets_of(who, budget))
        self.least = {site.name: self._limits[site.name].low / max(1, site.units) for site in sites}
        self.plan({site.name: 1.0 for site in sites})  # raises where there is none, before anything is tried

    def plan(self, wishes: Wishes) -> Plan:
        """The densest plan that keeps in such proportions."""
        if not self.budgets:
            kept = {site.name: self._limits[site.name].nearest(wishes[site.name] * site.units) for site in self.sites}
            return plan_of(self.sites, kept)
        weights = tuple(max(wishes[site.name], 1e-9) * site.units for site in self.sites)
        allocate = within_budget(self.budgets, partial(_in_proportion, weights), self.floor, self.ceiling)
        return allocate(self.sites, lambda: iter([]))

    def drawn(self, chance: random.Random) -> dict[str, float]:
        """Wishes at random: each site any fraction from its least to all."""
        return {name: chance.uniform(least, 1.0) for name, least in self.least.items()}

    def of(self, plan: Plan) -> dict[str, float]:
        """The fractions that a plan keeps."""
        return {name: share.kept / max(1, share.units) for name, share in plan.shares.items()}

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Those that are limited."""
        return tuple(budget.cost for budget in self.budgets)


def _made_ready(budget: Budget, sites: Sites) -> Budget:
    """A budget whose cost is prepared once for all plans."""
    price = budget.cost.prepare(sites.model, sites.example)
    limit = budget.limit if budget.limit is not None else (budget.keep or 0) * price(None)
    if not limit > 0:
        raise SecateursError(
            f"Budget({budget.cost.name}): the model as it is costs {price(None):g}, so that a part of it means nothing"
        )
    return Budget(replace(budget.cost, prepare=lambda model, example: price), limit=limit)


def _in_proportion(weights: Sequence[float], *, keep: float, floor: int = 1, ceiling: float = 1.0) -> Allocator:
    """Sites keep in proportion to weights, and together a fraction of all."""

    def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        total = round(keep * sum(site.units for site in sites))
        limits = {site.name: bounds(site, floor, ceiling) for site in sites}
        return plan_of(sites, apportion(sites, weights, total, limits, f"a search (keep={keep:g})"))

    return allocate
