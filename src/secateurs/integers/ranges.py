"""What range of numbers each array of a network needs, seen on calibration inputs: from these its integers get their scales."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
from torch import Tensor

from secateurs.integers.layers import LIMITS, Array, Face, Kind, Network, Numbers, written
from secateurs.integers.quantise import Range
from secateurs.integers.reference import values_of
from secateurs.types import NonFiniteError, SecateursError, TaskError
from secateurs.watch.lines import is_users

_AT_ONCE = 64
_BINS = 4096
"""What is kept of an array at most: so many counts, of bins that become twice as wide whenever they do not reach."""


@dataclass
class Seen:
    """What an array showed: extremes, how many numbers were exactly 0, and a histogram of the others.

    ``counts[i]`` is of the numbers from ``(first + i) * width`` on, up to the next bin.
    """

    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0
    width: float = 0.0
    first: int = 0
    counts: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        """How many numbers were seen."""
        return self.zeros + int(self.counts.sum())

    @property
    def centres(self) -> Numbers:
        """The middle of each bin."""
        return (self.first + np.arange(len(self.counts)) + 0.5) * self.width

    def add(self, numbers: Numbers) -> None:
        """Count further numbers, all finite.

        >>> seen = Seen()
        >>> seen.add(np.array([0.0, 1.0, 3.0])); seen.add(np.array([-500.0]))
        >>> seen.low, seen.high, seen.zeros, seen.total
        (-500.0, 3.0, 1, 4)
        """
        low, high = float(numbers.min()), float(numbers.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        others = numbers[numbers != 0].astype(np.float64)
        self.zeros += numbers.size - others.size
        if not others.size:
            return
        if not self.width:
            reach = max(high - low, abs(low), abs(high))
            self.width = 2.0 ** np.ceil(np.log2(reach) - 11)  # powers of two: bins of twice the width are pairs of those before
        while np.floor(self.high / self.width) - np.floor(self.low / self.width) >= _BINS:
            self._widen()
        places = np.floor(others / self.width).astype(np.int64)
        first = min(int(places.min()), self.first) if len(self.counts) else int(places.min())
        end = max(int(places.max()) + 1, self.first + len(self.counts)) if len(self.counts) else int(places.max()) + 1
        counts = np.bincount(places - first, minlength=end - first)
        counts[self.first - first :][: len(self.counts)] += self.counts
        self.first, self.counts = first, counts

    def _widen(self) -> None:
        self.width *= 2
        places = (self.first + np.arange(len(self.counts))) >> 1
        if len(places):
            self.first, self.counts = int(places[0]), np.bincount(places - places[0], self.counts).astype(np.int64)


@dataclass(frozen=True)
class Method:
    """How a range follows from what an array showed, for integers of a kind."""

    name: str
    range_of: Callable[[Seen, Kind], Range]


def minmax() -> Method:
    """From the least number to the largest: nothing that calibration saw is clipped.

    >>> seen = Seen()
    >>> seen.add(np.array([-1.0, 2.0]))
    >>> minmax().range_of(seen, "int8")
    (-1.0, 2.0)
    """
    return Method("minmax", lambda seen, kind: (seen.low, seen.high))


def percentile(within: float = 99.99) -> Method:
    """All but the ``100 - within`` % least and as many of the largest numbers, which are clipped; of those that are not exactly 0.

    Raises `SecateursError` where ``within`` is not above 50, up to 100.

    >>> seen = Seen()
    >>> seen.add(np.arange(1, 1001))
    >>> [round(end) for end in percentile(99).range_of(seen, "int8")]
    [11, 990]
    """
    if not 50 < within <= 100:
        raise SecateursError(f"percentile: {within} is not above 50, up to 100; 99.99 clips one of 10,000 numbers on either side")

    def range_of(seen: Seen, kind: Kind) -> Range:
        if not len(seen.counts):
            return seen.low, seen.high
        left = seen.counts.sum() * (1 - within / 100)
        upwards, downwards = np.cumsum(seen.counts), np.cumsum(seen.counts[::-1])
        start, end = int(np.searchsorted(upwards, left, "right")), int(np.searchsorted(downwards, left, "right"))
        low, high = (seen.first + start) * seen.width, (seen.first + len(seen.counts) - end) * seen.width
        return max(seen.low, low if start else -np.inf), min(seen.high, high if end else np.inf)

    return Method(f"percentile {within:g}", range_of)


_ENDS = np.linspace(1.0, 0.2, 65)
"""The parts of an array's extremes that `least_error` tries as ends, each with each."""


def least_error() -> Method:
    """The range with the least mean squared error of what an array showed: numbers outside are clipped, those inside rounded.

    Of a rounded number the expected square of the error is taken, a twelfth of a step's; zeros have none (as in Banner et al. 2019,
    arXiv:1810.05723, but of the numbers themselves in place of a distribution).

    >>> seen = Seen()
    >>> seen.add(np.concatenate([np.random.default_rng(0).normal(size=1_000_000), [40.0]]))
    >>> 5 < least_error().range_of(seen, "int8")[1] < 30
    True
    """

    def range_of(seen: Seen, kind: Kind) -> Range:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if not len(seen.counts) or low == high:
            return seen.low, seen.high
        lows = low * _ENDS if low else np.zeros(1)
        highs = high * _ENDS if high else np.zeros(1)
        below, above = _outside(seen, lows, -1.0), _outside(seen, highs, 1.0)
        reach = highs[None] - lows[:, None] if kind == "int8" else 2 * np.maximum(highs[None], -lows[:, None])
        step = reach / (LIMITS[kind][1] - LIMITS[kind][0])
        inside = seen.counts.sum() - below[0][:, None] - above[0][None]
        error = below[1][:, None] + above[1][None] + inside * step**2 / 12
        at, to = np.unravel_index(int(error.argmin()), error.shape)
        return float(lows[at]), float(highs[to])

    return Method("least error", range_of)


def _outside(seen: Seen, ends: Numbers, sign: float) -> tuple[Numbers, Numbers]:
    """How many numbers lie beyond each end, and the sum of the squares of how far."""
    beyond = np.maximum(sign * (seen.centres[None] - ends[:, None]), 0.0)
    return (beyond > 0) @ seen.counts, beyond**2 @ seen.counts


# ---------------------------------------------------------------- running


def calibrated(network: Network, batches: Iterable[Any], method: Method | None = None, kind: Kind = "int8") -> dict[str, Range]:
    """The range of each array of a network in float32, by its name; ``method`` (`minmax`) says how it follows from what arrays show.

    ``batches`` are walked once: tensors, pairs ``(inputs, target)`` of which the inputs are taken, or mappings by the names of the
    inputs. What is kept of them is bounded, however many there are. Arrays that were always 0 are warned of: whatever else comes there
    later is clipped to 0.

    Raises `TaskError` where there is no sample, or inputs that do not fit; `NonFiniteError` where a layer's numbers are not finite.

    >>> from secateurs.integers.build import built
    >>> from torch import nn, ones
    >>> network = built(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), ones(1, 2, 2))
    >>> calibrated(network, [-ones(3, 2, 2), 2 * ones(3, 2, 2)])["input"]
    (-1.0, 2.0)
    """
    return ranges_of(seen_in(network, batches), method or minmax(), kind)


def ranges_of(seen: Mapping[str, Seen], method: Method, kind: Kind = "int8") -> dict[str, Range]:
    """The range of each array, given what `seen_in` saw of it."""
    return {name: method.range_of(each, kind) for name, each in seen.items()}


def seen_in(network: Network, batches: Iterable[Any]) -> dict[str, Seen]:
    """What the arrays of a network in float32 show on batches, by their names; raises and warns as `calibrated` does."""
    found = seen_of(network, batches)
    still = [name for name, each in found.items() if each.low == each.high == 0]
    if still:
        warnings.warn(
            f"calibration saw nothing but 0 in {', '.join(still)}: anything else that comes there later is clipped to about "
            "0; calibrate on more inputs, or leave out what does nothing",
            stacklevel=_to_the_user(),
        )
    return found


def _to_the_user() -> int:
    """How many calls up from the caller the first line is that is not ours, as `warnings.warn` counts."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and not is_users(frame):
        frame, level = frame.f_back, level + 1
    return level if frame is not None else 1


def seen_of(network: Network, batches: Iterable[Any]) -> dict[str, Seen]:
    """The same without a warning."""
    found: dict[str, Seen] = {}
    makers = {array.name: layer.name for layer in network.layers for array in written(layer)}
    samples = number = 0

    def see(array: Array, numbers: Numbers) -> None:
        wrong = numbers.size - int(np.isfinite(numbers).sum())
        if wrong:
            who = f"{makers[array.name]} gives" if array.name in makers else f"{array.name} has"
            raise NonFiniteError(
                f"batch {number}: {who} {wrong} of {numbers.size} numbers that are NaN or infinite; calibrate on inputs with which "
                "the model in float32 is sound"
            )
        found.setdefault(array.name, Seen()).add(numbers)

    for number, inputs in enumerate(packed_batches(network, batches), 1):  # noqa: B007 (what `see` tells)
        samples += len(inputs[0])
        for start in range(0, len(inputs[0]), _AT_ONCE):
            with np.errstate(over="ignore", invalid="ignore"):  # told with a name
                values_of(network, [each[start : start + _AT_ONCE] for each in inputs], see)
    if not samples:
        raise TaskError(
            f"calibration had {number} batches and no sample: give inputs like those that the network will see, some hundred of them"
        )
    return found


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch as `reference.run` takes it: one array an input, (samples, height, width, channels), float32."""

    arrays: tuple[Numbers, ...]


def packed_batches(network: Network, batches: Iterable[Any]) -> Iterator[list[Numbers]]:
    """Of each batch what `reference.run` takes: one array an input, (samples, height, width, channels), float32."""
    if isinstance(batches, (Tensor, np.ndarray, str)) or not isinstance(batches, Iterable):
        what = f"one tensor {tuple(batches.shape)}" if isinstance(batches, (Tensor, np.ndarray)) else repr(batches)
        raise TaskError(f"calibration is {what}, but must be batches, one after the other: [inputs] for example")
    if isinstance(batches, Mapping):
        names = ", ".join(f"{face.name!r}: …" for face in network.inputs)
        raise TaskError(f"calibration is one mapping, but must be batches, one after the other: [{{{names}}}]")
    for number, batch in enumerate(batches, 1):
        if isinstance(batch, Packed):
            yield list(batch.arrays)
            continue
        given = _inputs_of(network, batch, number)
        packed = [_packed(face, tensor, number) for face, tensor in zip(network.inputs, given, strict=True)]
        if len({len(each) for each in packed}) > 1:
            raise TaskError(f"batch {number}: the inputs have {[len(each) for each in packed]} samples; each needs as many")
        yield packed


def _packed(face: Face, tensor: Any, number: int) -> Numbers:
    numbers = np.asarray(tensor.detach().cpu().float() if isinstance(tensor, Tensor) else tensor, np.float32)
    fits = numbers.ndim == len(face.shape) and all(
        one == two or (face.batched and dim == 0) for dim, (one, two) in enumerate(zip(numbers.shape, face.shape, strict=True))
    )
    if not fits:
        wanted = ("samples", *face.shape[1:]) if face.batched else face.shape
        more = numbers.ndim == len(face.shape) + 1
        raise TaskError(
            f"batch {number}: the {face.name} is {numbers.shape}, but the network was built for ({', '.join(map(str, wanted))})"
            + ("; for batches of many samples the example needs a batch dimension too, x[None]" if more else "")
        )
    return face.packed(numbers)


def _inputs_of(network: Network, batch: Any, number: int) -> Sequence[Any]:
    """The inputs of a batch in the order of the network's."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        both = len(network.inputs) == 2 and isinstance(batch[0], (Tensor, np.ndarray))
        batch = batch if both else batch[0]  # (inputs, target), but two tensors are the inputs of a network that has two
    if isinstance(batch, Mapping):
        missing = [face.name for face in network.inputs if face.name not in batch]
        if not missing:
            return [batch[face.name] for face in network.inputs]
        if len(network.inputs) > 1:
            raise TaskError(f"batch {number}: it has no {', '.join(missing)}; the network's inputs go by these names")
        batch = next(iter(batch.values()), None)
    found = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(found) != len(network.inputs) or not all(isinstance(each, (Tensor, np.ndarray)) for each in found):
        raise TaskError(
            f"batch {number}: {len(found)} parts of {', '.join(dict.fromkeys(type(each).__name__ for each in found))}, where the network "
            f"takes {len(network.inputs)} tensors: give a tensor, or (inputs, target)"
        )
    return found
