"""Nested Python data with tensors in it, as plain tensors and JSON: what a checkpoint needs, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateurs.types import FileError


def pack(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Tensors by path, and a JSON document with their places; dicts keep the type of their keys, tuples stay tuples.

    Raises `TypeError` for anything but tensors, numbers, strings, None, lists, tuples and dicts.

    >>> import torch
    >>> tensors, document = pack({"lr": 0.1, 0: (torch.ones(2), None)})
    >>> sorted(tensors), unpack(tensors, document)
    (['/0/0'], {'lr': 0.1, 0: (tensor([1., 1.]), None)})
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in tensors:  # the keys 1 and "1", or "a/b" and a "b" inside "a", write the same path
                path += "'"
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Mapping):
            return {"dict": [[encode(key, f"{path}.key"), encode(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [encode(item, f"{path}/{index}") for index, item in enumerate(value)]}
        raise TypeError(
            f"{path or 'the state'}: {type(value).__name__} cannot go into a checkpoint; use tensors, numbers and strings"
        )

    return tensors, encode(tree, prefix)


def unpack(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """The data that `pack` took apart; raises `FileError` where the document is not one of its.

    Each tensor stands in one place: two that share their memory would change each other in training.
    """
    used: set[str] = set()

    def decode(value: Any) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case {"tensor": str(path)} if len(value) == 1 and path in tensors and path not in used:
                used.add(path)
                return tensors[path]
            case {"dict": list(items)} if len(value) == 1 and all(isinstance(item, list) and len(item) == 2 for item in items):
                found = {_key(decode(key)): decode(item) for key, item in items}
                if len(found) == len(items):
                    return found
            case {"list": list(items)} if len(value) == 1:
                return [decode(item) for item in items]
            case {"tuple": list(items)} if len(value) == 1:
                return tuple(decode(item) for item in items)
        raise _no_part(value)

    return decode(document)


def _key(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    raise _no_part(value)


def _no_part(value: Any) -> FileError:
    return FileError(f"a checkpoint holds {str(value)[:80]!r}, which is no part of the format")
