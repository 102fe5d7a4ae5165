"""Plans tried, each once: what came of them is kept in a folder, so that a search that was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from torch import nn
from typing_extensions import Unpack

from secateurs.allocate import plan_of
from secateurs.described import digest, shown
from secateurs.given import COST, COUNT, MODEL, PATH, PATTERN, PLANS, SOLVER, TASK, require, require_costs, require_values
from secateurs.patterns import Selection
from secateurs.progress import tell, track
from secateurs.prune import require_these_sites
from secateurs.ranks import count
from secateurs.search.bench import Bench, By, Measured, Setting, Then, Walk
from secateurs.search.folder import TrialFiles, key_of
from secateurs.search.pace import Pace
from secateurs.search.trial import Study, Trial
from secateurs.search.workers import Backend, Crew, crew_of, require_backend
from secateurs.types import Cost, KindError, NonFiniteError, Pattern, Plan, PlanError, SecateursError, Solver, Task


class How(TypedDict, total=False):
    """How plans are tried, the same in every search.

    - ``by``: what they are judged by: ``"metric"`` (the task's, on validation data), ``"loss"`` (the task's or the model's own, there
      too), or a function ``(model, task) → number``, which is better higher where the task says so of its metric
    - ``then``: a function ``(model, masks, task)`` that is called between pruning and judging: a short training, say
    - ``only``, ``skip``, ``walk``: as of `prune_`; with ``walk=in_order()`` each trial observes anew
    - ``seed``: of what a search draws, and of all random numbers in each trial, the same in each
    - ``backend``: where: ``"here"``, in ``"processes"`` of this machine, or on a cluster through ``"ray"``; ``workers``: how many at a
      time, by default as many as there are cores; ``threads``: of torch in each trial, by default as many as torch has here, and one
      elsewhere
    - ``checkpoint``: a folder with a file for each trial that is finished; the same call goes on behind them
    - ``show``: whether a bar, or lines, say how far it is
    """

    by: By
    then: Then | None
    only: Selection | None
    skip: Selection | None
    walk: Walk
    seed: int
    backend: Backend
    workers: int | None
    threads: int | None
    checkpoint: str | Path | None
    show: bool


def try_plans(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    plans: Iterable[Plan],
    task: Task,
    *,
    costs: Sequence[Cost] = (),
    **how: Unpack[How],
) -> Study:
    """Try plans: prune the model by each, measure, and put it back; give what came of all, in their order.

    The model is observed once, as it is, and what comes of a plan is what `prune_` makes of it, but that statistics of BatchNorms are left
    (``then=`` may call `recalibrate_`). Further arguments are those of `How`. With
    ``backend="processes"`` or ``"ray"`` model, calibration data and what was observed travel once, and only plans travel after that; a
    trial whose process dies is repeated, at most twice. The same plan is tried once. A trial in which anything raises, or in which no
    finite number is measured, is a failed one that says why, and the others go on; with ``checkpoint=`` the next call tries it again.

    Raises `SecateursError` where all fail, where something cannot go to other processes, or where a package is missing; `PlanError` for
    plans of other sites; `FileError` where the folder holds other trials; `TaskError` and others where the model as it is cannot be
    observed.

    >>> import torch
    >>> from secateurs import Element, TopK, find_sites, magnitude, nonzero_params, params, uniform
    >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 4)
    >>> plans = [uniform(keep=keep)(find_sites(model, Element()), lambda: iter([])) for keep in (0.25, 0.5)]
    >>> left = lambda model, task: nonzero_params(model)
    >>> study = try_plans(model, Element(), TopK(magnitude()), plans, Task(x), by=left, costs=[params])
    >>> [(trial.value, trial.costs) for trial in study.trials]
    [(25.0, {'params': 25.0}), (39.0, {'params': 39.0})]
    """
    with Trials("try_plans", model, pattern, solver, task, costs, **how) as trials:
        require("try_plans", "plans", plans, PLANS)
        wanted = [trials.checked(plan) for plan in plans]
        if not wanted:
            raise SecateursError("try_plans: there is not one plan to try")
        trials(wanted, bar="trying plans")
        return trials.study()


class Trials:
    """Plans are given, trials come back; each plan is tried once, and what came of it is kept. Use it as a context."""

    def __init__(
        self,
        who: str,
        model: nn.Module,
        pattern: Pattern,
        solver: Solver,
        task: Task,
        costs: Sequence[Cost] = (),
        **how: Unpack[How],
    ) -> None:
        checkpoint, self._show = how.get("checkpoint"), how.get("show", True)
        self.setting = _setting(who, model, pattern, solver, task, how)
        self.bench = Bench(self.setting)
        self._who = who
        self._prices: dict[str, Callable[[Plan | None], float]] = {}
        require_costs(who, "costs", costs)
        self.count_(*costs)
        self.whole = plan_of(self.bench.sites, {site.name: site.available for site in self.bench.sites})
        self._files = (
            None if checkpoint is None else TrialFiles(Path(checkpoint), self.about, self.whole, self.setting.higher_is_better)
        )
        self._known: dict[str, Trial] = {}
        self._earlier: dict[str, Trial] = {}
        if self._files is not None:
            self._files.begin()
            self._earlier = self._files.read()
        self._crew: Crew | None = None
        self._makes_crew = partial(crew_of, how.get("backend", "here"), self.bench, how.get("workers"))
        require_backend(how.get("backend", "here"))

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._crew is not None:
            self._crew.close()

    def __call__(self, plans: Sequence[Plan], bar: str = "") -> list[Trial]:
        """What came of plans, in their order; ``bar`` is what a bar, or lines, that say how far they are call it."""
        names = [self._begun(plan) for plan in plans]  # numbers are given in order, whatever is finished first
        open_ = {self._known[name].number: name for name in names if self._known[name].open}
        jobs = [(place, dict(self._known[name].plan)) for place, name in open_.items()]
        pace, show = Pace(len(jobs)), bool(bar) and self._show
        if jobs and self._crew is None:
            self._crew = self._makes_crew()  # not before: it may begin processes
        outcomes_of = self._crew(jobs) if self._crew is not None else []
        told = track(outcomes_of, bar, len(jobs), show=show, status=lambda: pace.last)
        with closing(told) as outcomes:
            for place, measured in outcomes:
                trial = self._finished(open_[place], measured)
                tell(f"{bar}: {pace(self.said(trial))}", show)
        return [self._known[name] for name in names]

    def count_(self, *costs: Cost) -> None:
        """Let trials tell these costs too."""
        for cost in costs:
            require(self._who, "a cost", cost, COST)
        for cost in costs:
            if cost.name not in self._prices:
                self._prices[cost.name] = cost.prepare(self.setting.model, self.setting.task.example)

    def know(self, trial: Trial) -> None:
        """Take what came of a plan elsewhere as what would come of it here; what failed is tried again where it is asked for."""
        if not trial.failed:
            self._earlier.setdefault(key_of(trial.plan), trial)

    def take(self, trial: Trial) -> None:
        """Take a trial of this search from before it was stopped."""
        self._known[key_of(trial.plan)] = trial

    def knows(self, plan: Plan) -> bool:
        """Whether a plan was tried."""
        return key_of(plan) in self._known

    @property
    def all(self) -> tuple[Trial, ...]:
        """All trials so far, in the order in which they were begun."""
        return tuple(self._known.values())

    @property
    def best(self) -> float | None:
        """The best value so far; ``None`` where there is none."""
        values = [trial.value for trial in self.all if trial.value is not None]
        return (max if self.setting.higher_is_better else min)(values, default=None)

    def study(self) -> Study:
        """All that was tried; raises `SecateursError` where nothing came of any."""
        trials = self.all
        found = Study(trials, self.setting.higher_is_better, self.setting.value_name)
        if trials and not found.done:
            told = "; ".join(f"{trial.name}: {trial.error}" for trial in trials[:3])
            more = f"; and {len(trials) - 3} more" if len(trials) > 3 else ""
            raise SecateursError(f"{self._who}: each of {len(trials)} trials failed: {told}{more}")
        return found

    def checked(self, plan: Plan) -> Plan:
        """A plan, which must be one of these sites; raises `PlanError` otherwise."""
        if not isinstance(plan, Plan):
            raise KindError(f"{self._who}: a plan is {plan!r}, but must be a Plan, for example that of planned(...)")
        if dict.fromkeys(plan) != dict.fromkeys(self.whole):
            raise PlanError(f"{self._who}: a plan names {', '.join(plan)}, but the sites are {', '.join(self.whole)}")
        require_these_sites(plan, self.bench.sites)
        for site in self.bench.sites:
            site.each_of(plan[site.name])
        return plan

    def said(self, trial: Trial) -> str:
        """What came of a trial, in words."""
        return f"{trial.name}: " + (
            f"failed: {trial.error}" if trial.value is None else f"{self.setting.value_name} {trial.value:.4g}"
        )

    def _begun(self, plan: Plan) -> str:
        """Give a plan its number, unless it has one; what the folder holds of it need not be done. Gives the key of its trial."""
        key = key_of(plan)
        if key not in self._known:
            costs = {name: self._cost(name, plan) for name in self._prices}
            trial = self._earlier.get(key, Trial(0, plan))
            self._known[key] = replace(trial, number=len(self._known), costs=costs)
        return key

    def _cost(self, name: str, plan: Plan) -> float:
        value = float(self._prices[name](plan))
        if not isfinite(value):
            raise NonFiniteError(
                f"{self._who}: {name} of a plan that keeps {sum(plan.values())} units is {value}, which cannot be compared: look at {name}"
            )
        return value

    def _finished(self, key: str, measured: Measured) -> Trial:
        value, seconds, error = measured
        done = replace(self._known[key], value=value, seconds=seconds, error=error)
        self._known[key] = done
        if self._files is not None:
            self._files.write(done)
        return done

    @cached_property
    def about(self) -> dict[str, str]:
        """To which trials a folder belongs. Batches are compared where they are a list; a loader may shuffle them."""
        setting, task = self.setting, self.setting.task
        data = {
            name: batches for name in ("calibration", "validation") if isinstance(batches := getattr(task, name), (list, tuple))
        }
        return {
            "model": digest(setting.model),
            "pattern": repr(setting.pattern),
            "solver": repr(setting.solver),
            "value": setting.value_name,
            "judge": digest((setting.by, setting.then, setting.walk, task.metric, task.loss, task.summary)),
            "data": digest(data),
            "seed": str(setting.seed),
            "layers": shown((setting.only, setting.skip)),
        }


def _setting(who: str, model: nn.Module, pattern: Pattern, solver: Solver, task: Task, how: How) -> Setting:
    """What all trials share; raises `KindError` and `SecateursError` where something is no such thing."""
    for name, value, kind in (
        ("model", model, MODEL),
        ("pattern", pattern, PATTERN),
        ("solver", solver, SOLVER),
        ("task", task, TASK),
    ):
        require(who, name, value, kind)
    require_values(who, model)
    given: dict[str, Any] = dict(how)
    require(who, "seed", given.get("seed", 0), COUNT)
    for name, kind in (("workers", COUNT), ("threads", COUNT), ("checkpoint", PATH)):
        if given.get(name) is not None:
            require(who, name, given[name], kind)
        if name in ("workers", "threads") and given.get(name) is not None and given[name] < 1:
            raise SecateursError(f"{who}: {name}={given[name]} must be at least 1")
    by, then = how.get("by", "metric"), how.get("then")
    if by not in ("metric", "loss") and not callable(by):
        raise SecateursError(f'{who}: by={by!r} is none of "metric" and "loss", and no function (model, task) → number')
    if then is not None and not callable(then):
        raise KindError(
            f"{who}: then is {then!r}, but must be a function (model, masks, task), for example one that trains a little"
        )
    if count() > 1:
        raise SecateursError(f"{who} is for one process, and here are {count()}: let the first search, and give all its plan")
    parts = {name: given[name] for name in ("by", "then", "only", "skip", "walk", "seed") if name in given}
    elsewhere = how.get("backend", "here") != "here"
    return Setting(model, pattern, solver, task, **parts, threads=how.get("threads") or (1 if elsewhere else None))
