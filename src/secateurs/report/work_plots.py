"""Drawings of what each input takes, where a model leaves out what an input does not need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from secateurs.report.drawing import COLOURS, DASHES, FAINT, MARKERS, ROOMY, WIDE, fitted, is_drawable, legend, styled, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from secateurs.per_input import WorkPerInput


def work_histogram(works: Mapping[str, WorkPerInput], width: float = WIDE) -> str:
    """How many inputs take which part of the work, a panel for each name, as an inline SVG ``width`` inches wide.

    A dashed line is the mean. Empty text where there is no input.

    >>> from secateurs.per_input import WorkPerInput
    >>> work_histogram({"half of the channels": WorkPerInput((2.0, 3.0), (4.0, 4.0))})[:4]
    '<svg'
    """
    shown = {name: work for name, work in works.items() if work.macs}
    if not shown:
        return ""
    with styled(width, 0.5 + 1.35 * len(shown)) as figure:
        stack: list[Axes] = list(figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0])
        most = max(1.0, *(max(work.fractions) for work in shown.values()))
        bins = [most * edge / 50 for edge in range(51)]
        for place, (axes, (name, work)) in enumerate(zip(stack, shown.items(), strict=True)):
            axes.hist(
                [100 * each for each in work.fractions], bins=[100 * edge for edge in bins], color=COLOURS[place % len(COLOURS)]
            )
            axes.axvline(100 * work.keep, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.set_title(f"{fitted(name, 60 if width >= ROOMY else 26)}: {100 * work.keep:.0f} %", loc="left")
            axes.set_ylabel("inputs")
        stack[-1].set_xlabel("work done, % of an input's own")
        stack[-1].set_xlim(0, 100 * most)
        return svg(figure, f"work-{width:g}", "how many inputs take which part of the work")


def work_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], metric_name: str, width: float = WIDE, work: str = "work done, %"
) -> str:
    """A metric against the work that is done, points ``(fraction of the work, metric)`` of each curve, as inline SVG.

    Points that are not finite are left out. Empty text where there is none.

    >>> work_curves({"tokens": [(1.0, 0.82), (0.6, 0.80)]}, "Spearman")[:4]
    '<svg'
    """
    found = {name: [point for point in points if all(map(is_drawable, point))] for name, points in curves.items()}
    found = {name: sorted(points) for name, points in found.items() if points}
    if not found:
        return ""
    with styled(width, 3.5) as figure:
        axes = figure.add_subplot()
        for place, (name, points) in enumerate(found.items()):
            colour, marker, dash = (styles[place % len(styles)] for styles in (COLOURS, MARKERS, DASHES))
            axes.plot(
                [100 * done for done, _ in points],
                [value for _, value in points],
                dash,
                color=colour,
                marker=marker,
                label=legend(name),
            )
        axes.set_xlabel(work)
        axes.set_title(fitted(metric_name, 40), loc="left")
        axes.grid(True, linewidth=0.7)
        figure.legend(loc="outside upper left", ncols=3 if width >= ROOMY else 1, borderaxespad=0.2)
        return svg(figure, f"work-curves-{width:g}", f"{metric_name} against the work that is done")
