"""One HTML page that stands alone: no script, no network, no other file; light and dark, screen, phone and paper."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from secateurs.report.drawing import NARROW, WIDE, is_drawable
from secateurs.report.files import replace_text
from secateurs.report.plots import layer_bars, metric_curve, training_curve
from secateurs.report.record import Layer, Record
from secateurs.report.summary import footnotes, remarks, result_table, verdict
from secateurs.report.words import UNKNOWN, percent, printable, scaled

_TIMES = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"


def html(record: Record) -> str:
    """The page as text; the same record gives the same text, and everything in it that came from outside is escaped.

    Sections without content are left out.

    >>> page = html(Record("Digits <1>"))
    >>> "<title>Digits &lt;1&gt;</title>" in page
    True
    """
    from markupsafe import Markup

    headings, rows = result_table(record)
    drawings = {
        name: [Markup(draw(record, width)) for width in (WIDE, NARROW)]  # ours, and escaped by the XML writer
        for name, draw in (("curve", metric_curve), ("bars", layer_bars), ("training", training_curve))
    }
    return rendered(
        resources.files("secateurs.report").joinpath("page.html.jinja").read_text(encoding="utf-8"),
        record=record,
        verdict=verdict(record),
        remarks=remarks(record),
        headings=headings,
        rows=rows,
        footnotes=footnotes(record),
        unknown=UNKNOWN,
        total=_total(record.layers),
        banded=any(point.spread for curve in record.curves for point in curve.points),
        undrawn=sum(not is_drawable(point.metric) for curve in record.curves for point in curve.points),
        **drawings,
    )


def rendered(template: str, **values: Any) -> str:
    """A page of a template, with the one style of all pages; what came from outside is escaped.

    >>> rendered("<p>{{ text }}</p>", text="a < b")
    '<p>a &lt; b</p>'
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, scaled=scaled, together=_together, shapes=_shapes)
    style = Markup(resources.files("secateurs.report").joinpath("style.css").read_text(encoding="utf-8"))  # ours
    return printable(environment.from_string(template).render(style=style, **values))


def write_html(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write the page in one step and return the path; on failure the old file, if any, survives.

    Raises `OSError` where the file cannot be written.

    >>> import tempfile
    >>> write_html(Record("Digits"), Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    return replace_text(path, html(record))


def _total(layers: tuple[Layer, ...]) -> Layer:
    """All layers as one, for the last row of their table."""
    parameters, nonzero = sum(layer.parameters for layer in layers), sum(layer.nonzero for layer in layers)
    return Layer("all layers", "", (), parameters, nonzero, sum(layer.macs for layer in layers))


def _shapes(layer: Layer) -> str:
    """The shape of a layer's weight, and what it became where units went for good; sizes and signs stay together, shapes need not."""
    before, after = (_TIMES.join(map(str, shape)) for shape in (layer.shape, layer.new_shape or ()))
    if layer.new_shape is None or layer.new_shape == layer.shape:
        return before
    return f"{before} \N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}{after or 'gone'}"


def _together(text: str) -> str:
    """The text with each number held together with its unit, so that no line ends between them."""
    return re.sub(r"(?<=\d) (?=(?:%|[kMGT]?B|[kMGT]|s|min|h|points)\b|%)", "\N{NO-BREAK SPACE}", text)
