"""The patterns on single weights: each is the size of a box in the canonical view, and among whom the boxes compete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from secateurs.patterns.cut import tiled
from secateurs.patterns.weights import sites_in_weights
from secateurs.types import PatternError, Within

Tail = Literal["error", "keep"]

_KERNEL_AXES = ("width", "height", "depth")


def written(pattern: Any) -> str:
    """A pattern as one would write it: required arguments by place, the others by name where they are not the default."""
    parts = []
    for item in fields(pattern):
        value = getattr(pattern, item.name)
        if item.default is MISSING:
            parts.append(repr(value))
        elif value != item.default:
            parts.append(f"{item.name}={value!r}")
    return f"{type(pattern).__name__}({', '.join(parts)})"


def check_within(pattern: object, within: Within) -> None:
    """Raise `PatternError` where it is none of the ways in which units can compete."""
    consecutive = isinstance(within, int) and not isinstance(within, bool) and within >= 2
    if not consecutive and within not in ("model", "isomorphic", "layer", "row"):
        raise PatternError(
            f'{pattern}: within is "model", "isomorphic", "layer", "row" or a whole number of at least 2, not {within!r}'
        )


def check_length(pattern: object, name: str, length: object) -> None:
    """Raise `PatternError` where it is no whole number of at least 1."""
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise PatternError(f"{pattern}: {name} must be a whole number of at least 1, not {length!r}")


@dataclass(frozen=True)
class Element:
    """Single weights: unstructured pruning.

    ``within="row"`` compares the weights of one output only (Wanda, 2306.11695); ``within=4`` those of four consecutive inputs.

    >>> Element().tile((1, 64, 32, 3, 3))
    (1, 1, 1, 1)
    """

    within: Within = "layer"
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_within(self, self.within)

    @property
    def kept_of_each(self) -> None:
        return None

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1,) * (len(shape) - 1)


@dataclass(frozen=True)
class NofM:
    """At most ``n`` weights in each ``m`` consecutive inputs: 2:4 is ``NofM(2, 4)`` (2104.08378).

    >>> NofM(2, 4).kept_of_each
    2
    """

    n: int
    m: int
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_length(self, "n", self.n)
        check_length(self, "m", self.m)
        if self.n >= self.m:
            raise PatternError(f"{self}: n must be below m, or nothing is pruned")

    @property
    def within(self) -> Within:
        return self.m

    @property
    def kept_of_each(self) -> int:
        return self.n

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1,) * (len(shape) - 1)


@dataclass(frozen=True)
class Vector:
    """``length`` consecutive weights along one axis (1705.08922): ``"outputs"``, ``"inputs"``, ``"width"``, ``"height"``, ``"depth"``.

    ``length=None`` takes the whole axis: ``Vector("width")`` removes rows of convolution kernels.

    >>> Vector("width").tile((1, 64, 32, 3, 3))
    (1, 1, 1, 3)
    >>> Vector("inputs", 8).tile((1, 64, 32))
    (1, 8)
    """

    axis: Literal["outputs", "inputs", "width", "height", "depth"]
    length: int | None = None
    within: Within = "layer"
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_within(self, self.within)
        if self.axis not in ("outputs", "inputs", *_KERNEL_AXES):
            raise PatternError(f'{self}: axis is "outputs", "inputs", "width", "height" or "depth", not {self.axis!r}')
        if self.length is not None:
            check_length(self, "length", self.length)

    @property
    def kept_of_each(self) -> None:
        return None

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = [1] * (len(shape) - 1)
        if self.axis in _KERNEL_AXES:
            index = len(sizes) - 1 - _KERNEL_AXES.index(self.axis)
            if index < 2:
                raise PatternError(f"{self} needs a convolution kernel with a {self.axis}")
        else:
            index = ("outputs", "inputs").index(self.axis)
        sizes[index] = self.length or shape[index + 1]
        return tuple(sizes)


@dataclass(frozen=True)
class Kernel:
    """Whole convolution kernels: all the weights between one input and one output channel.

    >>> Kernel().tile((1, 64, 32, 3, 3))
    (1, 1, 3, 3)
    """

    within: Within = "layer"
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_within(self, self.within)

    @property
    def kept_of_each(self) -> None:
        return None

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) < 4:
            raise PatternError(f"{self} needs a convolution; the weight is {shape[1]} x {shape[2]} without a kernel: use Element()")
        return (1, 1, *shape[3:])


@dataclass(frozen=True)
class Block:
    """``rows`` outputs by ``columns`` inputs, at each position of a kernel: what a SIMD unit computes at once (Scalpel).

    ``Block(16, 1, within=4)`` keeping half is 2:4 shared by sixteen output channels.

    >>> Block(4, 1).tile((1, 64, 32, 3, 3))
    (4, 1, 1, 1)
    """

    rows: int
    columns: int
    within: Within = "layer"
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_within(self, self.within)
        check_length(self, "rows", self.rows)
        check_length(self, "columns", self.columns)

    @property
    def kept_of_each(self) -> None:
        return None

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.rows, self.columns, *(1,) * (len(shape) - 3))


@dataclass(frozen=True)
class Filter:
    """All the weights of one output: a row of a Linear, a filter of a convolution (1608.08710); what reads it stays as it is.

    >>> Filter().tile((1, 64, 32, 3, 3))
    (1, 32, 3, 3)
    """

    within: Within = "layer"
    tail: Tail = "error"

    __repr__ = written
    removable = False
    cut = tiled
    sites = sites_in_weights

    def __post_init__(self) -> None:
        check_within(self, self.within)
        if self.within == "row" or isinstance(self.within, int):
            raise PatternError(f'{self}: a filter is a whole row, so filters compete within "layer", "isomorphic" or "model"')

    @property
    def kept_of_each(self) -> None:
        return None

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1, *shape[2:])
