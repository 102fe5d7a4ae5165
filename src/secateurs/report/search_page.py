"""A record as one HTML page that stands alone: no script, no network, no other file."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from secateurs.report.drawing import NARROW, WIDE
from secateurs.report.files import replace_text
from secateurs.report.page import rendered
from secateurs.report.search_plots import cost_bars, pareto, predictions, sensitivity_curves
from secateurs.report.search_record import Attempt, SearchRecord
from secateurs.report.words import UNKNOWN, number, percent, scaled


def search_html(record: SearchRecord) -> str:
    """The page as text; the same record gives the same text, and everything in it that came from outside is escaped.

    Sections without content are left out.

    >>> "<title>Digits &lt;1&gt;</title>" in search_html(SearchRecord("Digits <1>"))
    True
    """
    from markupsafe import Markup

    def pair(draw: Callable[[float], str]) -> list[Any]:
        return [Markup(draw(width)) for width in (WIDE, NARROW)]  # ours, and escaped by the XML writer

    def of_costs(draw: Callable[[SearchRecord, str, float], str]) -> dict[str, list[Any]]:
        drawn = {cost: pair(lambda width, cost=cost: draw(record, cost, width)) for cost in record.units}  # type: ignore[misc]
        return {cost: drawings for cost, drawings in drawn.items() if drawings[0]}

    return rendered(
        resources.files("secateurs.report").joinpath("search.html.jinja").read_text(encoding="utf-8"),
        record=record,
        verdict=_verdict(record),
        headings=[f"{cost.replace('_', ' ')}, {unit}" for cost, unit in record.units.items()],
        groups=_groups(record),
        paretos=of_costs(pareto),
        bars=of_costs(cost_bars),
        predicted=of_costs(predictions),
        sensitivity=pair(lambda width: sensitivity_curves(record, width)),
        checks=[_checked(each) for each in record.checks],
        failed=[each for each in record.attempts if each.error],
    )


def write_search_html(record: SearchRecord, path: str | os.PathLike[str]) -> Path:
    """Write the page in one step and return the path; on failure the old file, if any, survives.

    Raises `OSError` where the file cannot be written.

    >>> import tempfile
    >>> write_search_html(SearchRecord("Digits"), Path(tempfile.mkdtemp()) / "search.html").name
    'search.html'
    """
    return replace_text(path, search_html(record))


def _verdict(record: SearchRecord) -> str:
    """What was chosen, in a sentence."""
    best, tried = record.best, len(record.attempts)
    if best is None:
        plans = "1 plan was" if tried == 1 else f"{tried} plans were"
        return f"{plans} tried; none was chosen." if tried else "Nothing was tried."
    sentence = f"Of {tried} plans, {_name(best)} was chosen: {record.metric_name} {_metric(record, best)} on validation data"
    dense = record.dense
    if dense is not None and dense.metric is not None:
        sentence += f" ({_metric(record, dense)} dense)"
    left = [
        f"{percent(best.costs[cost] / dense.costs[cost])} of the {cost.replace('_', ' ')}"
        for cost in record.units
        if dense is not None and dense.costs.get(cost) and cost in best.costs
    ]
    return f"{sentence}, with {' and '.join(left)}." if left else f"{sentence}."


def _groups(record: SearchRecord) -> list[list[str]]:
    """A row for the dense model and one for the best attempt of each group."""
    rows = [] if record.dense is None else [["dense", "", *_numbers(record, record.dense)]]
    sign = 1 if record.higher_is_better else -1
    for group in dict.fromkeys(each.group for each in record.attempts):
        members = [each for each in record.attempts if each.group == group]
        done = [each for each in members if each.metric is not None and each.metric == each.metric]
        best = max(done, key=lambda each: sign * (each.metric or 0.0), default=None)
        numbers = [UNKNOWN] * (1 + len(record.units)) if best is None else _numbers(record, best)
        rows.append([group or (best or members[0]).name, str(len(members)), *numbers])
    return rows


def _numbers(record: SearchRecord, attempt: Attempt) -> list[str]:
    return [_metric(record, attempt), *(_amount(attempt.costs.get(cost)) for cost in record.units)]


def _metric(record: SearchRecord, attempt: Attempt) -> str:
    return percent(attempt.metric, 2) if record.in_percent else number(attempt.metric)


def _amount(value: float | None) -> str:
    return UNKNOWN if value is None else scaled(value) if value >= 1e4 else number(value)


def _name(attempt: Attempt) -> str:
    return f"{attempt.name} ({attempt.group})" if attempt.group and attempt.group != attempt.name else attempt.name


def _checked(check: Any) -> list[str]:
    off = check.deviation
    shown = f"{100 * off:+.1f} %" if off == off else UNKNOWN
    return [check.name, check.cost.replace("_", " "), _amount(check.predicted), _amount(check.measured), shown]
