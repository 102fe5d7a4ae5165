"""The geometry of what convolutions and pooling read: windows over panels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateurs.run.kernels.records import PANEL, Records, records
from secateurs.run.planning.layout import Grid, Packed

Pair = tuple[int, int]
Indices = NDArray[np.int64]
Part = int | tuple[int, Indices]


@dataclass(frozen=True)
class Windows:
    """What the windows of a grid of output positions, or of some rows of its tiles, see of an image.

    ``seen`` (rows, columns, lanes): the positions of the image; ``taps``: the offset of each place of the window, ``starts``: where
    each of the ``panels`` begins, both in floats from the channel's beginning; ``channel_stride``: floats from one channel to the next;
    ``touched``: vectors of a channel that one panel reads. ``across`` tiles lie side by side, their first columns ``apart`` columns from
    each other.
    """

    seen: Indices
    taps: Indices
    panels: slice
    starts: Indices
    channel_stride: int
    touched: int
    across: int
    apart: int


def windows(
    grid: Grid, window: Pair, stride: Pair, padding: Pair, dilation: Pair, image: Pair, most: int | None = None
) -> list[Windows]:
    """The windows of a convolution or of pooling over an image of (height, width), in bands of at most so many floats a channel.

    No band is so low that much of it would be seen by the next one too.
    """
    down, across = ((size - 1) * apart + 1 for size, apart in zip(window, dilation, strict=True))
    seen = grid.window(padding, (down, across), stride, image)
    pitch = seen.shape[1]
    shared = max(0, down - stride[0])
    row_floats = stride[0] * pitch * grid.lanes
    high = grid.tile_height if most is None else max((most - shared * pitch * grid.lanes) // row_floats, 4 * shared, 1)
    high = -(-grid.tile_height // -(-grid.tile_height // high))
    rows, columns = np.meshgrid(np.arange(window[0]) * dilation[0], np.arange(window[1]) * dilation[1], indexing="ij")
    row, column = np.divmod(np.arange(grid.panels) * grid.columns, grid.tile_width)
    channel_stride = stride_of(((min(high, grid.tile_height) - 1) * stride[0] + down) * pitch, grid.lanes)
    found = []
    for first in range(0, grid.tile_height, high):
        last = min(first + high, grid.tile_height)
        of = slice(*(each * grid.tile_width // grid.columns for each in (first, last)))
        found.append(
            Windows(
                seen[first * stride[0] : (last - 1) * stride[0] + down],
                (rows * pitch + columns).ravel() * grid.lanes,
                of,
                ((row[of] - first) * stride[0] * pitch + column[of] * stride[1]) * grid.lanes,
                channel_stride,
                window[0] * ((grid.columns - 1) * stride[1] + across),
                grid.across,
                grid.tile_width * stride[1],
            )
        )
    return found


def whole(image: Packed) -> Windows:
    """Windows of one position each: what lies there."""
    panel, columns = np.arange(image.grid.panels), image.grid.columns
    seen = image.grid.positions()
    return Windows(seen, np.zeros(1, np.int64), slice(None), panel * image.panel_stride, image.channel_stride, columns, 1, 0)


def stride_of(vectors: int, lanes: int) -> int:
    """Floats from one channel to the next, some of them free so that channels do not meet in the same sets of the first cache."""
    page = 4096 // (lanes * 4)
    crowded = (0, page // 2, page // 4, page // 8)
    return (vectors + next(free for free in range(page) if (vectors + free) % page not in crowded)) * lanes


def panels(images: int, starts: Indices, x_image: int, y: Packed, residual: Packed | None) -> Records:
    """A row of `PANEL` for each panel of all images: where it begins in x, in y and in the residual; nothing of it goes elsewhere."""
    panel = np.arange(len(starts))
    of = [0 if layout is None else (layout.image_stride, panel * layout.panel_stride) for layout in (y, residual)]
    return of_images(images, x=(x_image, starts), y=of[0], residual=of[1])


def of_images(images: int, **parts: Part) -> Records:
    """A row of `PANEL` for each panel of each image: of each part, what an image adds and what each panel has, or one number for all.

    >>> of_images(2, x=(10, np.array([0, 3])), y=7)[["x", "y"]].tolist()
    [(0, 7), (3, 7), (10, 7), (13, 7)]
    """
    image = np.arange(images)[:, None]
    columns = {name: part if isinstance(part, int) else image * part[0] + part[1] for name, part in parts.items()}
    return records(PANEL, **columns).ravel()


def divisors(found: Windows, grid: Grid, window: Pair, stride: Pair, dilation: Pair) -> NDArray[np.float32]:
    """(vectors * lanes): one over the positions of the image that each window sees."""
    y, x = np.meshgrid(np.arange(grid.tile_height) * stride[0], np.arange(grid.tile_width) * stride[1], indexing="ij")
    places = np.ndindex(window)
    inside = sum((found.seen[y + down * dilation[0], x + across * dilation[1]] >= 0).astype(np.float32) for down, across in places)
    return (1 / np.maximum(inside, 1)).astype(np.float32).ravel()
