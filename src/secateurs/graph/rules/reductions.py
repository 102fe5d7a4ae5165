"""Sums, normalisations and other reductions over dimensions."""

from __future__ import annotations

import torch

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.ops import Op
from secateurs.graph.rules.pointwise import broadcast
from secateurs.graph.typing_context import Dims, Rule, Typing
from secateurs.nested import Value


def reduces(op: Op, what: str = "reduces over it") -> str:
    """Why removing from a dimension is not the same as zeroing, and in which layer."""
    return f"{op.name} at {op.where} {what}" + (f", in {op.module}" if op.module else "")


def reduction(kind: str) -> Rule:
    """``kind`` is "sum" where a zero adds nothing, "mean" where the number of terms matters, "order" where the index does."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        places = op.argument("dim")
        if places is None or places == ():
            chosen = set(range(len(dims)))
        else:
            chosen = {place % len(dims) for place in (places if isinstance(places, (tuple, list)) else [places])} if dims else set()
        over = [dims[place] for place in chosen]
        t.summed += over
        if kind == "mean" and t.place not in t.rms_norms:
            t.approximate(over, reduces(op))
        elif kind == "order":
            t.pin(over, f"{op.name} at {op.where} depends on the order of its indices")
        keep = bool(op.argument("keepdim", False))
        made = [ONE if place in chosen else dim for place, dim in enumerate(dims) if keep or place not in chosen]
        return [made for _ in op.outputs]

    return rule


def along(kind: str) -> Rule:
    """Softmax and cumulative sums: the same shape, mixed along one dimension."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = list(t.dims(op.args[0]))
        if dims:
            over = dims[op.args[1]]
            if kind == "order":
                t.pin([over], f"{op.name} at {op.where} depends on the order of its indices")
            else:
                t.approximate([over], reduces(op, "mixes along it"))
        return [dims for _ in op.outputs]

    return rule


def batch_norm(t: Typing, op: Op) -> list[Dims]:
    """One number for each channel, from elsewhere, or in training from all the other dimensions."""
    dims = list(t.dims(op.args[0]))
    if op.argument("training", False):  # a weight that is standardised, say
        t.approximate([dims[0], *dims[2:]], reduces(op))
    for value in op.args[1:5]:
        if isinstance(value, Value):
            t.same(dims[1], t.dims(value)[0], op)
    return [
        dims,
        *([dims[1]] if value.shape == (dims[1].size,) else [Dim.fresh(n) for n in value.shape] for value in op.outputs[1:]),
    ]


def layer_norm(t: Typing, op: Op) -> list[Dims]:
    """The last dimensions are reduced over and scaled."""
    dims, shape = list(t.dims(op.args[0])), op.args[1]
    last = dims[len(dims) - len(shape) :]
    t.summed += last
    if t.place not in t.rms_norms:
        t.approximate(last, reduces(op))
    for value in op.args[2:4]:
        if isinstance(value, Value):
            t.same_all(last, t.dims(value), op)
    statistics = [*dims[: len(dims) - len(shape)], *[ONE] * len(shape)]
    return [dims, *(statistics[: len(value.shape)] for value in op.outputs[1:])]


def group_norm(t: Typing, op: Op) -> list[Dims]:
    """Channels are groups × channels of one group, which are reduced over."""
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], op.args[6]
    dims = list(t.dims(x))
    group, inner = t.split(dims[1], dims[1].size // groups, op)
    t.approximate([inner], reduces(op))
    for value in (weight, bias):
        if isinstance(value, Value):
            t.same(dims[1], t.dims(value)[0], op)
    return [dims, *([dims[0], group] for _ in op.outputs[1:])]


def weight_norm(t: Typing, op: Op) -> list[Dims]:
    """A weight is divided by its norm."""
    dims = list(t.dims(op.args[0]))
    broadcast(t, op, op.args[1], dims)
    t.pin(t.dims(op.args[1]), f"divided by its norm at {op.where}, which would be 0; remove the parametrization first")
    return [dims, *([Dim.fresh(size) if size > 1 else ONE for size in value.shape] for value in op.outputs[1:])]


def renorm(t: Typing, op: Op) -> Dims:
    """What is larger than allowed is made smaller, by its norm over all other dimensions."""
    dims = t.dims(op.args[0])
    place = op.args[2] % len(dims)
    t.summed += [*dims[:place], *dims[place + 1 :]]
    return list(dims)


def loss(t: Typing, op: Op) -> Dims:
    """Differences one by one, and what is made of them: nothing, their mean or their sum."""
    shape = torch.broadcast_shapes(*(value.shape for value in op.inputs))
    dims: Dims = [ONE] * len(shape)
    for value in op.inputs:
        for place, dim in enumerate(reversed(t.dims(value)), start=1):
            if dim.size > 1:
                dims[-place] = dim if dims[-place] is ONE else t.same(dims[-place], dim, op)
    if op.outputs[0].shape == shape and op.argument("reduction", 1) == 0:
        return dims
    t.summed += dims
    if op.argument("reduction", 1) == 1:
        t.approximate(dims, reduces(op))
    return []
