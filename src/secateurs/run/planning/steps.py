"""The steps of native programs: each function here returns what adds one step, once buffers have their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.run.kernels import gemv as vectors
from secateurs.run.kernels.machine import InstructionSet
from secateurs.run.kernels.records import Records, words
from secateurs.run.kernels.spmm import Sparse
from secateurs.run.network.nodes import Activation, Attention, Norm, Rotary
from secateurs.run.planning.buffers import NOWHERE, Home, Place
from secateurs.run.planning.layout import EMPTY, Grid, Moves, Packed, Stretches, Tiles, Tokens

Task = Callable[[Any], None]

_CODES = {"clamp": 0, "hard_swish": 1, "hard_sigmoid": 2, "silu": 3, "gelu": 4, "gelu_tanh": 5, "sigmoid": 6, "tanh": 7, "none": 8}
_GROUP = 16
"""Channels that one job of a step without weights takes."""

NONE = np.zeros(0, np.float32)


def at(home: Home | None) -> tuple[int, int]:
    """A place as the program takes it."""
    return NOWHERE if home is None else home.place.at()


def activation_of(activation: Activation | None) -> dict[str, Any]:
    """An activation as the program takes it; none has bounds that nothing exceeds."""
    if activation is None:
        return {"activation": _CODES["none"], "low": float("-inf"), "high": float("inf")}
    return {"activation": _CODES[activation.kind], "low": activation.low, "high": activation.high}


def move(
    isa: InstructionSet, moves: Moves, x: Home, y: Place, y_strides: tuple[int, int], images: int, channels: int, fill: float = 0.0
) -> Task:
    """Bring an image into another layout; ``y_strides`` are those from image to image and from channel to channel."""

    def do(program: Any) -> None:
        program.move(
            isa=isa.name,
            moves=words(moves.rows, np.int32),
            table=moves.table,
            images=images,
            channels=channels,
            group=_GROUP,
            x=at(x),
            y=y.at(),
            x_image=x.layout.image_stride,
            y_image=y_strides[0],
            x_stride=x.layout.channel_stride,
            y_stride=y_strides[1],
            fill=fill,
        )

    return do


def tiles(
    isa: InstructionSet,
    found: Tiles,
    image: Home,
    vectors: Place,
    strides: tuple[int, int],
    images: int,
    channels: int,
    packs: bool,
    fill: float = 0.0,
) -> Task:
    """Between an image as torch has it and vectors of tiles; ``strides``: the vectors', from image to image and channel to channel."""
    plain = image.layout.image_stride, image.layout.channel_stride
    (x_image, x_stride), (y_image, y_stride) = (plain, strides) if packs else (strides, plain)

    def do(program: Any) -> None:
        program.tiles(
            isa=isa.name,
            pack=packs,
            at=found.at,
            held=found.held,
            from_=found.origins,
            there=found.there,
            neighbour=found.neighbour,
            rows=found.at.shape[0],
            columns=found.at.shape[1],
            own=found.own,
            apart=found.apart,
            edges=found.edges,
            images=images,
            channels=channels,
            group=_GROUP,
            x=at(image) if packs else vectors.at(),
            y=vectors.at() if packs else at(image),
            x_image=x_image,
            y_image=y_image,
            x_stride=x_stride,
            y_stride=y_stride,
            fill=fill,
        )

    return do


def tokens(isa: InstructionSet, x: Home, y: Home, layout: Packed, packs: bool) -> Task:
    """Rows of channels into panels, or back."""
    grid = layout.grid
    assert isinstance(grid, Tokens)
    rows_of_panel = grid.columns * grid.lanes * layout.channels

    def do(program: Any) -> None:
        program.tokens(
            isa=isa.name,
            pack=packs,
            positions=grid.count,
            channels=layout.channels,
            row_stride=layout.channels,
            channel_stride=layout.channel_stride,
            columns=grid.columns,
            panels=grid.panels,
            x_panel=rows_of_panel if packs else layout.panel_stride,
            y_panel=layout.panel_stride if packs else rows_of_panel,
            x=at(x),
            y=at(y),
        )

    return do


def spmm(
    isa: InstructionSet,
    weights: Sparse,
    bias: NDArray[np.float32],
    x: Home,
    y: Home,
    residual: Home | None,
    panels: Records,
    stride: int,
    activation: Activation | None,
    columns: int,
    out: Home | None = None,
    stretches: Stretches | None = None,
    y_member: int = 0,
    masks: NDArray[np.int32] | None = None,
) -> Task:
    """Sparse weights times panels of so many columns; ``stride`` vectors from one input position to the next. Finished rows go to
    ``out`` where there is one, in ``stretches`` or as they are, and sums that are not finished lie in y, where the panels have places of
    their own, or each thread has one, ``y_member`` floats from the next. ``masks`` (panels, places of the window, columns) have a bit for
    each lane whose input exists, where not all do."""
    apart = stretches or Stretches(EMPTY, EMPTY, EMPTY)

    def do(program: Any) -> None:
        program.spmm(
            isa=isa.name,
            height=weights.height,
            columns=columns,
            stride=stride,
            rows=words(weights.rows, np.int32),
            offsets=weights.offsets,
            values=weights.values,
            blocks=words(weights.blocks, np.int64),
            chunks=weights.chunks,
            bias=bias,
            panels=words(panels, np.int64),
            x=at(x),
            y=at(y),
            residual=at(residual),
            out=at(out),
            y_stride=y.layout.channel_stride,
            residual_stride=0 if residual is None else residual.layout.channel_stride,
            out_stride=0 if out is None else out.layout.channel_stride,
            y_member=y_member,
            from_=apart.origins,
            there=apart.there,
            order=apart.order,
            counts=EMPTY if masks is None else weights.counts,
            masks=EMPTY if masks is None else masks,
            places=0 if masks is None else masks.shape[1],
            **activation_of(activation),
        )

    return do


def gemv(
    isa: InstructionSet,
    weights: vectors.Packed,
    bias: NDArray[np.float32],
    x: Home,
    y: Home,
    count: int,
    bounds: NDArray[np.int64],
    activation: Activation | None = None,
    residual: Home | None = None,
    x_offset: int = 0,
    stride: int = 1,
) -> Task:
    """Sparse weights times ``count`` single vectors; ``bounds`` split the groups of rows into jobs.

    Outputs are every ``stride``-th float of y, the last of each ``stride``, and so it is with the residual.
    """

    def do(program: Any) -> None:
        program.gemv(
            isa=isa.name,
            format=weights.format,
            number=weights.values,
            rows=weights.rows,
            steps=weights.steps,
            nonzeros=weights.nonzeros,
            spans=weights.spans,
            counts=weights.counts,
            codes=weights.codes,
            data=weights.data.view(np.uint8),
            scale=NONE if weights.scale is None else weights.scale,
            bias=bias,
            bounds=bounds,
            inputs=weights.shape[1],
            outputs=weights.shape[0],
            blocks=weights.blocks,
            vectors=count,
            x=_moved(at(x), x_offset),
            stride=stride,
            y=_moved(at(y), stride - 1),
            residual=at(None) if residual is None else _moved(at(residual), stride - 1),
            **activation_of(activation),
        )

    return do


def cell(
    isa: InstructionSet, gates: Home, more: Home, state: Home, out: Home, rows: int, width: int, gates_offset: int, out_offset: int
) -> Task:
    """One step of an LSTM: gates + more → the cell's new state, in place, and its output."""

    def do(program: Any) -> None:
        places = {
            "gates": _moved(at(gates), gates_offset),
            "more": at(more),
            "state": at(state),
            "out": _moved(at(out), out_offset),
        }
        program.cell(isa=isa.name, rows=rows, width=width, **places)

    return do


def copy(x: Home, y: Home, count: int, x_offset: int = 0) -> Task:
    """Numbers as they are."""

    def do(program: Any) -> None:
        program.copy(count=count, x=_moved(at(x), x_offset), y=at(y))

    return do


def window(
    isa: InstructionSet,
    taps: NDArray[np.int64],
    factors: NDArray[np.float32],
    stride: int,
    panels: Records,
    x: Home,
    y: Home,
    channels: int,
    x_stride: int,
) -> Task:
    """Maximum over windows, or their sum times factors."""
    grid = y.packed.grid

    def do(program: Any) -> None:
        program.window(
            isa=isa.name,
            taps=taps.astype(np.int32),
            factors=factors,
            columns=grid.columns,
            stride=stride,
            panels=words(panels, np.int64),
            panels_of_image=grid.panels,
            channels=channels,
            group=_GROUP,
            x=at(x),
            y=at(y),
            x_stride=x_stride,
            y_stride=y.layout.channel_stride,
        )

    return do


def mean(isa: InstructionSet, weights: NDArray[np.float32], x: Home, y: Home, images: int, channels: int) -> Task:
    """The weighted sum of each channel's positions."""
    layout = x.packed

    def do(program: Any) -> None:
        program.mean(
            isa=isa.name,
            weights=weights,
            columns=layout.grid.columns,
            panels=layout.grid.panels,
            images=images,
            channels=channels,
            group=_GROUP,
            x=at(x),
            y=at(y),
            x_image=layout.image_stride,
            x_panel=layout.panel_stride,
            x_stride=layout.channel_stride,
        )

    return do


def pointwise(
    isa: InstructionSet,
    x: Home,
    y: Home,
    images: int,
    channels: int,
    z: Home | None = None,
    factors: Home | None = None,
    scale: NDArray[np.float32] = NONE,
    shift: NDArray[np.float32] = NONE,
    activation: Activation | None = None,
) -> Task:
    """y = activation(x * scale + shift + z) for each channel."""
    layouts = [home.packed for home in (x, y, z or y)]
    grid = layouts[0].grid
    assert isinstance(grid, Grid)

    def do(program: Any) -> None:
        program.pointwise(
            isa=isa.name,
            scale=scale,
            shift=shift,
            panels=grid.panels * images,
            panels_of_image=grid.panels,
            channels=channels,
            group=_GROUP,
            count=grid.columns * grid.lanes,
            x=at(x),
            y=at(y),
            z=at(z),
            factors=at(factors),
            of_panel=tuple(each.panel_stride for each in layouts),
            of_channel=tuple(each.channel_stride for each in layouts),
            **activation_of(activation),
        )

    return do


def _moved(place: tuple[int, int], offset: int) -> tuple[int, int]:
    return place[0], place[1] + offset


def norm(isa: InstructionSet, columns: int, count: int, x: Home, y: Home, node: Norm) -> Task:
    """Rows (of 0 columns) or panels, so many of them, normalised."""
    size = node.weight.shape[0]
    weight = np.ascontiguousarray(node.weight.detach().numpy(), np.float32)
    bias = NONE if node.bias is None else np.ascontiguousarray(node.bias.detach().numpy(), np.float32)

    def do(program: Any) -> None:
        program.norm(
            isa=isa.name,
            columns=columns,
            count=count,
            apart=size * node.groups * max(columns * isa.lanes, 1),
            weight=weight,
            bias=bias,
            groups=node.groups,
            centred=node.centred,
            eps=node.eps,
            x=at(x),
            y=at(y),
        )

    return do


def combine(isa: InstructionSet, count: int, multiplies: bool, activation: Activation | None, x: Home, z: Home, y: Home) -> Task:
    """Products or sums of so many numbers that lie alike."""

    def do(program: Any) -> None:
        program.combine(isa=isa.name, count=count, multiplies=multiplies, x=at(x), z=at(z), y=at(y), **activation_of(activation))

    return do


def rotary(isa: InstructionSet, columns: int, count: int, size: int, x: Home, cos: Home, sin: Home, y: Home, node: Rotary) -> Task:
    """Heads of ``size`` channels of rows (of 0 columns) or panels, so many of them, turned."""

    def do(program: Any) -> None:
        program.rotary(
            isa=isa.name,
            heads=node.heads,
            size=size,
            width=node.cos.shape[-1],
            stride=max(columns * isa.lanes, 1),
            count=count,
            x=at(x),
            cos=at(cos),
            sin=at(sin),
            y=at(y),
        )

    return do


def keep(isa: InstructionSet, columns: int, positions: int, channels: int, x: Home, y: Home, position: Home) -> Task:
    """Rows (of 0 columns) or panels added to those that are kept."""

    def do(program: Any) -> None:
        program.keep(isa=isa.name, positions=positions, channels=channels, columns=columns, x=at(x), y=at(y), position=at(position))

    return do


Lie = tuple[int, int, int, int]
"""How keys lie: how many together, floats from one such tile to the next, from one key to the next, and from channel to channel."""


def attention(
    isa: InstructionSet,
    columns: int,
    node: Attention,
    lie: Lie,
    room: int,
    x: Home,
    keys: Home,
    values: Home,
    y: Home,
    scores: Home,
    position: Home | None,
) -> Task:
    """Attention of queries in rows (of 0 columns) or panels."""
    batch, tokens, channels = node.x.shape

    def do(program: Any) -> None:
        program.attention(
            isa=isa.name,
            columns=columns,
            queries=batch * tokens,
            of_batch=tokens if node.past is None else 2**31,
            heads=node.heads,
            of_keys=node.heads // node.of_keys,
            size=channels // node.heads,
            keys_lie=lie,
            values_lie=lie,
            causal=node.causal,
            scale=node.scale,
            room=room,
            x=at(x),
            keys=at(keys),
            values=at(values),
            y=at(y),
            scores=at(scores),
            position=at(position),
        )

    return do
