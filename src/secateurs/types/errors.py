"""What can go wrong; every message names the place, the value and the way out."""

from __future__ import annotations


class SecateursError(ValueError):
    """Something that a caller can put right; the message names the place, the value and the way out."""


class KindError(SecateursError, TypeError):
    """An argument is another kind of thing than what is asked for."""


class PatternError(SecateursError):
    """A pattern does not fit a weight."""


class PlanError(SecateursError):
    """A plan asks for a number of units that is not there."""


class NonFiniteError(SecateursError):
    """A weight, a score or a loss is NaN or infinite."""


class TaskError(SecateursError):
    """The task and the model do not fit each other: example, batches, loss, metric, dtype or device."""


class FileError(SecateursError):
    """A file is truncated, corrupted, hostile, or belongs to another model."""


class WriteError(OSError, SecateursError):
    """A file could not be written: a full disk, a folder that is missing or read-only; what was there before is untouched."""
