"""At which line of the user's code something happens."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import FrameType

import torch

_SKIPPED_FILES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
_MODELS = str(Path(__file__).parents[1] / "models")


def where() -> str:
    """File and line of the nearest caller outside of torch and of this package (its models apart)."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not is_users(frame):
        frame = frame.f_back
    return "torch" if frame is None else line_of(frame)


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs code that is neither torch's nor ours."""
    return _is_users(frame.f_code.co_filename)


@functools.cache
def _is_users(file: str) -> bool:
    return not file.startswith(_SKIPPED_FILES) or file.startswith(_MODELS)


def line_of(frame: FrameType) -> str:
    """Folder, file and line of what a frame runs."""
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


@functools.cache
def _short(file: str) -> str:
    path = Path(file)
    return f"{path.parent.name}/{path.name}"
