"""What depends on the number of an index: look-ups, orders, triangles."""

from __future__ import annotations

from typing import Any

import torch

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.ops import Op
from secateurs.graph.typing_context import Dims, Rule, Typing
from secateurs.nested import Value


def ordered(*places: str) -> Rule:
    """Indices of the named dimensions are moved about or counted: none may go. Everything else passes."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        given = [op.argument(name) for name in places]
        chosen = [each for item in given if item is not None for each in (item if isinstance(item, (tuple, list)) else [item])]
        t.pin(
            [dims[place] for place in chosen] if chosen and dims else dims,
            f"{op.name} at {op.where} depends on the order of its indices",
        )
        return [
            [
                dim if size == dim.size else Dim.fresh(size, f"{op.name} at {op.where}")
                for dim, size in zip(dims, value.shape, strict=True)
            ]
            if len(value.shape) == len(dims)
            else [Dim.fresh(size, f"{op.name} at {op.where}") for size in value.shape]
            for value in op.outputs
        ]

    return rule


def index(t: Typing, op: Op) -> Dims:
    """Indexing with tensors: the indexed dimensions may not change, the others pass. A mask takes as many as it has, and gives one."""
    dims, made = t.dims(op.args[0]), op.outputs[0].shape
    reason = f"looked up by index at {op.where}"
    taken: list[int] = []
    place = 0
    for each in op.args[1]:
        span = len(each.shape) if each is not None and each.dtype in (torch.bool, torch.uint8) else 1
        if each is not None:
            taken += range(place, place + span)
        place += span
    rest = [dim for place, dim in enumerate(dims) if place not in taken]
    first = taken[0] if taken and taken == list(range(taken[0], taken[-1] + 1)) else 0
    looked_up = [Dim.fresh(size, reason) for size in made[first : first + len(made) - len(rest)]]
    t.pin([dims[place] for place in taken], reason)
    for each in op.args[1]:
        if each is not None and each.dtype in (torch.bool, torch.uint8):
            t.pin(t.dims(each), reason)
        elif each is not None:
            t.same_all(looked_up[len(looked_up) - len(each.shape) :], t.dims(each), op)
    return [*rest[:first], *looked_up, *rest[first:]]


def embedding(t: Typing, op: Op) -> Dims:
    """Rows of a table: its width goes on."""
    weight, ids = op.args[0], op.args[1]
    rows, width = t.dims(weight)
    t.pin([rows], f"looked up by index at {op.where}")
    t.produced.append((t.fixed.get(weight, frozenset()), width))
    return [*t.dims(ids), width]


def embedding_bag(t: Typing, op: Op) -> list[Dims]:
    """Sums of rows of a table: its width goes on."""
    rows, width = t.dims(op.args[0])
    t.pin([rows], f"looked up by index at {op.where}")
    t.produced.append((t.fixed.get(op.args[0], frozenset()), width))
    first = [[Dim.fresh(op.outputs[0].shape[0], "the bags"), width]]
    return first + [[Dim.fresh(size, "the bags") for size in value.shape] for value in op.outputs[1:]]


def index_select(t: Typing, op: Op) -> Dims:
    """Some indices of one dimension, by number."""
    dims, place = list(t.dims(op.args[0])), op.args[1]
    reason = f"looked up by index at {op.where}"
    t.pin([dims[place]], reason)
    dims[place] = t.dims(op.args[2])[0] if op.args[2].shape else ONE
    t.pin([dims[place]], reason)
    return dims


def into(place_of_source: int) -> Rule:
    """index_add, scatter and their like: one dimension is addressed by index; where the others are alike, they are the same."""

    def rule(t: Typing, op: Op) -> Dims:
        dims, place = t.dims(op.args[0]), op.args[1]
        reason = f"written by index at {op.where}"
        t.pin([dims[place]], reason)
        for value in (each for each in op.args[2:] if isinstance(each, Value)):
            others = t.dims(value)
            if len(others) == len(dims):
                t.pin([others[place]], reason)
                t.same_all(
                    [d for i, d in enumerate(dims) if i != place % len(dims)],
                    [d for i, d in enumerate(others) if i != place % len(dims)],
                    op,
                )
            else:
                t.pin(others, reason)
        return dims

    return rule


def gather(t: Typing, op: Op) -> Dims:
    """One dimension by index, the others each by their own."""
    dims, place, found = t.dims(op.args[0]), op.args[1], list(t.dims(op.args[2]))
    reason = f"looked up by index at {op.where}"
    t.pin([dims[place], found[place]], reason)
    for i, (dim, other) in enumerate(zip(dims, found, strict=True)):
        if i != place % len(dims):
            if dim.size == other.size:
                t.same(dim, other, op)
            else:
                t.pin([dim, other], reason)
    return found


def index_put(t: Typing, op: Op) -> Dims:
    """The dimensions that are written by index stay whole, the others are those of what is written."""
    dims, indices = t.dims(op.args[0]), op.args[1]
    reason = f"written by index at {op.where}"
    taken = 0
    for place, each in enumerate(indices):
        if each is not None:
            span = len(each.shape) if each.dtype == torch.bool else 1
            t.pin(dims[place + taken : place + taken + span], reason)
            t.pin(t.dims(each), reason)
            taken += span - 1
    free = [dim for place, dim in enumerate(dims) if place >= len(indices) + taken]
    source = t.dims(op.args[2])
    if free and len(source) >= len(free):
        t.same_all(free, source[len(source) - len(free) :], op)
    t.pin(source[: len(source) - len(free)], reason)
    return dims


def ending(count: int) -> Rule:
    """Triangles, inverses, transforms: the last dimensions stay whole, the ones before pass."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        t.pin(dims[len(dims) - count :], f"{op.name} at {op.where} depends on the order of its indices")
        return [dims if [d.size for d in dims] == list(value.shape) else None for value in op.outputs]  # type: ignore[misc]

    return rule


def transformed(t: Typing, op: Op) -> Dims:
    """Fourier transforms: every position of some dimensions with every other one; all else passes."""
    dims = list(t.dims(op.args[0]))
    reason = f"transformed ({op.name} at {op.where})"
    for place in op.argument("dim"):
        t.pin([dims[place]], reason)
        if dims[place].size != (size := op.outputs[0].shape[place]):
            dims[place] = Dim.fresh(size, reason)
    return dims


def masked_scatter(t: Typing, op: Op) -> Dims:
    """Rows of another tensor where a mask says so: images among words, say. The width of rows is that of the source."""
    *rows, width = t.dims(op.args[0])
    *others, also = t.dims(op.args[2]) or [ONE]
    *_, also_masked = t.dims(op.args[1])
    reason = f"written by index at {op.where}"
    t.pin([*rows, *others], reason)
    if width.size == also.size == also_masked.size:
        t.same_all([width, width], [also, also_masked], op)
    else:
        t.pin([width, also], reason)
    return [*rows, width]


def counted(t: Typing, op: Op) -> list[Dims]:
    """Numbers of indices, or of values: nothing that it reads may change."""
    reason = f"{op.name} at {op.where} depends on the order of its indices"
    for value in op.inputs:
        t.pin(t.dims(value), reason)
    return [[Dim.fresh(size, reason) for size in value.shape] for value in op.outputs]


def unknown(t: Typing, op: Op) -> Any:
    """Nothing is known: all that it touches is pinned, and the operation is listed."""
    t.unknown.setdefault(op.name, op.where)
    return None
