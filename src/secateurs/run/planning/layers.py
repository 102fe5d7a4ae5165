"""How layers with weights are planned: convolutions, linear layers, recurrent ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateurs.run.kernels import gemv
from secateurs.run.kernels.machine import narrower, native_module
from secateurs.run.kernels.records import Records
from secateurs.run.kernels.spmm import Sparse, pack
from secateurs.run.network.nodes import Conv, Linear, Lstm, Node
from secateurs.run.planning import steps
from secateurs.run.planning.buffers import Home
from secateurs.run.planning.homes import Homes, count
from secateurs.run.planning.layout import Grid, Plain, Tokens, grid_for, moves, read_tiles, stretches, tokens_for
from secateurs.run.planning.windows import Indices, Part, Windows, of_images, panels, whole, windows

Layer = Conv | Linear | Lstm

SINGLE = 4
"""Up to so many vectors, a linear layer takes them one by one."""

_SUMS = 128 * 1024
"""Bytes of sums that are read and written for every block of channels, so that they had better stay in the second cache."""


_SEEN = 2 * 1024 * 1024
"""Bytes that the windows of a band of one image see, so that much of them is still in a cache when it is used."""


@dataclass(frozen=True)
class Choice:
    """How one layer runs: ``height`` output channels share nonzeros; ``block`` bytes of input stay in the first cache.

    ``masked``: over an image as it is instead of tiles, where it can (see `masked`). ``dense``: by torch instead. ``format`` and
    ``values``: of a linear layer that reads single vectors (see `gemv`).
    """

    height: int = 1
    block: int = 24 * 1024
    masked: bool = False
    dense: bool = False
    format: gemv.Format | None = None
    values: gemv.Values = "float32"


def as_linear(node: Node) -> Linear | None:
    """A linear layer, or a convolution of one position by 1x1."""
    if isinstance(node, Linear):
        return node
    if not isinstance(node, Conv) or node.x.shape[2:] != (1, 1) or node.out.shape[2:] != (1, 1) or node.padding != (0, 0):
        return None
    if node.weight.shape[1:] != node.x.shape[1:]:
        return None
    return Linear(node.name, node.x, node.out, node.weight.flatten(1), node.bias, node.residual, node.activation)


def positions_of(node: Layer) -> int:
    """Positions (pixels, tokens, samples) that a layer's weights are applied to."""
    if isinstance(node, Lstm):
        return node.x.shape[0] * node.x.shape[1]
    return count(node.out) // node.weight.shape[0]


def weights_of(node: Layer) -> Tensor:
    """All weights of a layer, a row for each output."""
    flat = node.weight.detach().flatten(1)
    return torch.cat([flat, node.recurrent.detach()], 1) if isinstance(node, Lstm) else flat


def plan_conv(homes: Homes, node: Conv, choice: Choice) -> None:
    """A convolution: what its windows see, unless that is what lies there, then sparse weights times panels, band by band of the image."""
    images, channels = node.x.shape[:2]
    in_place = is_pointwise(node)
    alone = not in_place and node.residual is None and is_for_torch(homes, node)
    grid = grid_for(node.out.shape[2], node.out.shape[3], homes.isa.lanes, whole_rows=alone)
    source = homes.packed(node.x, grid) if in_place else homes.any(node.x)
    bands = [whole(source.packed)] if in_place else _bands(node, grid, source)
    residual = None if node.residual is None else homes.packed(node.residual, grid)
    weight, of_group = matrix(node.weight), node.weight.shape[1]
    group = (
        np.arange(len(weight))[:, None] // (len(weight) // node.groups) * of_group
        if node.groups > 1
        else np.zeros((1, 1), np.int64)
    )
    channel = group + np.repeat(np.arange(of_group), len(bands[0].taps))
    offsets = channel * bands[0].channel_stride + np.tile(bands[0].taps, of_group)
    sparse = packed(homes, choice, weight, offsets, channel, grid, bands[0].touched, images, node.groups)
    x_image = source.layout.image_stride if in_place else bands[0].channel_stride * channels
    y, out, where = _targets(homes, node, grid, sparse.height, residual)
    lie, member = (None, 0) if out is None else (stretches(grid), y.layout.image_stride)
    for band in bands:
        x = source if in_place else plan_windows(homes, node.name, source, band, images, channels)
        places = where[:, band.panels].copy()
        places["x"] = np.arange(images)[:, None] * x_image + band.starts
        step, bias = 1 if in_place else node.stride[1], bias_of(node.bias, len(weight))
        task = steps.spmm(
            homes.isa, sparse, bias, x, y, residual, np.concatenate(places), step, node.activation, grid.columns, out, lie, member
        )
        homes.task(node.name, [x, y, residual, out], task)


def _bands(node: Conv, grid: Grid, source: Home) -> list[Windows]:
    """What a convolution's windows see: of an image as torch has it in bands, of panels, where that was found to be slower, at once."""
    _, channels, height, width = node.x.shape
    window = (node.weight.shape[2], node.weight.shape[3])
    most = _SEEN // (4 * channels) if isinstance(source.layout, Plain) else None
    return windows(grid, window, node.stride, node.padding, node.dilation, (height, width), most)


def _targets(homes: Homes, node: Conv, grid: Grid, height: int, residual: Home | None) -> tuple[Home, Home | None, Records]:
    """Where sums lie, where finished rows go if they go elsewhere, and the places (images, panels) of both and of the residual."""
    images, outputs = node.out.shape[:2]
    panel, shape = np.arange(grid.panels), (images, grid.panels)
    before: Part = 0 if residual is None else (residual.layout.image_stride, panel * residual.packed.panel_stride)
    if not (is_for_torch(homes, node) and _holds_rows(homes, grid, height)):
        y = homes.new_packed(node.out, grid)
        return y, None, of_images(images, y=(y.layout.image_stride, panel * y.packed.panel_stride), residual=before).reshape(shape)
    out, lanes = homes.new_tensor(node.out), (0, panel * (grid.lanes // 2))
    where = of_images(images, residual=before, out=(out.layout.image_stride, 0 * panel), lanes=lanes)
    return homes.new_sums(grid, outputs), out, where.reshape(shape)


def is_for_torch(homes: Homes, node: Conv) -> bool:
    """Whether nobody wants panels of a convolution's rows."""
    return node.out in homes.leaving and node.out not in homes.reserved


def _holds_rows(homes: Homes, grid: Grid, height: int) -> bool:
    """Whether a panel holds all columns of tiles that lie side by side, so that its rows can be written to an image when they are
    finished."""
    at_once = min(grid.lanes // 2, native_module().columns_at_once(homes.isa.name, height))
    return grid.columns == grid.tile_width <= at_once and grid.across > 1


def is_pointwise(node: Conv) -> bool:
    """Whether a convolution reads just the position that it writes."""
    return node.weight.shape[2:] == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0)


def plan_pointwise_conv(homes: Homes, node: Conv, choice: Choice) -> None:
    """A 1x1 convolution of an image as torch has it: its rows of positions are panels already, save for what sticks out at the end."""
    images, _, height, width = node.x.shape
    outputs, lanes, positions = node.weight.shape[0], homes.isa.lanes, height * width
    last = _is_last_alone(homes, node)
    grid = tokens_for(positions - last, lanes)
    pitch = grid.vectors * lanes
    x, residual = homes.plain(node.x), None if node.residual is None else homes.plain(node.residual)
    if pitch != positions:  # what sticks out is read too, so there must be room for it
        of = slice(0, positions - last)
        x, residual = _some(homes, x, images, of, pitch), None if residual is None else _some(homes, residual, images, of, pitch)
    weight = matrix(node.weight)
    group = np.arange(len(weight))[:, None] // (len(weight) // node.groups) * weight.shape[1]
    channel = group + np.arange(weight.shape[1])
    offsets = channel * x.layout.channel_stride
    sparse = packed(homes, choice, weight, offsets, channel, grid, grid.columns, images, node.groups)
    image, first = homes.new_tensor(node.out), np.arange(grid.panels) * grid.columns * lanes
    in_image = (image.layout.image_stride, first)
    where: dict[str, Part] = {"x": (x.layout.image_stride, first), "positions": (0, positions - last - first)}
    if residual is not None:
        where["residual"] = (residual.layout.image_stride, first)
    y, out, member = image, None, 0
    if pitch != positions:
        y, out = homes.new_sums(grid, outputs), image
        member = y.layout.image_stride
    where["y" if out is None else "out"] = in_image
    bias = bias_of(node.bias, outputs)
    places = of_images(images, **where)
    task = steps.spmm(homes.isa, sparse, bias, x, y, residual, places, 1, node.activation, grid.columns, out, None, member)
    homes.task(node.name, [x, y, residual, out], task)
    if last:
        _plan_last(homes, node, image)


def _is_last_alone(homes: Homes, node: Conv) -> bool:
    """Whether one position is left over when all others fill lanes, as it is with 7x7: as a single vector it takes less time than a
    column of lanes."""
    positions = node.x.shape[2] * node.x.shape[3]
    left = positions > homes.isa.lanes and positions % homes.isa.lanes == 1
    return left and node.groups == 1 and _format(homes, node.weight) == "lanes"


def _plan_last(homes: Homes, node: Conv, image: Home) -> None:
    """The last position of a 1x1 convolution, as a single vector."""
    images, _, height, width = node.x.shape
    positions, sparse = height * width, gemv.pack(matrix(node.weight), "lanes")
    x, residual = homes.plain(node.x), None if node.residual is None else homes.plain(node.residual)
    vector = _some(homes, x, images, slice(positions - 1, positions), 1)
    bias, bounds = bias_of(node.bias, sparse.shape[0]), _bounds(sparse, homes.threads)
    task = steps.gemv(homes.isa, sparse, bias, vector, image, images, bounds, node.activation, residual, stride=positions)
    homes.task(node.name, [vector, image, residual], task)


def _some(homes: Homes, home: Home, images: int, of: slice, stride: int) -> Home:
    """A copy of some positions of an image, with zeros after them: channels are ``stride`` floats apart."""
    channels, lanes = home.layout.channels, homes.isa.lanes
    room = Home(Plain(stride, channels), homes.new_plain(images * channels * stride).place)
    at = np.arange(0, stride, lanes)
    place = of.start + at[:, None] + np.arange(lanes)
    made = moves(home.layout, np.where(place < of.stop, place, -1), at, np.minimum(lanes, stride - at))
    homes.task("layout", [home, room], steps.move(homes.isa, made, home, room.place, (stride * channels, stride), images, channels))
    return room


def plan_windows(homes: Homes, name: str, source: Home, found: Windows, images: int, channels: int, fill: float = 0.0) -> Home:
    """What the windows of a grid see, as (image, channel, row, column, lane)."""
    lanes, stride = homes.isa.lanes, found.channel_stride
    vectors = found.seen.size // lanes
    scratch = homes.new_plain(stride * channels * images)
    strides = (stride * channels, stride)
    at = np.arange(vectors) * lanes
    if isinstance(source.layout, Plain):
        read = read_tiles(found.seen, at, found.across, found.apart, source.layout.positions)
        do = steps.tiles(homes.isa, read, source, scratch.place, strides, images, channels, packs=True, fill=fill)
    else:
        made = moves(source.layout, found.seen.reshape(vectors, lanes), at)
        do = steps.move(homes.isa, made, source, scratch.place, strides, images, channels, fill)
    homes.task(f"{name} (windows)", [source, scratch], do)
    return scratch


def plan_tokens(homes: Homes, node: Linear, choice: Choice) -> None:
    """A linear layer over many tokens or samples."""
    isa = narrower(homes.isa, positions_of(node))
    grid = tokens_for(positions_of(node), isa.lanes)
    x, y = homes.packed(node.x, grid), homes.new_packed(node.out, grid)
    residual = None if node.residual is None else homes.packed(node.residual, grid)
    weight = matrix(node.weight)
    channel = np.arange(weight.shape[1])[None]
    sparse = packed(homes, choice, weight, channel * x.layout.channel_stride, channel, grid, grid.columns)
    starts = np.arange(grid.panels) * x.packed.panel_stride
    where = panels(1, starts, 0, y.packed, None if residual is None else residual.packed)
    task = steps.spmm(isa, sparse, bias_of(node.bias, len(weight)), x, y, residual, where, 1, node.activation, grid.columns)
    homes.task(node.name, [x, y, residual], task)


def plan_vectors(homes: Homes, node: Linear, choice: Choice) -> None:
    """A linear layer over single vectors, as torch has them."""
    x = homes.plain(node.x)
    residual = None if node.residual is None else homes.plain(node.residual)
    y = homes.new_rows(node.out)
    sparse = gemv.pack(matrix(node.weight), choice.format or _format(homes, node.weight), choice.values)
    bias, bounds = bias_of(node.bias, sparse.shape[0]), _bounds(sparse, homes.threads)
    task = steps.gemv(homes.isa, sparse, bias, x, y, positions_of(node), bounds, node.activation, residual)
    homes.task(node.name, [x, y, residual], task)


def plan_lstm(homes: Homes, node: Lstm, choice: Choice) -> None:
    """One layer of an LSTM in one direction: all inputs at once, then step by step what depends on the step before."""
    steps_count, rows, _ = node.x.shape
    width = node.hidden.shape[1]
    x, first, state = homes.plain(node.x), homes.plain(node.hidden), homes.plain(node.cell)
    out, last, memory = homes.new_tensor(node.out), homes.new_tensor(node.last_hidden), homes.new_tensor(node.last_cell)
    form = choice.format or _format(homes, node.weight, node.recurrent)
    into, again = (gemv.pack(matrix(weight), form, choice.values) for weight in (node.weight, node.recurrent))
    gates, more = homes.new_plain(steps_count * rows * 4 * width), homes.new_plain(rows * 4 * width)
    bias, none = bias_of(node.bias, 4 * width), np.zeros(4 * width, np.float32)
    homes.task(node.name, [x, gates], steps.gemv(homes.isa, into, bias, x, gates, steps_count * rows, _bounds(into, homes.threads)))
    homes.task(node.name, [state, memory], steps.copy(state, memory, rows * width))
    order = range(steps_count)[:: -1 if node.backwards else 1]
    before: tuple[Home, int] = (first, 0)
    for step in order:
        place = step * rows * width
        turn = steps.gemv(homes.isa, again, none, before[0], more, rows, _bounds(again, homes.threads), x_offset=before[1])
        homes.task(node.name, [before[0], more], turn)
        cell = steps.cell(homes.isa, gates, more, memory, out, rows, width, step * rows * 4 * width, place)
        homes.task(node.name, [gates, more, memory, out], cell)
        before = (out, place)
    homes.task(node.name, [out, last], steps.copy(out, last, rows * width, x_offset=before[1]))


def packed(
    homes: Homes,
    choice: Choice,
    weight: NDArray[np.float32],
    offsets: Indices,
    channel: Indices,
    grid: Grid | Tokens,
    touched: int,
    images: int = 1,
    groups: int = 1,
    places: int = 1,
) -> Sparse:
    """Packed weights: ``offsets`` and ``channel`` tell of each where its input is, and a panel reads ``touched`` vectors of a channel.

    What a panel reads of a block of channels fits the first cache; its sums in a chunk of rows fit the second, and there are chunks
    enough to keep the threads busy.
    """
    channels, vector = int(channel.max()) + 1, grid.lanes * 4
    blocks = -(-channels // max(1, choice.block // (touched * vector)))
    height = choice.height if len(weight) // groups % choice.height == 0 else 1  # rows that share places read the same inputs
    busy = 1 if homes.threads == 1 else -(-2 * homes.threads // (grid.panels * images))
    near = -(-len(weight) * grid.columns * vector // _SUMS)
    chunks = max(1, min(max(busy, near), len(weight) // (16 * height)))
    return pack(weight, offsets, channel * blocks // channels, height, chunks, places)


def matrix(weight: Tensor) -> NDArray[np.float32]:
    """Weights as (outputs, everything else)."""
    return np.ascontiguousarray(weight.detach().flatten(1).numpy(), np.float32)


def bias_of(bias: Tensor | None, outputs: int) -> NDArray[np.float32]:
    """The bias, or zeros."""
    return np.zeros(outputs, np.float32) if bias is None else np.ascontiguousarray(bias.detach().numpy(), np.float32)


def _format(homes: Homes, *weights: Tensor) -> gemv.Format:
    lanes = homes.isa.lanes == gemv.LANES and all(bool(weight.isfinite().all()) for weight in weights)
    return "lanes" if lanes else "columns"


def _bounds(sparse: gemv.Packed, threads: int) -> NDArray[np.int64]:
    """Groups of rows split into jobs of about the same work."""
    done = np.concatenate([[0], np.cumsum(sparse.work)])
    jobs = 1 if threads == 1 else max(1, min(4 * threads, sparse.groups))
    return np.searchsorted(done, np.linspace(0, done[-1], jobs + 1)).astype(np.int64)
