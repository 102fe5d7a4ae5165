"""One number of the result from one of each operand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateurs.graph.known.knowing import Knowing, joined
from secateurs.graph.known.state import Known, Size, fixed
from secateurs.graph.ops import Op
from secateurs.nested import Value

_SHIFTING = ("add", "sub", "rsub", "clamp", "clamp_min", "clamp_max", "threshold", "fill")
"""What makes another number of zero where the number in the call is another one."""


def pointwise(know: Knowing, op: Op) -> Known:
    """Known where every operand is; the number is what the operation makes of theirs."""
    given = [know.of(value) for value in op.inputs]
    result = _merged(know, op, given, lambda *known: _all(known))
    if know.sized and any(_is_number(each) for each in (*op.args, *op.kwargs.values())):
        return Known.nothing(result.sizes) if op.name in _SHIFTING else result.zeros_only()
    return result


def product(know: Knowing, op: Op) -> Known:
    """Zero where one factor is; known where both are."""
    result = pointwise(know, op)
    operands = [know.of(value) for value in op.inputs]
    if len(operands) == 2:
        first, second = operands
        zero = _padded(first.zero, result) | _padded(second.zero, result)
        result = _where(zero, result)
        positive = first.positive and second.positive
    else:
        positive = operands[0].positive and all(each >= 0 for each in op.args if _is_number(each))
    return replace(result, positive=positive)


def quotient(know: Knowing, op: Op) -> Known:
    """Zero where what is divided is."""
    result = pointwise(know, op)
    if not isinstance(op.args[0], Value):
        return result
    return _where(_padded(know.of(op.args[0]).zero, result), result)


def total(know: Knowing, op: Op) -> Known:
    """Sums: one that adds nothing but zeros is the other one."""
    result = pointwise(know, op)
    if len(op.inputs) != 2 or op.name == "rsub":
        return result
    first, second = (know.of(value) for value in op.inputs)
    result = replace(result, positive=op.name == "add" and first.positive and second.positive and _weight(op) >= 0)
    for one, value, other in ((first, op.inputs[0], second), (second, op.inputs[1], first)):
        kept = one is first or (op.name == "add" and _weight(op) == 1)
        if not kept or not other.all_zero or value.dtype != op.outputs[0].dtype:
            continue
        if one.sizes == result.sizes or (know.evenly and op.inputs[0].shape == op.inputs[1].shape):
            return replace(result, same=one.same or value, positive=one.positive, sizes=one.sizes)
    return result


def total_of(know: Knowing, op: Op, made: Known, added: Value) -> Known:
    """A product with something added to it."""
    other = know.of(added)
    scale, more = float(op.argument("alpha", 1)), float(op.argument("beta", 1))
    number = made.number.double() * scale + other.number.double() * more
    return _shaped(made.known & other.known, number, (made, other), joined([made.sizes, other.sizes], op.outputs[0].shape))


def plus_product(know: Knowing, op: Op) -> Known:
    """A sum with a product, which is zero where one of its factors is."""
    result = pointwise(know, op)
    first, second, third = (know.of(value) for value in op.inputs[:3])
    nothing = _padded(second.zero, result) | _padded(third.zero, result)
    zero = _padded(first.zero, result) & nothing
    return _where(zero, result)


def chosen(know: Knowing, op: Op) -> Known:
    """One of two, by a condition: known where both are and agree."""
    condition, *others = (know.of(value) for value in op.inputs)
    if op.name == "masked_fill" and len(op.inputs) == 2:
        others, condition = [condition], know.of(op.inputs[1])
        filled = _like(others[0], op.args[2])
        others.append(filled)
    elif op.name == "masked_fill":
        others, condition = [condition, others[1]], others[0]
    if len(others) != 2 or (op.name == "where" and len(op.inputs) != 3):
        return Known.nothing(know.nothing(op.outputs[0]).sizes)
    one, other = others
    agree = one.known & other.known & (one.number == other.number)
    sizes = joined([each.sizes for each in (condition, one, other)], op.outputs[0].shape)
    return _shaped(agree, one.number.double() * torch.ones_like(agree), (one, other, condition), sizes)


def rectified(know: Knowing, op: Op) -> Known:
    """What is not below zero stays as it is."""
    result = pointwise(know, op)
    before = know.of(op.args[0])
    return replace(result, same=(before.same or op.args[0]) if before.positive else None, positive=True)


def positive(know: Knowing, op: Op) -> Known:
    """Pointwise, and never below zero."""
    return replace(pointwise(know, op), positive=True)


def bounded(know: Knowing, op: Op) -> Known:
    """Between bounds."""
    result = pointwise(know, op)
    least = op.argument("min_val", op.argument("min"))
    return replace(result, positive=(_is_number(least) and least >= 0) or (least is None and know.of(op.args[0]).positive))


def extreme(know: Knowing, op: Op) -> Known:
    """The larger or the smaller one of two."""
    first, second = (know.of(value) for value in op.inputs[:2])
    either = op.name == "maximum" and (first.positive or second.positive)
    return replace(pointwise(know, op), positive=either or (first.positive and second.positive))


def identity(know: Knowing, op: Op) -> Known:
    """The first operand as it is."""
    source, before = op.args[0], know.of(op.args[0])
    if source.dtype == op.outputs[0].dtype:
        return replace(before, same=before.same or source, positive=before.positive)
    if op.outputs[0].dtype.is_floating_point and source.dtype.is_floating_point:
        return replace(before, same=None, positive=before.positive)
    return pointwise(know, op)


def overwritten(know: Knowing, op: Op) -> Known:
    """Another tensor's numbers, in the shape of the first."""
    target, source = op.args[:2]
    other = know.of(source)
    number = other.number.to(op.outputs[0].dtype) if not op.outputs[0].dtype.is_floating_point else other.number
    return _shaped(other.known, number, (other, Known.nothing(know.of(target).sizes)), know.of(target).sizes)


def filled(number: float | None) -> Callable[[Knowing, Op], Known]:
    """The same number everywhere; ``None``: the one that the call gives."""

    def rule(know: Knowing, op: Op) -> Known | None:
        value = number if number is not None else op.argument("fill_value", op.argument("value", op.argument("s")))
        sizes: list[Size] = (
            list(know.of(op.args[0]).sizes)
            if op.inputs and op.args[0] is op.inputs[0] and op.inputs[0].shape == op.outputs[0].shape and "new" not in op.name
            else list(know.nothing(op.outputs[0]).sizes)
        )
        if not _is_number(value) or (know.sized and value):
            return Known.nothing(sizes)
        return Known.everywhere(float(value), sizes)

    return rule  # type: ignore[return-value]


# ---------------------------------------------------------------- how it is done


def _is_number(each: Any) -> bool:
    return isinstance(each, (int, float)) and not isinstance(each, bool)


def _weight(op: Op) -> float:
    return float(op.argument("alpha", 1))


def _all(known: tuple[Tensor, ...]) -> Tensor:
    result = known[0]
    for each in known[1:]:
        result = result & each
    return result


def _merged(know: Knowing, op: Op, given: list[Known], known_of: Callable[..., Tensor]) -> Known:
    """Numbers computed by the operation itself, from one number for each stretch of equal ones."""
    shape = op.outputs[0].shape
    sizes = joined([each.sizes for each in given], shape)
    known = known_of(*[each.known for each in given])
    if not bool(known.any()):
        return _shaped(known, torch.zeros([1] * len(shape)), given, sizes)
    numbers = iter(given)

    def operand(each: Any) -> Any:
        if isinstance(each, Value):
            number = next(numbers).number
            return number.double() if number.is_floating_point() else number
        return [operand(item) for item in each] if isinstance(each, (tuple, list)) else each

    try:
        args = [operand(each) for each in op.args]
        named = {key: operand(each) for key, each in op.kwargs.items() if key not in ("device", "layout", "memory_format")}
        if op.outputs[0].dtype.is_floating_point:
            named = {key: torch.float64 if isinstance(each, torch.dtype) else each for key, each in named.items()}
        number = op.func(*args, **named)
    except Exception:  # what an operation cannot compute from these numbers is not known
        return _shaped(torch.zeros_like(known), torch.zeros([1] * len(shape)), given, sizes)
    return _shaped(known & number.isfinite(), number, given, sizes)


def _shaped(known: Tensor, number: Tensor, given: Iterable[Known], sizes: Sequence[Size]) -> Known:
    """A result with as many dimensions as sizes, uniform where all operands are."""
    uniform = [True] * len(sizes)
    for each in given:
        for dim, flag in enumerate(reversed(each.uniform), start=1):
            uniform[-dim] &= flag
    return Known(_front(number, len(sizes)), _front(known, len(sizes)), tuple(uniform), tuple(sizes))


def _front(tensor: Tensor, ndim: int) -> Tensor:
    return tensor.reshape([1] * (ndim - tensor.ndim) + list(tensor.shape))


def _padded(flags: Tensor, result: Known) -> Tensor:
    return _front(flags, len(result.sizes))


def _where(zero: Tensor, result: Known) -> Known:
    """The result, with zeros that are known besides."""
    if not bool(zero.any()):
        return result
    number = torch.where(zero, torch.zeros((), dtype=torch.float64), result.number.double())
    return result.but(result.known | zero, number)


def _like(known: Known, number: Any) -> Known:
    return Known.everywhere(float(number), [fixed(1)] * len(known.sizes)) if _is_number(number) else Known.nothing(known.sizes)
