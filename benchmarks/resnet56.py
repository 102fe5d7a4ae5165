"""ResNet-56 on CIFAR-10 (JPEG): channels pruned to 50 % and to 39 % of the MACs, by secateurs and by torch-pruning.

    pip install --no-deps --target build/bench torch-pruning==1.6.1   # only for the benchmarks, never a dependency
    SECATEURS_DATA=... python benchmarks/resnet56.py                  # about an hour on two cores; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/resnet56.py --report         # only the page, from what is there

``--images``, ``--epochs``, ``--choosing`` and ``--workers`` set the budget; cells that were measured with another one are done again. A
GPU is used where there is one.

Both packages remove channels between the two convolutions of each block (27 sites; see side_by_side.py for what torch-pruning does with
the padded shortcuts around the blocks), in one go, and are fine-tuned alike. Each package's recipe is chosen for each goal from those
listed here, by a short fine-tuning with a seed of its own, on the first 2,000 test images; then its learning rate in the same way. The
report is about the other 8,000 images. (All that the task holds out for validation were among those that the weights were trained on.)
Criteria and solvers that look at data see 512 training images.
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
from itertools import islice
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
from secateurs.types import Solver

KEEPS = (0.5, 0.39)
SEEDS = (0, 1, 2)
CHOOSING_SEED, CHOOSING_IMAGES = 100, 2000
CALIBRATION = 4
LRS = (0.01, 0.003, 0.03)
BATCH = 128
LATENCY_BATCHES = (1, 64)
ROUNDS = 41
CELLS = RESULTS / "resnet56"
BUILD = Path(__file__).parent.parent / "build"
SAVED = BUILD / "resnet56"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AMP = torch.bfloat16 if DEVICE.type == "cuda" else None  # processors without it compute it several times slower than float32

Cell = dict[str, Any]
Recipe = Callable[[nn.Module, sc.Task, float], nn.Module]
"""From the dense network, the task and the fraction of the MACs that may stay to the smaller network."""


@dataclass(frozen=True)
class Spending:
    """Epochs of each pruned network; images that an epoch draws anew from all training images; those of the epoch to choose by."""

    epochs: int = 1
    images: int = 20_000
    choosing: int = 5_000


# ---------------------------------------------------------------- the data, the dense network


def task_of(images: int) -> sc.Task:
    """CIFAR-10 with a part of the training images an epoch, and the test images parted in two: to choose by, and to report on."""
    whole = cifar10(batch_size=BATCH)
    test = whole.test
    assert isinstance(test, Batches) and isinstance(whole.train, Batches)
    choosing, reporting = batches_of(test, 0, CHOOSING_IMAGES, BATCH), batches_of(test, CHOOSING_IMAGES, len(test.targets), BATCH)
    torch.manual_seed(CHOOSING_SEED)
    seen = list(islice(iter(whole.train), CALIBRATION))
    return replace(
        whole,
        example=whole.example.to(DEVICE),
        train=Part(whole.train, images),
        validation=choosing,
        test=reporting,
        calibration=seen,
    )


def placed(model: nn.Module) -> nn.Module:
    """The model on the device, its convolutions' weights in the order that is fastest there."""
    return model.to(device=DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


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


def dense_model() -> nn.Module:
    """The dense network that everything starts from: trained on these images, nothing selected on the test set."""
    return placed(published(resnet_56(), "resnet56_cifar10_jpeg.safetensors"))


# ---------------------------------------------------------------- the two packages


def torch_pruning() -> Any:
    """The package torch-pruning, from where the command above put it, or from wherever else it is installed."""
    if str(BUILD / "bench") not in sys.path:
        sys.path.insert(0, str(BUILD / "bench"))
    return importlib.import_module("torch_pruning")


def by_secateurs(solver: Solver, spread: str, model: nn.Module, task: sc.Task, keep: float) -> nn.Module:
    """Prune channels with secateurs, each as uniform over the layers or by one ranking of all."""
    pattern = sc.Channel() if spread == "uniform" else sc.Channel(within="model")
    allocator = sc.uniform if spread == "uniform" else sc.global_threshold
    allocate = sc.within_budget(sc.Budget(sc.macs, keep=keep), allocator)
    masks = sc.prune_(model, pattern, solver, allocate, task, only=inside, recalibrate=False)
    sc.shrink_(model, masks)
    return model


def by_torch_pruning(importance: str, everywhere: bool, model: nn.Module, task: sc.Task, keep: float) -> nn.Module:
    """Prune channels with torch-pruning, whose goal is a share of the channels: the least that meets the MACs, found by halving."""
    limit = keep * sc.macs(model, task.example)
    gradients = {"Taylor": mean_gradients, "Hessian": mean_squares}.get(importance, no_gradients)(model, task)
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    while high - low > 1e-3:
        sparsity = (low + high) / 2
        attempt = copy.deepcopy(model)
        for name, parameter in attempt.named_parameters():
            parameter.grad = gradients[name].clone() if name in gradients else None
        attempt = cut_by_torch_pruning(attempt, task.example, importance, sparsity, everywhere)
        if sc.macs(attempt, task.example) <= limit:
            best, high = attempt, sparsity
        else:
            low = sparsity
    if best is None:
        raise RuntimeError(f"torch-pruning does not get to {keep} of the MACs")
    return best


def no_gradients(model: nn.Module, task: sc.Task) -> dict[str, Tensor]:
    """For importances that look at weights alone."""
    return {}


def mean_gradients(model: nn.Module, task: sc.Task, batch: int = BATCH, power: int = 1) -> dict[str, Tensor]:
    """The mean over the calibration images of the gradients of the loss."""
    assert task.calibration is not None and task.loss is not None
    total: dict[str, Tensor] = {}
    count, model = 0, copy.deepcopy(model).eval()
    for images, labels in task.calibration:
        for inputs, targets in zip(images.split(batch), labels.split(batch), strict=True):
            model.zero_grad()
            task.loss(model(inputs.to(DEVICE)), targets.to(DEVICE)).backward()
            count += 1
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, torch.zeros_like(parameter)) + parameter.grad**power
    return {name: value / count for name, value in total.items()}


def mean_squares(model: nn.Module, task: sc.Task) -> dict[str, Tensor]:
    """The mean over calibration images of the squared gradient of each: what torch-pruning's Hessian is made of.

    Its own ``accumulate_grad`` keeps only the last image's (1.6.1 looks for names among parameters), so it is given the mean itself.
    """
    return mean_gradients(model, task, batch=1, power=2)


def cut_by_torch_pruning(model: nn.Module, example: Tensor, importance: str, sparsity: float, everywhere: bool) -> nn.Module:
    """One step of torch-pruning, with its own importance and the default normalisation and reduction of that."""
    tp = torch_pruning()
    weights = (nn.Conv2d, nn.Linear)
    ignored = [module for name, module in model.named_modules() if isinstance(module, weights) and not inside(name, module)]
    importances = {
        "group norm": tp.importance.GroupMagnitudeImportance,
        "Taylor": tp.importance.GroupTaylorImportance,
        "Hessian": tp.importance.GroupHessianImportance,
        "LAMP": tp.importance.LAMPImportance,
    }
    pruner = tp.pruner.MagnitudePruner(
        model.eval(),
        example,
        importance=importances[importance](),
        global_pruning=everywhere,
        pruning_ratio=sparsity,
        ignored_layers=ignored,
    )
    pruner.step()
    return model


MAGNITUDE = sc.magnitude(members="all")
PACKAGES: dict[str, dict[str, Recipe]] = {
    "secateurs": {
        "magnitude, uniform": partial(by_secateurs, sc.TopK(MAGNITUDE), "uniform"),
        "magnitude and least squares, uniform": partial(by_secateurs, sc.LeastSquares(sc.TopK(MAGNITUDE)), "uniform"),
        "normalised magnitude and least squares, global": partial(
            by_secateurs, sc.LeastSquares(sc.TopK(sc.normalised(MAGNITUDE))), "global"
        ),
        "ZipLM, uniform": partial(by_secateurs, sc.ZipLM(), "uniform"),
    },
    "torch-pruning": {
        f"{importance}, {'global' if everywhere else 'uniform'}": partial(by_torch_pruning, importance, everywhere)
        for importance in ("group norm", "Taylor", "Hessian", "LAMP")
        for everywhere in (False, True)
        if everywhere or importance != "LAMP"  # which is the group norm where layers are not compared
    },
}
DENSE = ("dense", "as it is")


# ---------------------------------------------------------------- the cells


@dataclass(frozen=True)
class Job:
    """One network to prune and fine-tune; ``keep=1`` is the dense network, fine-tuned on alike."""

    package: str
    keep: float
    recipe: str
    seed: int
    lr: float = LRS[0]

    @property
    def name(self) -> str:
        return f"{self.package}-{self.keep:g}-{self.recipe.replace(', ', '_').replace(' ', '_')}-{self.lr:g}-{self.seed}"


def pruned(job: Job, task: sc.Task) -> nn.Module:
    """The dense network, pruned but not fine-tuned."""
    model = dense_model()
    return model if job.keep == 1 else placed(PACKAGES[job.package][job.recipe](model, task, job.keep))


def measure(job: Job, spending: Spending) -> str:
    """Prune, fine-tune, evaluate; with the choosing seed only on the images to choose by."""
    torch.set_num_threads(1)
    choosing = job.seed == CHOOSING_SEED
    spent = {"epochs": 1, "images": spending.choosing} if choosing else {"epochs": spending.epochs, "images": spending.images}
    if finished(job.name, spent):
        return f"{job.name}: was done"
    start, task = time.time(), task_of(spent["images"])
    model = pruned(job, task)
    cell = {
        "spending": spent,
        "macs": sc.macs(model, task.example),
        "parameters": sc.params(model),
        "seconds to cut": time.time() - start,
    }
    SAVED.mkdir(parents=True, exist_ok=True)
    cell["bytes"] = sc.save(model, SAVED / f"{job.name}.safetensors")
    images = task.validation if choosing else task.test
    cell["before"] = 100 * sc.evaluate(model, task, images, show=False)
    torch.manual_seed(job.seed)
    tune(model, task, job.lr, spent["epochs"], amp=AMP)
    cell["after"] = 100 * sc.evaluate(model, task, images, show=False)
    keep_cell(job.name, {**cell, "seconds": time.time() - start})
    return f"{job.name}: {cell['before']:.2f} -> {cell['after']:.2f} %, {time.time() - start:.0f} s"


def recipe_jobs(keep: float) -> list[Job]:
    """What the recipe of each package is chosen by."""
    return [Job(package, keep, recipe, CHOOSING_SEED) for package, recipes in PACKAGES.items() for recipe in recipes]


def rate_jobs(keep: float) -> list[Job]:
    """What the learning rate of each package is chosen by, and of the dense network."""
    best = [_best(job for job in recipe_jobs(keep) if job.package == package) for package in PACKAGES]
    return [replace(job, lr=lr) for job in (*best, Job(DENSE[0], 1.0, DENSE[1], CHOOSING_SEED)) for lr in LRS]


def read(job: Job) -> Cell:
    """A cell that must be there."""
    return json.loads((CELLS / f"{job.name}.json").read_text())


def _best(jobs: Iterable[Job]) -> Job:
    """The job that did best on the images to choose by."""
    return max(jobs, key=lambda job: read(job)["after"])


def reported_jobs(keep: float) -> list[Job]:
    """What is reported: the dense network, and each package's with the chosen recipe and learning rate."""
    best = [_best(job for job in rate_jobs(keep) if job.package == package) for package in (DENSE[0], *PACKAGES)]
    return [replace(job, seed=seed) for seed in SEEDS for job in best]


def all_reported() -> list[Job]:
    """The reported jobs of all goals that are measured, the dense network once."""
    return list(dict.fromkeys(job for keep in KEEPS if _measured(keep) for job in reported_jobs(keep)))


def _measured(keep: float) -> bool:
    try:
        return all(read(job) for job in reported_jobs(keep))
    except FileNotFoundError:
        return False


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
    models = {job.name: pruned(job, task).eval() for job in all_reported() if job.seed == SEEDS[0]}
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
    jobs = all_reported()
    dense, rows = read(jobs[0]), []
    for first in (job for job in jobs if job.seed == SEEDS[0]):
        cells = [read(replace(first, seed=seed)) for seed in SEEDS]
        cell = cells[0]
        title = "dense, tuned as long" if first.keep == 1 else f"{first.keep:.0%} by {first.package}: {first.recipe}"
        title += f", lr {first.lr:g}"
        speeds = [f"{ms:.2f} ({ratio:.2f}x)" for ms, ratio in times[first.name].values()]
        counts = [f"{cell['macs'] / dense['macs']:.1%}", f"{cell['parameters']:,.0f}", f"{cell['bytes']:,}"]
        rows.append([title, *counts, f"{cell['before']:.2f}", spread_of(each["after"] for each in cells), *speeds])
    return rows


def choice_rows(keeps: list[float]) -> list[list[str]]:
    """What was chosen from, on the images to choose by."""
    cells = {
        (package, recipe): [read(Job(package, keep, recipe, CHOOSING_SEED)) for keep in keeps] for package, recipe in _recipes()
    }
    return [
        [package, recipe, *(f"{number:.2f}" for each in found for number in (each["before"], each["after"]))]
        for (package, recipe), found in cells.items()
    ]


def rate_rows(keeps: list[float]) -> list[list[str]]:
    """What the learning rates were chosen from."""
    jobs = dict.fromkeys(job for keep in keeps for job in rate_jobs(keep) if job.lr == LRS[0])
    return [
        [job.package, f"{job.keep:.0%}", job.recipe, *(f"{read(replace(job, lr=lr))['after']:.2f}" for lr in sorted(LRS))]
        for job in jobs
    ]


def _recipes() -> list[tuple[str, str]]:
    return [(package, recipe) for package, recipes in PACKAGES.items() for recipe in recipes]


def report() -> None:
    """Write the page from the cells."""
    times = json.loads((CELLS / "latency.json").read_text())
    keeps = [keep for keep in KEEPS if _measured(keep)]
    cell = read(all_reported()[0])
    spent, threads = cell["spending"], times.pop("threads")
    cores = f"{threads} thread" + "s" * (threads > 1)
    choosing = read(recipe_jobs(keeps[0])[0])["spending"]["images"]
    about = (
        f"`SECATEURS_DATA=… python benchmarks/resnet56.py`: from a ResNet-56 that recognises {cell['before']:.2f} % of the reported test "
        f"images, channels inside the blocks are removed in one go, and the network is fine-tuned for {spent['epochs']} epochs of "
        f"{spent['images']:,} images (SGD 0.9 Nesterov, cosine). Accuracy in % on 8,000 test images, "
        f"mean ± standard deviation of seeds {', '.join(map(str, SEEDS))}, which vary the fine-tuning only. Milliseconds are medians of "
        f"{ROUNDS} interleaved rounds with {cores} in float32; in brackets, times as fast as dense (median of the rounds)."
    )
    latencies = [f"ms, batch {batch}" for batch in LATENCY_BATCHES]
    headings = ["network", "MACs", "parameters", "file, bytes", "accuracy, cut only", "fine-tuned", *latencies]
    choice = (
        f"Each package's recipe was chosen for each goal by one epoch of {choosing:,} images with seed {CHOOSING_SEED} and lr {LRS[0]}, on "
        f"{CHOOSING_IMAGES:,} other test images. All of torch-pruning's have its own importances with their default reduction and "
        "normalisation; the budget is met by halving. `magnitude` counts all weights that a channel lies in:"
    )
    goals = [f"{keep:.0%}, {when}" for keep in keeps for when in ("cut only", "tuned")]
    choices = markdown(["package", "recipe", *goals], choice_rows(keeps))
    rates = markdown(["package", "MACs", "recipe", *(f"lr {lr:g}" for lr in sorted(LRS))], rate_rows(keeps))
    results = markdown(headings, result_rows(times))
    write("resnet56", "# ResNet-56 with fewer channels", about, results, choice, choices, "Then the learning rate:", rates)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--workers", type=int, default=2 if DEVICE.type == "cpu" else 1, help="networks at a time")
    parser.add_argument("--keep", type=float, nargs="*", default=KEEPS, help="fractions of the MACs to measure")
    for name, default in asdict(Spending()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, some cells at a time, then write the report."""
    given = options()
    spending = Spending(given.epochs, given.images, given.choosing)
    if not given.report:
        # Fresh processes: threads of OpenMP do not survive a fork.
        with ProcessPoolExecutor(given.workers, get_context("spawn")) as pool:
            for keep in given.keep:
                for jobs in (recipe_jobs, rate_jobs, reported_jobs):
                    for line in pool.map(partial(measure, spending=spending), jobs(keep)):
                        print(line, flush=True)
        latency(spending.images)
    report()


if __name__ == "__main__":
    main()
