"""Who is at work on what several processes share: a lock for each that lives, which whatever ends it lets go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

if sys.platform != "win32":
    import fcntl


class Owners:
    """A folder with a file for each process that is at work; use it as a context.

    >>> import tempfile
    >>> with Owners(Path(tempfile.mkdtemp())) as one, Owners(one.folder) as other:
    ...     with one.taken_over(other.name) as living, one.taken_over("nobody") as gone:
    ...         living, gone
    (False, True)
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, uuid4().hex
        self._handle: int | None = None

    def __enter__(self) -> Owners:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.folder / self.name, os.O_CREAT | os.O_RDWR)
        _lock(self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
        (self.folder / self.name).unlink(missing_ok=True)

    @contextmanager
    def taken_over(self, name: str) -> Iterator[bool]:
        """Whether an owner is there no more; while the block runs, nobody else is told so."""
        if name == self.name:
            yield False
            return
        handle = os.open(self.folder / name, os.O_CREAT | os.O_RDWR)
        gone = _lock(handle)
        try:
            yield gone
        finally:
            if gone:
                (self.folder / name).unlink(missing_ok=True)
            os.close(handle)


def _lock(handle: int) -> bool:
    """Whether nobody else holds the lock of a file; it is ours then, until the handle is closed or the process ends."""
    if sys.platform == "win32":
        return False  # it has no such locks: what a dead process left stays as it is
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
