"""Writing a file so that a crash, a full disk or an interrupt leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

from secateurs.replacing import replacing


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
