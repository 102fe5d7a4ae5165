"""Learned, gradual and moving sparsity beside iterative pruning: LeNets on MNIST, ResNet-20 on CIFAR-10; test error at fewer parameters.

    SECATEURS_DATA=... python benchmarks/recover.py                                   # hours of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/recover.py --network lenet_5 --ways best --seeds 3 4 5
    SECATEURS_DATA=... python benchmarks/recover.py --ways indicators --factors 50 200 --epochs 20
    SECATEURS_DATA=... python benchmarks/recover.py --report                          # only the page and the picture, from what is there

All ways begin with the same dense network of a seed and train for as many epochs, with one cosine of the learning rate; images of MNIST are
shifted by up to a pixel, an epoch of CIFAR-10 is 10,000 images. The dense ResNet-20 is the published one, tuned on JPEG images first. RigL
begins anew with LeNets and trains for the dense network's epochs too; with ResNet-20 it moves the masks of a cut by magnitude.
"iterative" cuts in rounds of as many epochs each. "best" does with more epochs the fewer weights are left, and the dense network as a
teacher. Parameters are all that is not zero, biases included, once neurons that are cut off are gone; what a way leaves above the number
goes by magnitude, without further training. Recipes were chosen on the 5,000 validation images with seed 100.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cifar import Part, published
from lenets import Shifted, channels_last, cut_, error, there
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import lenet_5, lenet_300_100, resnet_20
from secateurs.tasks import cifar10, mnist

CELLS = RESULTS / "recover"

Chain = tuple[tuple[int, int], ...]
"""(times fewer parameters, epochs with as many), one round after the other."""


@dataclass(frozen=True)
class Network:
    """A network, its data, and how it is trained."""

    title: str
    make: Callable[[], nn.Module]
    task: Callable[[int], sc.Task]
    dense_epochs: int
    lr: float
    factors: tuple[int, ...]
    iterative: Chain
    best: Chain
    paper: str = ""
    anew: bool = True


def digits(seed: int) -> sc.Task:
    """MNIST, images to train on shifted."""
    task = mnist(seed=seed)
    return replace(task, train=Shifted(task.train))  # type: ignore[arg-type]


def images(seed: int) -> sc.Task:
    """CIFAR-10, 10,000 other images an epoch."""
    task = cifar10(seed=seed)
    return replace(task, train=Part(task.train, 10_000))  # type: ignore[arg-type]


def residual() -> nn.Module:
    """ResNet-20 as published."""
    return published(resnet_20(), "resnet20_cifar10.safetensors")


LENET_FACTORS, THREES = (12, 50, 100, 200, 310), tuple((factor, 3) for factor in (4, 12, 24, 50, 100, 200, 310))
NETWORKS = {
    "lenet_300_100": Network(
        "LeNet-300-100", lenet_300_100, digits, 30, 0.1, LENET_FACTORS, THREES,
        ((4, 10), (12, 20), (24, 20), (50, 30), (75, 30), (100, 40), (150, 30), (200, 60), (310, 60)), "80x at no loss",
    ),
    "lenet_5": Network(
        "LeNet-5", lenet_5, digits, 12, 0.05, LENET_FACTORS, THREES,
        ((4, 2), (12, 3), (24, 4), (50, 6), (75, 6), (100, 8), (130, 8), (160, 10), (200, 24), (250, 10), (310, 24)), "310x at no loss",
    ),
    "resnet_20": Network(
        "ResNet-20", residual, images, 4, 0.02, (5, 10, 20), ((2, 2), (5, 4), (10, 4), (20, 4)), ((2, 4), (5, 8), (10, 12), (20, 16)),
        anew=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One way on one network of one seed."""

    network: str
    way: str
    seed: int
    epochs: int

    @property
    def file(self) -> Path:
        return CELLS / f"{self.network}-{self.way}-{self.seed}-{self.epochs}.json"

    def found(self) -> dict[str, dict[str, float]]:
        """What is there already: times fewer parameters → what came of it."""
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def keep(self, factor: int, **told: float) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**self.found(), str(factor): told}, indent=1))
        print(self.network, self.way, self.seed, f"{factor}x", told, flush=True)

    def checkpoint(self, what: object) -> Path:
        """Where training goes on after it was stopped."""
        folder = Path("build/recover")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.file.stem}-{what}.safetensors"


# ---------------------------------------------------------------- training


def train(
    model: nn.Module,
    task: sc.Task,
    job: Job,
    epochs: int,
    what: object,
    *hooks: sc.Hook,
    masks: sc.Masks | None = None,
    lr: float | None = None,
) -> sc.Run:
    """SGD with momentum, one cosine over all steps, gradients clipped."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr or NETWORKS[job.network].lr, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(task.train)))  # type: ignore[arg-type]
    return sc.train_(
        model,
        sc.Task(task.example, train=task.train, loss=task.loss),
        optimizer,
        epochs,
        masks=masks,
        hooks=[sc.clip_gradients(1.0), cosine, *hooks],
        checkpoint=job.checkpoint(what),
        seed=1000 + job.seed,
        show=False,
    )


def dense_of(job: Job, task: sc.Task) -> nn.Module:
    """The dense network of a seed, trained where it is not there yet."""
    torch.manual_seed(job.seed)
    model = channels_last(NETWORKS[job.network].make())
    start = Job(job.network, "dense", job.seed, NETWORKS[job.network].dense_epochs)
    train(model, task, start, start.epochs, "dense")
    if "1" not in start.found():
        start.keep(1, error=error(model, task), parameters=there(model), epochs=start.epochs)
    return model


def learned(hook: Callable[..., sc.Hook], **options: Any) -> Callable[..., None]:
    """A way that learns what to prune until three quarters of the epochs are over."""

    def way(model: nn.Module, task: sc.Task, job: Job, sparsity: float, factor: int) -> None:
        train(model, task, job, job.epochs, factor, hook(target=sparsity, end=max(1, job.epochs * 3 // 4), **options))

    return way


def gradual(model: nn.Module, task: sc.Task, job: Job, sparsity: float, factor: int) -> None:
    """Zhu and Gupta's cubic, all layers ranked together."""
    end = max(1, job.epochs * 3 // 4)
    prune = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.cubic(sparsity), end=end)
    train(model, task, job, job.epochs, factor, prune)


def movement(model: nn.Module, task: sc.Task, job: Job, sparsity: float, factor: int) -> None:
    """Hard movement pruning, all layers ranked together."""
    prune = sc.movement_pruning(sc.cubic(sparsity), allocate=sc.global_threshold)
    train(model, task, job, job.epochs, factor, prune)


def rigl(model: nn.Module, task: sc.Task, job: Job, sparsity: float, factor: int) -> None:
    """From scratch for the epochs of the dense network too; or from a cut by magnitude."""
    network = NETWORKS[job.network]
    if not network.anew:
        train(model, task, job, job.epochs, factor, sc.rigl(sc.erdos_renyi(sparsity=sparsity), start=sc.magnitude()))
        return
    fresh = channels_last(network.make())
    train(fresh, task, job, job.epochs + network.dense_epochs, factor, sc.rigl(sc.erdos_renyi(sparsity=sparsity), rescale=True))
    model.load_state_dict(fresh.state_dict())


def ac_dc(model: nn.Module, task: sc.Task, job: Job, sparsity: float, factor: int) -> None:
    """Phases with all weights and with few, in turn."""
    hook = sc.ac_dc(sc.global_threshold(sparsity=sparsity), final=job.epochs - max(1, job.epochs * 3 // 4) or 1)
    train(model, task, job, job.epochs, factor, hook)


WAYS: dict[str, Callable[..., None]] = {
    "gradual": gradual,
    "movement": movement,
    "soft_threshold": learned(sc.soft_threshold),
    "indicators": learned(sc.indicators),
    "l0_gates": learned(sc.l0_gates),
    "rigl": rigl,
    "ac_dc": ac_dc,
}
LABELS = {
    "best": "iterative, more epochs, a teacher",
    "iterative": "iterative magnitude",
    "gradual": "gradual magnitude",
    "movement": "movement",
    "soft_threshold": "STR",
    "indicators": "AutoPrune",
    "l0_gates": "L0 gates",
    "rigl": "RigL",
    "ac_dc": "AC/DC",
}


def measure(job: Job, factors: tuple[int, ...]) -> None:
    """One way at each number of parameters that is not there yet."""
    task = NETWORKS[job.network].task(job.seed)
    for factor in (each for each in factors if str(each) not in job.found()):
        model, start = dense_of(job, task), time.time()
        limit = sum(parameter.numel() for parameter in model.parameters()) // factor
        weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
        WAYS[job.way](model, task, job, 1 - 0.92 * limit / weights, factor)  # the rest for biases
        finish(model, task, job, factor, limit, time.time() - start, job.epochs)


def finish(model: nn.Module, task: sc.Task, job: Job, factor: int, limit: int, seconds: float, epochs: int) -> None:
    """Measure what is left, once it is no more than what may be."""
    masks = sc.Masks.of_zeros(model)
    sc.zero_dead_(model, masks, task.example)
    before = there(model)
    if before > limit:
        cut_(model, task, limit, sc.global_threshold, masks)
    validation = 100 * (1 - sc.evaluate(model, task, task.validation))
    job.keep(
        factor,
        error=error(model, task),
        validation=validation,
        parameters=there(model),
        before=before,
        epochs=epochs,
        seconds=round(seconds),
    )


def rounds(job: Job, chain: Chain, task: sc.Task) -> Iterator[tuple[int, nn.Module, sc.Masks, int]]:
    """Iterative pruning by magnitude: each round cuts what the one before left; yields each round's model, masks and epochs so far."""
    model, masks, done = dense_of(job, task), None, 0
    teachers = [sc.distill(copy.deepcopy(model))] if job.way == "best" else []
    for factor, epochs in chain:
        limit = sum(parameter.numel() for parameter in model.parameters()) // factor
        masks = cut_(model, task, limit, sc.global_threshold, masks)
        train(model, task, job, epochs, factor, *teachers, masks=masks)
        sc.zero_dead_(model, masks, task.example)
        done += epochs
        yield factor, model, masks, done


def chained(job: Job, factors: tuple[int, ...], chain: Chain) -> None:
    """Measure each round of iterative pruning that is not there yet."""
    if all(str(factor) in job.found() for factor in factors):
        return
    task, start = NETWORKS[job.network].task(job.seed), time.time()
    for factor, model, _, done in rounds(job, chain, task):
        if str(factor) not in job.found():
            limit = sum(parameter.numel() for parameter in model.parameters()) // factor
            finish(copy.deepcopy(model), task, job, factor, limit, time.time() - start, done)
        if factor >= max(factors):
            return


# ---------------------------------------------------------------- the page


def cells(network: str, way: str) -> dict[int, list[dict[str, float]]]:
    """Times fewer parameters → what came of each seed, the chosen seed left out."""
    found: dict[int, list[dict[str, float]]] = {}
    for file in sorted(CELLS.glob(f"{network}-{way}-*.json")):
        if int(file.stem.split("-")[-2]) < 100:
            for factor, told in json.loads(file.read_text()).items():
                found.setdefault(int(factor), []).append(told)
    return found


def told(points: list[dict[str, float]] | None) -> str:
    """Mean, deviation and number of seeds, and the epochs they had."""
    if not points:
        return ""
    errors = [each["error"] for each in points]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.2f}{spread} ({len(errors)} seed{'s' * (len(errors) > 1)}, {points[0]['epochs']:.0f} epochs)"


def measured() -> list[str]:
    """The networks of which something is there to tell."""
    return [network for network in NETWORKS if any(cells(network, way) for way in LABELS)]


def section(network: str) -> str:
    """The table of one network."""
    found = {way: cells(network, way) for way in LABELS}
    rows = [
        [f"{factor}x", *(told(found[way].get(factor)) for way in LABELS)]
        for factor in NETWORKS[network].factors
        if any(factor in found[way] for way in LABELS)
    ]
    dense = told(cells(network, "dense").get(1))
    paper = f"; AutoPrune's paper: {NETWORKS[network].paper}" if NETWORKS[network].paper else ""
    head = f"## {NETWORKS[network].title}: dense test error {dense}{paper}"
    return "\n\n".join([head, markdown(["fewer parameters", *LABELS.values()], rows)])


def plot() -> None:
    """Test error against compression, one panel a network."""
    from matplotlib.figure import Figure

    from secateurs.report.drawing import COLOURS, MARKERS

    figure = Figure(figsize=(5.5 * len(measured()), 4.4), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(measured()), squeeze=False)[0], measured(), strict=True):
        for number, (way, label) in enumerate(LABELS.items()):
            points = sorted(
                (factor, statistics.mean(each["error"] for each in all_)) for factor, all_ in cells(network, way).items()
            )
            if points:
                style = {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)]}
                axes.plot(*zip(*points, strict=True), label=label, markersize=5, **style)
        dense = cells(network, "dense").get(1, [])
        if dense:
            axes.axhline(statistics.mean(each["error"] for each in dense), color="grey", linestyle="--", label="dense")
        axes.set(xscale="log", yscale="log", xlabel="times fewer parameters", ylabel="test error, %", title=NETWORKS[network].title)
        axes.set_xticks(NETWORKS[network].factors, [f"{factor}x" for factor in NETWORKS[network].factors])
        axes.set_yticks([0.5, 1, 2, 5, 10, 50], ["0.5", "1", "2", "5", "10", "50"])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "recover.png", dpi=130)


def report() -> None:
    """Write the page and the picture from what is there."""
    about = (
        "`SECATEURS_DATA=… python benchmarks/recover.py`: test error in %, mean ± deviation over seeds. Parameters are all that is not "
        "zero, biases included. Epochs are those after the dense network's; RigL, which starts anew, had the dense network's too. An "
        "empty cell was not measured."
    )
    write("recover", "# Learning what to prune", about, "![test error](recover.png)", *map(section, measured()))
    plot()


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--ways", nargs="*", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--factors", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        torch.set_num_threads(1)
        for seed in given.seeds:
            for network in given.network:
                for way in given.ways:
                    about = NETWORKS[network]
                    job, factors = Job(network, way, seed, given.epochs), tuple(given.factors or about.factors)
                    if way in WAYS:
                        measure(job, factors)
                    else:
                        chained(job, factors, about.best if way == "best" else about.iterative)
    report()


if __name__ == "__main__":
    main()
