"""Where the numbers of a tensor lie in memory, so that reshapes and permutations of a model move nothing that they need not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from secateurs.integers.layers import Array


def long(shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes that are not 1: what is 1 says nothing of where numbers lie.

    >>> long((1, 3, 1, 5))
    (3, 5)
    """
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True)
class Placed:
    """A tensor of ``shape`` in an array: a reshaped one of sizes ``base``, whose dimensions lie in memory in the order ``layout``."""

    array: Array
    shape: tuple[int, ...]
    base: tuple[int, ...]
    layout: tuple[int, ...]

    @property
    def is_natural(self) -> bool:
        """Whether the last dimension is the one that runs fastest, as in torch."""
        return self.layout == tuple(range(len(self.layout)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the base in the order in which they lie in memory."""
        return tuple(self.base[place] for place in self.layout)

    def reshaped(self, shape: Sequence[int]) -> Placed:
        """The same numbers as a tensor of another shape."""
        if self.is_natural:
            return natural(self.array, shape)
        base, layout = _regrouped(self.base, self.layout, long(shape)) or (self.base, self.layout)
        return Placed(self.array, tuple(shape), base, layout)

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The dimensions of the tensor in the order in which they lie, those of size 1 first; None where a reshape is between."""
        if self.base != long(self.shape):
            return None
        others = [dim for dim, size in enumerate(self.shape) if size != 1]
        ones = [dim for dim, size in enumerate(self.shape) if size == 1]
        return (*ones, *(others[place] for place in self.layout))

    def permuted(self, order: Sequence[int]) -> Placed | None:
        """The tensor with its dimensions permuted, without moving a number; None where a reshape is between."""
        if self.base != long(self.shape):
            return None
        places = _long_places(self.shape)
        shape = tuple(self.shape[dim] for dim in order)
        now = [places[dim] for dim in order if self.shape[dim] != 1]  # of each new dimension, which one of the base it is
        return Placed(self.array, shape, long(shape), tuple(now.index(place) for place in self.layout))

    def lies(self, dims: Sequence[int]) -> bool:
        """Whether its dimensions lie in memory in this order.

        >>> array = Array("x", (4, 5, 3))
        >>> of_image(array, (1, 3, 4, 5)).lies((0, 2, 3, 1))
        True
        """
        places = _long_places(self.shape)
        return self.base == long(self.shape) and self.layout == tuple(places[dim] for dim in dims if self.shape[dim] != 1)


def _regrouped(
    base: Sequence[int], layout: Sequence[int], sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """A base and its layout with dimensions split, or merged where they lie one after another, into other sizes; None if it cannot be."""
    pieces: dict[int, list[int]] = {}  # of each old dimension that begins a group, the new ones; of those merged into it none
    place = target = 0
    while place < len(base):
        first, old, new = place, base[place], 1
        fresh: list[int] = []
        while new < old or not fresh:
            if target == len(sizes):
                return None
            new, target = new * sizes[target], target + 1
            fresh.append(target - 1)
            while old < new and place + 1 < len(base):
                place += 1
                old *= base[place]
        merged = list(range(first, place + 1))
        at = layout.index(first)
        if old != new or (len(merged) > 1 and (len(fresh) > 1 or list(layout[at : at + len(merged)]) != merged)):
            return None
        pieces |= {dim: [] for dim in merged} | {first: fresh}
        place += 1
    return sizes, tuple(dim for old in layout for dim in pieces[old])


def _long_places(shape: Sequence[int]) -> dict[int, int]:
    """Of each dimension that is not 1, the how many-th of those it is."""
    return {dim: place for place, dim in enumerate(dim for dim, size in enumerate(shape) if size != 1)}


def lying(array: Array, shape: Sequence[int], dims: Sequence[int]) -> Placed:
    """A tensor of a shape whose dimensions lie in an array in the order ``dims``."""
    places = _long_places(shape)
    return Placed(array, tuple(shape), long(shape), tuple(places[dim] for dim in dims if shape[dim] != 1))


def of_image(array: Array, shape: Sequence[int]) -> Placed:
    """A tensor (1, channels, height, width) with its channels last in memory."""
    return lying(array, shape, (0, 2, 3, 1))


def natural(array: Array, shape: Sequence[int]) -> Placed:
    """A tensor that lies as torch has it."""
    return lying(array, shape, range(len(shape)))


def columns(placed: Placed) -> list[int] | None:
    """Of a tensor that lies in one piece as a vector, which of torch's numbers stands at each place; None where they lie as in torch.

    >>> columns(of_image(Array("x", (1, 2, 2)), (1, 2, 1, 2)).reshaped((1, 4)))
    [0, 2, 1, 3]
    """
    if placed.is_natural:
        return None
    strides = [prod(placed.base[dim + 1 :]) for dim in range(len(placed.base))]
    found = [0]
    for dim in placed.layout:
        found = [place + step * strides[dim] for place in found for step in range(placed.base[dim])]
    return found
