"""A plan of memory as a picture: steps from left to right, bytes from bottom to top, a box for all that lies in the arena."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.firmware.arena import Arena, Slot, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, ORANGE, SHADE = "#3c434c", "#6b7480", "#dfe3e8", "#d55e00", "#8a95a1"
TINTS = ("#0072b2", "#00805c", "#b0568c")
"""As in reports, whose pages repaint these for dark mode."""
HEIGHT, LETTER, LINE = 4.2, 0.072, 0.13  # inches: of the picture, of a letter and of a line of small print
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "arena",
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
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
}


def draw_arena(
    arena: Arena, steps: Sequence[Step], path: str | Path | None = None, *, limit: int | None = None, width: float = 8.0
) -> Figure:
    """A plan of memory as matplotlib's figure, ``width`` inches wide, written where a ``path`` is given (its ending tells how).

    ``steps`` are those for which it was made. Arrays are tinted, what a step needs for itself is hatched; ``limit`` bytes of SRAM are a
    line of their own.

    >>> from secateurs.firmware.arena import lay_out
    >>> steps = [Step("conv", ("x",), ("y",), scratch=20)]
    >>> draw_arena(lay_out(steps, {"x": 100, "y": 60}, ["x"], ["y"]), steps).axes[0].get_title(loc="left")
    'arena: 180 bytes, fullest at conv'
    """
    with _drawn(arena, steps, limit, width) as figure:
        if path is not None:
            figure.savefig(path, dpi=150, metadata={"Date": None} if str(path).endswith(".svg") else None)
        return figure


def arena_svg(arena: Arena, steps: Sequence[Step], *, limit: int | None = None, width: float = 8.0) -> str:
    """The picture of `draw_arena` as a file of SVG, the same for the same plan."""
    file = io.StringIO()
    with _drawn(arena, steps, limit, width) as figure:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@contextmanager
def _drawn(arena: Arena, steps: Sequence[Step], limit: int | None, width: float) -> Iterator[Figure]:
    """The picture in our style, whatever the user's matplotlib settings are."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of names in scripts that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, HEIGHT), layout="constrained")
        axes, names = figure.add_subplot(), [steps[number].name for number in arena.order]
        top = 1.06 * max(arena.bytes, limit or 0, 1)
        axes.set_xlim(0, max(1, len(names)))
        axes.set_ylim(0, top)
        inches = (width - 0.9) / max(1, len(names)), (HEIGHT - 1.2) / top
        _boxes(axes, arena, inches)
        _lines(axes, arena, limit, len(names))
        _axes(axes, arena, names, inches[0])
        yield figure


def _boxes(axes: Axes, arena: Arena, inches: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    named: dict[Slot, list[str]] = {}  # views lie where what they view does
    for name, slot in arena.places.items():
        named.setdefault(slot, []).append(name)
    taken = {(slot.offset, slot.first) for slot in named}
    for number, (slot, names) in enumerate(sorted(named.items(), key=lambda item: (item[0].first, item[0].offset))):
        begin, end = float(slot.first), float(slot.last + 1)
        if any((slot.offset, slot.first) == (other.offset, other.last) and other.first < slot.first for other in named):
            begin += 0.5  # it overwrites another while this step runs
        if slot.first < slot.last and (slot.offset, slot.last) in taken:
            end -= 0.5
        tint = TINTS[number % len(TINTS)]
        axes.add_patch(Rectangle((begin, slot.offset), end - begin, slot.bytes, facecolor=tint, alpha=0.32, linewidth=0))
        axes.add_patch(Rectangle((begin, slot.offset), end - begin, slot.bytes, fill=False, edgecolor=tint, linewidth=0.9))
        _label(axes, ", ".join(names), (begin, end), slot, inches)
    for name, slot in arena.scratch.items():
        axes.add_patch(
            Rectangle((slot.first, slot.offset), 1, slot.bytes, facecolor="none", edgecolor=SHADE, hatch="////", linewidth=0.9)
        )
        _label(axes, f"for {name}", (slot.first, slot.first + 1), slot, inches)


def _label(axes: Axes, text: str, span: tuple[float, float], slot: Slot, inches: tuple[float, float]) -> None:
    """A name where there is room, along the box or up it."""
    wide, high = (span[1] - span[0]) * inches[0], slot.bytes * inches[1]
    upright = high > wide and wide > LINE and len(text) * LETTER > wide
    room = int((high if upright else wide) / LETTER) - 1
    if min(wide, high) < LINE or room < min(len(text), 4):
        return
    shown = text if len(text) <= room else text[: room - 1] + "…"
    middle = (span[0] + span[1]) / 2, slot.offset + slot.bytes / 2
    axes.text(*middle, shown, ha="center", va="center", fontsize=7.5, rotation=90 if upright else 0, clip_on=True)


def _lines(axes: Axes, arena: Arena, limit: int | None, count: int) -> None:
    axes.axhline(arena.bytes, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    if limit is not None:
        axes.axhline(limit, color=ORANGE, linewidth=1.4)
        axes.text(max(1, count), limit, f"limit {limit:,} bytes ", ha="right", va="bottom", fontsize=8, color=ORANGE)


def _axes(axes: Axes, arena: Arena, names: Sequence[str], inches: float) -> None:
    alive = [arena.alive(moment) for moment in range(len(names))]
    fullest = f", fullest at {names[alive.index(max(alive))]}" if names else ""
    axes.set_title(f"arena: {arena.bytes:,} bytes{fullest}", loc="left")
    axes.set_ylabel("bytes")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(True, axis="y", linewidth=0.7)
    every = max(1, -(-int(1000 * LINE) // max(1, int(1000 * inches))))
    shown = range(0, len(names), every)
    axes.set_xticks([place + 0.5 for place in shown])
    short = (name if len(name) <= 22 else name[:10] + "…" + name[-11:] for name in (names[place] for place in shown))
    axes.set_xticklabels(list(short), rotation=90, fontsize=7.5)
    axes.tick_params(axis="x", length=0)
