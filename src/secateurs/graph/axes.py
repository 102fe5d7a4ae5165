"""The types of dimensions: sums of products of axes, and the unifier that finds out which axes are the same.

A dimension of size 2304 that a fused projection makes and a reshape takes apart is ``q + k + v`` with ``q = heads × 64``. An axis
is a variable: unification binds it to another axis, or to a sum or product of smaller ones. Sizes only ever get smaller on the way
down, so a binding never leads back to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod

import torch
from torch import Tensor


class Conflict(Exception):
    """Two dimensions cannot be the same: they are cut at places that do not fit."""


class Axis:
    """A variable of a given size. ``pinned`` and ``approximate`` say why it may not be pruned, or not exactly; ``heads``, of which
    module's attention it numbers the heads."""

    __slots__ = ("approximate", "bound", "heads", "pinned", "size")

    def __init__(self, size: int, pinned: str | None = None) -> None:
        self.size = size
        self.bound: Dim | None = None
        self.pinned = pinned
        self.approximate: str | None = None
        self.heads: str | None = None

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.pinned else ''}"


Term = tuple["Axis | Dim", ...]
"""A product of factors, outermost first; of no factors it is 1."""


@dataclass(frozen=True)
class Dim:
    """A sum of products: what one dimension of a tensor is made of, in the order of its indices.

    >>> heads, width = Axis(12), Axis(64)
    >>> Dim.product(heads, width)
    12x64
    """

    terms: tuple[Term, ...]

    @cached_property
    def size(self) -> int:
        return sum([_size_of(term) for term in self.terms])

    def __repr__(self) -> str:
        return " + ".join("x".join(f"({f})" if isinstance(f, Dim) else repr(f) for f in term) or "1" for term in self.terms)

    @staticmethod
    def fresh(size: int, pinned: str | None = None) -> Dim:
        """A dimension of which nothing is known yet."""
        return ONE if size == 1 else Dim(((Axis(size, pinned),),))

    @staticmethod
    def product(*factors: Axis | Dim) -> Dim:
        """Factors from the slowest index to the fastest."""
        return normal(Dim((factors,)))

    @staticmethod
    def sum(*parts: Dim) -> Dim:
        """Parts one after the other."""
        return Dim(tuple(term for part in parts for term in part.terms))

    def axes(self) -> Iterator[Axis]:
        """Every axis in it, once for each time that it occurs."""
        for term in normal(self).terms:
            for factor in term:
                yield from factor.axes() if isinstance(factor, Dim) else (factor,)


ONE = Dim(((),))
"""A dimension of size 1: nothing to prune."""


def _size_of(term: Term) -> int:
    return prod([factor.size for factor in term])


def normal(dim: Dim) -> Dim:
    """The same dimension with every binding followed, sums multiplied out as far as the order of indices allows."""
    if (axis := _single(dim)) is not None and axis.size != 1:
        if axis.bound is None:
            return dim
        axis.bound = normal(axis.bound)  # the way is shorter next time
        return axis.bound
    if all(_is_free(factor) for term in dim.terms for factor in term):
        return dim
    terms: list[Term] = []
    for term in dim.terms:
        factors = tuple(_followed(term))
        if factors and isinstance(factors[0], Dim):
            opened = Dim(tuple((*first, *factors[1:]) for first in factors[0].terms))
            terms.extend((opened if all(factors[0].terms) else normal(opened)).terms)  # after a 1 the next factor is the first
        else:
            terms.append(factors)
    return Dim(tuple(terms))


def _is_free(factor: Axis | Dim) -> bool:
    return type(factor) is Axis and factor.bound is None and factor.size != 1


def _followed(term: Term) -> Iterator[Axis | Dim]:
    for factor in term:
        if isinstance(factor, Axis):
            if factor.bound is None:
                if factor.size != 1:
                    yield factor
                continue
            inner = factor.bound = normal(factor.bound)
        else:
            inner = normal(factor)
        if len(inner.terms) == 1:
            yield from inner.terms[0]
        else:
            yield inner


# ---------------------------------------------------------------- unification


def pin(dim: Dim, reason: str) -> None:
    """No axis of this dimension may be pruned; the first reason stays."""
    for axis in dim.axes():
        axis.pinned = axis.pinned or reason


def approximate(dim: Dim, reason: str) -> None:
    """Pruning an axis of this dimension changes more than what is removed."""
    for axis in dim.axes():
        axis.approximate = axis.approximate or reason


def unify(a: Dim, b: Dim) -> None:
    """Make two dimensions the same; raises `Conflict` where their parts do not fit into each other.

    >>> fused, heads, width = Dim.fresh(24), Dim.fresh(3), Dim.fresh(4)
    >>> unify(fused, Dim.sum(Dim.product(heads, width), Dim.product(heads, width)))
    >>> normal(fused)
    3x4 + 3x4
    """
    while True:
        a, b = normal(a), normal(b)
        if a == b:
            return None
        if (axis := _single(a)) is not None:
            return _bind(axis, b)
        if (axis := _single(b)) is not None:
            return _bind(axis, a)
        if not a.terms or not b.terms:
            raise Conflict(f"sizes differ by {a.size - b.size}")
        here, there = _size_of(a.terms[0]), _size_of(b.terms[0])
        if here > there:
            _cut(a.terms[0], there)
        elif there > here:
            _cut(b.terms[0], here)
        else:
            _unify_terms(a.terms[0], b.terms[0])
            a, b = Dim(a.terms[1:]), Dim(b.terms[1:])


def _single(dim: Dim) -> Axis | None:
    terms = dim.terms
    if len(terms) == 1 and len(terms[0]) == 1 and type(factor := terms[0][0]) is Axis:
        return factor
    return None


def _bind(axis: Axis, dim: Dim) -> None:
    if axis.size != dim.size:
        raise Conflict(f"sizes {axis.size} and {dim.size}")
    axis.bound = dim
    if axis.pinned:
        pin(dim, axis.pinned)
    if axis.approximate:
        approximate(dim, axis.approximate)
    if axis.heads is not None:
        mark_heads(dim, axis.heads)


def mark_heads(dim: Dim, module: str) -> None:
    """The axes of this dimension number independent products of two activations: the attention heads of a module."""
    for axis in dim.axes():
        axis.heads = module if axis.heads is None else axis.heads


def _cut(term: Term, size: int) -> None:
    """Cut the first `size` indices off a product, which is between two of its outermost index's values, or not at all."""
    first = term[0]
    inner = _size_of(term) // first.size
    if size % inner or not isinstance(first, Axis):
        raise Conflict(f"{Dim((term,))} cannot be cut after {size}")
    _bind(first, Dim.sum(Dim.fresh(size // inner), Dim.fresh(first.size - size // inner)))


def _unify_terms(x: Term, y: Term) -> None:
    """Two products of one size: factor by factor from the fastest index, splitting the larger one of two."""
    if not x or not y or x == y:
        return None
    last, other = x[-1], y[-1]
    if last.size == other.size:
        unify(_as_dim(last), _as_dim(other))
        return unify(Dim((x[:-1],)), Dim((y[:-1],)))
    if last.size < other.size:
        return _unify_terms(y, x)
    outer = _divide(last, other)
    return unify(Dim(((*x[:-1], outer),)), Dim((y[:-1],)))


def _as_dim(factor: Axis | Dim) -> Dim:
    return factor if isinstance(factor, Dim) else Dim(((factor,),))


def _divide(factor: Axis | Dim, inner: Axis | Dim) -> Axis | Dim:
    """Write a factor as outer × inner, and return outer."""
    if factor.size % inner.size:
        raise Conflict(f"{factor.size} is no multiple of {inner.size}")
    if isinstance(factor, Axis):
        outer = Axis(factor.size // inner.size)
        _bind(factor, Dim(((outer, inner),)))
        outer.pinned, outer.approximate = factor.pinned, factor.approximate
        return outer
    parts: list[Term] = []
    for term in factor.terms:
        if _size_of(term) % inner.size:
            raise Conflict(f"{Dim((term,))} is no multiple of {inner.size}")
        part = Dim.fresh(_size_of(term) // inner.size)
        unify(Dim((term,)), Dim.product(part, inner))
        parts.append((part,))
    return Dim(tuple(parts))


def part(dim: Dim, start: int, stop: int) -> Dim:
    """The indices from start to stop; raises `Conflict` where no cut is possible there.

    >>> whole = Dim.fresh(10)
    >>> part(whole, 2, 5), normal(whole)
    (3, 2 + 3 + 5)
    """
    for place in (start, stop):
        position = 0
        for term in normal(dim).terms:
            size = _size_of(term)
            if position < place < position + size:
                _cut(term, place - position)
                break
            position += size
    position, chosen = 0, []
    for term in normal(dim).terms:
        if start <= position < stop:
            chosen.append(term)
        position += _size_of(term)
    found = Dim(tuple(chosen))
    if found.size != stop - start:
        raise Conflict(f"{normal(dim)} cannot be cut at {start} and {stop}")
    return found


def split(dim: Dim, inner: int) -> tuple[Dim, Dim]:
    """A dimension as outer × inner with an inner part of that size."""
    outer, fast = Dim.fresh(dim.size // inner), Dim.fresh(inner)
    unify(Dim.product(*_factors(outer), *_factors(fast)), dim)
    return outer, fast


def _factors(dim: Dim) -> Term:
    return dim.terms[0] if len(dim.terms) == 1 else (dim,)


# ---------------------------------------------------------------- what a choice of units means for a dimension


Choice = Mapping[Axis, Tensor]
"""Axis → bool tensor of its size, ``True`` = kept; an axis that is not there is kept whole."""


def kept(dim: Dim, choice: Choice) -> Tensor:
    """Which indices of a dimension stay.

    >>> heads, width = Axis(2), Axis(3)
    >>> kept(Dim.product(heads, width), {width: torch.tensor([True, False, True])})
    tensor([ True, False,  True,  True, False,  True])
    """

    def of_factor(factor: Axis | Dim) -> Tensor:
        if isinstance(factor, Dim):
            return kept(factor, choice)
        return choice[factor] if factor in choice else torch.ones(factor.size, dtype=torch.bool)

    def of_term(term: Term) -> Tensor:
        one = torch.ones(1, dtype=torch.bool)
        return reduce(lambda outer, factor: (outer[:, None] & of_factor(factor)).flatten(), term, one)

    return torch.cat([of_term(term) for term in normal(dim).terms])


@dataclass(frozen=True)
class View:
    """One place where an axis occurs in a dimension: ``parts`` are the stretch of indices, and how it falls into outer × axis × inner,
    from the dimension on down to the axis; none where the axis is the whole dimension.

    Called with a tensor and its dimension it gives a view with the indices of the axis in front, and the rest in its place.
    """

    parts: tuple[tuple[int, int, tuple[int, int, int]], ...] = ()

    def __call__(self, tensor: Tensor, dim: int) -> Tensor:
        place = dim
        for start, size, sizes in self.parts:
            tensor = tensor.narrow(place, start, size)
            if sizes[1] != size:
                tensor = tensor.unflatten(place, sizes)
                place += 1
        if place > dim:
            return tensor.movedim(place, 0)
        return (tensor.movedim(dim, 0) if dim else tensor).unsqueeze(-1)

    @property
    def width(self) -> int:
        """How many indices of the dimension one index of the axis takes."""
        return prod([outer * inner for _, _, (outer, _, inner) in self.parts])


def occurrences(dim: Dim, axis: Axis) -> Iterator[View]:
    """The places where an axis occurs in a dimension, each as a view of whatever tensor has that dimension.

    >>> heads, width = Axis(2), Axis(3)
    >>> [view] = occurrences(Dim.product(heads, width), width)
    >>> view(torch.zeros(5, 6), 1).shape
    torch.Size([3, 5, 2, 1])
    """
    return (view for found, view in views(dim) if found is axis)


def views(dim: Dim) -> Iterator[tuple[Axis, View]]:
    """Every axis in a dimension, with each place where it occurs, in the order of the indices."""
    whole = normal(dim)
    if (axis := _single(whole)) is not None:
        yield axis, View()
        return
    start = 0
    for term in whole.terms:
        size = _size_of(term)
        for place, factor in enumerate(term):
            part = (start, size, (_size_of(term[:place]), factor.size, _size_of(term[place + 1 :])))
            if isinstance(factor, Axis):
                yield factor, View((part,))
            else:
                yield from ((axis, View((part, *view.parts))) for axis, view in views(factor))
        start += size
