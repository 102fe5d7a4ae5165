"""How what has no weights is planned: pooling, means, sums, activations, concatenations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateurs.run.network.nodes import Activate, Add, Affine, Concat, Mean, Node, Pool, Scale
from secateurs.run.planning import steps
from secateurs.run.planning.buffers import Home, Place
from secateurs.run.planning.homes import Homes, is_image
from secateurs.run.planning.layers import plan_windows
from secateurs.run.planning.layout import Grid, Packed, grid_for
from secateurs.run.planning.windows import divisors, panels, windows


def plan_pool(homes: Homes, node: Pool) -> None:
    """Maximum or average over windows."""
    images, channels, height, width = node.x.shape
    grid = grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes)
    (found,) = windows(grid, node.window, node.stride, node.padding, node.dilation, (height, width))
    is_max = node.kind == "max"
    x = plan_windows(homes, node.name, homes.any(node.x), found, images, channels, float("-inf") if is_max else 0.0)
    y = homes.new_packed(node.out, grid)
    where = panels(images, found.starts, found.channel_stride * channels, y.packed, None)
    factors: NDArray[np.float32] = steps.NONE
    if not is_max and (node.divisor or node.counts_padding):
        factors = np.full(grid.vectors * grid.lanes, 1 / (node.divisor or node.window[0] * node.window[1]), np.float32)
    elif not is_max:
        factors = divisors(found, grid, node.window, node.stride, node.dilation)
    task = steps.window(homes.isa, found.taps, factors, node.stride[1], where, x, y, channels, found.channel_stride)
    homes.task(node.name, [x, y], task)


def plan_mean(homes: Homes, node: Mean) -> None:
    """The mean of each channel: one number, as torch has it."""
    x, y = homes.image(node.x), homes.new_tensor(node.out)
    held = x.packed.grid.positions() >= 0
    weights = (held / held.sum()).astype(np.float32).ravel()
    homes.task(node.name, [x, y], steps.mean(homes.isa, weights, x, y, node.x.shape[0], node.x.shape[1]))


def plan_pointwise(homes: Homes, node: Add | Activate | Affine | Scale) -> None:
    """What is done to each number alone."""
    x = homes.image(node.x)
    grid = x.packed.grid
    assert isinstance(grid, Grid)
    images, channels = node.x.shape[:2]
    z = homes.packed(node.y, grid) if isinstance(node, Add) else None
    factors = homes.plain(node.factors) if isinstance(node, Scale) else None
    scale, shift = (_numbers(node.scale), _numbers(node.shift)) if isinstance(node, Affine) else (steps.NONE, steps.NONE)
    activation = None if isinstance(node, Scale) else node.activation
    y = homes.new_packed(node.out, grid)
    homes.task(
        node.name, [x, y, z, factors], steps.pointwise(homes.isa, x, y, images, channels, z, factors, scale, shift, activation)
    )


def plan_concat(homes: Homes, node: Concat) -> None:
    """A concatenation along channels: parts that do not lie in their place yet are copied there."""
    grid = grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes)
    joined = _joined(homes, node)
    if joined is not None:
        homes.reserved[node.out] = joined
    whole = homes.new_packed(node.out, grid)
    before = 0
    for part in node.parts:
        home = homes.packed(part, grid)
        target = Home(whole.layout, Place(whole.place.buffer, whole.place.offset + before * whole.layout.channel_stride))
        if home.place != target.place:
            homes.task(node.name, [home, target], steps.pointwise(homes.isa, home, target, part.shape[0], part.shape[1]))
        before += part.shape[1]
    homes.alive(whole)


def share_concatenations(homes: Homes, nodes: Sequence[Node]) -> None:
    """Give the parts of concatenations their places within the whole, so that nothing needs to be copied.

    The last ones first: where each layer appends to what came before (DenseNet), all share the memory of the largest.
    """
    for node in reversed(nodes):
        if not isinstance(node, Concat) or not all(map(is_image, node.parts)) or _joined(homes, node) is not None:
            continue
        grid = grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes)
        if node.out not in homes.reserved:
            layout = Packed(grid, node.out.shape[1])
            homes.reserved[node.out] = Place(homes.buffer(layout.image_stride * node.out.shape[0])), node.out.shape[1]
        place, total = homes.reserved[node.out]
        before = 0
        for part in node.parts:
            offset = place.offset + before * Packed(grid, total).channel_stride
            homes.reserved.setdefault(part, (Place(place.buffer, offset), total))
            before += part.shape[1]


def _joined(homes: Homes, node: Concat) -> tuple[Place, int] | None:
    """Where the parts already lie one after the other, if they do."""
    grid = grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes)
    if any(part not in homes.reserved for part in node.parts):
        return None
    first, total = homes.reserved[node.parts[0]]
    before = 0
    for part in node.parts:
        expected = Place(first.buffer, first.offset + before * Packed(grid, total).channel_stride), total
        if homes.reserved[part] != expected:
            return None
        before += part.shape[1]
    return (first, total) if homes.reserved.get(node.out, (first, total)) == (first, total) else None


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
