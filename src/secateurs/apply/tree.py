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


def require_random_state(state: Mapping[str, Any]) -> None:
    """Raise, whatever it is, where `restore_random_state` could not use a state; nothing is changed."""
    import random

    import numpy

    random.Random().setstate(state["python"])
    if not isinstance(state["python"][2], (float, type(None))):
        raise TypeError("the state of Python's random numbers is none")
    place = state["numpy"]["state"]["pos"]
    if type(place) is not int or not 0 <= place <= 624:  # NumPy reads there without a look
        raise ValueError(f"the state of NumPy's random numbers stands at {place}")
    numpy.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["torch"])
    if not isinstance(state["cuda"], list):
        raise TypeError("the state of CUDA's random numbers is none")
    if torch.cuda.is_available():
        for device, each in enumerate(state["cuda"]):
            torch.Generator(f"cuda:{device}").set_state(each)
