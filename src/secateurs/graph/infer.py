"""From a trace to the type of every dimension: apply the rule of each operation in turn, and unify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from secateurs.graph.axes import Conflict, Dim, approximate, mark_heads, part, pin, split, unify
from secateurs.graph.rms import RmsNorm, rms_norms
from secateurs.graph.trace import Op, Trace, Value

Dims = list[Dim]
"""The types of a tensor's dimensions."""

Rule = Callable[["Typing", Op], "list[Dims] | Dims | None"]
"""What an operation says of its operands, and the types of what it returns: one list of dimensions, or one for each output."""


@dataclass
class Typing:
    """The types found so far.

    ``produced``, ``consumed`` and ``scaled`` say which dimensions of a weight play which part; ``groups``, in how many groups a
    convolution's weight falls; ``products``, over which dimensions each matrix product and convolution runs (their product is its
    MACs); ``summed``, what is added up without a weight; ``unknown``, the operations without a rule, and where they stand;
    ``rms_norms``, those that can be rescaled, by the operation's ``place`` in the trace. ``muted`` while an operation is looked at whose
    result nobody uses: it must run, but what it reduces over does not matter.
    """

    types: dict[Value, Dims] = field(default_factory=dict)
    fixed: dict[Value, frozenset[str]] = field(default_factory=dict)
    produced: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    consumed: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    scaled: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    groups: dict[str, Dim] = field(default_factory=dict)
    products: list[Dims] = field(default_factory=list)
    summed: Dims = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    rms_norms: dict[int, RmsNorm] = field(default_factory=dict)
    place: int = 0
    muted: bool = False

    # ------------------------------------------------------------ words for rules

    def dims(self, value: Value) -> Dims:
        """The types of a tensor's dimensions; those of a constant in the model's code are pinned."""
        if value not in self.types:
            self.types[value] = [Dim.fresh(size, "a constant in the model's code") for size in value.shape]
            self.fixed[value] = frozenset()
        return self.types[value]

    def same(self, a: Dim, b: Dim, op: Op) -> Dim:
        """Unify two dimensions of the same size; where they cannot be, both are pinned."""
        try:
            unify(a, b)
        except Conflict as conflict:
            reason = f"{op.name} at {op.where} cuts it in a way that does not fit ({conflict})"
            pin(a, reason)
            pin(b, reason)
        return a

    def same_all(self, a: Sequence[Dim], b: Sequence[Dim], op: Op) -> Dims:
        """Unify dimension by dimension; the result is as long as the first."""
        for one, other in zip(a, b, strict=True):
            if one.size == other.size:
                self.same(one, other, op)
        return list(a)

    def pin(self, dims: Iterable[Dim], reason: str) -> None:
        for dim in dims:
            pin(dim, reason)

    def approximate(self, dims: Iterable[Dim], reason: str) -> None:
        for dim in () if self.muted else dims:
            approximate(dim, reason)

    def part(self, dim: Dim, start: int, stop: int, op: Op) -> Dim:
        """The indices from start to stop of a dimension."""
        if (start, stop) == (0, dim.size):
            return dim
        try:
            return part(dim, start, stop)
        except Conflict as conflict:
            reason = f"{op.name} at {op.where} cuts it in a way that does not fit ({conflict})"
            pin(dim, reason)
            return Dim.fresh(stop - start, reason)

    def split(self, dim: Dim, inner: int, op: Op) -> tuple[Dim, Dim]:
        """A dimension as outer × inner."""
        try:
            return split(dim, inner)
        except Conflict as conflict:
            reason = f"{op.name} at {op.where} splits it in a way that does not fit ({conflict})"
            pin(dim, reason)
            return Dim.fresh(dim.size // inner, reason), Dim.fresh(inner, reason)

    def heads(self, dims: Iterable[Dim], op: Op) -> None:
        """These dimensions number products of two activations."""
        for dim in dims:
            mark_heads(dim, op.module)

    def is_fixed(self, value: Value) -> bool:
        """Whether a tensor depends on weights alone, and not on the input."""
        self.dims(value)
        return value in self.fixed

    def contraction(self, a: Value, b: Value, a_free: Sequence[Dim], b_free: Sequence[Dim], common: Dim) -> None:
        """Note what a product of matrices makes of the weights in it: one side's free dimension is produced, the common one consumed."""
        for weight, other, free in ((a, b, a_free), (b, a, b_free)):
            if self.is_fixed(weight) and self.fixed[weight]:
                self.produced += [(self.fixed[weight], dim) for dim in free]
                (self.scaled if self.is_fixed(other) else self.consumed).append((self.fixed[weight], common))
        if not self.is_fixed(a) and not self.is_fixed(b):
            self.summed.append(common)


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
    """Which operations' results, or what they write to, find their way into the outputs."""
    needed, used = set(trace.outputs), []
    for op in reversed(trace.ops):
        used.append(op.func._schema.is_mutable or any(value in needed for value in op.outputs))
        if used[-1]:
            needed.update(op.inputs())
    return used[::-1]


def _apply(typing: Typing, op: Op) -> None:
    from secateurs.graph.rules import rule_of

    found = rule_of(op)(typing, op)
    inputs = list(op.inputs())
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
