"""What goes wrong when a model is to leave."""

from __future__ import annotations

from secateurs.types import SecateursError


class ExportError(SecateursError):
    """A model cannot be written for another runtime, or is not the same there; no file was written and no weight changed."""
