"""What was measured on this machine, kept in a file so that it is measured once."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

KERNELS_VERSION = 10
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


class Memory:
    """A dictionary of JSON values in a file of this machine. A file that is damaged, or of another machine, counts as empty.

    >>> memory = Memory(Path(tempfile.mkdtemp()) / "measured.json")
    >>> with memory.changing() as entries:
    ...     entries["answer"] = 42
    >>> Memory(memory.path).get("answer")
    42
    """

    def __init__(self, path: Path | None = None) -> None:
        name = hashlib.sha256(machine().encode()).hexdigest()[:16]
        self.path = path or folder() / f"measured-{name}.json"
        self._entries = self._read()

    def get(self, key: str) -> Any:
        """What is known, or None."""
        return self._entries.get(key)

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
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "w") as file:
                json.dump({"machine": machine(), "entries": self._entries}, file)
            os.replace(part, self.path)
        except OSError:
            pass  # a read-only home costs the next process its measurements, nothing else
