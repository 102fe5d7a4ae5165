"""Ways to make LeNet-300-100 smaller, at the same numbers of parameters: cut, SVD, neurons, with and without training after it.

    SECATEURS_DATA=... python benchmarks/lecture_table.py            # about 5 minutes of one core; goes on where it was stopped

The comparison of a lecture on pruning, after table 1 of Srinivas and Babu (2015, 1507.06149): what is left of the accuracy at a number
of parameters. Naive cut: the smallest weights go, once, nothing is trained. SVD (Denton et al. 2014, 1404.0736): each layer becomes two,
of the rank that its share of the parameters admits. Neurons: those with the smallest weights go with all that is coupled to them, or
those that are alike are merged, without data, or the rest is solved for by least squares.
Magnitude with retraining (Han et al. 2015, 1506.02626): weights go in rounds, with training after each.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar import tune
from tables import RESULTS, write
from torch import nn

import secateurs as sc
from secateurs.comparing import plot
from secateurs.models import lenet_300_100
from secateurs.tasks import mnist

BUILD = Path(__file__).parent.parent / "build" / "lecture_table"
KEEPS = (0.5, 0.25, 1 / 8, 1 / 12)
SEEDS = (0,)


def dense() -> nn.Module:
    """The trained network, made once."""
    path = BUILD / "dense.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = lenet_300_100()
        tune(model, mnist(), 0.05, 5, amp=None)
        sc.save(model, path)
    return sc.load(path, lenet_300_100())


def task_of(seed: int) -> sc.Task:
    """MNIST, split by the seed."""
    return mnist(seed=seed)


def in_two(model: nn.Module, task: sc.Task, keep: float, seed: int, masks: sc.Masks | None) -> None:
    """Each linear layer as two, of the rank that keeps a fraction of its weights."""
    sc.low_rank_(model, task, keep=keep, weighted=False)


def recipes() -> list[sc.Recipe]:
    """What is compared."""
    weights = sc.Pruning(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold)
    neurons = sc.Pruning(sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform, cost=sc.params)
    merged = sc.Pruning(sc.Channel(), sc.Merge(), sc.uniform, cost=sc.params)
    solved = sc.Pruning(sc.Channel(), sc.LeastSquares(sc.TopK(sc.magnitude())), sc.uniform, cost=sc.params)
    return [
        sc.Recipe("naive cut", weights),
        sc.Recipe("SVD", in_two),
        sc.Recipe("SVD, retrained", in_two, epochs=2),
        sc.Recipe("neurons by magnitude", neurons),
        sc.Recipe("neurons merged without data", merged),
        sc.Recipe("neurons, least squares", solved),
        sc.Recipe("neurons, retrained", neurons, epochs=2),
        sc.Recipe("magnitude in 3 rounds, retrained", weights, epochs=2, rounds=3),
    ]


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=1, help="jobs at a time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    how: dict[str, Any] = {"keep": KEEPS, "processes": given.processes, "optimizer": optimizer, "title": "LeNet-300-100 on MNIST"}
    made = sc.compare(recipes(), dense, task_of, seeds=SEEDS, out=BUILD / "jobs", **how)
    plot(made, RESULTS / "lecture_table.png", against="parameters")
    about = (
        "`SECATEURS_DATA=… python benchmarks/lecture_table.py`: `keep` is the share of the weights, or of the parameters for neurons, "
        "that is left (for SVD at most); parameters are those that are not zero. Retraining: 2 epochs (after each of the rounds), SGD 0.9 "
        f"Nesterov, lr 0.05, cosine. {made.footnote()} Other jobs ran on the machine. Fastfood and Collins & Kohli are not built here."
    )
    title = "# LeNet-300-100 on MNIST, smaller in several ways"
    write("lecture_table", title, about, made.markdown(), "![accuracy against parameters](lecture_table.png)")


if __name__ == "__main__":
    main()
