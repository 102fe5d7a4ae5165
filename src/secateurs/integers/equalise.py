"""Channels of arrays scaled to alike ranges, which the layers before and behind take back: one step for all then loses less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateurs.integers.layers import Array, Conv, Layer, Mean, Network, Numbers, Pad, Pool, Recurrent, Reorder, Table, View, read
from secateurs.integers.ranges import packed_batches
from secateurs.integers.reference import values_of
from secateurs.types import SecateursError

_ROUNDS = 20
"""Passes over the pairs of layers at most: each pair's scales depend on its neighbours'."""

_MOST = 64.0
"""No channel is scaled by more, or by less than its inverse: what is nearly dead is not blown up to the size of the others."""


def equalised(network: Network, reached: Mapping[str, Numbers] | None = None, strength: float = 0.5) -> Network:
    """A network in float32 that answers the same, with the channels between layers scaled to lose less when they are rounded.

    For each layer whose outputs one other layer reads, with nothing between but what commutes with a positive factor (ReLU, pooling,
    means, zeros around, numbers moved), output ``i`` is divided by s_i and what reads it multiplied by it. Without ``reached``, s_i makes
    the largest weights that write and read a channel equal (Nagel et al. 2019, arXiv:1906.04721, equation 11). ``reached`` is the largest
    absolute value of each channel of each array, by name, as `reaches` observes it; then s_i makes the ranges of the channels of the
    array alike instead: entirely where a depthwise layer reads, whose weights have a scale for each channel anyway; else by a part of
    the way, ``strength``, as what becomes easier for the array becomes harder for the weights that read it (Xiao et al. 2022,
    arXiv:2211.10438). ReLU6 and other bounds do not commute: such layers are left alone.

    Raises `SecateursError` for a network in integers, and where ``strength`` is not from 0 to 1.

    >>> x, y, z = (Array(name, (1, 1, 2)) for name in "xyz")
    >>> one = Conv("one", x, y, np.float32([[[[8, 0]]], [[[0, 1]]]]), np.zeros(2, np.float32), low=0.0)
    >>> two = Conv("two", y, z, np.float32([[[[2, 4]]]]), np.zeros(1, np.float32))
    >>> made = equalised(Network((), (), (one, two))).layers
    >>> made[0].weight.ravel().tolist(), made[1].weight.ravel().tolist()
    ([4.0, 0.0, 0.0, 2.0], [4.0, 2.0])
    """
    if any(array.kind != "float32" for layer in network.layers for array in read(layer)):
        raise SecateursError("equalised: the network is in integers; equalise it in float32, before it is quantised")
    if not 0 <= strength <= 1:
        raise SecateursError(f"equalised: strength={strength} must be from 0 to 1")
    layers = list(network.layers)
    pairs = list(_pairs(network))
    for _ in range(_ROUNDS if reached is None else 1):
        moved = 0.0
        for pair in pairs:
            before = pair.scales.copy()
            wanted = _by_weights(layers, pair) if reached is None else _by_ranges(layers, pair, reached, strength)
            pair.scales[:] = np.clip(before * wanted, 1 / _MOST, _MOST)
            _apply(layers, pair, pair.scales / before)
            moved = max(moved, float(np.abs(np.log(pair.scales / before)).max()))
        if moved < 1e-3:
            break
    return replace(network, layers=tuple(layers))


def reaches(network: Network, batches: Iterable[Any]) -> dict[str, Numbers]:
    """The largest absolute value of each channel of each array of a network in float32, (channels,), on batches as for `calibrated`."""
    found: dict[str, Numbers] = {}

    def see(array: Array, numbers: Numbers) -> None:
        most = np.abs(numbers).max((0, 1, 2))
        found[array.name] = np.maximum(most, found.get(array.name, most))

    for inputs in packed_batches(network, batches):
        values_of(network, inputs, see)
    return found


# ---------------------------------------------------------------- pairs of layers


@dataclass(frozen=True)
class _Pair:
    """Two layers by their places, which output of the first each input of the second is, and the scales that the outputs have so far."""

    first: int
    second: int
    of: Numbers
    scales: Numbers


def _pairs(network: Network) -> Iterator[_Pair]:
    readers: dict[str, list[int]] = {}
    for place, layer in enumerate(network.layers):
        for array in read(layer):
            readers.setdefault(array.name, []).append(place)
    given = Counter(face.array.name for face in network.outputs)
    for place, layer in enumerate(network.layers):
        if not isinstance(layer, Conv) or layer.high != np.inf or layer.low not in (0.0, -np.inf):
            continue
        array = layer.y
        of: Numbers | None = np.broadcast_to(np.arange(array.shape[2]), array.shape)
        while of is not None and not given[array.name] and len(readers.get(array.name, ())) == 1:
            (behind,) = readers[array.name]
            reader = network.layers[behind]
            if isinstance(reader, Conv):
                if _is_uniform(of):
                    yield _Pair(place, behind, of[0, 0], np.ones(len(layer.weight)))
                break
            if isinstance(reader, Recurrent):
                break
            of, array = _through(reader, of), reader.y


def _is_uniform(of: Numbers) -> bool:
    return bool((of == of[:1, :1]).all())


def _through(layer: Layer, of: Numbers) -> Numbers | None:
    """Of which channel each number is behind a layer; nothing where it does not commute with a factor for each channel."""
    if isinstance(layer, View):
        return of.reshape(layer.y.shape)
    if isinstance(layer, Reorder):
        return of.reshape(layer.sizes).transpose(layer.order).reshape(layer.y.shape)
    if isinstance(layer, Table):
        return of if layer.function == "clamp 0 inf" else None
    pads = isinstance(layer, Pad) and layer.value == 0 and not any(layer.channels)
    if (pads or isinstance(layer, (Pool, Mean))) and _is_uniform(of):
        return np.broadcast_to(of[0, 0], layer.y.shape)
    return None


# ---------------------------------------------------------------- scales


def _by_weights(layers: list[Layer], pair: _Pair) -> Numbers:
    """s_i that makes the largest weights on both sides equal; 1 where a channel is dead on either."""
    first, second = _both(layers, pair)
    writing = np.abs(first.weight).reshape(len(first.weight), -1).max(1).astype(np.float64)
    reading = _reading(second, pair)
    alive = (reading > 0) & (writing > 0)
    return np.sqrt(np.divide(writing, reading, out=np.ones(len(writing)), where=alive))


def _by_ranges(layers: list[Layer], pair: _Pair, reached: Mapping[str, Numbers], strength: float) -> Numbers:
    """s_i that makes the ranges of channels alike, as far as the weights that read them let it."""
    first, second = _both(layers, pair)
    range_of, reading = reached[first.y.name].astype(np.float64), _reading(second, pair)
    alive = (reading > 0) & (range_of > 0)
    if not alive.any():
        return np.ones(len(range_of))
    scales = np.where(alive, range_of, 1.0)
    if not second.is_depthwise:
        scales = scales**strength / np.where(alive, reading, 1.0) ** (1 - strength)
    return np.where(alive, scales / scales[alive].max(), 1.0)  # the largest stays, and so does the array's range


def _both(layers: list[Layer], pair: _Pair) -> tuple[Conv, Conv]:
    first, second = layers[pair.first], layers[pair.second]
    assert isinstance(first, Conv) and isinstance(second, Conv)
    return first, second


def _reading(second: Conv, pair: _Pair) -> Numbers:
    """The largest absolute weight that reads each output of the first layer."""
    found = np.zeros(len(pair.scales))
    np.maximum.at(found, pair.of, _by_input(second))
    return found


def _by_input(layer: Conv) -> Numbers:
    """The largest absolute weight that reads each channel of ``x``, (inputs,)."""
    per = len(layer.weight) // layer.groups
    most = np.abs(layer.weight).max((1, 2)).reshape(layer.groups, per, -1).max(1)
    return most.reshape(-1).astype(np.float64)


def _apply(layers: list[Layer], pair: _Pair, scales: Numbers) -> None:
    first, second = _both(layers, pair)
    divided = (first.weight / scales[:, None, None, None]).astype(np.float32)
    layers[pair.first] = replace(first, weight=divided, bias=(first.bias / scales).astype(np.float32))
    per, inputs = len(second.weight) // second.groups, second.weight.shape[3]
    factors = np.repeat(scales[pair.of].reshape(second.groups, 1, 1, 1, inputs), per, 1)
    multiplied = second.weight * factors.reshape(len(second.weight), 1, 1, inputs)
    layers[pair.second] = replace(second, weight=multiplied.astype(np.float32))
