"""The command line."""

from secateurs.cli.commands import main

__all__ = ["main"]
