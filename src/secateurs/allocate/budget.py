"""From a budget to a plan: the densest plan of an allocator that stays within it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from secateurs.allocate.apportion import limits_of
from secateurs.given import ALLOCATORS, BUDGET, require
from secateurs.types import Allocator, Budget, Plan, PlanError, Scores, Sites


def within_budget(
    budget: Budget, allocator: Callable[..., Allocator], floor: int = 1, ceiling: float = 1.0, same_in_every_block: bool = False
) -> Allocator:
    """The densest plan that ``allocator(keep=…, floor=…)`` makes within a budget, found by halving.

    No site loses more than the fraction `ceiling` of its units; it is passed on to the allocator where it is given, as
    ``same_in_every_block=True`` is, with which the blocks of a stack are alike and the budget is met to one unit in every block.

    Raises `PlanError` where even the sparsest plan is over the budget.

    >>> from torch import nn
    >>> from secateurs.allocate import uniform
    >>> from secateurs.costs import params
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Linear(8, 4), Element())
    >>> within_budget(Budget(params, limit=14), uniform)(sites, lambda: iter([]))["weight"]
    10
    """

    require("within_budget", "budget", budget, BUDGET)
    require("within_budget", "allocator", allocator, ALLOCATORS)

    def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        cost = budget.cost.prepare(sites.model, sites.example)
        limit = budget.limit if budget.limit is not None else (budget.keep or 0) * cost(None)
        units, asked = sum(site.units for site in sites), {"ceiling": ceiling} if ceiling < 1 else {}
        if same_in_every_block:
            asked["same_in_every_block"] = True
        low = max(1, sum(limit.low for limit in limits_of(sites, floor, ceiling).values()))
        # Sites that keep multiples round down by themselves, each from what it would keep.
        high = sum(site.available for site in sites)

        def plan_with(total: int) -> Plan:
            return allocator(keep=total / units, floor=floor, **asked)(sites, scores)

        best = plan_with(low)
        if cost(best) > limit:
            raise PlanError(
                f"{budget.cost.name} can fall to {cost(best):g} {budget.cost.unit} at the least, but the budget is {limit:g}: "
                "raise the budget, let more layers take part, or choose another pattern"
            )
        while low < high:
            middle = (low + high + 1) // 2
            plan = plan_with(middle)
            if cost(plan) <= limit:
                low, best = middle, plan
            else:
                high = middle - 1
        return replace(best, promised={budget.cost.name: cost(best)})

    return allocate
