"""What is known of the types of all dimensions so far, and the words in which rules speak of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from secateurs.graph.axes import Conflict, Dim, approximate, mark_heads, part, pin, split, unify
from secateurs.graph.ops import Op
from secateurs.graph.rms_norms import RmsNorm
from secateurs.nested import Value

Dims = list[Dim]
"""The types of a tensor's dimensions."""

Rule = Callable[["Typing", Op], "list[Dims] | Dims | None"]
"""What an operation says of its operands, and the types of what it returns: one list of dimensions, or one for each output."""


@dataclass
class Typing:
    """The types found so far.

    ``produced``, ``consumed`` and ``scaled`` say which dimensions of a weight play which part; ``groups``, in how many groups a
    convolution's weight falls; ``products``, over which dimensions each matrix product and convolution runs (their product is its
    MACs), and ``multiplying``, the place of each in the trace; ``summed``, what is added up without a weight; ``unknown``, the
    operations without a rule, and where they stand; ``computed``, what products make of weights alone (queries that are learned, say);
    ``zero_with``, by which parameters being zero a value is zero; ``divisors``, the parameters that something is divided by;
    ``rms_norms``, those that can be rescaled, by the operation's ``place`` in the trace. ``muted`` while an operation is looked at whose
    result nobody uses: it must run, but what it reduces over does not matter.
    """

    types: dict[Value, Dims] = field(default_factory=dict)
    fixed: dict[Value, frozenset[str]] = field(default_factory=dict)
    zero_with: dict[Value, frozenset[str]] = field(default_factory=dict)
    divisors: set[str] = field(default_factory=set)
    computed: set[Value] = field(default_factory=set)
    produced: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    consumed: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    scaled: list[tuple[frozenset[str], Dim]] = field(default_factory=list)
    groups: dict[str, Dim] = field(default_factory=dict)
    products: list[Dims] = field(default_factory=list)
    multiplying: list[int] = field(default_factory=list)
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

    def are_activations(self, a: Value, b: Value) -> bool:
        """Whether both sides of a product depend on the input, or are computed from weights as activations are."""
        return (not self.is_fixed(a) and not self.is_fixed(b)) or (a in self.computed and b in self.computed)

    def contraction(self, a: Value, b: Value, a_free: Sequence[Dim], b_free: Sequence[Dim], common: Dim) -> None:
        """Note what a product of matrices makes of the weights in it: one side's free dimension is produced, the common one consumed."""
        for weight, other, free in ((a, b, a_free), (b, a, b_free)):
            if self.is_fixed(weight) and self.fixed[weight]:
                self.produced += [(self.fixed[weight], dim) for dim in free]
                (self.scaled if self.is_fixed(other) else self.consumed).append((self.fixed[weight], common))
        if not self.is_fixed(a) and not self.is_fixed(b):
            self.summed.append(common)
