"""From models and runs to the numbers of a record: everything here is counted or measured anew, nothing is taken from a mask."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from secateurs.costs import file_bytes, nonzero_macs, nonzero_params, params, trace_macs
from secateurs.forward import call, evaluating
from secateurs.patterns import find_weights
from secateurs.progress import waiting
from secateurs.recover import evaluate
from secateurs.report.record import Curve, Entry, Layer, Point
from secateurs.types import Skipped, Task


def measure(name: str, model: nn.Module, task: Task, path: str | Path | None = None, seconds: float | None = None) -> Entry:
    """A model's row in the result table: its metric on **test** data, its counts, and the size of its file.

    ``path`` is the file that it was written to, ``seconds`` the time that making it took.

    >>> measure("dense", nn.Linear(3, 2), Task(example=torch.zeros(1, 3))).parameters
    8
    """
    metric = evaluate(model, task, task.test) if task.test is not None and task.metric is not None else None
    return Entry(
        name,
        metric,
        parameters=int(params(model)),
        nonzero=nonzero_params(model),
        macs=trace_macs(model, task.example).total,
        nonzero_macs=nonzero_macs(model, task.example),
        bytes=file_bytes(path) if path is not None else None,
        seconds=seconds,
    )


def latencies(models: Sequence[nn.Module], example: Any, passes: int = 30, most: float = 5.0) -> tuple[float, ...]:
    """Median milliseconds of a forward pass of each model, in evaluation mode; they take turns, so that all see the same machine.

    After three passes to warm up, each runs ``passes`` times, or fewer once ``most`` seconds have gone by, but once at least.

    >>> one, other = latencies((nn.Linear(3, 2), nn.Linear(3, 2)), torch.zeros(1, 3), passes=3)
    >>> one > 0
    True
    """
    times: list[list[float]] = [[] for _ in models]
    start = time.perf_counter()
    with waiting("measuring latency"):
        for turn in range(-3, passes):
            if turn > 0 and time.perf_counter() - start > most:
                break
            for model, found in zip(models, times, strict=True):
                milliseconds = _timed(model, example)
                if turn >= 0:
                    found.append(milliseconds)
    return tuple(median(found) for found in times)


def _timed(model: nn.Module, example: Any) -> float:
    with evaluating(model):
        _wait()
        start = time.perf_counter()
        call(model, example)
        _wait()
        return 1e3 * (time.perf_counter() - start)


def _wait() -> None:
    """Until an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def layers(model: nn.Module, example: Any = None) -> tuple[Layer, ...]:
    """A row for each prunable weight; MACs are those of nonzero weights, 0 without an example.

    >>> layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3))[0].macs
    6.0
    """
    macs = trace_macs(model, example).by_parameter if example is not None else {}
    rows = []
    for weight in find_weights(model, example)[0]:
        size, nonzero = weight.value.numel(), int(torch.count_nonzero(weight.value))
        kind, shape = type(weight.module).__name__, tuple(weight.value.shape)
        rows.append(Layer(weight.name, kind, shape, size, nonzero, macs.get(weight.parameter, 0.0) * nonzero / size))
    return tuple(rows)


def curve(name: str, history: Sequence[Mapping[str, float]], dense: float | None = None) -> Curve:
    """The validation metric at the end of each stretch of epochs of one sparsity, from the dense model's on where that is known.

    >>> history = [{"sparsity": 0.5, "validation": 0.7}, {"sparsity": 0.5, "validation": 0.9}]
    >>> curve("pruned", history).points
    (Point(sparsity=0.5, metric=0.9, epoch=1, spread=None),)
    """
    last = {} if dense is None else {0.0: Point(0.0, dense)}
    for epoch, entry in enumerate(history):
        if "validation" in entry:
            last[entry["sparsity"]] = Point(entry["sparsity"], entry["validation"], epoch)
    return Curve(name, tuple(last.values()))


def over_seeds(name: str, curves: Sequence[Curve]) -> Curve:
    """The mean of several runs' curves, with their standard deviation, at each sparsity that all of them reached.

    Sparsities count as the same to four decimals: what is left is a whole number of weights.

    >>> runs = [Curve("seed 0", (Point(0.5, 0.9),)), Curve("seed 1", (Point(0.5, 0.8), Point(0.9, 0.7)))]
    >>> [(round(point.metric, 3), round(point.spread, 3)) for point in over_seeds("magnitude", runs).points]
    [(0.85, 0.071)]
    """
    by_sparsity = [{round(point.sparsity, 4): point.metric for point in curve.points} for curve in curves]
    shared = sorted(set[float].intersection(*map(set, by_sparsity))) if by_sparsity else []
    metrics = {sparsity: [run[sparsity] for run in by_sparsity] for sparsity in shared}
    points = (
        Point(sparsity, mean(values), spread=stdev(values) if len(values) > 1 else None) for sparsity, values in metrics.items()
    )
    return Curve(name, tuple(points))


def reasons(skipped: Iterable[Skipped]) -> tuple[tuple[str, str], ...]:
    """What was left alone, and why, as a record holds it."""
    return tuple((item.name, item.reason) for item in skipped)
