"""What a network on a small machine is made of: layers on arrays of one sample, stored row by row with channels last.

Every array has a height, a width and channels; what has fewer dimensions has height 1, and width 1 too where it is a vector; steps of a
sequence are its width. Numbers are int8 or int16 that stand for ``scale * (q - zero)``, or float32 that stand for themselves. One set of
layers serves both: where an array is float32, weights and biases are too, and there are no multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["int8", "int16", "float32"]
LIMITS: dict[str, tuple[int, int]] = {"int8": (-128, 127), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Array:
    """What layers read and write: ``shape`` is (height, width, channels) of one sample; of integers, ``scale * (q - zero)`` is meant."""

    name: str
    shape: tuple[int, int, int]
    kind: Kind = "float32"
    scale: float = 1.0
    zero: int = 0

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.size * np.dtype(self.kind).itemsize


@dataclass(frozen=True)
class Rescale:
    """Factors below 2^31 for integers, as `requantised` applies them: ``multiplier / 2^31 * 2^shift``, one for all or one a channel.

    A multiplier is 0 or in [2^30, 2^31); ``shift`` is positive to the left, as in TFLite.
    """

    multiplier: Numbers  # int32, (channels,) or (1,)
    shift: Numbers  # int32, as many


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution, or a linear layer, which is one with a kernel of 1 × 1 on an array of height 1.

    ``weight`` is (outputs, kernel height, kernel width, inputs / groups), int8 around zero or float32; ``bias`` (outputs,) int32 (int64
    for int16 arrays) or float32. In integers: y = clamp(rescale(sum (x - x.zero) * w + bias) + y.zero). ``padding`` is (top, bottom, left,
    right) and stands for zeros. ``low`` and ``high`` are numbers of the array ``y``. Depthwise is ``groups`` = inputs.
    """

    name: str
    x: Array
    y: Array
    weight: Numbers
    bias: Numbers
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    low: float = -np.inf
    high: float = np.inf
    rescale: Rescale | None = None
    weight_scale: Numbers | None = None  # (outputs,), what a step of the integer weights is worth

    @property
    def kernel(self) -> tuple[int, int]:
        return int(self.weight.shape[1]), int(self.weight.shape[2])

    @property
    def is_depthwise(self) -> bool:
        """Whether each output reads one channel."""
        return self.groups == self.x.shape[2] and self.groups > 1

    @property
    def macs(self) -> int:
        """Multiplications of a pass, zeros and padding included."""
        return self.y.shape[0] * self.y.shape[1] * self.weight.size


@dataclass(frozen=True, eq=False)
class Pool:
    """Maximum or average over windows. Integers keep scale and zero: an average is rounded to the nearest, halves away from zero.

    ``counts_padding``: padded zeros (numbers ``x.zero``) count in an average; else it is over what is there. ``divisor`` replaces the
    number of what is averaged.
    """

    name: str
    x: Array
    y: Array
    average: bool
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    counts_padding: bool = False


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of each channel over all places: ``y`` is (1, 1, channels). In integers rescale(sum (x - x.zero)) + y.zero."""

    name: str
    x: Array
    y: Array
    rescale: Rescale | None = None


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two arrays of one shape, ``sign`` -1 for the difference; clamped.

    In integers as TFLite does it: each term minus its zero is shifted left by 20 and rescaled (``of_x``, ``of_y``), the sum is rescaled
    again. int16 shifts by 15.
    """

    name: str
    x: Array
    other: Array
    y: Array
    low: float = -np.inf
    high: float = np.inf
    of_x: Rescale | None = None
    of_other: Rescale | None = None
    rescale: Rescale | None = None
    sign: int = 1


@dataclass(frozen=True, eq=False)
class Multiply:
    """The product of an array and one of the same shape, or of one number a channel: (1, 1, channels). rescale((x - zx)(o - zo)) + zy."""

    name: str
    x: Array
    other: Array
    y: Array
    rescale: Rescale | None = None


@dataclass(frozen=True, eq=False)
class Concat:
    """Arrays one after another along the channels; each is rescaled to the scale of the result, where it has another."""

    name: str
    parts: tuple[Array, ...]
    y: Array
    rescales: tuple[Rescale | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Table:
    """A function of single numbers. int8: ``table[q + 128]``. int16: 513 numbers and a line between each two. float32: ``function``.

    ``function`` is one of `FUNCTIONS`, or of `SHAPED` with its numbers behind it.
    """

    name: str
    x: Array
    y: Array
    function: str
    table: Numbers | None = None


@dataclass(frozen=True, eq=False)
class Softmax:
    """Of each place, over its channels: exp(x - largest) / sum.

    int8: ``table[largest - q]`` holds exponentials times 2^16, and the result is (e * 256 + sum / 2) / sum - 128, at most 127, with the
    scale 1 / 256 and zero -128. int16: exponentials times 2^15, 256 of the upper eight bits of largest - q and 256 of the lower ones,
    whose product is shifted right by 15; the result is (e * 32768 + sum / 2) / sum, at most 32767, with the scale 1 / 32768.
    """

    name: str
    x: Array
    y: Array
    table: Numbers | None = None


@dataclass(frozen=True, eq=False)
class Pad:
    """A number around: (top, bottom, left, right) and channels before and after, where no convolution could take it in."""

    name: str
    x: Array
    y: Array
    padding: tuple[int, int, int, int]
    value: int | float = 0
    channels: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Cut:
    """A box out of an array: from ``start`` (height, width, channels) as much as ``y`` has, every ``step``-th of each."""

    name: str
    x: Array
    y: Array
    start: tuple[int, int, int]
    step: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True, eq=False)
class Reorder:
    """The numbers in another order: ``x`` seen as ``sizes``, its dimensions permuted by ``order``."""

    name: str
    x: Array
    y: Array
    sizes: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class View:
    """The same numbers in the same place, in another shape."""

    name: str
    x: Array
    y: Array


@dataclass(frozen=True, eq=False)
class Fixed:
    """Factors of a recurrent layer in integers, as `integers.recurrent` applies them.

    ``of_x`` and ``of_hidden`` (gates * units,) make sums of products steps of 2^-12; ``to_y`` makes numbers of ``y`` of an LSTM's result in
    steps of 2^-30, or of a GRU's in steps of 2^-15; ``start`` what it begins with: numbers of ``y`` of an LSTM's hidden state, steps of
    2^-15 of the others; ``to_last`` numbers of the array for the last cell.
    """

    of_x: Rescale
    of_hidden: Rescale
    to_y: Rescale
    start: tuple[Rescale | None, ...] = ()
    to_last: Rescale | None = None


@dataclass(frozen=True, eq=False)
class Recurrent:
    """An LSTM or GRU over the steps (the width) of ``x``; ``y`` is (1, steps, units), ``last`` what it ends with.

    ``weight`` (gates * units, inputs) and ``recurrent`` (gates * units, units) hold the gates in torch's order (LSTM input, forget, cell,
    output; GRU reset, update, new); ``bias`` and ``recurrent_bias`` as many numbers. ``start``: arrays or nothing for zeros. ``gru``: which
    of the two. ``fixed``: what integers take; their weights are int8, biases int32.
    """

    name: str
    x: Array
    y: Array
    weight: Numbers
    recurrent: Numbers
    bias: Numbers
    recurrent_bias: Numbers
    gru: bool
    start: tuple[Array | None, ...] = ()
    last: tuple[Array | None, ...] = ()
    backwards: bool = False
    fixed: Fixed | None = None


Layer = Conv | Pool | Mean | Add | Multiply | Concat | Table | Softmax | Pad | Cut | Reorder | View | Recurrent


@dataclass(frozen=True)
class Face:
    """How a tensor that the model takes or gives lies in an array: its dimensions in the order ``order``.

    ``shape`` is the tensor's for one sample; where ``batched``, its first dimension counts samples.
    """

    name: str
    array: Array
    shape: tuple[int, ...]
    order: tuple[int, ...]
    batched: bool

    def packed(self, tensor: Numbers) -> Numbers:
        """Numbers of the model's shape, of any number of samples, as (samples, height, width, channels)."""
        return np.ascontiguousarray(tensor.transpose(self.order)).reshape(-1, *self.array.shape)

    def unpacked(self, numbers: Numbers) -> Numbers:
        """The opposite of `packed`."""
        shape = tuple(self.shape[dim] for dim in self.order)
        shape = (-1, *shape[1:]) if self.batched else shape
        return numbers.reshape(shape).transpose(tuple(np.argsort(self.order)))


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run, what goes in and what comes out."""

    inputs: tuple[Face, ...]
    outputs: tuple[Face, ...]
    layers: tuple[Layer, ...]

    @property
    def kind(self) -> Kind:
        return self.inputs[0].array.kind

    @property
    def arrays(self) -> dict[str, Array]:
        """All arrays by name, in the order in which they are written."""
        found = {face.array.name: face.array for face in self.inputs}
        for layer in self.layers:
            found.update({array.name: array for array in written(layer)})
        return found


def read(layer: Layer) -> tuple[Array, ...]:
    """The arrays that a layer reads."""
    if isinstance(layer, Concat):
        return layer.parts
    if isinstance(layer, (Add, Multiply)):
        return layer.x, layer.other
    if isinstance(layer, Recurrent):
        return (layer.x, *(each for each in layer.start if each is not None))
    return (layer.x,)


def written(layer: Layer) -> tuple[Array, ...]:
    """The arrays that a layer writes."""
    return (layer.y, *(each for each in layer.last if each is not None)) if isinstance(layer, Recurrent) else (layer.y,)


def with_arrays(layer: Layer, of: dict[str, Array]) -> Layer:
    """The same layer on other arrays, found by the names of those that it has."""

    def other(part: Any) -> Any:
        if isinstance(part, Array):
            return of.get(part.name, part)
        return tuple(other(each) for each in part) if isinstance(part, tuple) else part

    return replace(layer, **{each.name: other(getattr(layer, each.name)) for each in fields(layer)})


def with_layers(network: Network, layers: Sequence[Layer], of: dict[str, Array]) -> Network:
    """A network of other layers, its faces on other arrays, found by their names."""
    faces = [
        tuple(replace(face, array=of.get(face.array.name, face.array)) for face in each)
        for each in (network.inputs, network.outputs)
    ]
    return Network(faces[0], faces[1], tuple(with_arrays(layer, of) for layer in layers))
