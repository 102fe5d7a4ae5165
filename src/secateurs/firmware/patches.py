"""The first layers of a network patch by patch, so that their large arrays never exist whole (MCUNetV2, arXiv 2110.15352).

A stage is a chain of layers that begins with an input of the network. Its last array is cut into a grid; for each patch of it, each layer
computes as much of its own array as the patch needs, in small buffers that the patches share. Neighbours overlap, and what lies in both
is computed twice: these are the extra multiplications. The stage's input is there whole, and each patch writes its piece right into
the stage's last array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateurs.firmware.arena import Arena, Step, lay_out, step_of
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.products import Place
from secateurs.integers.layers import Conv, Layer, Network, Pad, Pool, Table, read

Local = Conv | Pool | Table | Pad
"""Layers whose numbers depend on those near them, and on nothing else."""
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""Into how many rows and columns a stage is tried to be cut."""


@dataclass(frozen=True)
class Part:
    """What one layer does for one patch: a part of its work, on parts of its arrays.

    ``place`` is what the kernels are told. ``start`` and ``begin`` are the numbers before the first of the part that is read and of the
    part that is written, in the arrays where they lie: the stage's input and its last array, which are whole, or buffers, which begin
    with the part.
    """

    layer: Local
    place: Place
    start: int
    begin: int


@dataclass(frozen=True)
class _Reach:
    """Along one axis: the part of a layer's array that is needed, the part of what it reads that this takes, and the padding before."""

    out: tuple[int, int]
    take: tuple[int, int]
    before: int

    @property
    def made(self) -> int:
        return self.out[1] - self.out[0]

    @property
    def taken(self) -> int:
        return self.take[1] - self.take[0]


@dataclass(frozen=True, eq=False)
class Stage:
    """A chain of layers that runs patch by patch: its last array is cut into ``rows`` × ``columns`` patches.

    ``down`` and ``across`` tell what each layer does for each row and each column of patches.
    """

    layers: tuple[Local, ...]
    rows: int
    columns: int
    down: tuple[tuple[_Reach, ...], ...]
    across: tuple[tuple[_Reach, ...], ...]

    @property
    def parts(self) -> tuple[tuple[Part, ...], ...]:
        """Patch by patch, row by row, what each layer does for it."""
        return tuple(
            tuple(self._part(number, *reaches) for number, reaches in enumerate(zip(down, across, strict=True)))
            for down in self.down
            for across in self.across
        )

    @cached_property
    def buffers(self) -> dict[str, int]:
        """The bytes that each array within the stage takes, for the largest of the patches."""
        return {
            layer.y.name: max(row[number].made for row in self.down)
            * max(column[number].made for column in self.across)
            * layer.y.shape[2]
            * np.dtype(layer.y.kind).itemsize
            for number, layer in enumerate(self.layers[:-1])
        }

    @cached_property
    def extra_macs(self) -> int:
        """The multiplications that are done more than once."""
        return sum(
            layer.weight.size * sum(row[number].made for row in self.down) * sum(column[number].made for column in self.across)
            - layer.macs
            for number, layer in enumerate(self.layers)
            if isinstance(layer, Conv)
        )

    def arena(self, calls: Sequence[Call] = ()) -> Arena:
        """Where the buffers lie in the memory that the stage needs beside its first and its last array."""
        steps = [step_of(layer, calls) for layer in self.layers]
        first, last = self.layers[0].x.name, self.layers[-1].y.name
        return lay_out(steps, {first: 0, **self.buffers, last: 0}, [first], [last])

    def step(self, calls: Sequence[Call] = ()) -> Step:
        """The stage as one step of the network."""
        first, last = self.layers[0], self.layers[-1]
        return Step(f"{first.name} … {last.name}", (first.x.name,), (last.y.name,), self.arena(calls).bytes)

    def _part(self, number: int, down: _Reach, across: _Reach) -> Part:
        layer = self.layers[number]
        (_, in_w, inputs), (_, out_w, outputs) = layer.x.shape, layer.y.shape
        first, last = number == 0, number == len(self.layers) - 1
        in_row = (in_w if first else across.taken) * inputs
        out_row = (out_w if last else across.made) * outputs
        place = Place(down.taken, across.taken, in_row, down.made, across.made, out_row, down.before, across.before)
        start = down.take[0] * in_row + across.take[0] * inputs if first else 0
        begin = down.out[0] * out_row + across.out[0] * outputs if last else 0
        return Part(layer, place, start, begin)


@dataclass(frozen=True, eq=False)
class Patched:
    """A network's memory where its first layers run patch by patch, or (without a ``stage``) none do. ``steps`` are those of ``arena``."""

    stage: Stage | None
    steps: tuple[Step, ...]
    arena: Arena

    @property
    def extra_macs(self) -> int:
        """The multiplications that are done more than once."""
        return 0 if self.stage is None else self.stage.extra_macs


def staged(layers: Sequence[Local], rows: int, columns: int) -> Stage:
    """Some layers, each of which reads what the one before writes, patch by patch.

    Raises `FirmwareError` where there are fewer rows or columns than patches, or a patch would read nothing but padding.

    >>> from secateurs.integers.layers import Array
    >>> x, a, y = (Array(name, (8, 8, 2), "int8") for name in "xay")
    >>> conv = Conv("conv", x, a, np.zeros((2, 3, 3, 2), np.int8), np.zeros(2, np.int32), padding=(1, 1, 1, 1))
    >>> stage = staged([conv, Conv("next", a, y, conv.weight, conv.bias, padding=(1, 1, 1, 1))], 2, 2)
    >>> stage.buffers, stage.extra_macs, stage.parts[0][0].place
    ({'a': 50}, 1296, Place(in_h=6, in_w=6, in_row=16, out_h=5, out_w=5, out_row=10, top=1, left=1))
    """
    down, across = (_reaches(layers, axis, count) for axis, count in enumerate((rows, columns)))
    return Stage(tuple(layers), rows, columns, down, across)


def _reaches(layers: Sequence[Local], axis: int, count: int) -> tuple[tuple[_Reach, ...], ...]:
    """Along one axis, for each of so many equal parts of the last array: what each layer does."""
    size, name = layers[-1].y.shape[axis], ("rows", "columns")[axis]
    if not 1 <= count <= size:
        raise FirmwareError(f"{layers[-1].name}: {name}={count}, but what it writes has {size}; cut it into 1 to {size}")
    found = []
    for part in range(count):
        wanted, reaches = (size * part // count, size * (part + 1) // count), list[_Reach]()
        for layer in reversed(layers):
            reaches.append(_reach(layer, axis, wanted))
            wanted = reaches[-1].take
        found.append(tuple(reversed(reaches)))
    return tuple(found)


def _reach(layer: Local, axis: int, wanted: tuple[int, int]) -> _Reach:
    """What a layer reads for a part of its array."""
    kernel, stride, dilation, before = _window(layer, axis)
    size = layer.x.shape[axis]
    start, end = wanted[0] * stride - before, (wanted[1] - 1) * stride - before + (kernel - 1) * dilation + 1
    first, last = max(0, start), min(size, end)
    if first >= last:
        raise FirmwareError(f"{layer.name}: a patch would read nothing but padding; cut into fewer {('rows', 'columns')[axis]}")
    return _Reach(wanted, (first, last), first - start)


def _window(layer: Local, axis: int) -> tuple[int, int, int, int]:
    """Kernel, stride, dilation, and the padding before, along one axis."""
    if isinstance(layer, Table):
        return 1, 1, 1, 0
    before = layer.padding[2 * axis]
    if isinstance(layer, Pad):
        return 1, 1, 1, before
    kernel = layer.kernel if isinstance(layer, Conv) else layer.window
    return kernel[axis], layer.stride[axis], layer.dilation[axis], before


def chains(network: Network) -> list[tuple[Local, ...]]:
    """From each layer that reads an input of the network on: the layers that can run patch by patch after it, if any."""
    readers: dict[str, list[Layer]] = {name: [] for name in network.arrays}
    for layer in network.layers:
        for name in {array.name for array in read(layer)}:
            readers[name].append(layer)
    outputs = {face.array.name for face in network.outputs}
    found = []
    for layer in (layer for face in network.inputs for layer in readers[face.array.name]):
        chain, here = list[Local](), [layer]
        while len(here) == 1 and isinstance(here[0], Local):
            chain.append(here[0])
            here = [] if here[0].y.name in outputs else readers[here[0].y.name]
        if chain:
            found.append(tuple(chain))
    return found


def trade_offs(network: Network, calls: Sequence[Call] = (), most: int = 64) -> list[Patched]:
    """Plans of memory for a network, from the one without patches to the one with the smallest arena: each takes fewer bytes than the
    one before, and no way that was tried takes as few with fewer multiplications. ``most`` is the largest number of patches.
    """
    best = _planned(network, None, calls)
    found, planned = [best], dict[tuple[int, str, int], Patched]()
    for stage in sorted(_stages(network, most), key=lambda stage: stage.extra_macs):
        own = stage.arena(calls).bytes
        if own + stage.layers[0].x.bytes + stage.layers[-1].y.bytes >= best.arena.bytes:
            continue
        key = len(stage.layers), stage.layers[0].name, own
        if key not in planned:
            planned[key] = _planned(network, stage, calls)
        if planned[key].arena.bytes < best.arena.bytes:
            best = planned[key]
            found += [best]
    return found


def fitted(network: Network, limit: int, calls: Sequence[Call] = (), most: int = 64) -> Patched:
    """The plan with the fewest extra multiplications whose arena has at most ``limit`` bytes.

    Raises `FirmwareError` where none fits, and says how many bytes the smallest takes.
    """
    whole = _planned(network, None, calls)
    if whole.arena.bytes <= limit:
        return whole
    found = trade_offs(network, calls, most)
    for each in found:
        if each.arena.bytes <= limit:
            return each
    large = max(network.arrays.values(), key=lambda array: array.bytes)
    smallest = found[-1]
    how = "" if smallest.stage is None else f", with {smallest.stage.rows} × {smallest.stage.columns} patches"
    raise FirmwareError(
        f"the arena of {whole.arena.bytes:,} bytes does not fit the {limit:,} of the SRAM that are left for it; the smallest that was "
        f"found takes {smallest.arena.bytes:,}{how}. The largest array is {large.name!r} with {large.bytes:,} bytes, of shape "
        f"{' × '.join(map(str, large.shape))}: prune its channels, make the input smaller, or allow more SRAM"
    )


def _stages(network: Network, most: int) -> Iterator[Stage]:
    """All stages of two layers or more, in all grids that are tried."""
    for chain in chains(network):
        for length in range(2, len(chain) + 1):
            layers = chain[:length]
            cuts = [_cuts(layers, axis) for axis in (0, 1)]
            for rows, down in cuts[0].items():
                for columns, across in cuts[1].items():
                    if 1 < rows * columns <= most:
                        yield Stage(layers, rows, columns, down, across)


def _cuts(layers: Sequence[Local], axis: int) -> dict[int, tuple[tuple[_Reach, ...], ...]]:
    """Along one axis, what layers do for the parts of each number of parts that can be."""
    found = {}
    size = layers[-1].y.shape[axis]
    for count in sorted({*(count for count in COUNTS if count < size), size}):
        try:
            found[count] = _reaches(layers, axis, count)
        except FirmwareError:  # patches so small that one reads only padding
            continue
    return found


def _planned(network: Network, stage: Stage | None, calls: Sequence[Call]) -> Patched:
    """The arena of a network where some of its layers are one step."""
    inside = set() if stage is None else {layer.name for layer in stage.layers}
    rest = [step_of(layer, calls) for layer in network.layers if layer.name not in inside]
    steps = tuple(rest if stage is None else [stage.step(calls), *rest])
    hidden = set() if stage is None else stage.buffers.keys()
    sizes = {name: array.bytes for name, array in network.arrays.items() if name not in hidden}
    inputs, outputs = ([face.array.name for face in faces] for faces in (network.inputs, network.outputs))
    return Patched(stage, steps, lay_out(steps, sizes, inputs, outputs))
