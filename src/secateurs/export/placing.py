"""Files that appear whole or not at all, also where there are two of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateurs.replacing import beside
from secateurs.types import WriteError


@contextmanager
def placing(path: str | Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside `path`, all files of which take their place when the block ends well.

    ONNX names a file of weights inside the file of the graph, so that neither can be written under another name and moved alone.
    The graph comes last. Whatever goes wrong in the block, the old files stay.

    Raises `WriteError` where the disk is full, the folder is missing or read-only, or the path is a folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with placing(f"{folder}/model.onnx") as file:
    ...         _ = file.write_text("graph")
    ...     Path(f"{folder}/model.onnx").read_text()
    'graph'
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder; name a file in it")
        with beside(target) as folder:
            yield folder / target.name
            for written in sorted(folder.iterdir(), key=lambda each: each.name == target.name):
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(written, target.with_name(written.name))
    except OSError as error:
        raise WriteError(f"could not write {target}: {error}; what was there before is untouched") from error
