"""Positions in space: pooling, interpolation, windows, pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from secateurs.graph.axes import Dim
from secateurs.graph.ops import Op
from secateurs.graph.typing_context import Dims, Typing


def new_space(t: Typing, op: Op, old: Dims, sizes: Sequence[int]) -> Dims:
    """New positions in place of old ones; neither may be pruned."""
    t.pin(old, f"positions in space ({op.name} at {op.where})")
    return [Dim.fresh(size, f"positions in space ({op.name} at {op.where})") for size in sizes]


def spatial(t: Typing, op: Op) -> list[Dims]:
    """Pooling and interpolation: batch and channels pass, positions in space are new. The name tells how many of these there are."""
    found = re.search(r"([123])d", op.name)
    count = int(found.group(1)) if found else 2
    dims = t.dims(op.args[0])
    leading = dims[: len(dims) - count]
    space = new_space(t, op, dims[len(dims) - count :], op.outputs[0].shape[len(leading) :])
    return [[*leading, *space] for _ in op.outputs]


def im2col(t: Typing, op: Op) -> Dims:
    """Channels × window, at each position."""
    *batch, channels = t.dims(op.args[0])[:-2]
    made = op.outputs[0].shape
    window = Dim.fresh(made[-2] // channels.size, f"a window's extent at {op.where}")
    return [*batch, Dim.product(channels, window), *new_space(t, op, t.dims(op.args[0])[-2:], made[-1:])]


def col2im(t: Typing, op: Op) -> Dims:
    """Channels × window back into space."""
    *batch, columns, positions = t.dims(op.args[0])
    made = op.outputs[0].shape
    channels, window = t.split(columns, columns.size // made[-3], op)
    t.pin([window, positions], f"a window's extent at {op.where}")
    return [*batch, channels, *new_space(t, op, [], made[-2:])]


def unfold(t: Typing, op: Op) -> Dims:
    """Windows along one dimension."""
    dims = list(t.dims(op.args[0]))
    place = op.args[1] % len(dims)
    reason = f"cut into windows at {op.where}"
    t.pin([dims[place]], reason)
    return [
        *(dim if i != place else Dim.fresh(op.outputs[0].shape[i], reason) for i, dim in enumerate(dims)),
        Dim.fresh(op.args[2], reason),
    ]


def pixel_shuffle(t: Typing, op: Op) -> Dims:
    """Channels are channels × a square of pixels."""
    *batch, channels, height, width = t.dims(op.args[0])
    outer, _ = t.split(channels, op.args[1] ** 2, op)
    t.pin([_], f"becomes space at {op.where}")
    return [*batch, outer, *new_space(t, op, [height, width], op.outputs[0].shape[-2:])]


def pixel_unshuffle(t: Typing, op: Op) -> Dims:
    """A square of pixels becomes channels."""
    *batch, channels, height, width = t.dims(op.args[0])
    inner = Dim.fresh(op.args[1] ** 2, f"was space at {op.where}")
    return [*batch, Dim.product(channels, inner), *new_space(t, op, [height, width], op.outputs[0].shape[-2:])]


def channel_shuffle(t: Typing, op: Op) -> Dims:
    """Groups × channels change places."""
    dims = list(t.dims(op.args[0]))
    groups = op.args[1]
    outer, inner = t.split(dims[1], dims[1].size // groups, op)
    t.pin([outer], f"shuffled in {groups} groups at {op.where}")
    dims[1] = Dim.product(inner, outer)
    return dims


def affine_grid(t: Typing, op: Op) -> Dims:
    """A position in space for each pixel, from a matrix for each image."""
    batch, *matrix = t.dims(op.args[0])
    return [batch, *new_space(t, op, matrix, op.outputs[0].shape[1:])]
