"""A weight as a product reads it: its numbers in the view ``(groups, outputs, inputs, *kernel)``, whatever the model makes of it before."""

from __future__ import annotations

from torch import Tensor

from secateurs.graph import Op, Trace, Value
from secateurs.nested import arguments


def as_read(trace: Trace, op: Op, operands: tuple[Value, ...], parameter: Value, weight: Tensor) -> Tensor | None:
    """The numbers of a weight as a product takes them, or ``None`` where others are mixed into them on the way.

    ``operands`` are what the product multiplies, ``parameter`` what the weight is in the trace.
    """
    for place, operand in enumerate(operands):
        numbers = _replayed(trace, operand, parameter, weight)
        if numbers is not None:
            return _seen(op, place, numbers)
    return None


def _replayed(trace: Trace, value: Value, parameter: Value, weight: Tensor) -> Tensor | None:
    """What the model's own operations make of a weight on its way to a value, where they take nothing else."""
    steps: list[tuple[Op, int]] = []
    while value is not parameter:
        op = trace.makers.get(value)
        if op is None or len(op.inputs) != 1:
            return None
        steps.append((op, op.outputs.index(value)))
        value = op.inputs[0]
    for op, place in reversed(steps):
        if op.name == "_to_copy":  # other devices and types have the same numbers
            continue
        weight = _run(op, weight, place)
    return weight


def _run(op: Op, taken: Tensor, place: int) -> Tensor:
    """One of the results of an operation that takes a single tensor."""
    made = op.func(*arguments(op.args, Value, lambda _: taken), **op.kwargs)
    return made if isinstance(made, Tensor) else made[place]


def _seen(op: Op, place: int, numbers: Tensor) -> Tensor | None:
    """An operand as ``(groups, outputs, inputs, *kernel)``; ``place``: the first or the second one of the product."""
    if op.name == "convolution":
        groups = int(op.argument("groups", 1))
        grouped = numbers.unflatten(0, (groups, numbers.shape[0] // groups))
        return grouped.transpose(1, 2) if op.argument("transposed", False) else grouped
    if op.name == "linear":
        return numbers[None]
    if op.name == "_trilinear":
        return numbers.flatten(1)[None]
    if op.name not in _MATRICES:
        return None
    if numbers.ndim == 1:
        return numbers[None, None]
    stacked = numbers if numbers.ndim == 3 else numbers[None]
    return stacked.transpose(1, 2) if place == 1 else stacked


_MATRICES = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv")
"""Products of matrices, which contract the last dimension of the first one with the last but one of the second."""
