"""One job: one recipe, one fraction kept, one seed; measured before the cut, after it, and after training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateurs.comparing.baselines import Baseline
from secateurs.comparing.comparison import Outcome
from secateurs.comparing.peak import peak_memory
from secateurs.comparing.recipe import Pruning, Recipe
from secateurs.costs import macs, nonzero_macs, nonzero_params, params
from secateurs.described import digest, shown
from secateurs.given import MASKS, MODEL, TASK, require
from secateurs.masks import Masks
from secateurs.random_state import random_state, restore_random_state
from secateurs.recover import evaluate, per_step, train_
from secateurs.types import SecateursError, Task, TaskError

MakesOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all recipes share: the model or what makes it, the task or what makes it of a seed, the optimizer, the threads."""

    model: nn.Module | Callable[[], nn.Module]
    task: Task | Callable[[int], Task]
    optimizer: MakesOptimizer
    threads: int

    def model_of(self, seed: int) -> nn.Module:
        """A model of its own, from torch's random numbers of the seed."""
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model)
        torch.manual_seed(seed)
        made = self.model()
        require("compare", "what model() returned", made, MODEL)
        return made

    def task_of(self, seed: int) -> Task:
        """The task, with the split and the calibration batches of the seed where it is made of one."""
        if isinstance(self.task, Task):
            return self.task
        made = self.task(seed)
        require("compare", "what task(seed) returned", made, TASK)
        return made


@dataclass(frozen=True)
class Job:
    """A recipe at one fraction kept with one seed."""

    recipe: Recipe
    keep: float
    seed: int

    @property
    def name(self) -> str:
        return self.blank().name

    def blank(self) -> Outcome:
        """The outcome before anything is known."""
        return Outcome(self.recipe.name, self.keep, self.seed, recipe_text=shown(self.recipe), recipe_digest=digest(self.recipe))


class Dense:
    """The models and tasks of a process, made and measured once a seed; only those of the last seed are kept."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._seed: int | None = None

    def at(self, seed: int) -> tuple[nn.Module, Task, Outcome]:
        """A copy of the dense model, its task, and its numbers."""
        if seed != self._seed:
            self._task, self._model = self.setting.task_of(seed), self.setting.model_of(seed)
            self._numbers = Outcome(
                "dense",
                1.0,
                seed,
                dense=evaluate(self._model, self._task, reported(self._task)[1], show=False),
                dense_parameters=nonzero_params(self._model),
                dense_macs=nonzero_macs(self._model, self._task.example),
            )
            self._seed = seed
        return copy.deepcopy(self._model), self._task, self._numbers


def reported(task: Task) -> tuple[str, Any]:
    """The data that is reported on: test data, else validation data. Raises `TaskError` where there is neither, or no metric."""
    if task.metric is None or (task.test is None and task.validation is None):
        raise TaskError("compare: there is nothing to compare by: give Task(test=..., metric=...)")
    return ("test", task.test) if task.test is not None else ("validation", task.validation)


def done(job: Job, dense: Dense) -> Outcome:
    """The outcome of a job; an error becomes one that says it."""
    with _own_random_numbers():
        try:
            return _measured(job, dense)
        except Exception as error:  # whatever a recipe, a model or a task of somebody's own raises: the other jobs go on
            first = (str(error).strip().splitlines() or [""])[0]
            return replace(job.blank(), error=f"{type(error).__name__}: {first}")


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def _measured(job: Job, dense: Dense) -> Outcome:
    model, task, numbers = dense.at(job.seed)
    torch.manual_seed(job.seed)
    recipe, masks = job.recipe, None
    cut = tuned = memory = left = work = None
    cut_seconds = tune_seconds = 0.0
    for keep in recipe.steps(job.keep):
        begun = time.process_time()
        with peak_memory() as peak:
            masks = recipe.prune(model, task, keep, job.seed, masks)
        if masks is not None:
            require(f"the recipe {recipe.name!r}", "what its function returns", masks, MASKS)
        cut_seconds += time.process_time() - begun
        memory = max((part for part in (memory, peak.bytes) if part is not None), default=None)
        if keep == job.keep:
            cut = evaluate(model, task, reported(task)[1], show=False)
            left, work = _counted(model, task, masks, recipe)
            if masks is None and left == numbers.dense_parameters and keep < 1:
                raise SecateursError(
                    f"{recipe.name!r} returned no masks, and nothing of the model is gone: was a return forgotten?"
                )
        if recipe.epochs:
            begun = time.process_time()
            _trained(model, task, masks, recipe.epochs, dense.setting.optimizer)
            tune_seconds += time.process_time() - begun
    if recipe.epochs:
        tuned = evaluate(model, task, reported(task)[1], show=False)
    return replace(
        job.blank(),
        dense=numbers.dense,
        cut=cut,
        tuned=tuned,
        sparsity=1 - (left or 0) / (numbers.dense_parameters or 1),
        parameters=left,
        macs=work,
        dense_parameters=numbers.dense_parameters,
        dense_macs=numbers.dense_macs,
        cut_seconds=cut_seconds,
        tune_seconds=tune_seconds if recipe.epochs else None,
        memory=memory,
    )


def _trained(model: nn.Module, task: Task, masks: Masks | None, epochs: int, make: MakesOptimizer) -> None:
    """Train with a cosine from the optimizer's learning rate to zero, over steps where the batches can be counted, else over epochs."""
    optimizer = make(model.parameters())
    try:
        steps = len(task.train)  # type: ignore[arg-type]
    except TypeError:
        steps = 0
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * max(steps, 1))
    how: dict[str, Any] = {"hooks": [per_step(cosine)]} if steps else {"scheduler": cosine}
    train_(model, replace(task, validation=None), optimizer, epochs, masks=masks, show=False, **how)


def _counted(model: nn.Module, task: Task, masks: Masks | None, recipe: Recipe) -> tuple[int, float]:
    """Parameters and MACs that are left: where units go for good, those of the smaller model, else those of nonzero weights.

    Of a baseline that is trained from scratch all parameters count that no mask holds at zero.
    """
    goes = isinstance(recipe.prune, Pruning) and recipe.prune.pattern.removable
    if goes and masks is not None and masks.plan is not None:
        return int(params(model, task.example, masks.plan)), macs(model, task.example, masks.plan)
    if isinstance(recipe.prune, Baseline):  # fresh biases are zero until they learn, and count
        gone = sum(int((~mask).sum()) for mask in (masks or {}).values())
        return int(params(model)) - gone, nonzero_macs(model, task.example)
    return nonzero_params(model), nonzero_macs(model, task.example)
