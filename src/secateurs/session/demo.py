"""The demo: a small network on real digits, pruned and reported beside what any pruning must beat."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from torch import nn

from secateurs.allocate import erdos_renyi, global_threshold
from secateurs.costs import params
from secateurs.criteria import magnitude, random
from secateurs.methods import iterative_magnitude_, width_of_size
from secateurs.models import digits_cnn
from secateurs.patterns import Element
from secateurs.progress import is_watched, waiting
from secateurs.prune import prune_
from secateurs.recover import geometric, train_
from secateurs.report import Curve, Entry, curve, measure
from secateurs.run.clock.timing import torch_threads
from secateurs.session.folder import begin, require_free
from secateurs.session.job import Result, compress_to_folder, prune_to_folder, validation
from secateurs.session.trial import quickest_threads
from secateurs.solve import TopK
from secateurs.tasks import digits
from secateurs.types import Run, Task

_ROUNDS, _EPOCHS, _BITS = 6, 6, 4


def demo_job(
    out: str | Path, seed: int, sparsity: float, command: str, *, force: bool = False, threads: int | None = None
) -> Result:
    """Train a small convolutional network on scikit-learn's digits, prune it in rounds, and report it beside three baselines.

    ``threads`` is what torch gets; by default what a few training steps are quickest with. Raises `SecateursError` where the folder
    holds another run, without ``force``, and for a sparsity that leaves too little for a dense network of the same size.
    """
    options = {"command": "demo", "seed": seed, "sparsity": sparsity, "threads": threads}
    require_free(Path(out), options, force=force)
    width, task = _width(sparsity), digits(seed=seed)
    torch.manual_seed(seed)
    dense = digits_cnn()
    threads = threads or quickest_threads(dense, task)
    begin(Path(out), command, options, threads_used=threads)
    with torch_threads(threads):
        start = time.perf_counter()
        _train(dense, task, 4 * _EPOCHS, "a dense network")
        dense_seconds = time.perf_counter() - start
        baselines, curves = _baselines(dense, task, seed, sparsity, width)
        result = prune_to_folder(
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
        optimizer = torch.optim.Adam(dense.parameters(), lr=1e-3)
        return compress_to_folder(result, dense, digits_cnn, task, optimizer, bits=_BITS, epochs=_EPOCHS)


def _width(sparsity: float) -> float:
    """The largest width at which the dense network has no more parameters than the pruned one keeps."""
    geometric(sparsity)  # which refuses what is no fraction
    return width_of_size(lambda width: digits_cnn(width=width), (1 - sparsity) * params(digits_cnn()))


def _train(model: nn.Module, task: Task, epochs: int, what: str) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    with waiting(f"training {what}: {epochs} epochs"):
        train_(model, task, optimizer, epochs, scheduler=scheduler, show=is_watched())


def _in_rounds(model: nn.Module, task: Task, sparsity: float, of_random: int | None = None) -> Run:
    """Pruning in rounds, by magnitude over the whole model, or at random with Erdős–Rényi densities, where random does best."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    how = "by magnitude" if of_random is None else "at random"
    with waiting(f"pruning {how} in {_ROUNDS} rounds of {_EPOCHS} epochs"):
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
            show=is_watched(),
        )


def _baselines(dense: nn.Module, task: Task, seed: int, sparsity: float, width: float) -> tuple[list[Entry], list[Curve]]:
    """What any pruning must beat: the naive cut, random choice with the same retraining, a small dense network trained as long."""
    cut = copy.deepcopy(dense)
    prune_(cut, Element(), TopK(magnitude()), global_threshold(sparsity=sparsity), task)
    random_model = copy.deepcopy(dense)
    start = time.perf_counter()
    random_run = _in_rounds(random_model, task, sparsity, of_random=seed)
    random_seconds = time.perf_counter() - start
    start, small = time.perf_counter(), digits_cnn(width=width)
    _train(small, task, (4 + _ROUNDS + 2) * _EPOCHS, "a dense network of the same size")
    entries = [
        measure("random, same sparsity", random_model, task, seconds=random_seconds),
        measure("dense, same size", small, task, seconds=time.perf_counter() - start),
        measure("cut once, not retrained", cut, task),
    ]
    return entries, [curve("random, retrained", random_run.history, validation(dense, task))]
