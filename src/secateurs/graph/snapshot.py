"""Whether a model is still what it was, so that what was found out about its structure holds: all but the numbers in its tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any

from torch import Tensor, nn

from secateurs.forward import modules_in

_SIMPLE = {int, float, bool, complex, str, bytes, type(None)}
_FILLED = {dict, OrderedDict, list, tuple}


class Snapshot:
    """A model and an example as they are now: modules, their attributes and hooks, and shapes, dtypes and devices of all tensors.

    >>> model, example = nn.Linear(2, 2), Tensor(1, 2)
    >>> before = Snapshot(model, example)
    >>> _ = model.weight.data.zero_()
    >>> before.holds(model, example), Snapshot(model, None).holds(model, example)
    (True, False)
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._seen = _seen(model, example)

    def holds(self, model: nn.Module, example: Any) -> bool:
        """Whether these are the same objects, unchanged."""
        (now, told_now), (before, told_before) = _seen(model, example), self._seen
        return len(now) == len(before) and all(map(is_, now, before)) and told_now == told_before


def _seen(model: nn.Module, example: Any) -> tuple[list[Any], list[Any]]:
    """Objects, which must be the same ones, and beside them what must be equal."""
    same: list[Any] = []
    equal: list[Any] = []
    _tell(example, same, equal)
    for module in modules_in(model).values():
        same.append(module)
        equal.append(type(module))
        equal.extend(module.__dict__)
        for value in module.__dict__.values():
            if (kind := type(value)) in _SIMPLE:  # most by far are this or empty: no call for each of them
                equal += kind, value
            elif kind in _FILLED and not value:
                equal.append(kind)
            else:
                _tell(value, same, equal)
    return same, equal


def _tell(value: Any, same: list[Any], equal: list[Any], depth: int = 4) -> None:
    """Add what is to be known of a value."""
    kind = type(value)
    equal.append(kind)
    inside: Iterable[Any] = ()
    if kind in _SIMPLE:
        equal.append(value)
    elif kind in _FILLED and not value:
        return  # as most of a module's attributes are
    elif kind is tuple and _SIMPLE.issuperset(map(type, value)):
        equal += (*map(type, value), value)  # a kernel's size, say
    elif isinstance(value, Tensor):
        same.append(value)
        equal.append((value.shape, value.stride(), value.dtype, value.device))
    elif isinstance(value, nn.Module) or not depth:
        same.append(value)
    elif isinstance(value, Mapping):
        equal.append(tuple(value))
        inside = value.values()
    elif isinstance(value, (tuple, list)):
        equal.append(len(value))
        inside = value
    else:
        same.append(value)
        inside = getattr(value, "__dict__", {}).values()  # a configuration, say
    for item in inside:
        _tell(item, same, equal, depth - 1)
