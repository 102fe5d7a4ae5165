"""How large the arrays and weights of a network would be under a plan of pruning, without making the smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from secateurs.costs import Layer as Product
from secateurs.costs import Workload, workload
from secateurs.costs.workload import Numbers, size_of
from secateurs.firmware.arena import Step, step_of
from secateurs.firmware.call import Call
from secateurs.firmware.calls import call_of
from secateurs.firmware.overwriting import overwriting
from secateurs.integers.build import built
from secateurs.integers.layers import Add, Array, Concat, Conv, Kind, Layer, Network, Pad, Recurrent, Rescale, read, written
from secateurs.integers.quantise import quantised
from secateurs.types import Plan

REACH = 8.0
"""The largest number of each array, where only sizes matter and no numbers were seen."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A model as a network for small machines, its layers as calls, and what it multiplies; the numbers in it stand for nothing."""

    network: Network
    calls: Mapping[str, Call]
    load: Workload

    def under(self, plan: Plan | None) -> Sizes:
        """Its sizes, told by the units of a plan. Raises `PlanError` where the plan is one of another model."""
        products = self.load.under(plan)
        found = _products(self.network, products)
        return Sizes(self, found, _numbers(self.network, found))


@dataclass(frozen=True, eq=False)
class Sizes:
    """The sizes of a network under a plan: what each convolution, by name, multiplies, and how many numbers each array holds."""

    outline: Outline
    products: Mapping[str, Product]
    numbers: Mapping[str, Numbers]

    def bytes(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Array → its bytes, where each site keeps so many units."""
        arrays = self.outline.network.arrays
        return {name: size_of(self.numbers[name], counts) * (array.bytes // max(1, array.size)) for name, array in arrays.items()}

    def steps(self, counts: Mapping[str, int], calls: dict[tuple[str, int, int], Call]) -> list[Step]:
        """The steps of the network, with what each needs and may overwrite; ``calls`` keeps what was found of that."""
        return [step_of(layer, [self._call(layer, counts, calls)]) for layer in self.outline.network.layers]

    def sites(self, layer: Layer) -> tuple[str, ...]:
        """The sites of the plan on which the sizes of a layer's arrays depend."""
        names = [array.name for array in (*read(layer), *written(layer))]
        return tuple(sorted({site for name in names for _, sites in self.numbers[name] for site in sites}))

    def arrays(self, layer: Layer, counts: Mapping[str, int]) -> dict[str, Array]:
        """The arrays of a layer where each site keeps so many units."""
        found = {}
        for array in (*read(layer), *written(layer)):
            height, width, _ = array.shape
            found[array.name] = replace(array, shape=(height, width, size_of(self.numbers[array.name], counts) // (height * width)))
        return found

    def _call(self, layer: Layer, counts: Mapping[str, int], known: dict[tuple[str, int, int], Call]) -> Call:
        product = self.products.get(layer.name)
        if product is None or not isinstance(layer, Conv):
            return self.outline.calls[layer.name]
        outputs = size_of(product.groups, counts) * size_of(product.outputs, counts)
        key = layer.name, size_of(product.inputs, counts), outputs
        if key not in known:
            known[key] = _call_of(resized(layer, size_of(product.groups, counts), *key[1:]))
        return known[key]


def outline(model: nn.Module, example: Any, kind: Kind) -> Outline:
    """The outline of a model in int8, int16 or float32.

    Raises `UnsupportedError` where a small machine has no kernels for it.
    """
    plain = built(model, example)
    plain = replace(plain, layers=tuple(_filled(layer) for layer in plain.layers))
    network = quantised(plain, ranges_of(plain), kind)
    calls = {layer.name: overwriting(call_of(layer, f"layer_{number}")) for number, layer in enumerate(network.layers)}
    return Outline(network, calls, workload(model, example))


def ranges_of(network: Network) -> dict[str, tuple[float, float]]:
    """A range for each array where no numbers were seen: as far as the layer that writes it lets them go."""
    found = dict.fromkeys(network.arrays, (-REACH, REACH))
    for layer in network.layers:
        if isinstance(layer, (Conv, Add)):
            found[layer.y.name] = max(-REACH, layer.low), min(REACH, layer.high)
    return found


def _filled(layer: Layer) -> Layer:
    """A layer whose weights are all there, so that nothing is left out."""
    return replace(layer, weight=np.ones_like(layer.weight), bias=np.zeros_like(layer.bias)) if isinstance(layer, Conv) else layer


def _products(network: Network, products: Sequence[Product]) -> dict[str, Product]:
    """Of each convolution that is a layer of the model, what that multiplies; one that runs twice is named twice."""
    waiting = [product for product in products if product.parameter is not None]
    found = {}
    for layer in network.layers:
        if isinstance(layer, Conv):
            match = next((each for each in waiting if layer.name == each.name), None)
            match = match or next((each for each in waiting if layer.name.startswith(f"{each.name}_")), None)
            if match is not None:
                waiting.remove(match)
                found[layer.name] = match
    return found


def _numbers(network: Network, products: Mapping[str, Product]) -> dict[str, Numbers]:
    """Of each array, how many numbers it holds, as sums of what the sites of the plan keep."""
    found: dict[str, Numbers] = {face.array.name: ((face.array.size, ()),) for face in network.inputs}
    for layer in network.layers:
        for array in written(layer):
            found[array.name] = _written(layer, array, found, products)
    return found


def _written(layer: Layer, array: Array, known: Mapping[str, Numbers], products: Mapping[str, Product]) -> Numbers:
    height, width, _ = array.shape
    if isinstance(layer, Conv) and layer.name in products:
        product = products[layer.name]
        return tuple((height * width * a * b, (*x, *y)) for a, x in product.groups for b, y in product.outputs)
    if isinstance(layer, Concat):
        return tuple(term for part in layer.parts for term in known[part.name])
    if isinstance(layer, Recurrent):
        return ((array.size, ()),)
    if isinstance(layer, Pad) and array.shape[2] > layer.x.shape[2]:
        more = (height * width * (array.shape[2] - layer.x.shape[2]), ())
        places = layer.x.shape[0] * layer.x.shape[1]
        return (*((number * height * width // places, sites) for number, sites in known[layer.x.name]), more)
    return tuple((number * array.size // layer.x.size, sites) for number, sites in known[layer.x.name])


def resized(layer: Conv, groups: int, inputs: int, outputs: int) -> Conv:
    """A convolution with so many inputs of each group and so many outputs of all; its weights stand for nothing."""
    weight: Any = np.broadcast_to(np.ones((), layer.weight.dtype), (outputs, *layer.kernel, inputs))
    bias, rescale = np.zeros(outputs, layer.bias.dtype), layer.rescale
    x, y = (replace(array, shape=(*array.shape[:2], many)) for array, many in ((layer.x, groups * inputs), (layer.y, outputs)))
    one = None if rescale is None else Rescale(rescale.multiplier[:1], rescale.shift[:1])
    return replace(layer, x=x, y=y, weight=weight, bias=bias, rescale=one, groups=groups)


def _call_of(layer: Conv) -> Call:
    """The call of a convolution, but for its weights: a row of each group is enough to tell the rest."""
    return overwriting(replace(call_of(resized(layer, layer.groups, layer.weight.shape[3], layer.groups), "layer"), layer=layer))
