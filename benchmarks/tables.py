"""What every benchmark needs for its page: a table, and where it was made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from secateurs.report import environment

RESULTS = Path(__file__).parent / "results"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def made() -> str:
    """Date, machine and versions, for the foot of a page."""
    versions, machine, date = environment()
    return f"{date}; {machine}; " + ", ".join(f"{name} {version}" for name, version in versions.items())


def write(name: str, *parts: str) -> None:
    """Write a page of results, and print it."""
    page = "\n\n".join([*parts, made()]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
    print(page)
