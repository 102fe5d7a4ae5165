"""Tensors in whatever a model takes and returns: nested containers, dataclasses, and plain objects such as caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.run.network.nodes import Value

_NUMBERS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Generator)
_WHOLE = (Tensor, Value, nn.Module, type, FunctionType, MethodType, ModuleType, *_NUMBERS)


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nest that has no parts, with the path to it.

    >>> list(leaves({"ids": 1, "more": [2, 3]}))
    [("['ids']", 1), ("['more'][0]", 2), ("['more'][1]", 3)]
    """
    yield from _leaves(nest, path, set())


def _leaves(nest: Any, path: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    parts = _parts(nest)
    if parts is None:
        yield path, nest
    elif id(nest) not in above:
        above.add(id(nest))
        for step, part in parts:
            yield from _leaves(part, path + step, above)
        above.discard(id(nest))


def _parts(nest: Any) -> list[tuple[str, Any]] | None:
    if isinstance(nest, _WHOLE):
        return None
    if isinstance(nest, dict):
        return [(f"[{key!r}]", part) for key, part in nest.items()]
    if isinstance(nest, (tuple, list)):
        return [(f"[{place}]", part) for place, part in enumerate(nest)]
    attributes = _attributes(nest)
    return None if attributes is None else [(f".{name}", part) for name, part in attributes.items()]


def _attributes(thing: Any) -> dict[str, Any] | None:
    """What a plain object holds; nothing where it is not one."""
    slots = [name for base in type(thing).__mro__ for name in _names(getattr(base, "__slots__", ()))]
    if not hasattr(thing, "__dict__") and not slots:
        return None
    return {**{name: getattr(thing, name) for name in slots if hasattr(thing, name)}, **getattr(thing, "__dict__", {})}


def _names(slots: Any) -> tuple[str, ...]:
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__"))


def holds(nest: Any) -> bool:
    """Whether any tensor or value is in a nest."""
    return any(isinstance(leaf, (Tensor, Value)) for _, leaf in leaves(nest))


def changed(nest: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest, of the same classes, with every tensor (or value) changed; what holds none is not copied.

    >>> changed((torch.ones(1), {"n": 3}), lambda tensor: tensor + 1)
    (tensor([2.]), {'n': 3})
    """
    return _changed(nest, change, {})


def _changed(nest: Any, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    if isinstance(nest, (Tensor, Value)):
        return change(nest)
    if id(nest) in done:
        return done[id(nest)]
    if isinstance(nest, _WHOLE) or not holds(nest):
        return nest
    if isinstance(nest, (tuple, list)):
        parts = [_changed(part, change, done) for part in nest]
        done[id(nest)] = made = type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
        return made
    # No constructor is called: it may want other things than what the object holds.
    made = nest.__class__.__new__(nest.__class__)
    done[id(nest)] = made
    for name, part in (_attributes(nest) or {}).items():
        object.__setattr__(made, name, _changed(part, change, done))
    if isinstance(nest, dict):
        put = OrderedDict.__setitem__ if isinstance(nest, OrderedDict) else dict.__setitem__
        for key, part in nest.items():
            put(made, key, _changed(part, change, done))
    return made
