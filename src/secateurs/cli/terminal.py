"""What the command line prints, and what its words must be."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from secateurs.report.words import printable
from secateurs.types import SecateursError

_MOST_THREADS = 1024

# ---------------------------------------------------------------- what is printed


def say(what: str | Text | RenderableType, stderr: bool = False) -> None:
    """Print text as it is, or a table. All output of the command line passes here: no text is ever read as markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.print(Text(printable(what)) if isinstance(what, str) else what, soft_wrap=isinstance(what, str | Text))


def warn(text: str) -> None:
    """A warning beside what is printed."""
    say(Text.assemble(("warning: ", "bold yellow"), printable(text)), stderr=True)


@contextmanager
def stopping(how: str, *options: str) -> Iterator[None]:
    """Where the user stops what is in here, tell how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
        say(f"stopped; {how} with: {shlex.join([Path(sys.argv[0]).name, *words, *options])}", stderr=True)
        raise


# ---------------------------------------------------------------- words of the command line


def command_line() -> str:
    """The command as it was given."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def plain(value: Any) -> Any:
    """An option as JSON holds it."""
    return str(value) if isinstance(value, Path) else value


def require_at_least(least: int, **options: int | None) -> None:
    """Raise `SecateursError` for an option that is given and too small."""
    for name, value in options.items():
        if value is not None and value < least:
            raise SecateursError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


def require_threads(*numbers: int | None) -> None:
    """Raise `SecateursError` for numbers of threads that cannot be."""
    for number in numbers:
        if number is not None and not 1 <= number <= _MOST_THREADS:
            raise SecateursError(f"--threads {number}: must be from 1 to {_MOST_THREADS}")


def require_seed(seed: int) -> None:
    """Raise `SecateursError` for a seed that torch does not take."""
    if not 0 <= seed < 2**32:
        raise SecateursError(f"--seed {seed}: must be from 0 to {2**32 - 1}")
