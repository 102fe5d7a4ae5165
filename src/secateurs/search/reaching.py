"""As small, or as fast, as an accuracy allows: budgets are halved until one is found that still reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from secateurs.allocate import limits_of, plan_of, uniform, within_budget
from secateurs.files import bytes_
from secateurs.given import ALLOCATORS, COST, require
from secateurs.masks import Masks
from secateurs.progress import tell
from secateurs.recover import evaluate
from secateurs.run import latency_ms
from secateurs.run.clock.timing import torch_threads
from secateurs.search.bench import judged
from secateurs.search.trial import Study, Trial
from secateurs.search.trials import How, Trials
from secateurs.tried import taken_back
from secateurs.types import Allocator, Budget, Cost, KindError, Pattern, Plan, PlanError, SecateursError, Solver, Task

ForBudget = Callable[[Budget], Allocator]
"""From a budget to an allocator: `dynamic`, or ``lambda budget: within_budget(budget, erdos_renyi)``."""

_MOST = 30  # halvings; a precision that asks for more is finer than any budget


@dataclass(frozen=True)
class Reached:
    """The cheapest plan that was found to reach an accuracy, and what was tried on the way.

    - ``floor``: the value that had to be reached on the validation data; ``dense``: that of the model as it was; the plan's is the trial's
    - ``dense_cost``, ``cost``: what is bounded, as it was and as the plan promises
    - ``test``, ``dense_test``: the metric on the test data, looked at once; ``None`` where there is none
    """

    trial: Trial
    study: Study
    floor: float
    dense: float
    cost_name: str
    cost: float
    dense_cost: float
    test: float | None
    dense_test: float | None
    _masks: Masks = field(repr=False, compare=False)
    _state: Mapping[str, Tensor] = field(repr=False, compare=False)

    @property
    def plan(self) -> Plan:
        return self.trial.plan

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> Masks:
        """Make a model the one that was measured, pruned and trained as in its trial; gives the masks.

        Raises `SecateursError` where it is no copy of the model that was searched.
        """
        state, masks = model.state_dict(), self._masks.bind(model)
        for name, value in self._state.items():
            if name not in state or state[name].shape != value.shape:
                raise SecateursError(
                    f"Reached.apply_: {name} is not in this {type(model).__name__}, or of another shape: give the model that was searched, "
                    "as it was then"
                )
        for name, value in self._state.items():
            state[name].copy_(value)
        return masks

    def __str__(self) -> str:
        share = self.cost / self.dense_cost if self.dense_cost else 1.0
        test = "" if self.test is None else f", on test data {self.test:.4g} (dense {self.dense_test:.4g})"
        return (
            f"{self.cost_name} {self.cost:g} of {self.dense_cost:g} ({100 * share:.1f} %): {self.study.value_name} {self.trial.value:.4g} "
            f"on validation data (dense {self.dense:.4g}, asked {self.floor:.4g}){test}; {len(self.study.trials)} trials"
        )


def smallest(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    task: Task,
    *,
    within: float | None = None,
    reach: float | None = None,
    cost: Cost = bytes_,
    allocate: Callable[..., Allocator] = uniform,
    precision: float = 0.02,
    floor: int = 1,
    ceiling: float = 1.0,
    **how: Unpack[How],
) -> Reached:
    """The smallest model whose value is at most ``within`` worse than that of the model as it is, or reaches ``reach``.

    ``within=0.01`` of an accuracy is a point below dense. Budgets of the cost are tried, halving what is not known (in ratio) until it is
    known to the fraction ``precision``; of plans that reach the floor the cheapest is taken. ``allocate`` makes plans: a function of
    ``keep=`` such as `uniform` or `erdos_renyi`, or one of a budget such as `dynamic`. ``then=`` is the rest of the recipe: a training.
    All is judged on validation data; the test data is looked at once, at the end. The model stays as it is: ``reached.apply_(model)`` makes
    it what was measured, and gives the masks for `shrink_`. With several workers as many budgets are tried at once.

    No site keeps fewer than `floor` units, or loses more than `ceiling` of them. Further arguments are those of `How`. Raises
    `SecateursError` where not even the plan that keeps all reaches the floor, and what `try_plans` raises.

    >>> import torch
    >>> from secateurs import Channel, LeastSquares, TopK, magnitude, params
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 4)
    >>> _ = model[0].weight.data[8:].zero_(), model[0].bias.data[8:].zero_()  # half of its neurons do nothing
    >>> task = Task(x[:1], calibration=[(x, None)], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> found = smallest(model, Channel(), TopK(magnitude()), task, within=1e-6, by="loss", cost=params, show=False)
    >>> dict(found.plan), found.cost, found.dense_cost
    ({'0': 8}, 67.0, 131.0)
    """
    ask = _Asked("smallest", within, reach, cost, allocate, precision, floor, ceiling)
    return _reached(ask, model, pattern, solver, task, how)


def fastest(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    task: Task,
    *,
    within: float | None = None,
    reach: float | None = None,
    cost: Cost = latency_ms,
    allocate: Callable[..., Allocator] = uniform,
    precision: float = 0.02,
    floor: int = 1,
    ceiling: float = 1.0,
    **how: Unpack[How],
) -> Reached:
    """The fastest model whose value is at most ``within`` worse than that of the model as it is, or reaches ``reach``.

    As `smallest`, for milliseconds on this machine, predicted from measurements of its layers (`run.latency_ms`).
    """
    ask = _Asked("fastest", within, reach, cost, allocate, precision, floor, ceiling)
    return _reached(ask, model, pattern, solver, task, how)


@dataclass(frozen=True)
class _Asked:
    """What is asked for."""

    who: str
    within: float | None
    reach: float | None
    cost: Cost
    allocate: Callable[..., Allocator]
    precision: float
    least_units: int
    ceiling: float

    def __post_init__(self) -> None:
        require(self.who, "cost", self.cost, COST)
        if (self.within is None) == (self.reach is None):
            raise SecateursError(
                f"{self.who}: give either within= (how much worse than dense it may be) or reach= (the value itself)"
            )
        for name, value in (("within", self.within), ("reach", self.reach), ("precision", self.precision)):
            if value is not None and not (isinstance(value, (int, float)) and isfinite(value)):
                raise KindError(f"{self.who}: {name} is {value!r}, but must be a number, for example within=0.01")
        if not 0 < self.precision < 1:
            raise SecateursError(f"{self.who}: precision={self.precision} is not in (0, 1); 0.02 finds the budget to 2 %")
        if not callable(self.allocate) or isinstance(self.allocate, Plan):
            raise KindError(
                f"{self.who}: allocate is {self.allocate!r}, but must make allocators, of keep= or a budget: uniform, dynamic"
            )

    def allocator(self, budget: Budget) -> Allocator:
        """That for a budget."""
        if ALLOCATORS.holds(self.allocate):
            return within_budget(budget, self.allocate, self.least_units, self.ceiling)
        bounded: dict[str, Any] = {"floor": self.least_units} if self.least_units != 1 else {}
        return self.allocate(budget, **bounded, **({"ceiling": self.ceiling} if self.ceiling < 1 else {}))


def _reached(ask: _Asked, model: nn.Module, pattern: Pattern, solver: Solver, task: Task, how: How) -> Reached:
    with Trials(ask.who, model, pattern, solver, task, (), **how) as tried:
        dense = judged(tried.setting)
        floor = _floor(ask, dense, tried.setting.higher_is_better)
        price = ask.cost.prepare(model, task.example)
        ready = replace(ask.cost, prepare=lambda model, example: price)
        tried.count_(ready)
        if _keeps_all(tried.whole):  # that is the model as it is: there is nothing to recover from
            tried.know(Trial(0, tried.whole, dense))
        at_once = 1 if how.get("backend", "here") == "here" else how.get("workers") or 2
        best = _Halving(ask, tried, ready, floor, at_once, how.get("show", True)).run()
        masks, state, test = _again(tried, best)
        dense_test = None if test is None else evaluate(model, task, task.test, show=False)
        costs = (best.costs[ready.name], price(None))
        return Reached(best, tried.study(), floor, dense, ready.name, *costs, test, dense_test, masks, state)


def _floor(ask: _Asked, dense: float, higher_is_better: bool) -> float:
    if ask.reach is not None:
        return float(ask.reach)
    assert ask.within is not None
    return dense - ask.within if higher_is_better else dense + ask.within


class _Halving:
    """Budgets between one that does not reach the floor and one that does."""

    def __init__(self, ask: _Asked, tried: Trials, cost: Cost, floor: float, at_once: int, show: bool) -> None:
        self._ask, self._tried, self._cost, self._floor, self._at_once, self._show = ask, tried, cost, floor, at_once, show
        self._good: list[Trial] = []

    def run(self) -> Trial:
        sites, price = self._tried.bench.sites, self._cost.prepare(self._tried.setting.model, None)
        [whole] = self._tried([self._tried.whole])
        if not self._reaches(whole):
            raise SecateursError(self._out_of_reach(whole))
        limits = limits_of(sites, self._ask.least_units, self._ask.ceiling)
        low, high = price(plan_of(sites, {name: limit.low for name, limit in limits.items()})), whole.costs[self._cost.name]
        if not 0 < low <= high:
            raise PlanError(
                f"{self._ask.who}: {self._cost.name} is {low:g} {self._cost.unit} where the least stays and {high:g} where all does, so "
                "that less is not cheaper: choose another cost or pattern"
            )
        for _ in range(_MOST):
            if high <= low * (1 + self._ask.precision):
                break
            low, high = self._narrowed(low, high)
        return min(self._good, key=lambda trial: trial.costs[self._cost.name])

    def _narrowed(self, low: float, high: float) -> tuple[float, float]:
        """Try budgets between two limits; gives the two between which it is now."""
        parts = self._at_once + 1
        limits = [low * (high / low) ** (part / parts) for part in range(1, parts)]
        planned = [(limit, plan) for limit in limits if (plan := self._plan(limit)) is not None]
        before = len(self._tried.all)
        trials = self._tried([plan for _, plan in planned])
        for trial in self._tried.all[before:]:
            tell(f"{self._ask.who}: {self._cost.name} {trial.costs[self._cost.name]:g}, {self._tried.said(trial)}", self._show)
        reached = [(limit, trial) for (limit, _), trial in zip(planned, trials, strict=True) if self._reaches(trial)]
        if reached:
            limit, trial = reached[0]
            below = [each for each in limits if each < limit]
            return (below[-1] if below else low), max(min(limit, trial.costs[self._cost.name]), below[-1] if below else low)
        return limits[-1], high

    def _plan(self, limit: float) -> Plan | None:
        """The plan for a limit; nothing where the allocator finds none."""
        bench = self._tried.bench
        allocate = self._ask.allocator(Budget(self._cost, limit=limit))
        try:
            return self._tried.checked(allocate(bench.sites, lambda: bench.setting.solver.scores(bench.sites, bench.stats)))
        except PlanError as error:
            tell(f"{self._ask.who}: no plan within {self._cost.name} {limit:g}: {error}", self._show)
            return None

    def _reaches(self, trial: Trial) -> bool:
        if trial.value is None:
            return False
        good = trial.value >= self._floor if self._tried.setting.higher_is_better else trial.value <= self._floor
        if good:
            self._good.append(trial)
        return good

    def _out_of_reach(self, whole: Trial) -> str:
        setting = self._tried.setting
        what = (
            f"fails ({whole.error})"
            if whole.value is None
            else f"has {setting.value_name} {whole.value:.4g} on the validation data"
        )
        side = "at least" if setting.higher_is_better else "at most"
        return (
            f"{self._ask.who}: even the plan that keeps everything {what}, but {side} {self._floor:.4g} is asked for: ask for less, or "
            "train the model further"
        )


def _keeps_all(plan: Plan) -> bool:
    return all(share.kept == share.units for share in plan.shares.values())


def _again(tried: Trials, best: Trial) -> tuple[Masks, dict[str, Tensor], float | None]:
    """The model of a trial once more: its masks, its state, and what it measures on the test data."""
    bench, setting = tried.bench, tried.setting
    with taken_back(setting.model), torch_threads(setting.threads):
        masks = bench.made_(best.plan, bare=_keeps_all(best.plan))
        state = {name: value.detach().clone() for name, value in setting.model.state_dict().items() if isinstance(value, Tensor)}
        has_test = setting.task.test is not None and setting.task.metric is not None
        return masks, state, evaluate(setting.model, setting.task, setting.task.test, show=False) if has_test else None
