"""How much where: ResNet-56 on CIFAR-10 with half of its MACs, or of its measured latency, by every allocator and every search there is.

    SECATEURS_DATA=... python benchmarks/allocation.py                       # some hours of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/allocation.py --only uniform tpe --seeds 1 --trials 50
    SECATEURS_DATA=... python benchmarks/allocation.py --cost latency        # the same to half of the milliseconds
    SECATEURS_DATA=... python benchmarks/allocation.py --curves              # accuracy against latency: docs/allocation.png
    SECATEURS_DATA=... python benchmarks/allocation.py --report              # only the pages, from what is there

No training before the plans are compared: channels between the two convolutions of each block go (27 sites), magnitude chooses which, and
what reads them is solved anew by least squares on 256 training images. Searches try as many plans as ``--trials`` says, each judged on the
first 500 test images; all plans are reported on the last 4,000, once. The best four by those 500 images are then trained for two epochs of
10,000 images each.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cifar import Part, batches_of, inside, published, tune
from tables import RESULTS, markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import resnet_56
from secateurs.report import Check, search_record, write_search_html
from secateurs.report.drawing import COLOURS, DASHES, MARKERS, styled
from secateurs.run.forecast.latency import latency
from secateurs.search import Study, Trial, read_trials
from secateurs.tasks import Batches, cifar10
from secateurs.types import Allocator, Cost, Plan

KEEP, BATCH, CALIBRATION = 0.5, 128, 2
JUDGED, REPORTED = 500, 4_000
TUNED, EPOCHS, IMAGES, LR = 4, 2, 10_000, 0.003
CELLS = RESULTS / "allocation"
COSTS: dict[str, Cost] = {"macs": sc.macs, "latency": latency(threads=1)}
SOLVER = sc.LeastSquares(sc.TopK(sc.magnitude(members="all")))
LEVELS = (0.8, 0.6, 0.4, 0.2)
FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5)
PICTURE = Path(__file__).parent.parent / "docs" / "allocation.png"

Cell = dict[str, Any]


# ---------------------------------------------------------------- the data and the network


def task_of(seed: int) -> sc.Task:
    """CIFAR-10: what calibrates is drawn by the seed, the test images are parted in what plans are judged by and what is reported."""
    whole = images()
    test, train = whole.test, whole.train
    assert isinstance(test, Batches) and isinstance(train, Batches)
    torch.manual_seed(seed)
    seen = list(islice(iter(train), CALIBRATION))
    many = len(test.targets)
    return replace(
        whole,
        train=Part(train, IMAGES),
        validation=batches_of(test, 0, JUDGED, JUDGED),
        test=batches_of(test, many - REPORTED, many, 500),
        calibration=seen,
    )


@cache
def images() -> sc.Task:
    """All of them, decoded once."""
    return cifar10(batch_size=BATCH)


def dense_model() -> nn.Module:
    """The network that everything starts from."""
    return published(resnet_56(), "resnet56_cifar10_jpeg.safetensors")


# ---------------------------------------------------------------- ways to a plan


@dataclass(frozen=True)
class Job:
    """What is asked for: a cost to halve, a seed, and how many plans a search may try."""

    cost: str
    seed: int
    trials: int
    folder: Path

    @property
    def budget(self) -> sc.Budget:
        return sc.Budget(COSTS[self.cost], keep=KEEP)


Way = Callable[[nn.Module, sc.Task, Job], tuple[Plan, int]]
"""From a model, a task and a job to a plan, and how many plans were tried on the way."""


def directly(allocator: Callable[[sc.Budget], Allocator], pattern: sc.Channel = sc.Channel()) -> Way:  # noqa: B008 (frozen)
    """A plan that an allocator makes without trying any."""

    def way(model: nn.Module, task: sc.Task, job: Job) -> tuple[Plan, int]:
        return sc.planned(model, pattern, SOLVER, allocator(job.budget), task, only=inside), 0

    return way


def searched(search: Callable[..., Study]) -> Way:
    """The best plan that a search tried."""

    def way(model: nn.Module, task: sc.Task, job: Job) -> tuple[Plan, int]:
        how = {"only": inside, "seed": job.seed, "checkpoint": job.folder, "show": False, "costs": [sc.macs]}
        if search is not sc.random_search:
            del how["costs"]
        study = search(model, sc.Channel(), SOLVER, job.budget, task, **how)
        return study.plan, len(study.trials)

    return way


def by_curves(by: Callable[..., Allocator]) -> Way:
    """The plan that loses least by the curves of sites that were pruned alone."""

    def way(model: nn.Module, task: sc.Task, job: Job) -> tuple[Plan, int]:
        found = scanned(model, task, job)
        plan = sc.planned(model, sc.Channel(), SOLVER, found.allocator(job.budget, by), task, only=inside)
        return plan, len(found.study.trials)

    return way


def scanned(model: nn.Module, task: sc.Task, job: Job) -> Any:
    """Each site alone at each level, once for all allocators: the loss on the images that plans are judged by."""
    folder = CELLS / f"scan-{job.seed}"
    return sc.sensitivity(
        model, sc.Channel(), SOLVER, task, keeps=LEVELS, by="loss", only=inside, seed=job.seed, checkpoint=folder, show=False
    )


def netadapt(model: nn.Module, task: sc.Task, job: Job) -> tuple[Plan, int]:
    """NetAdapt in five or six steps, so that it tries about as many plans as the searches."""
    tried = copy.deepcopy(model)
    masks = sc.methods.netadapt_(tried, task, budget=job.budget, step=0.14, decay=0.9, solver=SOLVER, only=inside)
    assert masks.plan is not None
    return masks.plan, 27 * 5


WAYS: dict[str, Callable[[int], Way]] = {
    "uniform": lambda _: directly(partial(sc.within_budget, allocator=sc.uniform)),
    "ERK": lambda _: directly(partial(sc.within_budget, allocator=sc.erdos_renyi)),
    "global": lambda _: directly(partial(sc.within_budget, allocator=sc.global_threshold)),
    "isomorphic": lambda _: directly(partial(sc.within_budget, allocator=sc.uniform), sc.Channel(within="isomorphic")),
    "sensitivity, marginal": lambda _: by_curves(sc.marginal),
    "sensitivity, dynamic programming": lambda _: by_curves(sc.dynamic),
    "sensitivity, integer program": lambda _: by_curves(sc.integer),
    "NetAdapt": lambda _: netadapt,
    "random search": lambda trials: searched(partial(sc.random_search, trials=trials)),
    "TPE": lambda trials: searched(partial(sc.tpe, trials=trials, start=sc.uniform(keep=KEEP))),
    "evolution (NSGA-II)": lambda trials: searched(partial(sc.nsga2, trials=trials, population=20)),
    "AMC": lambda trials: searched(partial(sc.amc, episodes=trials, warm_up=trials // 4)),
}


# ---------------------------------------------------------------- measuring


def cell_of(name: str, job: Job) -> Cell:
    """What a way comes to: its plan, its value where it was judged, what is left on images that nobody chose by."""
    path = CELLS / f"{job.cost}-{job.seed}-{''.join(c if c.isalnum() else '_' for c in name)}.json"
    if path.exists():
        found: Cell = json.loads(path.read_text())
        if found["trials"] == job.trials:
            return found
    torch.manual_seed(job.seed)
    model, task = dense_model(), task_of(job.seed)
    folder = CELLS / f"trials-{job.cost}-{job.seed}-{path.stem.rpartition('-')[2]}"
    begun, cpu = time.perf_counter(), time.process_time()
    plan, tried = WAYS[name](job.trials)(model, task, replace(job, folder=folder))
    spent = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - cpu}
    value = judged(model, task, plan)
    masks = sc.prune_(model, sc.Channel(), SOLVER, plan, task, only=inside, recalibrate=False)
    sc.shrink_(model, masks)
    cell = {
        "way": name,
        "trials": job.trials,
        "tried": tried,
        **spent,
        "plan": json.loads(plan.to_json()),
        "value": value,
        "cut": sc.evaluate(model, task, task.test, show=False),
        "costs": {key: COSTS[key](model, task.example) for key in told(job.cost)},
        "promised": {key: COSTS[key](dense_model(), task.example, plan) for key in told(job.cost)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell) + "\n")
    return cell


def told(cost: str) -> list[str]:
    """The costs that a page tells: milliseconds, which take long to measure, where they are the budget."""
    return [key for key in COSTS if key in ("macs", cost)]


def judged(model: nn.Module, task: sc.Task, plan: Plan) -> float:
    """The accuracy by which searches judge a plan."""
    with sc.trial(model, sc.Channel(), SOLVER, plan, task, only=inside):
        return float(sc.evaluate(model, task, task.validation, show=False))


def tuned(cell: Cell, job: Job) -> float:
    """Accuracy on the reported images after a short training of a plan's network."""
    path = CELLS / f"tuned-{job.cost}-{job.seed}-{''.join(c if c.isalnum() else '_' for c in cell['way'])}.json"
    if not path.exists():
        torch.manual_seed(job.seed)
        model, task = dense_model(), task_of(job.seed)
        plan = Plan.from_json(json.dumps(cell["plan"]))
        sc.shrink_(model, sc.prune_(model, sc.Channel(), SOLVER, plan, task, only=inside, recalibrate=False))
        tune(model, task, LR, EPOCHS, amp=None)
        path.write_text(json.dumps(float(sc.evaluate(model, task, task.test, show=False))))
    return float(json.loads(path.read_text()))


def dense_cell(budget: str) -> Cell:
    """The dense network, by the same measures."""
    path = CELLS / f"dense-{budget}.json"
    if not path.exists():
        model, task = dense_model(), task_of(0)
        cell = {
            "value": float(sc.evaluate(model, task, task.validation, show=False)),
            "test": float(sc.evaluate(model, task, task.test, show=False)),
            "costs": {key: COSTS[key](model, task.example) for key in told(budget)},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cell) + "\n")
    found: Cell = json.loads(path.read_text())
    return found


# ---------------------------------------------------------------- the pages


def there(cost: str, seeds: int, trials: int) -> dict[str, list[tuple[Job, Cell]]]:
    """Way → its cells that were measured with so many trials."""
    found: dict[str, list[tuple[Job, Cell]]] = {}
    for name in WAYS:
        for seed in range(seeds):
            path = CELLS / f"{cost}-{seed}-{''.join(c if c.isalnum() else '_' for c in name)}.json"
            cell = json.loads(path.read_text()) if path.exists() else None
            if cell is not None and cell["trials"] == trials:
                found.setdefault(name, []).append((Job(cost, seed, trials, CELLS), cell))
    return found


def spread(values: list[float], scale: float = 100) -> str:
    """Mean and standard deviation."""
    mean = f"{scale * statistics.fmean(values):.2f}"
    return f"{mean} ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def table(cost: str, seeds: int, trials: int) -> str:
    """A row for each way to a plan, the best by the judged images first."""
    found, dense = there(cost, seeds, trials), dense_cell(cost)
    ranked = sorted(found, key=lambda name: -statistics.fmean(cell["value"] for _, cell in found[name]))
    rows = [["dense", "", "", f"{100 * dense['value']:.2f}", f"{100 * dense['test']:.2f}", "", *("100" for _ in told(cost)), ""]]
    for place, name in enumerate(ranked):
        cells = found[name]
        after = [tuned(cell, job) for job, cell in cells] if place < TUNED else []
        left = [statistics.fmean(cell["costs"][key] / dense["costs"][key] for _, cell in cells) for key in told(cost)]
        off = [abs(cell["promised"][cost] / cell["costs"][cost] - 1) for _, cell in cells]
        rows.append(
            [
                name,
                str(round(statistics.fmean(cell["tried"] for _, cell in cells))),
                f"{statistics.fmean(cell['processor'] for _, cell in cells):.0f}",
                spread([cell["value"] for _, cell in cells]),
                spread([cell["cut"] for _, cell in cells]),
                spread(after) if after else "",
                *(f"{100 * each:.1f}" for each in left),
                f"{100 * max(off):.1f}",
            ]
        )
    headings = [
        *(
            "way to the plan",
            "plans tried",
            "processor s",
            f"first {JUDGED} images, %",
            f"last {REPORTED:,}, %",
            "after 2 epochs, %",
        ),
        *(f"{key} left, %" for key in told(cost)),
        f"{cost} off by, %",
    ]
    return markdown(headings, rows)


def drawn(cost: str, trials: int) -> None:
    """The page of the searches of the first seed: every plan that was tried, and what the best leaves of each layer."""
    studies: dict[str, Study] = {}
    for name, cells in there(cost, 1, trials).items():
        folder = CELLS / f"trials-{cost}-0-{''.join(c if c.isalnum() else '_' for c in name)}"
        if folder.exists():
            studies[name] = read_trials(folder)
        else:
            plan = Plan.from_json(json.dumps(cells[0][1]["plan"]))
            studies[name] = Study(
                (Trial(0, plan, cells[0][1]["value"], {sc.macs.name: cells[0][1]["promised"]["macs"]}),), True, "accuracy"
            )
    if not studies:
        return
    model, task, dense = dense_model(), task_of(0), dense_cell(cost)
    whole = next(iter(studies.values())).trials[0].plan
    whole = whole.with_counts({name: share.units for name, share in whole.shares.items()})
    checks = [
        Check(name, COSTS[key].name, cell["promised"][key], cell["costs"][key])
        for name, cells in there(cost, 3, trials).items()
        for _, cell in cells
        for key in told(cost)
    ]
    record = search_record(
        f"ResNet-56 on CIFAR-10, half of its {cost}",
        model,
        task.example,
        Trial(0, whole, dense["value"], {sc.macs.name: dense["costs"]["macs"]}),
        studies,
        [sc.macs, sc.params],
        sensitivity=scanned(model, task, Job(cost, 0, trials, CELLS)) if (CELLS / "scan-0").exists() else None,
        checks=checks,
        command="python benchmarks/allocation.py",
        seed=0,
    )
    write_search_html(record, RESULTS / f"allocation-{cost}.html")


def page(seeds: int, trials: int) -> None:
    """The page of all that is there."""
    about = (
        "`python benchmarks/allocation.py`: ResNet-56 (90.58 % dense on CIFAR-10), channels inside its blocks, "
        f"{KEEP:.0%} of the cost left, no training before the plans are compared. Plans are judged on the first {JUDGED} test images and "
        f"reported on the last {REPORTED:,}; {trials} plans a search, means and standard deviations over {seeds} seeds (what calibrates, "
        "and what searches draw). *Off by* is the most by which a plan's promise missed what was counted, "
        "or measured with batch 1 on one thread, of the smaller model."
    )
    parts = [f"## Half of the {cost}\n\n{table(cost, seeds, trials)}" for cost in COSTS if there(cost, seeds, trials)]
    write("allocation", "# How much, where", about, *parts)
    for cost in COSTS:
        drawn(cost, trials)


# ---------------------------------------------------------------- accuracy against latency, uniform and searched


def curves(seed: int, trials: int) -> None:
    """Uniform plans and those of the scan's curves to several budgets of milliseconds, measured; drawn beside each other."""
    path, task, job = CELLS / "curves.json", task_of(seed), Job("latency", seed, trials, CELLS)
    found: dict[str, list[list[float]]] = json.loads(path.read_text()) if path.exists() else {}
    scan = scanned(dense_model(), task, job)
    for name, by in (("uniform", None), ("searched (sensitivity, dynamic programming)", sc.dynamic)):
        for keep in FRACTIONS[len(found.setdefault(name, [])) :]:
            model, budget = dense_model(), sc.Budget(COSTS["latency"], keep=keep)
            allocate = sc.within_budget(budget, sc.uniform) if by is None else scan.allocator(budget, by)
            sc.shrink_(model, sc.prune_(model, sc.Channel(), SOLVER, allocate, task, only=inside, recalibrate=False))
            accuracy = float(sc.evaluate(model, task, task.test, show=False))
            found[name].append([COSTS["latency"](model, task.example), accuracy])
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(name, keep, found[name][-1], flush=True)
    draw(found)


def draw(found: Mapping[str, list[list[float]]]) -> None:
    """Both curves, from the dense network on."""
    dense = dense_cell("latency")
    with styled(7.0, 3.8) as figure:
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(found.items()):
            ms, accuracy = zip([dense["costs"]["latency"], dense["test"]], *points, strict=True)
            axes.plot(ms, [100 * each for each in accuracy], DASHES[index], color=COLOURS[index], marker=MARKERS[index], label=name)
        axes.set_xlabel("measured milliseconds of one image, one thread")
        axes.set_title("accuracy on images that nobody chose by, %, no training", loc="left")
        axes.grid(True, linewidth=0.7)
        figure.legend(loc="outside upper left", ncols=2)
        figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Measure what is missing, then write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cost", choices=COSTS, default="macs")
    parser.add_argument("--only", nargs="*", choices=WAYS, help="ways to a plan")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--curves", action="store_true", help="accuracy against latency, uniform and searched, as a picture")
    parser.add_argument("--report", action="store_true", help="only write the pages")
    given = parser.parse_args()
    if given.curves:
        curves(0, given.trials)
        return
    for seed in range(0 if given.report else given.seeds):
        for name in given.only or WAYS:
            cell = cell_of(name, Job(given.cost, seed, given.trials, CELLS))
            print(given.cost, seed, name, f"{cell['value']:.4f} {cell['cut']:.4f} {cell['seconds']:.0f} s", flush=True)
    page(given.seeds, given.trials)


if __name__ == "__main__":
    main()
