"""Many jobs, one comparison: what is missing is done, in processes or here, and what came of it is shown."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.comparing import folder as files
from secateurs.comparing.comparison import Comparison, Outcome, made_here
from secateurs.comparing.drawing import picture
from secateurs.comparing.job import Job, MakesOptimizer, Setting, reported
from secateurs.comparing.page import comparison_html
from secateurs.comparing.recipe import Recipe
from secateurs.comparing.workers import done_here, done_in_processes
from secateurs.described import digest, names, shown
from secateurs.forward import describe
from secateurs.given import MODEL_OR_MAKER, TASK, require
from secateurs.progress import tell, track
from secateurs.report.drawing import WIDE
from secateurs.report.files import replace_text
from secateurs.report.words import number, percent
from secateurs.types import KindError, SecateursError, Task

adam = functools.partial(torch.optim.Adam, lr=1e-3)
"""What recipes train with by default; the learning rate falls along a cosine."""


class FailedJobsError(SecateursError):
    """Some jobs came to nothing; ``comparison`` holds the others, and the errors of these."""

    def __init__(self, message: str, comparison: Comparison) -> None:
        super().__init__(message)
        self.comparison = comparison


def compare(
    recipes: Sequence[Recipe],
    model: nn.Module | Callable[[], nn.Module],
    task: Task | Callable[[int], Task],
    *,
    keep: float | Sequence[float] = (0.7, 0.5, 0.3, 0.1),
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    processes: int | None = None,
    threads: int = 1,
    optimizer: MakesOptimizer = adam,
    rerun: bool = False,
    title: str = "",
    command: str = "",
    show: bool = True,
) -> Comparison:
    """Prune a model by each recipe, to each fraction kept, with each seed, and put what came of it side by side.

    ``model`` is a module or a function that makes one, ``task`` a `Task` or a function of the seed that makes one (another split, other
    calibration batches). A seed is that of torch's random numbers, of the task, and of recipes that draw; ``seeds=3`` means 0, 1, 2. The
    metric is that of the test data. Each job has ``threads`` threads; ``processes`` is how many run at a time, by default one a core.
    With ``processes=1`` all is done in this process; otherwise everything must be something that another process can import.

    ``out`` is a folder for a file a job, the record, table, plot and page: what is there is not done again, so that a comparison that was
    stopped goes on, and one with more recipes, fractions or seeds adds to it. What failed is tried again. A recipe that is no longer what
    it was when it was measured is refused, or done anew with ``rerun=True``.

    Raises `SecateursError` for what cannot begin; `FailedJobsError`, which names them and holds the rest, where jobs came to nothing.

    >>> from secateurs import Element, magnitude, random, recipes
    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> done = compare(recipes([magnitude(), random], Element()), digits_cnn(), digits(), keep=0.5, processes=1, show=False)
    >>> [(row.recipe, row.keep) for row in done.rows]
    [('magnitude(p=2)', 0.5), ('random', 0.5)]
    """
    setting = Setting(model, task, optimizer, threads)
    jobs = _jobs(recipes, keep, seeds)
    _require_kinds(setting, processes, threads)
    folder = Path(out) if out is not None else None
    work = setting.task_of(jobs[0].seed)
    measured_on, _ = reported(work)
    found: dict[str, Outcome] = {}
    if folder is not None:
        files.begin(folder, _shared(setting, work, jobs[0].seed))
        found = files.found_in(folder, jobs, rerun)
    missing = [job for job in jobs if job.name not in found]
    if found:
        tell(f"{len(found)} of {len(jobs)} jobs were done before", show)
    with closing(_shown(missing, _outcomes(missing, setting, processes), work, show)) as walk:
        for outcome in walk:
            found[outcome.name] = outcome
            if folder is not None:
                files.keep(folder, next(job for job in missing if job.name == outcome.name), outcome)
    made = made_here(
        title or f"{len(recipes)} recipe{'s' * (len(recipes) > 1)} on {work.name}",
        [found[job.name] for job in jobs],
        metric_name=work.metric_name,
        higher_is_better=work.higher_is_better,
        measured_on=measured_on,
        recipes=tuple((recipe.name, shown(recipe)) for recipe in recipes),
        command=command,
    )
    if folder is not None:
        _write(made, folder)
    _require_success(made)
    return made


def _jobs(recipes: Sequence[Recipe], keep: float | Sequence[float], seeds: int | Sequence[int]) -> list[Job]:
    """All jobs, those of the first seed first: so that a table is there early."""
    if isinstance(recipes, Recipe) or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise KindError(
            "compare: recipes is not a list of recipes, for example [Recipe('magnitude', Pruning(Element(), TopK(magnitude())))]"
        )
    twice = {recipe.name for recipe in recipes if sum(recipe.name == other.name for other in recipes) > 1}
    if twice:
        raise SecateursError(f"compare: two recipes are called {names(sorted(twice))}: the table needs names that tell them apart")
    keeps = [keep] if isinstance(keep, (int, float)) else list(keep)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not recipes or not keeps or not numbers:
        raise SecateursError(
            f"compare: {len(recipes)} recipes, {len(keeps)} fractions kept and {len(numbers)} seeds: give at least one of each"
        )
    for part in keeps:
        if not 0 < part <= 1:
            raise SecateursError(f"compare: keep={part} is not in (0, 1]; 0.1 keeps 10 %")
    for seed in numbers:
        if not 0 <= seed < 2**32:
            raise SecateursError(f"compare: seed {seed} is not from 0 to {2**32 - 1}")
    jobs = [Job(recipe, float(part), seed) for seed in dict.fromkeys(numbers) for recipe in recipes for part in recipe.keeps(keeps)]
    return list({job.name: job for job in jobs}.values())


def _require_kinds(setting: Setting, processes: int | None, threads: int) -> None:
    require("compare", "model", setting.model, MODEL_OR_MAKER)
    if not callable(setting.task):
        require("compare", "task", setting.task, TASK)
    if not callable(setting.optimizer):
        raise KindError(
            f"compare: optimizer is {setting.optimizer!r}, but must make one of parameters, for example partial(torch.optim.SGD, lr=0.01)"
        )
    if threads < 1 or (processes is not None and processes < 1):
        raise SecateursError(f"compare: processes={processes} and threads={threads} must be at least 1")


def _shared(setting: Setting, work: Task, seed: int) -> dict[str, Any]:
    """What outcomes of one table must have in common."""
    return {
        "model": digest(setting.model_of(seed)),
        "task": work.name,
        "metric": work.metric_name,
        "example": describe(work.example),
        "optimizer": f"{shown(setting.optimizer)} ({digest(setting.optimizer)})",
    }


def _outcomes(jobs: Sequence[Job], setting: Setting, processes: int | None) -> Generator[Outcome, None, None]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    number_of = min(processes if processes is not None else max(1, cores // setting.threads), len(jobs))
    if processes == 1 or number_of == 0:
        return done_here(jobs, setting)
    return done_in_processes(jobs, setting, number_of)


def _shown(jobs: Sequence[Job], outcomes: Generator[Outcome, None, None], work: Task, show: bool) -> Generator[Outcome, None, None]:
    """The outcomes, with a bar on a terminal and a line each elsewhere; whatever happens, the processes that make them are ended."""
    last: list[str] = []
    bar = track(outcomes, "comparing", total=len(jobs), show=show, status=lambda: last[-1] if last else "")
    with closing(outcomes), closing(bar) as walk:
        for count, outcome in enumerate(walk, start=1):
            value = outcome.metric
            reached = number(value) if value is None or not 0 <= value <= 1 or not work.higher_is_better else percent(value)
            last.append(f"{outcome.name}: {outcome.error or reached}")
            tell(f"{count} of {len(jobs)}: {last[-1]}", show)
            yield outcome


def _write(made: Comparison, folder: Path) -> None:
    """Record, table, numbers, plot and page."""
    for name, text in (
        (files.RECORD, made.to_json()),
        (files.TABLE, f"# {made.title}\n\n{made.markdown()}\n\n{made.footnote()}\n"),
        (files.CSV, made.csv()),
        (files.PLOT, picture(made, WIDE)),
        (files.PAGE, comparison_html(made)),
    ):
        if text:
            replace_text(folder / name, text)


def _require_success(made: Comparison) -> None:
    if made.failed:
        told = "; ".join(f"{outcome.name}: {outcome.error}" for outcome in made.failed[:5])
        more = f"; and {len(made.failed) - 5} more" if len(made.failed) > 5 else ""
        raise FailedJobsError(f"compare: {len(made.failed)} of {len(made.outcomes)} jobs failed: {told}{more}", made)
