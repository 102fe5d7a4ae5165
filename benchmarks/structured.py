"""Structured sparsity learned while training: SSL, slimming, DepGraph's group sparsity, growing regularisation; ResNet-20 on CIFAR-10.

    SECATEURS_DATA=... python benchmarks/structured.py            # some hours on two cores; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/structured.py --report   # only the page, from what is there
    SECATEURS_DATA=... python benchmarks/structured.py --quick    # a minute, to see that all of it runs; to build/, not to the results

``--epochs`` (with the penalty, and as many again for fine-tuning), ``--images`` an epoch, ``--seeds``, ``--keep`` of the MACs and
``--workers`` set the budget; cells that were measured with another one are done again. A GPU is used where there is one.

All start from the published ResNet-20, which has never seen JPEG images, and train for the same number of epochs: the learning rate is
constant while the penalty lasts, and then falls along a cosine. The dense network is trained alike, without a penalty. Channels between
the two convolutions of each block go (9 sites), to the same MACs; of SSL half of the channels, and in its own row whole blocks. Strengths
are chosen from those listed here, by a shorter run with a seed of its own, on the first 2,000 test images; the report is about the other
8,000. Milliseconds are measured, after `shrink_`, the networks taking turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cifar import Part, batches_of, inside, published
from tables import RESULTS, made, markdown
from torch import nn

import secateurs as sc
from secateurs.methods import group_sparsity_, growing_regularisation_, network_slimming_, ssl_
from secateurs.models import resnet_20
from secateurs.tasks import Batches, cifar10
from secateurs.types import Run

CHOOSING_SEED, CHOOSING_IMAGES = 100, 2000
BATCH, LR = 128, 0.02
LATENCY_BATCHES = (1, 64)
BUILD = Path(__file__).parent.parent / "build" / "structured"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AMP = torch.bfloat16 if DEVICE.type == "cuda" else None

Cell = dict[str, Any]


@dataclass(frozen=True)
class Spending:
    """Epochs with the penalty, and as many after it; images an epoch; test images at most; rounds of the clock."""

    epochs: int = 8
    images: int = 20_000
    tests: int = 8_000
    rounds: int = 41

    @property
    def choosing(self) -> Spending:
        """What a strength is chosen by: a quarter of the epochs."""
        return replace(self, epochs=max(1, self.epochs // 4), tests=CHOOSING_IMAGES)


# ---------------------------------------------------------------- the methods

Method = Callable[..., Run]


def budget(keep: float) -> Any:
    """The MACs that may stay, the same fraction of each site's channels."""
    return sc.within_budget(sc.Budget(sc.macs, keep=keep), sc.uniform)


def ranked(keep: float) -> Any:
    """The same MACs by one ranking of all channels; no site loses more than nine of ten."""
    return sc.within_budget(sc.Budget(sc.macs, keep=keep), sc.global_threshold, ceiling=0.9)


def dense(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """No penalty, nothing cut."""
    return sc.train_(model, task, optimizer, 2 * half, **training)


def cut_only(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """No penalty, and the smallest channels cut at the same time as by the others."""
    cut = sc.prune_at(half, sc.Channel(), sc.TopK(sc.magnitude(members="all")), budget(keep), only=inside)
    return sc.train_(model, task, optimizer, 2 * half, hooks=[cut], **training)


def ssl(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """A group LASSO that finds its strength; the fraction of the channels inside the blocks is about that of the MACs."""
    target = sc.Target(1 - keep, strict=True)
    return ssl_(model, task, optimizer, target=target, sparse_epochs=half, epochs=half, only=inside, **training)


def ssl_blocks(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """Whole blocks, as many of those that may go as bring the MACs down to what may stay at least: SSL's depth."""
    units = len(sc.find_sites(model, sc.Depth(), task.example))
    target = sc.Target(min(max(1, round((1 - keep) * (units + 2))), units - 1) / units, strict=True)
    hooks = [sc.group_lasso(sc.Depth(), target=target, until=half)]
    return sc.train_(model, task, optimizer, 2 * half, hooks=hooks, **training)


def slimming(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """L1 on the scales, one ranking of all channels."""
    spent = {"sparse_epochs": half, "epochs": half, "strength": strength}
    return network_slimming_(model, task, optimizer, allocate=ranked(keep), only=inside, **spent, **training)  # type: ignore[arg-type]


def depgraph(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """All that is coupled, pressed the harder the less important."""
    spent: dict[str, Any] = {"sparse_epochs": half, "epochs": half, "strength": strength}
    return group_sparsity_(model, task, optimizer, allocate=ranked(keep), only=inside, **spent, **training)


def growing(model: nn.Module, task: sc.Task, optimizer: Any, half: int, keep: float, strength: float, **training: Any) -> Run:
    """An L2 factor that is at its ceiling after three quarters of the steps; the strength is that ceiling."""
    steps = half * len(task.train)  # type: ignore[arg-type]
    every = max(1, min(5, steps // 8))
    press = {"delta": strength / max(1, 3 * steps // (4 * every)), "every": every, "ceiling": strength}
    spent: dict[str, Any] = {"sparse_epochs": half, "epochs": half, **press}
    return growing_regularisation_(model, task, optimizer, allocate=budget(keep), only=inside, **spent, **training)


METHODS: dict[str, tuple[Method, tuple[float, ...], str]] = {
    "dense": (dense, (0.0,), "dense, trained as long"),
    "cut": (cut_only, (0.0,), "the smallest channels cut, without a penalty"),
    "ssl": (ssl, (0.0,), "SSL, channels"),
    "blocks": (ssl_blocks, (0.0,), "SSL, whole blocks"),
    "slimming": (slimming, (1e-4, 1e-3, 1e-2), "slimming"),
    "depgraph": (depgraph, (1e-4, 1e-3), "group sparsity"),
    "growing": (growing, (1.0, 5.0), "growing regularisation"),
}
"""Each method, the strengths that are chosen from, and what a row is called."""


# ---------------------------------------------------------------- the cells


@dataclass(frozen=True)
class Job:
    """One network to train; with the choosing seed to choose its strength by."""

    method: str
    keep: float
    strength: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.keep:g}-{self.strength:g}-{self.seed}"


@dataclass(frozen=True)
class Place:
    """Where cells are kept, and the page."""

    cells: Path
    page: Path

    def read(self, job: Job) -> Cell:
        """A cell that must be there."""
        return json.loads((self.cells / f"{job.name}.json").read_text())

    def finished(self, name: str, spending: Spending) -> bool:
        """Whether a cell was measured with this budget."""
        path = self.cells / f"{name}.json"
        return path.exists() and json.loads(path.read_text()).get("spending") == asdict(spending)

    def keep(self, name: str, cell: Cell) -> None:
        """Write a cell down."""
        self.cells.mkdir(parents=True, exist_ok=True)
        (self.cells / f"{name}.json").write_text(json.dumps(cell, indent=1) + "\n")


def task_of(spending: Spending) -> sc.Task:
    """CIFAR-10 with a part of the training images an epoch, and the test images parted in two: to choose by, and to report on."""
    whole = cifar10(batch_size=BATCH)
    test = whole.test
    assert isinstance(test, Batches) and isinstance(whole.train, Batches)
    last = min(len(test.targets), CHOOSING_IMAGES + spending.tests)
    return replace(
        whole,
        example=whole.example.to(DEVICE),
        train=Part(whole.train, spending.images),
        validation=batches_of(test, 0, min(CHOOSING_IMAGES, spending.tests), BATCH),
        test=batches_of(test, CHOOSING_IMAGES, last, BATCH),
        calibration=None,
    )


def begun() -> nn.Module:
    """The published network, where it is trained."""
    model = published(resnet_20(), "resnet20_cifar10.safetensors")
    return model.to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def constant_then_cosine(half: int, epoch: int) -> float:
    """The factor of the learning rate."""
    return 1.0 if epoch < half else 0.5 * (1 + math.cos(math.pi * (epoch - half) / half))


def saved(job: Job, place: Place) -> Path:
    """Where the smaller network lies."""
    return BUILD / place.page.stem / f"{job.name}.safetensors"


def measure(job: Job, spending: Spending, place: Place) -> str:
    """Train, cut, shrink, evaluate; with the choosing seed only on the images to choose by."""
    torch.set_num_threads(1)
    if place.finished(job.name, spending):
        return f"{job.name}: was done"
    start, task = time.time(), task_of(spending)
    images = task.validation if job.seed == CHOOSING_SEED else task.test
    model = begun()
    before = 100 * sc.evaluate(model, task, images, show=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(constant_then_cosine, spending.epochs))
    path = saved(job, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(f".{spending.epochs}x{spending.images}.checkpoint")
    training = {"scheduler": scheduler, "amp": AMP, "checkpoint": checkpoint, "seed": job.seed, "show": False}
    blind = replace(task, validation=None)  # which would cost time after each epoch
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = METHODS[job.method][0](model, blind, optimizer, spending.epochs, job.keep, job.strength, **training)
    cell: Cell = {"spending": asdict(spending), "before": before, "masked": 100 * sc.evaluate(model, task, images, show=False)}
    cell["told"] = [str(each.message) for each in told if "target was not reached" in str(each.message)]
    if run.masks:
        cell["skipped"] = [str(each) for each in sc.shrink_(model, run.masks, task.example).skipped]
    cell |= {"macs": sc.macs(model, task.example), "parameters": sc.params(model), "epochs": len(run.history)}
    cell["after"] = 100 * sc.evaluate(model, task, images, show=False)
    cell["bytes"] = sc.save(model, path)
    checkpoint.unlink(missing_ok=True)
    place.keep(job.name, {**cell, "seconds": time.time() - start})
    return f"{job.name}: {cell['after']:.2f} %, {cell['macs']:,.0f} MACs, {time.time() - start:.0f} s"


def choosing_jobs(keep: float) -> list[Job]:
    """What strengths are chosen by, of the methods that have several."""
    return [
        Job(method, keep, strength, CHOOSING_SEED)
        for method, (_, strengths, _) in METHODS.items()
        for strength in strengths
        if len(strengths) > 1
    ]


def reported_jobs(keep: float, seeds: Iterable[int], place: Place) -> list[Job]:
    """What is reported: every method with the strength that did best."""
    jobs = []
    for method, (_, strengths, _) in METHODS.items():
        tried = [job for job in choosing_jobs(keep) if job.method == method]
        best = max(tried, key=lambda job: place.read(job)["after"]).strength if tried else strengths[0]
        jobs += [Job(method, 1.0 if method == "dense" else keep, best, seed) for seed in seeds]
    return jobs


# ---------------------------------------------------------------- the clock


def latency(jobs: list[Job], spending: Spending, place: Place) -> None:
    """Milliseconds of a batch for the networks of the first seed, taking turns in an order that rotates; and times as fast as dense."""
    models = {job.name: sc.load(saved(job, place), resnet_20).to(DEVICE).eval() for job in jobs}
    names, found = list(models), dict[str, Any](spending=asdict(spending), threads=torch.get_num_threads())
    example = task_of(spending).example
    for batch in LATENCY_BATCHES:
        inputs = example.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(-2, spending.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken = clocked(models[name], inputs)
                if turn >= 0:
                    seconds[name].append(taken)
        for name, own in seconds.items():
            times = statistics.median(a / b for a, b in zip(seconds[names[0]], own, strict=True))
            found.setdefault(name, {})[str(batch)] = [1000 * statistics.median(own), times]
    place.keep(f"latency-{jobs[1].keep:g}", found)


@torch.inference_mode()
def clocked(model: nn.Module, inputs: torch.Tensor) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    model(inputs)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ---------------------------------------------------------------- the page


def spread_of(values: list[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def rows(keep: float, seeds: list[int], place: Place) -> list[list[str]]:
    """A row for each method."""
    jobs = reported_jobs(keep, seeds, place)
    clock = json.loads((place.cells / f"latency-{keep:g}.json").read_text())
    whole = place.read(jobs[0])
    found = []
    for job in (each for each in jobs if each.seed == seeds[0]):
        cells = [place.read(replace(job, seed=seed)) for seed in seeds]
        title = METHODS[job.method][2] + (f", strength {job.strength:g}" if job.strength else "")
        title += " (target not reached, the rest cut by magnitude)" if any(cell["told"] for cell in cells) else ""
        counts = [f"{statistics.mean(cell[key] for cell in cells) / whole[key]:.1%}" for key in ("macs", "parameters")]
        speeds = [f"{ms:.2f} ({times:.2f}x)" for ms, times in clock[job.name].values()]
        after = spread_of([cell["after"] for cell in cells])
        found.append([title, *counts, f"{statistics.mean(cell['bytes'] for cell in cells):,.0f}", after, *speeds])
    return found


def report(keeps: list[float], seeds: list[int], place: Place) -> None:
    """Write the page from the cells."""
    first = place.read(reported_jobs(keeps[0], seeds, place)[0])
    clock = json.loads((place.cells / f"latency-{keeps[0]:g}.json").read_text())
    spent = first["spending"]
    chosen = place.read(choosing_jobs(keeps[0])[0])["spending"]
    about = (
        f"`SECATEURS_DATA=… python benchmarks/structured.py`: the published ResNet-20 recognises {first['before']:.2f} % of the reported "
        f"test images as JPEG. From there every network is trained for {spent['epochs']} epochs of {spent['images']:,} images with its "
        f"penalty (SGD {LR:g}, momentum 0.9, weight decay 1e-4), cut, and trained for {spent['epochs']} more along a cosine; dense the "
        f"same without. Accuracy in % on {spent['tests']:,} test images, seeds {', '.join(map(str, seeds))}; strengths were chosen on "
        f"{chosen['tests']:,} others, with {chosen['epochs']} + {chosen['epochs']} epochs. MACs and parameters are those of the network "
        f"after `shrink_`, of dense. Milliseconds are medians of {spent['rounds']} interleaved rounds with {clock['threads']} thread(s) "
        "in float32; in brackets, times as fast as dense (median of the rounds)."
    )
    headings = ["network", "MACs", "parameters", "file, bytes", "accuracy", *(f"ms, batch {batch}" for batch in LATENCY_BATCHES)]
    parts = ["# Structured sparsity learned while training", about]
    for keep in keeps:
        parts += [f"## {keep:.0%} of the MACs", markdown(headings, rows(keep, seeds, place))]
        tried = [[METHODS[job.method][2], f"{job.strength:g}", f"{place.read(job)['after']:.2f}"] for job in choosing_jobs(keep)]
        parts += ["Strengths were chosen from:", markdown(["method", "strength", "accuracy"], tried)]
    place.page.parent.mkdir(parents=True, exist_ok=True)
    place.page.write_text("\n\n".join([*parts, made()]) + "\n")
    print(place.page.read_text())


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--quick", action="store_true", help="very little of everything, to build/")
    parser.add_argument("--workers", type=int, default=2 if DEVICE.type == "cpu" else 1, help="networks at a time")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.5], help="fractions of the MACs to measure")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    for name, default in asdict(Spending()).items():
        parser.add_argument("--" + name, type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, some cells at a time, then write the report."""
    given = options()
    spending = Spending(given.epochs, given.images, given.tests, given.rounds)
    place = Place(RESULTS / "structured", RESULTS / "structured.md")
    if given.quick:
        spending, given.seeds, given.workers = Spending(epochs=2, images=256, tests=256, rounds=5), [0], 1
        place = Place(BUILD / "quick", BUILD / "quick.md")
    if not given.report:
        # Fresh processes: threads of OpenMP do not survive a fork.
        with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
            for keep in given.keep:
                choosing = spending if given.quick else spending.choosing
                for line in pool.map(partial(measure, spending=choosing, place=place), choosing_jobs(keep)):
                    print(line, flush=True)
                jobs = reported_jobs(keep, given.seeds, place)
                for line in pool.map(partial(measure, spending=spending, place=place), jobs):
                    print(line, flush=True)
        for keep in given.keep:
            first = [job for job in reported_jobs(keep, given.seeds, place) if job.seed == given.seeds[0]]
            latency(first, spending, place)
    report(given.keep, given.seeds, place)


if __name__ == "__main__":
    main()
