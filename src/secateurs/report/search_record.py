"""What a search for a plan tried, what it chose, and what that costs layer by layer: everything that its page shows; JSON in and out."""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateurs.given import require_costs
from secateurs.report.files import read_parsed, replace_text
from secateurs.report.record import Curve, environment
from secateurs.report.scan import site_curves
from secateurs.report.schema import document, parsed
from secateurs.search import Sensitivity, Study, Trial
from secateurs.types import Cost, Plan, Prepared, SecateursError, by_layer

FORMAT = "secateurs search record"
VERSION = 1


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried: its metric on **validation** data, what it costs, and the ``group`` that proposed it (a method, say).

    ``error`` says why it came to nothing; its metric is then ``None``. Raises `SecateursError` for a cost that is negative.

    >>> Attempt("trial 3", 0.91, {"macs": 2.1e6}, group="random").metric
    0.91
    """

    name: str
    metric: float | None
    costs: dict[str, float] = field(default_factory=dict)
    group: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        for cost, value in self.costs.items():
            if value < 0:
                raise SecateursError(f"Attempt({self.name!r}): costs[{cost!r}]={value}; expected zero or more")


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs in the dense model and what the chosen plan leaves of that.

    >>> LayerCost("macs", "conv1", dense=100.0, left=25.0).keep
    0.25
    """

    cost: str
    layer: str
    dense: float
    left: float

    @property
    def keep(self) -> float:
        """The fraction of the layer's cost that is left; 0 of nothing."""
        return self.left / self.dense if self.dense else 0.0


@dataclass(frozen=True)
class Check:
    """A cost as it was predicted for a plan, and as it was counted or measured on the model that was made by it.

    >>> round(Check("trial 3", "latency_ms", predicted=1.1, measured=1.0).deviation, 3)
    0.1
    """

    name: str
    cost: str
    predicted: float
    measured: float

    @property
    def deviation(self) -> float:
        """How far the prediction is above what was measured, as a fraction of that; NaN where nothing was measured."""
        return self.predicted / self.measured - 1 if self.measured else math.nan


@dataclass(frozen=True)
class SearchRecord:
    """A search for a plan: the dense model, all attempts, the name of the one that was ``chosen``, and what its layers cost.

    ``units`` names the costs that are shown and their units, in order. ``sensitivity`` are the metric's curves of sites that were pruned
    alone. ``checks`` hold predictions beside measurements. The rest is as in a `Record`.

    >>> record = SearchRecord("Digits", "accuracy", units={"macs": "MACs"}, dense=Attempt("dense", 0.98, {"macs": 10.0}))
    >>> SearchRecord.from_json(record.to_json()) == record
    True
    """

    title: str
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    units: dict[str, str] = field(default_factory=dict)
    dense: Attempt | None = None
    attempts: tuple[Attempt, ...] = ()
    chosen: str = ""
    layers: tuple[LayerCost, ...] = ()
    sensitivity: tuple[Curve, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if self.chosen and self.chosen not in {attempt.name for attempt in self.attempts}:
            raise SecateursError(f"SearchRecord: chosen={self.chosen!r} is the name of no attempt")

    @property
    def best(self) -> Attempt | None:
        """The attempt that was chosen."""
        return next((attempt for attempt in self.attempts if attempt.name == self.chosen), None) if self.chosen else None

    @property
    def in_percent(self) -> bool:
        """Whether the metric reads as a fraction: higher is better, and every value lies within [0, 1]."""
        shown = [self.dense, *self.attempts]
        values = [each.metric for each in shown if each is not None and each.metric is not None and math.isfinite(each.metric)]
        return self.higher_is_better and bool(values) and all(0 <= value <= 1 for value in values)

    def to_json(self) -> str:
        """The record as JSON text, as `Record.to_json` writes records."""
        return document(self, "search record", FORMAT, VERSION)

    @staticmethod
    def from_json(text: str) -> SearchRecord:
        """The record that `to_json` wrote; raises `FileError`, saying what was expected where, for any other text."""
        return typing.cast(SearchRecord, parsed(text, SearchRecord, "search record", FORMAT, (VERSION,)))


def write_search(record: SearchRecord, path: str | os.PathLike[str]) -> Path:
    """Write a record as JSON in one step and return the path; on failure the old file, if any, survives.

    Raises `OSError` where the file cannot be written.

    >>> import tempfile
    >>> path = write_search(SearchRecord("Digits"), Path(tempfile.mkdtemp()) / "search.json")
    >>> read_search(path).title
    'Digits'
    """
    return replace_text(path, record.to_json())


def read_search(path: str | os.PathLike[str]) -> SearchRecord:
    """The record that `write_search` wrote; raises `FileError`, naming the file, where it holds anything else."""
    return read_parsed(path, SearchRecord.from_json, "search record")


def front(attempts: Sequence[Attempt], cost: str, higher_is_better: bool = True) -> list[Attempt]:
    """The Pareto front: those attempts that none other beats in the metric without costing more, the cheapest first.

    >>> tried = [Attempt("a", 0.9, {"macs": 3.0}), Attempt("b", 0.8, {"macs": 4.0}), Attempt("c", 0.7, {"macs": 1.0})]
    >>> [attempt.name for attempt in front(tried, "macs")]
    ['c', 'a']
    """
    sign = 1.0 if higher_is_better else -1.0
    valued = [
        (attempt.costs[cost], -sign * (attempt.metric or 0.0), place)
        for place, attempt in enumerate(attempts)
        if _is_shown(attempt, cost)
    ]
    found: list[Attempt] = []
    least = math.inf
    for _, loss, place in sorted(valued):
        if loss < least:
            least = loss
            found.append(attempts[place])
    return found


def _is_shown(attempt: Attempt, cost: str) -> bool:
    return attempt.metric is not None and math.isfinite(attempt.metric) and math.isfinite(attempt.costs.get(cost, math.nan))


def layer_costs(model: nn.Module, example: Any, plan: Plan, costs: Sequence[Cost]) -> tuple[LayerCost, ...]:
    """What each layer of a model costs, dense and as a plan leaves it, of every cost that tells it layer by layer.

    >>> import torch
    >>> from secateurs import Channel, find_sites, macs, uniform
    >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3)
    >>> plan = uniform(keep=0.5)(find_sites(model, Channel(), x), lambda: iter([]))
    >>> [(each.layer, each.keep) for each in layer_costs(model, x, plan, [macs])]
    [('0', 0.5), ('2', 0.5)]
    """
    whole = plan.with_counts({name: share.units for name, share in plan.shares.items()})
    found = []
    for cost in costs:
        prepared = cost.prepare(model, example)
        if isinstance(prepared, Prepared):
            dense, left = by_layer(prepared, whole), by_layer(prepared, plan)
            found += [LayerCost(cost.name, layer, value, left.get(layer, 0.0)) for layer, value in dense.items()]
    return tuple(found)


def costs_of(model: nn.Module, example: Any, plans: Sequence[Plan | None], costs: Sequence[Cost]) -> list[dict[str, float]]:
    """What plans leave of each cost, by name, as `Attempt` holds it; ``None`` among them stands for the model as it is.

    >>> import torch
    >>> from secateurs import macs, params
    >>> costs_of(nn.Linear(3, 2), torch.zeros(1, 3), [None], [params, macs])
    [{'params': 8.0, 'macs': 6.0}]
    """
    require_costs("costs_of", "costs", costs)
    prepared = {cost.name: cost.prepare(model, example) for cost in costs}
    return [{name: count(plan) for name, count in prepared.items()} for plan in plans]


def search_record(
    title: str,
    model: nn.Module,
    example: Any,
    dense: Trial,
    studies: Mapping[str, Study],
    costs: Sequence[Cost],
    *,
    chosen: Trial | None = None,
    sensitivity: Sensitivity | None = None,
    checks: Sequence[Check] = (),
    **more: Any,
) -> SearchRecord:
    """What searches tried, by the name of each, as a record for their page; ``chosen`` is by default the best trial of all.

    ``dense`` is a trial of the model with nothing removed, ``costs`` are those that are shown; ``more`` are further parts of
    `SearchRecord`. Machine, versions and date are those of now.

    >>> import torch
    >>> from secateurs import Channel, Task, TopK, find_sites, macs, magnitude, try_plans, uniform
    >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 3)
    >>> task = Task(x[:1], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> sites = find_sites(model, Channel(), x[:1])
    >>> plans = [uniform(keep=keep)(sites, lambda: iter([])) for keep in (1.0, 0.75, 0.5)]
    >>> study = try_plans(model, Channel(), TopK(magnitude()), plans, task, costs=[macs], by="loss", show=False)
    >>> record = search_record("Small", model, x[:1], study.trials[0], {"uniform": study}, [macs], chosen=study.trials[2])
    >>> record.chosen, record.best.costs, record.layers[0].keep
    ('uniform 2', {'macs': 20.0}, 0.5)
    """
    first = _require_studies(studies)
    require_costs("search_record", "costs", costs)
    attempts = tuple(_attempt(name, trial) for name, study in studies.items() for trial in study.trials if not trial.open)
    done = [trial for study in studies.values() for trial in study.done]
    if chosen is None and not done:
        raise SecateursError(f"search_record: no trial of {', '.join(studies)} came to anything, so that there is none to choose")
    best = chosen if chosen is not None else min(done, key=first.badness)
    group = next((name for name, study in studies.items() if best in study.trials), None)
    if group is None:
        raise SecateursError(f"search_record: chosen is {best.name}, which is in none of the studies {', '.join(studies)}")
    versions, machine, date = environment()
    known = {"versions": versions, "machine": machine, "date": date, "metric_name": first.value_name} | more
    return SearchRecord(
        title,
        higher_is_better=first.higher_is_better,
        units={cost.name: cost.unit for cost in costs},
        dense=_attempt("dense", dense),
        attempts=attempts,
        chosen=_attempt(group, best).name,
        layers=layer_costs(model, example, best.plan, costs),
        sensitivity=() if sensitivity is None else site_curves(sensitivity),
        checks=tuple(checks),
        **known,
    )


def _require_studies(studies: Mapping[str, Study]) -> Study:
    """The first of studies that can be compared; raises `SecateursError` where there is none, or one that is judged by something else."""
    if not studies:
        raise SecateursError('search_record: there is no study to show: give {"random": random_search(...), ...}')
    (name, first), *others = studies.items()
    for other, study in others:
        if (study.value_name, study.higher_is_better) != (first.value_name, first.higher_is_better):
            raise SecateursError(
                f"search_record: {name} is judged by {first.value_name} and {other} by {study.value_name}, of which the best cannot be "
                "told: make a record of each"
            )
    return first


def _attempt(group: str, trial: Trial) -> Attempt:
    return Attempt(f"{group} {trial.number}", trial.value, dict(trial.costs), group, trial.error)
