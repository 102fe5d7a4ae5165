"""Searches that learn from what was tried: optuna's samplers propose what each site would like to keep."""

from __future__ import annotations

import json
import random
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from secateurs.given import ALLOCATOR, COUNT, PATH, require, require_costs
from secateurs.progress import tell, track
from secateurs.prune import planned
from secateurs.search.at_random import require_trials
from secateurs.search.extra import extra
from secateurs.search.owners import Owners
from secateurs.search.pace import Pace
from secateurs.search.trial import Study, Trial
from secateurs.search.trials import How, Trials
from secateurs.search.wishes import Wished, Wishes
from secateurs.types import Allocator, Budget, Cost, FileError, Pattern, SecateursError, Solver, Task

MakesSampler = Callable[[Any, int], Any]
"""From optuna and a seed to one of its samplers."""


def tpe(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    budget: Budget | Sequence[Budget] | None,
    task: Task,
    *,
    trials: int = 100,
    against: Sequence[Cost] = (),
    start: Allocator | None = None,
    warm_up: int = 10,
    floor: int = 1,
    ceiling: float = 1.0,
    storage: str | Path | None = None,
    name: str = "secateurs",
    at_once: int = 1,
    **how: Unpack[How],
) -> Study:
    """Search how much each site keeps by a tree of Parzen estimators (Bergstra 2011; optuna's, of all sites together), within budgets.

    After ``warm_up`` plans at random, each is drawn where those that did well lie, and is scaled to use up the budgets. ``start`` is tried
    first. ``against`` are costs that are to be low beside a good value: ``study.front(...)`` is then what is looked for, and without a
    ``budget`` nothing is scaled. With ``storage=``, a file, the study is a database of SQLite: the same call goes on where it was
    stopped, to the same result; several processes may work on one study, each told the same; ``optuna-dashboard sqlite:///FILE`` shows
    it. ``trials`` are those of the study in all. ``at_once`` plans are proposed together, for as many workers.

    Needs the extra ``search``. No site keeps fewer than `floor` units, or loses more than `ceiling` of them. Further arguments are those
    of `How`, and errors those of `try_plans`; `PlanError` where no plan meets the budgets, `FileError` where the storage holds another
    study.

    >>> import torch
    >>> from secateurs import Channel, LeastSquares, TopK, magnitude, macs
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 4)
    >>> task = Task(x[:1], calibration=[(x, None)], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> solver = LeastSquares(TopK(magnitude()))
    >>> study = tpe(model, Channel(), solver, Budget(macs, keep=0.5), task, trials=6, warm_up=3, by="loss", show=False)
    >>> study.best.value == min(trial.value for trial in study.trials)
    True
    """
    require("tpe", "warm_up", warm_up, COUNT)

    def sampler(optuna: Any, seed: int) -> Any:
        return optuna.samplers.TPESampler(n_startup_trials=warm_up, multivariate=True, constant_liar=True, seed=seed)

    ask = _Asked("tpe", sampler, f"tpe, warm_up={warm_up}", trials, against, start, storage, name, at_once)
    return _searched(ask, model, pattern, solver, budget, task, floor, ceiling, how)


def nsga2(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    budget: Budget | Sequence[Budget] | None,
    task: Task,
    *,
    trials: int = 200,
    against: Sequence[Cost] = (),
    start: Allocator | None = None,
    population: int = 20,
    floor: int = 1,
    ceiling: float = 1.0,
    storage: str | Path | None = None,
    name: str = "secateurs",
    at_once: int = 1,
    **how: Unpack[How],
) -> Study:
    """Search how much each site keeps by evolution (NSGA-II, Deb 2002; optuna's), towards the front of value against costs.

    Each generation has ``population`` plans. With ``against=[macs]`` and no budget it looks for the best value at every number of MACs;
    within a budget and without ``against`` for the best value alone. All else is as of `tpe`.

    >>> import torch
    >>> from secateurs import Channel, LeastSquares, TopK, magnitude, macs
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 4)
    >>> task = Task(x[:1], calibration=[(x, None)], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> study = nsga2(
    ...     model, Channel(), LeastSquares(TopK(magnitude())), None, task, against=[macs], trials=8, population=4, by="loss", show=False
    ... )
    >>> front = study.front("macs")
    >>> all(one.value > other.value for one, other in zip(front, front[1:]))
    True
    """
    require("nsga2", "population", population, COUNT)
    if population < 2:
        raise SecateursError(f"nsga2: population={population} must be at least 2, or nothing can be crossed")

    def sampler(optuna: Any, seed: int) -> Any:
        return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)

    ask = _Asked("nsga2", sampler, f"nsga2, population={population}", trials, against, start, storage, name, at_once)
    return _searched(ask, model, pattern, solver, budget, task, floor, ceiling, how)


@dataclass(frozen=True)
class _Asked:
    """What a search by samplers is asked for."""

    who: str
    sampler: MakesSampler
    said: str
    trials: int
    against: Sequence[Cost]
    start: Allocator | None
    storage: str | Path | None
    name: str
    at_once: int

    def __post_init__(self) -> None:
        require_trials(self.who, self.trials)
        require(self.who, "at_once", self.at_once, COUNT)
        require_costs(self.who, "against", self.against)
        if self.at_once < 1:
            raise SecateursError(f"{self.who}: at_once={self.at_once} must be at least 1")
        for name, value, kind in (("start", self.start, ALLOCATOR), ("storage", self.storage, PATH)):
            if value is not None:
                require(self.who, name, value, kind)


def _searched(
    ask: _Asked,
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    budget: Budget | Sequence[Budget] | None,
    task: Task,
    floor: int,
    ceiling: float,
    how: How,
) -> Study:
    optuna = extra("optuna", "search", f"{ask.who} searches")
    if budget is None and not ask.against:
        raise SecateursError(
            f"{ask.who}: without a budget, and with no costs against=, the best plan removes nothing: give a Budget, or against=[macs]"
        )
    with Trials(ask.who, model, pattern, solver, task, (), **how) as tried, ExitStack() as stack:
        wished = Wished(ask.who, tried.bench.sites, budget, floor, ceiling)
        tried.count_(*wished.costs, *ask.against)
        first = None
        if ask.start is not None:
            chosen: dict[str, Any] = {name: how[name] for name in ("only", "skip") if name in how}
            first = wished.of(planned(model, pattern, solver, ask.start, task, **chosen))
        stack.enter_context(_quiet(optuna))
        return _Search(ask, optuna, tried, wished, first, how.get("seed", 0), how.get("show", True), stack).run()


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without optuna's own lines: progress is told here; and without its warning that what is asked for is new."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


class _Search:
    """One process's work on a study."""

    def __init__(
        self,
        ask: _Asked,
        optuna: Any,
        tried: Trials,
        wished: Wished,
        first: Wishes | None,
        seed: int,
        show: bool,
        stack: ExitStack,
    ) -> None:
        self._ask, self._optuna, self._tried, self._wished, self._first = ask, optuna, tried, wished, first
        self._seed, self._show = seed, show
        self._owner: Owners | None = None
        storage = None
        if ask.storage is not None:
            path = Path(ask.storage)
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            self._owner = stack.enter_context(Owners(path.with_name(path.name + ".owners")))
            storage = _storage(optuna, path)
            stack.callback(storage.engine.dispose)
        value = "maximize" if tried.setting.higher_is_better else "minimize"
        self._study = optuna.create_study(
            study_name=ask.name, storage=storage, load_if_exists=True, directions=[value, *("minimize" for _ in ask.against)]
        )
        self._begin()

    def _begin(self) -> None:
        """Write down what the study is of, or hold it against what is there; what it knows need not be tried."""
        ask, tried = self._ask, self._tried
        limits = ", ".join(f"{budget.cost.name} {budget.limit:g}" for budget in self._wished.budgets)
        about = {
            **tried.about,
            "search": f"{ask.said}, seed={self._seed}, at_once={ask.at_once}",
            "budget": f"{limits}, least {self._wished.least}",
            "against": ", ".join(cost.name for cost in ask.against),
        }
        known = self._study.user_attrs.get("about")
        if known is None:
            self._study.set_user_attr("about", about)
            self._study.set_metric_names([tried.setting.value_name, *(cost.name for cost in ask.against)])
        elif known != about:
            name = next(name for name in about if known.get(name) != about[name])
            raise FileError(
                f"{ask.storage} holds another study {ask.name!r}: its {name} was {str(known.get(name))[:80]} and is {about[name][:80]}; "
                "give the study another name=, or another storage="
            )
        for found in self._finished():
            tried.know(found)

    def run(self) -> Study:
        pace = Pace(self._ask.trials, self._count())
        bar = track(iter(self._batches()), f"{self._ask.who} searches", self._ask.trials, show=self._show, status=lambda: pace.last)
        for trial in bar:
            best = min(self._finished(), key=self._study_of([]).badness, default=None)
            said = self._tried.said(trial) + ("" if best is None or best.value is None else f", best {best.value:.4g}")
            tell(f"{self._ask.who}: {pace(said)}", self._show)
        found = self._study_of(self._finished())
        if not found.done:
            return self._tried.study()  # which says why
        return found

    def _study_of(self, trials: Sequence[Trial]) -> Study:
        return Study(tuple(trials), self._tried.setting.higher_is_better, self._tried.setting.value_name)

    def _batches(self) -> Iterator[Trial]:
        """Trials as they are finished, until the study has as many as were asked for."""
        while True:
            batch = self._left_behind()
            while self._count() < self._ask.trials and (not batch or (batch[-1].number + 1) % self._ask.at_once):
                batch.append(self._asked())
            if not batch:
                return
            plans = [self._wished.plan(self._wishes(each)) for each in batch]
            for each, trial in zip(batch, self._tried(plans), strict=True):
                numbered = replace(trial, number=each.number)
                self._told(each, numbered)
                yield numbered

    def _count(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _asked(self) -> Any:
        """A new trial of the study; its number alone decides what is drawn, so that a search that was stopped goes on as it would have."""
        number = self._count()
        self._study.sampler = self._sampler(number)
        if number == 0 and self._first is not None:
            self._study.enqueue_trial({name: self._clipped(name, value) for name, value in self._first.items()})
        trial = self._study.ask()
        if self._owner is not None:
            trial.set_user_attr("owner", self._owner.name)
        self._wishes(trial)
        return trial

    def _sampler(self, number: int) -> Any:
        return self._ask.sampler(self._optuna, random.Random(f"{self._seed}/{number}").randrange(2**32))

    def _wishes(self, trial: Any) -> dict[str, float]:
        """What the sites would like to keep in a trial: what the study knows of it, and else what the sampler draws."""
        return {name: trial.suggest_float(name, self._wished.least[name], 1.0) for name in self._wished.least}

    def _clipped(self, name: str, value: float) -> float:
        return min(max(value, self._wished.least[name]), 1.0)

    def _left_behind(self) -> list[Any]:
        """Trials that processes had begun which are there no more: they are done now, with the same wishes."""
        if self._owner is None:
            return []
        running, taken = self._optuna.trial.TrialState.RUNNING, []
        for known in self._study.get_trials(deepcopy=False, states=(running,)):
            with self._owner.taken_over(known.user_attrs.get("owner", "nobody")) as gone:
                [now] = [each for each in self._study.get_trials(deepcopy=False) if each.number == known.number]
                if gone and now.state == running and now.user_attrs.get("owner") == known.user_attrs.get("owner"):
                    self._study.sampler = self._sampler(known.number)
                    trial = self._optuna.trial.Trial(self._study, known._trial_id)
                    trial.set_user_attr("owner", self._owner.name)
                    taken.append(trial)
        return taken

    def _told(self, asked: Any, trial: Trial) -> None:
        """Tell the study what came of a trial, and keep with it all that makes it a `Trial` again."""
        for name, value in (("plan", json.loads(trial.to_json())), *trial.costs.items()):
            asked.set_user_attr(name, value)
        if trial.value is None:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, [trial.value, *(trial.costs[cost.name] for cost in self._ask.against)])

    def _finished(self) -> list[Trial]:
        """What the study knows, each by its number there."""
        states = self._optuna.trial.TrialState
        known = self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL))
        return [
            replace(Trial.from_json(json.dumps(each.user_attrs["plan"]), self._tried.whole), number=each.number)
            for each in known
            if "plan" in each.user_attrs
        ]


def _storage(optuna: Any, path: Path) -> Any:
    """The database in a file; raises `FileError` where it is none."""
    # Versions of SQLAlchemy read what a name in an address is quoted with in different ways: the file is opened by its own name.
    opened = partial(sqlite3.connect, str(path.absolute()), timeout=60, check_same_thread=False)
    try:
        return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": opened})
    except Exception as error:  # whatever SQLAlchemy's driver raises
        raise FileError(
            f"{path} is no study of optuna's ({type(error).__name__}: {str(error).splitlines()[0]}): name another file"
        ) from error
