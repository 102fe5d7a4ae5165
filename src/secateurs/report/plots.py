"""The drawings of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secateurs.report.drawing import (
    COLOURS,
    DASHES,
    FAINT,
    FULL,
    KEPT,
    MARKERS,
    ORANGE,
    ROOMY,
    SHADE,
    WIDE,
    band,
    fitted,
    is_drawable,
    legend,
    styled,
    svg,
)
from secateurs.report.record import Curve, Layer, Record
from secateurs.report.words import percent, rounded, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def metric_curve(record: Record, width: float = WIDE) -> str:
    """The metric on validation data against sparsity, a line for each curve, as an inline SVG ``width`` inches wide.

    Where points tell their spread over seeds, a band of one standard deviation each way lies around the line.
    The axis is logarithmic in the fraction kept, so that 90, 99 and 99.9 % stand well apart. The dense level is dashed: that of
    the curves' own validation data at sparsity 0 where a curve starts there, else the dense entry's on test data, and labelled
    so. Points that are not finite are left out of the line. Empty text where there is no point to draw.

    >>> from secateurs.report import Curve, Point
    >>> metric_curve(Record("Digits", curves=(Curve("pruned", (Point(0.0, 0.98), Point(0.9, 0.97))),)))[:4]
    '<svg'
    """
    curves = [curve for curve in record.curves if any(is_drawable(point.metric) for point in curve.points)]
    if not curves:
        return ""
    with styled(width, 3.5 + 0.17 * -(-len(curves) // 3) if width >= ROOMY else 3.0 + 0.17 * len(curves)) as figure:
        axes = figure.add_subplot()
        floor, everything = _least_kept(curves), any(point.sparsity == 1 for curve in curves for point in curve.points)
        for index, curve in enumerate(curves):
            colour, marker, dash = (styles[index % len(styles)] for styles in (COLOURS, MARKERS, DASHES))
            kept = [max(1 - point.sparsity, floor) for point in curve.points]
            metric = [point.metric if is_drawable(point.metric) else math.nan for point in curve.points]
            band(axes, kept, metric, [point.spread or 0.0 for point in curve.points], colour)
            axes.plot(kept, metric, dash, color=colour, marker=marker, label=legend(curve.name), clip_on=False, zorder=3)
        level, origin = _dense_level(record, curves)
        if level is not None:
            axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label=f"dense ({origin} data)", zorder=2)
        _sparsity_axis(axes, floor, everything, most=11 if width >= ROOMY else 7)
        _metric_axis(axes, record)
        axes.set_title(fitted(f"validation {record.metric_name}", 40), loc="left")
        axes.grid(True, axis="both", linewidth=0.7)
        figure.legend(loc="outside upper left", ncols=3 if width >= ROOMY else 1, borderaxespad=0.2)
        return svg(figure, f"curve-{width:g}", f"{record.metric_name} on validation data against sparsity")


def layer_bars(record: Record, width: float = WIDE) -> str:
    """A bar for each layer, its full size in pale and what is kept in blue, as an inline SVG ``width`` inches wide.

    Wide drawings have a second panel with the fraction kept, because a small layer is a sliver beside a large one. The height
    grows with the number of layers. Empty text where the record has no layers.

    >>> from secateurs.report import Layer
    >>> "30 of 72" in layer_bars(Record("Digits", layers=(Layer("conv1", "Conv2d", (8, 1, 3, 3), 72, 30, 1920.0),)))
    True
    """
    layers = record.layers
    if not layers:
        return ""
    wide = width >= ROOMY
    with styled(width, 0.75 + len(layers) * (0.30 if len(layers) <= 12 else 0.225)) as figure:
        if wide:
            panels = figure.subplot_mosaic("SSSFF", sharey=True)
            sizes = panels["S"]
            _fraction_bars(panels["F"], layers)
        else:
            sizes = figure.add_subplot()
        _size_bars(sizes, layers, wide)
        sizes.set_ylim(len(layers) - 0.4, -0.6)  # the first layer on top
        return svg(figure, f"layers-{width:g}", "nonzero weights of each layer")


def training_curve(record: Record, width: float = WIDE) -> str:
    """Validation metric and training loss over the epochs, the sparsity shaded behind, as an inline SVG ``width`` inches wide.

    A panel without numbers is left out; where epochs lack a number, or it is not finite, the line has a gap. Empty text where
    there is neither a loss nor a metric.

    >>> from secateurs.report import History
    >>> training_curve(Record("Digits", history=History(({"loss": 0.3}, {"loss": 0.2}))))[:4]
    '<svg'
    """
    history = record.history
    validation = [value if is_drawable(value) else math.nan for value in history.column("validation")]
    loss = [value if is_drawable(value) else math.nan for value in history.column("loss")]
    panels = [
        (label, values, colour)
        for label, values, colour in ((f"validation {record.metric_name}", validation, KEPT), ("training loss", loss, ORANGE))
        if not all(map(math.isnan, values))
    ]
    if not panels:
        return ""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    sparsity = history.column("sparsity")
    epochs = list(range(1, len(history.epochs) + 1))
    with styled(width, 0.6 + 1.85 * len(panels)) as figure:
        stack: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        for axes, (label, values, colour) in zip(stack, panels, strict=True):
            if sparsity:
                _shade_sparsity(axes, epochs, sparsity)
                axes.set_title("weights removed, %" if width >= ROOMY else "removed, %", loc="right", color=FAINT)
            axes.plot(epochs, values, color=colour, marker="o" if len(epochs) <= 30 else "", markersize=3.5, zorder=3)
            axes.set_title(fitted(label, 26), loc="left")
            axes.grid(True, axis="y", linewidth=0.7)
            if colour == KEPT:
                _metric_axis(axes, record)
        stack[-1].set_xlabel("epoch")
        stack[-1].set_xlim(0.5, len(epochs) + 0.5)
        stack[-1].xaxis.set_major_locator(FixedLocator(epochs) if len(epochs) <= 12 else MaxNLocator(integer=True))
        return svg(figure, f"training-{width:g}", "validation metric, training loss and sparsity over the epochs")


# ---------------------------------------------------------------- parts of drawings


def _least_kept(curves: Sequence[Curve]) -> float:
    """Where the axis ends: the least fraction kept, or, as 0 has no logarithm, half of the least one above 0."""
    kept = [1 - point.sparsity for curve in curves for point in curve.points]
    least = min((fraction for fraction in kept if fraction > 0), default=1.0)
    return least / 2 if 0 in kept else least


def _dense_level(record: Record, curves: Sequence[Curve]) -> tuple[float | None, str]:
    starts = [point.metric for curve in curves for point in curve.points if point.sparsity == 0 and is_drawable(point.metric)]
    if starts:
        return starts[0], "validation"
    level = record.dense.metric if record.dense else None
    return (level if level is not None and is_drawable(level) else None), "test"


def _sparsity_axis(axes: Axes, floor: float, everything: bool, most: int) -> None:
    axes.set_xlim(1.12, min(floor, 0.9) * 0.9)  # first, because a logarithmic scale cannot fit itself to a single point
    axes.set_xscale("log")
    axes.minorticks_off()
    if floor > 0.3:
        ticks = [tenths / 10 for tenths in range(10, 2, -1)]
    else:
        ticks = [1.0] + [digit * 10.0**-power for power in range(1, 13) for digit in (5, 2, 1)]
    ticks = [tick for tick in ticks if tick >= 0.98 * floor]
    step = 1 if len(ticks) <= most else 3  # 90, 99, 99.9 …
    ticks = [tick for tick in ticks[::step] if not everything or tick > (1.9 if step == 1 else 4) * floor]
    labels = [f"{100 * (1 - tick):.12g}" for tick in ticks]
    if everything:  # stands where half of the least one would
        ticks, labels = [*ticks, floor], [*labels, "100"]
    axes.set_xticks(ticks, labels)
    axes.set_xlim(1.12, min(floor, 0.9) * 0.9)
    axes.set_xlabel("weights removed, %")


def _metric_axis(axes: Axes, record: Record) -> None:
    if record.in_percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _size_bars(axes: Axes, layers: Sequence[Layer], wide: bool) -> None:
    rows = range(len(layers))
    largest = max(layer.parameters for layer in layers) or 1
    axes.barh(rows, [layer.parameters for layer in layers], color=FULL, height=0.72)
    axes.barh(rows, [layer.nonzero for layer in layers], color=KEPT, height=0.72)
    for row, layer in enumerate(layers):
        kept = scaled(layer.nonzero) if wide else percent(1 - layer.sparsity)  # wide drawings have a panel for the fraction
        label = f"{kept} of {scaled(layer.parameters)}"
        axes.annotate(label, (layer.parameters, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    # Where room is scarce, leave out what all names begin with: "model.layers.".
    shared = 0 if wide or len(layers) < 2 else _parts_in_common([layer.name for layer in layers])
    axes.set_yticks(list(rows), [fitted(".".join(layer.name.split(".")[shared:]), 34 if wide else 17) for layer in layers])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1.7 * largest)  # room for the label of the largest layer
    _count_axis(axes, largest, 3 if wide else 2)
    axes.set_xlabel("weights: kept of all", loc="left")


def _parts_in_common(names: Sequence[str]) -> int:
    """How many dotted parts all names begin with, at most all but the last."""
    columns = list(zip(*(name.split(".")[:-1] for name in names), strict=False))  # as long as the shortest
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _count_axis(axes: Axes, largest: int, most: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(most, integer=True).tick_values(0, largest) if tick <= 1.02 * largest]
    axes.set_xticks(ticks, [rounded(tick) for tick in ticks])
    axes.spines["bottom"].set_bounds(0, largest)


def _fraction_bars(axes: Axes, layers: Sequence[Layer]) -> None:
    kept = [100 * (1 - layer.sparsity) for layer in layers]
    axes.barh(range(len(layers)), [100] * len(layers), color=FULL, height=0.72)
    axes.barh(range(len(layers)), kept, color=KEPT, height=0.72)
    for row, layer in enumerate(layers):
        text = percent(1 - layer.sparsity)
        axes.annotate(text, (100, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0, 130)
    axes.set_xticks([0, 50, 100])
    axes.spines["bottom"].set_bounds(0, 100)
    axes.set_xlabel("kept, % of the layer", loc="left")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _shade_sparsity(axes: Axes, epochs: Sequence[int], sparsity: Sequence[float]) -> None:
    behind = axes.twinx()
    behind.set_zorder(axes.get_zorder() - 1)
    axes.patch.set_visible(False)  # else it would hide what is behind
    behind.fill_between(
        [edge for epoch in epochs for edge in (epoch - 0.5, epoch + 0.5)],
        [100 * value for value in sparsity for _ in range(2)],
        color=SHADE,
        alpha=0.22,
        linewidth=0,
    )
    behind.set_ylim(0, 105)
    behind.set_yticks([0, 50, 100])
    behind.tick_params(axis="y", length=0, labelcolor=FAINT)
