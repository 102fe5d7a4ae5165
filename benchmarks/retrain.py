"""How to retrain: ResNet-20 on CIFAR-10 with 80 % and 90 % of its weights gone, by learning rate, its schedule, and epochs.

    SECATEURS_DATA=... python benchmarks/retrain.py                 # about an hour of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/retrain.py --epochs 1 3 --sparsity 0.8
    SECATEURS_DATA=... python benchmarks/retrain.py --report

The published network, tuned on JPEG images, loses its smallest weights (one ranking of all layers) at once, and is retrained for some
epochs of 10,000 images: with the small constant rate with which training ends ("fine-tuning"), or with a schedule that begins at the full
rate and ends at nothing, which Renda, Frankle and Carbin (2003.02389) found to be better ("learning-rate rewinding"): by steps, or along
a cosine. Beside it: with and without weight decay, and with the dense network as a teacher. The choice is made on 5,000 validation
images; test accuracy is told, once, of all 10,000.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cifar import Part, published, tune
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import resnet_20
from secateurs.tasks import cifar10

CELLS = RESULTS / "retrain.json"
RATES = (0.1, 0.03, 0.01, 0.003, 0.001)
EPOCHS = (1, 3, 9)
SPARSITIES = (0.8, 0.9)
IMAGES = 10_000

Schedule = Callable[[torch.optim.Optimizer, int], Any]
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, steps),
    "steps": lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4]),
    "cosine": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
}


def dense_of(task: sc.Task) -> nn.Module:
    """The published network, tuned for two epochs on JPEG images; kept in build/."""
    torch.manual_seed(0)
    model = published(resnet_20(), "resnet20_cifar10.safetensors")
    file = Path("build/retrain/dense.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    tune(model, replace(task, train=Part(task.train, IMAGES)), 0.003, 2, file, amp=None)  # type: ignore[arg-type]
    return model


def retrained(
    dense: nn.Module, task: sc.Task, sparsity: float, rate: float, schedule: str, epochs: int, decay: float, teacher: bool
) -> dict[str, float]:
    """Accuracies of one cut, retrained one way."""
    model = copy.deepcopy(dense)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold(sparsity=sparsity), task)
    cut = sc.evaluate(model, task, task.validation)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    train = Part(task.train, IMAGES)  # type: ignore[arg-type]
    hooks = [sc.per_step(SCHEDULES[schedule](optimizer, epochs * len(train)))]
    if teacher:
        hooks.append(sc.distill(copy.deepcopy(dense)))
    alone = sc.Task(task.example, train=train, loss=task.loss)
    sc.train_(model, alone, optimizer, epochs, masks=masks, hooks=hooks, seed=1, show=False)
    return {"cut": cut, "validation": sc.evaluate(model, task, task.validation), "test": sc.evaluate(model, task, task.test)}


def key(sparsity: float, rate: float, schedule: str, epochs: int, decay: float = 1e-4, teacher: bool = False) -> str:
    """What tells a cell from the others."""
    return f"{sparsity} {rate} {schedule} {epochs} {decay} {teacher}"


def measure(sparsities: list[float], epochs: list[int]) -> None:
    """Every cell that is not there yet."""
    found: dict[str, dict[str, float]] = json.loads(CELLS.read_text()) if CELLS.exists() else {}
    task = cifar10()
    dense = dense_of(task)
    if "dense" not in found:
        found["dense"] = {"validation": sc.evaluate(dense, task, task.validation), "test": sc.evaluate(dense, task, task.test)}
    wanted: list[tuple[float, float, str, int, float, bool]] = []
    for count, sparsity in product(epochs, sparsities):
        wanted += [(sparsity, rate, schedule, count, 1e-4, False) for schedule, rate in product(SCHEDULES, RATES)]
        wanted += [(sparsity, 0.03, "cosine", count, decay, teacher) for decay, teacher in ((0.0, False), (1e-4, True))]
    for cell in wanted:
        if key(*cell) not in found:
            found[key(*cell)] = retrained(dense, task, *cell)
            CELLS.write_text(json.dumps(found, indent=1))
            print(key(*cell), found[key(*cell)], flush=True)


def report() -> None:
    """Write the page from what is there."""
    found: dict[str, dict[str, float]] = json.loads(CELLS.read_text())
    parts = []
    for sparsity in SPARSITIES:
        for count in EPOCHS:
            rows = []
            for schedule in SCHEDULES:
                cells = [found.get(key(sparsity, rate, schedule, count)) for rate in RATES]
                if any(cells):
                    best = max((cell["validation"] for cell in cells if cell), default=0)
                    told = [
                        ""
                        if cell is None
                        else ("**{:.2f}**" if cell["validation"] == best else "{:.2f}").format(100 * cell["test"])
                        for cell in cells
                    ]
                    rows.append([schedule, *told])
            if rows:
                extra = [
                    f"{name}: {100 * cell['test']:.2f}"
                    for name, cell in (
                        ("cosine from 0.03 without weight decay", found.get(key(sparsity, 0.03, "cosine", count, 0.0))),
                        ("with the dense network as a teacher", found.get(key(sparsity, 0.03, "cosine", count, 1e-4, True))),
                    )
                    if cell
                ]
                cut = next(cell["cut"] for name, cell in found.items() if name.startswith(f"{sparsity} "))
                head = (
                    f"## {100 * sparsity:.0f} % gone ({100 * cut:.1f} % right before retraining), {count} epoch{'s' * (count > 1)}"
                )
                parts.append(
                    "\n\n".join([head, markdown(["schedule", *(f"from {rate:g}" for rate in RATES)], rows), "; ".join(extra)])
                )
    about = (
        f"`SECATEURS_DATA=… python benchmarks/retrain.py`: test accuracy in % of ResNet-20 on CIFAR-10, dense "
        f"{100 * found['dense']['test']:.2f}; one seed; an epoch is {IMAGES:,} images, batches of 128, "
        "SGD 0.9 Nesterov. Bold: the best of a row on the validation images."
    )
    write("retrain", "# How to retrain", about, *parts)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", nargs="*", type=float, default=list(SPARSITIES))
    parser.add_argument("--epochs", nargs="*", type=int, default=list(EPOCHS))
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        torch.set_num_threads(1)
        measure(given.sparsity, given.epochs)
    report()


if __name__ == "__main__":
    main()
