"""The trade-off of Han et al. 2015 (1506.02626, figures 5 and 6): accuracy lost against parameters pruned, and what each layer can lose.

    SECATEURS_DATA=... python benchmarks/tradeoff.py                    # LeNet-5 and ResNet-20; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/tradeoff.py --only lenet_5 --epochs 2
    SECATEURS_DATA=... python benchmarks/tradeoff.py --report           # only the page and the pictures, from what is there

A network is trained with an L1 and with an L2 penalty (ResNet-20: the published one, trained on with it). Then weights go by magnitude:
alone; followed by retraining with the same penalty; and, with L2, in rounds that each begin where the one before ended. The second figure
prunes one layer at a time, without retraining. Test accuracy; one seed; no recipe was chosen by it.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from cifar import Part, published
from lenets import Shifted, channels_last
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import lenet_5, resnet_20
from secateurs.report.drawing import COLOURS, MARKERS
from secateurs.tasks import cifar10, mnist

SPARSITIES = (0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
OF_LAYER = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
CELLS = RESULTS / "tradeoff"
CURVES = {
    "L2 alone": "L2, not retrained",
    "L1 alone": "L1, not retrained",
    "L1 retrained": "L1, retrained",
    "L2 retrained": "L2, retrained",
    "L2 iterative": "L2, iterative",
}
PENALTIES = {"L1": (2e-5, 1.0), "L2": (1e-4, 2.0)}


@dataclass(frozen=True)
class Network:
    """A network, its data, and for how many epochs it is trained with a penalty."""

    title: str
    make: Callable[[], nn.Module]
    task: Callable[[], sc.Task]
    epochs: int
    lr: float


def digits() -> sc.Task:
    """MNIST, images to train on shifted by up to a pixel."""
    task = mnist()
    return replace(task, train=Shifted(task.train))  # type: ignore[arg-type]


def images() -> sc.Task:
    """CIFAR-10, 10,000 other images an epoch; 4,000 to test."""
    task = cifar10()
    some = replace(task.test, inputs=task.test.inputs[:4_000], targets=task.test.targets[:4_000])  # type: ignore[union-attr,type-var]
    return replace(task, train=Part(task.train, 10_000), test=some)  # type: ignore[arg-type]


NETWORKS = {
    "lenet_5": Network("LeNet-5", lenet_5, digits, 6, 0.05),
    "resnet_20": Network("ResNet-20", lambda: published(resnet_20(), "resnet20_cifar10.safetensors"), images, 3, 0.02),
}


def train(model: nn.Module, task: sc.Task, lr: float, epochs: int, penalty: str, file: Path, masks: sc.Masks | None = None) -> None:
    """SGD with momentum, one cosine over all steps, and a penalty."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(task.train)))  # type: ignore[arg-type]
    strength, p = PENALTIES[penalty]
    hooks = [sc.clip_gradients(1.0), cosine, sc.penalty(strength, p)]
    alone = replace(task, validation=None)
    sc.train_(model, alone, optimizer, epochs, masks=masks, hooks=hooks, checkpoint=file, seed=0, show=False)


def cut(model: nn.Module, task: sc.Task, sparsity: float, masks: sc.Masks | None = None) -> sc.Masks:
    """Weights go by magnitude, all layers ranked together."""
    return sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold(sparsity=sparsity), task, masks=masks)


class Cell:
    """What was measured of one network, on disk."""

    def __init__(self, name: str) -> None:
        self.path = CELLS / f"{name}.json"
        self.found: dict[str, dict[str, float]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def once(self, curve: str, key: object, measure: Callable[[], float]) -> None:
        """Measure what is not there yet, and keep it."""
        points = self.found.setdefault(curve, {})
        if str(key) not in points:
            points[str(key)] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
            print(self.path.stem, curve, key, f"{points[str(key)]:.4f}", flush=True)


def measure(name: str, epochs: int) -> None:
    """All curves of one network."""
    about, cell = NETWORKS[name], Cell(name)
    task = about.task()
    work = Path("build/tradeoff")
    work.mkdir(parents=True, exist_ok=True)

    def accuracy(model: nn.Module) -> float:
        return sc.evaluate(model, task, task.test)

    for penalty in PENALTIES:
        torch.manual_seed(0)
        dense = channels_last(about.make())
        train(dense, task, about.lr, about.epochs, penalty, work / f"{name}-{penalty}.safetensors")
        cell.once("dense", penalty, partial(accuracy, dense))
        rounds, masks = copy.deepcopy(dense), None
        for sparsity in SPARSITIES:
            model = copy.deepcopy(dense)
            held = cut(model, task, sparsity)
            cell.once(f"{penalty} alone", sparsity, partial(accuracy, model))
            train(model, task, about.lr / 2, epochs, penalty, work / f"{name}-{penalty}-{sparsity}.safetensors", held)
            cell.once(f"{penalty} retrained", sparsity, partial(accuracy, model))
            if penalty == "L2":
                masks = cut(rounds, task, sparsity, masks)
                train(rounds, task, about.lr / 2, epochs, penalty, work / f"{name}-rounds-{sparsity}.safetensors", masks)
                cell.once("L2 iterative", sparsity, partial(accuracy, rounds))
        if penalty == "L2":
            each_layer(dense, task, cell)


def each_layer(dense: nn.Module, task: sc.Task, cell: Cell) -> None:
    """One layer pruned at a time, nothing retrained."""
    some = replace(task, test=[batch for number, batch in enumerate(task.test or ()) if number < 8])
    for site in sc.find_sites(dense, sc.Element(), task.example):
        for sparsity in OF_LAYER:

            def pruned(name: str = site.name, sparsity: float = sparsity) -> float:
                model = copy.deepcopy(dense)
                layer = name.removesuffix(".weight")
                sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), task, only=[layer])
                return sc.evaluate(model, some, some.test)

            cell.once(f"layer {site.name.removesuffix('.weight')}", sparsity, pruned)


# ---------------------------------------------------------------- the page


def plot(names: list[str]) -> None:
    """Accuracy lost against parameters pruned; and by layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    layers = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    for axes, below, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], layers.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        found = Cell(name).found
        for number, (curve, label) in enumerate(CURVES.items()):
            points = sorted(
                (100 * float(at), 100 * (value - found["dense"][curve[:2]])) for at, value in found.get(curve, {}).items()
            )
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker=MARKERS[number], color=COLOURS[number], markersize=5)
        axes.axhline(0, color="grey", linestyle="--", linewidth=1)
        axes.set(xlabel="parameters pruned, %", ylabel="accuracy lost, points", ylim=(-6, 0.8), title=NETWORKS[name].title)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        curves = {curve.removeprefix("layer "): points for curve, points in found.items() if curve.startswith("layer ")}
        for number, (layer, of_layer) in enumerate(curves.items()):
            shade = str(0.15 + 0.65 * number / max(1, len(curves) - 1)) if len(curves) > 6 else COLOURS[number]
            drawn = sorted((100 * float(at), 100 * value) for at, value in of_layer.items())
            below.plot(*zip(*drawn, strict=True), label=layer if len(curves) <= 6 else None, color=shade, linewidth=1.2)
        about = "" if len(curves) <= 6 else f": {len(curves)} layers, from dark to light"
        below.set(xlabel="pruned of one layer, %", ylabel="test accuracy, %", title=NETWORKS[name].title + about)
        if len(curves) <= 6:
            below.legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(RESULTS / "tradeoff.png", dpi=130)
    layers.savefig(RESULTS / "tradeoff_layers.png", dpi=130)


def report() -> None:
    """Write the page and the pictures from what is there."""
    names = [name for name in NETWORKS if (CELLS / f"{name}.json").exists()]
    plot(names)
    parts = []
    for name in names:
        found = Cell(name).found
        dense = ", ".join(f"{penalty} {100 * value:.2f} %" for penalty, value in found["dense"].items())
        rows = [
            [f"{100 * at:.0f} %", *(f"{100 * found.get(curve, {}).get(str(at), float('nan')):.2f}" for curve in CURVES)]
            for at in SPARSITIES
        ]
        parts.append(
            f"## {NETWORKS[name].title}: dense {dense}\n\n" + markdown(["pruned", *CURVES.values()], rows).replace("nan", "")
        )
    about = (
        "`SECATEURS_DATA=… python benchmarks/tradeoff.py`: test accuracy in %, weights pruned by magnitude (one ranking of all layers), "
        "one seed; retrained for 2 epochs after each cut, of 55,000 images (LeNet-5) or 10,000 (ResNet-20)."
    )
    pictures = "![accuracy lost against parameters pruned](tradeoff.png)\n\n![each layer alone](tradeoff_layers.png)"
    write("tradeoff", "# What pruning costs, with and without retraining", about, pictures, *parts)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        torch.set_num_threads(1)
        for name in given.only:
            measure(name, given.epochs)
    report()


if __name__ == "__main__":
    main()
