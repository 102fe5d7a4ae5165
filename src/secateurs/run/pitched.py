"""Convolutions by blocks of rows from an image to an image, as torch has both.

Where four rows share the places of their nonzeros, each input that is loaded is used four times, and it costs nothing that most loads
are not aligned. So the image need not be cut into tiles: its rows are laid a little further apart, with the zeros of the padding between
them, and consecutive lanes hold consecutive positions. What is computed for the positions between the rows is dropped.
"""

from __future__ import annotations

import numpy as np

from secateurs.run import steps
from secateurs.run.homes import Homes
from secateurs.run.layers import Choice, bias_of, is_pointwise, matrix, packed
from secateurs.run.layout import Tokens, gapped, grid_for
from secateurs.run.machine import native_module
from secateurs.run.nodes import Conv
from secateurs.run.windows import stride_of, table

_HEIGHT = 4
_COLUMNS = 6
"""Of a panel: with more of them, sums, weights and an input would not fit 32 registers."""
_WASTE = 1.05
"""Tiles are better where so many times as many positions would be computed: those between the rows, and those that fill the last panel."""


def is_pitched(homes: Homes, node: Conv, choice: Choice) -> bool:
    """Whether a convolution by blocks of rows has an image of torch before and after it, and windows that move one by one."""
    shares = choice.height == _HEIGHT and len(node.weight) // node.groups % _HEIGHT == 0
    around = node.padding[1] <= (node.weight.shape[3] - 1) * node.dilation[1]
    plain = node.out in homes.leaving and node.out not in homes.reserved and not homes.is_image(node.x) and node.residual is None
    if not (shares and around and plain) or node.stride != (1, 1) or is_pointwise(node):
        return False
    return _grid(homes, node).vectors <= _WASTE * grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes).vectors


def _grid(homes: Homes, node: Conv) -> Tokens:
    at_once = native_module().columns_at_once(homes.isa.name, _HEIGHT)
    return Tokens(node.out.shape[2] * (node.x.shape[3] + node.padding[1]), homes.isa.lanes, min(at_once, _COLUMNS))


def plan_pitched_conv(homes: Homes, node: Conv, choice: Choice) -> None:
    """A convolution over rows that have their padding between them."""
    images, channels, height, width = node.x.shape
    (outputs, of_group), (down, across) = node.weight.shape[:2], node.weight.shape[2:]
    pitch, lanes = width + node.padding[1], homes.isa.lanes
    grid = _grid(homes, node)
    rows, columns = np.meshgrid(np.arange(down) * node.dilation[0] * pitch, np.arange(across) * node.dilation[1], indexing="ij")
    taps = (rows + columns).ravel()
    stride = stride_of(grid.vectors + -(-int(taps[-1]) // lanes), lanes)
    source, seen = homes.plain(node.x), homes.new_plain(images * channels * stride)
    before = node.padding[1] + node.padding[0] * pitch
    task = steps.spread(homes.isa, before, height, width, pitch, source, seen, stride, images)
    homes.task(f"{node.name} (windows)", [source, seen], task)

    weight, panel = matrix(node.weight), np.arange(grid.panels)
    group = np.arange(outputs)[:, None] // (outputs // node.groups) * of_group
    channel = group + np.repeat(np.arange(of_group), len(taps))
    touched = min(grid.columns + 1 + int(taps[-1]) // lanes, down * (grid.columns + 1))
    sparse = packed(homes, choice, weight, channel * stride + np.tile(taps, of_group), channel, grid, touched, images, node.groups)
    sums, out = homes.new_sums(grid, outputs), homes.new_tensor(node.out)
    where = table(
        images,
        (channels * stride, panel * grid.columns * lanes),
        0,
        0,
        (out.layout.image_stride, 0 * panel),
        0,
        (0, panel * grid.columns),
    )
    lie = gapped(node.out.shape[2], node.out.shape[3], pitch, grid)
    bias = bias_of(node.bias, outputs)
    task = steps.spmm(
        homes.isa, sparse, bias, seen, sums, None, where, 1, node.activation, grid.columns, out, lie, sums.layout.image_stride
    )
    homes.task(node.name, [seen, sums, out], task)
