"""The compiled coders, where this installation has them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from typing import Any

from secateurs.types import SecateursError

BUILD_VARIABLE = "SECATEURS_CODING_NATIVE"
"""The environment variable that names another build of the extension, such as one with sanitizers; ``none`` for plain Python."""


def _extension() -> Any:
    name, path = "secateurs.coding._native", os.environ.get(BUILD_VARIABLE)
    if path == "none":
        return None
    if path is None:
        try:
            return importlib.import_module(name)
        except ImportError:
            return None
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise SecateursError(f"{BUILD_VARIABLE}={path}: that is no extension module")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


native = _extension()


@functools.cache
def say_that_there_is_none() -> None:
    """Warns, once, that coding takes hundreds of times as long as it need."""
    if os.environ.get(BUILD_VARIABLE) != "none":
        warnings.warn(
            "secateurs was installed without its coders (no C++ compiler at that time): coding is done in Python, hundreds of times "
            "slower, and gives the same bytes; install a compiler and reinstall",
            RuntimeWarning,
            stacklevel=5,
        )
