"""Files that are written whole or not at all, by processes that may be killed at any moment."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from safetensors import SafetensorError

from secateurs.types import WriteError

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well; otherwise what was there stays.

    Raises `WriteError` where the disk is full or the folder is missing or read-only, and where the path is that of a folder or a device.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # the superuser would get a file in the place of /dev/null
            what = "a folder" if target.is_dir() else "a device or a pipe"
            raise OSError(f"it is {what}, and what is written takes the place of files only; name a file")
        with beside(target) as folder:
            temporary = folder / target.name
            with open(temporary, "wb") as probe:  # the umask's permissions; safetensors would let nobody but the owner read
                mode = stat.S_IMODE(os.fstat(probe.fileno()).st_mode)
            yield temporary
            os.chmod(temporary, mode)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"could not write {target}: {error}; what was there before is untouched") from error


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A hidden folder beside a file, for what is to take its place; it is gone when the block ends.

    It is locked for as long as the process lives, whatever ends it: so the next one that writes the same file knows what a dead
    process has left, and removes it.
    """
    tidy(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def tidy(path: str | Path) -> None:
    """Remove what dead processes left while they were writing this file; never what a living one is writing."""
    target = Path(path)
    left = re.compile(re.escape(f".{target.name}.") + r"[^.]+\.part")
    try:
        folders = [Path(entry) for entry in os.scandir(target.parent) if left.fullmatch(entry.name) and entry.is_dir()]
    except OSError:
        return
    for folder in folders:
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        if _lock(lock, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    while True:
        folder = Path(mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        _lock(lock, wait=True)
        if folder.exists():
            return folder, lock
        os.close(lock)  # somebody took it for a dead one's before it was locked


def _lock(handle: int, wait: bool) -> bool:
    """Whether nobody else holds the lock of a folder; it is ours then, until the handle is closed or the process ends."""
    if sys.platform == "win32":
        return False  # it has no such locks: what a dead process leaves stays there
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # taken, or a file system without locks
        return False
    return True
