"""Where values lie while a plan is made: in torch's tensors, in panels of the arena, or both; and the steps from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from secateurs.nested import Value
from secateurs.run.kernels.machine import InstructionSet, narrower
from secateurs.run.network.nodes import Node
from secateurs.run.planning import steps
from secateurs.run.planning.buffers import Buffer, Home, Place
from secateurs.run.planning.layout import Grid, Packed, Plain, Tokens, read_tiles, straight, written_tiles

Task = Callable[[Any], None]
"""Adds one step to a native program, once it is known where everything lies."""


@dataclass(eq=False)
class Segment:
    """Steps without torch in between: the values that come from outside and those that leave, each in a buffer of its own."""

    reads: list[Value] = field(default_factory=list)
    writes: list[Value] = field(default_factory=list)
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    outside: dict[Value, Buffer] = field(default_factory=dict)


class Homes:
    """The plan in the making: segments so far, the memory that they use, and where each value can be found.

    ``reserved`` are places within concatenations, with the channels of the whole: who makes such a value makes it there. ``leaving`` are
    values that nothing wants in panels.
    """

    def __init__(self, isa: InstructionSet, threads: int, tensors: set[Value], leaving: set[Value]) -> None:
        self.isa, self.threads, self.leaving = isa, threads, leaving
        self.items: list[Segment | Node] = []
        self.buffers: list[Buffer] = []
        self.reserved: dict[Value, tuple[Place, int]] = {}
        self._tensors = tensors
        self._panels: dict[tuple[Value, type], Home] = {}
        self._plain: dict[Value, Home] = {}
        self._segment: Segment | None = None
        self._time = 0

    # ------------------------------------------------------------ memory and time

    def buffer(self, floats: int) -> Buffer:
        """A new piece of the arena."""
        made = Buffer(floats)
        self.buffers.append(made)
        return made

    def task(self, name: str, touched: list[Home | None], do: Task) -> None:
        """One more step, which touches these places."""
        for home in touched:
            if home is not None:
                home.place.buffer.use(self._time)
        self._time += 1
        self._open().tasks.append((name, do))

    def alive(self, home: Home) -> None:
        """The place is in use at this time, though no step touches it."""
        home.place.buffer.use(self._time)

    def torch(self, node: Node, reads: list[Value], writes: list[Value]) -> None:
        """Leave a node to torch."""
        for value in reads:
            self.tensor(value)
        self._segment = None
        self.items.append(node)
        self._tensors.update(writes)

    def _open(self) -> Segment:
        if self._segment is None:
            self._segment = Segment()
            self.items.append(self._segment)
        return self._segment

    def _outside(self, value: Value, writes: bool) -> Home:
        segment = self._open()
        if value not in segment.outside:
            segment.outside[value] = Buffer(0)
            (segment.writes if writes else segment.reads).append(value)
        return Home(plain_layout(value), Place(segment.outside[value]))

    # ------------------------------------------------------------ finding values

    def is_image(self, value: Value) -> bool:
        """Whether the value lies in panels of an image."""
        return (value, Grid) in self._panels

    def image(self, value: Value) -> Home:
        """The value in panels of an image, where it is known to lie so."""
        return self._panels[value, Grid]

    def packed(self, value: Value, grid: Grid | Tokens) -> Home:
        """The value in panels, brought there if it is not."""
        if (value, type(grid)) not in self._panels:
            source = self.plain(value)
            self.convert(source, self.new_packed(value, grid), images_of(value), channels_of(value))
        return self._panels[value, type(grid)]

    def plain(self, value: Value) -> Home:
        """The value as torch has it."""
        if value in self._tensors:
            return self._outside(value, writes=False)
        if value not in self._plain:
            home = Home(plain_layout(value), Place(self.buffer(count(value))))
            self.convert(self._in_panels(value), home, images_of(value), channels_of(value))
            self._plain[value] = home
        return self._plain[value]

    def is_packed(self, value: Value) -> bool:
        """Whether the value lies in panels of tokens."""
        return (value, Tokens) in self._panels

    def is_row(self, value: Value) -> bool:
        """Whether a kernel has made the value as torch would have it, in the arena."""
        return value in self._plain

    def any(self, value: Value) -> Home:
        """The value in panels of an image if it lies in any, else as torch has it."""
        return self._panels.get((value, Grid)) or self.plain(value)

    def tensor(self, value: Value) -> None:
        """See to it that the value is a tensor of torch."""
        if value not in self._tensors:
            source = self._plain.get(value) or self._in_panels(value)
            self.convert(source, self.new_tensor(value), images_of(value), channels_of(value))

    def _in_panels(self, value: Value) -> Home:
        return next(self._panels[value, kind] for kind in (Grid, Tokens) if (value, kind) in self._panels)

    # ------------------------------------------------------------ making values

    def new_tensor(self, value: Value) -> Home:
        """A tensor of torch for a value that the segment makes."""
        home = self._outside(value, writes=True)
        self._tensors.add(value)
        return home

    def new_rows(self, value: Value) -> Home:
        """What torch would have, for a value that the segment makes: in the arena, or, where nothing else wants it, as a tensor."""
        if value in self.leaving:
            return self.new_tensor(value)
        self._plain[value] = Home(plain_layout(value), Place(self.buffer(count(value))))
        return self._plain[value]

    def new_packed(self, value: Value, grid: Grid | Tokens) -> Home:
        """Panels for a value that the segment makes: its own, or its part of a concatenation."""
        if value in self.reserved and isinstance(grid, Grid):
            place, total = self.reserved[value]
            home = Home(Packed(grid, total), place)
        else:
            images, channels = (1, count(value) // grid.count) if isinstance(grid, Tokens) else value.shape[:2]
            layout = Packed(grid, channels)
            home = Home(layout, Place(self.buffer(layout.image_stride * images)))
        self._panels[value, type(grid)] = home
        return home

    def new_sums(self, grid: Grid | Tokens, channels: int) -> Home:
        """One panel for each thread, for sums on their way to somewhere else."""
        layout = Packed(Tokens(grid.columns * grid.lanes, grid.lanes, grid.columns), channels)
        return Home(layout, Place(self.buffer(layout.image_stride * self.threads)))

    def new_plain(self, floats: int) -> Home:
        """Numbers in the arena, one after the other, that no value stands for."""
        return Home(Plain(1, floats), Place(self.buffer(floats)))

    def convert(self, source: Home, target: Home, images: int, channels: int) -> None:
        """Copy from one layout to another."""
        here, there = source.layout, target.layout
        for layout in (here, there):
            if isinstance(layout, Packed) and isinstance(layout.grid, Tokens):
                isa = narrower(self.isa, layout.grid.count)
                return self.task("layout", [source, target], steps.tokens(isa, source, target, layout, packs=layout is there))
        if isinstance(here, Plain) and isinstance(there, Plain):
            strides = (there.image_stride, there.channel_stride)
            moved = straight(there.positions, self.isa.lanes)
            return self.task(
                "layout", [source, target], steps.move(self.isa, moved, source, target.place, strides, images, channels)
            )
        packs = isinstance(there, Packed)
        image, vectors = (source, target) if packs else (target, source)
        grid = vectors.packed.grid
        assert isinstance(grid, Grid) and isinstance(image.layout, Plain)
        held, at = grid.positions().reshape(grid.tile_height, grid.tile_width, grid.lanes), vectors.packed.vectors()
        found = read_tiles(held, at, grid.across, 0, image.layout.positions) if packs else written_tiles(held, at)
        strides = (vectors.layout.image_stride, vectors.layout.channel_stride)
        return self.task(
            "layout", [source, target], steps.tiles(self.isa, found, image, vectors.place, strides, images, channels, packs)
        )


def count(value: Value) -> int:
    """Numbers in a value."""
    return int(np.prod(value.shape, dtype=np.int64))


def images_of(value: Value) -> int:
    """Images of a value that is four-dimensional, else 1."""
    return value.shape[0] if len(value.shape) == 4 else 1


def channels_of(value: Value) -> int:
    """Channels of a value that is four-dimensional; of others, every number counts as one."""
    return value.shape[1] if len(value.shape) == 4 else count(value)


def plain_layout(value: Value) -> Plain:
    """How torch has a value."""
    return Plain(value.shape[2] * value.shape[3] if len(value.shape) == 4 else 1, channels_of(value))


def is_image(value: Value) -> bool:
    """Whether it is (batch, channels, height, width) in float32, with something in it."""
    return len(value.shape) == 4 and value.dtype == torch.float32 and min(value.shape) > 0
