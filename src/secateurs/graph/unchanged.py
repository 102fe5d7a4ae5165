"""Whether a model is still what it was, so that what was found out about its structure holds: all but the numbers in its tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

_SIMPLE = (int, float, bool, complex, str, bytes, type(None))


class Snapshot:
    """A model and an example as they are now: modules, their attributes and hooks, and shapes, dtypes and devices of all tensors.

    >>> model, example = nn.Linear(2, 2), Tensor(1, 2)
    >>> before = Snapshot(model, example)
    >>> _ = model.weight.data.zero_()
    >>> before.holds(model, example), Snapshot(model, None).holds(model, example)
    (True, False)
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._seen = list(_seen(model, example))

    def holds(self, model: nn.Module, example: Any) -> bool:
        """Whether these are the same objects, unchanged."""
        return all(a is c and b == d for (a, b), (c, d) in zip_longest(_seen(model, example), self._seen, fillvalue=(self, None)))


def _seen(model: nn.Module, example: Any) -> Iterator[tuple[Any, Any]]:
    """Objects, which must be the same ones, each with what must be equal."""
    yield from _told(example)
    for module in model.modules():
        slots = module.__dict__
        yield module, (type(module), [(key, value) for key, value in slots.items() if type(value) in _SIMPLE or not _fills(value)])
        for value in slots.values():
            if type(value) not in _SIMPLE and _fills(value):
                yield from _told(value)


def _fills(value: Any) -> bool:
    """Whether there is more to a value than that it is empty."""
    return type(value) not in (dict, OrderedDict, list, tuple) or bool(value)


def _told(value: Any, depth: int = 4) -> Iterator[tuple[Any, Any]]:
    kind = type(value)
    inside: Iterable[Any] = ()
    if kind in _SIMPLE:
        yield None, (kind, value)
    elif isinstance(value, Tensor):
        yield value, (value.shape, value.stride(), value.dtype, value.device)
    elif isinstance(value, nn.Module) or not depth:
        yield value, None
    elif isinstance(value, Mapping):
        yield None, (kind, tuple(value))
        inside = value.values()
    elif isinstance(value, (tuple, list)):
        yield None, (kind, len(value))
        inside = value
    else:
        yield value, None
        inside = getattr(value, "__dict__", {}).values()  # a configuration, say
    for item in inside:
        yield from _told(item, depth - 1)
