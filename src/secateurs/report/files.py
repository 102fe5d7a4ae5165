"""Writing a file so that a crash, a full disk or an interrupt leaves the old file or the new one; reading one that may hold anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from secateurs.replacing import replacing
from secateurs.types import FileError

T = TypeVar("T")


def replace_text(path: str | os.PathLike[str], text: str) -> Path:
    r"""Write ``text`` as UTF-8 to ``path`` in one step, and return the path; missing folders are made.

    A lone surrogate (a file name that was not UTF-8, seen through ``sys.argv``) is written as ``\udcxx``.
    Raises `WriteError` where the file cannot be written; the old file, if any, is then still there.

    >>> import tempfile
    >>> replace_text(Path(tempfile.mkdtemp()) / "new" / "note.txt", "snip").read_text()
    'snip'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    return path


def read_parsed(path: str | os.PathLike[str], parse: Callable[[str], T], what: str) -> T:
    """What a file's text says; raises `FileError`, naming the file and what was expected, where it says nothing of the kind."""
    try:
        return parse(Path(path).read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(f"{os.fspath(path)}: this is not a {what}: expected UTF-8 text ({error})") from error
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error
