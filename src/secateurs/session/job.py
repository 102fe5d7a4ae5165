"""Measure, prune, save, read back, measure again: what a job leaves in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateurs.compressing import compress, decompress, share_
from secateurs.costs import macs, nonzero_params, params
from secateurs.files import bytes_, load, load_masks, save
from secateurs.forward import describe
from secateurs.masks import Masks
from secateurs.progress import is_watched, waiting
from secateurs.recover import evaluate, train_
from secateurs.report import (
    Curve,
    Entry,
    History,
    Layer,
    Record,
    curve,
    environment,
    latencies,
    layers,
    measure,
    reasons,
    write_html,
    write_record,
)
from secateurs.report.words import percent
from secateurs.session.folder import COMPRESSED, DENSE, PAGE, PRUNED, RECORD
from secateurs.shrink import Shrunk, shrink_
from secateurs.types import Hook, Plan, Run, Task


@dataclass(frozen=True)
class Result:
    """What a job leaves: the record that the report shows, and the folder with its files."""

    record: Record
    folder: Path


@dataclass
class Stopwatch:
    """Seconds of a job over all runs of it: what the runs took that this one goes on from comes back with the checkpoint.

    >>> watch = Stopwatch()
    >>> watch.hook().restore({"seconds": 3600.0})
    >>> 3600 <= watch.seconds < 3700
    True
    """

    earlier: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds up to now."""
        return self.earlier + time.perf_counter() - self.began

    def start(self) -> Stopwatch:
        """Begin anew."""
        self.earlier, self.began = 0.0, time.perf_counter()
        return self

    def hook(self) -> Hook:
        """What carries the seconds through the checkpoints of a training run."""
        return Hook("stopwatch", state=lambda: {"seconds": self.seconds}, restore=self._restore)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.earlier, self.began = float(state["seconds"]), time.perf_counter()


def prune_to_folder(
    model: nn.Module,
    make: Callable[[], nn.Module],
    task: Task,
    prune: Callable[[nn.Module], Run],
    out: str | Path,
    *,
    title: str,
    seed: int | None,
    command: str,
    watch: Stopwatch | None = None,
    dense_seconds: float | None = None,
    baselines: Sequence[Entry] = (),
    curves: Sequence[Curve] = (),
    finish: Callable[[Record], Record] | None = None,
) -> Result:
    """Measure a model, prune it, save it, read it back, measure again, and write record and report into a folder.

    ``prune`` prunes the model in place and returns its training run; ``make`` builds the model's class anew for the reading back.
    The folder gets ``dense.safetensors``, ``pruned.safetensors`` (sparse layout), ``record.json`` and ``report.html``. ``watch`` is
    the clock of a job that goes on after interruptions, whose hook ``prune`` hands to its training. ``finish`` adds to the record
    what is measured last.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / DENSE, seed=seed)
    dense = measure("dense", model, task, folder / DENSE, dense_seconds)
    beginning = validation(model, task)
    watch = (watch or Stopwatch()).start()
    run = prune(model)
    seconds = watch.seconds
    notes = (_gone(run.masks, model),) if run.masks else ()
    entries = [dense, *_saved_and_reloaded(model, make, run.masks, task, folder / PRUNED, seed, seconds)]
    versions, machine, date = environment()
    record = Record(
        title,
        task.metric_name,
        task.higher_is_better,
        entries=(*entries, *baselines),
        curves=(curve("magnitude, retrained" if curves else "pruned", run.history, beginning), *curves),
        layers=layers(model, task.example),
        history=History(tuple(run.history)),
        skipped=reasons(run.masks.skipped),
        seed=seed,
        command=command,
        versions=versions,
        machine=machine,
        date=date,
        notes=notes,
    )
    return _written(record if finish is None else finish(record), folder)


def _gone(masks: Masks, model: nn.Module) -> str:
    """How much was removed, of the weights that took part and of everything: the two differ, and people ask for the first."""
    taking_part = sum(mask.numel() for mask in masks.values() if mask.ndim > 1)
    zero = 1 - nonzero_params(model) / params(model)
    return (
        f"{percent(masks.sparsity)} of the {taking_part:,} weights that take part are gone, those of neurons that were cut off "
        f"included; that leaves {percent(zero)} of all {int(params(model)):,} parameters zero, because biases, normalisations and "
        "what was left alone stay."
    )


def shrink_to_folder(
    model: nn.Module, make: Callable[[], nn.Module], task: Task, prune: Callable[[nn.Module], Run], out: str | Path, **told: Any
) -> Result:
    """As `prune_to_folder` for a pattern on channels or heads: what is masked is removed for good before the model is saved.

    Then ``pruned.safetensors`` is a plain file of smaller tensors, with the record of how the class's own model becomes as small.
    The report shows what the plan promised beside what was measured, and the latency of the dense model beside the small one's,
    measured in turn.
    """
    masked: list[Entry] = []
    did: list[Shrunk] = []
    plans: list[Plan | None] = []

    def prune_and_shrink(network: nn.Module) -> Run:
        run = prune(network)
        masked.append(replace(measure("masked", network, task), is_step=True))
        did.append(shrink_(network, run.masks, task.example, optimizer=run.optimizer))
        left = {name: mask for name, mask in run.masks.items() if not mask.all()}  # what could not go stays masked
        skipped = (*run.masks.skipped, *did[0].skipped)
        run.masks = Masks(left, network, replace(run.masks.origin, skipped=skipped))
        plans.append(run.masks.plan)
        return run

    def beside_the_dense(record: Record) -> Record:
        dense = load(Path(out) / DENSE, make).to(next(model.parameters()).device)
        before, after = latencies((dense, model), task.example)
        threads = torch.get_num_threads()
        first, *others = record.entries
        small = {layer.name: layer for layer in record.layers}
        return replace(
            record,
            entries=(
                replace(first, latency_ms=before),
                _planned(dense, task, plans[0]),
                *masked,
                *(replace(entry, latency_ms=after) if entry.name.startswith("pruned") else entry for entry in others),
            ),
            runtime=f"torch {torch.__version__.partition('+')[0]} on {threads} thread{'s' * (threads > 1)}",
            layers=tuple(_of_dense(layer, small.get(layer.name)) for layer in layers(dense, task.example)),
            notes=(*record.notes, _in_words(did[0]), f"Timed were forward passes of the example, {describe(task.example)}."),
        )

    return prune_to_folder(model, make, task, prune_and_shrink, out, finish=beside_the_dense, **told)


def compress_to_folder(
    result: Result, model: nn.Module, make: Callable[[], nn.Module], task: Task, optimizer: Optimizer, *, bits: int, epochs: int
) -> Result:
    """Give a job's pruned model 2 ** ``bits`` values a layer, train these, and write it compressed: one more row of the table.

    ``model`` is the pruned one of `result`, which the optimizer trains. The folder gets ``compressed.scz``; record and report are
    written again, with what a model read back from it scores.
    """
    start, path = time.perf_counter(), result.folder / COMPRESSED
    masks = load_masks(result.folder / PRUNED, model)
    shared = share_(model, bits, masks=masks)
    with waiting(f"sharing {2**bits} values a layer, and training them: {epochs} epochs"):
        train_(model, task, optimizer, epochs, masks=masks, hooks=[shared], show=is_watched())
    told = compress(model, path, masks, seed=result.record.seed)
    seconds = time.perf_counter() - start
    name = f"pruned, {2**bits} values a layer, compressed"
    entry = measure(name, decompress(path, make).to(next(model.parameters()).device), task, path, seconds)
    pruned = max(place for place, each in enumerate(result.record.entries) if each.name.startswith("pruned"))
    entries = [*result.record.entries[: pruned + 1], entry, *result.record.entries[pruned + 1 :]]
    note = (
        f"The compressed file, {told.bytes:,} bytes: {told.dense:,} dense, {told.pruned:,} once zeros are left out, {told.shared:,} with "
        f"{2**bits} values a layer, {told.coded:,} entropy coded, and the rest names, masks and the plan."
    )
    return _written(replace(result.record, entries=tuple(entries), notes=(*result.record.notes, note)), result.folder)


def _of_dense(dense: Layer, small: Layer | None) -> Layer:
    """What is left of a layer of the dense model; nothing where it was taken out whole."""
    if small is None:
        return replace(dense, nonzero=0, macs=0.0, new_shape=())
    return replace(dense, nonzero=small.nonzero, macs=small.macs, new_shape=small.shape)


def _planned(dense: nn.Module, task: Task, plan: Plan | None) -> Entry:
    """What a plan promises, as a row of the table; its bytes are the most that the file has."""
    left = int(params(dense, task.example, plan))
    work = macs(dense, task.example, plan)
    size = int(bytes_(dense, task.example, plan))
    return Entry("as planned", parameters=left, nonzero=left, macs=work, nonzero_macs=work, bytes=size, is_step=True)


def _in_words(shrunk: Shrunk) -> str:
    """What shrinking did, in a sentence or two."""
    sites = f"{len(shrunk.sites)} site{'s' * (len(shrunk.sites) != 1)} of the model got physically smaller"
    whole = f"taken out whole: {', '.join(shrunk.layers)}"
    did = "; ".join(each for each, there in ((sites, shrunk.sites or not shrunk.layers), (whole, shrunk.layers)) if there)
    said = (
        f"{did[0].upper()}{did[1:]}; on the example the small model's outputs differ from the masked model's by at most "
        f"{shrunk.largest_difference:.1e} of the largest."
    )
    names = ", ".join(item.name for item in shrunk.skipped)
    return said + (f" Left as zeros, because the model cannot run smaller there: {names}." if names else "")


def _written(record: Record, folder: Path) -> Result:
    """Write record and report."""
    write_record(record, folder / RECORD)
    write_html(record, folder / PAGE)
    return Result(record, folder)


def validation(model: nn.Module, task: Task) -> float | None:
    """The metric on validation data, where the task has both."""
    return None if task.validation is None or task.metric is None else evaluate(model, task, task.validation)


def _saved_and_reloaded(
    model: nn.Module, make: Callable[[], nn.Module], masks: Masks, task: Task, path: Path, seed: int | None, seconds: float
) -> list[Entry]:
    """Rows of the pruned model, as it is and as its file gives it back."""
    reached = validation(model, task)
    metric = {} if reached is None else {f"validation {task.metric_name}": reached}
    save(model, path, masks, sparse=True, metric=metric, seed=seed)
    reloaded = load(path, make).to(next(model.parameters()).device)
    return [measure("pruned", model, task, path, seconds), measure("pruned, reloaded", reloaded, task, path)]
