"""One way to write a file and one way to read it: safetensors with a JSON document, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateurs.types import FileError, WriteError

_KEY = "secateurs"
FORMAT = 1


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well; otherwise what was there stays.

    Raises `WriteError` where the disk is full or the folder is missing or read-only.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as probe:  # the umask's permissions; safetensors would let nobody but the owner read
            mode = stat.S_IMODE(os.fstat(probe.fileno()).st_mode)
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"could not write {target}: {error}; what was there before is untouched") from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def write(path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document as one safetensors file; the old file survives whatever goes wrong."""
    text = json.dumps({"format": FORMAT, **document})
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={_KEY: text})


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of a file; the document is empty where another program wrote the file.

    Raises `FileError` where the file is missing, truncated, corrupted or of a later format.
    """
    try:
        with safe_open(str(path), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError) as error:
        raise FileError(f"{path} is no readable safetensors file ({error}): is it complete, and the right file?") from error
    if _KEY not in metadata:
        return tensors, {}
    try:
        document = json.loads(metadata[_KEY])
        version = document["format"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise FileError(f"{path}: its secateurs document is damaged ({type(error).__name__})") from error
    if not isinstance(version, int):
        raise FileError(f"{path}: its secateurs document is damaged (its format is no number)")
    if version != FORMAT:
        raise FileError(f"{path} is of format {version!r}; this version reads format {FORMAT}: update secateurs")
    return tensors, document
