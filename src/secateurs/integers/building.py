"""Layers while they are written: where the tensors of a model lie, and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import Tensor

from secateurs.integers.layers import Array, Layer, Reorder, View
from secateurs.integers.placed import Placed, long, lying
from secateurs.nested import Value


class Unsupported(Exception):
    """What no layer stands for; the message says what and why."""


@dataclass
class Building:
    """Layers while they are written: where the tensors of a model lie, and names."""

    layers: list[Layer] = field(default_factory=list)
    places: dict[Value, Placed] = field(default_factory=dict)
    constants: dict[Value, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        found, number = wanted, 2
        while found in self.names:
            found, number = f"{wanted}_{number}", number + 1
        self.names.add(found)
        return found

    def array(self, name: str, shape: tuple[int, int, int]) -> Array:
        return Array(self.name(name), shape)

    def of(self, value: Any) -> Placed:
        """Where an operand lies; raises `Unsupported` for constants and for what is no tensor."""
        if not isinstance(value, Value):
            raise Unsupported("an operand is no tensor")
        if value in self.constants:
            raise Unsupported(f"an operand is a constant tensor {tuple(value.shape)} that belongs to no layer")
        if value not in self.places:
            raise Unsupported("an operand comes from an operation that is not supported")
        return self.places[value]

    def viewed(self, placed: Placed, shape: tuple[int, int, int]) -> Array:
        """The array of a tensor, seen in another shape where it has one."""
        if placed.array.shape == shape:
            return placed.array
        y = self.array(placed.array.name, shape)
        self.layers.append(View(y.name, placed.array, y))
        return y

    def ordered(self, value: Any, dims: Sequence[int], shape: tuple[int, int, int]) -> Array:
        """A tensor whose dimensions lie in a given order, in an array of a shape; moved only where it lies otherwise."""
        placed = self.of(value) if isinstance(value, Value) else value
        if placed.lies(dims):
            return self.viewed(placed, shape)
        if placed.base != long(placed.shape):
            placed = self._moved(placed, tuple(range(len(placed.base)))).reshaped(placed.shape)
            if placed.lies(dims):
                return self.viewed(placed, shape)
        wanted = lying(placed.array, placed.shape, dims).layout
        return self.viewed(self._moved(placed, wanted), shape)

    def _moved(self, placed: Placed, layout: tuple[int, ...]) -> Placed:
        """The same tensor with the dimensions of its base in another order in memory."""
        sizes = placed.sizes
        order = tuple(placed.layout.index(dim) for dim in layout)
        after = tuple(sizes[place] for place in order)
        y = self.array(f"{placed.array.name}.reordered", (1, prod(after[:-1]), after[-1]))
        self.layers.append(Reorder(y.name, placed.array, y, sizes, order))
        return replace(placed, array=y, layout=layout)

    def image(self, value: Any) -> Array:
        """A tensor (1, channels, height, width) as an array."""
        shape = value.shape
        if len(shape) != 4 or shape[0] != 1:
            raise Unsupported(
                f"a tensor {tuple(shape)} where one sample (1, channels, height, width) is needed: give an example "
                "of one sample with a batch dimension, x[None]"
            )
        return self.ordered(value, (0, 2, 3, 1), (shape[2], shape[3], shape[1]))

    def rows(self, value: Any) -> Array:
        """A tensor (..., channels) as an array of height 1."""
        shape = value.shape
        return self.ordered(value, range(len(shape)), (1, prod(shape[:-1]), shape[-1] if shape else 1))
