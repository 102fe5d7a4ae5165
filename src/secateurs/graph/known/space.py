"""Positions in space: pooling, interpolation, padding, pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from secateurs.graph.known.knowing import Knowing, Rule
from secateurs.graph.known.state import Free, Known
from secateurs.graph.ops import Op


def _space(op: Op) -> int:
    found = re.search(r"([123])d", op.name)
    return int(found.group(1)) if found else 2


def _moved(know: Knowing, op: Op, before: Known) -> Known:
    """The same channels with other positions, all of them alike."""
    count = _space(op)
    leading = len(before.sizes) - count
    before = before.collapsed(range(leading, len(before.sizes)))
    sizes = (*before.sizes[:leading], *((Free(size),) for size in op.outputs[0].shape[leading:]))
    return replace(before, sizes=sizes, same=None)


def _numeric(know: Knowing, op: Op, before: Known) -> Known:
    """The numbers in the call may be others for another input where the code computes with sizes."""
    return before.zeros_only() if know.sized else before


def spread(know: Knowing, op: Op) -> list[Known | None]:
    """Interpolation and padding by what is there: what is alike everywhere stays so."""
    return [_moved(know, op, know.of(op.args[0]))]


def zeros(know: Knowing, op: Op) -> list[Known | None]:
    """Only zeros stay what they are."""
    before = replace(_moved(know, op, know.of(op.args[0]).zeros_only()), positive=False)
    return [before]


def max_pool(know: Knowing, op: Op) -> list[Known | None]:
    """The largest of some that are alike is one of them; padding never is the largest."""
    return [_moved(know, op, know.of(op.args[0]))]


def mean_pool(know: Knowing, op: Op) -> list[Known | None]:
    """The mean of some that are alike is one of them, where no padding counts."""
    before = _numeric(know, op, know.of(op.args[0]))
    padding = op.argument("padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    if padded or op.argument("ceil_mode", False) or op.argument("divisor_override") is not None:
        before = before.zeros_only()
    return [_moved(know, op, before)]


def shuffled(know: Knowing, op: Op) -> Known | None:
    """Channels become positions, or the other way round: zero where everything is."""
    before = know.of(op.args[0])
    made = know.nothing(op.outputs[0])
    return Known.everywhere(0.0, made.sizes) if before.all_zero else replace(made, positive=before.positive)


def always(rule: Rule, **changes: Any) -> Rule:
    """A rule whose results have a property besides."""

    def changed(know: Knowing, op: Op) -> Any:
        found = rule(know, op)
        results = found if isinstance(found, list) else [found]
        return [each and replace(each, **changes) for each in results]

    return changed


# ---------------------------------------------------------------- reductions


def reduction(kind: str) -> Callable[[Knowing, Op], list[Known | None]]:
    """``kind`` is "sum" where their number counts, "mean" where what is alike gives itself, "order" where only zeros are known."""

    def rule(know: Knowing, op: Op) -> list[Known | None]:
        source, places = op.args[0], op.argument("dim")
        before, count = know.of(source), len(source.shape)
        given = places if isinstance(places, (tuple, list)) else [places]
        chosen = sorted({place % count for place in given}) if places not in (None, (), []) and count else list(range(count))
        for dim in chosen:
            know.zeros_in_sum(source, dim, before.along(dim, zeros=True))
        alike = all(before.uniform[dim] for dim in chosen) and kind == "mean"
        if not alike:
            before = replace(before.zeros_only().collapsed(chosen), positive=before.positive)
        if op.name in ("prod", "logsumexp", "var", "std", "var_mean", "std_mean"):
            before = Known.nothing(before.sizes)
        if op.argument("keepdim", False):
            result = replace(before, sizes=tuple(() if dim in chosen else size for dim, size in enumerate(before.sizes)), same=None)
        else:
            result = before.without(chosen)
        return [result, *(None for _ in op.outputs[1:])]

    return rule


# ---------------------------------------------------------------- normalisations


def batch_norm(know: Knowing, op: Op) -> list[Known | None]:
    """What is scaled by zero is the shift; by running statistics, what is known stays known."""
    source = op.args[0]
    before = know.of(source)
    training = bool(op.argument("training", False))
    shape = [-1 if dim == 1 else 1 for dim in range(len(source.shape))]
    scale, shift = _per_channel(know, op, 1, 1.0, shape), _per_channel(know, op, 2, 0.0, shape)
    mean, spread = (_per_channel(know, op, place, None, shape) for place in (3, 4))
    flat = scale.zero & shift.known
    known, number = flat, shift.number.double()
    if not training and mean is not None and spread is not None:
        sure = before.known & scale.known & shift.known & mean.known & spread.known
        width = (spread.number.double() + float(op.argument("eps", 1e-5))).sqrt()
        moved = (before.number.double() - mean.number.double()) / width * scale.number.double() + shift.number.double()
        number = torch.where(flat, number, moved)
        known = (flat | sure) & number.isfinite()
    uniform = tuple(u and dim != 1 for dim, u in enumerate(before.uniform))
    return [Known(number, known, uniform, before.sizes), *(None for _ in op.outputs[1:])]


def _per_channel(know: Knowing, op: Op, place: int, default: float | None, shape: list[int]) -> Any:
    """An operand with a number for each channel, lined up with the channels."""
    value = op.args[place] if len(op.args) > place else None
    if value is None:
        return None if default is None else Known.everywhere(default, [()] * len(shape))
    known = know.of(value)
    return replace(known, number=known.number.reshape(shape), known=known.known.reshape(shape))


def layer_norm(know: Knowing, op: Op) -> list[Known | None]:
    """What is scaled by zero is the shift, whatever the rest."""
    source, width = op.args[0], len(op.args[1])
    before, rms = know.of(source), "rms" in op.name
    first = len(source.shape) - width
    for dim in range(first, len(source.shape)):
        know.zeros_in_sum(source, dim, before.along(dim, zeros=True))
    scale = know.of(op.args[2]) if len(op.args) > 2 and op.args[2] is not None else None
    shift = know.of(op.args[3]) if not rms and len(op.args) > 3 and op.args[3] is not None else None
    lead, last = [1] * first, [False] * width
    zero = (
        scale.zero.reshape(lead + list(scale.zero.shape))
        if scale is not None
        else torch.zeros([1] * len(source.shape), dtype=torch.bool)
    )
    known, number = zero, torch.zeros([1] * len(source.shape), dtype=torch.float64)
    if shift is not None:
        known = zero & shift.known.reshape(lead + list(shift.known.shape))
        number = shift.number.double().reshape(lead + list(shift.number.shape))
    if rms:
        known = known | before.zero
    result = Known(number, known, (*before.uniform[:first], *last), before.sizes)
    return [result, *(None for _ in op.outputs[1:])]


def group_norm(know: Knowing, op: Op) -> list[Known | None]:
    """What is scaled by zero is the shift."""
    before = know.of(op.args[0])
    shape = [-1 if dim == 1 else 1 for dim in range(len(op.args[0].shape))]
    scale, shift = _per_channel(know, op, 1, 1.0, shape), _per_channel(know, op, 2, 0.0, shape)
    uniform = tuple(u and dim != 1 for dim, u in enumerate(before.uniform))
    return [Known(shift.number.double(), scale.zero & shift.known, uniform, before.sizes), *(None for _ in op.outputs[1:])]


def softmax(know: Knowing, op: Op) -> Known:
    """Nothing is known but that no number is below zero."""
    before = know.of(op.args[0])
    return replace(Known.nothing(before.sizes), positive=not op.name.strip("_").startswith("log"))


def weight_norm(know: Knowing, op: Op) -> list[Known | None]:
    """A weight divided by its norm: zero where it is."""
    return [know.of(op.args[0]).zeros_only(), *(None for _ in op.outputs[1:])]


def cumulative(know: Knowing, op: Op) -> Known:
    """Zero where everything along the dimension is."""
    return replace(know.of(op.args[0]).zeros_only().collapsed([op.args[1]]), same=None, positive=False)
