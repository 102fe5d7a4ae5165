"""What the index of a file says of a tensor, read with suspicion: each field has its kind, or the file is damaged."""

from __future__ import annotations

from typing import Any

from secateurs.coding.coder import Coder
from secateurs.coding.coders import CODERS
from secateurs.types import FileError


def field(document: Any, name: str, kind: Any, least: int | None = None, most: int | None = None) -> Any:
    """A field of a JSON object; raises `FileError` where it is not there, of another kind, or outside of these bounds.

    >>> field({"bits": 5}, "bits", int, 1, 16)
    5
    """
    found = document.get(name, ...) if isinstance(document, dict) else ...
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise FileError(f"the index of the file says {_short(found)} for {name}; it is damaged")
    if kind is int and ((least is not None and found < least) or (most is not None and found > most)):
        raise FileError(f"the index of the file says {_short(found)} for {name}, which is out of bounds; it is damaged")
    return found


def coder_in(name: Any) -> Coder:
    """The coder of a name; raises `FileError` where there is none of it, as in files of a later version."""
    found = CODERS.get(name) if isinstance(name, str) else None
    if found is None:
        raise FileError(
            f"the file is coded by {_short(name)}, which this version does not know (it knows {', '.join(CODERS)}): update secateurs, or "
            "the file is damaged"
        )
    return found


def split(document: Any, data: memoryview, count: int) -> list[memoryview]:
    """So many parts of a tensor's bytes, one after the other; of all but the last one the index has the lengths."""
    lengths = field(document, "parts", list)
    if len(lengths) != count - 1 or not all(type(each) is int and each >= 0 for each in lengths) or sum(lengths) > len(data):
        raise FileError(f"the index of the file tells other parts of a tensor than its {len(data)} bytes have; it is damaged")
    found = []
    for length in lengths:
        found.append(data[:length])
        data = data[length:]
    return [*found, data]


def _short(value: object) -> str:
    return "nothing" if value is ... else repr(value)[:60]
