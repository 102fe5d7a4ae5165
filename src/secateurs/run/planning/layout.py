"""Where the numbers of an activation lie: as torch has them, or in panels for the kernels.

A panel is `columns` vectors of `lanes` output positions for each channel: [panel][channel][column][lane]. The lanes of an image are
far apart: the image is cut into as many tiles as there are lanes, and one vector holds the same place of every tile. So a shifted
window of a convolution is a whole vector again, at another address, and every load is aligned.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateurs.run.kernels.records import MOVE, Records, records

Indices = NDArray[np.int64]

_COLUMNS = (7, 8, 6, 5, 4, 3, 2, 1)


@dataclass(frozen=True)
class Grid:
    """An image cut into ``down`` x ``across`` tiles of ``tile_height`` x ``tile_width``, a lane each; rows of tiles into panels.

    The first half of the lanes has every other tile, the second half has their right neighbours: what lies together in the image then
    comes together when halves of lanes are transposed.
    """

    height: int
    width: int
    down: int
    across: int
    tile_height: int
    tile_width: int
    columns: int

    @property
    def lanes(self) -> int:
        return self.down * self.across

    @property
    def vectors(self) -> int:
        """Vectors that a channel takes."""
        return self.tile_height * self.tile_width

    @property
    def panels(self) -> int:
        return self.vectors // self.columns

    def positions(self) -> Indices:
        """(vectors, lanes): the position y * width + x that each lane holds, -1 outside of the image."""
        return _positions(self)

    def window(self, before: tuple[int, int], size: tuple[int, int], stride: tuple[int, int], image: tuple[int, int]) -> Indices:
        """(rows, columns, lanes): positions of another image that windows of these positions see, -1 outside of that image.

        ``before``: the padding; ``size``: rows and columns that a window spans; ``image``: height and width of that other image.
        """
        rows = (self.tile_height - 1) * stride[0] + size[0]
        columns = (self.tile_width - 1) * stride[1] + size[1]
        tile_row, tile_column = np.divmod(_tiles_of_lanes(self.lanes), self.across)
        y = tile_row * self.tile_height * stride[0] - before[0] + np.arange(rows)[:, None, None]
        x = tile_column * self.tile_width * stride[1] - before[1] + np.arange(columns)[:, None]
        inside = (y >= 0) & (y < image[0]) & (x >= 0) & (x < image[1])
        return np.where(inside, y * image[1] + x, -1)


def _tiles_of_lanes(lanes: int) -> Indices:
    """The number of each lane's tile.

    >>> _tiles_of_lanes(8).tolist()
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    lane, half = np.arange(lanes), lanes // 2
    return lane % half * 2 + lane // half


@functools.lru_cache(256)
def _positions(grid: Grid) -> Indices:
    seen = grid.window((0, 0), (1, 1), (1, 1), (grid.height, grid.width)).reshape(grid.vectors, grid.lanes)
    seen.flags.writeable = False
    return seen


@functools.lru_cache(1024)
def grid_for(height: int, width: int, lanes: int, whole_rows: bool = False) -> Grid:
    """The grid that wastes least: few vectors, long panels, small borders between tiles; ``whole_rows``: rather a panel for each row.

    >>> grid_for(56, 56, 16)
    Grid(height=56, width=56, down=4, across=4, tile_height=14, tile_width=14, columns=7)
    >>> grid_for(56, 56, 16, whole_rows=True)
    Grid(height=56, width=56, down=2, across=8, tile_height=28, tile_width=7, columns=7)
    >>> grid_for(7, 7, 16).vectors  # 49 positions in 64 lanes
    4
    """
    found = []
    for down in (power for power in (1, 2, 4, 8, 16) if power <= lanes):
        across = lanes // down
        tile_height, narrowest = -(-height // down), -(-width // across)
        for tile_width in range(narrowest, narrowest + 3):
            columns = next(each for each in _COLUMNS if tile_width % each == 0)
            vectors = tile_height * tile_width
            border = (tile_height + 2) * (tile_width + 2)
            cost = vectors * (1 + 0.4 / columns) + 0.02 * border + 0.5 * (whole_rows and columns < tile_width)
            found.append((cost, Grid(height, width, down, across, tile_height, tile_width, columns)))
    return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True)
class Tokens:
    """Positions without neighbours (tokens, samples): consecutive lanes hold consecutive ones."""

    count: int
    lanes: int
    columns: int

    @property
    def panels(self) -> int:
        return -(-self.count // (self.lanes * self.columns))

    @property
    def vectors(self) -> int:
        """Vectors that a channel takes."""
        return self.panels * self.columns

    def positions(self) -> Indices:
        """(vectors, lanes): the position that each lane holds, -1 beyond the last."""
        places = np.arange(self.vectors * self.lanes).reshape(self.vectors, self.lanes)
        return np.where(places < self.count, places, -1)


@functools.lru_cache(256)
def tokens_for(count: int, lanes: int, most: int = _COLUMNS[1]) -> Tokens:
    """The panels that waste least, of at most so many columns.

    >>> tokens_for(128, 16), tokens_for(197, 16).vectors
    (Tokens(count=128, lanes=16, columns=8), 14)
    """
    vectors = -(-count // lanes)
    columns = min(
        (each for each in _COLUMNS if each <= most), key=lambda each: (-(-vectors // each) * each * (1 + 0.4 / each), -each)
    )
    return Tokens(count, lanes, columns)


@dataclass(frozen=True)
class Plain:
    """As torch has it: (images, channels, positions), contiguous."""

    positions: int
    channels: int

    @property
    def channel_stride(self) -> int:
        return self.positions

    @property
    def image_stride(self) -> int:
        return self.positions * self.channels

    def addresses(self) -> Indices:
        """Of each position in channel 0, in floats."""
        return np.arange(self.positions)


@dataclass(frozen=True)
class Packed:
    """(images, panels, channels, columns, lanes)."""

    grid: Grid | Tokens
    channels: int

    @property
    def channel_stride(self) -> int:
        return self.grid.columns * self.grid.lanes

    @property
    def panel_stride(self) -> int:
        return self.channel_stride * self.channels

    @property
    def image_stride(self) -> int:
        return self.panel_stride * self.grid.panels

    def addresses(self) -> Indices:
        """Of each position in channel 0, in floats."""
        vector, lane = np.divmod(np.arange(self.grid.vectors * self.grid.lanes), self.grid.lanes)
        places = self.vectors()[vector] + lane
        held = self.grid.positions().ravel()
        found = np.zeros(held.max() + 1, np.int64)
        found[held[held >= 0]] = places[held >= 0]
        return found

    def vectors(self) -> Indices:
        """The address of each vector in channel 0, in floats."""
        panel, column = np.divmod(np.arange(self.grid.vectors), self.grid.columns)
        return panel * self.panel_stride + column * self.grid.lanes


Layout = Plain | Packed


@dataclass(frozen=True)
class Moves:
    """How the vectors of a new layout come from an old one: a table of `MOVE`, and one of lanes."""

    rows: Records
    table: NDArray[np.int32]


FILL, COPY, PERMUTE, GATHER = range(4)


def moves(source: Layout, wanted: Indices, to: Indices, count: Indices | None = None) -> Moves:
    """The moves that bring positions of a source into vectors.

    ``wanted`` (vectors, lanes): positions, -1 for fill; ``to`` (vectors): addresses; ``count``: lanes to write, where not all of them.
    """
    lanes = wanted.shape[1]
    places = np.where(wanted < 0, -1, source.addresses()[np.maximum(wanted, 0)])
    there = places >= 0
    nothing = ~there.any(1)
    first = np.where(nothing, 0, np.where(there, places, np.iinfo(np.int64).max).min(1))
    copies = (places == places[:, :1] + np.arange(lanes)).all(1) & there.all(1)
    base = first // lanes * lanes
    permutes = ~nothing & ~copies & (~there | (places - base[:, None] < lanes)).all(1) & isinstance(source, Packed)
    kind = np.select([nothing, copies, permutes], [FILL, COPY, PERMUTE], GATHER)
    start = np.select([nothing, copies, permutes], [0, first, base], 0)
    entries = np.where(there, places - start[:, None], -1)
    listed = (kind == PERMUTE) | (kind == GATHER)
    table, numbers = np.unique(entries[listed], axis=0, return_inverse=True) if listed.any() else (np.zeros((1, lanes), int), [])
    which = np.zeros(len(wanted), np.int64)
    which[listed] = np.asarray(numbers).reshape(-1)
    written = np.full(len(wanted), lanes) if count is None else count
    rows = records(MOVE, **{"to": to, "from": start, "kind": kind, "table": which, "count": written})
    return Moves(rows, np.ascontiguousarray(table, np.int32))


EMPTY = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Tiles:
    """How vectors whose lanes are tiles of an image are read from it, or written to it.

    ``at`` (rows, columns): where the vectors lie; ``held`` (rows, columns): a bit for each lane that exists. In each row of the tiles,
    and each part of so many columns, ``origins`` (rows, parts, lanes) is the place in the image where the lane's columns begin, and
    ``there`` (rows, parts, lanes) has a bit for each that exists.

    To be read: columns from ``own`` on are what the ``neighbour`` of a lane (-1: nothing) has ``apart`` columns before; up to ``edges``
    channels at either end are so close to it that what does not exist must not be read.
    """

    at: NDArray[np.int32]
    held: NDArray[np.int32]
    origins: NDArray[np.int32]
    there: NDArray[np.int32]
    neighbour: NDArray[np.int32]
    own: int
    apart: int = 0
    edges: int = 0


def read_tiles(seen: Indices, at: Indices, across: int, apart: int, positions: int) -> Tiles:
    """From what each vector is to hold: ``seen`` (rows, columns, lanes), positions in an image of so many, -1 outside of it.

    Columns of one row and lane are neighbours in the image, so each lane has one stretch of it. ``across`` tiles lie side by side, the
    first column of each ``apart`` columns from that of the tile before it, so that where they overlap one can be read from the other.
    """
    rows, columns, lanes = seen.shape
    wide = lanes // 2
    tile = _tiles_of_lanes(lanes)
    lane_of = np.append(np.argsort(tile), -1)
    neighbour = np.where(tile % across == across - 1, -1, lane_of[tile + 1])
    own = columns // wide * wide
    theirs = np.where(neighbour < 0, -1, seen[:, max(own - apart, 0) : columns - apart, neighbour])
    if not 0 < apart <= own or not np.array_equal(theirs, seen[:, own:]):
        own = columns
    origins, there = _stretches(seen[:, :own], wide)
    beyond = max(-origins.min(), origins.max() + wide - positions)
    return Tiles(
        at=_numbers(at.reshape(rows, columns)),
        held=_numbers(((seen >= 0) << np.arange(lanes)).sum(2)),
        origins=_numbers(origins),
        there=_numbers(there),
        neighbour=_numbers(neighbour),
        own=own,
        apart=apart,
        edges=int(-(-beyond // positions)),
    )


def written_tiles(held: Indices, at: Indices) -> Tiles:
    """From what each vector holds: ``held`` (rows, columns, lanes), positions in an image, -1 outside of it."""
    rows, columns, lanes = held.shape
    origins, there = map(_numbers, _stretches(held, lanes))
    return Tiles(_numbers(at.reshape(rows, columns)), EMPTY, origins, there, EMPTY, columns)


@dataclass(frozen=True)
class Stretches:
    """How panels are written to an image: (rows of tiles, lanes / 2) stretches, each of what two lanes hold that lie together.

    ``origins``: where each begins; ``there``: a bit for each of its places that exists; ``order`` (lanes): of a vector that has the
    columns of the first lane and then those of the second, the places in the order in which they are written.
    """

    origins: NDArray[np.int32]
    there: NDArray[np.int32]
    order: NDArray[np.int32]


def stretches(grid: Grid) -> Stretches:
    """The stretches of a grid whose tiles lie side by side, and are no wider than half as many columns as lanes.

    >>> stretches(Grid(2, 6, 2, 4, 1, 2, 2)).origins.tolist()  # 2 x 4 tiles of 1 x 2, the last one outside of the image
    [[0, 4, 6, 10]]
    """
    columns, half = grid.tile_width, grid.lanes // 2
    origins, there = (
        each[:, 0] for each in _stretches(grid.positions().reshape(grid.tile_height, columns, grid.lanes), grid.lanes)
    )
    first, second = slice(None, half), slice(half, None)
    origins[:, first] = np.where(there[:, first] > 0, origins[:, first], origins[:, second] - columns)
    there[:, first] |= there[:, second] << columns
    place = np.arange(grid.lanes)
    order = np.where(place < columns, place, np.minimum(place - columns + half, grid.lanes - 1))
    return Stretches(_numbers(origins[:, first]), _numbers(there[:, first]), _numbers(order))


def _stretches(held: Indices, wide: int) -> tuple[Indices, Indices]:
    """(rows, parts, lanes): where each lane's columns begin in each part of ``wide`` columns, and a bit for each that exists."""
    rows, columns, lanes = held.shape
    parts = -(-columns // wide)
    padded = np.full((rows, parts * wide, lanes), -1)
    padded[:, :columns] = held
    stretch = padded.reshape(rows, parts, wide, lanes).swapaxes(2, 3)  # (rows, parts, lane, column)
    there = stretch >= 0
    first = np.where(there.any(3), there.argmax(3), 0)
    origins = np.where(there.any(3), np.take_along_axis(stretch, first[..., None], 3)[..., 0] - first, 0)
    return origins, (there << np.arange(wide)).sum(3)


def _numbers(array: NDArray[np.generic]) -> NDArray[np.int32]:
    return np.ascontiguousarray(array, np.int32)


def straight(positions: int, lanes: int) -> Moves:
    """The moves that copy a channel as it is."""
    to = np.arange(0, positions, lanes)
    wanted = to[:, None] + np.arange(lanes)
    return moves(Plain(positions, 1), np.where(wanted < positions, wanted, -1), to, np.minimum(lanes, positions - to))
