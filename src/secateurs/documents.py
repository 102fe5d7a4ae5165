"""JSON documents in files: how deep they may nest, so that no reader of a hostile one runs out of its stack."""

from __future__ import annotations

from typing import Any

DEEPEST = 100
"""How many lists and objects may stand in each other: many times what is ever written, far from Python's own limit."""


def nests_too_deep(value: Any) -> bool:
    """Whether lists, tuples and objects stand in each other more than `DEEPEST` deep.

    >>> nests_too_deep({"a": [1, {"b": 2}]})
    False
    """
    level = [value]
    for _ in range(DEEPEST):
        inside = (item for each in level for item in (each.values() if isinstance(each, dict) else each))
        level = [item for item in inside if isinstance(item, (dict, list, tuple))]
        if not level:
            return False
    return True
