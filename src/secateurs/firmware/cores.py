"""The chips that firmware is made for, and what it must fit there."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from secateurs.firmware.emulator import CORES, Core
from secateurs.firmware.error import FirmwareError

STACK = 1024
"""Bytes of SRAM beside the arena that the deepest call of a kernel may take: two hundred were the most that was seen."""


@runtime_checkable
class Chip(Protocol):
    """What firmware must fit, in bytes, and whose instructions it may use: `secateurs.targets.microcontroller` makes one."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def flash(self) -> int:
        """Bytes for code and weights."""

    @property
    def sram(self) -> int:
        """Bytes for the arena and the stack."""

    @property
    def cpu(self) -> str:
        """The name of its core, such as cortex-m4."""


def core_of(name: str) -> Core:
    """A core by its name.

    Raises `FirmwareError` for those that there is no emulator of.

    >>> core_of("cortex-m4").machine
    'mps2-an386'
    """
    found = {core.name: core for core in CORES}
    if name not in found:
        raise FirmwareError(
            f"there is no core {name!r} here; take one of {', '.join(found)}, whose code runs on others of its family too"
        )
    return found[name]
