"""What published accelerators make of sparsity, by their cost models, beside the shapes of the figures that their papers show.

python benchmarks/accelerators.py     (about a minute)
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.costs.accelerators import CascadePruning, OuterProducts, TensorCores, eie, ese

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ELEMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAYERS = {  # of Table III of EIE: outputs, inputs, density of weights, of activations
    "Alex-6": (4096, 9216, 0.09, 0.351),
    "Alex-7": (4096, 4096, 0.09, 0.353),
    "Alex-8": (1000, 4096, 0.25, 0.375),
    "VGG-6": (4096, 25088, 0.04, 0.183),
    "VGG-7": (4096, 4096, 0.04, 0.375),
    "VGG-8": (1000, 4096, 0.23, 0.411),
}
COLUMNS = 768
"""Columns of a layer that are simulated: they tell the balance of all."""


def by_chance(rows: int, columns: int, density: float) -> Tensor:
    """Nonzeros anywhere: real weights may lie worse."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < density


def of_eie() -> tuple[str, dict[str, list[float]], dict[str, list[float]]]:
    """Load balance by the depth of queues, and the fraction of real work by the number of elements."""
    balances, works = {}, {}
    for name, (rows, columns, density, busy) in LAYERS.items():
        weight = by_chance(rows, min(columns, COLUMNS), density)
        machine = replace(eie(), busy=busy)
        balances[name] = [replace(machine, depth=depth).balance(weight) for depth in DEPTHS]
        works[name] = [1 - replace(machine, elements=elements).padding(weight) for elements in ELEMENTS]
        print(name, [f"{each:.2f}" for each in balances[name]], [f"{each:.2f}" for each in works[name]], flush=True)
    tables = [
        markdown([f"{what} =", *map(str, steps)], [[name, *(f"{each:.2f}" for each in found)] for name, found in of.items()])
        for what, steps, of in (("depth", DEPTHS, balances), ("elements", ELEMENTS, works))
    ]
    first = [found[0] for found in balances.values()]
    eight, most = ([found[place] for found in balances.values()] for place in (3, -1))
    told = (
        "## EIE (1602.01528): load balance by the depth of queues (its figure 8), 64 elements\n\n"
        f"{tables[0]}\n\nWith a queue of 1 elements work in {min(first):.2f} to {max(first):.2f} of the cycles "
        f"(the paper: about half), with 8 in {min(eight):.2f} to {max(eight):.2f}, "
        f"with 256 in {min(most):.2f} to {max(most):.2f} (the paper: "
        "diminishing returns beyond 8). "
        "Weights lie by chance, in the published densities; gains from zero activations are in, as only those that are not zero are "
        "broadcast.\n\n## EIE: the fraction of entries that is no filled-in zero, by the number of elements (its padding zeros)\n\n"
        f"{tables[1]}\n\nThe more elements, the shorter the part of a column that each has, and the fewer zeros are filled in."
    )
    return told, balances, works


def of_ese() -> str:
    """Balanced and unbalanced pruning of weights some of whose rows are larger, as gates of LSTMs are."""
    rows = []
    for spread in (0.0, 0.25, 0.5):
        balances = []
        for within in ("layer", "row"):
            layer = nn.Linear(512, 1024, bias=False)
            generator = torch.Generator().manual_seed(0)
            nn.init.normal_(layer.weight, generator=generator)
            layer.weight.data *= torch.exp(spread * torch.randn(1024, 1, generator=generator))
            sc.prune_(
                layer,
                sc.Element(within=within),
                sc.TopK(sc.magnitude()),
                sc.uniform(sparsity=0.9),
                sc.Task(torch.zeros(1, 512)),
                only="*",
            )
            balances.append(ese().balance(layer.weight.detach()))
        rows.append([f"{spread:g}", f"{balances[0]:.2f}", f"{balances[1]:.2f}", f"{balances[1] / balances[0]:.2f}"])
    return (
        "## ESE (1612.00694): load-balance-aware pruning, 10 % of the weights, 32 elements\n\n"
        + markdown(["spread of rows", 'busy, Element(within="layer")', 'busy, Element(within="row")', "times as fast"], rows)
        + "\n\nThe logarithm of the size of rows is normal, with that standard deviation."
    )


def of_sparch() -> str:
    """Bytes moved, with and without condensing, by the ways of the merge tree."""
    left, right = (by_chance(512, 512, 0.02) for _ in range(2))
    rows = []
    for ways in (2, 8, 64, 512):
        plain, condensed = (OuterProducts(ways=ways, condensed=each).dram_bytes(left, right) for each in (False, True))
        rows.append([str(ways), f"{plain / 1e6:.2f}", f"{condensed / 1e6:.2f}", f"{plain / condensed:.2f}"])
    parts = [OuterProducts(condensed=each).partial_products(left) for each in (False, True)]
    return (
        "## SpArch (2002.08947): megabytes from and to DRAM, two matrices of 512 x 512, 2 % of them there\n\n"
        + markdown(["ways of the tree", "outer products", "condensed", "times fewer"], rows)
        + f"\n\n{parts[0]} partial products, condensed {parts[1]}. The paper's 2.8 times fewer accesses than OuterSPACE's are of "
        "matrices from SuiteSparse, with prefetching."
    )


def of_spatten() -> str:
    """Counted work of a BERT of 12 layers, with tokens and heads that fall evenly to what is kept in the last layer."""
    rows = []
    for tokens, heads in ((1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.25, 0.75), (0.1, 0.75)):
        falls = [tuple(1 - (1 - last) * place / 11 for place in range(12)) for last in (tokens, heads)]
        machine, whole = (CascadePruning(12, 768, 12, 3072, *each) for each in (falls, ((1.0,) * 12, (1.0,) * 12)))
        cells = []
        for sequence in (128, 1024):
            pruned, dense = (each.pass_of(sequence) for each in (machine, whole))
            for part in ("products", "fetched", "macs"):
                cells.append(f"{sum(getattr(one, part) for one in dense) / sum(getattr(one, part) for one in pruned):.2f}")
        rows.append([f"{tokens:g}", f"{heads:g}", *cells])
    headings = ["tokens in the last layer", "heads"] + [
        f"{part}, {length}" for length in (128, 1024) for part in ("products", "fetched", "MACs")
    ]
    return (
        "## SpAtten (2012.09852): times less work with a cascade of tokens and heads, BERT-base, by the length of the sequence\n\n"
        + markdown(headings, rows)
        + "\n\nFractions fall evenly from layer to layer. The paper's schedules depend on data, and its ten times fewer accesses count "
        "quantisation that is fetched in parts as well."
    )


def of_tensor_cores() -> str:
    """How many times as fast square products are with 2:4."""
    cores = TensorCores()
    rows = [[str(size), f"{cores.speed_up(size, size, size):.2f}"] for size in (256, 512, 1024, 2048, 4096, 8192)]
    return "## Tensor cores with 2:4 (2104.08378): times as fast as dense, square products\n\n" + markdown(["size", "2:4"], rows)


def draw(balances: dict[str, list[float]], works: dict[str, list[float]]) -> None:
    """Both figures of EIE."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    pictures = (
        (DEPTHS, balances, "depth of queues", "fraction of cycles in which elements work"),
        (ELEMENTS, works, "processing elements", "fraction of entries that is no filler"),
    )
    for axis, (steps, found, along, up) in zip(axes, pictures, strict=True):
        for (name, values), marker in zip(found.items(), "os^Dv*", strict=True):
            axis.plot(steps, values, marker=marker, label=name, linewidth=1)
        axis.set(xscale="log", xlabel=along, ylabel=up, ylim=(0, 1.02))
        axis.set_xticks(steps, list(map(str, steps)))
        axis.minorticks_off()
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "accelerators.png", dpi=110)


def main() -> None:
    """Reckon, draw, and write the page."""
    told, balances, works = of_eie()
    draw(balances, works)
    title = "# Accelerators as cost models\n\nReckoned, not measured: `secateurs.costs.accelerators`.\n\n![EIE](accelerators.png)"
    write("accelerators", title, told, of_ese(), of_sparch(), of_spatten(), of_tensor_cores())


if __name__ == "__main__":
    main()
