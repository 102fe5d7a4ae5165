"""AMC: an agent that goes through the network layer by layer and learns how much each should keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from typing_extensions import Unpack

from secateurs.files import container, nested_state
from secateurs.given import COST, COUNT, require
from secateurs.progress import tell, track
from secateurs.random_state import random_state, restore_random_state
from secateurs.search.bench import seed_
from secateurs.search.course import Course
from secateurs.search.extra import extra
from secateurs.search.pace import Pace
from secateurs.search.trial import Study, Trial
from secateurs.search.trials import How, Trials
from secateurs.search.wishes import Wished
from secateurs.types import Budget, Cost, FileError, Pattern, Plan, SecateursError, Solver, Task

if TYPE_CHECKING:
    from secateurs.search.ddpg import Agent, Step

FILE = "amc.safetensors"


def amc(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    budget: Budget | Sequence[Budget] | None,
    task: Task,
    *,
    episodes: int = 400,
    warm_up: int = 100,
    per: Cost | None = None,
    use_up: bool = True,
    floor: int = 1,
    ceiling: float = 1.0,
    **how: Unpack[How],
) -> Study:
    """Search how much each site keeps by reinforcement learning (AMC, 1802.03494), within budgets of any cost.

    In each episode an agent goes through the sites in the order of the pass, sees eleven features of each (`FEATURES`), and says which
    fraction stays, bounded so that the budgets can still be met. The plan is tried after the solver, without fine-tuning, and the agent, a
    DDPG (two hidden layers of 300, learning rates 1e-4 and 1e-3, batches of 64 of the last 2,000 steps, τ = 0.01, no discount, a moving
    average of rewards subtracted), learns from the reward: minus the error (1 - value, where higher is better). With ``per=``, a cost,
    the reward is minus error × log(cost), which trades accuracy for cost by itself: then ``budget`` may be ``None``. ``warm_up`` episodes
    explore with noise of a constant σ = 0.5; after them it falls by 5 % with each.

    Unlike the paper's, the agent decides for sites (all that is coupled at once), and what an episode leaves of the budgets is used up in
    proportion (``use_up=False``: not). Beside that, its actor ends in a tanh, whose range is that of the actions; inner layers have ReLU.
    With ``checkpoint=`` agent and buffer are kept after each episode, and the same call goes on to the same result. The episodes of the
    warm-up, which learn nothing, are tried together where there are several workers. Trials that fail teach nothing.

    Needs the extra ``search``. Further arguments are those of `How`, and errors those of `try_plans`; `PlanError` where no plan meets the
    budgets, `FileError` where the checkpoint is of another search.

    >>> import torch
    >>> from secateurs import Channel, LeastSquares, TopK, magnitude, macs
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 4)
    >>> task = Task(x[:1], calibration=[(x, None)], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> solver = LeastSquares(TopK(magnitude()))
    >>> study = amc(model, Channel(), solver, Budget(macs, keep=0.5), task, episodes=6, warm_up=3, by="loss", show=False)
    >>> all(trial.costs["macs"] <= 0.5 * macs(model, x[:1]) for trial in study.trials)
    True
    """
    _require(episodes, warm_up, budget, per)
    extra("gymnasium", "search", "amc learns")
    extra("stable_baselines3", "search", "amc learns")
    with Trials("amc", model, pattern, solver, task, (), **how) as tried, _own_random_numbers():
        wished = Wished("amc", tried.bench.sites, budget, floor, ceiling)
        tried.count_(*wished.costs, *(() if per is None else (per,)))
        said = (
            f"amc, warm_up={warm_up}, per={per and per.name}, use_up={use_up}, {[b.limit for b in wished.budgets]}, {wished.least}"
        )
        folder = how.get("checkpoint")
        file = None if folder is None else _File(Path(folder) / FILE, {**tried.about, "search": said})
        learning = _Learning(tried, wished, episodes, warm_up, per, use_up, how.get("seed", 0), file)
        learning.run(how.get("show", True))
        return tried.study()


def _require(episodes: object, warm_up: object, budget: object, per: object) -> None:
    for name, value in (("episodes", episodes), ("warm_up", warm_up)):
        require("amc", name, value, COUNT)
        if value < 1:  # type: ignore[operator]
            raise SecateursError(f"amc: {name}={value} must be at least 1")
    if per is not None:
        require("amc", "per", per, COST)
    if budget is None and per is None:
        raise SecateursError(
            "amc: without a budget the best plan removes nothing: give a Budget, or per=macs to trade accuracy for them"
        )


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


class _Learning:
    """Episodes one after the other, and what the agent makes of them."""

    def __init__(
        self,
        tried: Trials,
        wished: Wished,
        episodes: int,
        warm_up: int,
        per: Cost | None,
        use_up: bool,
        seed: int,
        file: _File | None,
    ) -> None:
        from secateurs.search.ddpg import Agent
        from secateurs.search.environment import Pruning

        self._tried, self._wished, self._per, self._seed, self._file = tried, wished, per, seed, file
        self._episodes, self._warm_up, self._use_up = episodes, min(warm_up, episodes), use_up and bool(wished.budgets)
        self._course = Course(tried.bench.sites, wished)
        seed_(seed)
        self._agent: Agent = Agent(Pruning(self._course, lambda plan: 0.0), warm_up, seed)

    def run(self, show: bool) -> None:
        if self._file is not None:
            self._file.restore(self._agent, self._tried)
        done = self._agent.episodes
        pace = Pace(self._episodes, done)
        for number in track(range(done, self._episodes), "amc learns", self._episodes - done, show=show, status=lambda: pace.last):
            trial = self._episode(number)
            best = self._tried.best
            tell(f"amc: {pace(self._tried.said(trial) + ('' if best is None else f', best {best:.4g}'))}", show)

    def _episode(self, number: int) -> Trial:
        steps, plan = self._walked(number)
        if number < self._warm_up and not self._tried.knows(plan):  # it learns nothing yet, so what comes is known already
            self._tried([plan, *(self._walked(later)[1] for later in range(number + 1, self._warm_up))])
        [trial] = self._tried([plan])
        if trial.value is None:
            self._agent.skip()
        else:
            self._agent.learn(steps, self._reward(trial))
        if self._file is not None:
            self._file.write(self._agent, self._tried)
        return trial

    def _walked(self, number: int) -> tuple[list[Step], Plan]:
        """An episode: its steps, and the plan to which they lead. Its number alone decides what is drawn."""
        from secateurs.search.ddpg import Step

        seed_(self._seed * 1_000_003 + number)
        steps = list[Step]()
        self._course.begin()
        while not self._course.done:
            state = self._course.state
            keep = self._course.step(self._agent.act(state))
            steps.append(Step(state, keep, self._course.state))
        plan = self._course.plan
        return steps, self._wished.plan(self._wished.of(plan)) if self._use_up else plan

    def _reward(self, trial: Trial) -> float:
        """Minus the error, or minus error × log(cost)."""
        assert trial.value is not None
        higher = self._tried.setting.higher_is_better
        error = 1 - trial.value if higher else trial.value
        if self._per is None:
            return -error
        cost = trial.costs[self._per.name]
        if error < 0 or cost <= 1:
            raise SecateursError(
                f"amc: {trial.name} has an error of {error:g} at {cost:g} {self._per.unit}, but error × log({self._per.name}) needs an "
                "error of at least 0 and a cost above 1: judge by a metric in [0, 1], or leave per= out"
            )
        return -error * log(cost)


@dataclass(frozen=True)
class _File:
    """Agent, buffer and trials as they were after an episode."""

    path: Path
    about: Mapping[str, str]

    def write(self, agent: Agent, tried: Trials) -> None:
        trials = [trial.to_json() for trial in tried.all if not trial.open]
        tensors, document = nested_state.pack({"agent": agent.saved(), "trials": trials})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        container.write(self.path, tensors, {"amc": document, "about": dict(self.about)})

    def restore(self, agent: Agent, tried: Trials) -> None:
        """Go on where the file says; raises `FileError` where it is damaged or of another search."""
        if not self.path.exists():
            return
        tensors, document = container.read(self.path)
        about = document.get("about")
        if not isinstance(about, dict) or "amc" not in document:
            raise FileError(f"{self.path} is no search of amc: name another folder with checkpoint=")
        for name, wanted in self.about.items():
            if about.get(name) != wanted:
                raise FileError(
                    f"{self.path} is of another search: its {name} was {str(about.get(name))[:120]} and is {wanted[:120]}; name another "
                    "folder with checkpoint=, or remove this one"
                )
        state = nested_state.unpack(tensors, document["amc"])
        try:
            agent.restore(state["agent"])
            for text in state["trials"]:
                tried.take(Trial.from_json(text, tried.whole))
        except (KeyError, TypeError, FileError, json.JSONDecodeError) as error:
            raise FileError(
                f"{self.path} cannot be gone on from: {error}; remove it, and the trials in the folder are still known"
            ) from error
