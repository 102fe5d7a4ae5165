"""Costs of published networks, counted here, beside what their papers say: storage, memory references, energy.

    SECATEURS_DATA=... python benchmarks/costs.py   # about two minutes of one core; needs the pruned SqueezeNet and some images

Numbers of papers are those of their tables; everything else is counted by `sc.stored_bytes`, `sc.memory_references` and `sc.energy_on`, of
plans that keep the published fraction of every layer (weights by chance). What had to be assumed is said under each table.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs import models
from secateurs.costs import Relative, workload
from secateurs.tasks.images import data_file
from secateurs.types import Plan, Tiling

UNITS: tuple[tuple[str, Tiling], ...] = (("single", sc.Element()), ("vectors", sc.Vector("width")), ("kernels", sc.Kernel()))

STORAGE: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[float, float], ...]]] = {
    "AlexNet": (models.alexnet, ((22.1, 33.0), (29.9, 34.5), (37.8, 39.7))),
    "VGG-16": (models.vgg_16, ((27.0, 40.6), (30.7, 35.8), (44.4, 46.9))),
    "GoogLeNet": (models.googlenet, ((32.3, 48.5), (36.9, 47.4), (43.7, 51.6))),
    "ResNet-50": (models.resnet_50, ((37.1, 55.7), (40.0, 52.7), (61.3, 77.0))),
    "DenseNet-121": (models.densenet_121, ((26.6, 39.8), (31.1, 43.8), (35.5, 48.9))),
}
"""1705.08922: density and storage in per cent, of single weights, vectors and kernels."""

REFERENCES = ((40.1, 1.77, 1.23), (33.1, 1.53, 1.03), (27.5, 1.33, 0.87))
"""1705.08922, VGG-16: density in per cent, output references in billions, of single weights and of vectors."""

VGG_NONZERO = (0.984, 0.523, 0.752, 0.613, 0.603, 0.419, 0.413, 0.357, 0.253, 0.146, 0.206, 0.126, 0.115)
"""The fraction of what each convolution of VGG-16 takes that is not zero (Chen et al., Eyeriss, JSSC 2017)."""

ALEXNET_KEPT = (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25)
ALEXNET_NONZERO = (1.0, 0.88, 0.52, 0.37, 0.40, 0.34, 0.36, 0.40)
"""AlexNet pruned by magnitude, layer by layer: the weights that stay, and what of the layer's inputs is not zero (1506.02626, table 4)."""

ENERGY_AWARE = {"AlexNet": 0.56 / 3.71, "GoogLeNet": 2.16 / 7.41, "SqueezeNet": 1.93 / 4.51}
"""MACs that are not skipped, after energy-aware pruning, of those before it (1611.05128, table 1)."""

SQUEEZENET_FILE = 675_763
"""Bytes of the file of the pruned SqueezeNet, as its authors publish it."""

EVENLY = "energy-aware (every layer alike)"
BATCH = {"AlexNet": 44, "GoogLeNet": 48, "SqueezeNet": 48}


def original_alexnet() -> nn.Sequential:
    """AlexNet as it was on two GPUs, with groups: 61 million parameters, 724 million MACs."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    )


def plan_of(model: nn.Module, pattern: Tiling, keep: float | Sequence[float], only: Sequence[str]) -> Plan:
    """What keeps a fraction of each of these layers, or of each its own."""
    sites = sc.find_sites(model, pattern, only=list(only))
    fractions = [keep] * len(only) if isinstance(keep, float) else keep
    return sc.by_layer({name: 1 - each for name, each in zip(only, fractions, strict=True)})(sites, lambda: iter([]))


def convolutions(model: nn.Module) -> list[str]:
    """The names of a model's convolutions."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


# ---------------------------------------------------------------- 1705.08922


def storage() -> str:
    """Storage of the convolutions' weights in per cent of 8 bits each."""
    rows = []
    for name, (make, published) in STORAGE.items():
        model, x = make().eval(), torch.zeros(1, 3, 224, 224)
        only = convolutions(model)
        weights = {f"{each}.weight" for each in only}
        dense = sum(model.get_parameter(each).numel() for each in weights)
        cells = []
        for (_, pattern), (density, said) in zip(UNITS, published, strict=True):
            cost = sc.stored_bytes(Relative(4, unit=None if isinstance(pattern, sc.Element) else pattern), value_bits=8)
            plan = plan_of(model, pattern, density / 100, only)
            found = 100 * sum(size for each, size in cost.by_layer(model, x, plan).items() if each in weights) / dense
            cells.append(f"{density} → {said} / **{found:.1f}** ({found - said:+.1f})")
        rows.append([name, *cells])
    return markdown(("convolutions of", *(name for name, _ in UNITS)), rows)


def squeezenet_file() -> str:
    """The pruned SqueezeNet beside the file of those who pruned it."""
    model = pruned_squeezenet()
    found = sc.stored_bytes(Relative(4), value_bits=8, codebook=True)(model, torch.zeros(1, 3, 227, 227))
    return (
        f"Of real weights: the authors of Deep Compression (1510.00149) publish their SqueezeNet in {SQUEEZENET_FILE:,} bytes, with "
        f"relative indices of 4 bits and codes of 8. Counted here for the same weights, with `codebook=True`: **{found:,.0f}** "
        f"({found - SQUEEZENET_FILE:+,.0f}; their file also tells the length of each of 26 layers in 4 bytes)."
    )


def pruned_squeezenet() -> nn.Module:
    """SqueezeNet as the authors of Deep Compression pruned it."""
    model = models.squeezenet_1_0().eval()
    model.load_state_dict(load_file(data_file("squeezenet_v1_0_pruned.safetensors")))
    return model


def references() -> str:
    """Output references of VGG-16's convolutions."""
    model, x = models.vgg_16().eval(), torch.zeros(1, 3, 224, 224)
    only, rows = convolutions(model), []
    nonzero = dict(zip(only, VGG_NONZERO, strict=True))
    for density, *said in REFERENCES:
        found = []
        for _, pattern in UNITS[:2]:
            unit = None if isinstance(pattern, sc.Element) else pattern
            cost = sc.memory_references("outputs", unit=unit, activations=nonzero)
            told = cost.by_layer(model, x, plan_of(model, pattern, density / 100, only))
            found.append(sum(told[name] for name in only) / 1e9)
        cells = [f"{here:.2f} / **{there:.2f}** ({there / here - 1:+.0%})" for here, there in zip(said, found, strict=True)]
        shares = 100 * said[1] / said[0], 100 * found[1] / found[0]
        rows.append([f"{density} %", *cells, f"{shares[0]:.1f} / **{shares[1]:.1f}** ({shares[1] - shares[0]:+.1f})"])
    return markdown(("density", "single weights, billions", "vectors, billions", "share, %"), rows)


# ---------------------------------------------------------------- 1611.05128


def images(count: int) -> Tensor:
    """Some images as SqueezeNet takes them: blue, green, red, less the mean, 227 pixels."""
    with np.load(data_file("imagenet_1000.npz")) as data:
        jpeg, offsets = data["jpeg"], data["offsets"]
        found = []
        for index in range(0, 1000, 1000 // count):
            image = Image.open(io.BytesIO(jpeg[offsets[index] : offsets[index + 1]].tobytes())).convert("RGB").resize((256, 256))
            pixels = torch.from_numpy(np.asarray(image, np.float32)[14:241, 14:241, ::-1].copy())
            found.append((pixels - torch.tensor([104.0, 117.0, 123.0])).permute(2, 0, 1))
    return torch.stack(found[:count])


def energies() -> tuple[str, str]:
    """Energy of one image, in billions of MACs of 16 bits; and what the table shows."""
    rows, totals = [], dict[tuple[str, str], float]()

    def row(
        name: str, what: str, said: float, model: nn.Module, size: int, nonzero: Mapping[str, float], plan: Plan | None
    ) -> None:
        x = torch.zeros(1, 3, size, size)
        cost = sc.energy_on(batch=BATCH[name], activations=nonzero)
        found, multiplied = cost(model, x, plan) / 1e9, sc.effective_macs(nonzero)(model, x, plan) / 1e8
        totals[name, what.partition(",")[0]] = found
        rows.append([name, what, f"{multiplied:.2f}", f"{said:.2f}", f"**{found:.2f}**", f"{found / said - 1:+.0%}"])

    alexnet = original_alexnet().eval()
    layers = names_of(alexnet, 227)
    nonzero = dict(zip(layers, ALEXNET_NONZERO, strict=True))
    row("AlexNet", "dense", 3.97, alexnet, 227, nonzero, None)
    row(
        "AlexNet",
        "by magnitude, 11 % of weights",
        1.85,
        alexnet,
        227,
        nonzero,
        plan_of(alexnet, sc.Element(), ALEXNET_KEPT, layers),
    )
    row("AlexNet", EVENLY, 1.06, alexnet, 227, nonzero, plan_of(alexnet, sc.Element(), ENERGY_AWARE["AlexNet"], layers))

    googlenet = models.googlenet().eval()
    layers = names_of(googlenet, 224)
    nonzero = dict.fromkeys(layers[1:], 0.5)
    row("GoogLeNet", "dense", 7.63, googlenet, 224, nonzero, None)
    row("GoogLeNet", EVENLY, 4.76, googlenet, 224, nonzero, plan_of(googlenet, sc.Element(), ENERGY_AWARE["GoogLeNet"], layers))

    squeezenet, pruned = models.squeezenet_1_0().eval(), pruned_squeezenet()
    layers = names_of(squeezenet, 227)
    nonzero = sc.activation_density(pruned, sc.Task(None, calibration=[(images(50), None)]))
    row("SqueezeNet", "dense", 5.28, squeezenet, 227, nonzero, None)
    row("SqueezeNet", "by magnitude, 33 % of weights", 4.61, pruned, 227, nonzero, None)
    row("SqueezeNet", EVENLY, 3.99, squeezenet, 227, nonzero, plan_of(squeezenet, sc.Element(), ENERGY_AWARE["SqueezeNet"], layers))
    table = markdown(("network", "weights", "MACs not skipped, 10⁸", "published, 10⁹", "here, 10⁹", "deviation"), rows)
    return table, shown(totals, sc.params(alexnet) / sc.params(squeezenet))


def shown(totals: Mapping[tuple[str, str], float], smaller: float) -> str:
    """Whether the networks come in the order that is published."""
    order = [("AlexNet", "dense"), ("SqueezeNet", "dense"), ("GoogLeNet", "dense")]
    dense = all(totals[a] < totals[b] for a, b in pairwise(order))
    pruned = totals["AlexNet", "by magnitude"] < totals["SqueezeNet", "by magnitude"]
    return (
        f"The order of the dense networks is {'as published' if dense else 'NOT as published'}: SqueezeNet, with {smaller:.0f} times fewer "
        f"weights, takes {totals['SqueezeNet', 'dense'] / totals['AlexNet', 'dense']:.2f} times what AlexNet takes. Pruned by magnitude, "
        f"AlexNet takes {'less' if pruned else 'MORE'} than SqueezeNet, which has fewer weights."
    )


def names_of(model: nn.Module, size: int) -> list[str]:
    """What each layer is called, in the order of the pass."""
    return list(workload(model, torch.zeros(1, 3, size, size)).names)


def main() -> None:
    """Write the page."""
    torch.manual_seed(0)
    table, order = energies()
    write(
        "costs",
        "# Costs beside their papers",
        "Each cell: published / **counted here** (deviation). `python benchmarks/costs.py` writes this page.",
        "## Storage (Mao et al., 1705.08922)",
        "Density → storage of the convolutions, in per cent of dense weights of 8 bits. Values of 8 bits, relative indices of 4 bits with "
        "filler zeros, one for each weight, row of a kernel, or kernel (`stored_bytes(Relative(4, unit), value_bits=8)`).",
        storage(),
        "Every layer keeps the same fraction here, and zeros lie by chance. The papers' networks keep more of some layers than of others; "
        "1 × 1 convolutions have an index for each weight, whatever the unit. The published storage of single weights is the density times "
        "12 / 8: without fillers, which chance would need in long gaps.",
        squeezenet_file(),
        "## Output references (Mao et al., 1705.08922)",
        references(),
        "VGG-16's convolutions. Every layer keeps the published fraction; activations are zero as Eyeriss reports for VGG-16, by chance. "
        "Products of one row of a kernel are summed up before an output is fetched (`memory_references`): chosen because it fits the "
        "published shares (without it they are 59.7 %), so their agreement is no check of its own. Real activations are zero side by "
        "side, which makes fewer references than chance.",
        "## Energy (Yang et al., 1611.05128)",
        "Of one image, in MACs of 16 bits, on `EYERISS`: 168 elements, 108 kB, row-stationary, DRAM 200, buffer 6, array 2, registers 1; "
        "batches of 44 (AlexNet) and 48 share what weights take from DRAM (`energy_on`).",
        table,
        order,
        "AlexNet is the original one, with groups; kept weights and zero activations are those of 1506.02626. Half of GoogLeNet's "
        "activations are taken to be zero, but for the image. SqueezeNet's are measured on 50 images with the pruned network, whose own "
        "weights are counted; the dense one is taken to have the same. The energy-aware networks are not published layer by layer: every "
        "layer keeps the fraction of MACs that is published for the network, so these rows only tell that the model follows. Pruned "
        "networks with few weights gain more here than is published: where a weight is zero, all fetches from registers but that of the "
        "activation are skipped, and weights stay packed in the buffer. Pooling is not counted.",
        "Zero activations of VGG-16 and AlexNet, AlexNet's kept weights, Yang's counts of MACs and his batch sizes were written down from "
        "memory: the papers' tables could not be opened when this was made. Check them before you build on a deviation.",
    )


if __name__ == "__main__":
    main()
