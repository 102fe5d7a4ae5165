"""One arena for all arrays of a network: in which order its layers run, and where each array lies, so that the fewest bytes are enough.

An array is needed from the step that writes it to the last that reads it. The order is searched for first (`order`), then the offsets
(`packing`); where the arena is larger than what is alive at once, other orders and other choices of what is overwritten in place are
tried, all of them in small networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from math import ceil, prod

from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.order import Graph, Order, best_order, orders_below, peak
from secateurs.firmware.packing import Box, pack
from secateurs.integers.layers import Layer, Network, View, read, written

MOVES, CHOICES = 4000, 64  # steps that are tried in other orders; ways to overwrite or not


@dataclass(frozen=True)
class Step:
    """A layer as the planner sees it: the names of the arrays that it reads and writes, and the bytes that it needs while it runs.

    ``in_place`` names arrays that it reads and may overwrite with the first that it writes, if that has no more bytes, and nothing reads
    them later. A ``view`` moves nothing: what it writes is what it reads first.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    scratch: int = 0
    in_place: tuple[str, ...] = ()
    view: bool = False


@dataclass(frozen=True)
class Slot:
    """Where something lies in the arena, from the first to the last moment that it is needed: numbers of steps in the order they run."""

    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """A plan of memory: ``order`` holds the numbers of the steps as given; ``places`` tells of each array where it lies, ``scratch`` of
    each step that needs some. ``bytes`` is the size, and no plan's is below ``bound``."""

    order: tuple[int, ...]
    places: Mapping[str, Slot]
    scratch: Mapping[str, Slot]
    bytes: int
    bound: int

    def alive(self, moment: int) -> int:
        """The bytes that are needed while the step runs that is this many-th in order; what shares its place counts once."""
        there = [place for place in (*self.places.values(), *self.scratch.values()) if place.first <= moment <= place.last]
        return sum({place.offset: place.bytes for place in there if place.bytes}.values())


def lay_out(
    steps: Sequence[Step],
    sizes: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    alignment: int = 4,
    reorder: bool = True,
) -> Arena:
    """The smallest arena that is found for some steps, and the order in which they run in it.

    ``sizes``: of each array, in bytes. ``inputs`` lie there from the start until they are read last, ``outputs`` to the end. Offsets are
    multiples of ``alignment`` bytes. ``reorder=False`` keeps the steps in the order in which they are given. The same question has the
    same answer, always. Raises `FirmwareError` where a step reads what nothing has written, or an array is written twice.

    >>> chain = [Step("conv", ("x",), ("a",)), Step("relu", ("a",), ("b",), in_place=("a",)), Step("pool", ("b",), ("y",))]
    >>> arena = lay_out(chain, {"x": 100, "a": 400, "b": 400, "y": 10}, ["x"], ["y"])
    >>> arena.bytes, arena.places["a"].offset == arena.places["b"].offset, arena.places["y"]
    (500, True, Slot(offset=400, bytes=10, first=2, last=2))
    """
    if alignment < 1 or alignment & (alignment - 1):
        raise FirmwareError(f"lay_out: alignment={alignment}, but must be a power of two, for example 4")
    pieces = _pieces(steps, sizes, inputs, outputs)
    graph = _graph(steps, pieces, sizes, inputs, outputs, alignment)
    given = tuple(range(len(steps)))
    order, bound = best_order(graph) if reorder else (given, peak(graph, given))
    best = _placed(graph, order, bound)
    if best.bytes > bound and reorder:
        best = _other_orders(graph, best, bound)
    return _named(best, steps, pieces, sizes, bound)


def _other_orders(graph: Graph, best: _Placed, bound: int) -> _Placed:
    """What is found in other orders that have fewer bytes alive than the arena has."""
    left = MOVES // len(graph.before)
    for other in orders_below(graph, best.bytes, MOVES):
        if peak(graph, other) < best.bytes:
            left -= len(graph.before)
            best = min(best, _placed(graph, other, bound), key=lambda each: each.bytes)
        if best.bytes <= bound or left < 0:
            break
    return best


def step_of(layer: Layer, calls: Sequence[Call] = ()) -> Step:
    """The step of a layer: with what it needs and may overwrite, where one of some calls is that of this layer."""
    reads, writes = (tuple(array.name for array in each(layer)) for each in (read, written))
    call = next((call for call in calls if call.layer.name == layer.name), None)
    scratch = 0 if call is None else call.scratch
    in_place = () if call is None or call.in_place is None else (getattr(layer, call.in_place).name,)
    return Step(layer.name, reads, writes, scratch, in_place, isinstance(layer, View))


def arena_of(network: Network, calls: Sequence[Call] = (), alignment: int = 4) -> Arena:
    """The arena of a network, with what its layers need beside their arrays where they are C already."""
    steps = [step_of(layer, calls) for layer in network.layers]
    sizes = {name: array.bytes for name, array in network.arrays.items()}
    inputs, outputs = ([face.array.name for face in faces] for faces in (network.inputs, network.outputs))
    return lay_out(steps, sizes, inputs, outputs, alignment)


def _pieces(steps: Sequence[Step], sizes: Mapping[str, int], inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, int]:
    """Each array's piece of memory, by number: that of what it views, else one of its own."""
    pieces: dict[str, int] = {}
    for name in inputs:
        if name in pieces:
            raise FirmwareError(f"lay_out: {name!r} is an input twice; give it once")
        pieces[name] = len(pieces)
    count = len(pieces)
    for step in steps:
        for name in (*step.reads, *step.in_place):
            if name not in pieces:
                raise FirmwareError(
                    f"{step.name}: reads {name!r}, which is no input and is written by none of the steps before; give the steps in an "
                    "order in which they can run"
                )
        for name in step.writes:
            if name in pieces:
                raise FirmwareError(f"{step.name}: writes {name!r}, which is there already; each array is written once")
            pieces[name] = pieces[step.reads[0]] if step.view else count
            count += not step.view
        _check(step, sizes)
    names = [step.name for step in steps]
    if len(set(names)) < len(names):
        raise FirmwareError(f"lay_out: two steps are called {max(names, key=names.count)!r}; give each a name of its own")
    for name in outputs:
        if name not in pieces:
            raise FirmwareError(f"lay_out: the output {name!r} is no input and is written by no step")
    missing = [name for name in pieces if sizes.get(name, -1) < 0]
    if missing:
        raise FirmwareError(f"lay_out: sizes={sizes.get(missing[0])} of {missing[0]!r}, but its bytes must be told")
    return pieces


def _check(step: Step, sizes: Mapping[str, int]) -> None:
    stray = set(step.in_place) - set(step.reads)
    if stray:
        raise FirmwareError(f"{step.name}: in_place={min(stray)!r}, but it reads {', '.join(step.reads) or 'nothing'}")
    if step.scratch < 0:
        raise FirmwareError(f"{step.name}: scratch={step.scratch}, but must be bytes, 0 or more")
    if step.view and any(sizes.get(name) != sizes.get(step.reads[0]) for name in step.writes):
        raise FirmwareError(f"{step.name}: a view has as many bytes as what it views, {sizes.get(step.reads[0])}")


def _graph(
    steps: Sequence[Step],
    pieces: Mapping[str, int],
    sizes: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    alignment: int,
) -> Graph:
    count = max(pieces.values(), default=-1) + 1
    writer, readers, bytes_of, stays = dict[str, int](), [0] * count, [0] * count, [False] * count
    for name, piece in pieces.items():
        bytes_of[piece] = ceil(sizes[name] / alignment) * alignment
    for number, step in enumerate(steps):
        writer.update(dict.fromkeys(step.writes, number))
        for name in step.reads:
            readers[pieces[name]] |= 1 << number
    for name in outputs:
        stays[pieces[name]] = True
    for name in inputs:  # one that nobody reads is never given up either
        stays[pieces[name]] |= not readers[pieces[name]]
    before = tuple(sum(1 << each for each in {writer[name] for name in step.reads if name in writer}) for step in steps)
    reads = tuple(tuple(dict.fromkeys(pieces[name] for name in step.reads)) for step in steps)
    makes = tuple(() if step.view else tuple(pieces[name] for name in step.writes) for step in steps)
    takes = tuple(_takes(step, pieces, sizes) for step in steps)
    own = tuple(ceil(step.scratch / alignment) * alignment for step in steps)
    given = tuple(pieces[name] for name in inputs)
    return Graph(before, reads, makes, own, takes, tuple(bytes_of), tuple(readers), tuple(stays), given)


def _takes(step: Step, pieces: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The pieces that a step may overwrite: no smaller than what it makes first, and read under one name."""
    if step.view or not step.writes:
        return ()
    read_as = [pieces[name] for name in dict.fromkeys(step.reads)]
    found = dict.fromkeys(pieces[name] for name in step.in_place if sizes[name] >= sizes[step.writes[0]])
    return tuple(piece for piece in found if read_as.count(piece) == 1)


@dataclass(frozen=True)
class _Placed:
    """An order, and where pieces and the scratch of steps lie in it: (offset, first, last)."""

    bytes: int
    order: Order
    pieces: tuple[tuple[int, int, int], ...]
    own: Mapping[int, tuple[int, int, int]]


def _placed(graph: Graph, order: Order, enough: int) -> _Placed:
    """The smallest arena that is found for an order, whatever is overwritten in place."""
    spans = _spans(graph, order)
    done, options = 0, list[list[tuple[int, int] | None]]()
    for step in order:
        taken = graph.taken(step, done)
        options.append([*((graph.makes[step][0], piece) for piece in taken), None] if taken else [None])
        done |= 1 << step

    def packed(chosen: Sequence[tuple[int, int] | None]) -> _Placed:
        return _packed(graph, order, spans, dict(each for each in chosen if each is not None), enough)

    if prod(len(each) for each in options) <= CHOICES:
        return _least((packed(chosen) for chosen in product(*options)), enough)
    alike: Sequence[tuple[int, int] | None] = [
        next((each for each in some if each is None or _alike(graph, *each)), None) for some in options
    ]
    first: Sequence[tuple[int, int] | None] = [some[0] for some in options]
    starts = [first, alike, [None] * len(options)][:CHOICES]
    found = [packed(each) for each in starts]
    best = min(range(len(found)), key=lambda each: found[each].bytes)
    return _changed(starts[best], found[best], options, packed, enough)


def _least(found: Iterable[_Placed], enough: int) -> _Placed:
    """The smallest, or the first that is small enough."""
    best: _Placed | None = None
    for each in found:
        best = each if best is None or each.bytes < best.bytes else best
        if best.bytes <= enough:
            break
    assert best is not None
    return best


def _alike(graph: Graph, made: int, taken: int) -> bool:
    """Whether one piece fills the place of another."""
    return graph.sizes[made] == graph.sizes[taken]


def _changed(
    chosen: Sequence[tuple[int, int] | None],
    best: _Placed,
    options: Sequence[Sequence[tuple[int, int] | None]],
    packed: Callable[[Sequence[tuple[int, int] | None]], _Placed],
    enough: int,
) -> _Placed:
    """What single changes of a choice lead to, as long as they make it smaller; `CHOICES` are tried."""
    changes = [(at, each) for at, some in enumerate(options) for each in some if len(some) > 1]
    for at, each in islice(cycle(changes), CHOICES):
        if best.bytes <= enough:
            break
        if each != chosen[at]:
            other = [*chosen[:at], each, *chosen[at + 1 :]]
            found = packed(other)
            if found.bytes <= best.bytes:
                chosen, best = other, found
    return best


def _spans(graph: Graph, order: Order) -> list[tuple[int, int]]:
    """From when to when each piece is needed."""
    at = {step: moment for moment, step in enumerate(order)}
    first = [0] * len(graph.sizes)
    for step, pieces in enumerate(graph.makes):
        for piece in pieces:
            first[piece] = at[step]
    end = max(0, len(order) - 1)
    return [
        (begin, end if stays else max([begin, *(at[step] for step in at if readers >> step & 1)]))
        for begin, stays, readers in zip(first, graph.stays, graph.readers, strict=True)
    ]


def _packed(graph: Graph, order: Order, spans: Sequence[tuple[int, int]], lies_in: Mapping[int, int], enough: int) -> _Placed:
    """Offsets where some pieces lie in the places of others."""

    def root(piece: int) -> int:
        while piece in lies_in:
            piece = lies_in[piece]
        return piece

    boxes: dict[int, Box] = {}
    for piece, size in enumerate(graph.sizes):
        place = boxes.get(root(piece), Box(size, *spans[root(piece)]))
        boxes[root(piece)] = Box(place.bytes, min(place.first, spans[piece][0]), max(place.last, spans[piece][1]))
    for moment, step in enumerate(order):
        boxes[-1 - step] = Box(graph.own[step], moment, moment)
    wanted = {key: box for key, box in boxes.items() if box.bytes}
    offsets, size = pack(list(wanted.values()), enough) if wanted else ([], 0)
    at = dict.fromkeys(boxes, 0) | dict(zip(wanted, offsets, strict=True))
    own = {step: (at[-1 - step], moment, moment) for moment, step in enumerate(order)}
    return _Placed(size, order, tuple((at[root(piece)], *spans[piece]) for piece in range(len(graph.sizes))), own)


def _named(found: _Placed, steps: Sequence[Step], pieces: Mapping[str, int], sizes: Mapping[str, int], bound: int) -> Arena:
    def place(where: tuple[int, int, int], size: int) -> Slot:
        return Slot(where[0], size, *where[1:])

    places = {name: place(found.pieces[piece], sizes[name]) for name, piece in pieces.items()}
    scratch = {step.name: place(found.own[number], step.scratch) for number, step in enumerate(steps) if step.scratch}
    return Arena(found.order, places, scratch, found.bytes, bound)
