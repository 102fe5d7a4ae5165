"""How weights lie in memory: what their numbers take, and what says where they belong.

A format is a frozen dataclass with ``bits(work, width)``. Where the numbers are known (a model as it is), it counts what an encoder would
write; of a plan, which says how many stay but not where, it tells what positions by chance take on average.

An index may stand for more than one number: ``unit=Kernel()`` writes one for each kernel, whose numbers are all there, zeros too. A weight
that does not fall into such units (a linear layer has no kernels) has an index for each number; units at the edge are filled up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, lgamma, log, prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateurs.costs.workload import Work
from secateurs.given import COUNT, Kind, require
from secateurs.types import PatternError, SecateursError, Tiling


@runtime_checkable
class Format(Protocol):
    """A way to write a weight down."""

    def bits(self, work: Work, width: int) -> float:
        """What the weight takes where each of its numbers takes ``width`` bits; raises `SecateursError` where it cannot be written so."""


FORMAT = Kind("a format, for example Relative(index_bits=4)", lambda value: isinstance(value, Format))
UNIT = Kind("a pattern of boxes in a weight, for example Kernel()", lambda value: value is None or isinstance(value, Tiling))


@dataclass(frozen=True)
class Dense:
    """Every number, zeros too.

    >>> Dense().bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50), width=8)
    8000
    """

    def bits(self, work: Work, width: int) -> float:
        return work.weights * width


@dataclass(frozen=True)
class Bitmap:
    """A bit for each unit, and the numbers of those that are there.

    >>> Bitmap().bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50), width=8)
    1400
    """

    unit: Tiling | None = None

    def __post_init__(self) -> None:
        require("Bitmap", "unit", self.unit, UNIT)

    def bits(self, work: Work, width: int) -> float:
        units = units_of(work, self.unit, "Bitmap")
        return units.count + units.kept * units.size * width


@dataclass(frozen=True)
class Relative:
    """The units that are there, each with how many are missing before it (Deep Compression, 1510.00149).

    ``index_bits`` bits count up to ``2 ** index_bits - 1`` missing ones; a longer gap takes a filler, a unit of zeros that is written as if
    it were there. Counted along ``(groups, outputs, inputs, *kernel)``. Of a plan that removes several weights together, of which each has
    an index of its own, where they lie is not chance: then it is the most fillers that there can be.

    >>> Relative(index_bits=4).bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=1000), width=8)
    12000.0
    """

    index_bits: int
    unit: Tiling | None = None

    def __post_init__(self) -> None:
        _check_bits("Relative", "index_bits", self.index_bits)
        require("Relative", "unit", self.unit, UNIT)

    def bits(self, work: Work, width: int) -> float:
        units = units_of(work, self.unit, f"Relative({self.index_bits})")
        return (units.kept + self._fillers(units, work.unit)) * (units.size * width + self.index_bits)

    def _fillers(self, units: Units, removed_together: int) -> float:
        reach = 2**self.index_bits
        if units.places is not None:
            at = units.places.nonzero().flatten()
            gaps = torch.diff(at, prepend=at.new_tensor([-1])) - 1
            return int((gaps // reach).sum())
        if removed_together > 1 and units.size == 1:
            return (units.count - units.kept) // reach
        return fillers(units.count, round(units.kept), reach)


def fillers(count: int, kept: int, reach: int) -> float:
    """How many fillers ``kept`` of ``count`` places need on average, by chance, where a gap of ``reach`` missing ones takes one.

    A gap is at least g long with the probability C(count - g, kept) / C(count, kept), and takes as many fillers as it has whole reaches.

    >>> round(fillers(1000, 221, 16), 3), fillers(1000, 1000, 16)
    (3.992, 0.0)
    """
    if not 0 < kept < count:
        return 0.0
    longest = (count - kept) // reach
    chance = kept / count
    longest = min(longest, ceil(40 / (reach * chance)))  # what is rarer than e⁻⁴⁰ adds nothing
    gaps = torch.arange(1, longest + 1, dtype=torch.float64) * reach
    logs = torch.lgamma(count - gaps + 1) - torch.lgamma(count - kept - gaps + 1)
    return kept * float((logs - lgamma(count + 1) + lgamma(count - kept + 1)).exp().sum())


@dataclass(frozen=True)
class CSR:
    """Rows of outputs: of each unit that is there, its column, and where each row begins; ``unit=Block(4, 4)`` makes it blocked.

    Columns and beginnings take as few bits as they can, or what is given (32 is what most libraries take).

    >>> CSR().bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50), width=8)
    816
    """

    index_bits: int | None = None
    pointer_bits: int | None = None
    unit: Tiling | None = None

    def __post_init__(self) -> None:
        _check_csr(self)

    def bits(self, work: Work, width: int) -> float:
        units = units_of(work, self.unit, "CSR")
        return _compressed(units, units.rows, units.columns, self, work, width)


@dataclass(frozen=True)
class CSC:
    """Columns of inputs: of each unit that is there, its row, and where each column begins.

    >>> CSC().bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50), width=8)
    1206
    """

    index_bits: int | None = None
    pointer_bits: int | None = None
    unit: Tiling | None = None

    def __post_init__(self) -> None:
        _check_csr(self)

    def bits(self, work: Work, width: int) -> float:
        units = units_of(work, self.unit, "CSC")
        return _compressed(units, units.columns, units.rows, self, work, width)


def _check_csr(given: CSR | CSC) -> None:
    who = type(given).__name__
    for name, value in (("index_bits", given.index_bits), ("pointer_bits", given.pointer_bits)):
        if value is not None:
            _check_bits(who, name, value, most=64)
    require(who, "unit", given.unit, UNIT)


def _compressed(units: Units, lines: int, across: int, given: CSR | CSC, work: Work, width: int) -> float:
    kept, who = ceil(units.kept), type(given).__name__
    found = []
    for name, value, largest in (("index_bits", given.index_bits, across - 1), ("pointer_bits", given.pointer_bits, kept)):
        least = max(0, largest).bit_length()
        if value is not None and value < least:
            raise SecateursError(
                f"{work.layer}: {who}({name}={value}) cannot tell numbers up to {largest}; give it {least} bits or more"
            )
        found.append(least if value is None else value)
    index, pointer = found
    return units.kept * (units.size * width + index) + (lines + 1) * pointer if units.count else 0


@dataclass(frozen=True)
class Grouped:
    """N of each M consecutive inputs, each with its place among them: 2 bits for 2:4 (2104.08378). Inputs that fill no M are dense.

    A plan says how many weights stay, not where: one that keeps N of M or fewer is taken to keep them so. Raises `SecateursError` for
    a weight that keeps more.

    >>> Grouped(2, 4).bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=500), width=8)
    5000
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("m", self.m)):
            require("Grouped", name, value, COUNT)
        if not 0 < self.n < self.m:
            raise SecateursError(f"Grouped({self.n}, {self.m}): n must be at least 1 and below m")

    def bits(self, work: Work, width: int) -> float:
        shape, rows = (work.groups, work.outputs, work.inputs, *work.kernel), work.groups * work.outputs * prod(work.kernel)
        whole, rest = divmod(work.inputs, self.m)
        if work.weight is not None and work.weight.shape == shape:
            there = (work.weight != 0).narrow(2, 0, whole * self.m).unflatten(2, (whole, self.m)) if whole else None
            most = int(there.sum(3).max()) if there is not None and there.numel() else 0
            if most > self.n:
                raise SecateursError(
                    f"{work.layer}: {self.n} of {self.m} cannot hold a weight that keeps {most} of {self.m} inputs; prune it with "
                    f"NofM({self.n}, {self.m}), or let cheapest({self!r}, Dense()) choose"
                )
        elif round(work.nonzeros) > rows * (whole * self.n + rest):
            raise SecateursError(
                f"{work.layer}: {self.n} of {self.m} cannot hold {work.nonzeros:.0f} of {work.weights} weights; prune it with "
                f"NofM({self.n}, {self.m}), or let cheapest({self!r}, Dense()) choose"
            )
        return rows * (whole * self.n * (width + (self.m - 1).bit_length()) + rest * width)


@dataclass(frozen=True)
class EntropyCoded:
    """The units that are there, and the least that tells which they are where that is chance: log2 of how many choices there are.

    What an entropy coder comes to within a per cent of, and gets below where zeros lie in rows or columns (`secateurs.compress`).

    >>> round(EntropyCoded().bits(Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50), width=8), 1)
    682.3
    """

    unit: Tiling | None = None

    def __post_init__(self) -> None:
        require("EntropyCoded", "unit", self.unit, UNIT)

    def bits(self, work: Work, width: int) -> float:
        units = units_of(work, self.unit, "EntropyCoded")
        choices = lgamma(units.count + 1) - lgamma(units.kept + 1) - lgamma(units.count - units.kept + 1)
        return choices / log(2) + units.kept * units.size * width


@dataclass(frozen=True)
class Cheapest:
    """For each weight, that of some formats which takes least; those that cannot hold it do not take part."""

    formats: tuple[Format, ...]

    def bits(self, work: Work, width: int) -> float:
        return self.choose(work, width)[1]

    def choose(self, work: Work, width: int) -> tuple[Format, float]:
        """The format that takes least, and what it takes; raises `SecateursError` where none can hold the weight."""
        found: list[tuple[Format, float]] = []
        problems: list[str] = []
        for each in self.formats:
            try:
                found.append((each, each.bits(work, width)))
            except SecateursError as problem:
                problems.append(str(problem))
        if not found:
            raise SecateursError(f"none of {len(self.formats)} formats can hold it: " + "; ".join(problems))
        return min(found, key=lambda one: one[1])


def cheapest(*formats: Format) -> Cheapest:
    """The format that takes least, of these, for each weight by itself.

    >>> few = Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, nonzeros=50)
    >>> cheapest(Dense(), Bitmap(), CSR(), Grouped(2, 4)).choose(few, width=8)
    (CSR(index_bits=None, pointer_bits=None, unit=None), 816)
    """
    if not formats:
        raise SecateursError("cheapest: give at least one format, for example cheapest(Dense(), Bitmap())")
    for each in formats:
        require("cheapest", "a format", each, FORMAT)
    return Cheapest(formats)


def _check_bits(who: str, name: str, value: object, most: int = 32) -> None:
    require(who, name, value, COUNT)
    if not 1 <= value <= most:  # type: ignore[operator]
        raise SecateursError(f"{who}: {name}={value}, but must be from 1 to {most}")


# ---------------------------------------------------------------- a weight as units


@dataclass(frozen=True)
class Units:
    """A weight as ``rows`` × ``columns`` units of ``size`` numbers, of which ``kept`` are there; ``places`` tells which, if known."""

    rows: int
    columns: int
    size: int
    kept: float
    places: Tensor | None = None

    @property
    def count(self) -> int:
        return self.rows * self.columns


def units_of(work: Work, unit: Tiling | None, who: str) -> Units:
    """A weight as units of a pattern (``None``: single numbers).

    Of a plan that removes single weights, ``kept`` is how many units have one left, on average over where these may be; of one that
    removes as many together as a unit has, it is what the plan keeps. Raises `SecateursError` where the plan removes something else.
    """
    shape = (work.groups, work.outputs, work.inputs, *work.kernel)
    box = box_of(unit, shape)
    grid = [ceil(size / part) for size, part in zip(shape[1:], box, strict=True)]
    rows, columns, size = work.groups * grid[0], prod(grid[1:]), prod(box)
    if work.weight is not None and work.weight.shape == shape:
        places = _occupied(work.weight, box)
        return Units(rows, columns, size, int(places.count_nonzero()), places)
    left = round(work.nonzeros)
    if left in (0, work.weights):
        return Units(rows, columns, size, rows * columns if left else 0)
    if size == 1:
        return Units(rows, columns, size, left)
    if work.unit == 1:
        return Units(rows, columns, size, rows * columns * (1 - _none_of(work.weights, left, size)))
    if work.unit != size:
        raise SecateursError(
            f"{work.layer}: {who} has an index for each {size} weights, but the plan removes {work.unit} together, so it does not tell how "
            "many units stay; give as unit= the pattern with which you prune"
        )
    return Units(rows, columns, size, left / size)


def box_of(unit: Tiling | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How large a unit is along ``(outputs, inputs, *kernel)`` of a weight of a canonical shape: a single number where none fits."""
    try:
        return (1,) * (len(shape) - 1) if unit is None else unit.tile(shape)
    except PatternError:
        return (1,) * (len(shape) - 1)


def _occupied(weight: Tensor, box: tuple[int, ...]) -> Tensor:
    """Which boxes of a weight ``(groups, outputs, inputs, *kernel)`` hold anything but zeros: bool, one after the other."""
    return (weight != 0).flatten() if prod(box) == 1 else boxed(weight != 0, box).any(1)


def boxed(tensor: Tensor, box: Sequence[int]) -> Tensor:
    """A tensor ``(groups, *sizes)`` as boxes ``(count, numbers)``, in the order of their first numbers; what is not full has zeros.

    >>> boxed(torch.arange(8).view(1, 2, 4), (2, 2))
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    """
    edges = [-size % part for size, part in zip(tensor.shape[1:], box, strict=True)]
    filled = pad(tensor, [each for edge in reversed(edges) for each in (0, edge)])
    split = [n for size, part in zip(filled.shape[1:], box, strict=True) for n in (size // part, part)]
    order = (0, *range(1, 1 + len(split), 2), *range(2, 2 + len(split), 2))
    return filled.reshape(tensor.shape[0], *split).permute(order).reshape(-1, prod(box))


def _none_of(count: int, chosen: int, given: int) -> float:
    """The probability that none of so many ``given`` places is among the ``chosen`` of ``count``."""
    if chosen + given > count:
        return 0.0
    without = lgamma(count - chosen + 1) - lgamma(count - chosen - given + 1)
    return exp(without - lgamma(count + 1) + lgamma(count - given + 1))
