"""What is coupled in a model: its axes, where each of them lies in the weights, and why some may not be touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn

from secateurs.graph.axes import Axis, Dim, View, normal, views
from secateurs.graph.infer import infer
from secateurs.graph.ops import Trace
from secateurs.graph.trace import trace_of
from secateurs.graph.typing_context import Dims, Typing

Role = Literal["producer", "consumer", "scale"]
"""A weight makes the units of an axis, reads them, or only passes them on, one by one."""


@dataclass(frozen=True)
class Place:
    """One occurrence of an axis: in which dimension of which parameter, as which view, in which role.

    ``reads``: something is computed from the axis' units there, though the weight may make them too, as that of an embedding which
    is the classifier's as well does.
    """

    parameter: str
    dim: int
    view: View
    role: Role
    reads: bool = False


@dataclass(frozen=True)
class Structure:
    """The types of all dimensions of a model, and the trace that they come from."""

    trace: Trace
    typing: Typing

    @cached_property
    def parameters(self) -> dict[str, Dims]:
        """Types of the dimensions of each parameter, in the model's order."""
        return {name: self.typing.types[value] for name, value in self.trace.parameters.items()}

    @cached_property
    def buffers(self) -> dict[str, Dims]:
        """Types of the dimensions of each buffer."""
        return {name: self.typing.types[value] for name, value in self.trace.buffers.items()}

    @cached_property
    def axes(self) -> list[Axis]:
        """Every axis that some weight produces, reads or scales, in the order in which the model comes to them."""
        found: dict[Axis, None] = {}
        for _, dim in self._parts:
            found.update(dict.fromkeys(dim.axes()))
        return list(found)

    @cached_property
    def _parts(self) -> list[tuple[frozenset[str], Dim]]:
        return [*self.typing.produced, *self.typing.consumed]

    @cached_property
    def producers(self) -> dict[Axis, list[str]]:
        """Axis → the parameters that make it, in the order of the pass."""
        return {axis: list(names) for axis, names in self._made.items()}

    @cached_property
    def _made(self) -> dict[Axis, dict[str, None]]:
        made = _by_axis(self.typing.produced)
        return {axis: {name: None for name in names if not self._divides(name)} for axis, names in made.items()}

    def _divides(self, name: str) -> bool:
        """Whether something is divided by the numbers of a parameter, one for each unit: none may become zero on the way."""
        return name in self.typing.divisors and sum(dim.size > 1 for dim in self.parameters[name]) == 1

    @cached_property
    def places(self) -> dict[Axis, list[Place]]:
        """Axis → everywhere that it occurs in a parameter that may be set to zero; producers first."""
        made, read = self._made, _by_axis(self.typing.consumed)
        found: dict[Axis, list[Place]] = {}
        for name, dims in self.parameters.items():
            for place, dim in enumerate(() if self._divides(name) else dims):
                for axis, view in views(dim):
                    parts = [role for role, names in (("producer", made), ("consumer", read)) if name in names.get(axis, ())]
                    found.setdefault(axis, []).append(Place(name, place, view, *self._role(name, place, dim, parts)))
        order: dict[str, int] = {"producer": 0, "consumer": 1, "scale": 2}
        return {axis: sorted(places, key=lambda each: order[each.role]) for axis, places in found.items()}

    def _role(self, name: str, place: int, dim: Dim, parts: list[str]) -> tuple[Role, bool]:
        """The part that a weight plays with one of its dimensions, and whether it reads the units there.

        One that both makes and reads an axis, as a square weight and those of recurrent layers do, is told by its dimensions.
        """
        if len(parts) < 2:
            role: Any = parts[0] if parts else "scale"
            return role, role == "consumer"
        makes, reads = self._lies(name, dim, self.typing.produced), self._lies(name, dim, self.typing.consumed)
        if makes != reads:
            return ("producer", False) if makes else ("consumer", True)
        others = [normal(other) for i, other in enumerate(self.parameters[name]) if i != place]
        return ("producer" if place == 0 or normal(dim) not in others else "consumer"), True

    def _lies(self, name: str, dim: Dim, parts: list[tuple[frozenset[str], Dim]]) -> bool:
        """Whether one of these parts of a weight is this dimension of it; where none is any of its dimensions, whether one is alike."""
        dims, found = self.parameters[name], [part for names, part in parts if name in names]
        return any(part is dim or (all(part is not each for each in dims) and normal(part) == normal(dim)) for part in found)

    @cached_property
    def inner(self) -> dict[Axis, Axis]:
        """Axes that only exist within the units of another one (the width of heads), and that one."""
        found: dict[Axis, Axis] = {}
        for dims in self.parameters.values():
            for dim in dims:
                for term in normal(dim).terms:
                    free = [axis for factor in term for axis in _axes_of(factor) if not axis.pinned and not axis.approximate]
                    for axis in free[1:]:
                        outer = free[0]
                        while outer in found and outer is not axis:
                            outer = found[outer]
                        if (
                            outer is not axis
                        ):  # shuffled channels are both within each other: the first that is met is the outer one
                            found[axis] = free[0]
        return found


def _axes_of(factor: Axis | Dim) -> Iterator[Axis]:
    if isinstance(factor, Dim):
        yield from factor.axes()
    else:
        yield factor


def _by_axis(parts: list[tuple[frozenset[str], Dim]]) -> dict[Axis, dict[str, None]]:
    """Axis → the parameters of the parts that it is in, in order."""
    found: dict[Axis, dict[str, None]] = {}
    for names, dim in parts:
        for axis in dim.axes():
            found.setdefault(axis, {}).update(dict.fromkeys(sorted(names)))
    return found


def analyse(model: nn.Module, example: Any) -> Structure:
    """Trace a model once and find what is coupled in it.

    Raises `TaskError` where the model rejects the example, `SecateursError` where it is scripted, compiled or wrapped.

    >>> import torch
    >>> structure = analyse(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    >>> [(axis.size, axis.pinned) for axis in structure.axes]
    [(8, None), (2, "the model's output"), (3, "the model's input")]
    """
    trace = trace_of(model, example)
    return Structure(trace, infer(trace))


Monomial = tuple[int, tuple[str, ...]]
"""A number times the numbers of units that some sites keep."""


def extent(dim: Dim, names: Mapping[Axis, str]) -> tuple[Monomial, ...]:
    """The size of a dimension as a sum of monomials in the numbers of units that named axes keep.

    >>> heads, width = Axis(12), Axis(64)
    >>> extent(Dim.sum(Dim.product(heads, width), Dim.fresh(5)), {heads: "attention"})
    ((64, ('attention',)), (5, ()))
    """
    terms = normal(dim).terms
    if len(terms) == 1 and len(terms[0]) == 1 and isinstance(terms[0][0], Axis):
        return _of_axis(terms[0][0], names)
    found: dict[tuple[str, ...], int] = {}
    for term in terms:
        products: Sequence[Monomial] = [(1, ())]
        if len(term) == 1 and isinstance(term[0], Axis):
            products, term = _of_axis(term[0], names), ()
        for factor in term:
            inside = extent(factor, names) if isinstance(factor, Dim) else _of_axis(factor, names)
            products = [(a * b, (*x, *y)) for a, x in products for b, y in inside]
        for count, sites in products:
            key = tuple(sorted(sites))
            found[key] = found.get(key, 0) + count
    return tuple((count, sites) for sites, count in found.items())


def _of_axis(axis: Axis, names: Mapping[Axis, str]) -> tuple[Monomial, ...]:
    return ((1, (names[axis],)),) if axis in names else ((axis.size, ()),)
