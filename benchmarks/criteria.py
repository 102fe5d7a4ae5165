"""Criteria on trained networks: what is left of the accuracy without retraining, and how well scores tell what removing a unit costs.

    SECATEURS_DATA=... python benchmarks/criteria.py                      # all; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/criteria.py lenet_5 resnet_20    # only these networks
    SECATEURS_DATA=... python benchmarks/criteria.py --report             # only the page, from what is there

Three networks: LeNet-5 on MNIST, trained here; ResNet-20, the published weights fine-tuned on JPEG images first; ResNet-56, whose weights
were fine-tuned so already. Single weights go by one threshold over the model (`global_threshold`; Wanda's by row), channels the same
fraction from each of the sites that lie inside the layers or blocks. Scores are made from 256 training images in batches of 32, drawn anew
for each of three seeds; criteria that look at no data have one. Accuracies are of the first 2,000 test images; nothing was chosen by them.

The true change of the loss is that of 512 other training images (in float64, but for the ResNets' channels), when one unit is set to
zero: 60 units, a site drawn first and then a unit in it. The correlation is Spearman's, over the units of all sites together.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar import Part, batches_of, inside, published, tune
from scipy.stats import spearmanr
from tables import RESULTS, markdown, write
from torch import nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.comparing import Comparison, Outcome, plot
from secateurs.models import lenet_5, resnet_20, resnet_56
from secateurs.prune import masks_of
from secateurs.solve.topk import highest
from secateurs.tasks import cifar10, mnist
from secateurs.types import Criterion, Pattern, Scores, Selection, Site, Sites, Solution, Solver, Statistic, Stats

BUILD = Path(__file__).parent.parent / "build" / "criteria"
CELLS = RESULTS / "criteria"
KEEPS = (0.7, 0.5, 0.3, 0.1)
SEEDS = (0, 1, 2)
CALIBRATION, TEST, TRUTH, UNITS = 256, 2000, 512, 60
SECOND_ORDER = ("fisher", "obd", "obd, Gauss-Newton")

WEIGHTS: dict[str, Criterion | Callable[[int], Criterion]] = {
    "magnitude": sc.magnitude(),
    "LAMP": sc.lamp(),
    "SynFlow": sc.synflow(),
    "Wanda": sc.magnitude(p=1) * sc.input_norm(),
    "SNIP": sc.snip(),
    "Taylor": sc.taylor(),
    "fisher": sc.fisher(),
    "obd": sc.obd(),
    "obd, Gauss-Newton": sc.obd("gauss_newton"),
    "GraSP": sc.grasp(),
    "random": sc.random,
}
CHANNELS: dict[str, Criterion | Callable[[int], Criterion]] = {
    "magnitude": sc.magnitude(),
    "batchnorm_scale": sc.batchnorm_scale(),
    "FPGM": sc.fpgm(),
    "cosine": sc.cosine(),
    "SynFlow": sc.synflow(),
    "APoZ": sc.apoz(),
    "activation": sc.activation(),
    "variance": sc.variance(),
    "SNIP": sc.snip(),
    "Taylor": sc.taylor(),
    "Taylor, activations": sc.taylor(activations=True),
    "fisher": sc.fisher(),
    "obd": sc.obd(),
    "obd, Gauss-Newton": sc.obd("gauss_newton"),
    "GraSP": sc.grasp(),
    "random": sc.random,
}
SHORT = ("magnitude", "batchnorm_scale", "FPGM", "APoZ", "Taylor", "Taylor, activations", "fisher", "random")
"""What the largest network is asked: its passes cost three times as much."""


# ---------------------------------------------------------------- networks and data


def mnist_task(seed: int) -> sc.Task:
    """MNIST, with the calibration images of a seed."""
    return _parted(mnist(seed=seed))


def cifar_task(seed: int) -> sc.Task:
    """CIFAR-10 (JPEG), with the calibration images of a seed."""
    return _parted(cifar10(seed=seed))


def _parted(task: sc.Task) -> sc.Task:
    calibration = batches_of(task.calibration, 0, CALIBRATION, 32)
    return replace(task, calibration=calibration, test=batches_of(task.test, 0, TEST, 250))


@dataclass(frozen=True)
class Network:
    """A network, its task, and how it came to be trained."""

    title: str
    make: Callable[[], nn.Module]
    whole: Callable[..., sc.Task]
    task: Callable[[int], sc.Task]
    train: Callable[[], nn.Module]
    only: Selection | None
    patterns: tuple[str, ...] = ("weights", "channels")
    criteria: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = SEEDS


def train_lenet_5() -> nn.Module:
    """LeNet-5, three epochs."""
    torch.manual_seed(0)
    model = lenet_5()
    tune(model, mnist(), 0.03, 3, amp=None)
    return model


def tune_resnet_20() -> nn.Module:
    """The published ResNet-20, two epochs of 20,000 JPEG images each."""
    torch.manual_seed(0)
    model = published(resnet_20(), "resnet20_cifar10.safetensors").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = cifar10()
    tune(model, replace(task, train=Part(task.train, 20_000)), 0.03, 2, amp=None)  # type: ignore[arg-type]
    return model


def ready_resnet_56() -> nn.Module:
    """ResNet-56 as the data folder has it."""
    return published(resnet_56(), "resnet56_cifar10_jpeg.safetensors")


NETWORKS = {
    "lenet_5": Network("LeNet-5 on MNIST", lenet_5, mnist, mnist_task, train_lenet_5, None),
    "resnet_20": Network("ResNet-20 on CIFAR-10 (JPEG)", resnet_20, cifar10, cifar_task, tune_resnet_20, inside),
    "resnet_56": Network(
        "ResNet-56 on CIFAR-10 (JPEG)", resnet_56, cifar10, cifar_task, ready_resnet_56, inside, ("channels",), SHORT, (0,)
    ),
}


def dense(name: str) -> nn.Module:
    """The trained network, made once."""
    path = BUILD / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sc.save(NETWORKS[name].train(), path)
    return sc.load(path, NETWORKS[name].make()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# ---------------------------------------------------------------- accuracy without retraining


_remembered: dict[tuple[str, int, str], Scores] = {}
"""Criterion, seed and site → scores: made once for all fractions kept, since the model and the images are the same."""


@dataclass(frozen=True)
class Remembered:
    """Of a seed, a solver that keeps the highest scores of a criterion, and makes them at the first fraction kept alone."""

    criterion: Criterion | Callable[[int], Criterion]

    def __call__(self, seed: int) -> Solver:
        return FromMemory(sc.TopK(made_of(self.criterion, seed)), seed)


@dataclass(frozen=True)
class FromMemory:
    """A solver whose scores are remembered; it needs nothing more once they are."""

    solver: sc.TopK
    seed: int

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return () if self._key("") in _remembered else self.solver.needs

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """The scores of each site in turn."""
        for site in sites:
            if self._key(site.name) not in _remembered:
                (_remembered[self._key(site.name)],) = self.solver.scores([site], stats)
                _remembered[self._key("")] = torch.zeros(0)
            yield _remembered[self._key(site.name)]

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        (scores,) = self.scores([site], stats)
        return Solution(highest(scores, site.each_of(kept)))

    def _key(self, site: str) -> tuple[str, int, str]:
        return self.solver.criterion.name, self.seed, site


def criteria_of(name: str, pattern: str, chosen: Collection[str] = ()) -> dict[str, Criterion | Callable[[int], Criterion]]:
    """What is tried on a network."""
    listed = NETWORKS[name].criteria
    found = CHANNELS if pattern == "channels" else WEIGHTS
    if name == "lenet_5":
        found = {title: each for title, each in found.items() if title != "batchnorm_scale"}
    return {title: each for title, each in found.items() if (listed is None or title in listed) and title in (chosen or found)}


def looks_at_data(criterion: Any) -> bool:
    """Whether another seed gives other scores."""
    return not isinstance(criterion, Criterion) or (bool(criterion.needs) and criterion.name != "synflow()")


def pattern_of(pattern: str, title: str) -> Pattern:
    """What goes as one."""
    return sc.Channel() if pattern == "channels" else sc.Element(within="row") if title == "Wanda" else sc.Element()


def recipes_for(name: str, pattern: str, chosen: Collection[str]) -> dict[bool, list[sc.Recipe]]:
    """The recipes that depend on the seed, and those that do not."""
    found: dict[bool, list[sc.Recipe]] = {True: [], False: []}
    only = NETWORKS[name].only if pattern == "channels" else None
    for title, criterion in criteria_of(name, pattern, chosen).items():
        allocate = sc.uniform if pattern == "channels" or title == "Wanda" else sc.global_threshold
        pruning = sc.Pruning(pattern_of(pattern, title), Remembered(criterion), allocate, only=only)
        made = sc.Recipe(title, pruning)
        found[looks_at_data(criterion)].append(made)
    return found


def compared(name: str, pattern: str, chosen: Collection[str], processes: int, seeds: int) -> Comparison:
    """All outcomes of a network and a pattern, data or not, in one comparison."""
    network, both = NETWORKS[name], recipes_for(name, pattern, chosen)
    found: list[Outcome] = []
    for drawn, recipes in both.items():
        if recipes:
            _remembered.clear()
            how: dict[str, Any] = {"keep": KEEPS, "seeds": network.seeds[:seeds] if drawn else (0,), "processes": processes}
            out = BUILD / f"{name}-{pattern}"
            found += sc.compare(recipes, partial(dense, name), network.task, out=out, rerun=True, **how).outcomes
    order = list(criteria_of(name, pattern))
    return Comparison(network.title, outcomes=tuple(sorted(found, key=lambda outcome: order.index(outcome.recipe))))


# ---------------------------------------------------------------- the true change of the loss


def mean_loss(model: nn.Module, task: sc.Task) -> float:
    """The mean loss over the test batches of a task, in the model's own precision."""
    total, count, dtype = 0.0, 0, next(model.parameters()).dtype
    with torch.inference_mode():
        for inputs, target in task.test or ():
            total += float(cross_entropy(model(inputs.to(dtype)), target)) * len(target)
            count += len(target)
    return total / count


def drawn_units(sites: Sites) -> list[tuple[int, int]]:
    """Numbers of sites, and of units in them."""
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[int, int], None] = {}
    while len(found) < UNITS:
        place = int(torch.randint(len(sites), (), generator=generator))
        found[place, int(torch.randint(sites[place].units, (), generator=generator))] = None
    return list(found)


def true_changes(model: nn.Module, sites: Sites, task: sc.Task) -> Iterator[float]:
    """What removing each of the drawn units does to the loss; the model stays as it is."""
    before = mean_loss(model, task)
    for place, unit in drawn_units(sites):
        site = sites[place]
        kept = torch.ones(site.contest_count, site.units // site.contest_count, dtype=torch.bool)
        kept.view(-1)[unit] = False
        masks = masks_of(site, Solution(kept))
        weights = {member.parameter: member.weight for member in site.members}
        held = {parameter: weight.detach().clone() for parameter, weight in weights.items()}
        with torch.no_grad():
            for parameter, weight in weights.items():
                weight.masked_fill_(~masks[parameter], 0)
        yield mean_loss(model, task) - before
        with torch.no_grad():
            for parameter, weight in weights.items():
                weight.copy_(held[parameter])


def scores_of(model: nn.Module, sites: Sites, criterion: Criterion, task: sc.Task) -> list[float]:
    """The scores of the drawn units."""
    solver = sc.TopK(criterion)
    stats = sc.observe(model, sites, solver.needs, task)
    scores = [piece.flatten() for piece in solver.scores(sites, stats)]
    return [float(scores[place][unit]) for place, unit in drawn_units(sites)]


def score_units(name: str, pattern: str, chosen: Collection[str], seeds: int) -> None:
    """Write down the true changes, and the scores of each criterion and seed for the same units."""
    path = CELLS / f"{name}-{pattern}-units.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    network, model = NETWORKS[name], dense(name).eval()
    only = network.only if pattern == "channels" else None
    task = network.task(0)
    sites = {
        kind: sc.find_sites(model, kind, task.example, only=only)
        for kind in (pattern_of(pattern, ""), pattern_of(pattern, "Wanda"))
    }
    main = sites[pattern_of(pattern, "")]
    if "true" not in found:
        whole = network.whole(seed=0)
        truth = replace(task, test=batches_of(replace(whole.calibration, batch_size=250), CALIBRATION, CALIBRATION + TRUTH, 128))  # type: ignore[type-var]
        precise, example = dense(name).eval(), task.example
        if name == "lenet_5" or pattern == "weights":  # where changes are small
            precise, example = precise.double(), example.double()
        of_precise = sc.find_sites(precise, pattern_of(pattern, ""), example, only=only)
        found["true"] = list(true_changes(precise, of_precise, truth))
    for title, criterion in criteria_of(name, pattern, chosen).items():
        if len(found.get(title, [])) >= (min(seeds, len(network.seeds)) if looks_at_data(criterion) else 1):
            continue
        of = sites[pattern_of(pattern, title)]
        assert [site.units for site in of] == [site.units for site in main]
        drawn = network.seeds[:seeds] if looks_at_data(criterion) else (0,)
        found[title] = [scores_of(model, of, made_of(criterion, seed), network.task(seed)) for seed in drawn]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found) + "\n")


MORE: dict[str, tuple[Criterion, int]] = {
    "magnitude": (sc.magnitude(), 256),
    "Taylor, one image at a time": (sc.taylor(), 1),
    "fisher, one image at a time": (sc.fisher(), 1),
    "obd, Gauss-Newton": (sc.obd("gauss_newton"), 32),
}
"""What is asked again with more images, and images in a batch."""


def score_units_with_more(name: str, pattern: str) -> None:
    """Write down the scores of the same units from 1,024 images of another seed, where the definition asks so one at a time."""
    path = CELLS / f"{name}-{pattern}-more.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    network, model = NETWORKS[name], dense(name).eval()
    task = network.whole(seed=len(SEEDS))
    sites = sc.find_sites(model, pattern_of(pattern, ""), task.example, only=network.only if pattern == "channels" else None)
    found["true"] = json.loads((CELLS / f"{name}-{pattern}-units.json").read_text())["true"]
    for title, (criterion, size) in MORE.items():
        if title not in found:
            calibration = batches_of(task.calibration, 0, 1024, size)
            found[title] = [scores_of(model, sites, criterion, replace(task, calibration=calibration))]
            path.write_text(json.dumps(found) + "\n")


def more(name: str, pattern: str) -> str:
    """What more images change, as a table; empty where nobody asked."""
    if not (CELLS / f"{name}-{pattern}-more.json").exists():
        return ""
    found = correlations(name, pattern, "more")
    rows = [[title, *(spread(values) for values in found[title])] for title in MORE if title in found]
    return "With 1,024 images of one other seed:\n\n" + markdown(["criterion", "with ΔL", "with \\|ΔL\\|"], rows)


def correlations(name: str, pattern: str, of: str = "units") -> dict[str, tuple[list[float], list[float]]]:
    """Criterion → Spearman's correlations with the true change and with its size, one a seed, from what was written down."""
    path = CELLS / f"{name}-{pattern}-{of}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    true = found.pop("true")
    sizes = [abs(value) for value in true]
    return {
        title: ([rank_correlation(one, true) for one in scores], [rank_correlation(one, sizes) for one in scores])
        for title, scores in found.items()
    }


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's; none where all are alike."""
    value = float(spearmanr(one, other).statistic) if len(set(one)) > 1 else 0.0
    return 0.0 if math.isnan(value) else value


def made_of(criterion: Any, seed: int) -> Criterion:
    """A criterion, of the seed where it is made of one."""
    return criterion if isinstance(criterion, Criterion) else criterion(seed)


# ---------------------------------------------------------------- the page


def spread(values: list[float], scale: float = 1, digits: int = 2) -> str:
    """Mean ± standard deviation."""
    text = f"{scale * statistics.mean(values):.{digits}f}"
    return text + (f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def keep_cells(name: str, pattern: str, made: Comparison) -> None:
    """Write the outcomes down, as a file of numbers."""
    CELLS.mkdir(parents=True, exist_ok=True)
    (CELLS / f"{name}-{pattern}.csv").write_text(made.csv())


def read_cells(name: str, pattern: str) -> Comparison | None:
    """The outcomes that were written down."""
    path = CELLS / f"{name}-{pattern}.csv"
    if not path.exists():
        return None
    kinds: dict[str, Callable[[str], Any]] = {
        "recipe": str,
        "error": str,
        "seed": int,
        "parameters": int,
        "dense_parameters": int,
        "memory": int,
    }
    with open(path, newline="") as file:
        lines = [{part: kinds.get(part, float)(value) for part, value in line.items() if value} for line in csv.DictReader(file)]
    return Comparison(NETWORKS[name].title, outcomes=tuple(Outcome(**line) for line in lines))


def section(name: str, pattern: str, made: Comparison, found: Mapping[str, tuple[list[float], list[float]]]) -> str:
    """A table, and what it shows."""
    rows = []
    for title in criteria_of(name, pattern):
        own = {row.keep: row for row in made.rows if row.recipe == title}
        if not own:
            continue
        accuracies = [spread(own[keep].values("cut"), 100, 1) if keep in own else "" for keep in KEEPS]
        outcomes = [outcome for row in own.values() for outcome in row.outcomes if not outcome.error]
        first = [
            max((outcome for outcome in outcomes if outcome.seed == seed), key=lambda each: each.cut_seconds or 0.0)
            for seed in sorted({outcome.seed for outcome in outcomes})
        ]  # the others had scores ready
        seconds = statistics.median(outcome.cut_seconds or 0.0 for outcome in first)
        memory = max(outcome.memory or 0 for outcome in first)
        rows.append(
            [
                title,
                *accuracies,
                *(spread(values) if values else "" for values in found.get(title, ([], []))),
                f"{seconds:.2f}",
                f"{memory / 1e6:.0f}",
            ]
        )
    headings = ["criterion", *(f"{1 - keep:.0%} gone" for keep in KEEPS), "with ΔL", "with \\|ΔL\\|", "seconds", "MB"]
    level = 100 * (made.dense.mean("dense") or 0.0)
    what = "single weights" if pattern == "weights" else "channels"
    head = f"## {NETWORKS[name].title}: {what}, dense {level:.2f} %"
    picture = f"![accuracy against what is kept](criteria/{name}-{pattern}.png)"
    seeds = sorted({outcome.seed for outcome in made.outcomes})
    told = "" if len(seeds) == len(SEEDS) else f"Measured with calibration seed {', '.join(map(str, seeds))} alone so far."
    told += "" if found or not told else " The correlations are not measured yet."
    return "\n\n".join(
        part
        for part in [head, told, markdown(headings, rows), *remarks(name, pattern, made, found), more(name, pattern), picture]
        if part
    )


def remarks(name: str, pattern: str, made: Comparison, found: Mapping[str, tuple[list[float], list[float]]]) -> list[str]:
    """What a reader should not have to look for."""
    lines = []
    for place, what in enumerate(("ΔL", "|ΔL|")) if found else ():
        means = {title: statistics.mean(values[place]) for title, values in found.items() if title in criteria_of(name, pattern)}
        second = [title for title in SECOND_ORDER if title in means]
        above = listed([title for title in second if means[title] > means["magnitude"]], means)
        below = listed([title for title in second if means[title] <= means["magnitude"]], means)
        best = max(means, key=lambda title: means[title])
        lines.append(
            f"- Correlation with {what}: magnitude {means['magnitude']:.2f}; best {best} ({means[best]:.2f}); of second order above "
            f"magnitude: {above}; not above it: {below}."
        )
    half = {row.recipe: row.mean("cut") or 0.0 for row in made.rows if row.keep == 0.5}
    worse = [title for title, value in half.items() if value < half["magnitude"] and title not in ("random", "magnitude")]
    chance = [title for title, value in half.items() if value <= half["random"] and title not in ("random", "magnitude")]
    told = f"- With half gone, magnitude keeps {100 * half['magnitude']:.1f} %. Below it: {listed(worse, half, 100)}"
    lines.append(told + f"; no better than random: {listed(chance, half, 100)}.")
    return ["\n".join(lines)]


def listed(names: list[str], values: Mapping[str, float], scale: float = 1) -> str:
    """Names with their numbers."""
    return ", ".join(f"{name} ({scale * values[name]:.{1 if scale > 1 else 2}f})" for name in names) or "none"


def report() -> None:
    """The page, from what is there."""
    sections = []
    for name, network in NETWORKS.items():
        for pattern in network.patterns:
            made = read_cells(name, pattern)
            if made is not None:
                sections.append(section(name, pattern, made, correlations(name, pattern)))
                plot(made, CELLS / f"{name}-{pattern}.png")
    seeds = ", ".join(map(str, SEEDS))
    about = (
        "`SECATEURS_DATA=… python benchmarks/criteria.py`. Accuracy in % on 2,000 test images after one cut, without any training, mean ± "
        f"standard deviation of calibration seeds {seeds}, each {CALIBRATION} training images in batches of 32; criteria that look at no "
        "data have one. Single weights go by one threshold over the model (Wanda: by row), channels the same fraction from each site (in "
        f"ResNets, inside the blocks). Correlation: Spearman's, of the scores of {UNITS} units of all sites with the true change of the "
        f"loss of {TRUTH} other training images when that unit alone is removed (ΔL), and with its "
        "size (|ΔL|), in float64 (the ResNets' channels: float32). Seconds are processor times on one thread "
        "while other jobs ran on the machine, MB what the cut took beyond what the process held; both include finding the sites."
    )
    write("criteria", "# Criteria: what is left without retraining, and who knows what a unit is worth", about, *sections)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--patterns", nargs="*", default=("weights", "channels"), help="of weights, channels")
    parser.add_argument("--criteria", nargs="*", default=(), help="only these, by their titles in the table")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--processes", type=int, default=1, help="jobs at a time")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="calibration seeds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in () if given.report else given.networks:
        for pattern in (each for each in NETWORKS[name].patterns if each in given.patterns):
            start = time.time()
            keep_cells(name, pattern, compared(name, pattern, given.criteria, given.processes, given.seeds))
            score_units(name, pattern, given.criteria, given.seeds)
            if name == "lenet_5":
                score_units_with_more(name, pattern)
            print(
                f"{name}, {pattern}: {time.time() - start:.0f} s, {time.process_time():.0f} s of the processor up to here",
                flush=True,
            )
            report()


if __name__ == "__main__":
    main()
