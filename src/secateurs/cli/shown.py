"""What the command line shows of a model's sites, and of what is left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateurs.cli.terminal import say
from secateurs.patterns import find_sites
from secateurs.report.tables import site_table
from secateurs.types import Pattern, SecateursError


def print_reasons(why: Iterable[tuple[str, str]]) -> None:
    """A line a reason, with the names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in why:
        names.setdefault(reason, []).append(name)
    for reason, alike in names.items():
        say(f"{', '.join(alike)}: {reason}")


def show_sites(network: nn.Module, pattern: Pattern, example: Any) -> None:
    """The sites of a pattern on axes as a table, and what is left alone."""
    if example is None:
        raise SecateursError("what is coupled is found by running the model once: give --task or --input-shape")
    sites = find_sites(network, pattern, example)
    say(site_table(sites))
    if sites.skipped:
        say("left alone:")
        print_reasons((item.name, item.reason) for item in sites.skipped)
