"""Convolutions by blocks of rows from an image to an image, as torch has both.

Where four rows share the places of their nonzeros, each input that is loaded is used four times, and it costs nothing that most loads
are not aligned. So the image need not be cut into tiles: its rows are laid a little further apart, with the zeros of the padding between
them, and consecutive lanes hold consecutive positions. What is computed for the positions between the rows is dropped.
"""

from __future__ import annotations

import numpy as np

from secateurs.run import steps
from secateurs.run.buffers import Home
from secateurs.run.homes import Homes
from secateurs.run.layers import Choice, bias_of, is_pointwise, matrix, packed
from secateurs.run.layout import Tokens, gapped
from secateurs.run.machine import native_module
from secateurs.run.nodes import Conv
from secateurs.run.windows import Indices, stride_of, table

_HEIGHT = 4
_COLUMNS = 6
"""Of a panel: with more of them, sums, weights and an input would not fit 32 registers."""
_BAND = 2 * 1024 * 1024
"""Bytes of rows of one image that are laid apart at a time, so that much of them is still in a cache when it is used."""


def is_pitched(homes: Homes, node: Conv, choice: Choice) -> bool:
    """Whether a convolution by blocks of rows is to run so, and has an image of torch before and after it, and windows that move one by
    one."""
    shares = choice.pitched and choice.height == _HEIGHT and len(node.weight) // node.groups % _HEIGHT == 0
    around = node.padding[1] <= (node.weight.shape[3] - 1) * node.dilation[1]
    plain = node.out in homes.leaving and node.out not in homes.reserved and not homes.is_image(node.x) and node.residual is None
    return shares and around and plain and node.stride == (1, 1) and not is_pointwise(node)


def _grid(homes: Homes, node: Conv) -> Tokens:
    at_once = native_module().columns_at_once(homes.isa.name, _HEIGHT)
    return Tokens(node.out.shape[2] * (node.x.shape[3] + node.padding[1]), homes.isa.lanes, min(at_once, _COLUMNS))


def plan_pitched_conv(homes: Homes, node: Conv, choice: Choice) -> None:
    """A convolution over rows that have their padding between them, band by band of the image."""
    images, channels, _, width = node.x.shape
    (outputs, of_group), (down, across) = node.weight.shape[:2], node.weight.shape[2:]
    grid, pitch = _grid(homes, node), width + node.padding[1]
    rows, columns = np.meshgrid(np.arange(down) * node.dilation[0] * pitch, np.arange(across) * node.dilation[1], indexing="ij")
    taps, long = (rows + columns).ravel(), grid.columns * grid.lanes
    reach = int(taps[-1])
    high = min(max((_BAND // (4 * channels) - reach - pitch) // long, 4 * reach // long + 1), grid.panels)
    high = -(-grid.panels // -(-grid.panels // high))
    stride = stride_of(-(-(high * long + reach + pitch) // grid.lanes), grid.lanes)

    weight, panel = matrix(node.weight), np.arange(grid.panels)
    group = np.arange(outputs)[:, None] // (outputs // node.groups) * of_group
    channel = group + np.repeat(np.arange(of_group), len(taps))
    touched = min(grid.columns + 1 + reach // grid.lanes, down * (grid.columns + 1))
    sparse = packed(homes, choice, weight, channel * stride + np.tile(taps, of_group), channel, grid, touched, images, node.groups)
    sums, out = homes.new_sums(grid, outputs), homes.new_tensor(node.out)
    lie = gapped(node.out.shape[2], node.out.shape[3], pitch, grid)
    bias, member = bias_of(node.bias, outputs), sums.layout.image_stride
    for first in range(0, grid.panels, high):
        of = panel[first : first + high]
        above = first * long // pitch
        seen = _rows(homes, node, above, min((first + len(of)) * long, grid.count), pitch, stride)
        for some, wide in _by_width(of, grid):
            starts = (channels * stride, some * long - above * pitch)
            where = table(images, starts, 0, 0, (out.layout.image_stride, 0 * some), 0, (0, some * grid.columns))
            task = steps.spmm(homes.isa, sparse, bias, seen, sums, None, where, 1, node.activation, wide, out, lie, member)
            homes.task(node.name, [seen, sums, out], task)


def _by_width(panels: Indices, grid: Tokens) -> list[tuple[Indices, int]]:
    """Panels, and how many of their columns hold anything: of the last one often not all."""
    rest = -(-(grid.count - int(panels[-1]) * grid.columns * grid.lanes) // grid.lanes)
    if rest >= grid.columns:
        return [(panels, grid.columns)]
    parts = [(panels[:-1], grid.columns), (panels[-1:], rest)]
    return [(some, wide) for some, wide in parts if len(some)]


def _rows(homes: Homes, node: Conv, above: int, last: int, pitch: int, stride: int) -> Home:
    """What the windows see of the positions from row ``above`` on up to position ``last``, with zeros around the image."""
    images, channels, height, width = node.x.shape
    beyond, around = node.padding
    below = -(-last // pitch) + (node.weight.shape[2] - 1) * node.dilation[0]
    rows = slice(min(max(above - beyond, 0), height), max(min(below - beyond, height), 0))
    source, seen = homes.plain(node.x), homes.new_plain(images * channels * stride)
    before = around + (rows.start - above + beyond) * pitch
    task = steps.spread(homes.isa, source, seen, images, width, rows, before, pitch, stride)
    homes.task(f"{node.name} (windows)", [source, seen], task)
    return seen
