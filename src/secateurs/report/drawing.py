"""How drawings look, and how they become inline SVG whose text stays text and whose colours are CSS variables of the page.

Every colour is a variable with the light one as its fallback, ``var(--plot-kept, #0072b2)``: the page repaints the drawings for
dark mode, and a drawing saved on its own still has its colours. Blue, orange and green are those of Okabe and Ito, which people
who confuse red and green can tell apart; curves differ by marker and dash as well.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from secateurs.report.words import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, FULL, KEPT = "#3c434c", "#6b7480", "#dfe3e8", "#d3dae2", "#0072b2"
ORANGE, GREEN, PINK, SHADE = "#d55e00", "#00805c", "#b0568c", "#8a95a1"
PAINTS = {
    INK: "--plot-ink",
    FAINT: "--plot-faint",
    GRID: "--plot-grid",
    FULL: "--plot-full",
    KEPT: "--plot-kept",
    ORANGE: "--plot-orange",
    GREEN: "--plot-green",
    PINK: "--plot-pink",
    SHADE: "--plot-shade",
}
"""Light colour → the CSS variable that repaints it."""

WIDE, NARROW = 8.0, 3.6
"""Widths in inches that suit a desk and a phone: text keeps its size, and the drawing gets fewer or shorter labels."""

ROOMY = 6.0  # inches from which there is room for a second panel, three legends in a row, all ticks
COLOURS, MARKERS, DASHES = (KEPT, ORANGE, GREEN, PINK, INK), "os^Dv*P", ("-", "--", "-.", ":")
# Three lists of lengths without a common factor: 140 curves before two look alike, and neighbours differ in all three.
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, copied, and takes the page's font
    "text.parse_math": False,  # a layer may be called "$x$"
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": "medium",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def is_drawable(value: float) -> bool:
    """Whether a number can stand on an axis: it is finite, and adding a margin leaves it so.

    >>> is_drawable(-3.5), is_drawable(float("nan")), is_drawable(1.7e308)
    (True, False, False)
    """
    return abs(value) <= 1e300  # false for NaN


def band(axes: Axes, kept: Sequence[float], metric: Sequence[float], spread: Sequence[float], colour: str) -> None:
    """One standard deviation each way around a line, where there is any."""
    if any(spread) and all(map(is_drawable, spread)):
        low, high = ([value + sign * width for value, width in zip(metric, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(kept, low, high, color=colour, alpha=0.18, linewidth=0, zorder=1)


def fitted(text: str, width: int) -> str:
    """A name in at most so many characters."""
    return shortened(printable(text), width)


def legend(text: str) -> str:
    """A name as a legend shows it."""
    # To matplotlib, a leading underscore means "keep out of the legend"; the word joiner before it has no width.
    name = fitted(text, 40) or "unnamed"
    return f"\N{WORD JOINER}{name}" if name.startswith("_") else name


@contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure in our style whatever the user's matplotlib settings are; pyplot, which keeps global state, is not touched."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, prefix: str, title: str, named: Mapping[str, str] | None = None) -> str:
    """The figure as an SVG element that can stand in a page beside others: own ids, the page's colours, no links outside.

    ``named`` gives parts of it, by their gid, names that browsers show where the pointer rests.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    matplotlib.rcParams["svg.hashsalt"] = prefix  # inside the context of styled: the same ids at each run
    file = io.StringIO()
    FigureCanvasSVG(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the page's fonts draw the text, not matplotlib's
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine(None)  # savefig would draw everything once more to find a place for it
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _own(key, value, prefix) for key, value in element.attrib.items()}
    parts = {element.get("id"): element for element in root.iter()}
    for gid, text in (named or {}).items():
        name = ElementTree.Element("title")
        name.text = printable(text)
        parts[f"{prefix}-{gid}"].insert(0, name)
    for metadata in root.findall("metadata"):  # names its vocabularies by http addresses
        root.remove(metadata)
    root.attrib.update({"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": printable(title)})
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key.endswith("href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = value.replace("url(#", f"url(#{prefix}-")
    for light, variable in PAINTS.items():
        value = value.replace(light, f"var({variable}, {light})")
    return value
