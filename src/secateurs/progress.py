"""One progress display for everything that takes time: bars on a terminal, elsewhere a line for what is worth one.

On a terminal, nested work adds a bar to one display, which goes away at the end. Where nobody watches (a log, a pipe), bars are
silent, and `tell` and `waiting` write one plain line each to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_current: list[Progress] = []
_silenced: list[bool] = []


def be_silent() -> None:
    """Show nothing from here on: for processes whose parent shows how far they are."""
    _silenced.append(True)


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    show: bool = True,
    status: Callable[[], str] = str,
) -> Generator[T, None, None]:
    """Yield the items while a bar shows how far they are; the bar goes when they end, or when the generator is closed.

    ``status`` is asked after each item for what stands beside the description, such as a metric. Where the caller's loop may raise,
    ``contextlib.closing`` around it keeps a dead bar from staying on the terminal.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    if not show or not is_watched():
        yield from items
        return
    with _bar(description, len(items) if total is None and isinstance(items, Sized) else total) as advance:
        for item in items:
            yield item
            advance(f"{description} {status()}".rstrip())


@contextmanager
def waiting(description: str, show: bool = True) -> Iterator[None]:
    """Say what is waited for while the block runs, where it cannot be told how far it is.

    >>> with waiting("measuring"):
    ...     pass
    """
    if not show or not is_watched():
        tell(f"{description} …", show)
        yield
        return
    with _bar(description, None):
        yield


def tell(text: str, show: bool = True) -> None:
    """Write a line to stderr where that is no terminal; on a terminal the bars tell it."""
    if show and not _silenced and sys.stderr is not None and not is_watched():
        print(text, file=sys.stderr, flush=True)


def is_watched() -> bool:
    """Whether somebody sees bars: stderr is a terminal."""
    return not _silenced and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """A bar on the one display; what it gives advances it by one and sets its text."""
    outermost = not _current
    if outermost:
        # Text as it is: a layer or a task may be called "[red]".
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        _current.append(Progress(*columns, console=Console(stderr=True), transient=True))
        _current[0].start()
    display = _current[0]
    bar = display.add_task(description, total=total)
    try:
        yield lambda text: display.update(bar, advance=1, description=text, refresh=text != description)
    finally:
        display.remove_task(bar)
        if outermost:
            display.stop()
            _current.clear()
