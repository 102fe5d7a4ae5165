"""A recurrent cell that a model calls step by step, as one layer over all steps: its weights stand once, and one scale serves all steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from secateurs.integers.layers import Array, Concat, Cut, Layer, Network, Recurrent, View, read, written


def joined(network: Network) -> Network:
    """The network with each chain of steps over one sequence as one layer; what reads a single step reads a cut of all.

    Steps belong together where they have the same weights, begin with the state that the one before left, and read places of one array
    that follow each other. Layers that nobody reads any more are left over.

    >>> x, places = Array("x", (1, 2, 3)), [Array(f"x{place}", (1, 1, 3)) for place in range(2)]
    >>> states = [Array(f"h{place}", (1, 1, 4)) for place in range(2)]
    >>> numbers = np.ones((12, 3)), np.ones((12, 4)), np.ones(12), np.ones(12)
    >>> first = Recurrent("gru", places[0], states[0], *numbers, True)
    >>> second = Recurrent("gru", places[1], states[1], *numbers, True, (states[0],))
    >>> cuts = [Cut(each.name, x, each, (0, place, 0)) for place, each in enumerate(places)]
    >>> [layer.y.shape for layer in joined(Network((), (), (*cuts, first, second))).layers if isinstance(layer, Recurrent)]
    [(1, 2, 4)]
    """
    layers = list(network.layers)
    while True:
        chain = next(_chains(network, layers), None)
        if chain is None:
            return replace(network, layers=tuple(_seen(layers)))
        layers = _replaced(layers, chain)


def _chains(network: Network, layers: Sequence[Layer]) -> Iterator[list[Recurrent]]:
    """Chains of two or more steps."""
    readers = Counter(array.name for layer in layers for array in read(layer))
    readers.update(face.array.name for face in network.outputs)
    cuts = {layer.y.name: layer for layer in layers if isinstance(layer, Cut) and _is_step(layer)}
    steps = [layer for layer in layers if isinstance(layer, Recurrent) and layer.x.name in cuts and layer.x.shape[1] == 1]
    begins = {layer.start[0].name: layer for layer in reversed(steps) if layer.start and layer.start[0] is not None}
    followers = {each.y.name: _next(each, begins, cuts, readers) for each in steps}
    led = {each.y.name for each in followers.values() if each is not None}
    for first in steps:
        chain = [first]
        while first.y.name not in led and (after := followers[chain[-1].y.name]) is not None and _goes_on(chain, after, cuts):
            chain.append(after)
        if len(chain) > 1:
            yield chain


def _is_step(cut: Cut) -> bool:
    """Whether it takes one place of a sequence, all channels of it."""
    _, _, channels = cut.x.shape
    return cut.x.shape[0] == 1 and cut.y.shape == (1, 1, channels) and cut.start[2] == 0


def _next(layer: Recurrent, begins: dict[str, Recurrent], cuts: dict[str, Cut], readers: Counter[str]) -> Recurrent | None:
    """The step that begins with what a step leaves, if there is one, and nobody else reads the cell in between."""
    left = [array.name for array in (layer.y, *layer.last[:1]) if array is not None]
    after = next((begins[name] for name in left if name in begins), None)
    if after is None or after.gru != layer.gru or cuts[after.x.name].x.name != cuts[layer.x.name].x.name:
        return None
    if not layer.gru:
        cell, begun = layer.last[1], after.start[1]
        if cell is None or begun is None or cell.name != begun.name or readers[cell.name] != 1:
            return None
    same = ("weight", "recurrent", "bias", "recurrent_bias")
    return after if all(np.array_equal(getattr(layer, name), getattr(after, name)) for name in same) else None


def _goes_on(chain: Sequence[Recurrent], after: Recurrent, cuts: dict[str, Cut]) -> bool:
    """Whether a step reads the place after the last one, in the direction in which the others go."""
    places = [cuts[each.x.name].start[1] for each in (*chain[-2:], after)]
    moves = np.diff(places)
    return bool(abs(moves[-1]) == 1 and moves[0] == moves[-1])


def _replaced(layers: list[Layer], chain: list[Recurrent]) -> list[Layer]:
    """The layers with one in place of a chain, and a cut for what each step of it gave."""
    cuts = {layer.y.name: layer for layer in layers if isinstance(layer, Cut)}
    first, last, places = chain[0], chain[-1], [cuts[each.x.name].start[1] for each in chain]
    backwards, source, begin = places[0] > places[1], cuts[first.x.name].x, min(places)
    made: list[Layer] = []
    x = source
    if source.shape[1] != len(chain):
        x = Array(f"{first.y.name}.steps", (1, len(chain), source.shape[2]))
        made.append(Cut(x.name, source, x, (0, begin, 0)))
    units = first.y.shape[2]
    y = Array(f"{first.y.name}.all", (1, len(chain), units))
    made.append(replace(first, x=x, y=y, last=(None, *last.last[1:]), backwards=backwards))
    for each, place in zip(chain, places, strict=True):
        given = [array for array in (each.y, *each.last[:1]) if array is not None]
        made += [Cut(array.name, y, array, (0, place - begin, 0)) for array in given]
    gone = {each.y.name for each in chain}
    at = next(place for place, layer in enumerate(layers) if layer is first)
    kept = [layer for layer in layers if not (isinstance(layer, Recurrent) and layer.y.name in gone)]
    return _in_order([*kept[:at], *made, *kept[at:]])


def _in_order(layers: list[Layer]) -> list[Layer]:
    """Each layer after those that write what it reads; the order is kept where it can be."""
    waiting, found, there = list(layers), [], set[str]()
    made = {array.name for layer in layers for array in written(layer)}
    while waiting:
        ready = next(layer for layer in waiting if all(array.name in there or array.name not in made for array in read(layer)))
        waiting.remove(ready)
        found.append(ready)
        there.update(array.name for array in written(ready))
    return found


def _seen(layers: Sequence[Layer]) -> Iterator[Layer]:
    """All steps of a sequence, one after another, are that sequence."""
    views = {layer.y.name: layer.x for layer in layers if isinstance(layer, View)}
    cuts = {layer.y.name: layer for layer in layers if isinstance(layer, Cut) and _is_step(layer)}
    for layer in layers:
        if isinstance(layer, Concat):
            parts = [cuts.get(views.get(part.name, part).name) for part in layer.parts]
            source = parts[0].x if parts[0] is not None else None
            places = [part.start[1] for part in parts if part is not None and source is not None and part.x.name == source.name]
            if (
                source is not None
                and len(parts) == len(places)
                and places == list(range(source.shape[1]))
                and layer.y.shape[:2] == (1, 1)
            ):
                yield View(layer.name, source, layer.y)
                continue
        yield layer
