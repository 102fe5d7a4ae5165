"""From nodes to programs: which layout each value gets, where it lies, and what each kernel is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secateurs.run import gemv
from secateurs.run.buffers import NOWHERE, Buffer, Place, lay_out
from secateurs.run.layout import Grid, Layout, Packed, Plain, Tokens, grid_for, moves, to_packed, to_plain, tokens_for
from secateurs.run.machine import InstructionSet, native_module
from secateurs.run.nest import leaves
from secateurs.run.nodes import Activate, Activation, Add, Affine, Concat, Conv, Linear, Mean, Network, Node, Pool, Scale, Value
from secateurs.run.pack import Sparse, pack

_CODES = {"clamp": 0, "hard_swish": 1, "hard_sigmoid": 2, "silu": 3, "gelu": 4, "gelu_tanh": 5, "sigmoid": 6, "tanh": 7}
SINGLE = 4
"""Up to so many vectors, a linear layer takes them one by one."""
_GROUP = 16
"""Channels that one job of a step without weights takes."""

Task = Callable[[Any], None]


@dataclass(frozen=True)
class Choice:
    """How one layer runs: ``height`` output channels share nonzeros; ``block`` bytes of input stay in the first cache; ``chunks`` of rows.

    ``dense``: by torch instead. ``format`` and ``values``: of a linear layer that reads single vectors (see `gemv`).
    """

    height: int = 1
    block: int = 24 * 1024
    chunks: int = 0  # as many as the threads need
    dense: bool = False
    format: gemv.Format | None = None
    values: gemv.Values = "float32"


@dataclass(eq=False)
class Home:
    """Where a value lies, and how."""

    layout: Layout
    place: Place


@dataclass(eq=False)
class Segment:
    """Steps without torch in between: the values that come from outside and those that leave, as numbered buffers 1, 2, ..."""

    reads: list[Value] = field(default_factory=list)
    writes: list[Value] = field(default_factory=list)
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    outside: dict[Value, Buffer] = field(default_factory=dict)


@dataclass
class Plan:
    """What runs one after the other, and the size of the arena that all segments share."""

    items: list[Segment | Node]
    floats: int


def plan(network: Network, isa: InstructionSet, threads: int = 1, choices: Mapping[Node, Choice] | None = None) -> Plan:
    """Lay out a network for an instruction set and a number of threads."""
    planner = _Planner(network, isa, threads, choices or {})
    planner.share_concatenations()
    for node in network.nodes:
        planner.add(node)
    planner.finish()
    return Plan(planner.items, lay_out(planner.buffers))


def programs(made: Plan) -> dict[Segment, Any]:
    """The native program of each segment."""
    found = {}
    for segment in (item for item in made.items if isinstance(item, Segment)):
        found[segment] = native_module().Program()
        for _, task in segment.tasks:
            task(found[segment])
    return found


def is_image(value: Value) -> bool:
    """Whether it is (batch, channels, height, width) in float32."""
    return len(value.shape) == 4 and value.dtype == torch.float32 and min(value.shape) > 0


def as_linear(node: Node) -> Linear | None:
    """A linear layer, or a convolution of one position by 1x1."""
    if isinstance(node, Linear):
        return node
    if (
        isinstance(node, Conv)
        and node.x.shape[2:] == node.out.shape[2:] == (1, 1)
        and node.weight.shape[1:] == node.x.shape[1:]
        and node.padding == (0, 0)
    ):
        return Linear(node.name, node.x, node.out, node.weight.flatten(1), node.bias, node.residual, node.activation)
    return None


class _Planner:
    def __init__(self, network: Network, isa: InstructionSet, threads: int, choices: Mapping[Node, Choice]) -> None:
        self.network, self.isa, self.threads, self.choices = network, isa, threads, choices
        self.items: list[Segment | Node] = []
        self.buffers: list[Buffer] = []
        self.segment: Segment | None = None
        self.packed_homes: dict[tuple[Value, type], Home] = {}
        self.plain_homes: dict[Value, Home] = {}
        self.reserved: dict[Value, tuple[Place, int]] = {}
        self.tensors: set[Value] = {*network.inputs, *network.constants}
        self.time = 0

    # ------------------------------------------------------------ memory

    def buffer(self, floats: int) -> Buffer:
        """A new piece of the arena."""
        made = Buffer(floats)
        self.buffers.append(made)
        return made

    def task(self, name: str, homes: list[Home | Place | None], do: Task) -> None:
        """One step of the current segment that touches these places."""
        if self.segment is None:
            self.segment = Segment()
            self.items.append(self.segment)
        for home in homes:
            if home is not None:
                (home.place if isinstance(home, Home) else home).buffer.use(self.time)
        self.time += 1
        self.segment.tasks.append((name, do))

    def outside(self, value: Value, writes: bool) -> Home:
        """A torch tensor, as a buffer of the current segment."""
        if self.segment is None:
            self.segment = Segment()
            self.items.append(self.segment)
        segment = self.segment
        if value not in segment.outside:
            segment.outside[value] = Buffer(0, index=len(segment.outside) + 1)
            (segment.writes if writes else segment.reads).append(value)
        return Home(_plain(value), Place(segment.outside[value]))

    def packed(self, value: Value, grid: Grid | Tokens) -> Home:
        """The value in panels, brought there if it is not."""
        if (value, type(grid)) not in self.packed_homes:
            source = self.plain(value)
            self.convert(value, source, self.new_packed(value, grid))
        return self.packed_homes[value, type(grid)]

    def plain(self, value: Value) -> Home:
        """The value as torch has it, for the current segment."""
        if value in self.tensors:
            return self.outside(value, writes=False)
        if value not in self.plain_homes:
            home = Home(_plain(value), Place(self.buffer(_floats(value))))
            self.convert(value, self.in_panels(value), home)
            self.plain_homes[value] = home
        return self.plain_homes[value]

    def in_panels(self, value: Value) -> Home:
        """Any panels that hold the value."""
        return next(self.packed_homes[value, kind] for kind in (Grid, Tokens) if (value, kind) in self.packed_homes)

    def made(self, value: Value) -> Home:
        """A torch tensor that this segment makes."""
        home = self.outside(value, writes=True)
        self.tensors.add(value)
        return home

    def any(self, value: Value) -> Home:
        """The value in panels of an image if it lies in any, else plain."""
        return self.packed_homes.get((value, Grid)) or self.plain(value)

    def tensor(self, value: Value) -> None:
        """See to it that the value is a torch tensor."""
        if value in self.tensors:
            return
        source = self.plain_homes.get(value) or self.in_panels(value)
        self.convert(value, source, self.made(value))

    def new_packed(self, value: Value, grid: Grid | Tokens) -> Home:
        """A new home in panels: its own, or that within a concatenation."""
        if value in self.reserved and isinstance(grid, Grid):
            place, total = self.reserved[value]
            home = Home(Packed(grid, total), place)
        else:
            images, channels = (1, _floats(value) // grid.count) if isinstance(grid, Tokens) else value.shape[:2]
            layout = Packed(grid, channels)
            home = Home(layout, Place(self.buffer(layout.image_stride * images)))
        self.packed_homes[value, type(grid)] = home
        return home

    # ------------------------------------------------------------ between layouts

    def convert(self, value: Value, source: Home, target: Home) -> None:
        """Copy a value from one layout to another."""
        if isinstance(source.layout, Packed) and isinstance(source.layout.grid, Tokens):
            return self._tokens(value, target, source, pack=False)
        if isinstance(target.layout, Packed) and isinstance(target.layout.grid, Tokens):
            return self._tokens(value, source, target, pack=True)
        if isinstance(target.layout, Packed):
            found = to_packed(source.layout, target.layout)
        elif isinstance(source.layout, Packed):
            found = to_plain(source.layout)
        else:
            positions = target.layout.positions
            found = _straight(positions, self.isa.lanes)
        return self._move(value, found.rows, found.table, source, target)

    def _move(self, value: Value, rows: Any, table: Any, source: Home, target: Home) -> None:
        images, channels = _images(value), _channels(value)
        here, there = source.layout, target.layout

        def do(program: Any) -> None:
            program.move(
                isa=self.isa.name, moves=rows, table=table, images=images, channels=channels, group=_GROUP, x=source.place.at(),
                y=target.place.at(), x_image=here.image_stride, y_image=there.image_stride, x_stride=here.channel_stride,
                y_stride=there.channel_stride, fill=0.0,
            )  # fmt: skip

        self.task("layout", [source, target], do)

    def _tokens(self, value: Value, plain: Home, packed: Home, pack: bool) -> None:
        assert isinstance(packed.layout, Packed)
        layout, grid = packed.layout, packed.layout.grid
        assert isinstance(grid, Tokens)
        features = layout.channels
        row_panel = grid.columns * grid.lanes * features
        strides = (row_panel, layout.panel_stride) if pack else (layout.panel_stride, row_panel)
        source, target = (plain, packed) if pack else (packed, plain)

        def do(program: Any) -> None:
            program.tokens(
                isa=self.isa.name, pack=pack, positions=grid.count, channels=features, row_stride=features,
                channel_stride=layout.channel_stride, columns=grid.columns, panels=grid.panels, x_panel=strides[0],
                y_panel=strides[1], x=source.place.at(), y=target.place.at(),
            )  # fmt: skip

        self.task("layout", [source, target], do)

    # ------------------------------------------------------------ nodes

    def add(self, node: Node) -> None:
        """Plan one node, in panels where there are kernels for it and it pays, else by torch."""
        choice = self.choices.get(node, Choice())
        linear = as_linear(node)
        if choice.dense or not _is_float(node):
            self.torch(node)
        elif linear is not None and positions_of(linear) > SINGLE:
            self.linear(linear, choice)
        elif linear is not None:
            self.gemv(linear, choice)
        elif isinstance(node, Conv) and linear is None and is_image(node.x) and is_image(node.out):
            self.conv(node, choice)
        elif isinstance(node, Pool) and self.is_here(node.x):
            self.pool(node)
        elif isinstance(node, Mean) and self.is_here(node.x):
            self.mean(node)
        elif isinstance(node, Concat) and any(self.is_here(part) for part in node.parts) and all(map(is_image, node.parts)):
            self.concat(node)
        elif isinstance(node, (Add, Activate, Affine, Scale)) and self.is_here(node.x):
            self.pointwise(node)
        else:
            self.torch(node)

    def is_here(self, value: Value) -> bool:
        """Whether the value lies in panels of an image."""
        return (value, Grid) in self.packed_homes

    def torch(self, node: Node) -> None:
        """Leave a node to torch."""
        for value in reads(node):
            self.tensor(value)
        self.segment = None
        self.items.append(node)
        self.tensors.update(writes(node))

    def finish(self) -> None:
        """What the model returns are tensors."""
        for value in values_in(self.network.result):
            self.tensor(value)

    def conv(self, node: Conv, choice: Choice) -> None:
        """A convolution: its windows' panels if it needs any, then sparse weights times panels."""
        images, channels, height, width = node.x.shape
        grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
        kernel = tuple(node.weight.shape[2:])
        at_once = kernel == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0)
        if at_once:
            x = self.packed(node.x, grid)
            layout = x.layout
            assert isinstance(layout, Packed)
            strides = (layout.channel_stride, layout.image_stride)
            starts = np.arange(grid.panels) * layout.panel_stride
            taps = np.zeros(1, np.int64)
            touched = grid.columns
        else:
            source = self.any(node.x)
            seen, taps, starts, touched = _windows(grid, kernel, node.stride, node.padding, node.dilation, (height, width))
            x, strides = self.windows(node.name, source, seen, images, channels, 0.0)
        y = self.new_packed(node.out, grid)
        residual = None if node.residual is None else self.packed(node.residual, grid)
        inputs = node.weight.shape[1]
        weight = np.ascontiguousarray(node.weight.detach().numpy().reshape(node.weight.shape[0], -1), np.float32)
        group = np.arange(len(weight)) // (len(weight) // node.groups) * inputs
        channel = np.repeat(np.arange(inputs), len(taps))
        offsets = channel * strides[0] + np.tile(taps, inputs)
        channels_of_block = max(1, choice.block // (touched * self.isa.lanes * 4))
        if node.groups == 1:
            sparse = self.pack(weight, offsets[None], channel[None] // channels_of_block, grid.panels * images, choice)
        else:
            whose = group[:, None] + channel
            sparse = self.pack(
                weight, offsets + group[:, None] * strides[0], whose // channels_of_block, grid.panels * images, choice
            )
        panels = _panels(images, grid.panels, starts, strides[1], y.layout, None if residual is None else residual.layout)
        self.spmm(node, sparse, grid.columns, 1 if at_once else node.stride[1], panels, x, y, residual)

    def windows(
        self, name: str, source: Home, seen: NDArray[np.int64], images: int, channels: int, fill: float
    ) -> tuple[Home, tuple[int, int]]:
        """What the windows of a grid see, as (channel, row, column, lane); also the strides from channel to channel and image to image."""
        lanes = self.isa.lanes
        vectors = seen.shape[0] * seen.shape[1]
        found = moves(source.layout, seen.reshape(vectors, lanes), np.arange(vectors) * lanes)
        stride = (vectors + _spread(vectors, lanes)) * lanes
        scratch = Home(source.layout, Place(self.buffer(stride * channels * images)))

        def do(program: Any) -> None:
            program.move(
                isa=self.isa.name, moves=found.rows, table=found.table, images=images, channels=channels, group=_GROUP,
                x=source.place.at(), y=scratch.place.at(), x_image=source.layout.image_stride, y_image=stride * channels,
                x_stride=source.layout.channel_stride, y_stride=stride, fill=fill,
            )  # fmt: skip

        self.task(f"{name} (windows)", [source, scratch], do)
        return scratch, (stride, stride * channels)

    def linear(self, node: Linear, choice: Choice) -> None:
        """A linear layer over tokens."""
        grid = tokens_for(positions_of(node), self.isa.lanes)
        x, y = self.packed(node.x, grid), self.new_packed(node.out, grid)
        residual = None if node.residual is None else self.packed(node.residual, grid)
        assert isinstance(x.layout, Packed)
        weight = np.ascontiguousarray(node.weight.detach().numpy(), np.float32)
        channel = np.arange(weight.shape[1])
        inputs_of_block = max(1, choice.block // (grid.columns * grid.lanes * 4))
        sparse = self.pack(weight, channel[None] * x.layout.channel_stride, channel[None] // inputs_of_block, grid.panels, choice)
        panels = _panels(
            1,
            grid.panels,
            np.arange(grid.panels) * x.layout.panel_stride,
            0,
            y.layout,
            None if residual is None else residual.layout,
        )
        self.spmm(node, sparse, grid.columns, 1, panels, x, y, residual)

    def gemv(self, node: Linear, choice: Choice) -> None:
        """A linear layer over single vectors, as torch has them."""
        x = self.plain(node.x)
        residual = None if node.residual is None else self.plain(node.residual)
        y = self.made(node.out)
        form = choice.format or ("lanes" if self.isa.lanes == gemv.LANES else "columns")
        packed = gemv.pack(node.weight.detach().numpy(), form, choice.values)
        bias = (
            np.zeros(packed.shape[0], np.float32)
            if node.bias is None
            else np.ascontiguousarray(node.bias.detach().numpy(), np.float32)
        )
        done = np.concatenate([[0], np.cumsum(packed.work)])
        jobs = 1 if self.threads == 1 else max(1, min(4 * self.threads, packed.groups))
        bounds = np.searchsorted(done, np.linspace(0, done[-1], jobs + 1)).astype(np.int64)
        activation = _activation(node.activation)
        simple = residual is None and activation["activation"] == 0
        limits = {key: activation[key] if simple else _activation(None)[key] for key in ("low", "high")}

        def do(program: Any) -> None:
            program.gemv(
                isa=self.isa.name, format=packed.format, number=packed.values, rows=packed.rows, steps=packed.steps,
                nonzeros=packed.nonzeros, spans=packed.spans, counts=packed.counts, codes=packed.codes,
                data=packed.data.view(np.uint8), scale=np.zeros(0, np.float32) if packed.scale is None else packed.scale, bias=bias,
                bounds=bounds, inputs=packed.shape[1], outputs=packed.shape[0], blocks=packed.blocks, vectors=positions_of(node),
                x=x.place.at(), y=y.place.at(), **limits,
            )  # fmt: skip

        def finish(program: Any) -> None:
            program.finish(
                isa=self.isa.name, count=_floats(node.out), y=y.place.at(),
                residual=NOWHERE if residual is None else residual.place.at(), **activation,
            )  # fmt: skip

        self.task(node.name, [x, y], do)
        if not simple:
            self.task(node.name, [y, residual], finish)

    def pack(self, weight: Any, offsets: Any, blocks: Any, panels: int, choice: Choice) -> Sparse:
        """Packed weights, in as many chunks of rows as keep the threads busy."""
        height = choice.height if len(weight) % choice.height == 0 else 1
        wanted = 1 if self.threads == 1 else -(-4 * self.threads // panels)
        chunks = choice.chunks or max(1, min(wanted, len(weight) // (16 * height)))
        return pack(weight, offsets, blocks, height, chunks)

    def spmm(
        self, node: Conv | Linear, sparse: Sparse, columns: int, stride: int, panels: Any, x: Home, y: Home, residual: Home | None
    ) -> None:
        """Sparse weights times panels."""
        outputs = node.weight.shape[0]
        bias = np.zeros(outputs, np.float32) if node.bias is None else np.ascontiguousarray(node.bias.detach().numpy(), np.float32)

        def do(program: Any) -> None:
            program.spmm(
                isa=self.isa.name, height=sparse.height, columns=columns, stride=stride, rows=sparse.rows, offsets=sparse.offsets,
                values=sparse.values, blocks=sparse.blocks, chunks=sparse.chunks, bias=bias, panels=panels, x=x.place.at(),
                y=y.place.at(), residual=NOWHERE if residual is None else residual.place.at(), y_stride=y.layout.channel_stride,
                residual_stride=0 if residual is None else residual.layout.channel_stride, **_activation(node.activation),
            )  # fmt: skip

        self.task(node.name, [x, y, residual], do)

    def pool(self, node: Pool) -> None:
        """Maximum or average over windows."""
        images, channels, height, width = node.x.shape
        grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
        source = self.any(node.x)
        seen, taps, starts, _ = _windows(grid, node.window, node.stride, node.padding, node.dilation, (height, width))
        fill = float("-inf") if node.kind == "max" else 0.0
        x, strides = self.windows(node.name, source, seen, images, channels, fill)
        y = self.new_packed(node.out, grid)
        assert isinstance(y.layout, Packed)
        panels = _panels(images, grid.panels, starts, strides[1], y.layout, None)
        factors = np.zeros(0, np.float32) if node.kind == "max" else _factors(node, grid, seen)

        def do(program: Any) -> None:
            program.window(
                isa=self.isa.name, taps=taps.astype(np.int32), factors=factors, columns=grid.columns, stride=node.stride[1],
                panels=panels, panels_of_image=grid.panels, channels=channels, group=_GROUP, x=x.place.at(), y=y.place.at(),
                x_stride=strides[0], y_stride=y.layout.channel_stride,
            )  # fmt: skip

        self.task(node.name, [x, y], do)

    def mean(self, node: Mean) -> None:
        """The mean of each channel: one number, plain."""
        x = self.packed_homes[node.x, Grid]
        assert isinstance(x.layout, Packed)
        layout, images, channels = x.layout, node.x.shape[0], node.x.shape[1]
        grid = layout.grid
        weights = ((grid.positions() >= 0) / (node.x.shape[2] * node.x.shape[3])).astype(np.float32).ravel()
        y = self.made(node.out)

        def do(program: Any) -> None:
            program.mean(
                isa=self.isa.name, weights=weights, columns=grid.columns, panels=grid.panels, images=images, channels=channels,
                group=_GROUP, x=x.place.at(), y=y.place.at(), x_image=layout.image_stride, x_panel=layout.panel_stride,
                x_stride=layout.channel_stride,
            )  # fmt: skip

        self.task(node.name, [x, y], do)

    def pointwise(self, node: Add | Activate | Affine | Scale) -> None:
        """What is done to each number alone."""
        x = self.packed_homes[node.x, Grid]
        assert isinstance(x.layout, Packed) and isinstance(x.layout.grid, Grid)
        z = self.packed(node.y, x.layout.grid) if isinstance(node, Add) else None
        factors = self.plain(node.factors) if isinstance(node, Scale) else None
        scale, shift = (node.scale, node.shift) if isinstance(node, Affine) else (torch.zeros(0), torch.zeros(0))
        activation = None if isinstance(node, Scale) else node.activation
        self.each(node.name, node.x, x, self.new_packed(node.out, x.layout.grid), z, factors, scale, shift, activation)

    def each(
        self, name: str, value: Value, x: Home, y: Home, z: Home | None = None, factors: Home | None = None, scale: Any = None,
        shift: Any = None, activation: Activation | None = None,
    ) -> None:  # fmt: skip
        """y = activation(x * scale + shift + z) for each channel."""
        layouts = [home.layout for home in (x, y, z or y)]
        grid = layouts[0].grid  # type: ignore[union-attr]
        numbers = [np.zeros(0, np.float32) if each is None else each.detach().numpy().astype(np.float32) for each in (scale, shift)]

        def do(program: Any) -> None:
            program.pointwise(
                isa=self.isa.name, scale=numbers[0], shift=numbers[1], panels=grid.panels * _images(value),
                panels_of_image=grid.panels, channels=_channels(value), group=_GROUP, count=grid.columns * grid.lanes,
                x=x.place.at(), y=y.place.at(), z=NOWHERE if z is None else z.place.at(),
                factors=NOWHERE if factors is None else factors.place.at(),
                of_panel=tuple(each.panel_stride for each in layouts),  # type: ignore[union-attr]
                of_channel=tuple(each.channel_stride for each in layouts), **_activation(activation),
            )  # fmt: skip

        self.task(name, [x, y, z, factors], do)

    # ------------------------------------------------------------ concatenation

    def share_concatenations(self) -> None:
        """Give the parts of concatenations their places within the whole, so that nothing needs to be copied.

        The last ones first: where each layer appends to what came before (DenseNet), all share the memory of the largest.
        """
        for node in reversed(self.network.nodes):
            if not isinstance(node, Concat) or not all(map(is_image, node.parts)):
                continue
            if self._joined(node) is not None:
                continue
            if node.out not in self.reserved:
                grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
                layout = Packed(grid, node.out.shape[1])
                self.reserved[node.out] = Place(self.buffer(layout.image_stride * node.out.shape[0])), node.out.shape[1]
            place, total = self.reserved[node.out]
            grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
            stride = Packed(grid, total).channel_stride
            before = 0
            for part in node.parts:
                self.reserved.setdefault(part, (Place(place.buffer, place.offset + before * stride), total))
                before += part.shape[1]

    def _joined(self, node: Concat) -> tuple[Place, int] | None:
        """Where the parts already lie one after the other, if they do."""
        grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
        if any(part not in self.reserved for part in node.parts):
            return None
        first, total = self.reserved[node.parts[0]]
        before = 0
        for part in node.parts:
            place, its_total = self.reserved[part]
            offset = first.offset + before * Packed(grid, total).channel_stride
            if place.buffer is not first.buffer or its_total != total or place.offset != offset:
                return None
            before += part.shape[1]
        return (first, total) if self.reserved.get(node.out, (first, total)) == (first, total) else None

    def concat(self, node: Concat) -> None:
        """A concatenation along channels: parts that do not lie in their place yet are copied there."""
        grid = grid_for(node.out.shape[2], node.out.shape[3], self.isa.lanes)
        joined = self._joined(node)
        if joined is not None:
            self.reserved[node.out] = joined
        whole = self.new_packed(node.out, grid)
        before = 0
        for part in node.parts:
            home = self.packed(part, grid)
            place = Place(whole.place.buffer, whole.place.offset + before * whole.layout.channel_stride)
            if home.place != place:
                self.each(node.name, part, home, Home(whole.layout, place))
            else:
                whole.place.buffer.use(self.time)
            before += part.shape[1]


# ---------------------------------------------------------------- shapes


def _images(value: Value) -> int:
    return value.shape[0] if len(value.shape) == 4 else 1


def _channels(value: Value) -> int:
    return value.shape[1] if len(value.shape) == 4 else value.shape[-1]


def positions_of(node: Conv | Linear) -> int:
    """Positions (pixels, tokens, samples) that a layer's weights are applied to."""
    return _floats(node.out) // node.weight.shape[0]


def _floats(value: Value) -> int:
    return int(np.prod(value.shape, dtype=np.int64))


def _plain(value: Value) -> Plain:
    if len(value.shape) == 4:
        return Plain(value.shape[2] * value.shape[3], value.shape[1])
    return Plain(1, _floats(value))


def _is_float(node: Node) -> bool:
    return all(value.dtype == torch.float32 for value in (*reads(node), *writes(node)))


def reads(node: Node) -> list[Value]:
    """The values that a node needs."""
    if isinstance(node, Concat):
        return list(node.parts)
    named = [getattr(node, name, None) for name in ("x", "y", "residual", "factors")]
    found = [value for value in named if isinstance(value, Value)]
    return found + list(values_in((getattr(node, "args", ()), getattr(node, "kwargs", {}))))


def writes(node: Node) -> list[Value]:
    """The values that a node makes."""
    return [node.out] if hasattr(node, "out") else list(node.outputs)  # type: ignore[union-attr]


def values_in(nest: Any) -> list[Value]:
    """Every value in nested sequences, mappings and dataclasses."""
    return [leaf for _, leaf in leaves(nest) if isinstance(leaf, Value)]


def _windows(
    grid: Grid, kernel: Any, stride: Any, padding: Any, dilation: Any, image: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """What windows see, the offset of each tap, where each panel begins, and vectors that one panel touches in a channel."""
    size = tuple((kernel[i] - 1) * dilation[i] + 1 for i in (0, 1))
    seen = grid.window(padding, size, stride, image)
    pitch = seen.shape[1]
    down, across = np.meshgrid(np.arange(kernel[0]) * dilation[0], np.arange(kernel[1]) * dilation[1], indexing="ij")
    taps = (down * pitch + across).ravel() * grid.lanes
    row, column = np.divmod(np.arange(grid.panels) * grid.columns, grid.tile_width)
    starts = (row * stride[0] * pitch + column * stride[1]) * grid.lanes
    return seen, taps, starts, kernel[0] * ((grid.columns - 1) * stride[1] + size[1])


def _spread(vectors: int, lanes: int) -> int:
    """Vectors to leave free after each channel, so that channels do not meet in the same sets of the first cache."""
    lines = max(1, lanes // 16) if lanes >= 16 else 1
    per_page = 4096 // (lanes * 4)
    free = 0
    while (vectors + free) % per_page in (0, *(per_page // part for part in (2, 4, 8))):
        free += lines
    return free


def _panels(
    images: int, count: int, starts: NDArray[np.int64], x_image: int, y: Layout, residual: Layout | None
) -> NDArray[np.int64]:
    """(panels of all images, 3): where x, y and the residual begin."""
    image = np.arange(images)[:, None]
    panel = np.arange(count)

    def of(layout: Layout | None) -> NDArray[np.int64]:
        return image * 0 + panel * 0 if layout is None else image * layout.image_stride + panel * layout.panel_stride  # type: ignore[union-attr]

    return np.ascontiguousarray(np.stack([image * x_image + starts, of(y), of(residual)], -1).reshape(-1, 3), np.int64)


def _factors(node: Pool, grid: Grid, seen: NDArray[np.int64]) -> NDArray[np.float32]:
    """One over the numbers that each average is of."""
    if node.divisor or node.counts_padding:
        return np.full(grid.vectors * grid.lanes, 1 / (node.divisor or node.window[0] * node.window[1]), np.float32)
    y, x = np.meshgrid(np.arange(grid.tile_height), np.arange(grid.tile_width), indexing="ij")
    count = np.zeros((grid.tile_height, grid.tile_width, grid.lanes))
    for down in range(node.window[0]):
        for across in range(node.window[1]):
            count += seen[y * node.stride[0] + down * node.dilation[0], x * node.stride[1] + across * node.dilation[1]] >= 0
    return (1 / np.maximum(count, 1)).astype(np.float32).ravel()


def _straight(positions: int, lanes: int) -> Any:
    source = Plain(positions, 1)
    to = np.arange(0, positions, lanes)
    wanted = to[:, None] + np.arange(lanes)
    return moves(source, np.where(wanted < positions, wanted, -1), to, np.minimum(lanes, positions - to))


def _activation(activation: Activation | None) -> dict[str, Any]:
    if activation is None:
        return {"activation": 0, "low": float("-inf"), "high": float("inf")}
    return {"activation": _CODES[activation.kind], "low": activation.low, "high": activation.high}
