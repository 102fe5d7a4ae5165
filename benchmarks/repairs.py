"""What the cheap repairs bring a cut network back, without any training: ResNet-20 and ResNet-56 on CIFAR-10 (JPEG), LeNet-5 on MNIST.

    SECATEURS_DATA=... python benchmarks/repairs.py            # about twenty minutes of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/repairs.py --report   # only the page, from what is there

Each network is cut once by magnitude: channels within its blocks (the same fraction everywhere, to a fraction of the MACs), or single
weights (one threshold). Then each repair starts from the same cut, on the same images: ``--images`` of the training images, as they are.
Accuracy is of the first ``--test`` test images, and a repair's seconds are processor seconds of the repair alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from cifar import batches_of, inside, published
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import lenet_5, resnet_20, resnet_56
from secateurs.tasks import cifar10, mnist

CELLS = RESULTS / "repairs.json"
Start = Callable[[nn.Module, nn.Module, sc.Task, sc.Masks], object]


@dataclass(frozen=True)
class Cut:
    """What is removed, and by what solver; the repairs start from it."""

    pattern: Any
    allocate: Any
    only: Any = None

    def __call__(self, model: nn.Module, task: sc.Task, solver: Any = None) -> sc.Masks:
        solver = solver or sc.TopK(sc.magnitude())
        return sc.prune_(model, self.pattern, solver, self.allocate, task, only=self.only, recalibrate=False)


CUTS: dict[str, Cut] = {
    f"channels, {keep:.0%} of the MACs stay".replace("%", " %"): Cut(
        sc.Channel(), sc.within_budget(sc.Budget(sc.macs, keep=keep), sc.uniform), inside
    )
    for keep in (0.5,)
} | {
    f"{sparsity:.0%} of the weights go".replace("%", " %"): Cut(sc.Element(), sc.global_threshold(sparsity=sparsity))
    for sparsity in (0.8,)
}


LENET_CUTS: dict[str, Cut] = {
    "channels and units, 50 % of the MACs stay": Cut(sc.Channel(), sc.within_budget(sc.Budget(sc.macs, keep=0.5), sc.uniform)),
    "95 % of the weights go": Cut(sc.Element(), sc.global_threshold(sparsity=0.95)),
}


def rescaled(model: nn.Module, dense: nn.Module, task: sc.Task, masks: sc.Masks) -> None:
    """A number for each channel that stays."""
    of_resnet = any(name.startswith("layer1") for name, _ in model.named_modules())
    sc.rescale_(model, dense, task, masks, only=inside if of_resnet else None, damping=0.1)


def statistics(model: nn.Module, dense: nn.Module, task: sc.Task, masks: sc.Masks) -> None:
    """BatchNorm statistics anew."""
    sc.recalibrate_(model, task)


def biases(model: nn.Module, dense: nn.Module, task: sc.Task, masks: sc.Masks) -> None:
    """Means of all answers as they were, by the biases."""
    few = replace(task, calibration=[batch for batch, _ in zip(task.calibration or (), range(1), strict=False)])
    sc.correct_biases_(model, dense, few, masks)


def both(*repairs: Start) -> Start:
    """One repair after the other."""

    def repair(*given: Any) -> None:
        for each in repairs:
            each(*given)

    return repair


SOLVED = "least squares for the weights that stay, while cutting"
REPAIRS: dict[str, Start | None] = {
    "nothing": lambda *given: None,
    "statistics (`recalibrate_`)": statistics,
    "biases (`correct_biases_`)": biases,
    "statistics, then biases": both(statistics, biases),
    "a number a channel (`rescale_`)": rescaled,
    "a number a channel, then statistics": both(rescaled, statistics),
    SOLVED: None,
    f"{SOLVED}, then statistics": statistics,
}


def images(task: sc.Task, seen: int, tested: int) -> sc.Task:
    """The images that repairs see, and those that are tested on."""
    return replace(
        task, calibration=list(islice(task.calibration or (), seen // 128)), train=None, test=batches_of(task.test, 0, tested, 250)
    )


def networks(seen: int, tested: int) -> Iterator[tuple[str, nn.Module, sc.Task, dict[str, Cut]]]:
    """The dense networks, their tasks, and how they are cut."""
    torch.manual_seed(0)
    model, digits = lenet_5(), mnist(batch_size=128)
    sc.train_(model, digits, torch.optim.Adam(model.parameters(), lr=2e-3), 2, show=False)
    yield "LeNet-5", model, images(digits, seen, tested), LENET_CUTS
    pictures = images(cifar10(batch_size=128), seen, tested)
    yield "ResNet-20", published(resnet_20(), "resnet20_cifar10.safetensors"), pictures, CUTS
    yield "ResNet-56", published(resnet_56(), "resnet56_cifar10_jpeg.safetensors"), pictures, CUTS


def cells(name: str, dense: nn.Module, task: sc.Task, cuts: dict[str, Cut]) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The name of each cell of a network, and how it is measured."""
    norms = any(isinstance(module, nn.BatchNorm2d) for module in dense.modules())
    repairs = {repair: how for repair, how in REPAIRS.items() if norms or "statistics" not in repair}
    for repair in ("nothing", "statistics (`recalibrate_`)")[: 1 + norms]:
        yield f"{name} | nothing | {repair}", partial(measured, dense, None, repairs[repair], task)
    for title, cut in cuts.items():
        for repair, how in repairs.items():
            if cut.pattern.removable or not any(part in repair for part in ("number a channel", SOLVED)):
                solver = sc.LeastSquares(sc.TopK(sc.magnitude())) if SOLVED in repair else None
                yield f"{name} | {title} | {repair}", partial(measured, dense, cut, how, task, solver)


def accuracy(model: nn.Module, task: sc.Task) -> float:
    """In %."""
    return 100 * sc.evaluate(model, task, task.test, show=False)


def measured(dense: nn.Module, cut: Cut | None, repair: Start | None, task: sc.Task, solver: Any = None) -> dict[str, float]:
    """A copy of a network, cut and repaired."""
    model, began = copy.deepcopy(dense), time.process_time()
    masks = cut(model, task, solver) if cut is not None else sc.Masks({}, model)
    began = began if solver is not None else time.process_time()
    if repair is not None:
        repair(model, dense, task, masks)
    seconds = time.process_time() - began
    return {"accuracy": accuracy(model, task), "seconds": seconds}


def report(found: dict[str, Any], asked: dict[str, int]) -> None:
    """Write the page."""
    rows = []
    for name, cell in found["cells"].items():
        network, cut, repair = name.split(" | ")
        rows.append(
            [network, cut, repair, f"{cell['accuracy']:.1f}", f"{cell['seconds']:.0f}" if cell.get("seconds", 0) >= 0.5 else ""]
        )
    text = (
        f"`SECATEURS_DATA=… python benchmarks/repairs.py`: networks cut by magnitude and repaired without training, on {asked['images']} "
        f"training images as they are (biases: the first 128). Accuracy in % of the first {asked['test']} test images, with a standard "
        f"error up to {50 / asked['test'] ** 0.5:.1f}; one run each, nothing is drawn at random. Seconds are processor seconds of one core "
        "for the repair (for least squares while cutting: of the cut too), taken while other work ran on the machine. ResNet-20 is the "
        "published one, which has not seen JPEG images in training; LeNet-5 was trained for two "
        "epochs, and has no BatchNorm. Cells that are not there yet are measured by the same command, which goes on.\n\n"
        + markdown(["network", "cut", "repair", "accuracy", "seconds"], rows)
    )
    write("repairs", "# Cheap repairs", text)


def main() -> None:
    """Measure what is not there yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"images": given.images, "test": given.test}
    found = json.loads(CELLS.read_text()) if CELLS.exists() else {}
    found = found if found.get("asked") == asked else {"asked": asked, "cells": {}}
    if not given.report:
        for network in networks(given.images, given.test):
            for name, measure in cells(*network):
                if name not in found["cells"]:
                    found["cells"][name] = measure()
                    print(name, found["cells"][name], flush=True)
                    CELLS.write_text(json.dumps(found, indent=1) + "\n")
    report(found, asked)


if __name__ == "__main__":
    main()
