"""One model on which plans are tried, one after the other: what is needed for it, made once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from secateurs.allocate import plan_of
from secateurs.batch import loss_of
from secateurs.described import digest, shown
from secateurs.evidence import at_once, observe
from secateurs.masks import Masks
from secateurs.nested import tensors_in
from secateurs.patterns import Selection, find_sites
from secateurs.prune import prune_, prune_observed_
from secateurs.recover import evaluate
from secateurs.run.clock.timing import torch_threads
from secateurs.tried import taken_back
from secateurs.types import NonFiniteError, Pattern, Plan, Sites, Solver, Stats, Task, TaskError

By = Literal["metric", "loss"] | Callable[[nn.Module, Task], float]
"""What plans are judged by: the task's metric or loss, or a function of one's own."""

Then = Callable[[nn.Module, Masks, Task], object]
"""What is done to a model after it was pruned and before it is judged, such as a short training."""

Walk = Callable[[Sites], Sequence[Sites]]


class Measured(NamedTuple):
    """What came of a plan: a value, or an error that says why there is none."""

    value: float | None
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """What all trials of a search share; it goes to other processes and machines, once."""

    model: nn.Module
    pattern: Pattern
    solver: Solver
    task: Task
    by: By = "metric"
    then: Then | None = None
    only: Selection | None = None
    skip: Selection | None = None
    walk: Walk = at_once
    seed: int = 0
    threads: int | None = None

    @property
    def higher_is_better(self) -> bool:
        """Of the metric, and of a function of one's own, what the task says."""
        return self.by != "loss" and self.task.higher_is_better

    @property
    def value_name(self) -> str:
        """What plans are judged by, in a word."""
        if self.by == "metric":
            return self.task.metric_name
        return "loss" if self.by == "loss" else getattr(self.by, "__name__", "value")


class Bench:
    """A model, its sites, and what was observed of it: so that a plan costs its solution and its measurement, and nothing else.

    ``stats`` are those that another process observed already. Plans are tried under the same random numbers, those of the setting's
    seed, and the model is afterwards as it was.
    """

    def __init__(self, setting: Setting, stats: Stats | None = None) -> None:
        self.setting = setting
        self._observed = stats

    @cached_property
    def sites(self) -> Sites:
        """The sites of the model."""
        setting = self.setting
        return find_sites(setting.model, setting.pattern, setting.task.example, only=setting.only, skip=setting.skip)

    @property
    def stats(self) -> Stats:
        """What the solver needs of the model as it is, observed once; nothing where sites are observed one after the other."""
        if self._observed is None:
            setting = self.setting
            self._observed = _observed_once(setting, self.sites) if setting.walk is at_once else {}
        return self._observed

    def __call__(self, counts: Mapping[str, int]) -> Measured:
        """What a plan comes to that keeps so many units; an error of anybody's code becomes one that is told."""
        self.stats, self.sites  # noqa: B018 (made before the clock runs, and once)
        begun = time.perf_counter()
        try:
            value = self.judged(plan_of(self.sites, dict(counts)))
        except Exception as error:  # whatever a task, a criterion or a function of somebody's own raises: other trials go on
            first = (str(error).strip().splitlines() or [""])[0]
            return Measured(None, time.perf_counter() - begun, f"{type(error).__name__}: {first}")
        return Measured(value, time.perf_counter() - begun)

    def judged(self, plan: Plan) -> float:
        """The value of the model that a plan leaves; raises what pruning and measuring raise."""
        with taken_back(self.setting.model), torch_threads(self.setting.threads):
            self.made_(plan)
            return judged(self.setting)

    def made_(self, plan: Plan, bare: bool = False) -> Masks:
        """Make the model in place what a plan leaves of it and, unless ``bare``, do what is done ``then``, by the seed's random numbers."""
        setting = self.setting
        seed_(setting.seed)
        masks = self._pruned_(plan)
        if setting.then is not None and not bare:
            setting.then(setting.model, masks, setting.task)
        return masks

    def _pruned_(self, plan: Plan) -> Masks:
        setting = self.setting
        if setting.walk is at_once:
            return prune_observed_(setting.model, self.sites, plan, setting.solver, self.stats)
        chosen: dict[str, Any] = {"only": setting.only, "skip": setting.skip, "walk": setting.walk, "recalibrate": False}
        return prune_(setting.model, setting.pattern, setting.solver, plan, setting.task, **chosen)


_MOST = 1 << 30  # bytes of what was observed of a model that are kept for the next search on it

_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Stats]] = WeakKeyDictionary()
"""What the last search observed of a model, for as long as that lives."""


def _observed_once(setting: Setting, sites: Sites) -> Stats:
    """What the solver needs of a model; where the last search on it, as it is now, asked for the same of the same batches, it is known."""
    task = setting.task
    batches = task.calibration if task.calibration is not None else task.train
    if not isinstance(batches, (list, tuple)):  # a loader may give others each time
        return observe(setting.model, sites, setting.solver.needs, task)
    parts = (setting.model, repr(setting.pattern), shown((setting.only, setting.skip)), batches, task.loss, task.unpack)
    asked = (digest(parts), *setting.solver.needs)
    known = _known.get(setting.model)
    if known is not None and known[0] == asked:
        return known[1]
    stats = observe(setting.model, sites, setting.solver.needs, task)
    if sum(tensor.nbytes for tensor in tensors_in([list(each.values()) for each in stats.values()])) <= _MOST:
        _known[setting.model] = (asked, stats)
    return stats


def judged(setting: Setting) -> float:
    """What the model as it is now measures.

    Raises `TaskError` where there is nothing to measure by, `NonFiniteError` where what comes of it is no finite number.
    """
    model, task = setting.model, setting.task
    if setting.by == "metric":
        value = evaluate(model, task, _batches(task, "metric"), show=False)
    elif setting.by == "loss":
        scored = replace(task, metric=lambda output, target: loss_of(task, output, target), summary=None)
        value = evaluate(model, scored, _batches(task, "loss"), show=False)
    else:
        value = float(setting.by(model, task))
    if not isfinite(value):
        raise NonFiniteError(f"the {setting.value_name} is {value}, which cannot be compared")
    return value


def _batches(task: Task, what: str) -> Any:
    """What plans are chosen on: the validation data."""
    if task.validation is None:
        raise TaskError(
            f"there is nothing to choose plans by: give Task(validation=...) with the batches on which the {what} is measured"
        )
    return task.validation


def seed_(seed: int) -> None:
    """Random numbers from a seed, of all generators that training may draw from."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)
