"""A whole job, from a model and a task to a folder with the pruned model, its record and its report."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.allocate import erdos_renyi, global_threshold
from secateurs.apply import Masks, Shrunk, bytes_, load, save, shrink_
from secateurs.costs import macs, params
from secateurs.criteria import magnitude, random
from secateurs.methods import iterative_magnitude_
from secateurs.models import digits_cnn
from secateurs.patterns import Element
from secateurs.prune import prune_
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
from secateurs.solve import TopK
from secateurs.tasks import digits
from secateurs.types import Plan, Run, Task


@dataclass(frozen=True)
class Result:
    """What a job leaves: the record that the report shows, and the folder with its files."""

    record: Record
    folder: Path


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
    dense_seconds: float | None = None,
    baselines: Sequence[Entry] = (),
    curves: Sequence[Curve] = (),
) -> Result:
    """Measure a model, prune it, save it, read it back, measure again, and write record and report into a folder.

    ``prune`` prunes the model in place and returns its training run; ``make`` builds the model's class anew for the reading back.
    The folder gets ``dense.safetensors``, ``pruned.safetensors`` (sparse layout), ``record.json`` and ``report.html``.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "dense.safetensors", seed=seed)
    dense = measure("dense", model, task, folder / "dense.safetensors", dense_seconds)
    beginning = validation(model, task)
    start = time.perf_counter()
    run = prune(model)
    seconds = time.perf_counter() - start
    entries = [dense, *_saved_and_reloaded(model, make, run.masks, task, folder / "pruned.safetensors", seed, seconds)]
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
    )
    return _written(record, folder)


def shrink_to_folder(
    model: nn.Module, make: Callable[[], nn.Module], task: Task, prune: Callable[[nn.Module], Run], out: str | Path, **told: Any
) -> Result:
    """As `prune_to_folder` for a pattern on channels or heads: what is masked is removed for good before the model is saved.

    Then ``pruned.safetensors`` is a plain file of smaller tensors, with the record of how the class's own model becomes as small.
    The report shows what the plan promised beside what was measured, and the latency of the dense model beside the small one's.
    """
    masked: list[Entry] = []
    did: list[Shrunk] = []
    plans: list[Plan | None] = []

    def prune_and_shrink(network: nn.Module) -> Run:
        run = prune(network)
        masked.append(measure("masked", network, task))
        did.append(shrink_(network, run.masks, task.example, optimizer=run.optimizer))
        run.masks = Masks(run.masks, network, run.masks.plan, run.masks.pattern, (*run.masks.skipped, *did[0].skipped))
        plans.append(run.masks.plan)
        return run

    result = prune_to_folder(model, make, task, prune_and_shrink, out, **told)
    dense = load(result.folder / "dense.safetensors", make).to(next(model.parameters()).device)
    first, *others = result.record.entries
    small = {layer.name: layer for layer in result.record.layers}
    record = replace(
        result.record,
        entries=(first, _planned(dense, task, plans[0]), *masked, *others),
        layers=tuple(_of_dense(layer, small.get(layer.name)) for layer in layers(dense, task.example)),
        notes=(*result.record.notes, _in_words(did[0]), _faster(dense, model, task)),
    )
    return _written(record, result.folder)


def _of_dense(dense: Layer, small: Layer | None) -> Layer:
    """What is left of a layer of the dense model; nothing where it was taken out whole."""
    return replace(dense, nonzero=small.nonzero if small else 0, macs=small.macs if small else 0.0)


def _planned(dense: nn.Module, task: Task, plan: Plan | None) -> Entry:
    """What a plan promises, as a row of the table; its bytes are the most that the file has."""
    left = int(params(dense, task.example, plan))
    work = macs(dense, task.example, plan)
    return Entry("as planned", None, left, left, work, work, int(bytes_(dense, task.example, plan)), None)


def _in_words(shrunk: Shrunk) -> str:
    """What shrinking did, in a sentence or two."""
    said = (
        f"{len(shrunk.sites)} site{'s' * (len(shrunk.sites) != 1)} of the model got physically smaller; on the example the small "
        f"model's outputs differ from the masked model's by at most {shrunk.largest_difference:.1e} of the largest."
    )
    if shrunk.layers:
        said += f" Taken out whole: {', '.join(shrunk.layers)}."
    names = ", ".join(item.name for item in shrunk.skipped)
    return said + (f" Left as zeros, because the model cannot run smaller there: {names}." if names else "")


def _faster(dense: nn.Module, small: nn.Module, task: Task) -> str:
    """Latency of the example, dense and small in turn."""
    before, after = latencies((dense, small), task.example)
    return (
        f"One forward pass of the example: {before:.3g} ms dense, {after:.3g} ms shrunk (medians of passes in turn on this machine, "
        f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})."
    )


def _written(record: Record, folder: Path) -> Result:
    """Write record and report."""
    write_record(record, folder / "record.json")
    write_html(record, folder / "report.html")
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


# ---------------------------------------------------------------- the demo

_ROUNDS, _EPOCHS = 10, 10


def demo_job(out: str | Path, seed: int, sparsity: float, command: str) -> Result:
    """Train a small convolutional network on scikit-learn's digits, prune it in rounds, and report it beside three baselines."""
    task = digits(seed=seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    dense = _trained(digits_cnn(), task, 4 * _EPOCHS)
    dense_seconds = time.perf_counter() - start
    baselines, curves = _baselines(dense, task, seed, sparsity)
    return prune_to_folder(
        dense,
        digits_cnn,
        task,
        lambda model: _in_rounds(model, task, sparsity),
        out,
        title="Handwritten digits, pruned",
        seed=seed,
        command=command,
        dense_seconds=dense_seconds,
        baselines=baselines,
        curves=curves,
    )


def _trained(model: nn.Module, task: Task, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    train_(model, task, optimizer, epochs, scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs))
    return model


def _in_rounds(model: nn.Module, task: Task, sparsity: float, of_random: int | None = None) -> Run:
    """Pruning in rounds, by magnitude over the whole model, or at random with Erdős–Rényi densities, where random does best."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return iterative_magnitude_(
        model,
        task,
        optimizer,
        sparsity=sparsity,
        rounds=_ROUNDS,
        epochs_per_round=_EPOCHS,
        last_epochs=2 * _EPOCHS,
        criterion=magnitude() if of_random is None else random(of_random),
        allocate=global_threshold if of_random is None else erdos_renyi,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, _EPOCHS),
    )


def _baselines(dense: nn.Module, task: Task, seed: int, sparsity: float) -> tuple[list[Entry], list[Curve]]:
    """What any pruning must beat: the naive cut, random choice with the same retraining, a small dense network trained as long."""
    cut = copy.deepcopy(dense)
    prune_(cut, Element(), TopK(magnitude()), global_threshold(sparsity=sparsity), task)
    random_model = copy.deepcopy(dense)
    start = time.perf_counter()
    random_run = _in_rounds(random_model, task, sparsity, of_random=seed)
    random_seconds = time.perf_counter() - start
    limit = (1 - sparsity) * params(dense)
    width = max(step / 100 for step in range(1, 100) if params(digits_cnn(width=step / 100)) <= limit)
    start = time.perf_counter()
    small = _trained(digits_cnn(width=width), task, (4 + _ROUNDS + 2) * _EPOCHS)
    entries = [
        measure("random, same sparsity", random_model, task, seconds=random_seconds),
        measure("dense, same size", small, task, seconds=time.perf_counter() - start),
        measure("cut once, not retrained", cut, task),
    ]
    return entries, [curve("random, retrained", random_run.history, validation(dense, task))]
