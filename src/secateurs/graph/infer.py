"""From a trace to the type of every dimension: apply the rule of each operation in turn, and unify."""

from __future__ import annotations

from secateurs.graph.axes import Dim
from secateurs.graph.ops import Op
from secateurs.graph.rms import rms_norms
from secateurs.graph.rules import rule_of
from secateurs.graph.trace import Trace
from secateurs.graph.typed import Dims, Typing


def infer(trace: Trace) -> Typing:
    """The types of every dimension of every tensor of a trace.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import normal, record
    >>> trace = record(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    >>> typing = infer(trace)
    >>> [[str(normal(dim)) for dim in typing.types[value]] for value in trace.parameters.values()]
    [['8', '3!'], ['8'], ['2!', '8'], ['2!']]
    """
    typing = Typing()
    for held in (trace.parameters, trace.buffers):
        for name, value in held.items():
            typing.types.setdefault(value, [Dim.fresh(size) for size in value.shape])
            if name not in trace.written:
                typing.fixed.setdefault(value, frozenset([name]) if held is trace.parameters else frozenset())
            if held is trace.parameters and not value.dtype.is_floating_point:
                typing.pin(typing.types[value], f"{name} is of {value.dtype}; only floating-point weights are pruned")
    for value in trace.inputs:
        typing.types[value] = [Dim.fresh(size, "the model's input") for size in value.shape]
        typing.fixed.pop(value, None)
    typing.rms_norms = rms_norms(trace)
    used = _used(trace)
    for typing.place, op in enumerate(trace.ops):
        typing.muted = not used[typing.place]
        _apply(typing, op)
    typing.muted = False
    for name, value in trace.written.items():
        before = (trace.parameters | trace.buffers).get(name)
        if before is not None and before.shape == value.shape:  # what the next pass begins with
            typing.same_all(typing.dims(before), typing.dims(value), trace.ops[-1])
    for (value, place), where in trace.measured.items():
        typing.pin([typing.dims(value)[place]], f"the code computes with its size at {where}")
    for value in trace.outputs:
        typing.pin(typing.dims(value), "the model's output")
    return typing


def _by_output(found: list[Dims] | Dims | None, op: Op) -> list[Dims]:
    """What a rule returned, as one list of dimensions for each output."""
    if not found:
        return [[]] if op.outputs[0].shape == () else []
    return [found] if isinstance(found[0], Dim) else found


def _used(trace: Trace) -> list[bool]:
    """Which operations' results find their way into the outputs, or into what the next pass begins with."""
    needed, used = {*trace.outputs, *trace.written.values()}, []
    for op in reversed(trace.ops):
        used.append(any(value in needed for value in op.outputs))
        if used[-1]:
            needed.update(op.inputs)
    return used[::-1]


def _apply(typing: Typing, op: Op) -> None:
    found = rule_of(op)(typing, op)
    inputs = list(op.inputs)
    fixed = all(typing.is_fixed(value) for value in inputs)
    origins = frozenset(name for value in inputs for name in typing.fixed.get(value, ()))
    results = _by_output(found, op)
    for place, value in enumerate(op.outputs):
        dims = results[place] if place < len(results) else None
        if dims is None or [dim.size for dim in dims] != list(value.shape):
            if dims is not None:
                typing.unknown.setdefault(op.name, op.where)
            reason = f"{op.name} at {op.where}"
            typing.pin((dim for each in inputs for dim in typing.dims(each)), reason)
            dims = [Dim.fresh(size, reason) for size in value.shape]
        if value in typing.types:
            typing.same_all(typing.types[value], dims, op)
        else:
            typing.types[value] = dims
        if fixed:
            typing.fixed.setdefault(value, origins)
        else:
            typing.fixed.pop(value, None)
