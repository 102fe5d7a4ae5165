"""What came of a plan that was tried, and of all that a search tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from secateurs.types import FileError, Plan, PlanError

FORMAT, VERSION = "secateurs trial", 1


@dataclass(frozen=True)
class Trial:
    """A plan that was tried: what it costs, and what was measured of the model that it leaves.

    - ``value``: the metric, the loss, or what a function of one's own gave; ``None`` where the trial failed, and ``error`` says why
    - ``costs``: by their names, what the plan is predicted to cost, in the unit of each cost
    - ``seconds``: of pruning and measuring, by the clock

    >>> trial = Trial(3, Plan({}), error="RuntimeError: no memory left")
    >>> trial.name, trial.failed
    ('trial 3', True)
    """

    number: int
    plan: Plan
    value: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"trial {self.number}"

    @property
    def failed(self) -> bool:
        return self.value is None and not self.open

    @property
    def open(self) -> bool:
        """Whether it was not tried yet."""
        return self.value is None and not self.error

    def to_json(self) -> str:
        """As JSON text: of the plan, how many units each site keeps; all that is the same for all trials stands elsewhere, once."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "number": self.number,
            "kept": dict(self.plan),
            "promised": dict(self.plan.promised),
            "value": self.value,
            "costs": dict(self.costs),
            "seconds": self.seconds,
            "error": self.error,
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, whole: Plan) -> Trial:
        """What `to_json` wrote, of a trial with a plan of the sites of ``whole``; raises `FileError` for any other text."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT or document["version"] != VERSION:
                raise ValueError(f'expected "format": "{FORMAT}" of version {VERSION}')
            value, kept = document["value"], {str(name): _kept(count) for name, count in document["kept"].items()}
            if kept.keys() != whole.keys() or any(kept[name] > share.units for name, share in whole.shares.items()):
                raise ValueError("its plan is one of another model")
            promised = _numbers(document["promised"])
            return Trial(
                _kept(document["number"]),
                Plan(whole.with_counts(kept).shares, promised, whole.extents),
                None if value is None else _finite(value),
                _numbers(document["costs"]),
                _finite(document["seconds"]),
                str(document["error"]),
            )
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError, PlanError) as error:
            raise FileError(f"this is not a trial ({repr(error)[:200]}): expected what Trial.to_json() wrote") from error


def _kept(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of units")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _numbers(values: Any) -> dict[str, float]:
    return {str(name): _finite(value) for name, value in values.items()}


@dataclass(frozen=True)
class Study:
    """All that a search tried, in order, and the best of it.

    >>> tried = Trial(0, Plan({}), 0.8, {"macs": 40.0}), Trial(1, Plan({}), 0.9, {"macs": 50.0}), Trial(2, Plan({}), 0.7, {"macs": 60.0})
    >>> study = Study(tried, higher_is_better=True)
    >>> study.best.number, [trial.number for trial in study.front("macs")], study.value
    (1, [0, 1], 0.9)
    """

    trials: tuple[Trial, ...]
    higher_is_better: bool
    value_name: str = "value"

    @property
    def done(self) -> tuple[Trial, ...]:
        """Those that came to something."""
        return tuple(trial for trial in self.trials if trial.value is not None)

    @property
    def failed(self) -> tuple[Trial, ...]:
        """Those that came to nothing; each says why."""
        return tuple(trial for trial in self.trials if trial.failed)

    @property
    def best(self) -> Trial:
        """The one with the best value; of equals, the first."""
        return min(self.done, key=self.badness)

    @property
    def plan(self) -> Plan:
        """That of the best, for `prune_`."""
        return self.best.plan

    @property
    def value(self) -> float:
        """That of the best."""
        return _measured(self.best)

    def badness(self, trial: Trial) -> float:
        """The value of a trial as a number of which lower is better; infinity where it failed."""
        if trial.value is None:
            return float("inf")
        return -trial.value if self.higher_is_better else trial.value

    def front(self, *costs: str) -> tuple[Trial, ...]:
        """The trials than which no other is at least as good in the value and all these costs (by default in all), and better in one;
        the cheapest first."""
        asked = costs or tuple(self.done[0].costs)
        points = [(trial, (self.badness(trial), *(trial.costs[name] for name in asked))) for trial in self.done]
        stays = [trial for place, (trial, point) in enumerate(points) if not _beaten(point, points[:place], points[place + 1 :])]
        return tuple(sorted(stays, key=lambda trial: [trial.costs[name] for name in asked]))


def _measured(trial: Trial) -> float:
    assert trial.value is not None
    return trial.value


Point = tuple[float, ...]


def _beaten(point: Point, before: Sequence[tuple[Trial, Point]], after: Sequence[tuple[Trial, Point]]) -> bool:
    """Whether another point is nowhere worse, and better somewhere, or is the same and came earlier."""
    earlier = any(other == point for _, other in before)
    return earlier or any(
        other != point and all(one <= own for one, own in zip(other, point, strict=True)) for _, other in (*before, *after)
    )
