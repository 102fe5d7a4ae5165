"""The geometry of what convolutions and pooling read: windows over panels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateurs.run.layout import Grid, Packed

Pair = tuple[int, int]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """What the windows of a grid of output positions see of an image.

    ``seen`` (rows, columns, lanes): the positions of the image; ``taps``: the offset of each place of the window, ``starts``: where
    each panel begins, both in floats from the channel's beginning; ``touched``: vectors of a channel that one panel reads.
    """

    seen: Indices
    taps: Indices
    starts: Indices
    touched: int

    @property
    def channel_stride(self) -> int:
        """Floats from one channel to the next, some of them free so that channels do not meet in the same sets of the first cache."""
        vectors, lanes = self.seen.shape[0] * self.seen.shape[1], self.seen.shape[2]
        page = 4096 // (lanes * 4)
        crowded = (0, page // 2, page // 4, page // 8)
        free = next(free for free in range(page) if (vectors + free) % page not in crowded)
        return (vectors + free) * lanes


def windows(grid: Grid, window: Pair, stride: Pair, padding: Pair, dilation: Pair, image: Pair) -> Windows:
    """The windows of a convolution or of pooling over an image of (height, width)."""
    down, across = ((size - 1) * apart + 1 for size, apart in zip(window, dilation, strict=True))
    seen = grid.window(padding, (down, across), stride, image)
    pitch = seen.shape[1]
    rows, columns = np.meshgrid(np.arange(window[0]) * dilation[0], np.arange(window[1]) * dilation[1], indexing="ij")
    row, column = np.divmod(np.arange(grid.panels) * grid.columns, grid.tile_width)
    return Windows(
        seen,
        (rows * pitch + columns).ravel() * grid.lanes,
        (row * stride[0] * pitch + column * stride[1]) * grid.lanes,
        window[0] * ((grid.columns - 1) * stride[1] + across),
    )


def panels(images: int, starts: Indices, x_image: int, y: Packed, residual: Packed | None) -> Indices:
    """(panels of all images, 5): where each begins in x, in y and in the residual; nothing of them goes elsewhere."""
    image, panel = np.arange(images)[:, None], np.arange(len(starts))
    nothing = np.zeros((images, len(starts)), np.int64)
    of = [nothing if layout is None else image * layout.image_stride + panel * layout.panel_stride for layout in (y, residual)]
    return np.ascontiguousarray(np.stack([image * x_image + starts, *of, nothing, nothing], -1).reshape(-1, 5), np.int64)


def divisors(found: Windows, grid: Grid, window: Pair, stride: Pair, dilation: Pair) -> NDArray[np.float32]:
    """(vectors * lanes): one over the positions of the image that each window sees."""
    y, x = np.meshgrid(np.arange(grid.tile_height) * stride[0], np.arange(grid.tile_width) * stride[1], indexing="ij")
    places = np.ndindex(window)
    inside = sum((found.seen[y + down * dilation[0], x + across * dilation[1]] >= 0).astype(np.float32) for down, across in places)
    return (1 / np.maximum(inside, 1)).astype(np.float32).ravel()
