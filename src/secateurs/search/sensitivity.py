"""What each site can spare: the model measured with one site after the other pruned alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import numpy as np
from torch import nn
from typing_extensions import Unpack

from secateurs.allocate import bounds, dynamic
from secateurs.allocate.levers import Lever, LossesOf
from secateurs.search.trial import Study, Trial
from secateurs.search.trials import How, Trials
from secateurs.types import Allocator, Budget, Pattern, PlanError, SecateursError, Site, Sites, Solver, Task, TaskError

KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class SiteCurve:
    """What was measured with one site pruned alone: numbers of units kept, the most first, and the value at each; ``None`` where the
    trial failed, and ``errors`` says why."""

    site: str
    units: int
    kept: tuple[int, ...]
    values: tuple[float | None, ...]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """A curve for each site, and what the model as it is measures; `study` holds all trials."""

    curves: tuple[SiteCurve, ...]
    dense: float
    higher_is_better: bool
    value_name: str
    study: Study

    def rises(self, site: str) -> tuple[tuple[int, float], ...]:
        """How much worse than dense the model is where a site keeps so many units, the fewest first: never less than where it keeps more.

        Where a trial failed, it is ten times what all sites together were seen to lose, so that no plan goes there without need.
        """
        curve = next(each for each in self.curves if each.site == site)
        lost = 10 * sum(max((self._rise(value) for value in each.values), default=0.0) for each in self.curves) + 1
        worst, found = 0.0, list[tuple[int, float]]()
        for kept, value in zip(curve.kept, curve.values, strict=True):
            worst = max(worst, lost if value is None else self._rise(value))
            found.append((kept, worst))
        return tuple(reversed(found))

    def losses(self, sites: Sites) -> LossesOf:
        """What sites lose by these curves, in the place of scores: straight lines between what was measured, and on beyond.

        Raises `PlanError` for sites that were not measured.
        """
        unknown = [site.name for site in sites if site.name not in {curve.site for curve in self.curves}]
        if unknown:
            raise PlanError(f"the curves say nothing of {', '.join(unknown[:5])}: measure the same model with the same pattern")

        def lost(levers: Sequence[Lever], counts: Sequence[Sequence[int]]) -> list[list[float]]:
            return [
                np.sum(
                    [self._at(site.name, [lever.kept(count)[site.name] for count in each]) for site in lever.group], axis=0
                ).tolist()
                for lever, each in zip(levers, counts, strict=True)
            ]

        return lost

    def allocator(self, budget: Budget | Sequence[Budget], by: Callable[..., Allocator] = dynamic, **asked: Any) -> Allocator:
        """The allocator whose plans lose least by these curves, summed over sites, within a budget or several; ``by`` is one of
        `marginal`, `lagrangian`, `dynamic` and `integer`, which further arguments go to. It asks for no scores."""
        return by(budget, losses=self.losses, **asked)

    def _rise(self, value: float | None) -> float:
        if value is None:
            return 0.0
        return self.dense - value if self.higher_is_better else value - self.dense

    def _at(self, site: str, counts: Sequence[int]) -> Any:
        known = self.rises(site)
        kept, rise = np.array([count for count, _ in known], float), np.array([each for _, each in known], float)
        found, asked = np.interp(counts, kept, rise), np.array(counts, float)
        if len(known) > 1:
            slope = (rise[0] - rise[1]) / (kept[1] - kept[0])
            found = np.where(asked < kept[0], rise[0] + slope * (kept[0] - asked), found)
        return found


def sensitivity(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    task: Task,
    *,
    keeps: Sequence[float] = KEEPS,
    on: Literal["validation", "calibration"] = "validation",
    floor: int = 1,
    **how: Unpack[How],
) -> Sensitivity:
    """Prune each site alone to each of some fractions, as `prune_` would, measure, and put the model back (1506.02626, 1608.08710).

    Measured is, by default, the task's ``"metric"`` on validation data; ``by="loss"`` feels smaller changes, and ``on="calibration"``
    takes the calibration batches. Fractions that mean the same number of units are measured once. Further arguments are those of `How`:
    ``backend="processes"`` or ``"ray"`` measures several at a time, and with ``checkpoint=``, a folder, what is measured is not measured
    again, so that a scan that was stopped goes on. A trial that fails is left out of its curve, and says why; the others go on.

    Raises `SecateursError` where the model as it is cannot be measured (its metric is NaN, say), or no trial of a site came to anything,
    and what `try_plans` raises.

    >>> import torch
    >>> from secateurs import Element, TopK, magnitude, params
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)), torch.randn(64, 8)
    >>> model[0].weight.data *= torch.rand(8, 8) < 0.3  # most of it is zero already
    >>> task = Task(x[:1], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> found = sensitivity(model, Element(), TopK(magnitude()), task, keeps=(0.8, 0.5, 0.2), by="loss", show=False)
    >>> found.curves[0].kept, found.curves[0].values[1]
    ((64, 51, 32, 13), 0.0)
    >>> from secateurs import prune_
    >>> plan = prune_(model, Element(), TopK(magnitude()), found.allocator(Budget(params, keep=0.6)), task).plan
    >>> plan["0"] < plan["1"]
    True
    """
    _require_keeps(keeps)
    if on not in ("validation", "calibration"):
        raise SecateursError(f'sensitivity: on={on!r} is none of "validation" and "calibration"')
    if on == "calibration" and isinstance(task, Task):
        if task.calibration is None:
            raise TaskError('sensitivity: there is nothing to measure on: give Task(calibration=...), or on="validation"')
        task = replace(task, validation=task.calibration)
    with Trials("sensitivity", model, pattern, solver, task, **how) as trials:
        counts = {site.name: _counts(site, keeps, floor) for site in trials.bench.sites}
        plans = {(name, kept): trials.whole.with_counts({name: kept}) for name, row in counts.items() for kept in row}
        dense = trials([trials.whole])[0]
        if dense.value is None:
            raise SecateursError(f"sensitivity: the model as it is cannot be measured: {dense.error}")
        found = dict(zip(plans, trials(list(plans.values()), bar="one site at a time"), strict=True))
        curves = tuple(_curve(site, counts[site.name], found, dense) for site in trials.bench.sites)
        return Sensitivity(curves, dense.value, trials.setting.higher_is_better, trials.setting.value_name, trials.study())


def _counts(site: Site, keeps: Sequence[float], floor: int) -> list[int]:
    """The numbers of units that are meant, fewer than all, the most first."""
    limits = bounds(site, floor)
    return sorted({limits.nearest(keep * site.units) for keep in keeps} - {limits.high}, reverse=True)


def _curve(site: Site, counts: Sequence[int], found: Mapping[tuple[str, int], Trial], dense: Trial) -> SiteCurve:
    row = [found[site.name, kept] for kept in counts]
    if row and all(trial.failed for trial in row):
        raise SecateursError(f"sensitivity: {site.name}: each of {len(row)} trials failed: {row[0].error}")
    errors = tuple(f"{kept} of {site.units} units: {trial.error}" for kept, trial in zip(counts, row, strict=True) if trial.failed)
    return SiteCurve(site.name, site.units, (bounds(site, 0).high, *counts), (dense.value, *(trial.value for trial in row)), errors)


def _require_keeps(keeps: Sequence[float]) -> None:
    fits = isinstance(keeps, (list, tuple)) and len(keeps) > 0
    if not fits or not all(isinstance(keep, (int, float)) and isfinite(keep) and 0 <= keep < 1 for keep in keeps):
        raise SecateursError(
            f"sensitivity: keeps={keeps!r} must be fractions in [0, 1) of a site's units, for example (0.75, 0.5, 0.25)"
        )
