"""What is known so far of the tensors of a trace, and the words in which rules speak of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from secateurs.graph.axes import Axis
from secateurs.graph.known.state import Free, Known, Size, fixed, size_of
from secateurs.graph.ops import Op
from secateurs.graph.typing_context import Typing
from secateurs.nested import Value

Rule = Callable[["Knowing", Op], "Known | list[Known | None] | None"]
"""What is known of an operation's results from what is known of its operands; nothing is said by ``None``."""


@dataclass
class Knowing:
    """What is known of each value; ``summed`` notes, for what is added up without a weight, which indices are zero, by place.

    ``sized`` tells that the code computes with sizes: then numbers in its calls may be others for another input. ``evenly``: a sum of two
    tensors of one shape is taken to be that for every input, so that neither is ever broadcast to the other; no rule can tell, where a
    size comes from a number (positions that are counted, as those of rotary embeddings). ``failed`` are operations whose rule could not
    be applied, so that nothing is known of what they give.
    """

    typing: Typing
    sized: bool = False
    evenly: bool = False
    known: dict[Value, Known] = field(default_factory=dict)
    summed: list[tuple[Value, int, Tensor]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    _whole: dict[Value, Value] = field(default_factory=dict)
    _views: dict[Value, list[Value]] = field(default_factory=dict)

    def of(self, value: Value) -> Known:
        """What is known of a tensor; of a constant in the model's code, nothing."""
        if value not in self.known:
            self.known[value] = self.nothing(value)
        return self.known[value]

    def nothing(self, value: Value, sizes: Mapping[int, Size] | None = None) -> Known:
        """A tensor of which nothing is known but these sizes."""
        known = sizes or {}
        return Known.nothing([known.get(dim, (Free(size),)) for dim, size in enumerate(value.shape)])

    def exact(self, value: Value, dim: int) -> bool:
        """Whether indices of a dimension may be counted: products with weights make it, or pruning would know what becomes of it.

        Not so the places of a table of positions, of which the input says how many are taken.
        """
        return all(axis.pinned is None or axis in self._made for axis in self.typing.dims(value)[dim].axes())

    @cached_property
    def _made(self) -> set[Axis]:
        return {axis for _, dim in self.typing.produced for axis in dim.axes()}

    def indexed(self, value: Value, dims: Sequence[int]) -> Known:
        """A tensor whose indices along these dimensions are chosen by number: where these may depend on the input, only zeros count."""
        return self.of(value).collapsed([dim for dim in dims if not self.exact(value, dim)])

    def viewed(self, view: Value, source: Value, sizes: Sequence[Size]) -> Value | None:
        """Note that one tensor is a view of another one; returns the first of these sizes that is the same numbers, if there is one."""
        source = self.of(source).same or source
        whole = self._whole.get(source, source)
        alike = self._views.setdefault(whole, [whole])
        same = next((each for each in alike if self.of(each).sizes == tuple(sizes)), None)
        self._whole[view] = whole
        if same is None:
            alike.append(view)
            return None
        return self.of(same).same or same

    def zeros_in_sum(self, value: Value, dim: int, zero: Tensor) -> None:
        """Note which indices of a dimension add nothing where it is added up."""
        self.summed.append((value, dim % len(value.shape), zero))


def joined(sizes: Sequence[Sequence[Size]], shape: Sequence[int]) -> list[Size]:
    """The sizes of what these broadcast to, lined up from the right."""
    made: list[Size] = []
    for dim, size in enumerate(reversed(shape), start=1):
        others = {each[-dim] for each in sizes if dim <= len(each)} - {()}
        sure = [each for each in others if each == fixed(size)]
        if len(others) == 1:
            made.append(others.pop())
        elif sure and size > 1:
            made.append(sure[0])
        else:
            made.append((Free(size),) if others else fixed(size))
    return made[::-1]


def regrouped(sizes: Sequence[Size], shape: Sequence[int]) -> list[Size]:
    """The sizes of dimensions that take the place of others with as many indices: their factors in turn, where these fit."""
    factors = [factor for size in sizes for factor in size]
    if all(isinstance(factor, int) for factor in factors):
        return [fixed(size) for size in shape]
    made: list[Size] = []
    for size in shape:
        taken: list[int | Free] = []
        while factors and size_of(tuple(taken)) < size:
            taken.append(factors.pop(0))
        if size == 1 and factors and size_of((factors[0],)) == 1:
            taken.append(factors.pop(0))
        if size_of(tuple(taken)) != size:
            return [(Free(each),) for each in shape]
        made.append(tuple(taken))
    if made and factors and size_of(tuple(factors)) == 1:
        made[-1] = (*made[-1], *factors)
    return made
