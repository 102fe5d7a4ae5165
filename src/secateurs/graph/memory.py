"""Writing in place, told as if nothing were: every value is written once, and what shares memory follows what was written.

An in-place operation is recorded as the one that is none, with a new value as its result, an ``out=`` as the operation and a ``copy``.
What was written through a view is put back into the tensor that it views (``slice_scatter``, the inverse ``permute``, …), and other
views are taken again, from what their base is now, when somebody reads them. Where no operation says how two tensors share memory, it is
``as_strided`` and ``as_strided_scatter``, which hold for any two, and of which nothing more is known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateurs.graph.ops import Op
from secateurs.nested import Value
from secateurs.watch.operations import is_written

aten = torch.ops.aten


@dataclass(slots=True)
class Memory:
    """One storage: how often it was written, whether any recorded operation made it, and the tensor that knows what is there now."""

    version: int = 0
    computed: bool = False
    latest: Traced | None = None


Layout = tuple[tuple[int, ...], tuple[int, ...], int]
"""Sizes, strides and where a tensor begins."""


@dataclass(slots=True)
class Traced:
    """A tensor: what it is now, or was in an earlier version of its memory; and of which other one (``base``) it is a view.

    It is output ``place`` of ``op``, which took the base as ``of``; without an operation, only the layouts tell how the two lie.
    """

    value: Value
    memory: Memory
    layout: Layout
    version: int
    base: Traced | None = None
    op: Op | None = None
    place: int = 0
    of: Value | None = None


def lies(tensor: Tensor) -> Layout:
    """How a tensor lies in its storage."""
    if tensor.layout is not torch.strided:
        return tuple(tensor.shape), (), 0
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def alike(one: Layout, other: Layout) -> bool:
    """Whether two layouts are the same numbers in the same order; the stride of a single index does not matter.

    >>> alike(((2, 1), (1, 2), 0), ((2, 1), (1, 1), 0))
    True
    """
    steps = zip(*one[:2], other[1], strict=False)
    return one[0] == other[0] and one[2] == other[2] and all(a == b for size, a, b in steps if size > 1)


# ---------------------------------------------------------------- operations that write, and those that do not


@dataclass(frozen=True)
class Writes:
    """Which of its results are arguments that an operation writes; which arguments are given for a result alone (``out=``); whether it only
    changes how its argument lies in memory; and the operation that writes nothing, where there is one."""

    returned: tuple[int, ...]
    given: frozenset[str]
    only_layout: bool
    functional: Any


@functools.cache
def writes(func: Any) -> Writes | None:
    """What an operation writes; nothing for most.

    >>> writes(torch.ops.aten.relu_.default).functional, writes(torch.ops.aten.add.out).functional, writes(torch.ops.aten.relu.default)
    (<OpOverload(op='aten.relu', overload='default')>, <OpOverload(op='aten.add', overload='Tensor')>, None)
    """
    if not func._schema.is_mutable:
        return None
    returned = tuple(place for place, each in enumerate(func._schema.returns) if is_written(each))
    given = frozenset(each.name for each in func._schema.arguments if each.is_out)
    return Writes(returned, given, torch.Tag.inplace_view in func.tags, _functional(func, given))


def _functional(func: Any, given: frozenset[str]) -> Any:
    """The operation of the same name and arguments that writes nothing; what it has beside them, it has a default for."""
    name = func.overloadpacket.__name__
    stem = name.replace("__i", "__", 1) if name.startswith("__i") else name.removesuffix("_")
    wanted = {each.name: str(each.type) for each in func._schema.arguments if each.name not in given}  # in their order
    for packet in (getattr(getattr(torch.ops, func.namespace), each, None) for each in (stem, f"{stem}_functional")):
        for overload in () if packet is None else packet.overloads():
            found = getattr(packet, overload)
            arguments = {each.name: str(each.type) for each in found._schema.arguments if not _is_spare(each, wanted)}
            if not found._schema.is_mutable and [*arguments.items()] == [*wanted.items()]:
                return found
    return None


def _is_spare(argument: Any, wanted: dict[str, str]) -> bool:
    return argument.name not in wanted and argument.kwarg_only and argument.has_default_value()


# ---------------------------------------------------------------- views, and what was written through them

Call = tuple[Any, tuple[Any, ...]]
"""An operation and its arguments."""


def put_back(view: Traced, base: Traced) -> Call:
    """How a tensor is made anew from what was written through a view of it."""
    found = None
    if view.op is not None and view.op.name in _BACK:
        found = _BACK[view.op.name](view.op, view.place, base.value, view.value)
    return found or (aten.as_strided_scatter.default, (base.value, view.value, *view.layout))


def _reshaped(op: Op, place: int, base: Value, written: Value) -> Call | None:
    """The same numbers in the same order."""
    if base.dtype != written.dtype or prod(base.shape) != prod(written.shape):
        return None
    return (aten.alias.default, (written,)) if base.shape == written.shape else (aten.view.default, (written, base.shape))


def _same_call(op: Op, place: int, base: Value, written: Value) -> Call:
    """What is its own inverse."""
    return op.func, (written, *op.args[1:])


def _permuted(op: Op, place: int, base: Value, written: Value) -> Call:
    order = [each % len(base.shape) for each in op.args[1]]
    return aten.permute.default, (written, tuple(sorted(range(len(order)), key=order.__getitem__)))


def _scattered(func: Any) -> Callable[[Op, int, Value, Value], Call]:
    """Into the place from which the view was taken, with the same arguments."""
    return lambda op, place, base, written: (func, (base, written, *op.args[1:]))


def _piece(op: Op, place: int, base: Value, written: Value) -> Call:
    """One of the pieces of a split."""
    dim = op.argument("dim", 0) % len(base.shape)
    start = sum(value.shape[dim] for value in op.outputs[:place])
    return aten.slice_scatter.default, (base, written, dim, start, start + written.shape[dim])


def _one_of(op: Op, place: int, base: Value, written: Value) -> Call:
    return aten.select_scatter.default, (base, written, op.argument("dim", 0), place)


def _rows(back: Callable[[Op, int, Value, Value], Call | None], names: str) -> Iterator[tuple[str, Any]]:
    return ((name, back) for name in names.split())


_BACK: dict[str, Callable[[Op, int, Value, Value], Call | None]] = dict(
    [
        *_rows(_reshaped, "view _unsafe_view _reshape_alias unsqueeze squeeze detach alias lift_fresh expand"),
        *_rows(_same_call, "t transpose _conj _neg_view"),
        *_rows(_permuted, "permute"),
        *_rows(_scattered(aten.slice_scatter.default), "slice"),
        *_rows(_scattered(aten.select_scatter.default), "select"),
        *_rows(_scattered(aten.diagonal_scatter.default), "diagonal"),
        *_rows(_piece, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
        *_rows(_one_of, "unbind"),
        *_rows(lambda op, place, base, written: (aten.view_as_complex.default, (written,)), "view_as_real"),
        *_rows(lambda op, place, base, written: (aten.view_as_real.default, (written,)), "view_as_complex"),
    ]
)
"""An operation that makes a view → how what was written through it gets into the tensor that is viewed."""


def taken_from(base: Traced, layout: Layout) -> Call:
    """How a tensor is made from another one on the same storage, where no operation tells."""
    if alike(base.layout, layout):
        return aten.alias.default, (base.value,)
    return aten.as_strided.default, (base.value, *layout)
