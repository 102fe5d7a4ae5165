"""The smallest or fastest model above an accuracy, on the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from torch import nn

from secateurs import costs, files, report, run, session
from secateurs.allocate import erdos_renyi, within_budget
from secateurs.cli.found import factory_named, is_new, task_named, with_weights
from secateurs.cli.parts import parsed_allocator, parsed_pattern, solver_of, usual_allocator
from secateurs.cli.terminal import (
    command_line,
    plain,
    require_at_least,
    require_seed,
    require_threads,
    say,
    stopping,
    warn,
)
from secateurs.forward import run_example
from secateurs.masks import Masks
from secateurs.recover import per_step, train_
from secateurs.run.clock.timing import torch_threads
from secateurs.search import smallest as smallest_plan
from secateurs.types import Allocator, Budget, Cost, Pattern, Run, SecateursError, Task

Names = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]

_COSTS: dict[str, Cost] = {"bytes": files.bytes_, "params": costs.params, "macs": costs.macs, "ms": run.latency_ms}


def smallest(
    model: str,
    *,
    task: str,
    within: float | None = None,
    reach: float | None = None,
    cost: Literal["bytes", "params", "macs", "ms"] = "bytes",
    weights: Path | None = None,
    pattern: str = "channel",
    criterion: str | None = None,
    solver: str = "TopK",
    allocator: str | None = None,
    epochs: int = 0,
    lr: float = 1e-3,
    precision: float = 0.02,
    only: Names = [],  # noqa: B006 (never written to)
    skip: Names = [],  # noqa: B006
    seed: int = 0,
    threads: int = 1,
    processes: int = 1,
    out: Path = Path("secateurs-smallest"),
    force: bool = False,
) -> None:
    """Find the smallest model (or with --cost ms the fastest) that is at most --within below the dense one, and write it with its report.

    Chosen on validation data, reported on test data once. The same command goes on behind the last trial that was finished.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory that returns a secateurs.Task with validation data.
    within
        How much worse than the dense model's the metric may be: 0.01 is a point of accuracy. 0.01 where neither is said.
    reach
        The metric that must be reached, instead of --within.
    cost
        What is to be small: bytes of the file, params, macs, or ms on this machine.
    weights
        A safetensors file with the trained weights.
    pattern
        What is removed as one, as of secateurs prune.
    criterion
        How units are scored, as of secateurs prune.
    solver
        Which ones, and what the others become, as of secateurs prune.
    allocator
        How much where, as of secateurs prune.
    epochs
        Epochs of training after each pruning, before it is measured.
    lr
        Learning rate of Adam; it falls along a cosine.
    precision
        To which fraction the budget is to be found.
    only
        Layers that take part, by name or glob.
    skip
        Layers that do not.
    seed
        Seed of a new model's weights, and of the training in each trial.
    threads
        Threads of torch in each trial.
    processes
        How many trials at a time, each in a process of its own.
    out
        Folder for the trials, the models, the record and the report.
    force
        Replace the run that the output folder holds.
    """
    options = {name: plain(value) for name, value in locals().items() if name not in ("out", "force", "processes")}
    require_seed(seed)
    require_threads(threads)
    require_at_least(0, epochs=epochs)
    require_at_least(1, processes=processes)
    if not (isfinite(lr) and lr > 0):
        raise SecateursError(f"--lr {lr} is no learning rate: give a number above 0")
    begun = session.require_free(
        out, {"command": "smallest", **options}, force=force, resume=not force and (out / session.folder.RUN).exists()
    )
    torch.manual_seed(seed)
    make, work, shape = factory_named(model), task_named(task), parsed_pattern(pattern)
    network = with_weights(make, weights)
    run_example(network, work.example)
    session.try_out(network, work)
    if not (weights or begun) and (":" not in model or is_new(make, network)):
        warn(f"{model} has new random weights, so what goes is chosen by noise: give --weights")
    if not begun:
        shutil.rmtree(out / "trials", ignore_errors=True)
        session.begin(out, command_line(), {"command": "smallest", **options})
    asked: dict[str, Any] = {"within": 0.01 if within is None and reach is None else within, "reach": reach, "cost": _COSTS[cost]}
    told: dict[str, Any] = {"title": f"{model} on {work.name}: {shape}", "seed": seed, "command": command_line()}
    with torch_threads(threads), stopping("go on behind the last trial that was finished"):
        reached = smallest_plan(
            network,
            shape,
            solver_of(solver, criterion, seed, coupled=shape.removable),
            work,
            **asked,
            allocate=_allocate(allocator, shape),
            precision=precision,
            then=partial(_tuned_, epochs, lr) if epochs else None,
            only=only or None,
            skip=skip or None,
            seed=seed,
            threads=threads,
            backend="here" if processes == 1 else "processes",
            workers=processes,
            checkpoint=out / "trials",
        )

        def prune(pruned: nn.Module) -> Run:
            return Run(pruned, work, torch.optim.SGD(pruned.parameters(), lr=lr), epochs, masks=reached.apply_(pruned))

        to_folder = session.shrink_to_folder if shape.removable else session.prune_to_folder
        result = to_folder(network, make, work, prune, out, **told)
    say(report.table(result.record))
    say(str(reached))
    for name in ("pruned.safetensors", "record.json", "report.html"):
        say(str(out / name))


def _allocate(text: str | None, shape: Pattern) -> Callable[..., Allocator]:
    """What makes an allocator of a budget, from the words of --allocator."""
    made = parsed_allocator(text or usual_allocator(shape))
    if shape.removable and made.func is erdos_renyi:
        raise SecateursError(f"Erdős–Rényi densities are for single weights, not for {shape}: say --allocator uniform or global")

    def allocate(budget: Budget, **bounds: Any) -> Allocator:
        return within_budget(budget, made, **bounds)

    return allocate


def _tuned_(epochs: int, lr: float, model: nn.Module, masks: Masks, task: Task) -> None:
    """A short training, its learning rate along a cosine over all steps, or over epochs where nobody knows how many there are."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    try:
        steps = len(task.train)  # type: ignore[arg-type]
    except TypeError:
        steps = 0
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * max(steps, 1))
    how: dict[str, Any] = {"hooks": [per_step(cosine)]} if steps else {"scheduler": cosine}
    train_(model, task, optimizer, epochs, masks=masks, show=False, **how)
