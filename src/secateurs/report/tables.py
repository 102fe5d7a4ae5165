"""Tables for a terminal: the layers of a model, and its sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import nn

from secateurs.costs import trace_macs
from secateurs.patterns import find_weights, misfit
from secateurs.report.measure import layers
from secateurs.report.words import printable
from secateurs.types import Pattern, Site, Sites

_WIDE = 120  # columns of a terminal from which all that is known of a layer stands in one row


def site_table(sites: Sites) -> Table:
    """A row a site of a pattern on axes: its units, and all layers that are tied to it."""
    made = Table(title=type(sites.model).__name__, title_justify="left", box=SIMPLE_HEAD, padding=0)
    made.add_column("site", overflow="fold")
    made.add_column("units", justify="right", no_wrap=True)
    made.add_column("weights\na unit", justify="right", no_wrap=True)
    made.add_column("tied layers", overflow="fold", ratio=2)
    made.add_column("removal is", overflow="fold", ratio=1)
    for site in sites:
        made.add_row(*map(Text, (site.name, f"{site.units:,}", f"{site.elements_per_unit:,}", _tied(site), site.note)))
    exact = sum(site.note == "exact" for site in sites)
    made.caption = f"{len(sites)} sites, {exact} exact: what is removed there changes nothing that masking does not."
    if exact < len(sites):
        made.caption += " The others take part with channel(approximate=True)."
    return made


def _tied(site: Site) -> str:
    """The layers in which a site lies, those that make its units first."""
    layers = list(dict.fromkeys(member.parameter.rpartition(".")[0] or member.parameter for member in site.members))
    return ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")


def layer_tables(network: nn.Module, example: Any, tried: Sequence[Pattern], width: int) -> list[Table]:
    """A row a layer: its numbers, and which patterns fit it; two tables where one would be too wide for the terminal."""
    macs = trace_macs(network, example).by_parameter if example is not None else {}
    found, _ = find_weights(network)
    rows = layers(network)
    names = ("layer", [row.name for row in rows])
    numbers = [
        ("kind", [row.kind for row in rows]),
        ("shape", ["x".join(map(str, row.shape)) for row in rows]),
        ("parameters", [f"{row.parameters:,}" for row in rows]),
        ("nonzero", [f"{row.nonzero:,}" for row in rows]),
        ("MACs", [f"{macs.get(weight.parameter, 0.0):,.0f}" if macs else "–" for weight in found]),
    ]
    fits = [(_stacked(each), ["no" if misfit(each, weight.shape) else "yes" for weight in found]) for each in tried]
    total = sum(parameter.numel() for parameter in network.parameters())
    caption = f"{total:,} parameters, biases and normalisations included"
    if width >= _WIDE:
        return [_table(type(network).__name__, [names, *numbers, *fits], caption)]
    return [_table(type(network).__name__, [names, *numbers], caption), _table("patterns that fit", [names, *fits])]


def _stacked(pattern: Pattern) -> str:
    """A pattern's name with its arguments below it."""
    kind, _, arguments = str(pattern).partition("(")
    return f"{kind}\n{arguments[:-1]}"


def _table(title: str, columns: Sequence[tuple[str, list[str]]], caption: str = "") -> Table:
    """Columns under their headings: names may be folded where the terminal is narrow, numbers never."""
    made = Table(title=Text(title), title_justify="left", caption=caption, box=SIMPLE_HEAD, padding=0)
    for heading, _ in columns:
        is_number = heading in ("parameters", "nonzero", "MACs")
        justify: Literal["left", "right", "center"] = "right" if is_number else "center" if "\n" in heading else "left"
        made.add_column(Text(heading), justify=justify, no_wrap=is_number or heading == "shape", overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made
