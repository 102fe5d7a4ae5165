"""Where an accelerator fetches the numbers of a layer from, and how often: DRAM, a buffer on the chip, its array, or registers.

As in Chen et al. (Eyeriss, ISCA 2016) and Yang et al. (1611.05128): a number is read ``a`` times from DRAM, each of these ``b`` times from
the buffer, each of these it passes ``c`` times through the array, and each of these it is read ``d`` times from a register file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secateurs.costs.workload import Work
from secateurs.given import COUNT, require
from secateurs.types import SecateursError


@dataclass(frozen=True)
class Levels:
    """How often numbers of one kind are fetched from each level (or, of sums, fetched and written)."""

    dram: float
    buffer: float
    array: float
    registers: float

    def reuse(self, count: float) -> tuple[float, float, float, float]:
        """``(a, b, c, d)`` of so many numbers: how often each is read from DRAM, and from each level for one time at the level before."""
        levels = (count, self.dram, self.buffer, self.array, self.registers)
        a, b, c, d = (here / before if before else 0.0 for before, here in pairwise(levels))
        return a, b, c, d


@dataclass(frozen=True)
class Accesses:
    """What a layer fetches: weights, inputs, and sums on their way to outputs."""

    weights: Levels
    inputs: Levels
    sums: Levels


@dataclass(frozen=True)
class Shape:
    """A layer as an accelerator sees it: one of its ``groups``, as a convolution.

    ``images`` × ``inputs`` channels × ``height`` × ``width`` become ``images`` × ``outputs`` × ``rows`` × ``columns`` with kernels of
    ``high`` × ``wide``. Of a linear layer all but images and channels are 1; a convolution over a volume has its depth among the rows.
    """

    images: int
    inputs: int
    outputs: int
    height: int
    width: int
    rows: int
    columns: int
    high: int
    wide: int
    stride: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.high * self.wide

    @property
    def macs(self) -> int:
        return self.weights * self.images * self.rows * self.columns


def shape_of(work: Work, batch: int = 1) -> Shape:
    """One group of a layer, of ``batch`` times the example.

    >>> work = Work("conv", "conv.weight", 1, 3, 8, (3, 3), 128, 600, 1024, 216, space=(10, 10), grid=(8, 8), stride=(1, 1))
    >>> shape_of(work)
    Shape(images=2, inputs=3, outputs=8, height=10, width=10, rows=8, columns=8, high=3, wide=3, stride=1)
    """
    if not work.space:
        return Shape(work.positions * batch, work.inputs, work.outputs, 1, 1, 1, 1, 1, 1, 1)
    height, rows, high = (prod(sizes[:-1]) for sizes in (work.space, work.grid, work.kernel))
    images = work.positions // prod(work.grid) * batch
    return Shape(
        images, work.inputs, work.outputs, height, work.space[-1], rows, work.grid[-1], high, work.kernel[-1], work.stride[-1]
    )


Prices = tuple[float, float, float]
"""What a number costs from DRAM, from the buffer, and through the array."""


class Dataflow(Protocol):
    """In what order an accelerator works through a layer."""

    def accesses(self, shape: Shape, buffer: int, prices: Prices) -> Accesses:
        """What it fetches for one group of a layer, with a buffer of so many numbers, where fetching costs so much."""


@dataclass(frozen=True)
class NoLocalReuse:
    """Each multiplication fetches its weight and its input from the buffer; a sum stays in its element's register until it is done."""

    def accesses(self, shape: Shape, buffer: int, prices: Prices) -> Accesses:
        numbers = shape.images * shape.inputs * shape.height * shape.width
        outputs = shape.images * shape.outputs * shape.rows * shape.columns
        weights, inputs = Levels(shape.weights, shape.macs, shape.macs, 0), Levels(numbers, shape.macs, shape.macs, 0)
        return Accesses(weights, inputs, Levels(outputs, outputs, 0, 2 * shape.macs))


@dataclass(frozen=True)
class RowStationary:
    """Each element of the array slides one row of a kernel along a row of the input (Eyeriss, ISCA 2016).

    ``array``: rows and columns of elements; ``registers``: how many weights, inputs and sums each of them holds. What is assumed:

    - a column of ``high`` elements makes one row of the output: weights go to all columns, inputs along diagonals, sums down. Where there
      is room, copies of this work on other channels (whose sums go on from one to the other) and on other filters
    - an element holds the kernel rows of as many filters and channels as its registers admit
    - sums stay on the chip until they are outputs. The output is made in strips of rows, for some filters and images at a time, whose sums
      the buffer holds; beside them it holds the strip of the input for one channel (fetched again for other filters), or for all
      channels, or else the weights (which are otherwise fetched again for each strip and each group of images)
    - of all such ways that the buffer has room for, the one whose traffic costs least, for a dense layer; zeros do not change it
    """

    array: tuple[int, int] = (12, 14)
    registers: tuple[int, int, int] = (224, 12, 24)

    def __post_init__(self) -> None:
        for name, values, length in (("array", self.array, 2), ("registers", self.registers, 3)):
            if not isinstance(values, tuple) or len(values) != length:
                raise SecateursError(f"RowStationary: {name}={values!r}, but must be {length} whole numbers")
            for value in values:
                require("RowStationary", name, value, COUNT)
                if value < 1:
                    raise SecateursError(f"RowStationary: {name}={values}, but each must be at least 1")

    def accesses(self, shape: Shape, buffer: int, prices: Prices) -> Accesses:
        return _best(shape, buffer, prices, self)


_Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Tile:
    """So many strips of rows, groups of images and chunks of filters; how large each is, and the rows of input of a strip."""

    strips: _Numbers
    batches: _Numbers
    chunks: _Numbers
    rows: _Numbers
    images: _Numbers
    filters: _Numbers
    high: _Numbers


@lru_cache(maxsize=65536)
def _best(shape: Shape, buffer: int, prices: Prices, flow: RowStationary) -> Accesses:
    """The way of all whose traffic costs least; each axis of an array is a choice: strips, groups of images, chunks of filters, copies."""
    choices = (parts(shape.rows), parts(shape.images), parts(shape.outputs), parts(prod(flow.array)))
    strips, batches, chunks, on_channels = np.ix_(*(np.array(each, np.float64) for each in choices))
    rows = np.ceil(shape.rows / strips)
    high = np.minimum(shape.height, (rows - 1) * shape.stride + shape.high)
    tile = _Tile(strips, batches, chunks, rows, np.ceil(shape.images / batches), np.ceil(shape.outputs / chunks), high)
    ways = list(_from_dram(shape, tile, buffer))
    numbers = shape.images * shape.inputs * shape.height * shape.width
    from_dram = np.stack([np.where(fits, shape.weights * weights + numbers * inputs, np.inf) for weights, inputs, fits in ways])
    found, room = _spread(shape, tile, on_channels, flow)
    on_chip = sum(prices[1] * buffered + prices[2] * passed for buffered, passed in found)
    traffic = np.where(room, prices[0] * from_dram.min(axis=0) + on_chip, np.inf)
    place = np.unravel_index(int(traffic.argmin()), traffic.shape)
    weights, inputs, _ = ways[int(from_dram[:, place[0], place[1], place[2], 0].argmin())]
    dram = (
        shape.weights * _at(weights, place),
        numbers * _at(inputs, place),
        shape.images * shape.outputs * shape.rows * shape.columns,
    )
    levels = ((_at(buffered, place), _at(passed, place)) for buffered, passed in found)
    return Accesses(*(Levels(far, *near, read * shape.macs) for far, near, read in zip(dram, levels, (1, 1, 2), strict=True)))


def _at(choices: _Numbers, place: Sequence[Any]) -> float:
    """What an array says of one choice; where it is the same for all of an axis, it has one place there."""
    return float(choices[tuple(index if size > 1 else 0 for index, size in zip(place, choices.shape, strict=True))])


def _from_dram(shape: Shape, tile: _Tile, buffer: int) -> Iterator[tuple[_Numbers, _Numbers, NDArray[np.bool_]]]:
    """How often weights and inputs come from DRAM, for each of three things that may stay in the buffer, and where it has room for it.

    The strip of one channel fits everywhere where the smallest tile does; where that does not either, it is done all the same.
    """
    sums = tile.images * tile.filters * tile.rows * shape.columns
    strip = tile.images * tile.high * shape.width
    again = np.maximum(shape.height, tile.strips * tile.high) / shape.height  # rows at the edges of strips come for both
    times = tile.strips * tile.batches
    smallest = (tile.strips == shape.rows) & (tile.batches == shape.images) & (tile.chunks == shape.outputs)
    yield times, again * tile.chunks, (sums + strip <= buffer) | smallest
    yield times, again, sums + strip * shape.inputs <= buffer
    yield np.ones_like(times), again * tile.chunks, sums + strip + shape.weights / shape.outputs * tile.filters <= buffer


def parts(size: int) -> list[int]:
    """Into how many parts something may be cut: 1, 2, 3, 4, 6, 8, 12, … up to single ones."""
    found = [count for power in range(size.bit_length()) for count in (2**power, 3 * 2**power // 2) if count <= size]
    return sorted({*found, size})


def _spread(shape: Shape, tile: _Tile, on_channels: _Numbers, flow: RowStationary) -> tuple[list[tuple[_Numbers, _Numbers]], Any]:
    """What weights, inputs and sums take from the buffer and pass through the array, with so many copies of the work on other channels;
    and where there is room for these."""
    channels = max(1, flow.registers[1] // shape.wide)  # whose kernel rows an element holds
    filters = max(1, min(flow.registers[2], flow.registers[0] // (channels * shape.wide)))
    columns = np.minimum(tile.rows, flow.array[1])
    copies = np.maximum(1, prod(flow.array) // (min(shape.high, flow.array[0]) * columns))
    on_filters = np.maximum(1, copies // on_channels)
    rounds = np.ceil(tile.filters / (filters * on_filters))  # in each of which the inputs come from the buffer
    passes = np.ceil(shape.inputs / (channels * on_channels))  # in each of which sums go to the buffer and come back
    numbers = shape.images * shape.inputs * shape.height * shape.width
    outputs = shape.images * shape.outputs * shape.rows * shape.columns
    sent = numbers * np.maximum(1, tile.strips * tile.high / shape.height) * tile.chunks * rounds
    loaded = shape.weights * tile.strips * tile.batches
    diagonal = np.ceil(shape.high / shape.stride) * np.minimum(on_filters, np.ceil(tile.filters / filters))
    down = passes * (shape.high * np.minimum(on_channels, np.ceil(shape.inputs / channels)) - 1)
    of_weights, of_inputs, of_sums = (loaded, loaded * columns), (sent, sent * diagonal), (2 * outputs * passes, outputs * down)
    return [of_weights, of_inputs, of_sums], on_channels <= copies
