"""The integers that answer most like the network in float32: ways to choose them, tried on calibration inputs that none of them saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateurs.integers.correct import Change, corrected, rounded_together, unbiased
from secateurs.integers.equalise import equalised, reaches
from secateurs.integers.layers import Kind, Network, Numbers
from secateurs.integers.quantise import from_integers, quantised, to_integers
from secateurs.integers.ranges import Packed, Seen, least_error, minmax, packed_batches, percentile, ranges_of, seen_in, seen_of
from secateurs.integers.reference import run
from secateurs.progress import track
from secateurs.types import SecateursError, TaskError

_LEAST = 8
_MOST = 1024
"""So many samples of the calibration inputs are kept, at most, from the first on."""

_HELD = 64
"""So many of those that are held out are run, at most: each way that is tried runs them."""


@dataclass(frozen=True)
class Tried:
    """One way: how ranges were chosen, what was equalised and corrected, and its signal-to-noise in decibels on inputs held out."""

    ranges: str
    equalised: str
    corrected: str
    decibels: float


@dataclass(frozen=True)
class Best:
    """The network in integers that answered most like the one in float32, and all that was tried, in that order.

    ``decibels`` = 10 log10(sum y^2 / sum (y - y')^2) over the outputs of ``held_out`` samples; ``samples`` others gave the ranges.
    """

    network: Network
    tried: tuple[Tried, ...]
    samples: int
    held_out: int

    @property
    def kept(self) -> Tried:
        """The way that was kept."""
        return max(self.tried, key=lambda each: each.decibels)

    def __str__(self) -> str:
        rows = [("ranges", "equalised", "corrected", "signal to noise, dB")]
        rows += [
            (each.ranges, each.equalised, each.corrected, f"{each.decibels:.1f}{' ← kept' if each is self.kept else ''}")
            for each in self.tried
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(part.ljust(width) for part, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
        ]
        return "\n".join([*lines, f"ranges from {self.samples} samples, decibels on {self.held_out} others"])


def best(network: Network, batches: Iterable[Any], kind: Kind = "int8", show: bool = True) -> Best:
    """A network in integers, with what loses least of: ranges, equalisation, rounding and biases chosen by calibration inputs.

    Of the calibration inputs every fourth sample is held out; the others give ranges and corrections. Each method of `ranges` is tried
    with and without `equalised`; then, with the two that answer most like float32, `unbiased`, alone and after `rounded_together`. What is
    kept is made once more of all of them. Nothing is random: the same inputs give the same network.

    ``show``: a bar tells how far it is. Raises `TaskError` with fewer than 8 samples, and what `calibrated` and `quantised` raise.

    >>> import torch
    >>> from secateurs.integers.build import built
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> found = best(built(model, torch.randn(2, 8)), [torch.randn(64, 8)])
    >>> found.network.kind, found.samples, found.held_out, found.kept.decibels > 25
    ('int8', 48, 16, True)
    """
    if kind not in ("int8", "int16"):
        raise SecateursError(f"best: kind={kind!r} is neither 'int8' nor 'int16'; float32 needs no integers to be chosen")
    everything = _all(network, batches)
    held = np.arange(len(everything.arrays[0])) % 4 == 3
    part, others = Packed(tuple(each[~held] for each in everything.arrays)), [each[held][:_HELD] for each in everything.arrays]
    wanted = run(network, others)
    variants = _variants(network, part)
    methods = {each.name: each for each in (minmax(), percentile(), least_error())}
    tried: list[Tried] = []

    def made(method: str, real: Network, seen: dict[str, Seen], fixed: str, by: Packed) -> Network:
        whole = quantised(real, ranges_of(seen, methods[method], kind), kind)
        return corrected(whole, real, [by], _CHANGES[fixed]) if _CHANGES[fixed] else whole

    def attempt(method: str, how: str, fixed: str) -> None:
        whole = made(method, *variants[how], fixed, part)
        tried.append(Tried(method, how, fixed, decibels(whole, others, wanted)))

    for how, method in track([(how, method) for how in variants for method in methods], "choosing how to quantise", show=show):
        attempt(method, how, "no")
    for way in sorted(tried, key=lambda each: -each.decibels)[:2]:
        attempt(way.ranges, way.equalised, "biases")
        attempt(way.ranges, way.equalised, "rounding and biases")
    kept = max(tried, key=lambda each: each.decibels)
    again = _variants(network, everything, kept.equalised)[kept.equalised]
    whole = made(kept.ranges, *again, kept.corrected, everything)
    return Best(whole, tuple(tried), len(part.arrays[0]), len(others[0]))


_CHANGES: dict[str, Sequence[Change]] = {"no": (), "biases": (unbiased,), "rounding and biases": (rounded_together, unbiased)}


def _all(network: Network, batches: Iterable[Any]) -> Packed:
    """Calibration inputs, as many as are looked at."""
    found: list[list[Numbers]] = []
    for inputs in packed_batches(network, batches):
        found.append(inputs)
        if sum(len(each[0]) for each in found) >= _MOST:
            break
    samples = sum(len(each[0]) for each in found)
    if samples < _LEAST:
        raise TaskError(
            f"best: {samples} calibration samples are too few to choose by some and compare by others: give at least {_LEAST}, better "
            "some hundred, or take calibrated and quantised, which choose nothing"
        )
    return Packed(tuple(np.concatenate(parts)[:_MOST] for parts in zip(*found, strict=True)))


def _variants(network: Network, part: Packed, only: str | None = None) -> dict[str, tuple[Network, dict[str, Seen]]]:
    """The network as it is and equalised in each way (or in one alone), and what its arrays show."""
    reached = reaches(network, [part])
    found = {
        "no": network,
        "by weights": equalised(network),
        "by ranges, 0.25": equalised(network, reached, 0.25),
        "by ranges, 0.5": equalised(network, reached, 0.5),
    }
    if only is not None:
        return {only: (found[only], seen_in(network, [part]) if only == "no" else seen_of(found[only], [part]))}
    plain = seen_in(network, [part])
    same = {how for how, each in found.items() if all(one is two for one, two in zip(each.layers, network.layers, strict=True))}
    return {
        how: (each, plain if how == "no" else seen_of(each, [part]))
        for how, each in found.items()
        if how == "no" or how not in same
    }


def decibels(whole: Network, inputs: Sequence[Numbers], wanted: Sequence[Numbers]) -> float:
    """Signal to noise of a network in integers: 10 log10(sum y^2 / sum (y - y')^2) over all outputs, given those in float32.

    ``inputs`` are float32 as `Face.packed` has them. Each output counts alike, whatever its size.
    """
    given = [to_integers(each, face.array) for each, face in zip(inputs, whole.inputs, strict=True)]
    noise = 0.0
    for made, face, exact in zip(run(whole, given), whole.outputs, wanted, strict=True):
        wrong = from_integers(made, face.array).astype(np.float64) - exact
        power = float((exact.astype(np.float64) ** 2).sum())
        noise += float((wrong**2).sum()) / (power or 1.0) / len(whole.outputs)
    return float("inf") if noise == 0 else -10 * float(np.log10(noise))
