"""The race: the kernels against dense runtimes, or these among themselves, each called as a caller of the compiled model would call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from secateurs.progress import waiting
from secateurs.run.choosing.ready import Ready, answered, dense_ready, nothing, torch_ready
from secateurs.run.choosing.tune import described, is_layer, sample
from secateurs.run.clock.backends import DENSE, Absent, Backend
from secateurs.run.clock.timing import Timing, measure, torch_threads
from secateurs.run.network.error import CompileError
from secateurs.run.network.nodes import Linear, Network

_KERNELS = "kernels"
_CLEAR, _LONG = 2.5, 0.01
"""Where torch takes so many seconds, and the kernels are so many times as fast, no other dense runtime is asked: none was ever seen that
far ahead of torch, save on small models, where what torch does around each operation takes the time."""
_LARGE, _SURE = 0.1, 1.1
"""Where the kernels take so many seconds, a dense runtime is first asked for each shape of layer alone: to make a whole model ready for it
takes minutes then. What takes so many times as long for the layers alone as the kernels for all cannot win."""
_CLOSE, _AHEAD = 0.25, 1.03
"""Races that end so close are run again for longer, and in doubt a dense runtime wins: it is what it would be compared with."""


@dataclass(frozen=True)
class Race:
    """Who took part, ready to be called, the seconds of each, by name, and which of the dense runtimes was fastest."""

    ready: Mapping[str, Ready]
    timings: Mapping[str, Timing]
    fastest_dense: str

    @property
    def ahead(self) -> float:
        """How many times as fast as the fastest dense runtime the kernels are; 0 where they took no part."""
        kernels = self.timings.get(_KERNELS)
        return 0.0 if kernels is None else kernels.speed_over(self.timings[self.fastest_dense])

    @property
    def winner(self) -> Ready:
        """What had better run."""
        return self.ready[_KERNELS if self.ahead > _AHEAD else self.fastest_dense]


def race(
    model: nn.Module,
    example: Any,
    network: Network,
    threads: int,
    dense: Mapping[str, Backend] = DENSE,
    kernels: Ready | None = None,
) -> Race:
    """Time a model in evaluation mode in all dense runtimes that are there, and by the kernels where they take part.

    ``network`` is what was recorded of it. Torch as it comes, on that network, always takes part.

    >>> import torch
    >>> from secateurs.run.recording.one_call import network_of
    >>> model, x = nn.Linear(8, 4).eval(), torch.ones(1, 8)
    >>> race(model, x, network_of(model, x), threads=1, dense={}).winner.chosen
    'torch'
    """
    ready = {"torch": torch_ready(network)}
    with (
        torch_threads(threads),
        waiting("racing dense runtimes" if kernels is None else "racing the kernels against dense runtimes"),
    ):
        found = None
        if kernels is not None:
            ready = {_KERNELS: kernels, **ready}
            found = _run(ready, example, threads)
        if found is None or found.ahead < _CLEAR or found.timings["torch"].median < _LONG:
            beat = 0.0 if kernels is None or found is None else found.timings[_KERNELS].median
            asked = {name: each for name, each in dense.items() if beat < _LARGE or _may_win(each, network, threads, beat)}
            made = {name: backend(model, example, threads) for name, backend in asked.items()}
            there = {name: run for name, run in made.items() if not isinstance(run, Absent)}
            ready |= {name: dense_ready(name, run, network, example) for name, run in there.items()}
            if there or found is None or len(asked) == len(dense):
                found = _run(ready, example, threads)
        if kernels is not None and abs(found.ahead - 1) < _CLOSE:
            again = _entries({name: ready[name] for name in (_KERNELS, found.fastest_dense)})
            found = replace(found, timings={**found.timings, **in_turns(again, example, threads, rounds=61)})
    return found


def _may_win(backend: Backend, network: Network, threads: int, beat: float) -> bool:
    """Whether a dense runtime's time for the linear layers alone leaves room below that of the kernels for everything."""
    seconds: dict[str, float] = {}
    total = 0.0
    for node in network.nodes:
        if not is_layer(node) or not isinstance(node, Linear):
            continue
        kind = described(replace(node, residual=None, activation=None))
        if kind not in seconds:
            seconds[kind] = _alone(backend, node, threads)
        total += seconds[kind]
        if total > beat * _SURE:
            return False
    return True


def _alone(backend: Backend, node: Linear, threads: int) -> float:
    """Seconds of one linear layer in a dense runtime; 0 where it does not tell."""
    some, times = sample(replace(node, residual=None, activation=None))
    outputs, inputs = some.weight.shape
    layer, x = nn.Linear(inputs, outputs, bias=some.bias is not None).requires_grad_(False), torch.randn(node.x.shape)
    run = backend(layer.eval(), x, threads)
    if isinstance(run, Absent):
        return 0.0
    return min(measure({"layer": partial(run, x)}, rounds=7, seconds=1.0, threads=threads)["layer"].samples) * times


def _run(ready: Mapping[str, Ready], example: Any, threads: int) -> Race:
    timings = in_turns(_entries(ready), example, threads)
    return Race(ready, timings, min((name for name in timings if name != _KERNELS), key=lambda name: timings[name].median))


def in_turns(runs: Mapping[str, Callable[[Any], Any]], example: Any, threads: int, rounds: int = 15) -> dict[str, Timing]:
    """The seconds of functions of the example, which take turns."""
    return measure({name: partial(run, example) for name, run in runs.items()}, rounds=rounds, seconds=rounds / 5, threads=threads)


def _entries(ready: Mapping[str, Ready]) -> dict[str, Callable[[Any], Any]]:
    """What a call of the compiled model would come to with each of these."""
    return {name: _entry(each) for name, each in ready.items()}


def _entry(ready: Ready) -> Callable[[Any], Any]:
    short = ready.straight or nothing

    def entry(inputs: Any) -> Any:
        found = short(inputs)
        return answered(ready, inputs, _refused, _refused) if found is None else found

    return entry


def _refused(inputs: Any, why: str = "the inputs are of another shape") -> Any:
    raise CompileError(f"{why}: a race is run on the example")
