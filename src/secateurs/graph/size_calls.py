"""A call that is given sizes, and which numbers in it they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Path = tuple[int | str, ...]
"""Where in the arguments a number stands: an index or a name, and an index within a sequence."""


Measure = Callable[[Tensor], Any]
"""From the kept indices of a dimension to the number that the call must be given."""


@dataclass(frozen=True)
class Number:
    """One number in a call: where it stands, what it is, and what it measures of dimension ``dim`` of a tensor."""

    path: Path
    given: Any
    tensor: Any
    dim: int
    measure: Measure = lambda kept: int(kept.sum())


@dataclass(frozen=True)
class Pieces:
    """A split into parts of one dimension: how long each part is."""

    tensors: tuple[Any, ...]
    dim: int


@dataclass(frozen=True)
class SizeCall:
    """One call of a function that takes sizes: in which module, the how-manieth in its forward, and its numbers."""

    module: str
    ordinal: int
    name: str
    numbers: tuple[Number, ...]
    pieces: Pieces | None = None
