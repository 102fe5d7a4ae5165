"""From a trace to the type of every dimension: apply the rule of each operation in turn, and unify."""

from __future__ import annotations

from secateurs.graph.axes import Dim
from secateurs.graph.ops import Op, Trace, after, used
from secateurs.graph.rms_norms import rms_norms
from secateurs.graph.rules import rule_of
from secateurs.graph.typing_context import Dims, Typing
from secateurs.nested import Value


def infer(trace: Trace) -> Typing:
    """The types of every dimension of every tensor of a trace.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.graph import normal, trace_of
    >>> trace = trace_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    >>> typing = infer(trace)
    >>> [[str(normal(dim)) for dim in typing.types[value]] for value in trace.parameters.values()]
    [['8', '3!'], ['8'], ['2!', '8'], ['2!']]
    """
    typing = Typing()
    moving = _moving(trace)
    for held in (trace.parameters, trace.buffers):
        for name, value in held.items():
            typing.types.setdefault(value, [Dim.fresh(size) for size in value.shape])
            if value not in moving:
                typing.fixed.setdefault(value, frozenset([name]) if held is trace.parameters else frozenset())
            if held is trace.parameters:
                typing.zero_with[value] = frozenset([name])
            if held is trace.parameters and not value.dtype.is_floating_point:
                typing.pin(typing.types[value], f"{name} is of {value.dtype}; only floating-point weights are pruned")
    for value in trace.inputs:
        typing.types[value] = [Dim.fresh(size, "the model's input") for size in value.shape]
        typing.fixed.pop(value, None)
    typing.rms_norms = rms_norms(trace)
    needed = used(trace)
    for typing.place, op in enumerate(trace.ops):
        typing.muted = not needed[typing.place]
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


def _moving(trace: Trace) -> set[Value]:
    """The parameters and buffers into which the pass writes what depends on its inputs."""
    before = {**trace.parameters, **trace.buffers}
    found: set[Value] = set()
    while True:
        reached = after(trace.ops if trace.written else (), {*trace.inputs, *found})
        more = {before[name] for name, value in trace.written.items() if name in before and value in reached} - found
        if not more:
            return found
        found |= more


def _apply(typing: Typing, op: Op) -> None:
    _watch_divisors(typing, op)
    products = len(typing.products)
    found = rule_of(op)(typing, op)
    inputs = list(op.inputs)
    typing.multiplying += [typing.place] * (len(typing.products) - products)
    if len(typing.products) > products or any(value in typing.computed for value in inputs):
        typing.computed.update(op.outputs)
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


_ZERO_STAYS = (
    *("view", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand", "slice", "select", "split"),
    *("clone", "detach", "alias", "_to_copy", "mul", "div", "neg", "abs", "sqrt", "pow", "relu"),
    *("fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask"),
)
"""Operations whose result is zero where their operand is."""


def _watch_divisors(typing: Typing, op: Op) -> None:
    """Note which parameters something is divided by: where they are zero, the answer is no number."""
    if op.name in ("div", "reciprocal", "rsqrt"):
        divisor = op.args[min(1, len(op.args) - 1)]
        if isinstance(divisor, Value):
            typing.divisors.update(typing.zero_with.get(divisor, ()))
    if op.name in _ZERO_STAYS:
        operands = op.inputs if op.name == "mul" else op.inputs[:1]
        names = frozenset(name for value in operands for name in typing.zero_with.get(value, ()))
        if names:
            typing.zero_with.update(dict.fromkeys(op.outputs, names))
