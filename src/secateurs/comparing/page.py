"""A comparison as one HTML page that stands alone."""

from __future__ import annotations

from importlib import resources

from secateurs.comparing.comparison import Comparison, Row
from secateurs.comparing.drawing import picture
from secateurs.report.drawing import NARROW, WIDE
from secateurs.report.page import rendered
from secateurs.report.words import UNKNOWN


def comparison_html(comparison: Comparison) -> str:
    """The page as text, in the style of the other reports; the same comparison gives the same text.

    >>> "<title>Digits &lt;1&gt;</title>" in comparison_html(Comparison("Digits <1>"))
    True
    """
    from markupsafe import Markup

    headings, rows = comparison.cells()
    best = [comparison.best(keep) for keep in dict.fromkeys(row.keep for row in comparison.rows)]
    drawings = {
        against: [Markup(picture(comparison, width, against)) for width in (WIDE, NARROW)]  # ours, and escaped by the XML writer
        for against in ("keep", "macs")
    }
    return rendered(
        resources.files("secateurs.comparing").joinpath("page.html.jinja").read_text(encoding="utf-8"),
        comparison=comparison,
        verdict=_verdict(comparison, [row for row in best if row is not None]),
        headings=headings,
        rows=rows,
        is_best=[False, *(row in best for row in comparison.rows)],
        unknown=UNKNOWN,
        drawings=drawings,
    )


def _verdict(comparison: Comparison, best: list[Row]) -> str:
    """Who is best where, in a sentence."""
    if not best:
        return "Nothing is concluded: no job came to an end."
    unit = " %" if comparison.in_percent else ""
    told = "; ".join(f"{row.recipe} at {100 * row.keep:.3g} % ({comparison.shown(row, 'metric')}{unit})" for row in best[:4])
    return f"Best {comparison.measured_on} {comparison.metric_name}: {told}."
