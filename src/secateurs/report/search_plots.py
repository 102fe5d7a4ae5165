"""The drawings of a record: what was tried, what a plan leaves of each layer, how sites bear pruning, how well costs were predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secateurs.report.drawing import (
    COLOURS,
    FAINT,
    FULL,
    INK,
    KEPT,
    MARKERS,
    NARROW,
    ORANGE,
    ROOMY,
    SHADE,
    WIDE,
    fitted,
    is_drawable,
    legend,
    styled,
    svg,
)
from secateurs.report.record import Curve
from secateurs.report.search_record import Attempt, LayerCost, SearchRecord, front
from secateurs.report.words import number, percent, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SENSITIVE = 5
_SLIVER = 0.01


def pareto(record: SearchRecord, cost: str, width: float = WIDE) -> str:
    """The metric of every attempt against one of its costs, with the Pareto front and the dense model, as inline SVG.

    Each mark bears its name, its metric and its cost, which browsers show where the pointer rests. Groups differ in colour and in shape;
    the attempt that was chosen is ringed. Empty text where no attempt has both.

    >>> record = SearchRecord("Digits", units={"macs": "MACs"}, attempts=(Attempt("a", 0.9, {"macs": 3.0}),))
    >>> "<title>a: accuracy 90.0 %, 3 MACs</title>" in pareto(record, "macs")
    True
    """
    shown = [each for each in record.attempts if each.metric is not None and is_drawable(each.metric) and cost in each.costs]
    if not shown:
        return ""
    groups = list(dict.fromkeys(each.group for each in shown))
    columns = 4 if width >= ROOMY else 2
    titles: dict[str, str] = {}
    with styled(width, 3.7 + 0.17 * -(-(len(groups) + 3) // columns)) as figure:
        axes = figure.add_subplot()
        best = front(shown, cost, record.higher_is_better)
        axes.plot(
            [each.costs[cost] for each in best],
            [each.metric or 0.0 for each in best],
            color=SHADE,
            linewidth=1.2,
            drawstyle="steps-post",
            label="Pareto front",
            zorder=2,
        )
        for place, attempt in enumerate(shown):
            index = groups.index(attempt.group)
            titles[f"attempt{place}"] = _told(record, attempt, cost)
            axes.plot(
                [attempt.costs[cost]],
                [attempt.metric or 0.0],
                MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                alpha=1.0 if attempt in best else 0.55,
                label=legend(attempt.group) if attempt.group and attempt.group not in {e.group for e in shown[:place]} else None,
                gid=f"attempt{place}",
                zorder=3,
            )
        _mark_chosen(axes, record, cost)
        if record.dense is not None and record.dense.metric is not None and is_drawable(record.dense.metric):
            titles["dense"] = _told(record, record.dense, cost)
            axes.axhline(record.dense.metric, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            if cost in record.dense.costs:
                axes.plot(
                    [record.dense.costs[cost]],
                    [record.dense.metric],
                    "*",
                    color=INK,
                    markersize=10,
                    label="dense",
                    gid="dense",
                    zorder=4,
                )
        _axes(axes, record, f"{cost.replace('_', ' ')}, {record.units.get(cost, '')}".rstrip(", "))
        figure.legend(loc="outside upper left", ncols=columns, borderaxespad=0.2)
        return svg(figure, f"pareto-{cost}-{width:g}", f"{record.metric_name} of every attempt against {cost}", titles)


def _mark_chosen(axes: Axes, record: SearchRecord, cost: str) -> None:
    best = record.best
    if best is not None and best.metric is not None and cost in best.costs:
        ring = {"color": ORANGE, "fillstyle": "none", "markersize": 11, "markeredgewidth": 1.6}
        axes.plot([best.costs[cost]], [best.metric], "o", label="chosen", zorder=5, **ring)  # type: ignore[arg-type]


def _told(record: SearchRecord, attempt: Attempt, cost: str) -> str:
    metric = percent(attempt.metric) if record.in_percent else number(attempt.metric)
    taken = f", {_amount(attempt.costs[cost])} {record.units.get(cost, '')}".rstrip() if cost in attempt.costs else ""
    name = f"{attempt.group}, {attempt.name}" if attempt.group and attempt.group != attempt.name else attempt.name
    return f"{name}: {record.metric_name} {metric}{taken}"


def _axes(axes: Axes, record: SearchRecord, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.set_title(fitted(f"validation {record.metric_name}", 40), loc="left")
    axes.grid(True, axis="both", linewidth=0.7)
    if record.in_percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %"))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _tick(value: float, _: float) -> str:
    return scaled(value) if value >= 1e4 else f"{value:.6g}"


def cost_bars(record: SearchRecord, cost: str, width: float = WIDE) -> str:
    """A bar for each layer: what it costs in the dense model in pale, what the chosen plan leaves in blue, as inline SVG.

    Layers that cost less than a hundredth of all are drawn as one, at the end; those that cost nothing are left out. Empty text where
    nothing is known of them.

    >>> from secateurs.report import LayerCost
    >>> "25.0 %" in cost_bars(SearchRecord("Digits", layers=(LayerCost("macs", "conv1", 100.0, 25.0),)), "macs")
    True
    """
    layers = _joined([each for each in record.layers if each.cost == cost and each.dense > 0])
    if not layers:
        return ""
    with styled(width, 0.8 + len(layers) * (0.26 if len(layers) <= 20 else 0.19)) as figure:
        axes, rows = figure.add_subplot(), range(len(layers))
        largest = max(max(layer.dense, layer.left) for layer in layers)
        axes.barh(rows, [layer.dense for layer in layers], color=FULL, height=0.72)
        axes.barh(rows, [layer.left for layer in layers], color=KEPT, height=0.72)
        for row, layer in enumerate(layers):
            shown = (
                f"{_amount(layer.left)} of {_amount(layer.dense)} ({percent(layer.keep)})"
                if width > NARROW
                else percent(layer.keep)
            )
            place = (max(layer.dense, layer.left), row)
            axes.annotate(shown, place, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(list(rows), [fitted(layer.layer or "between layers", 34 if width > NARROW else 17) for layer in layers])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.5 * largest)
        ticks = [0.0, largest / 2, largest]
        axes.set_xticks(ticks, [_amount(tick) for tick in ticks])
        axes.spines["bottom"].set_bounds(0, largest)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlabel(f"{cost.replace('_', ' ')}, {record.units.get(cost, '')}".rstrip(", "), loc="left")
        return svg(figure, f"bars-{cost}-{width:g}", f"{cost} of each layer, dense and as planned")


def _joined(layers: Sequence[LayerCost]) -> list[LayerCost]:
    """Layers, and all small ones as one."""
    least = _SLIVER * sum(layer.dense for layer in layers)
    small = [layer for layer in layers if layer.dense < least]
    if len(small) < 2:
        return list(layers)
    rest = LayerCost(small[0].cost, f"{len(small)} others", sum(each.dense for each in small), sum(each.left for each in small))
    return [*(layer for layer in layers if layer.dense >= least), rest]


def _amount(value: float) -> str:
    return scaled(value) if value >= 1000 or value == int(value) else number(value, 3)


def sensitivity_curves(record: SearchRecord, width: float = WIDE) -> str:
    """The metric against the sparsity of one site alone, a line a site, as inline SVG; the five that lose most are named.

    Each line bears its site's name, which browsers show where the pointer rests. Empty text where there is no curve.

    >>> from secateurs.report import Curve, Point
    >>> curve = Curve("conv1", (Point(0.0, 0.98), Point(0.5, 0.9)))
    >>> "<title>conv1</title>" in sensitivity_curves(SearchRecord("Digits", sensitivity=(curve,)))
    True
    """
    curves = [each for each in record.sensitivity if any(is_drawable(point.metric) for point in each.points)]
    if not curves:
        return ""
    named = sorted(curves, key=lambda each: _loss(each, record.higher_is_better), reverse=True)[:_MOST_SENSITIVE]
    titles = {}
    with styled(width, 3.9 if width >= ROOMY else 4.4) as figure:
        axes = figure.add_subplot()
        for place, curve in enumerate(curves):
            points = [point for point in curve.points if is_drawable(point.metric)]
            titles[f"site{place}"] = curve.name
            index = named.index(curve) if curve in named else -1
            axes.plot(
                [100 * point.sparsity for point in points],
                [point.metric for point in points],
                color=COLOURS[index % len(COLOURS)] if index >= 0 else SHADE,
                marker=MARKERS[index] if index >= 0 else "",
                linewidth=1.8 if index >= 0 else 0.9,
                alpha=1.0 if index >= 0 else 0.6,
                label=legend(curve.name) if index >= 0 else None,
                gid=f"site{place}",
                zorder=3 if index >= 0 else 2,
            )
        _axes(axes, record, "removed of this site alone, %")
        axes.set_xlim(0, 100)
        figure.legend(loc="outside upper left", ncols=3 if width >= ROOMY else 1, borderaxespad=0.2)
        return svg(figure, f"sensitivity-{width:g}", f"{record.metric_name} against the sparsity of each site alone", titles)


def _loss(curve: Curve, higher_is_better: bool) -> float:
    values = [point.metric for point in curve.points if is_drawable(point.metric)]
    fallen = values[0] - sum(values) / len(values)
    return fallen if higher_is_better else -fallen


def predictions(record: SearchRecord, cost: str, width: float = WIDE) -> str:
    """What was predicted against what was measured, a mark a plan, with the line on which both are equal, as inline SVG.

    Empty text where there are fewer than three.

    >>> predictions(SearchRecord("Digits"), "latency_ms")
    ''
    """
    checks = [each for each in record.checks if each.cost == cost and is_drawable(each.predicted) and is_drawable(each.measured)]
    if len(checks) < 3:
        return ""
    with styled(min(width, 5.0), min(width, 5.0) * 0.85) as figure:
        axes = figure.add_subplot()
        _square(axes, [value for each in checks for value in (each.predicted, each.measured)])
        titles = {}
        for place, each in enumerate(checks):
            titles[f"check{place}"] = f"{each.name}: predicted {number(each.predicted)}, measured {number(each.measured)}"
            axes.plot([each.measured], [each.predicted], "o", color=KEPT, gid=f"check{place}", zorder=3)
        axes.xaxis.set_major_formatter(_tick)
        axes.yaxis.set_major_formatter(_tick)
        axes.set_xlabel(f"measured {cost.replace('_', ' ')}")
        axes.set_title("predicted", loc="left")
        axes.grid(True, linewidth=0.7)
        return svg(figure, f"predictions-{cost}-{width:g}", f"{cost}, predicted against measured", titles)


def _square(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low or high or 1)
    ends = (max(0.0, low - margin), high + margin)
    axes.plot(ends, ends, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
