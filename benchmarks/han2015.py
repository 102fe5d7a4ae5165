"""Learning weights and connections (Han et al. 2015, 1506.02626) on MNIST: how far can LeNets be pruned before they err more?

    SECATEURS_DATA=... python benchmarks/han2015.py            # about an hour on two cores; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/han2015.py --report   # only the table and the plot, from what is there

Each network is trained on images shifted by up to a pixel, then pruned by magnitude in rounds with retraining. Beside it: a random cut
with one round of retraining, the naive cut without any, a dense network of the same number of parameters, trained for as many epochs
altogether, and the dense network itself, trained for as many epochs, or retrained as the pruned one was but without cuts. When the LeNet-5
that is pruned by magnitude is retrained, the dense networks of all seeds teach together (1503.02531); the random cut, the small network and
the longer training have no teacher.

Recipes were chosen on the 5,000 validation images with other seeds (100 and up), LeNet-5's epochs by the time at hand. Earlier recipes had
been seen on test images by then: both networks' without shifts, LeNet-5's without a teacher and with one dense network as teacher, all on
seeds 0 to 2. LeNet-5's recipe was then frozen, and is reported on seeds that had never been used.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from lenets import Ensemble, Shifted, channels_last, error
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import lenet_5, lenet_300_100
from secateurs.tasks import mnist
from secateurs.types import Allocator

TICKS = (2, 4, 8, 16, 32, 64, 128)
RANDOM_FACTORS = (12,)
AT = 12  # where dense networks of the same size, and of the same training time, are compared

FINE = (4, 12, 24, 50, 75, 100, 200)
COARSE = (4, 12, 24, 50, 120)

LABELS = {"magnitude": "magnitude, retrained", "random": "random, one round", "naive": "cut only", "small": "dense, same size"}
DENSE_TOO = {
    "longer": "trained from scratch for as many epochs as that network altogether",
    "uncut": "retrained as that network was but without the cuts",
}

Points = dict[str, float]
"""Compression factor → test error in per cent."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: found on validation images, with seeds that are not reported. No temperature, no teacher."""

    title: str
    make: Callable[[], nn.Module]
    small: Callable[[float], nn.Module]
    dense_epochs: int
    round_epochs: int
    lr: float
    amp: torch.dtype | None
    allocate: Callable[..., Allocator]
    factors: tuple[int, ...]
    paper: tuple[float, float]
    seeds: tuple[int, ...]
    temperature: float | None = None


def small_lenet_300_100(scale: float) -> nn.Module:
    """LeNet-300-100 with its hidden layers scaled."""
    a, b = max(1, round(300 * scale)), max(1, round(100 * scale))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 10))


def small_lenet_5(scale: float) -> nn.Module:
    """LeNet-5 with its hidden channels and neurons scaled."""
    a, b, c = (max(1, round(width * scale)) for width in (20, 50, 500))
    features = (nn.Conv2d(1, a, 5), nn.MaxPool2d(2), nn.Conv2d(a, b, 5), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(16 * b, c), nn.ReLU(), nn.Linear(c, 10))


RECIPES = {
    "lenet_300_100": Recipe(
        "LeNet-300-100", lenet_300_100, small_lenet_300_100, 30, 20, 0.1, None, sc.erdos_renyi, FINE, (1.64, 1.59), (0, 1, 2)
    ),
    "lenet_5": Recipe(
        "LeNet-5", lenet_5, small_lenet_5, 12, 7, 0.05, torch.bfloat16, sc.global_threshold, COARSE, (0.80, 0.77), (3, 4, 5), 4.0
    ),
}


def train(
    model: nn.Module,
    task: sc.Task,
    recipe: Recipe,
    epochs: int,
    masks: sc.Masks | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """SGD with momentum and one cosine from the full learning rate: after each pruning the rate is rewound (2003.02389)."""
    hooks = [sc.clip_gradients(1.0)]
    if teacher is not None and recipe.temperature is not None:
        hooks.append(sc.distill(teacher, temperature=recipe.temperature))
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    without_validation = sc.Task(task.example, train=Shifted(task.train), loss=task.loss)  # type: ignore[arg-type]
    sc.train_(
        model,
        without_validation,
        optimizer,
        epochs,
        scheduler=scheduler,
        masks=masks,
        hooks=hooks,
        amp=recipe.amp,
    )


def cut(
    model: nn.Module,
    task: sc.Task,
    criterion: sc.Criterion,
    allocate: Callable[..., Allocator],
    factor: float,
    masks: sc.Masks | None,
) -> sc.Masks:
    """Prune to a number of nonzero parameters, biases included, that is the dense network's divided by the factor."""
    budget = sc.Budget(sc.params, keep=1 / factor)
    return sc.prune_(model, sc.Element(), sc.TopK(criterion), sc.within_budget(budget, allocate), task, masks=masks)


def rounds(
    dense: nn.Module, teacher: nn.Module | None, task: sc.Task, recipe: Recipe, criterion: sc.Criterion, factors: tuple[int, ...]
) -> Points:
    """Iterative pruning: cut a little, retrain, cut more. Random choice gets Erdős–Rényi densities, where it does best."""
    model, masks, points = copy.deepcopy(dense), None, {}
    allocate = sc.erdos_renyi if criterion.name.startswith("random") else recipe.allocate
    for factor in factors:
        masks = cut(model, task, criterion, allocate, factor, masks)
        train(model, task, recipe, recipe.round_epochs, masks, teacher)
        sc.zero_dead_(model, masks, task.example)
        points[str(factor)] = error(model, task)
    return points


def naive(dense: nn.Module, task: sc.Task, recipe: Recipe) -> Points:
    """The cut alone: no retraining."""
    points = {}
    for factor in recipe.factors:
        model = copy.deepcopy(dense)
        cut(model, task, sc.magnitude(), recipe.allocate, factor, None)
        points[str(factor)] = error(model, task)
    return points


def total_epochs(recipe: Recipe) -> int:
    """Epochs that the network pruned to `AT` was trained for altogether."""
    return recipe.dense_epochs + recipe.round_epochs * (recipe.factors.index(AT) + 1)


def small(task: sc.Task, recipe: Recipe) -> Points:
    """A dense network of at most the same number of parameters, trained for as many epochs as the pruned one was altogether."""
    limit = sc.params(recipe.make()) / AT
    scale = max(step / 1000 for step in range(1, 1000) if sc.params(recipe.small(step / 1000)) <= limit)
    model = channels_last(recipe.small(scale))
    train(model, task, recipe, total_epochs(recipe))
    return {str(AT): error(model, task)}


def longer(task: sc.Task, recipe: Recipe) -> Points:
    """The dense network, trained for as many epochs as the pruned one was altogether."""
    model = channels_last(recipe.make())
    train(model, task, recipe, total_epochs(recipe))
    return {"1": error(model, task)}


def uncut(dense: nn.Module, teacher: nn.Module, task: sc.Task, recipe: Recipe) -> Points:
    """The dense network, retrained as the one pruned to `AT`, but without the cuts."""
    model = copy.deepcopy(dense)
    for _ in range(recipe.factors.index(AT) + 1):
        train(model, task, recipe, recipe.round_epochs, teacher=teacher)
    return {"1": error(model, task)}


def place(name: str, seed: int) -> Path:
    """The file with the measurements of one network and seed; beside it, its dense weights."""
    return RESULTS / "han2015" / f"{name}-{seed}.json"


def measured(name: str, seed: int) -> dict[str, Points]:
    """What is there already."""
    path = place(name, seed)
    return json.loads(path.read_text()) if path.exists() else {}


def train_dense(name: str, seed: int) -> None:
    """The dense network of a seed, trained and measured if it is not there yet."""
    torch.set_num_threads(1)
    path, recipe = place(name, seed), RECIPES[name]
    if path.with_suffix(".safetensors").exists() and "dense" in measured(name, seed):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model, task = channels_last(recipe.make()), mnist(seed=seed)
    train(model, task, recipe, recipe.dense_epochs)
    sc.save(model, path.with_suffix(".safetensors"), seed=seed)
    path.write_text(json.dumps({"dense": {"1": error(model, task)}}, indent=1))


def load_dense(name: str, seed: int) -> nn.Module:
    """The dense network of a seed."""
    return sc.load(place(name, seed).with_suffix(".safetensors"), channels_last(RECIPES[name].make()))


def cell(name: str, seed: int) -> str:
    """All measurements of one network and seed, written as they are done; what is there already is not done again."""
    torch.set_num_threads(1)
    found, recipe, task, start = measured(name, seed), RECIPES[name], mnist(seed=seed), time.time()
    dense, teacher = load_dense(name, seed), Ensemble(load_dense(name, each) for each in recipe.seeds)
    parts: dict[str, Callable[[], Points]] = {
        "magnitude": lambda: rounds(dense, teacher, task, recipe, sc.magnitude(), recipe.factors),
        "naive": lambda: naive(dense, task, recipe),
        "random": lambda: rounds(dense, None, task, recipe, sc.random(seed), RANDOM_FACTORS),
        "small": lambda: small(task, recipe),
        "longer": lambda: longer(task, recipe),
        "uncut": lambda: uncut(dense, teacher, task, recipe),
    }
    for part, measure in parts.items():
        if part not in found:
            torch.manual_seed(1000 + seed)
            found[part] = measure()
            place(name, seed).write_text(json.dumps(found, indent=1))
    return f"{name}, seed {seed}: {time.time() - start:.0f} s"


def gather(name: str) -> dict[str, dict[int, list[float]]]:
    """Method → factor → test errors of the seeds."""
    cells = [json.loads((RESULTS / "han2015" / f"{name}-{seed}.json").read_text()) for seed in RECIPES[name].seeds]
    methods = set(cells[0]).intersection(*cells[1:])
    return {method: {int(factor): [each[method][factor] for each in cells] for factor in cells[0][method]} for method in methods}


def spread(errors: list[float] | None) -> str:
    """Mean ± standard deviation over the seeds; nothing where it was not measured."""
    return "" if errors is None else f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"


def section(name: str) -> str:
    """The table of one network, with what it shows."""
    recipe, found = RECIPES[name], gather(name)
    dense = round(statistics.mean(found["dense"][1]), 6)
    means = {factor: round(statistics.mean(errors), 6) for factor, errors in found["magnitude"].items()}
    no_worse = max((factor for factor, mean in means.items() if mean <= dense), default=1)
    within = max((factor for factor, mean in means.items() if mean <= dense + 0.1), default=1)
    reached = f"**{no_worse}x fewer parameters**" if no_worse > 1 else "No measured point"
    dense_too = [f"{how}, {spread(found[way][1])} %" for way, how in DENSE_TOO.items() if way in found]
    lines = [
        f"## {recipe.title}: dense test error {spread(found['dense'][1])} %",
        "",
        f"- {reached} at a mean error no higher than dense; **{within}x** within 0.1 percentage points of dense.",
        f"- At {AT}x: {spread(found['magnitude'][AT])} % (paper: {recipe.paper[0]:.2f} → {recipe.paper[1]:.2f} %). "
        f"Dense networks beside it: {'; '.join(dense_too) or 'not measured'}.",
        f"- Seeds {', '.join(map(str, recipe.seeds))}; {recipe.dense_epochs} epochs dense, {recipe.round_epochs} after each cut, "
        f"SGD 0.9 Nesterov, lr {recipe.lr}, cosine, gradients clipped to norm 1, `{recipe.allocate.__name__}`"
        + (", bfloat16 mixed precision" if recipe.amp else "")
        + (
            f", the three dense networks as teachers after each cut by magnitude (`distill`, T = {recipe.temperature:g}), "
            "the other columns without"
            if recipe.temperature
            else ""
        )
        + ".",
        "",
    ]
    headings = ["fewer parameters", "sparsity", *LABELS.values()]
    rows = [
        [f"{factor}x", f"{100 * (1 - 1 / factor):.1f} %", *(spread(found[method].get(factor)) for method in LABELS)]
        for factor in recipe.factors
    ]
    return "\n".join([*lines, markdown(headings, rows)])


def plot() -> None:
    """Test error against compression, one panel a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (name, recipe) in zip(figure.subplots(1, 2), RECIPES.items(), strict=True):
        found = gather(name)
        for method, label in LABELS.items():
            factors = sorted(found[method])
            means = [statistics.mean(found[method][factor]) for factor in factors]
            spreads = [statistics.stdev(found[method][factor]) for factor in factors]
            axes.errorbar(factors, means, spreads, marker="o", markersize=4, capsize=2, label=label)
        axes.axhline(statistics.mean(found["dense"][1]), color="grey", linestyle="--", label="dense")
        axes.set(xscale="log", yscale="log", xlabel="times fewer parameters", ylabel="test error, %", title=recipe.title)
        axes.set_xticks(TICKS, [f"{factor}x" for factor in TICKS])
        axes.minorticks_off()
        axes.set_yticks([1, 2, 5, 10, 50], ["1", "2", "5", "10", "50"])
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "han2015.png", dpi=130)


def report() -> None:
    """Write the table and the plot from the measurements."""
    about = (
        "`SECATEURS_DATA=… python benchmarks/han2015.py`: test error in %, mean ± standard deviation of three "
        "seeds. Parameters count every nonzero weight and every bias. All networks, dense ones too, are trained "
        "on images shifted by up to a pixel."
    )
    picture = "![test error against compression](han2015.png)"
    write("han2015", "# Pruning LeNets on MNIST (Han et al. 2015)", about, picture, *map(section, RECIPES))
    plot()


def main() -> None:
    """Measure what is missing, two cells at a time, then write the report."""
    if "--report" not in sys.argv:
        cells = [(name, seed) for name in reversed(RECIPES) for seed in RECIPES[name].seeds]
        with ProcessPoolExecutor(max_workers=2) as pool:
            list(pool.map(train_dense, *zip(*cells, strict=True)))  # all seeds' dense networks teach together
            for line in pool.map(cell, *zip(*cells, strict=True)):
                print(line, flush=True)
    report()


if __name__ == "__main__":
    main()
