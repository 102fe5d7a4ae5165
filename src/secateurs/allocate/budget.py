"""From budgets to a plan: the densest plan of an allocator that stays within them, and what still fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from secateurs.allocate.account import Account, Ledger, budgets_of, told
from secateurs.allocate.apportion import limits_of
from secateurs.allocate.filling import by_score, by_share, fill_
from secateurs.allocate.levers import levers_of
from secateurs.given import ALLOCATORS, require
from secateurs.types import Allocator, Budget, Plan, PlanError, Scores, Sites

_PROBES = 16


def within_budget(
    budget: Budget | Sequence[Budget],
    allocator: Callable[..., Allocator],
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """The densest plan that ``allocator(keep=…, floor=…)`` makes within a budget, or within several, and what still fits beside it.

    The densest plan is found by halving. Then sites get one unit after the other, until the next of any site would break a budget:
    those first that score most for what they cost, where the allocator looks at scores, else so that what stays of the sites is in
    proportion to what the allocator gave them. No site loses more than the fraction `ceiling` of its units; it is passed on to the
    allocator where it is given, as ``same_in_every_block=True`` is, with which the blocks of a stack are alike and the budget is met to
    one unit in every block.

    A cost need not rise with every unit (latencies have steps and cliffs): the budgets are met all the same, sites also jump to larger
    numbers that fit where the next one does not, and where the sparsest plan is over a budget, denser ones are tried.

    Raises `PlanError` where no plan is within the budgets, with the least that each can come to, `SecateursError` for two budgets of one
    cost, `NonFiniteError` where a cost is not finite.

    >>> from torch import nn
    >>> from secateurs.allocate import uniform
    >>> from secateurs.costs import params
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Linear(8, 4), Element())
    >>> within_budget(Budget(params, limit=14), uniform)(sites, lambda: iter([]))["weight"]
    10
    """
    budgets = budgets_of("within_budget", budget)
    require("within_budget", "allocator", allocator, ALLOCATORS)

    def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        account, asking = Account.of(budgets, sites), _Asking(scores)
        asked = {"ceiling": ceiling} if ceiling < 1 else {}
        if same_in_every_block:
            asked["same_in_every_block"] = True
        units = sum(site.units for site in sites)
        low = max(1, sum(limit.low for limit in limits_of(sites, floor, ceiling).values()))
        # Sites that keep multiples round down by themselves, each from what it would keep.
        high = sum(site.available for site in sites)

        def plan_with(total: int) -> Plan:
            return allocator(keep=total / units, floor=floor, **asked)(sites, asking)

        best = _densest(account, plan_with, low, high)
        levers, ledger = levers_of(sites, floor, ceiling, same_in_every_block), Ledger(account, best)
        fill_(levers, ledger, by_score(sites, scores, levers, best) if asking.asked else by_share(best))
        return replace(ledger.plan, promised=account.promised(ledger.plan))

    return allocate


@dataclass
class _Asking:
    """Scores, and whether anybody asked for them."""

    scores: Callable[[], Iterator[Scores]]
    asked: bool = False

    def __call__(self) -> Iterator[Scores]:
        self.asked = True
        return self.scores()


def _densest(account: Account, plan_with: Callable[[int], Plan], low: int, high: int) -> Plan:
    """The plan of the largest total within the budgets, found by halving; raises `PlanError` where there is none."""
    best = plan_with(low)
    if not account.admits(best):
        low, high, best = _above_the_sparsest(account, plan_with, low, high)
    while low < high:
        middle = (low + high + 1) // 2
        plan = plan_with(middle)
        if account.admits(plan):
            low, best = middle, plan
        else:
            high = middle - 1
    return best


def _above_the_sparsest(account: Account, plan_with: Callable[[int], Plan], low: int, high: int) -> tuple[int, int, Plan]:
    """Of some totals the largest whose plan is within budgets that the sparsest plan is over, as costs may fall where a plan grows."""
    totals = sorted({low + (high - low) * place // _PROBES for place in range(_PROBES + 1)})
    plans = [plan_with(total) for total in totals]
    costs = [account.costs(plan) for plan in plans]
    fits = [place for place, cost in enumerate(costs) if account.meet(cost)]
    if not fits:
        raise PlanError(unreachable(account, costs))
    place = fits[-1]
    return totals[place], high if place + 1 == len(totals) else totals[place + 1] - 1, plans[place]


def unreachable(account: Account, costs: Sequence[Sequence[float]]) -> str:
    """Why no plan is within the budgets: of those tried, the sparsest first, none was."""
    parts, alone = [], []
    for budget, limit, values in zip(account.budgets, account.limits, zip(*costs, strict=True), strict=True):
        least, sparsest = min(values), values[0]
        if least <= limit:
            alone.append(told(budget))
            continue
        rises = (
            f" (not where least stays, which costs {sparsest:g}: this cost does not fall with every unit)"
            if least < sparsest
            else ""
        )
        parts.append(
            f"{budget.cost.name} can fall to {least:g} {budget.cost.unit} at the least{rises}, but the budget is {limit:g}"
        )
    if parts:
        return f"{'; '.join(parts)}: raise the budget, let more layers take part, or choose another pattern"
    return f"{' and '.join(alone)} contradict each other: each can be met by itself, but no plan meets them together; raise one of them"
