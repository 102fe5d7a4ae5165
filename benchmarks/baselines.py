"""Pruned networks beside what is as small without being pruned: LeNets on MNIST, ResNet-20 on CIFAR-10, at the same parameters.

    SECATEURS_DATA=... python benchmarks/baselines.py            # hours of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/baselines.py --network lenet_300_100 --seeds 0
    SECATEURS_DATA=... python benchmarks/baselines.py --quick    # some minutes: LeNet-300-100, few images, one epoch; no page

Every recipe begins with the dense network of a seed and is trained for as many epochs after its cut; the dense network of the same size and
the random start, which owe nothing to it, also for those of the dense network. One cosine of the learning rate, no recipe was tuned. Of
ResNet-20, whose only linear layer is small, Fastfood can take nothing worth the name, and is left out. What cannot be as small is told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar import Part, published
from tables import write
from torch import nn

import secateurs as sc
from secateurs.models import lenet_5, lenet_300_100, resnet_20
from secateurs.tasks import cifar10, mnist

WORK = Path("build/baselines")
SCRATCH = ("dense, same size", "random start")


@dataclass(frozen=True)
class Network:
    """A network, its data, and how it is trained: an epoch is so many images."""

    title: str
    make: Callable[[], nn.Module]
    load: Callable[..., sc.Task]
    images: int
    keep: tuple[float, ...]
    dense_epochs: int
    epochs: int
    lr: float
    without: tuple[str, ...] = ()
    file: str = ""

    def task(self, seed: int) -> sc.Task:
        """The data of a seed."""
        task = self.load(seed=seed)
        return replace(task, train=Part(task.train, self.images), validation=None)  # type: ignore[arg-type]

    def dense(self) -> nn.Module:
        """The dense network of the seed that torch was given, trained where it is not there yet."""
        seed = torch.initial_seed()
        model = self.make()
        if self.file:
            published(model, self.file)
        optimizer = self.optimizer(model.parameters())
        task = self.task(seed)
        steps = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.dense_epochs * len(task.train))  # type: ignore[arg-type]
        WORK.mkdir(parents=True, exist_ok=True)
        name = WORK / f"{self.title}-{seed}-{self.images}-{self.dense_epochs}.safetensors"
        sc.train_(model, task, optimizer, self.dense_epochs, hooks=[sc.per_step(steps)], checkpoint=name, show=False)
        return model

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def recipes(self) -> list[sc.Recipe]:
        """Pruning by magnitude at once, and what is beside it."""
        prune = sc.Pruning(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, cost=sc.params)
        mine = sc.Recipe("magnitude", prune, epochs=self.epochs)
        channels = sc.Recipe("channels", sc.Pruning(sc.Channel(), sc.TopK(sc.taylor()), cost=sc.params), epochs=self.epochs)
        beside = [each for each in sc.baselines(epochs=self.epochs, of=mine, make=self.make) if each.name not in self.without]
        return [mine, channels, *(self.from_scratch(each) if each.name in SCRATCH else each for each in beside)]

    def from_scratch(self, recipe: sc.Recipe) -> sc.Recipe:
        """With the epochs of the dense network too."""
        return replace(recipe, epochs=self.dense_epochs + self.epochs)


NETWORKS = {
    "lenet_300_100": Network("LeNet-300-100", lenet_300_100, mnist, 55_000, (1 / 4, 1 / 12, 1 / 50), 15, 10, 0.05),
    "lenet_5": Network("LeNet-5", lenet_5, mnist, 55_000, (1 / 4, 1 / 12, 1 / 50), 8, 6, 0.03),
    "resnet_20": Network(
        "ResNet-20", resnet_20, cifar10, 10_000, (1 / 2, 1 / 5), 4, 6, 0.02, ("Fastfood",), "resnet20_cifar10.safetensors"
    ),
}
QUICK = {"lenet_300_100": replace(NETWORKS["lenet_300_100"], images=2_000, keep=(1 / 4, 1 / 50), dense_epochs=2, epochs=1)}


def compared(name: str, network: Network, seeds: Sequence[int], folder: Path) -> sc.Comparison:
    """What came of all recipes; a recipe that cannot be as small as is asked is a row that says so."""
    run = partial(sc.compare, network.recipes(), network.dense, network.task, keep=network.keep, seeds=seeds)
    try:
        return run(out=folder / name, processes=1, optimizer=network.optimizer, title=network.title)
    except sc.FailedJobsError as error:
        return error.comparison


def main() -> None:
    """Compare, and write the page."""
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--network", choices=list(NETWORKS), nargs="*", default=list(NETWORKS))
    wanted.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    wanted.add_argument("--quick", action="store_true")
    given = wanted.parse_args()
    networks, seeds = (QUICK, [0]) if given.quick else ({name: NETWORKS[name] for name in given.network}, given.seeds)
    parts = []
    for name, network in networks.items():
        done = compared(name, network, seeds, WORK / ("quick" if given.quick else "whole"))
        told = (
            f"{network.images:,} images an epoch; dense for {network.dense_epochs} epochs, each for {network.epochs} after its cut."
        )
        failed = [f"- {outcome.name}: {outcome.error}" for outcome in done.failed]
        parts += [f"## {network.title}", told, done.markdown(), "\n".join(failed)]
    page = [
        "# Baselines at the same number of parameters",
        "`python benchmarks/baselines.py`: " + (__doc__ or "").split("\n\n")[2],
        *parts,
    ]
    if given.quick:
        print("\n\n".join(page))
    else:
        write("baselines", *page)


if __name__ == "__main__":
    main()
