"""Watching a user's model while it runs, so that nothing of it is changed afterwards: its operations, its modules, its lines of code."""

from secateurs.watch.lines import is_users, line_of, where
from secateurs.watch.model import cut_short, instead, modules, refuse_opaque, until_given, untouched
from secateurs.watch.operations import Operations, plain, storage_of, unfused, written_by

__all__ = [
    "Operations",
    "cut_short",
    "instead",
    "is_users",
    "line_of",
    "modules",
    "plain",
    "refuse_opaque",
    "storage_of",
    "unfused",
    "until_given",
    "untouched",
    "where",
    "written_by",
]
