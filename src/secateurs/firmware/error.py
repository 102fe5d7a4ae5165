"""What goes wrong when a network is to become C."""

from __future__ import annotations

from secateurs.types import SecateursError


class FirmwareError(SecateursError):
    """A network cannot become C for this machine, or does not fit; nothing was written."""
