"""The picture of docs/weight_sharing.md: a layer's weights before and after sharing, and where its values go in training.

    python benchmarks/weight_sharing.py                             # about a minute of one core; writes docs/weight_sharing.png
    SECATEURS_DATA=... python benchmarks/weight_sharing.py --prices # two minutes: the table of levels by error and bits together

A small convolutional network learns 8x8 digits and loses nine tenths of its weights; what is left of its largest layer gets four values,
which are trained for four epochs. The table is of LeNet-300-100 on MNIST, trained for four epochs, with 92 % of its weights removed at once
and four epochs more; accuracies are those of the validation images. Importance is of 400 training images, one by one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import secateurs as sc
from secateurs.compressing import coded_bytes, importance, k_means, price_within, rate_distortion_, uniform
from secateurs.models import digits_cnn, lenet_300_100
from secateurs.report.drawing import COLOURS, FAINT, FULL, INK, styled
from secateurs.tasks import digits, mnist
from secateurs.types import Run

PICTURE = Path(__file__).parents[1] / "docs" / "weight_sharing.png"


def main() -> None:
    """Train, prune, share, train the values, draw."""
    torch.manual_seed(0)
    model, task = digits_cnn(), digits()
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    sc.train_(model, task, adam, 4)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold(sparsity=0.9), task)
    sc.train_(model, task, adam, 3, masks=masks)
    name = max(masks, key=lambda each: masks[each].numel())
    before = copy.deepcopy(model).get_parameter(name).detach()
    accuracies = [sc.evaluate(model, task, task.validation)]
    shared = sc.share_(model, 2, masks=masks)
    accuracies.append(sc.evaluate(model, task, task.validation))
    numbers, paths = shared.levels[name].numbers, list[list[float]]()

    def note(run: Run) -> None:
        weight = model.get_parameter(name).detach()
        paths.append([float(weight[numbers == number][0]) for number in numbers.unique().tolist() if number])

    sc.train_(
        model, task, torch.optim.Adam(model.parameters(), lr=2e-3), 4, masks=masks, hooks=[shared, sc.Hook("note", stepped=note)]
    )
    accuracies.append(sc.evaluate(model, task, task.validation))
    print(shared, accuracies)
    draw(name, before[before != 0], paths, accuracies)


def draw(name: str, weights: torch.Tensor, paths: list[list[float]], accuracies: list[float]) -> None:
    """Three panels that share the axis of the weights' values."""
    titles = [f"pruned: {accuracies[0]:.1%}", f"shared: {accuracies[1]:.1%}", f"values trained: {accuracies[2]:.1%}"]
    with styled(8.5, 3.4) as figure:
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.5))
        low, high = float(weights.min()), float(weights.max())
        left.hist(weights.tolist(), bins=60, range=(low, high), orientation="horizontal", color=FULL)
        first = torch.tensor(paths[0])
        counts = (weights[:, None] - first).abs().argmin(1).bincount(minlength=len(first))
        middle.barh(first.tolist(), counts.tolist(), height=(high - low) / 90, color=COLOURS[0])
        for place, path in enumerate(zip(*paths, strict=True)):
            right.plot(path, color=COLOURS[place % len(COLOURS)], linewidth=1.4)
        left.set_ylabel(f"weights of {name.removesuffix('.weight')} that are left")
        for axes, title, label in zip((left, middle, right), titles, ("weights", "weights", "steps"), strict=True):
            axes.set_title(title, color=INK)
            axes.set_xlabel(label)
            axes.axhline(0, color=FAINT, linewidth=0.6)
        figure.savefig(PICTURE, dpi=130)


def prices() -> None:
    """Accuracies at two numbers of bytes, by quantiser."""
    torch.manual_seed(0)
    model, task = lenet_300_100(), mnist()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    sc.train_(model, task, adam, 4)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold(sparsity=0.92), task)
    sc.train_(model, task, adam, 4, masks=masks)
    print(f"pruned: {sc.evaluate(model, task, task.validation):.2%}")
    batches: Iterable[Any] = () if task.train is None else islice(task.train, 4)
    images, labels = (torch.cat(each)[:400] for each in zip(*batches, strict=True))
    weighs = importance(model, replace(task, calibration=list(zip(images.split(1), labels.split(1), strict=True))))
    for quantiser in (k_means(bits=5), k_means(bits=3), k_means(bits=2), uniform(bits=5), uniform(bits=4)):
        for limit in (14_000, 10_000):
            price = price_within(model, quantiser, limit=limit, importance=weighs, masks=masks, show=False)
            tried = copy.deepcopy(model)
            shared = rate_distortion_(tried, quantiser, price=price, importance=weighs, masks=masks.bind(tried))
            size = sum(map(coded_bytes, shared.levels.values()))
            print(f"{quantiser}: {size:,} bytes: {sc.evaluate(tried, task, task.validation):.2%}")


if __name__ == "__main__":
    prices() if "--prices" in sys.argv else main()
