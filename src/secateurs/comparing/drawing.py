"""The plot of a comparison: a line a recipe, with bands over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from secateurs.comparing.comparison import Comparison, Row
from secateurs.report.drawing import COLOURS, DASHES, FAINT, MARKERS, ROOMY, WIDE, band, fitted, is_drawable, legend, styled, svg
from secateurs.types import SecateursError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Against = Literal["keep", "macs", "parameters"]
_AXES = {"keep": "kept, %", "macs": "MACs left, %", "parameters": "parameters left, %"}


def plot(comparison: Comparison, path: str | Path | None = None, *, against: Against = "keep", width: float = WIDE) -> Figure:
    """The metric against what is kept, a line a recipe from the dense model on, with bands of one standard deviation over the seeds.

    After training where there was any, else as cut. ``against`` is the fraction asked for, or what is left of the MACs or parameters.
    Returns matplotlib's figure, ``width`` inches wide, and writes it where a ``path`` is given.

    >>> from secateurs.comparing import Outcome
    >>> plot(Comparison("Digits", outcomes=(Outcome("taylor", 0.5, 0, dense=0.98, cut=0.91),))).axes[0].get_xlabel()
    'kept, %'
    """
    if against not in get_args(Against):
        raise SecateursError(f"plot: against={against!r} is none of {', '.join(get_args(Against))}")
    with styled(width, _height(comparison, width)) as figure:
        _draw(figure, comparison, against, width)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def picture(comparison: Comparison, width: float, against: Against = "keep") -> str:
    """The plot as inline SVG for a page; empty where there is nothing to draw."""
    if not any(row.mean("metric") is not None for row in comparison.rows):
        return ""
    with styled(width, _height(comparison, width)) as figure:
        _draw(figure, comparison, against, width)
        return svg(figure, f"comparison-{against}-{width:g}", f"{comparison.metric_name} against what is kept, recipe by recipe")


def _height(comparison: Comparison, width: float) -> float:
    lines = len({row.recipe for row in comparison.rows})
    return 3.6 + 0.17 * -(-lines // (3 if width >= ROOMY else 1))


def _draw(figure: Figure, comparison: Comparison, against: Against, width: float) -> None:
    axes = figure.add_subplot()
    recipes = list(dict.fromkeys(row.recipe for row in comparison.rows))
    level, least = comparison.dense.mean("dense"), 98.0
    for index, recipe in enumerate(recipes):
        rows = [row for row in comparison.rows if row.recipe == recipe and row.mean("metric") is not None]
        rows = [row for row in rows if is_drawable(row.mean("metric") or 0.0)]
        if not rows:
            continue
        colour, marker, dash = (styles[index % len(styles)] for styles in (COLOURS, MARKERS, DASHES))
        places = [100 * _place(row, against) for row in rows]
        values = [row.mean("metric") or 0.0 for row in rows]
        least = min(least, *places)
        band(axes, places, values, [row.spread("metric") or 0.0 for row in rows], colour)
        if level is not None and is_drawable(level) and max(places) < 100:
            places, values = [100.0, *places], [level, *values]
        axes.plot(places, values, dash, color=colour, marker=marker, label=legend(recipe), clip_on=False, zorder=3)
    if level is not None and is_drawable(level):
        axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label="dense", zorder=2)
    axes.set_xlabel(_AXES[against])
    axes.set_xlim(102, least - 2)  # the dense model on the left, as one prunes
    axes.set_title(fitted(f"{comparison.measured_on} {comparison.metric_name}", 40), loc="left")
    axes.grid(True, axis="both", linewidth=0.7)
    _in_percent(axes, comparison)
    figure.legend(loc="outside upper left", ncols=3 if width >= ROOMY else 1, borderaxespad=0.2)


def _in_percent(axes: Axes, comparison: Comparison) -> None:
    if comparison.in_percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _place(row: Row, against: Against) -> float:
    """Where a row stands, as a fraction of the dense model."""
    if against == "keep":
        return row.keep
    left, whole = row.mean(against), row.mean(f"dense_{against}")
    return left / whole if left is not None and whole else math.nan
