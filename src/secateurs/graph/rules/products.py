"""Products that sum over a dimension: matrices, convolutions."""

from __future__ import annotations

from typing import Any

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.ops import Op
from secateurs.graph.rules.lookups import unknown
from secateurs.graph.rules.pointwise import broadcast
from secateurs.graph.rules.space import new_space
from secateurs.graph.typing_context import Dims, Typing


def mm(t: Typing, op: Op) -> Dims:
    """Rows and columns go on, what lies between is contracted."""
    a, b = op.args[-2:] if op.name.startswith("add") else op.args[:2]
    (rows, common), (other, columns) = t.dims(a), t.dims(b)
    t.same(common, other, op)
    t.contraction(a, b, [rows], [columns], common)
    t.products.append([rows, common, columns])
    if op.name.startswith("add"):
        broadcast(t, op, op.args[0], [rows, columns])
    return [rows, columns]


def bmm(t: Typing, op: Op) -> Dims:
    """The same, many times over; of two activations, these are heads."""
    a, b = op.args[1:3] if "add" in op.name else op.args[:2]
    (batch, rows, common), (also, other, columns) = t.dims(a), t.dims(b)
    t.same(batch, also, op)
    t.same(common, other, op)
    t.contraction(a, b, [rows], [columns], common)
    t.products.append([batch, rows, common, columns])
    if t.are_activations(a, b):
        t.heads([batch], op)
    if op.name == "addbmm":  # and added up
        t.summed.append(batch)
    made = [batch, rows, columns][op.name == "addbmm" :]
    if "add" in op.name:
        broadcast(t, op, op.args[0], made)
    return made


def mv(t: Typing, op: Op) -> Dims:
    """A matrix with a vector."""
    a, b = op.args[-2:] if op.name.startswith("add") else op.args[:2]
    rows, common = t.dims(a)
    t.same(common, t.dims(b)[0], op)
    t.contraction(a, b, [rows], [], common)
    t.products.append([rows, common])
    if op.name.startswith("add"):
        broadcast(t, op, op.args[0], [rows])
    return [rows]


def dot(t: Typing, op: Op) -> Dims:
    """Two vectors."""
    a, b = op.args[:2]
    t.same(t.dims(a)[0], t.dims(b)[0], op)
    t.contraction(a, b, [], [], t.dims(a)[0])
    t.products.append([t.dims(a)[0]])
    return []


def outer(t: Typing, op: Op) -> Dims:
    """Every index of one vector with every index of another."""
    rows, columns = t.dims(op.args[1])[0], t.dims(op.args[2])[0]
    broadcast(t, op, op.args[0], [rows, columns])
    return [rows, columns]


def linear(t: Typing, op: Op) -> Dims:
    """The last dimension is contracted with a weight ``(out, in)``."""
    x, weight = op.args[:2]
    (*rows, common), (out, other) = t.dims(x), t.dims(weight)
    t.same(common, other, op)
    t.contraction(x, weight, [], [out], common)
    t.products.append([*rows, common, out])
    if len(op.args) > 2 and op.args[2] is not None:
        t.same(out, t.dims(op.args[2])[0], op)
    return [*rows, out]


def convolution(t: Typing, op: Op) -> Dims:
    """Channels are groups × channels of one group, on either side."""
    x, weight, bias = op.args[:3]
    transposed, groups = op.argument("transposed", False), op.argument("groups", 1)
    first, second, *kernel = t.dims(weight)
    spatial = len(kernel)
    *batch, channels = t.dims(x)[: len(x.shape) - spatial]
    group = Dim.fresh(groups)
    inputs, outputs = (
        Dim.fresh(channels.size // groups),
        Dim.fresh((second if transposed else first).size // (1 if transposed else groups)),
    )
    t.same(channels, Dim.product(group, inputs), op)
    t.same(first, Dim.product(group, inputs if transposed else outputs), op)
    t.same(second, outputs if transposed else inputs, op)
    if t.is_fixed(weight):
        names = t.fixed[weight]
        t.produced.append((names, outputs))
        t.consumed.append((names, inputs))
        t.scaled.append((names, group))
        t.groups.update(dict.fromkeys(names, group))
    made = Dim.product(group, outputs)
    if bias is not None:
        t.same(made, t.dims(bias)[0], op)
    t.pin(kernel, "the kernel's extent")
    before = t.dims(x)[len(x.shape) - spatial :]
    after = [
        dim if alone else new_space(t, op, [dim], [size])[0]
        for dim, size, alone in zip(before, op.outputs[0].shape[-spatial:], _alone(op, kernel), strict=True)
    ]
    t.products.append([*batch, group, inputs, outputs, *kernel, *(before if transposed else after)])
    return [*batch, made, *after]


def _alone(op: Op, kernel: Dims) -> list[bool]:
    """Along which dimensions a convolution looks at one position at a time: they are no space, but rows of a matrix."""
    settings = (op.argument(name) for name in ("stride", "padding", "output_padding"))
    stride, padding, more = (given * len(kernel) if len(given) == 1 else given for given in settings)
    return [dim.size == 1 and numbers == [1, 0, 0] for dim, *numbers in zip(kernel, stride, padding, more, strict=True)]


def bilinear(t: Typing, op: Op) -> Dims:
    """out[…, o] = Σ x[…, i] W[o, i, j] y[…, j], which ATen writes as one product over expanded operands."""
    expands = op.args[3:6]
    sumdims = set(op.args[6])
    full: list[Dim | None] = [None] * (
        max(len(value.shape) + len(places) for value, places in zip(op.args[:3], expands, strict=True))
    )
    for value, places in zip(op.args[:3], expands, strict=True):
        free = iter(t.dims(value))
        for place in range(len(full)):
            if place not in places:
                dim = next(free)
                known = full[place]
                full[place] = (
                    dim if known is None or known.size == 1 else t.same(known, dim, op) if dim.size == known.size else known
                )
    weight = op.args[1]
    if t.is_fixed(weight):
        names = t.fixed[weight]
        t.produced += [
            (names, dim) for place, dim in enumerate(full) if dim is not None and place not in sumdims and place not in expands[1]
        ]
        t.consumed += [(names, dim) for place, dim in enumerate(full) if dim is not None and place in sumdims]
    t.products.append([dim or ONE for dim in full])
    return [dim or ONE for place, dim in enumerate(full) if place not in sumdims]


def cdist(t: Typing, op: Op) -> Dims:
    """Distances between rows: a sum over the last dimension."""
    (*batch, rows, width), (*_, columns, other) = t.dims(op.args[0]), t.dims(op.args[1])
    t.same(width, other, op)
    return [*batch, rows, columns]


def grouped_mm(t: Typing, op: Op) -> Any:
    """Rows (tokens, in) of several experts, one after the other, each with a weight (experts, in, out) of its own."""
    a, b = op.args[:2]
    if len(a.shape) != 2 or len(b.shape) != 3:
        return unknown(t, op)
    (rows, common), (_, other, columns) = t.dims(a), t.dims(b)
    t.same(common, other, op)
    t.contraction(a, b, [], [columns], common)
    t.products.append([rows, common, columns])
    return [rows, columns]
