"""The error of compiled models."""

from secateurs.types import SecateursError


class CompileError(SecateursError):
    """A model does something that a fixed list of operations cannot repeat, or a compiled one is asked for what it cannot do."""
