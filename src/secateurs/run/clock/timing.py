"""Seconds of calls that take turns, so that all of them see the same machine."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

Call = Callable[[], object]

Sampler = Callable[[], float]
"""Runs a call as often as it takes, and returns the seconds of one."""

_LEAST_ROUNDS = 3
_LONG = 10
"""A call that takes so many times as long as it is given to settle needs no call before it."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, a sample for each round; samples of one place in several timings were taken side by side.

    >>> one, other = Timing((1.0, 2.0, 9.0)), Timing((2.0, 4.0, 6.0))
    >>> one.median, one.quartiles, one.speed_over(other)
    (2.0, (1.5, 5.5), 2.0)
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        first, third = np.quantile(self.samples, (0.25, 0.75))
        return float(first), float(third)

    def speed_over(self, other: Timing) -> float:
        """How many times as fast as the other: the median of the rounds' quotients, which what slows both does not change."""
        return statistics.median(theirs / own for own, theirs in zip(self.samples, other.samples, strict=True))


def measure(
    calls: Mapping[str, Call],
    *,
    rounds: int = 31,
    seconds: float = 10.0,
    threads: int | None = None,
    cold: bool = False,
    settle: float | None = None,
) -> dict[str, Timing]:
    """Time calls in turns, in an order that is shuffled anew in each round.

    ``rounds`` become fewer once ``seconds`` have gone by, but not fewer than three. ``threads`` is what torch gets meanwhile; calls
    that bring their own threads have them set already. ``cold`` empties the caches before each call, and the clock does not run while
    it does. Otherwise each call runs unmeasured for ``settle`` seconds before it is measured, once at least unless it takes ten times as
    long: its data come into the caches, and threads of the one before go to sleep (by default as long as `settling` tells).

    >>> timings = measure({"sum": lambda: sum(range(100)), "longer sum": lambda: sum(range(2000))}, rounds=5)
    >>> timings["sum"].speed_over(timings["longer sum"]) > 1
    True
    """
    with torch_threads(threads) as given:
        settle = settling(given) if settle is None else settle
        return interleaved({name: sampler(call, cold=cold, settle=settle) for name, call in calls.items()}, rounds, seconds)


def interleaved(samplers: Mapping[str, Sampler], rounds: int, seconds: float) -> dict[str, Timing]:
    """A sample of each for each round, in turns as in `measure`; samplers may take their samples in other processes."""
    found: dict[str, list[float]] = {name: [] for name in samplers}
    order, shuffle, start = list(samplers), random.Random(0).shuffle, perf_counter()
    with _without_collector():
        for turn in range(rounds):
            if turn >= _LEAST_ROUNDS and perf_counter() - start > seconds:
                break
            shuffle(order)
            for name in order:
                found[name].append(samplers[name]())
    return {name: Timing(tuple(samples)) for name, samples in found.items()}


def sampler(call: Call, *, cold: bool = False, settle: float = 0.0, shortest: float = 2e-4) -> Sampler:
    """Warm a call up, and find how often it must run for a sample of at least ``shortest`` seconds.

    >>> sampler(lambda: sum(range(1000)))() < 1e-3
    True
    """
    call()
    if cold:
        evict = _evictor()

        def cold_sample() -> float:
            evict()
            return _seconds(call, 1)

        return cold_sample
    repeats = 1
    while (took := _seconds(call, repeats)) < shortest:
        repeats *= 2
    settles = took < _LONG * settle

    def sample() -> float:
        if not settles and settle:  # most of so long a call runs on settled caches anyway
            return _seconds(call, 1)
        end = perf_counter() + settle
        call()
        while perf_counter() < end:
            call()
        return _seconds(call, repeats) / repeats

    return sample


def settling(threads: int) -> float:
    """Seconds until a call's data are in the caches and, of several threads, those of others sleep: ONNX Runtime's stay awake for 50 ms."""
    return 0.1 if threads > 1 else 0.01


def _seconds(call: Call, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return perf_counter() - start


def _evictor() -> Call:
    """A call after which the caches hold nothing of use. It has one thread, lest others still spin when the clock runs."""
    # Ones, because pages of zeros that were never written to all share one page of memory.
    buffer = np.ones(4 * cache_bytes() // 8)
    return buffer.sum


def cache_bytes() -> int:
    """The size of the last-level cache, 32 MB where the system does not tell.

    >>> cache_bytes() >= 2**18
    True
    """
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in found if size[-1:] in units), default=2**25)


@contextmanager
def torch_threads(number: int | None) -> Iterator[int]:
    """torch with so many threads; afterwards it has as many as before."""
    import torch  # here, because processes without torch take samples too

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
