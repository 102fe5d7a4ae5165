"""Packages that only some searches need."""

from __future__ import annotations

import importlib
from typing import Any

from secateurs.types import SecateursError


def extra(package: str, of: str, why: str) -> Any:
    """A package of one of our extras; raises `SecateursError` that names the extra where it is not installed.

    >>> extra("nowhere_to_be_found", "search", "this searches")
    Traceback (most recent call last):
    secateurs.types.SecateursError: this searches with nowhere_to_be_found, which is not installed: pip install 'secateurs[search]'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise SecateursError(f"{why} with {error.name}, which is not installed: pip install 'secateurs[{of}]'") from error
