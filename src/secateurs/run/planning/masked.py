"""Convolutions by blocks of rows that read an image where torch has it.

Where four rows share the places of their nonzeros, each input that is loaded is used four times, and it costs nothing that most loads
are not aligned. So the image is neither cut into tiles nor copied: consecutive lanes hold consecutive positions, and what a window sees
beyond the image is masked as it is loaded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateurs.run.kernels.machine import native_module
from secateurs.run.network.nodes import Conv
from secateurs.run.planning import steps
from secateurs.run.planning.homes import Homes
from secateurs.run.planning.layers import Choice, bias_of, is_for_torch, is_pointwise, packed
from secateurs.run.planning.layout import Tokens, tokens_for
from secateurs.run.planning.windows import Indices, of_images

_HEIGHT = 4


def is_masked(homes: Homes, node: Conv, choice: Choice) -> bool:
    """Whether a convolution by blocks of rows is to run so: it can, and has an image of torch before and after it."""
    shares = choice.masked and choice.height == _HEIGHT and len(node.weight) // node.groups % _HEIGHT == 0
    return shares and has_masks(node) and is_for_torch(homes, node) and not homes.is_image(node.x)


def has_masks(node: Conv) -> bool:
    """Whether an input is as far from its window's output everywhere: windows move one by one over an image that keeps its size."""
    return node.stride == (1, 1) and node.out.shape[2:] == node.x.shape[2:] and node.residual is None and not is_pointwise(node)


def plan_masked_conv(homes: Homes, node: Conv, choice: Choice) -> None:
    """A convolution over an image as it is: nonzeros by their place in the window, so that those of one place share their masks."""
    images, _, height, width = node.x.shape
    outputs, of_group = node.weight.shape[:2]
    grid = tokens_for(height * width, homes.isa.lanes, native_module().columns_at_once(homes.isa.name, _HEIGHT))
    x, sums, out = homes.plain(node.x), homes.new_sums(grid, outputs), homes.new_tensor(node.out)
    down, across = _reaches(node)
    taps = (down[:, None] * width + across).ravel()
    weight = node.weight.detach().flatten(2).swapaxes(1, 2).flatten(1).numpy().astype(np.float32)
    group = np.arange(outputs)[:, None] // (outputs // node.groups) * of_group
    channel = group + np.tile(np.arange(of_group), len(taps))
    offsets = channel * x.layout.channel_stride + np.repeat(taps, of_group)
    touched = min(grid.columns + 1 + int(np.ptp(taps)) // grid.lanes, len(down) * (grid.columns + 1))
    sparse = packed(homes, choice, weight, offsets, channel, grid, touched, images, node.groups, len(taps))
    exists, bias = _exists(node, grid), bias_of(node.bias, outputs)
    for first, last, columns in _by_columns(grid):
        vector = np.arange(first, last).reshape(-1, columns)
        masks = np.ascontiguousarray(exists[:, vector].swapaxes(0, 1))
        position, one_mask = vector[:, 0] * grid.lanes, masks[0].size
        starts, ends = (x.layout.image_stride, position), (out.layout.image_stride, position)
        there, lanes = (0, grid.count - position), (0, np.arange(len(vector)) * one_mask)
        where = of_images(images, x=starts, out=ends, positions=there, lanes=lanes)
        member = sums.layout.image_stride
        task = steps.spmm(homes.isa, sparse, bias, x, sums, None, where, 1, node.activation, columns, out, None, member, masks)
        homes.task(node.name, [x, sums, out], task)


def _reaches(node: Conv) -> tuple[Indices, Indices]:
    """How far below, and how far to the right of its output, each row and each column of the window is."""
    sizes = zip(node.weight.shape[2:], node.dilation, node.padding, strict=True)
    down, across = (np.arange(size) * apart - before for size, apart, before in sizes)
    return down, across


def _exists(node: Conv, grid: Tokens) -> NDArray[np.int32]:
    """(places of the window, vectors): a bit for each lane whose input is in the image."""
    height, width = node.x.shape[2:]
    row, column = np.divmod(np.arange(grid.vectors * grid.lanes), width)
    down, across = _reaches(node)
    y, x = row + down[:, None], column + across[:, None]
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    return (inside.reshape(-1, grid.vectors, grid.lanes) << np.arange(grid.lanes)).sum(2).astype(np.int32)


def _by_columns(grid: Tokens) -> list[tuple[int, int, int]]:
    """Runs of vectors from one to before another, and how many of them a panel has: of the last one often fewer, so that none is empty."""
    used = -(-grid.count // grid.lanes)
    whole = used // grid.columns * grid.columns
    parts = [(0, whole, grid.columns), (whole, used, used - whole)]
    return [part for part in parts if part[0] < part[1]]
