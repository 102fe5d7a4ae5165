"""Yang et al. 2018: NetAdapt, step by step to a budget, each time in the layer where it costs least of the metric (1804.03230)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from torch import nn

from secateurs.allocate import plan_of
from secateurs.allocate.account import Account, Ledger, budgets_of, told
from secateurs.allocate.levers import levers_of
from secateurs.criteria import magnitude
from secateurs.described import digest, shown
from secateurs.files.partway import Partway
from secateurs.given import MODEL, PATTERN, SOLVER, TASK, require, require_values
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection, find_sites
from secateurs.progress import tell, track
from secateurs.prune import prune_
from secateurs.ranks import WAY_OUT, count
from secateurs.search.adapting import Adapting, require_reachable
from secateurs.search.bench import Then
from secateurs.solve import TopK
from secateurs.tried import taken_back_on_error
from secateurs.types import Budget, Pattern, SecateursError, Solver, Task

_CHOICE = TopK(magnitude(members="all"))


def netadapt_(
    model: nn.Module,
    task: Task,
    *,
    budget: Budget | Sequence[Budget],
    step: float = 0.05,
    decay: float = 0.98,
    then: Then | None = None,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    solver: Solver = _CHOICE,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
    only: Selection | None = None,
    skip: Selection | None = None,
    checkpoint: str | Path | None = None,
) -> Masks:
    """Make every layer alone smaller until the cost has fallen by a step, keep the one whose model has the best metric on validation data,
    and so on until the budget is met.

    The first step takes the fraction ``step`` of what the dense model costs, each next one ``decay`` times that; a step that no layer can
    take alone is halved. A layer keeps as much as the step admits, by what the cost says of the plan (measured latencies too); of several
    budgets those that are not met yet are to fall. ``then(model, masks, task)`` is called for each proposal before it is measured, for
    the paper's short fine-tuning (`train_` with an optimizer that it makes, say), and what it made of the weights of the best goes on; a
    long fine-tuning at the end is yours, or new statistics of BatchNorms (`recalibrate_`). With ``checkpoint=``, a folder that gets a
    file for each step, the same call goes on behind the last. After an error the model is as it was. `shrink_` takes the units out.

    Raises `PlanError` where the budget is below what the floors leave, with the least that can be reached, `NonFiniteError` where no
    proposal of a step has a finite metric, `TaskError` without a metric or validation data, and what `prune_` raises.

    >>> from secateurs import macs
    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> masks = netadapt_(digits_cnn(), digits(), budget=Budget(macs, keep=0.8), step=0.1)
    >>> masks.plan.promised["macs"] <= 0.8 * 337536
    True
    """
    budgets = _require(model, task, budget, pattern, solver, step, decay, then)
    sites = find_sites(model, pattern, task.example, only=only, skip=skip)
    levers = levers_of(sites, floor, ceiling, same_in_every_block)
    account = Account.of(budgets, sites)
    ledger = Ledger(account, plan_of(sites, {site.name: site.available for site in sites}))
    require_reachable(account, levers, ledger)
    about = {
        **_about(model, task, budgets, then),
        "pattern": repr(pattern),
        "solver": repr(solver),
        "steps": f"{step}, {decay}",
        "bounds": f"floor={floor}, ceiling={ceiling}, same_in_every_block={same_in_every_block}",
        "layers": shown((only, skip)),
    }
    partway = None if checkpoint is None else Partway(Path(checkpoint), about)
    adapting = Adapting(model, sites, levers, ledger, solver, task, then)
    with taken_back_on_error(model):
        steps = adapting.steps(step, decay, partway)
        with closing(track(steps, "adapting", status=lambda: adapting.said)) as numbers:
            for number in numbers:
                tell(f"step {number + 1}: {adapting.said}")
        plan = replace(ledger.plan, promised=account.promised(ledger.plan))
        chosen = {"only": only, "skip": skip, "masks": adapting.masks}
        return prune_(model, pattern, _CHOICE, plan, task, recalibrate=False, **chosen)  # type: ignore[arg-type]


def _about(model: nn.Module, task: Task, budgets: Sequence[Budget], then: Then | None) -> dict[str, str]:
    """What decides which step is best. Batches are compared where they are a list; a loader may shuffle them."""
    data = task.validation if isinstance(task.validation, (list, tuple)) else ()
    return {
        "model": digest(model),
        "budget": ", ".join(map(told, budgets)),
        "data": digest(data),
        "judge": digest((task.metric, task.summary, then)),
    }


def _require(
    model: object, task: Task, budget: object, pattern: object, solver: object, step: float, decay: float, then: object
) -> tuple[Budget, ...]:
    for name, value, kind in (
        ("model", model, MODEL),
        ("task", task, TASK),
        ("pattern", pattern, PATTERN),
        ("solver", solver, SOLVER),
    ):
        require("netadapt_", name, value, kind)
    require_values("netadapt_", model)  # type: ignore[arg-type]
    if count() > 1:
        raise SecateursError(f"netadapt_ is for one process, and here are {count()}: {WAY_OUT}")
    if not (isinstance(step, float) and 0 < step < 1 and isinstance(decay, (int, float)) and 0 < decay <= 1):
        raise SecateursError(
            f"netadapt_: step={step}, decay={decay}: the step is a fraction of the dense cost, in (0, 1), and decay, in (0, 1], what each "
            "next step is of the one before"
        )
    if then is not None and not callable(then):
        raise SecateursError(f"netadapt_: then is {then!r}, but must be a function (model, masks, task)")
    return budgets_of("netadapt_", budget)  # type: ignore[arg-type]
