"""Scalpel's question (Yu et al., ISCA 2017) on an emulated Cortex-M4: which patterns of zeros make a layer faster, and from where on.

Weights are drawn from a normal distribution and pruned by magnitude, each pattern by the mean magnitude of its blocks: instructions
depend on where zeros are, not on what was learned. Answers of each kernel are held against the integer reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import nn

from secateurs.firmware.call import Call
from secateurs.firmware.emulator import CLOCK, M4, emulated
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.formats import conv_call
from secateurs.firmware.trying import Trial, program, told
from secateurs.integers.build import built
from secateurs.integers.layers import Array, Conv, Numbers
from secateurs.integers.reference import answers, sums_of
from secateurs.integers.rounding import rescale
from secateurs.models import lenet_5, lenet_300_100

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
"""Sparsities, fractions of the weights that are gone."""
BLOCKS = {"blocks of 4": (1, 4), "blocks of 2 x 4": (2, 4), "blocks of 4 x 4": (4, 4)}
"""Formats by the rows and taps of what goes as one."""
OF_FOUR = {"2 of 4": 0.5, "1 of 4": 0.75}
NODES = "node pruning, dense"


def convnet() -> nn.Module:
    """Scalpel's ConvNet for CIFAR-10, as Caffe's quick example has it."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet-300-100": (lenet_300_100, (1, 1, 28, 28)),
    "LeNet-5": (lenet_5, (1, 1, 28, 28)),
    "ConvNet": (convnet, (1, 3, 32, 32)),
}


@dataclass(frozen=True)
class Place:
    """A layer of a network: its shape, and whether it is the first or the last, whose inputs or outputs cannot go."""

    network: str
    layer: Conv
    first: bool
    last: bool

    @property
    def is_linear(self) -> bool:
        return self.layer.x.shape[0] == 1

    @property
    def name(self) -> str:
        return f"{self.network}, {self.layer.name}"


def places() -> Iterator[Place]:
    """Every layer with weights."""
    for network, (make, shape) in NETWORKS.items():
        layers = [each for each in built(make(), torch.zeros(shape)).layers if isinstance(each, Conv)]
        for number, layer in enumerate(layers):
            yield Place(network, layer, number == 0, number == len(layers) - 1)


def pruned(weight: Numbers, tall: int, wide: int, sparsity: float) -> Numbers:
    """Weights (outputs, taps) without so large a fraction of their blocks, those of the least mean magnitude; ends count as blocks."""
    padded = np.pad(np.abs(weight), ((0, -weight.shape[0] % tall), (0, -weight.shape[1] % wide)))
    blocks = padded.reshape(padded.shape[0] // tall, tall, -1, wide).mean((1, 3))
    kept = np.zeros(blocks.size, bool)
    kept[np.argsort(blocks.ravel())[round(sparsity * blocks.size) :]] = True
    mask = kept.reshape(blocks.shape).repeat(tall, 0).repeat(wide, 1)[: weight.shape[0], : weight.shape[1]]
    return np.asarray(weight * mask)


def of_four(weight: Numbers, sparsity: float) -> Numbers:
    """Weights that keep the largest of each four consecutive taps."""
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % 4)))
    fours = padded.reshape(len(weight), -1, 4)
    gone = np.argsort(np.abs(fours), 2)[:, :, : round(4 * sparsity)]
    fours = fours.copy()
    np.put_along_axis(fours, gone, 0.0, 2)
    return fours.reshape(len(weight), -1)[:, : weight.shape[1]]


def integers(layer: Conv, weight: Numbers, x: Array) -> Conv:
    """A layer of int8 with these weights, its answers spread over all of their range."""
    whole = np.rint(127 * weight / max(1e-9, np.abs(weight).max())).astype(np.int8)
    shaped = whole.reshape(-1, *layer.kernel, x.shape[2])
    y = Array(layer.y.name, (*layer.y.shape[:2], len(shaped)), "int8", 0.05, -128)
    bias = np.random.default_rng(1).integers(-500, 500, len(shaped)).astype(np.int32)
    found = replace(layer, x=x, y=y, weight=shaped, bias=bias, low=-128, high=127)
    spread = float(sums_of(found, _input(x)[None]).std()) or 1.0
    return replace(found, rescale=rescale(np.full(len(shaped), 60.0 / spread)))


def _input(x: Array) -> Numbers:
    """What a layer behind a ReLU reads: half of it zero."""
    drawn = np.random.default_rng(0).normal(-128, 60, x.shape)
    return np.clip(np.rint(drawn), -128, 127).astype(np.int8)


def cases(place: Place, sparsity: float) -> Iterator[tuple[str, Conv, str]]:
    """What is measured of a layer at a sparsity: a name, the layer, its format."""
    layer = place.layer
    weight = np.random.default_rng(2).normal(size=(len(layer.weight), layer.weight[0].size))
    x = replace(layer.x, kind="int8", scale=0.05, zero=-128)
    if sparsity == 0.0:
        yield "dense", integers(layer, weight, x), "dense"
        return
    yield "CSR", integers(layer, pruned(weight, 1, 1, sparsity), x), "CSR"
    for format, (tall, wide) in BLOCKS.items():
        yield format, integers(layer, pruned(weight, tall, wide, sparsity), x), format
    for format, level in OF_FOUR.items():
        if sparsity == level:
            yield format, integers(layer, of_four(weight, level), x), format
    yield NODES, integers(*without_nodes(place, weight, sparsity)), "dense"


def without_nodes(place: Place, weight: Numbers, sparsity: float) -> tuple[Conv, Numbers, Array]:
    """A narrower layer with the fraction of weights that is to stay: inputs and outputs go alike, except those of the network."""
    layer, keep = place.layer, 1 - sparsity
    sides = keep if place.first or place.last else sqrt(keep)
    outputs = len(weight) if place.last else max(1, round(sides * len(weight)))
    channels = layer.x.shape[2] if place.first else max(1, round(sides * layer.x.shape[2]))
    x = replace(layer.x, kind="int8", scale=0.05, zero=-128, shape=(*layer.x.shape[:2], channels))
    taps = weight.reshape(len(weight), *layer.kernel, -1)[:outputs, :, :, :channels]
    return layer, taps.reshape(outputs, -1), x


def measured(place: Place, sparsity: float) -> dict[str, dict[str, float]]:
    """Instructions and bytes of flash of a layer, by pattern; raises where a kernel's answer is not the reference's."""
    names, trials = [], []
    for number, (name, layer, format) in enumerate(cases(place, sparsity)):
        try:
            call: Call = conv_call(layer, f"case_{number}", None, format)
        except FirmwareError as error:
            print(f"{place.name}, {sparsity:.0%}, {name}: {error}")
            continue
        x = _input(layer.x)
        names.append(name)
        trials.append(Trial(call, x, answers(layer, {layer.x.name: x[None]})[0][0]))
    found = told(emulated({"main.c": program(trials, CLOCK)}, M4), M4.tick)
    wrong = [name for name, (count, _) in zip(names, found, strict=True) if count]
    if wrong:
        raise RuntimeError(f"{place.name}, {sparsity:.0%}: other answers than the reference's in {', '.join(wrong)}")
    return {
        name: {"instructions": each[1], "flash": trial.call.flash, "predicted": trial.call.instructions}
        for name, each, trial in zip(names, found, trials, strict=True)
    }
