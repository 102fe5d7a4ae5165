"""What was measured on this machine, kept in a file so that it is measured once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from secateurs.replacing import beside

T = TypeVar("T")

_LONGEST = 1e6
"""More seconds than anything that was ever measured here."""

KERNELS_VERSION = 11
"""Grows with every change of kernels or formats after which measurements of before do not hold."""

FOLDER_VARIABLE = "SECATEURS_CACHE"
"""The environment variable that names the folder of measurements; by default ``~/.cache/secateurs``."""


def folder() -> Path:
    """Where measurements are kept."""
    home = os.environ.get(FOLDER_VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateurs"
    return Path(home)


@functools.cache
def machine() -> str:
    """What measurements depend on: the processor, its number of cores, and the versions of kernels and of torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in lines if ":" in line}
    model = [told.get(key, "") for key in ("model name", "cpu family", "model", "stepping", "flags")] or [platform.processor()]
    versions = [KERNELS_VERSION, torch.__version__]
    return "|".join([platform.machine(), *model, str(os.cpu_count()), *map(str, versions)])


def read_seconds(value: Any) -> float:
    """A time as it was remembered; raises `ValueError` for what can be none.

    >>> read_seconds(0.25)
    0.25
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _LONGEST:
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)


class Memory:
    """A dictionary of JSON values in a file of this machine. What is damaged, or of another machine, counts as unknown.

    Each value is read by a function that raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` for what it cannot be.

    >>> from tempfile import mkdtemp
    >>> memory = Memory(Path(mkdtemp()) / "measured.json")
    >>> memory.recall("a layer", read_seconds, lambda: 0.25)
    0.25
    >>> Memory(memory.path).get("a layer", read_seconds)
    0.25
    """

    def __init__(self, path: Path | None = None) -> None:
        name = hashlib.sha256(machine().encode()).hexdigest()[:16]
        self.path = path or folder() / f"measured-{name}.json"
        self._entries = self._read()

    def get(self, key: str, read: Callable[[Any], T]) -> T | None:
        """What is known, or None."""
        try:
            return read(self._entries[key])
        except (KeyError, ValueError, TypeError, AttributeError):
            return None

    def recall(self, key: str, read: Callable[[Any], T], measure: Callable[[], T], told: Callable[[T], Any] = lambda it: it) -> T:
        """What is known, else what is measured now, which is kept as ``told`` makes it JSON."""
        known = self.get(key, read)
        if known is not None:
            return known
        found = measure()
        with self.changing() as entries:
            entries[key] = told(found)
        return found

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """New entries are added to what the file holds by then, in one piece: a process that is killed leaves the old file."""
        new: dict[str, Any] = {}
        try:
            yield new
        finally:
            if new:
                self._entries = {**self._read(), **self._entries, **new}
                self._write()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
            return dict(found["entries"]) if found["machine"] == machine() else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with beside(self.path) as folder:
                part = folder / self.path.name
                part.write_text(json.dumps({"machine": machine(), "entries": self._entries}))
                os.replace(part, self.path)
        except OSError:
            pass  # a read-only home costs the next process its measurements, nothing else
