"""Plans drawn at random: what every other search must beat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import nn
from typing_extensions import Unpack

from secateurs.given import COUNT, require
from secateurs.search.folder import key_of
from secateurs.search.trial import Study
from secateurs.search.trials import How, Trials
from secateurs.search.wishes import Wished
from secateurs.types import Budget, Cost, Pattern, Plan, SecateursError, Solver, Task

_DRAWS = 20  # so many for each plan that is wanted, before a search says that there are no others


def random_search(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    budget: Budget | Sequence[Budget],
    task: Task,
    *,
    trials: int = 100,
    costs: Sequence[Cost] = (),
    floor: int = 1,
    ceiling: float = 1.0,
    **how: Unpack[How],
) -> Study:
    """Try plans at random that use up a budget, or several: each site draws what it would like to keep, and all are scaled
    together. So many different plans are tried, fewer where there are no more.

    ``costs`` are told beside those of the budgets. No site keeps fewer than `floor` units, or loses more than the fraction `ceiling` of
    them. Further arguments are those of `How`, and errors those of `try_plans`; `PlanError` where no plan meets the budgets.

    >>> import torch
    >>> from secateurs import Channel, LeastSquares, TopK, magnitude, macs
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 4)
    >>> task = Task(x[:1], calibration=[(x, None)], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> solver = LeastSquares(TopK(magnitude()))
    >>> study = random_search(model, Channel(), solver, Budget(macs, keep=0.5), task, trials=8, by="loss", show=False)
    >>> len(study.trials), all(trial.costs["macs"] <= 0.5 * macs(model, x[:1]) for trial in study.trials)
    (8, True)
    """
    require_trials("random_search", trials)
    with Trials("random_search", model, pattern, solver, task, (), **how) as tried:
        wished = Wished("random_search", tried.bench.sites, budget, floor, ceiling)
        tried.count_(*wished.costs, *costs)
        tried(_drawn(wished, trials, random.Random(how.get("seed", 0))), bar="searching at random")
        return tried.study()


def _drawn(wished: Wished, many: int, chance: random.Random) -> list[Plan]:
    """So many different plans, or fewer where it seems that there are no more."""
    found: dict[str, Plan] = {}
    for _ in range(_DRAWS * many):
        plan = wished.plan(wished.drawn(chance))
        found.setdefault(key_of(plan), plan)
        if len(found) == many:
            break
    return list(found.values())


def require_trials(who: str, trials: object) -> None:
    """Raise where a search is to try no number of plans."""
    require(who, "trials", trials, COUNT)
    if trials < 1:  # type: ignore[operator]
        raise SecateursError(f"{who}: trials={trials} must be at least 1")
