"""What a pruning run leaves behind: every number that a report shows, and where it came from; JSON in and out."""

from __future__ import annotations

import math
import os
import platform
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from secateurs.report.files import read_parsed, replace_text
from secateurs.report.schema import document, parsed
from secateurs.types import SecateursError

FORMAT = "secateurs record"
VERSION = 2
_READ = (1, 2)  # a record of version 1 is one of version 2 without what was added: latencies, new shapes, spreads, steps


@dataclass(frozen=True)
class Entry:
    """One row of the result table: a model, what it scores on **test** data, and what it costs.

    The names that the report knows are ``"dense"`` (what the others are compared with) and those that begin with ``"pruned"``
    (the last one is the result); all others are baselines, such as ``"random, same sparsity"`` or ``"dense, same size"``.

    - ``metric``: on test data, in the unit of the record's metric; ``None`` where it was not measured
    - ``parameters``, ``nonzero``: whole numbers of parameters held, and of those that are not zero
    - ``macs``, ``nonzero_macs``: multiply-accumulates of one example, by all weights and by the nonzero ones; counted
    - ``bytes``: size of the file written
    - ``seconds``: wall-clock seconds spent on making it (training, pruning, recovering), **not** the time of a forward pass
    - ``metric_spread``: standard deviation of the metric over runs with other seeds, in the metric's unit
    - ``latency_ms``: measured milliseconds of one forward pass; the record's ``runtime`` says in what
    - ``is_step``: whether it is a step on the way to the result, such as the masked model, and no baseline

    ``None`` stands for what was not measured. Raises `SecateursError` where the numbers contradict each other.

    >>> Entry("pruned", 0.98, parameters=1000, nonzero=50, macs=8e3, nonzero_macs=400.0, bytes=612, seconds=3.5).nonzero
    50
    """

    name: str
    metric: float | None = None
    parameters: int | None = None
    nonzero: int | None = None
    macs: float | None = None
    nonzero_macs: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    metric_spread: float | None = None
    latency_ms: float | None = None
    is_step: bool = False

    def __post_init__(self) -> None:
        where = f"Entry({self.name!r})"
        for part, whole in (("nonzero", "parameters"), ("nonzero_macs", "macs")):
            less, more = getattr(self, part), getattr(self, whole)
            if less is not None and more is not None and not 0 <= less <= more:
                raise SecateursError(f"{where}: {part}={less}, {whole}={more}; expected 0 <= {part} <= {whole}")
        for name in ("parameters", "nonzero", "macs", "nonzero_macs", "bytes", "seconds", "metric_spread", "latency_ms"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SecateursError(f"{where}: {name}={value}; expected zero or more, or None where it was not measured")


@dataclass(frozen=True)
class Point:
    """The metric on **validation** data at one step of pruning.

    ``sparsity`` is the fraction of the weights removed, in [0, 1]; ``epoch`` counts training epochs from 0, where known;
    ``spread`` is the standard deviation over runs with other seeds, drawn as a band around the line.
    Raises `SecateursError` where the sparsity is not a fraction or the spread is negative.

    >>> Point(sparsity=0.9, metric=0.97).epoch is None
    True
    """

    sparsity: float
    metric: float
    epoch: int | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise SecateursError(f"Point: sparsity={self.sparsity}; expected the fraction removed, from 0 to 1")
        if self.spread is not None and self.spread < 0:
            raise SecateursError(f"Point: spread={self.spread}; expected zero or more, or None where it is one run")


@dataclass(frozen=True)
class Curve:
    """The metric on **validation** data against sparsity, over the steps of one pruning run.

    >>> Curve("pruned", (Point(0.0, 0.98), Point(0.5, 0.97))).points[1].sparsity
    0.5
    """

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Layer:
    """One weight of the pruned model.

    ``kind`` is the class of its module, ``shape`` that of the weight, ``parameters`` and ``nonzero`` are whole numbers of
    weights, and ``macs`` counts the multiply-accumulates of one example by the nonzero weights. Where channels or heads went for
    good, all but ``nonzero`` and ``macs`` are those of the dense model, and ``new_shape`` is what is left, empty for a layer that
    is gone. Raises `SecateursError` where the numbers contradict each other.

    >>> Layer("conv1", "Conv2d", (8, 1, 3, 3), parameters=72, nonzero=18, macs=1920.0).sparsity
    0.75
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    nonzero: int
    macs: float
    new_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        where = f"Layer({self.name!r})"
        if not 0 <= self.nonzero <= self.parameters:
            given = f"nonzero={self.nonzero}, parameters={self.parameters}"
            raise SecateursError(f"{where}: {given}; expected 0 <= nonzero <= parameters")
        if self.macs < 0 or any(size < 0 for size in (*self.shape, *(self.new_shape or ()))):
            raise SecateursError(f"{where}: macs={self.macs}, shape={self.shape}; expected zero or more")

    @property
    def sparsity(self) -> float:
        """Fraction of the weights removed, in [0, 1]; 0 for a layer without weights."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class History:
    """One dict of numbers for each training epoch, in order; any key may be missing from any epoch.

    The report draws ``"loss"`` (mean over the training batches), ``"validation"`` (in the unit of the record's metric) and
    ``"sparsity"`` (fraction removed, in [0, 1]); other keys, such as ``"lr"``, are kept in the JSON.

    >>> History(({"loss": 0.31, "sparsity": 0.0}, {"loss": 0.22, "sparsity": 0.5})).column("sparsity")
    (0.0, 0.5)
    """

    epochs: tuple[dict[str, float], ...] = ()

    def column(self, key: str) -> tuple[float, ...]:
        """One number for each epoch, NaN where it is missing or not finite; empty where no epoch has it."""
        values = tuple(float(epoch.get(key, math.nan)) for epoch in self.epochs)
        finite = tuple(value if math.isfinite(value) else math.nan for value in values)
        return () if all(map(math.isnan, finite)) else finite


@dataclass(frozen=True)
class Record:
    """The whole of one pruning run, enough to print the table, draw the page and make it again.

    ``metric_name`` is what ``Entry.metric`` and ``Point.metric`` measure; a metric for which higher is better and that stays
    within [0, 1] is shown in %. ``skipped`` holds ``(name, reason)`` of every weight left alone. ``command`` is the exact
    command or code; `environment` gives ``versions`` (by package), ``machine`` (in words) and ``date`` (ISO 8601). ``runtime`` is
    what the latencies were measured in, such as ``"torch 2.13.0 on 1 thread"``.

    >>> record = Record("Digits", "accuracy", entries=(Entry("dense", 0.987, 1000, 1000, 8e3, 8e3, 4096, None),))
    >>> Record.from_json(record.to_json()) == record
    True
    """

    title: str
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    entries: tuple[Entry, ...] = ()
    curves: tuple[Curve, ...] = ()
    layers: tuple[Layer, ...] = ()
    history: History = field(default_factory=History)
    skipped: tuple[tuple[str, str], ...] = ()
    seed: int | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    date: str = ""
    notes: tuple[str, ...] = ()
    runtime: str = ""

    @property
    def dense(self) -> Entry | None:
        """The entry that the others are compared with: the first one called ``"dense"``."""
        return next((entry for entry in self.entries if entry.name == "dense"), None)

    @property
    def pruned(self) -> Entry | None:
        """The result: the last entry whose name begins with ``"pruned"``, so that what was read back from a file wins."""
        return next((entry for entry in reversed(self.entries) if entry.name.startswith("pruned")), None)

    @property
    def in_percent(self) -> bool:
        """Whether the metric reads as a fraction: higher is better, and every value lies within [0, 1]."""
        values = [value for value in self._metrics() if value is not None and math.isfinite(value)]
        return self.higher_is_better and bool(values) and all(0 <= value <= 1 for value in values)

    def _metrics(self) -> Iterator[float | None]:
        yield from (entry.metric for entry in self.entries)
        yield from (point.metric for curve in self.curves for point in curve.points)
        yield from self.history.column("validation")

    def to_json(self) -> str:
        """The record as JSON text; what is not finite becomes the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.

        Raises `SecateursError` where the record holds something that is neither text nor a number.
        """
        return document(self, "record", FORMAT, VERSION)

    @staticmethod
    def from_json(text: str) -> Record:
        """The record that `to_json` wrote; raises `FileError`, saying what was expected where, for any other text.

        >>> Record.from_json('{"format": "secateurs record", "version": 1, "title": 7}')
        Traceback (most recent call last):
            ...
        secateurs.types.FileError: this is not a record: record.title is 7, expected text
        """
        return typing.cast(Record, parsed(text, Record, "record", FORMAT, _READ))


def write_record(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write the record as JSON in one step and return the path; on failure the old file, if any, survives.

    Raises `OSError` where the file cannot be written.

    >>> import tempfile
    >>> path = write_record(Record("Digits"), Path(tempfile.mkdtemp()) / "record.json")
    >>> read_record(path).title
    'Digits'
    """
    return replace_text(path, record.to_json())


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record that `write_record` wrote (see there for an example).

    Raises `FileError`, naming the file and what was expected, where it holds anything else; `OSError` where it cannot be read.
    """
    return read_parsed(path, Record.from_json, "record")


def environment() -> tuple[dict[str, str], str, str]:
    """Versions by package, the machine in words, and the date (UTC, ISO 8601): what a `Record` says about where it was made.

    >>> versions, machine, date = environment()
    >>> sorted(versions)
    ['numpy', 'python', 'secateurs', 'torch']
    """
    versions = {"python": platform.python_version()}
    for package in ("secateurs", "torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "(not installed)"
    # The cores that this process may use: in a container or a batch job, fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    parts = [_processor(), f"{cores} core{'s' * (cores > 1)}", *_accelerator(), platform.platform(terse=True)]
    return versions, ", ".join(parts), datetime.now(timezone.utc).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _accelerator() -> list[str]:
    import torch

    return [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
