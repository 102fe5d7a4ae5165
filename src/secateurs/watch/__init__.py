"""Watching a user's model while it runs, so that nothing of it is changed afterwards: its operations, its modules, its lines of code."""

from secateurs.watch.lines import is_users, line_of, where
from secateurs.watch.model import instead, modules, refuse_opaque, untouched
from secateurs.watch.operations import Operations, plain, storage_of, unfused, written_by

__all__ = [
    "Operations",
    "instead",
    "is_users",
    "line_of",
    "modules",
    "plain",
    "refuse_opaque",
    "storage_of",
    "unfused",
    "untouched",
    "where",
    "written_by",
]
