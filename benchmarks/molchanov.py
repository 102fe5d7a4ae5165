"""Pruning channels for efficient inference (Molchanov et al. 2016, 1611.06440): accuracy against MACs, pruned in steps, trained between.

    SECATEURS_DATA=... python benchmarks/molchanov.py            # about 15 minutes of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/molchanov.py --report   # only the page and the picture, from what is there

A small VGG with batch normalisation is trained on CIFAR-10 (JPEG). Then, round by round, the channels that score lowest in the whole
network go for good (`shrink_`), and the rest is trained for some steps. As in the paper, scores are divided by the L2 norm of their layer's
before layers are compared. The oracle removes each channel in turn and takes the absolute change of the loss, on the images that Taylor
is given.
Accuracies are of the first 2,000 test images; nothing was chosen by them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import Part, batches_of, tune
from tables import RESULTS, markdown, write
from torch import nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.comparing import Comparison, Outcome, plot
from secateurs.prune import masks_of
from secateurs.tasks import Batches, cifar10
from secateurs.types import Scores, Site, Solution, Solver, Statistic, Stats

BUILD = Path(__file__).parent.parent / "build" / "molchanov"
CELLS = RESULTS / "molchanov"
WIDTHS = (16, 16, 32, 32, 64, 64)
SEEDS = (0, 1)
ROUNDS, KEEP = 8, 0.82
AT = (0.75, 0.5, 0.3, 0.2, 0.12)
STEPS, BATCH, LR = 25, 128, 0.02
CALIBRATION, TEST = 256, 2000


def small_vgg() -> nn.Module:
    """Six convolutions in three stages, a mean over the image, a linear layer."""
    layers, inputs = OrderedDict[str, nn.Module](), 3
    for place, width in enumerate(WIDTHS):
        layers[f"conv{place}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        layers[f"bn{place}"] = nn.BatchNorm2d(width)
        layers[f"relu{place}"] = nn.ReLU()
        if place % 2:
            layers[f"pool{place}"] = nn.MaxPool2d(2)
        inputs = width
    layers.update(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, 10))
    return nn.Sequential(layers)


def task_of(seed: int, images: int) -> sc.Task:
    """CIFAR-10 (JPEG) with so many images an epoch, and the calibration images of a seed."""
    task = cifar10(batch_size=BATCH, seed=seed)
    assert isinstance(task.train, Batches)
    calibration, test = batches_of(task.calibration, 0, CALIBRATION, 32), batches_of(task.test, 0, TEST, 250)
    return replace(task, train=Part(task.train, images), calibration=calibration, test=test)


def dense() -> nn.Module:
    """The trained network, made once."""
    path = BUILD / "dense.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = small_vgg()
        tune(model, task_of(0, 20_000), 0.1, 8, path.with_suffix(".checkpoint"), amp=None)
        sc.save(model, path)
    return sc.load(path, small_vgg())


# ---------------------------------------------------------------- who goes


@dataclass(frozen=True)
class Normalised:
    """The scores of another solver, those of each site divided by their L2 norm, so that layers can be compared."""

    solver: Solver

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return self.solver.needs

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """The scores of each site in turn."""
        for scores in self.solver.scores(sites, stats):
            yield scores / scores.norm().clamp_min(torch.finfo(scores.dtype).tiny)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        return self.solver(site, kept, stats)


class Oracle:
    """The absolute change of the loss when a channel is removed, measured for each of them once."""

    needs: tuple[Statistic, ...] = ()

    def __init__(self, model: nn.Module, task: sc.Task) -> None:
        self.model, self.batches = model, list(task.calibration or ())
        self.known: dict[str, Scores] = {}

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """The scores of each site in turn."""
        for site in sites:
            if site.name not in self.known:
                self.known[site.name] = torch.tensor([list(self._changes(site))])
            yield self.known[site.name]

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        (scores,) = self.scores([site], stats)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen[0, scores[0].topk(kept).indices] = True
        return Solution(chosen)

    @torch.no_grad()
    def _changes(self, site: Site) -> Iterator[float]:
        self.model.eval()
        before, weights = self._loss(), {member.parameter: member.weight for member in site.members}
        held = {parameter: weight.clone() for parameter, weight in weights.items()}
        for unit in range(site.units):
            kept = torch.ones(1, site.units, dtype=torch.bool)
            kept[0, unit] = False
            for parameter, mask in masks_of(site, Solution(kept)).items():
                weights[parameter].masked_fill_(~mask, 0)
            yield abs(self._loss() - before)
            for parameter, weight in weights.items():
                weight.copy_(held[parameter])

    def _loss(self) -> float:
        losses = [float(cross_entropy(self.model(inputs), target)) * len(target) for inputs, target in self.batches]
        return sum(losses) / CALIBRATION


Chooses = Callable[[nn.Module, sc.Task, int], Any]

METHODS: dict[str, Chooses] = {
    "oracle": lambda model, task, seed: Oracle(model, task),
    "Taylor (activations)": lambda model, task, seed: sc.TopK(sc.taylor(activations=True)),
    "Taylor (weights)": lambda model, task, seed: sc.TopK(sc.taylor()),
    "magnitude": lambda model, task, seed: sc.TopK(sc.magnitude()),
    "random": lambda model, task, seed: sc.TopK(sc.random(seed)),
}


# ---------------------------------------------------------------- rounds


def rounds(name: str, seed: int) -> list[Outcome]:
    """Prune and train in turns; an outcome a round."""
    path = CELLS / f"{name}-{seed}.json".replace(" ", "-")
    if path.exists():
        return [Outcome(**each) for each in json.loads(path.read_text())]
    task, model, start = task_of(seed, STEPS * BATCH), dense(), time.process_time()
    torch.manual_seed(seed)
    whole = (sc.evaluate(model, task, task.test, show=False), int(sc.params(model)), sc.macs(model, task.example))
    found = []
    for step in range(1, ROUNDS + 1):
        solver = Normalised(METHODS[name](model, task, 100 * seed + step))
        masks = sc.prune_(model, sc.Channel(), solver, sc.global_threshold(keep=KEEP), task, recalibrate=False)
        cut = sc.evaluate(model, task, task.test, show=False)
        sc.shrink_(model, masks)
        tune(model, task, LR, 1, amp=None)
        found.append(
            Outcome(
                name,
                KEEP**step,
                seed,
                dense=whole[0],
                cut=cut,
                tuned=sc.evaluate(model, task, task.test, show=False),
                parameters=int(sc.params(model)),
                macs=sc.macs(model, task.example),
                dense_parameters=whole[1],
                dense_macs=whole[2],
                cut_seconds=time.process_time() - start,
            )
        )
    CELLS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([vars(each) for each in found], indent=1) + "\n")
    print(
        f"{name}, seed {seed}: {[round(100 * (each.tuned or 0), 1) for each in found]}, {time.process_time() - start:.0f} s",
        flush=True,
    )
    return found


# ---------------------------------------------------------------- the page


def report(found: list[Outcome]) -> None:
    """The page and the picture."""
    made = Comparison("A small VGG on CIFAR-10 (JPEG), channels", outcomes=tuple(found))
    plot(made, RESULTS / "molchanov.png", against="macs")
    rows, last = [], {}
    for name in METHODS:
        runs = [curve(found, name, seed) for seed in SEEDS if any((each.recipe, each.seed) == (name, seed) for each in found)]
        if runs:
            columns = list(zip(*runs, strict=True))
            rows.append([name, *(spread(column) for column in columns)])
            last[name] = statistics.mean(statistics.mean(column) for column in columns)
    headings = ["scores", *(f"{left:.0%} of the MACs" for left in AT)]
    order = ", ".join(f"{name} {value:.2f} %" for name, value in sorted(last.items(), key=lambda item: -item[1]))
    taylor, plain = max(last[name] for name in last if "Taylor" in name), last["magnitude"]
    said = f"Mean over these columns: {order}. Taylor is {'above' if taylor > plain else '**not** above'} magnitude here."
    seeds = ", ".join(map(str, sorted({outcome.seed for outcome in found})))
    missing = [name for name in METHODS if name not in last]
    said += f" Not measured here: {', '.join(missing)}." if missing else ""
    about = (
        f"`SECATEURS_DATA=… python benchmarks/molchanov.py`: {ROUNDS} rounds, in each {1 - KEEP:.0%} of the channels that are left go for "
        "good, the lowest of the whole network by scores that are divided by their layer's L2 norm; then "
        f"{STEPS} steps of SGD (0.9 Nesterov, lr {LR}, cosine, batches of {BATCH}). Accuracy in % on 2,000 test images after these steps "
        f"(dense: {100 * (found[0].dense or 0):.2f}), mean (± standard deviation, of several) of seeds {seeds}, where so much "
        "of the MACs is left, on a straight line between rounds."
    )
    title = "# Accuracy against MACs, pruned in rounds (Molchanov et al. 2016)"
    write("molchanov", title, about, markdown(headings, rows), said, "![accuracy against MACs](molchanov.png)")


def curve(found: list[Outcome], name: str, seed: int) -> list[float]:
    """The accuracy of one run in %, between its rounds on a straight line, where so much of the MACs is left."""
    own = [each for each in found if (each.recipe, each.seed) == (name, seed)]
    points = sorted((each.macs or 0.0, each.tuned or 0.0) for each in own)
    points.append((own[0].dense_macs or 0.0, own[0].dense or 0.0))
    work, accuracy = (np.array(column) for column in zip(*points, strict=True))
    return [float(100 * np.interp(left * work[-1], work, accuracy)) for left in AT]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    text = f"{statistics.mean(values):.2f}"
    return text + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", action="store_true", help="only write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    there = [(name, seed) for seed in SEEDS for name in METHODS]
    if given.report:
        there = [(name, seed) for name, seed in there if (CELLS / f"{name}-{seed}.json".replace(" ", "-")).exists()]
    report([outcome for name, seed in there for outcome in rounds(name, seed)])


if __name__ == "__main__":
    main()
