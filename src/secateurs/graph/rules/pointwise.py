"""One index of the result from one index of each operand."""

from __future__ import annotations

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.ops import Op
from secateurs.graph.typing_context import Dims, Typing
from secateurs.nested import Value


def pointwise(t: Typing, op: Op) -> Dims:
    """Dimensions line up from the right; those of size 1 stretch."""
    shape = op.outputs[0].shape
    dims: Dims = [ONE] * len(shape)
    for value in op.inputs:
        for place, dim in enumerate(reversed(t.dims(value)), start=1):
            if place <= len(shape) and dim.size == shape[-place] and dim.size > 1:
                dims[-place] = t.same(dims[-place], dim, op) if dims[-place] is not ONE else dim
    return [Dim.fresh(size) if dim is ONE else dim for dim, size in zip(dims, shape, strict=True)]


def pointwise_with_notes(t: Typing, op: Op) -> list[Dims]:
    """Pointwise, with a second result that only a backward pass reads."""
    return [pointwise(t, op), *([Dim.fresh(size) for size in value.shape] for value in op.outputs[1:])]


def fake_quantised(t: Typing, op: Op) -> list[Dims]:
    """Rounded to what few bits can hold, zero stays zero; one step size for all, or one for each index of a dimension."""
    dims = t.dims(op.args[0])
    axis = dims[op.argument("axis", op.argument("ch_axis", 0))] if dims else ONE
    for name in ("scale", "zero_point", "running_min", "running_max"):
        value = op.argument(name)
        if isinstance(value, Value) and value.shape == (axis.size,):
            t.same(axis, t.dims(value)[0], op)
    sizes = tuple([dim.size for dim in dims])
    return [
        dims if value.shape == sizes else [axis] if value.shape == (axis.size,) else [Dim.fresh(size) for size in value.shape]
        for value in op.outputs
    ]


def broadcast(t: Typing, op: Op, value: Value, dims: Dims) -> None:
    """An operand lines up with these dimensions from the right."""
    for dim, other in zip(reversed(dims), reversed(t.dims(value)), strict=False):
        if dim.size == other.size:
            t.same(dim, other, op)


def identity(t: Typing, op: Op) -> Dims:
    """The first operand as it is."""
    return list(t.dims(op.args[0]))


def factory(t: Typing, op: Op) -> Dims:
    """The same number everywhere: whatever length is asked for would do."""
    return [Dim.fresh(size) for size in op.outputs[0].shape]


def indexed_factory(t: Typing, op: Op) -> list[Dims]:
    """Numbers that depend on the index: no index may go."""
    return [[Dim.fresh(size, f"{op.name} at {op.where} counts its indices") for size in value.shape] for value in op.outputs]
