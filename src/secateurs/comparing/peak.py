"""How much memory a piece of work takes at most."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Bytes held at most, beyond those held before; ``None`` where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """How much this process comes to hold while the block runs; on Linux, which can be asked to watch anew.

    >>> with peak_memory() as peak:
    ...     pass
    >>> peak.bytes is None or peak.bytes >= 0
    True
    """
    peak, before = Peak(), _begin()
    yield peak
    after = _told("VmHWM")
    if before is not None and after is not None:
        peak.bytes = max(0, after - before)


def _begin() -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was given back counts as free, and not as held before
    except (OSError, AttributeError, TypeError):
        pass
    try:
        _CLEAR.write_text("5")  # the highest number begins anew
    except OSError:
        return None
    return _told("VmRSS")


def _told(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{name}:")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)
