"""What a model takes and gives, and the arguments of operations: tensors in nested containers, and what stands in their place.

Three depths, as three kinds of nest hold different things. Arguments of an operation (`arguments`) are tuples, lists and dicts, by
thousands: nothing else is looked for. What a model answers (`tensors_in`) is in dataclasses and mappings of all kinds too, but not in
objects such as caches, whose tensors nobody compares. What a compiled model takes and gives (``objects=True``) is all of it.

What looks alike and is not done here: a hash of arguments (`graph.fake_tensors`), whether a model is the same objects
(`graph.snapshot`), JSON that tells tuples from lists (`files.nested_state`), sizes among arguments with slices (`graph.tagged_sizes`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Value:
    """What stands for a tensor where there are no numbers: its shape and dtype; its strides, where they may matter.

    Two are the same only if they are one object.
    """

    __slots__ = ("dtype", "shape", "strides")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, strides: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self.strides = tuple(map(int, shape)), dtype, strides

    def __repr__(self) -> str:
        return f"Value{self.shape}"


_SIMPLE = {str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_WHOLE = (Tensor, Value, nn.Module, type, FunctionType, MethodType, ModuleType, torch.Generator, str, bytes, int, float, complex)


# ---------------------------------------------------------------- what is in there


def parts(nest: Any, objects: bool = False) -> list[tuple[Any, Any]] | None:
    """The parts of a nest with their keys, names or places; nothing where it has none.

    >>> parts({"a": 1}), parts([2]), parts(torch.ones(1))
    ([('a', 1)], [(0, 2)], None)
    """
    if type(nest) in _SIMPLE or isinstance(nest, _WHOLE):
        return None
    if _is_mapping(nest, objects):
        return list(nest.items())
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return list(zip(nest._fields, nest, strict=True))
    if isinstance(nest, (tuple, list)):
        return list(enumerate(nest))
    if objects:
        attributes = _attributes(nest)
        return None if attributes is None else list(attributes.items())
    return [(part.name, getattr(nest, part.name)) for part in fields(nest)] if is_dataclass(nest) else None


def _is_mapping(nest: Any, objects: bool) -> bool:
    """Whether what matters are its entries; of other mappings than dicts, it may be what the object holds."""
    return isinstance(nest, dict) or (isinstance(nest, Mapping) and not (objects and _attributes(nest) is not None))


def _attributes(thing: Any) -> dict[str, Any] | None:
    """What a plain object holds; nothing where it is not one."""
    slots = [name for base in type(thing).__mro__ for name in _names(getattr(base, "__slots__", ()))]
    if not hasattr(thing, "__dict__") and not slots:
        return None
    return {**{name: getattr(thing, name) for name in slots if hasattr(thing, name)}, **getattr(thing, "__dict__", {})}


def _names(slots: Any) -> tuple[str, ...]:
    return tuple(name for name in ((slots,) if isinstance(slots, str) else slots) if name not in ("__dict__", "__weakref__"))


def leaves(nest: Any, path: str = "", objects: bool = True) -> Iterator[tuple[str, Any]]:
    """Everything in a nest that has no parts, with the path to it; what holds itself is looked into once.

    Without ``objects`` those are whole.

    >>> list(leaves({"ids": 1, "more": [2, 3]}))
    [("['ids']", 1), ("['more'][0]", 2), ("['more'][1]", 3)]
    """
    yield from _leaves(nest, path, objects, set())


def _leaves(nest: Any, path: str, objects: bool, above: set[int]) -> Iterator[tuple[str, Any]]:
    inside = parts(nest, objects)
    if inside is None:
        yield path, nest
    elif id(nest) not in above:
        above.add(id(nest))
        keyed = isinstance(nest, (Mapping, list)) or (isinstance(nest, tuple) and not hasattr(nest, "_fields"))
        for key, part in inside:
            yield from _leaves(part, f"{path}[{key!r}]" if keyed else f"{path}.{key}", objects, above)
        above.discard(id(nest))


def tensors_in(nest: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses.

    >>> [t.numel() for t in tensors_in({"a": torch.zeros(2), "b": [torch.zeros(3)]})]
    [2, 3]
    """
    if isinstance(nest, Tensor):
        yield nest
    else:
        for _, part in parts(nest) or ():
            yield from tensors_in(part)


def holds(nest: Any, objects: bool = True) -> bool:
    """Whether any tensor or value is in a nest."""
    return any(isinstance(leaf, (Tensor, Value)) for _, leaf in leaves(nest, objects=objects))


# ---------------------------------------------------------------- the same with something else in it


def changed(nest: Any, change: Callable[[Any], Any], objects: bool = False) -> Any:
    """The same nest, of the same classes, with every tensor (or value) changed; what holds none is not copied.

    A mapping that is no dict becomes one.

    >>> changed((torch.ones(1), {"n": 3}), lambda tensor: tensor + 1)
    (tensor([2.]), {'n': 3})
    """
    return _changed(nest, change, objects, {})


def _changed(nest: Any, change: Callable[[Any], Any], objects: bool, done: dict[int, Any]) -> Any:
    if isinstance(nest, (Tensor, Value)):
        return change(nest)
    if id(nest) in done:
        return done[id(nest)]
    if not holds(nest, objects):
        return nest
    if isinstance(nest, (tuple, list)):
        inside = [_changed(part, change, objects, done) for part in nest]
        done[id(nest)] = made = type(nest)(*inside) if hasattr(nest, "_fields") else type(nest)(inside)
        return made
    if not isinstance(nest, dict) and _is_mapping(nest, objects):
        return {key: _changed(part, change, objects, done) for key, part in nest.items()}
    # No constructor is called: it may want other things than what the object holds.
    made = nest.__class__.__new__(nest.__class__)
    done[id(nest)] = made
    for name, part in (_attributes(nest) or {}).items():
        object.__setattr__(made, name, _changed(part, change, objects, done))
    if isinstance(nest, dict):
        put = OrderedDict.__setitem__ if isinstance(nest, OrderedDict) else dict.__setitem__
        for key, part in nest.items():
            put(made, key, _changed(part, change, objects, done))
    return made


# ---------------------------------------------------------------- arguments of operations


def arguments(nest: Any, kind: type[T], change: Callable[[T], Any]) -> Any:
    """Arguments with something else in place of all that are of a kind; lists become tuples.

    >>> arguments(([1, 2.0], {"a": 3}), int, str)
    (('1', 2.0), {'a': '3'})
    """
    if isinstance(nest, kind):
        return change(nest)
    if isinstance(nest, dict):
        return {key: arguments(item, kind, change) for key, item in nest.items()}
    if isinstance(nest, (tuple, list)):
        return tuple([arguments(item, kind, change) for item in nest])
    return nest


def among(nest: Any, kind: type[T]) -> Iterator[T]:
    """All arguments of a kind.

    >>> list(among(([1, 2.0], {"a": 3}), int))
    [1, 3]
    """
    if isinstance(nest, kind):
        yield nest
    elif isinstance(nest, (tuple, list)):
        for item in nest:
            yield from among(item, kind)
    elif isinstance(nest, Mapping):
        for item in nest.values():
            yield from among(item, kind)
