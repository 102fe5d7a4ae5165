"""Nested Python data with tensors in it, as plain tensors and JSON: what a checkpoint needs, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.types import FileError


def pack(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Tensors by path, and a JSON document with their places; dicts keep the type of their keys, tuples stay tuples.

    Raises `TypeError` for anything but tensors, numbers, strings, None, lists, tuples and dicts.

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
    """The data that `pack` took apart; raises `FileError` where the document is not one of its."""
    if not isinstance(document, dict):
        return document
    match document:
        case {"tensor": str(path)} if path in tensors:
            return tensors[path]
        case {"dict": list(items)} if all(isinstance(item, list) and len(item) == 2 for item in items):
            return {unpack(tensors, key): unpack(tensors, item) for key, item in items}
        case {"list": list(items)}:
            return [unpack(tensors, item) for item in items]
        case {"tuple": list(items)}:
            return tuple(unpack(tensors, item) for item in items)
    raise FileError(f"a checkpoint holds {str(document)[:80]!r}, which is no part of the format")


def random_state() -> dict[str, Any]:
    """The state of every random number generator that training may use: Python, NumPy, torch, and each CUDA device."""
    import random

    import numpy

    numpy_state = numpy.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers where `random_state` looked."""
    import random

    import numpy

    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
