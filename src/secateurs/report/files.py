"""Writing a file so that a crash, a full disk or an interrupt leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_text(path: str | os.PathLike[str], text: str) -> Path:
    r"""Write ``text`` as UTF-8 to ``path`` in one step, and return the path; missing folders are made.

    A lone surrogate (a file name that was not UTF-8, seen through ``sys.argv``) is written as ``\udcxx``.
    Raises `OSError` where the file cannot be written; the old file, if any, is then still there.

    >>> import tempfile
    >>> replace_text(Path(tempfile.mkdtemp()) / "new" / "note.txt", "snip").read_text()
    'snip'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is only atomic within one file system.
    temporary = path.parent / f".secateurs-{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
