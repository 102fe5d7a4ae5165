"""Weights and biases of a network in integers put right, layer by layer, by what calibration inputs show of each layer's error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateurs.integers.bounds import require_room
from secateurs.integers.layers import Conv, Network, Numbers, read, with_layers, written
from secateurs.integers.quantise import from_integers, to_integers
from secateurs.integers.ranges import packed_batches
from secateurs.integers.reference import answers, sums_of, windows
from secateurs.integers.rounding import rescale
from secateurs.types import SecateursError, TaskError

_AT_ONCE = 16
_COLUMNS = 20_000
"""So many places of a layer's input, at most, tell how its inputs go together."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer in float32 and in integers, and what each of them is given, (samples, height, width, channels)."""

    real: Conv
    whole: Conv
    real_x: Numbers
    whole_x: Numbers

    @property
    def unit(self) -> Numbers:
        """What 1 in the sums of each output is worth, (outputs,)."""
        assert self.whole.weight_scale is not None
        return self.whole.weight_scale * self.whole.x.scale


Change = Callable[[Pair], Conv]


def corrected(whole: Network, network: Network, batches: Iterable[Any], changes: Sequence[Change], samples: int = 128) -> Network:
    """A network in integers with each layer changed in turn, given what the layers before it, changed already, make of its inputs.

    ``network`` is the one in float32 that ``whole`` came from; ``changes`` are `rounded_together`, `unbiased`, or others, applied to each
    convolution and linear layer one after the other. Of the batches the first ``samples`` samples are used, which are kept in memory.

    Raises `TaskError` where there are no samples; `SecateursError` where the two networks are not of the same layers, or a sum could
    leave its accumulator after a change: after an error nothing has changed.
    """
    if [layer.name for layer in whole.layers] != [layer.name for layer in network.layers]:
        raise SecateursError("corrected: the network in integers is not of the layers of the one in float32; quantise that one")
    inputs = _first(network, batches, samples)
    real = {face.array.name: given for face, given in zip(network.inputs, inputs, strict=True)}
    made = {face.array.name: to_integers(real[face.array.name], face.array) for face in whole.inputs}
    last = {array.name: place for place, layer in enumerate(whole.layers) for array in read(layer)}
    layers = list(whole.layers)
    for place, (layer, exact) in enumerate(zip(whole.layers, network.layers, strict=True)):
        if isinstance(layer, Conv) and isinstance(exact, Conv):
            now = layer
            for change in changes:
                now = change(Pair(exact, now, real[exact.x.name], made[layer.x.name]))
            require_room(now)
            layers[place] = now
        for values, one in ((real, exact), (made, layers[place])):
            values.update(zip([array.name for array in written(one)], _answers(one, values), strict=True))
        for array in read(layer):
            if last[array.name] == place:
                real.pop(array.name, None), made.pop(array.name, None)
    return with_layers(whole, layers, {})


def _first(network: Network, batches: Iterable[Any], samples: int) -> list[Numbers]:
    found: list[list[Numbers]] = []
    for inputs in packed_batches(network, batches):
        found.append(inputs)
        if sum(len(each[0]) for each in found) >= samples:
            break
    if not sum(len(each[0]) for each in found):
        raise TaskError("corrected: there is no sample to correct by; give calibration batches")
    return [np.concatenate(parts)[:samples] for parts in zip(*found, strict=True)]


def _answers(layer: Any, values: dict[str, Numbers]) -> list[Numbers]:
    """What a layer writes, a few samples at a time."""
    given = {array.name: values[array.name] for array in read(layer)}
    samples = len(next(iter(given.values())))
    parts = [
        answers(layer, {name: each[start : start + _AT_ONCE] for name, each in given.items()})
        for start in range(0, samples, _AT_ONCE)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


# ---------------------------------------------------------------- biases


def unbiased(pair: Pair) -> Conv:
    """The layer with biases that make the mean of each output's sums what it is in float32 (Nagel et al. 2019, arXiv:1906.04721).

    >>> from secateurs.integers.layers import Array
    >>> x, y = Array("x", (1, 1, 2)), Array("y", (1, 1, 1))
    >>> real = Conv("fc", x, y, np.full((1, 1, 1, 2), 0.3, np.float32), np.zeros(1, np.float32))
    >>> ones, none = np.ones((1, 1, 1, 2), np.int8), np.zeros(1, np.int32)
    >>> whole = replace(real, x=replace(x, kind="int8"), weight=ones, bias=none, weight_scale=np.array([0.25]))
    >>> inputs = np.full((1, 1, 1, 2), 10, np.int8)
    >>> unbiased(Pair(real, whole, inputs.astype(np.float32), inputs)).bias.tolist()
    [4]
    """
    wanted, found = _mean(pair.real, pair.real_x), _mean(pair.whole, pair.whole_x)
    return _with_bias(pair.whole, pair.whole.bias + (wanted / pair.unit - found))


def _mean(layer: Conv, x: Numbers) -> Numbers:
    """The mean of each output's sums over samples and places."""
    total = np.zeros(len(layer.weight))
    for start in range(0, len(x), _AT_ONCE):
        total += sums_of(layer, x[start : start + _AT_ONCE]).sum((0, 1, 2))
    return total / (len(x) * layer.y.shape[0] * layer.y.shape[1])


def _with_bias(layer: Conv, bias: Numbers) -> Conv:
    most = 2.0**30
    return replace(layer, bias=np.rint(np.clip(bias, -most, most)).astype(layer.bias.dtype))


# ---------------------------------------------------------------- weights


def rounded_together(pair: Pair) -> Conv:
    """The layer with weights rounded so that the errors of those that read like inputs cancel; weights of 0 stay 0.

    Each output's step is the one of those tried at which its sums lose least, and then its weights are rounded one after the other, the
    error of each made up for by those still to come (Frantar et al. 2022, arXiv:2210.17323).
    """
    real, whole = pair.real, pair.whole
    per, groups = len(real.weight) // real.groups, real.groups
    weight = real.weight.astype(np.float64).reshape(groups, per, -1)
    steps = np.abs(weight).max(2) / 127
    floor = np.abs(real.bias).reshape(groups, per) / (2.0**24 * whole.x.scale)
    found, chosen = np.zeros_like(weight), np.zeros_like(steps)
    for group in range(groups):
        second = _moments(pair, group)
        alive = steps[group] > 1e-30
        if not alive.any():
            continue
        best = _steps(weight[group][alive], second, np.maximum(steps[group][alive], floor[group][alive]))
        found[group, alive], chosen[group, alive] = _rounded(weight[group][alive], second, best), best
    assert whole.weight_scale is not None
    kept = chosen.reshape(-1) > 0
    unit = np.where(kept, chosen.reshape(-1), whole.weight_scale)
    weights = np.where(kept[:, None, None, None], found.reshape(real.weight.shape), whole.weight).astype(np.int8)
    bias = np.rint(real.bias.astype(np.float64) / (unit * whole.x.scale)).astype(whole.bias.dtype)
    factors = rescale(unit * whole.x.scale / whole.y.scale)
    return replace(whole, weight=weights, bias=bias, weight_scale=unit, rescale=factors)


def _moments(pair: Pair, group: int) -> Numbers:
    """The mean products of the inputs of a group, as integers have them, with one another: (inputs * kernel, as many)."""
    layer, inputs = pair.whole, pair.whole.weight.shape[3]
    x = from_integers(pair.whole_x[..., group * inputs : (group + 1) * inputs], layer.x)
    top, bottom, left, right = layer.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    seen = windows(padded, layer.kernel, layer.stride, layer.dilation, layer.y.shape[:2])
    places = layer.y.shape[0] * layer.y.shape[1]
    few = max(1, _COLUMNS // places)
    flat = seen[:: max(1, len(seen) // few)][:few].reshape(-1, layer.weight[0].size)
    columns: Numbers = flat[:: max(1, len(flat) // _COLUMNS)].astype(np.float64)
    return columns.T @ columns / len(columns)


_TRIED = np.linspace(1.0, 0.7, 13)
"""Parts of the largest weight that the largest whole number stands for."""


def _steps(weight: Numbers, second: Numbers, steps: Numbers) -> Numbers:
    """Of each output the step with the least error of its sums, each weight rounded to the nearest."""
    best: Numbers = steps
    least: Numbers = np.full(len(weight), np.inf)
    for part in _TRIED.tolist():
        tried: Numbers = steps * part
        wrong = weight - np.clip(np.rint(weight / tried[:, None]), -127, 127) * tried[:, None]
        error = np.einsum("oi,ij,oj->o", wrong, second, wrong, optimize=True)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best


def _rounded(weight: Numbers, second: Numbers, steps: Numbers) -> Numbers:
    """Weights (outputs, inputs) as whole numbers, rounded input by input, what is lost carried on to the inputs that follow."""
    size = len(second)
    damped = second + np.eye(size) * max(0.01 * np.trace(second) / size, 1e-12)
    order = np.argsort(-np.diag(second), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, zero = weight[:, order].copy(), weight[:, order] == 0
    found = np.zeros_like(left)
    for place in range(size):
        whole = np.clip(np.rint(left[:, place] / steps), -127, 127)
        found[:, place] = np.where(zero[:, place], 0, whole)
        lost = (left[:, place] - found[:, place] * steps) / upper[place, place]
        left[:, place:] -= np.outer(lost, upper[place, place:])
    back = np.empty_like(found)
    back[:, order] = found
    return back
