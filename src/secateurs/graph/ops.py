"""What is recorded: operations on values."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class Value:
    """One tensor of the pass: its shape and dtype, not its numbers; its strides, where what is done with it may depend on them."""

    __slots__ = ("dtype", "shape", "strides")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, strides: tuple[int, ...] | None = None) -> None:
        self.shape, self.dtype, self.strides = tuple(map(int, shape)), dtype, strides

    def __repr__(self) -> str:
        return f"Value{self.shape}"


@dataclass(frozen=True)
class Op:
    """One call of an ATen operation, with values in place of tensors; ``where`` is the line of the user's code."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...]
    module: str
    where: str

    @functools.cached_property
    def name(self) -> str:
        return str(self.func.overloadpacket).removeprefix("aten.")

    @functools.cached_property
    def inputs(self) -> tuple[Value, ...]:
        """Every value among the arguments."""
        found: list[Value] = []
        for item in (*self.args, *self.kwargs.values()):
            if type(item) is Value:
                found.append(item)
            elif type(item) in (tuple, list, dict):
                found.extend(values_in(item))
        return tuple(found)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by the name that the operation's schema gives it."""
        declared = _declared(self.func).get(name)
        if declared is None:
            return default
        place, usual = declared
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, *(usual or (default,)))


@functools.cache
def _declared(func: Any) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """The arguments of an operation: name → its place, and its default value if it has one."""
    arguments = enumerate(func._schema.arguments)
    return {each.name: (place, (each.default_value,) if each.has_default_value() else ()) for place, each in arguments}


def values_in(nest: Any) -> Iterator[Value]:
    """Every value in nested sequences and dicts."""
    if isinstance(nest, Value):
        yield nest
    elif isinstance(nest, (tuple, list)):
        for item in nest:
            yield from values_in(item)
    elif isinstance(nest, dict):
        for item in nest.values():
            yield from values_in(item)
