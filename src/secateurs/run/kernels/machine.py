"""Which kernels this machine can run."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from dataclasses import dataclass
from typing import Any

from secateurs.types import SecateursError

VARIABLE = "SECATEURS_ISA"
"""The environment variable that forces one instruction set: avx512, avx2, baseline, generic, or none for plain torch."""

BUILD_VARIABLE = "SECATEURS_NATIVE"
"""The environment variable that names another build of the extension, such as one with sanitizers."""


class KernelError(SecateursError):
    """Kernels were asked for that this machine or this installation does not have."""


@dataclass(frozen=True)
class InstructionSet:
    """The kernels in use: the instruction set's name, and how many float32 numbers one of its vectors holds."""

    name: str
    lanes: int


def _extension() -> Any:
    name, path = "secateurs.run._native", os.environ.get(BUILD_VARIABLE)
    if path is None:
        try:
            return importlib.import_module(name)
        except ImportError:
            return None
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise KernelError(f"{BUILD_VARIABLE}={path}: that is no extension module")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


native = _extension()


def available() -> tuple[InstructionSet, ...]:
    """The instruction sets that this machine has kernels for, the best one first; none without the compiled extension.

    >>> all(each.lanes in (4, 8, 16) for each in available())
    True
    """
    return () if native is None else tuple(InstructionSet(name, lanes) for name, lanes in native.instruction_sets())


def instruction_set(name: str | None = None) -> InstructionSet | None:
    """The instruction set to use: the named one, else that of ``$SECATEURS_ISA``, else the best one; None for plain torch.

    Raises `KernelError` where this machine does not have it. Without the compiled extension it says so, once, and returns None.
    """
    wanted = name or os.environ.get(VARIABLE) or None
    there = available()
    if wanted == "none":
        return None
    if wanted is None and not there:
        _say_that_there_is_none()
        return None
    found = [each for each in there if wanted in (None, each.name)]
    if not found:
        known = ", ".join(each.name for each in there) or "none, since the extension was not built"
        raise KernelError(f"instruction set {wanted!r}: this machine has kernels for: {known}; unset {VARIABLE} to choose the best")
    return found[0]


def narrower(isa: InstructionSet, count: int) -> InstructionSet:
    """The instruction set whose vectors so few positions fill best: not a wider one than they need.

    >>> narrower(InstructionSet("generic", 4), 100).name
    'generic'
    """
    fitting = [each for each in available() if count <= each.lanes < isa.lanes and each.lanes >= 8]
    return min(fitting, key=lambda each: each.lanes, default=isa)


@functools.cache
def _say_that_there_is_none() -> None:
    warnings.warn(
        "secateurs was installed without its kernels (no C++ compiler at that time): models run on plain torch, sparse ones no faster "
        "than dense ones; install a compiler and reinstall",
        RuntimeWarning,
        stacklevel=4,
    )


def native_module() -> Any:
    """The compiled extension; raises `KernelError` where it is not there."""
    if native is None:
        raise KernelError("secateurs was installed without its kernels: install a C++ compiler and reinstall")
    return native
