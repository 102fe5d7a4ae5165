"""ResNet-56 on CIFAR-10 (JPEG): channels pruned to 50 % and to 39 % of the MACs, by secateurs and by torch-pruning.

    pip install --no-deps --target build/bench torch-pruning==1.6.1   # only for the benchmarks, never a dependency
    SECATEURS_DATA=... python benchmarks/resnet56.py                  # about 40 minutes on two cores; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/resnet56.py --dense          # only the dense network, from which everything starts
    SECATEURS_DATA=... python benchmarks/resnet56.py --report         # only the page, from what is there

``--images``, ``--epochs``, ``--dense-epochs`` and ``--workers`` set the budget; cells that were measured with another one are done
again. A GPU is used where there is one.

The published weights have never seen a JPEG image, so they are fine-tuned first: that is the dense network. Both packages then
remove channels between the two convolutions of each block (27 sites; see side_by_side.py for what torch-pruning does with the
padded shortcuts around the blocks), in one go, by the L2 norm of what is coupled, and are fine-tuned alike.

All images that the task holds out for validation were among those that the published weights were trained on. Therefore choices
are made on the first 2,000 test images, with a seed of their own, and the report is about the other 8,000. That is also how the
learning rates were found, of 0.01, 0.03 (and 0.1, for the pruned networks, on one that torch-pruning had cut to 50 %).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cifar import Part, batches_of, inside, published, tune
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.models import resnet_56
from secateurs.tasks import Batches, cifar10

KEEPS = (0.5, 0.39)
SPREADS = ("uniform", "global")
SEEDS = (0, 1, 2)
CHOOSING_SEED, CHOOSING_IMAGES = 100, 2000
LR_DENSE, LR = 0.03, 0.03
BATCH = 128
LATENCY_BATCHES = (1, 64)
ROUNDS = 41
CELLS = RESULTS / "resnet56"
BUILD = Path(__file__).parent.parent / "build"
DENSE = BUILD / "resnet56" / "dense.safetensors"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Cell = dict[str, Any]


@dataclass(frozen=True)
class Spending:
    """Epochs of the dense network, and of each pruned one; images that an epoch draws anew from all training images."""

    dense_epochs: int = 5
    epochs: int = 2
    images: int = 20_000


# ---------------------------------------------------------------- the data, the dense network


def task_of(images: int) -> sc.Task:
    """CIFAR-10 with a part of the training images an epoch, and the test images parted in two: to choose by, and to report on."""
    whole = cifar10(batch_size=BATCH)
    test = whole.test
    assert isinstance(test, Batches) and isinstance(whole.train, Batches)
    choosing, reporting = batches_of(test, 0, CHOOSING_IMAGES, BATCH), batches_of(test, CHOOSING_IMAGES, len(test.targets), BATCH)
    return replace(whole, example=whole.example.to(DEVICE), train=Part(whole.train, images), validation=choosing, test=reporting)


def placed(model: nn.Module) -> nn.Module:
    """The model on the device, its convolutions' weights in the order that is fastest there."""
    return model.to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def accuracy(model: nn.Module, task: sc.Task) -> float:
    """Accuracy in per cent on the images that are reported on."""
    return 100 * sc.evaluate(model, task, task.test, show=False)


def finished(name: str, spending: Mapping[str, int]) -> Cell | None:
    """A cell that was measured with this budget."""
    path = CELLS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and found["spending"] == dict(spending) else None


def keep_cell(name: str, cell: Cell) -> Cell:
    """Write a cell down."""
    CELLS.mkdir(parents=True, exist_ok=True)
    (CELLS / f"{name}.json").write_text(json.dumps(cell, indent=1) + "\n")
    return cell


def fine_tune_dense(spending: Spending, threads: int) -> Cell:
    """Fine-tune the published weights, epoch by epoch into a checkpoint, unless that was done."""
    torch.set_num_threads(threads)
    spent = {"dense_epochs": spending.dense_epochs, "images": spending.images}
    done = finished("dense", spent)
    if done and DENSE.exists():
        return done
    DENSE.parent.mkdir(parents=True, exist_ok=True)
    task, start = task_of(spending.images), time.time()
    model = published(resnet_56(), "resnet56_cifar10.safetensors")
    before = accuracy(placed(model), task)
    torch.manual_seed(CHOOSING_SEED)
    checkpoint = DENSE.with_name("dense-" + "-".join(map(str, spent.values())) + ".checkpoint")
    tune(model, task, LR_DENSE, spending.dense_epochs, checkpoint)
    sc.save(model, DENSE)
    cell = {"spending": spent, "before": before, "after": accuracy(model, task), "seconds": time.time() - start}
    return keep_cell("dense", cell)


def dense_model() -> nn.Module:
    """The dense network that everything starts from."""
    return placed(sc.load(DENSE, resnet_56()))


# ---------------------------------------------------------------- the two packages


def torch_pruning() -> Any:
    """The package torch-pruning, from where the command above put it, or from wherever else it is installed."""
    if str(BUILD / "bench") not in sys.path:
        sys.path.insert(0, str(BUILD / "bench"))
    return importlib.import_module("torch_pruning")


def by_secateurs(model: nn.Module, task: sc.Task, keep: float, spread: str) -> nn.Module:
    """Prune channels with secateurs."""
    budget = sc.Budget(sc.macs, keep=keep)
    if spread == "uniform":
        pattern, criterion, allocate = sc.Channel(), sc.magnitude(p=2), sc.within_budget(budget, sc.uniform)
    else:
        pattern, criterion = sc.Channel(within="model"), sc.magnitude(p=2, mean=True)
        allocate = sc.within_budget(budget, sc.global_threshold)
    masks = sc.prune_(model, pattern, sc.TopK(criterion), allocate, task, only=inside)
    sc.shrink_(model, masks)
    return model


def by_torch_pruning(model: nn.Module, task: sc.Task, keep: float, spread: str) -> nn.Module:
    """Prune channels with torch-pruning, whose goal is a share of the channels: the least that meets the MACs, found by halving."""
    limit = keep * sc.macs(model, task.example)
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    while high - low > 1e-3:
        sparsity = (low + high) / 2
        attempt = cut_by_torch_pruning(copy.deepcopy(model), task.example, sparsity, spread == "global")
        if sc.macs(attempt, task.example) <= limit:
            best, high = attempt, sparsity
        else:
            low = sparsity
    if best is None:
        raise RuntimeError(f"torch-pruning does not get to {keep} of the MACs")
    return best


def cut_by_torch_pruning(model: nn.Module, example: Tensor, sparsity: float, everywhere: bool) -> nn.Module:
    """One step of torch-pruning, with its own group magnitude."""
    tp = torch_pruning()
    weights = (nn.Conv2d, nn.Linear)
    ignored = [module for name, module in model.named_modules() if isinstance(module, weights) and not inside(name, module)]
    pruner = tp.pruner.MagnitudePruner(
        model.eval(),
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=sparsity,
        ignored_layers=ignored,
    )
    pruner.step()
    return model


PACKAGES: dict[str, Callable[[nn.Module, sc.Task, float, str], nn.Module]] = {
    "secateurs": by_secateurs,
    "torch-pruning": by_torch_pruning,
}


# ---------------------------------------------------------------- the cells


@dataclass(frozen=True)
class Job:
    """One network to prune and fine-tune; ``keep=1`` is the dense network, fine-tuned on alike."""

    package: str
    keep: float
    spread: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.package}-{self.keep:g}-{self.spread}-{self.seed}"


def pruned(job: Job, task: sc.Task) -> nn.Module:
    """The dense network, pruned but not fine-tuned."""
    model = dense_model()
    return model if job.keep == 1 else placed(PACKAGES[job.package](model, task, job.keep, job.spread))


def measure(job: Job, spending: Spending) -> str:
    """Prune, fine-tune, evaluate; with the choosing seed only on the images to choose by."""
    torch.set_num_threads(1)
    choosing = job.seed == CHOOSING_SEED
    spent = {**asdict(spending), "epochs": 1} if choosing else asdict(spending)
    if finished(job.name, spent):
        return f"{job.name}: was done"
    start, task = time.time(), task_of(spending.images)
    model = pruned(job, task)
    cell = {"spending": spent, "macs": sc.macs(model, task.example), "parameters": sc.params(model)}
    cell["bytes"] = sc.save(model, DENSE.with_name(f"{job.name}.safetensors"))
    if not choosing:
        cell["before"] = accuracy(model, task)
    torch.manual_seed(job.seed)
    tune(model, task, LR, spent["epochs"])
    cell["after"] = 100 * sc.evaluate(model, task, task.validation, show=False) if choosing else accuracy(model, task)
    keep_cell(job.name, {**cell, "seconds": time.time() - start})
    return f"{job.name}: {cell['after']:.2f} %, {time.time() - start:.0f} s"


def choosing_jobs() -> list[Job]:
    """What the allocation of each package is chosen by."""
    return [Job(package, keep, spread, CHOOSING_SEED) for package in PACKAGES for keep in KEEPS for spread in SPREADS]


def read(job: Job) -> Cell:
    """A cell that must be there."""
    return json.loads((CELLS / f"{job.name}.json").read_text())


def chosen(package: str, keep: float) -> str:
    """The allocation that did best on the images to choose by."""
    return max(SPREADS, key=lambda spread: read(Job(package, keep, spread, CHOOSING_SEED))["after"])


def reported_jobs() -> list[Job]:
    """What is reported: the dense network, and each package's at each goal with the chosen allocation."""
    goals = [("dense", 1.0, "all")] + [(package, keep, chosen(package, keep)) for keep in KEEPS for package in PACKAGES]
    return [Job(*goal, seed) for seed in SEEDS for goal in goals]


# ---------------------------------------------------------------- latency


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, the calls taking turns in an order that rotates, so that all of them see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(-warm_up, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            calls[name]()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def latency(images: int) -> Cell:
    """Milliseconds of a batch for all networks of the first seed, and how many times as fast as dense they are."""
    task = task_of(images)
    models = {job.name: pruned(job, task).eval() for job in reported_jobs() if job.seed == SEEDS[0]}
    dense = next(iter(models))
    found: Cell = {"threads": torch.get_num_threads()}
    with torch.inference_mode():
        for batch in LATENCY_BATCHES:
            inputs = task.example.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            seconds = interleaved({name: partial(model, inputs) for name, model in models.items()}, ROUNDS)
            for name, own in seconds.items():
                times = statistics.median(a / b for a, b in zip(seconds[dense], own, strict=True))
                found.setdefault(name, {})[str(batch)] = [1000 * statistics.median(own), times]
    return keep_cell("latency", found)


# ---------------------------------------------------------------- the page


def spread_of(values: Iterable[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    values = list(values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def result_rows(times: Cell) -> list[list[str]]:
    """A row for each network."""
    jobs = reported_jobs()
    dense, rows = read(jobs[0]), []
    for first in (job for job in jobs if job.seed == SEEDS[0]):
        cells = [read(replace(first, seed=seed)) for seed in SEEDS]
        cell = cells[0]
        title = "dense, tuned as long" if first.keep == 1 else f"{first.keep:.0%} by {first.package}, {first.spread}"
        speeds = [f"{ms:.2f} ({ratio:.2f}x)" for ms, ratio in times[first.name].values()]
        counts = [f"{cell['macs'] / dense['macs']:.1%}", f"{cell['parameters']:,.0f}", f"{cell['bytes']:,}"]
        rows.append([title, *counts, f"{cell['before']:.2f}", spread_of(each["after"] for each in cells), *speeds])
    return rows


def choice_rows() -> list[list[str]]:
    """What was chosen from, on the images to choose by."""
    return [
        [package, f"{keep:.0%}", *(f"{read(Job(package, keep, spread, CHOOSING_SEED))['after']:.2f}" for spread in SPREADS)]
        for package in PACKAGES
        for keep in KEEPS
    ]


def report() -> None:
    """Write the page from the cells."""
    dense, times = json.loads((CELLS / "dense.json").read_text()), json.loads((CELLS / "latency.json").read_text())
    spent = read(reported_jobs()[0])["spending"]
    threads = times.pop("threads")
    cores = f"{threads} thread" + "s" * (threads > 1)
    about = (
        "`SECATEURS_DATA=… python benchmarks/resnet56.py`: the published ResNet-56 recognises "
        f"{dense['before']:.2f} % of the reported test images as JPEG, and {dense['after']:.2f} % after {spent['dense_epochs']} epochs "
        f"of {spent['images']:,} images each. From there, channels inside the blocks are removed in one go, by the L2 norm of what is "
        f"coupled, and the network is fine-tuned for {spent['epochs']} epochs of {spent['images']:,} images (SGD 0.9 Nesterov, lr "
        f"{LR}, cosine, bfloat16 mixed precision). Accuracy in % on 8,000 test images, mean ± standard deviation of seeds "
        f"{', '.join(map(str, SEEDS))}, which vary the fine-tuning only. Milliseconds are medians of {ROUNDS} interleaved rounds with "
        f"{cores} in float32; in brackets, times as fast as dense (median of the rounds)."
    )
    latencies = [f"ms, batch {batch}" for batch in LATENCY_BATCHES]
    headings = ["network", "MACs", "parameters", "file, bytes", "accuracy, cut only", "fine-tuned", *latencies]
    choice = (
        f"The allocation (`uniform`, or `global_threshold` over all sites; torch-pruning: `global_pruning` off or on, its group "
        f"magnitude with the default normalisation) was chosen for each package and goal by one epoch with seed {CHOOSING_SEED}, on "
        f"{CHOOSING_IMAGES:,} other test images:"
    )
    choices = markdown(["package", "MACs", *SPREADS], choice_rows())
    write("resnet56", "# ResNet-56 with fewer channels", about, markdown(headings, result_rows(times)), choice, choices)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dense", action="store_true", help="only fine-tune the dense network")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--workers", type=int, default=2 if DEVICE.type == "cpu" else 1, help="networks at a time")
    for name, default in asdict(Spending()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, some cells at a time, then write the report."""
    given = options()
    spending = Spending(given.dense_epochs, given.epochs, given.images)
    if not given.report:
        # Fresh processes: threads of OpenMP do not survive a fork.
        with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
            print(pool.submit(fine_tune_dense, spending, given.workers).result(), flush=True)
            for jobs in () if given.dense else (choosing_jobs, reported_jobs):
                for line in pool.map(partial(measure, spending=spending), jobs()):
                    print(line, flush=True)
        if not given.dense:
            latency(spending.images)
    if not given.dense:
        report()


if __name__ == "__main__":
    main()
