"""The way back from changes to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# ---------------------------------------------------------------- tensors


class Undo:
    """What was changed, so that it can be put back, last first."""

    def __init__(self) -> None:
        self._back: list[Callable[[], Any]] = []

    def add(self, back: Callable[[], Any]) -> None:
        self._back.append(back)

    def back_to(self, count: int) -> None:
        """Put back all but the first so many changes."""
        while len(self._back) > count:
            self._back.pop()()

    def __call__(self) -> None:
        self.back_to(0)

    def forget(self) -> None:
        """There is no way back any more."""
        self._back.clear()
