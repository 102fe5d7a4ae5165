"""One progress display for everything that takes time; nested work adds a line to it. Silent where nobody watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_current: list[Progress] = []


def track(items: Iterable[T], description: str, total: int | None = None, show: bool = True) -> Generator[T, None, None]:
    """Yield the items while a bar shows how far they are; the bar goes when they end, or when the generator is closed.

    Where the caller's loop may raise, ``contextlib.closing`` around it keeps a dead bar from staying on the terminal.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    if not show or not sys.stderr.isatty():
        yield from items
        return
    outermost = not _current
    if outermost:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        _current.append(Progress(*columns, console=Console(stderr=True), transient=True))
        _current[0].start()
    display = _current[0]
    bar = display.add_task(description, total=len(items) if total is None and isinstance(items, Sized) else total)
    try:
        for item in items:
            yield item
            display.advance(bar)
    finally:
        display.remove_task(bar)
        if outermost:
            display.stop()
            _current.clear()
