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

    def __call__(self) -> None:
        while self._back:
            self._back.pop()()
