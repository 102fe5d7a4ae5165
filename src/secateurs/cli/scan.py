"""What each site can spare, on the command line: a table, a page, and the plan that loses least."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from cyclopts import Parameter
from rich.table import Table

from secateurs import costs, report
from secateurs.cli.found import factory_named, task_named, with_weights
from secateurs.cli.parts import parsed_pattern, solver_of
from secateurs.cli.terminal import command_line, require_at_least, require_seed, say, stopping
from secateurs.patterns import find_sites
from secateurs.report.words import printable
from secateurs.search import Sensitivity, sensitivity
from secateurs.types import Budget

Names = Annotated[list[str], Parameter(negative=(), consume_multiple=True)]
Keeps = Annotated[list[float], Parameter(negative=(), consume_multiple=True)]


def scan(
    model: str,
    *,
    task: str,
    weights: Path | None = None,
    pattern: str = "channel",
    criterion: str | None = None,
    solver: str = "TopK",
    keep: Keeps = [0.75, 0.5, 0.25],  # noqa: B006 (never written to)
    by: Literal["loss", "metric"] = "loss",
    on: Literal["validation", "calibration"] = "validation",
    keep_macs: float | None = None,
    keep_params: float | None = None,
    only: Names = [],  # noqa: B006
    skip: Names = [],  # noqa: B006
    seed: int = 0,
    processes: int = 1,
    out: Path = Path("secateurs-scan"),
) -> None:
    """Prune each layer alone to each --keep, measure, and show what each can spare; with a budget, also the plan that loses least.

    The folder gets a file a trial, so that the same command goes on where it was stopped; scan.html with the curves; and plan.json where
    --keep-macs or --keep-params, or both, say what may stay.

    Parameters
    ----------
    model
        A built-in model (lenet_5, resnet_20 …) or package.module:factory.
    task
        A built-in task (digits, mnist, cifar10) or package.module:factory that returns a secateurs.Task.
    weights
        A safetensors file with the trained weights.
    pattern
        What is removed as one, as of secateurs prune.
    criterion
        How units are scored, as of secateurs prune.
    solver
        Which ones, and what the others become, as of secateurs prune.
    keep
        Fractions of each layer's units to keep, one after the other.
    by
        What is measured: the loss, or the task's metric.
    on
        The batches to measure on.
    keep_macs
        Fraction of the MACs that a plan may keep.
    keep_params
        Fraction of the parameters that a plan may keep.
    only
        Layers that take part, by name or glob.
    skip
        Layers that do not.
    seed
        Seed of a new model's weights, and of the batches.
    processes
        How many trials at a time, each in a process of its own.
    out
        Folder for the trials, the page and the plan.
    """
    require_seed(seed)
    require_at_least(1, processes=processes)
    budgets = _budgets(keep_macs, keep_params)
    torch.manual_seed(seed)
    network, work, shape = with_weights(factory_named(model), weights), task_named(task), parsed_pattern(pattern)
    chosen = solver_of(solver, criterion, seed, coupled=shape.removable)
    backend: Literal["here", "processes"] = "here" if processes == 1 else "processes"
    with stopping("go on behind the last trial that was finished"):
        found = sensitivity(
            network,
            shape,
            chosen,
            work,
            keeps=keep,
            on=on,
            by=by,
            only=only or None,
            skip=skip or None,
            seed=seed,
            backend=backend,
            workers=processes,
            checkpoint=out,
        )
    say(_table(found))
    for curve in found.curves:
        for error in curve.errors:
            say(f"{curve.site}: {error}")
    _write_page(found, f"{model} on {work.name}: {shape}, one site at a time", out)
    if budgets:
        sites = find_sites(network, shape, work.example, only=only or None, skip=skip or None)
        plan = found.allocator(budgets)(sites, lambda: iter([]))
        (out / "plan.json").write_text(plan.to_json() + "\n", encoding="utf-8")
        say(", ".join(f"{name} {plan[name]}" for name in plan))
        say(", ".join(f"{name}: {cost:,.0f}" for name, cost in plan.promised.items()))
        say(str(out / "plan.json"))
    say(str(out / "scan.html"))


def _budgets(keep_macs: float | None, keep_params: float | None) -> list[Budget]:
    given = [(costs.macs, keep_macs), (costs.params, keep_params)]
    return [Budget(cost, keep=keep) for cost, keep in given if keep is not None]


def _table(found: Sensitivity) -> Table:
    """A row a site: its units, and what is measured where it keeps so many of them."""
    table = Table(
        title=f"{printable(found.value_name)} with one site pruned alone; {found.dense:.4g} as it is", title_justify="left"
    )
    table.add_column("site")
    table.add_column("units", justify="right")
    columns = max(len(curve.kept) for curve in found.curves) - 1
    for number in range(columns):
        table.add_column("kept: value" if number == 0 else "", justify="right")
    for curve in found.curves:
        cells = [
            f"{kept}: {'failed' if value is None else f'{value:.4g}'}"
            for kept, value in zip(curve.kept[1:], curve.values[1:], strict=True)
        ]
        table.add_row(printable(curve.site), str(curve.units), *cells)
    return table


def _write_page(found: Sensitivity, title: str, out: Path) -> None:
    versions, machine, date = report.environment()
    study = report.SearchRecord(
        title,
        found.value_name,
        found.higher_is_better,
        sensitivity=report.site_curves(found),
        command=command_line(),
        versions=versions,
        machine=machine,
        date=date,
    )
    report.write_search_html(study, out / "scan.html")
