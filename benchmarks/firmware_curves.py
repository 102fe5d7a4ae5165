"""Scalpel's part of the page: which pattern pays from which sparsity on, on three classes of hardware."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib.pyplot as plt
from firmware_scalpel import BLOCKS, LEVELS, NODES, OF_FOUR
from tables import markdown

from secateurs.targets import PAYS

DOCS = Path(__file__).parent.parent / "docs"
Cells = dict[str, Any]
Sums = dict[str, dict[float, dict[str, float]]]
"""Layers of a kind → sparsity → pattern → instructions."""
PATTERNS = ("CSR", *BLOCKS, NODES)


def cells(folder: Path) -> Cells:
    """What is there of a part: name → cell."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def scalpel_sums(folder: Path) -> Sums:
    """Instructions by kind of layer, sparsity and pattern, summed over the layers of a network that have all that patterns."""
    found: Sums = {}
    for place, levels in cells(folder / "scalpel").items():
        kind = f"{place.split(',')[0]}, {'fully connected' if _is_linear(place) else 'convolutions'}"
        for level, cell in levels.items():
            for pattern, told in cell.items():
                sums = found.setdefault(kind, {}).setdefault(float(level), {})
                sums[pattern] = sums.get(pattern, 0.0) + told["instructions"]
    return found


def _is_linear(name: str) -> bool:
    layer = name.split(", ")[1]
    return layer.startswith("fc") or layer in ("10", "12")


def crossing(points: dict[float, float], dense: float) -> str:
    """From which sparsity on a pattern takes fewer instructions than dense, between the measured ones on a line."""
    levels = sorted(points)
    if points[levels[0]] < dense:
        return f"below {levels[0]:.0%}"
    for before, after in pairwise(levels):
        if points[after] < dense <= points[before]:
            share = (points[before] - dense) / (points[before] - points[after])
            return f"{before + share * (after - before):.0%}"
    return f"not up to {levels[-1]:.0%}"


def scalpel(folder: Path) -> Iterable[str]:
    """Its tables and pictures."""
    sums = scalpel_sums(folder)
    if not sums:
        return
    yield "## Scalpel's question: which zeros pay"
    yield (
        "Layers of LeNet-300-100, LeNet-5 and a ConvNet for CIFAR-10 (Scalpel, Yu et al., ISCA 2017), int8, weights drawn at random and "
        "pruned by magnitude: where zeros are counts here, not what was learned. CSR has an 8-bit distance a weight; blocks are of four "
        "taps, of one, two or four outputs that share an index; N of 4 has two bits a weight; node pruning leaves dense layers with as "
        "many weights. Every answer was the reference's."
    )
    rows = []
    for kind, by in sums.items():
        dense = by[0.0]["dense"]
        ends = [crossing({level: each[name] for level, each in by.items() if name in each}, dense) for name in PATTERNS]
        rows.append([kind, f"{dense:,.0f}", *ends])
    yield markdown(["layers", "dense, instructions", *(f"{name} faster from" for name in PATTERNS)], rows)
    yield "Times as fast as dense, by instructions:"
    rows = []
    for kind, by in sums.items():
        for level in LEVELS:
            if level in by:
                dense = by[0.0]["dense"]
                shown = [f"{dense / by[level][name]:.2f}" if name in by[level] else "" for name in (*PATTERNS, *OF_FOUR)]
                rows.append([kind, f"{level:.0%}", *shown])
    yield markdown(["layers", "sparsity", *PATTERNS, *OF_FOUR], rows)
    _curves(sums)
    yield "![Instructions by pattern](../../docs/scalpel.png)"
    yield from _hardware(folder, sums)


def _curves(sums: Sums) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True)
    order = sorted(sums, key=lambda kind: ("convolutions" not in kind, kind))
    for axis, kind in zip(axes.flat, order, strict=False):
        by = sums[kind]
        dense = by[0.0]["dense"]
        for name in (*PATTERNS, *OF_FOUR):
            some = [(100 * level, each[name] / dense) for level, each in sorted(by.items()) if name in each]
            if some:
                axis.plot(*zip(*some, strict=True), "o-" if len(some) > 1 else "D", label=name, ms=4)
        axis.axhline(1, color="k", lw=1)
        axis.set(title=kind, ylim=(0, 3.3))
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(order) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    list(axes.flat)[len(order)].legend(handles, labels, loc="center", fontsize=10) if len(order) < 6 else axes.flat[0].legend()
    for axis in axes[:, 0]:
        axis.set_ylabel("instructions, dense = 1")
    for axis in axes[1]:
        axis.set_xlabel("weights that are zero, %")
    figure.suptitle("Layers on an emulated Cortex-M4, int8: below the line a pattern is faster than dense")
    figure.tight_layout()
    figure.savefig(DOCS / "scalpel.png", dpi=110)
    plt.close(figure)


SHOWN = (0.5, 0.75, 0.9)
"""The sparsities of the table of hardware."""
SPARSE = {"microcontroller": ("CSR", *BLOCKS), "CPU": ("single weights", "blocks"), "GPU, reckoned": ("Element()", "NofM(2, 4)")}
"""Patterns that leave a layer its shape, by class of hardware."""


def on_hardware(folder: Path, sums: Sums) -> dict[str, dict[float, dict[str, dict[str, float]]]]:
    """Class of hardware → sparsity → network → pattern → times as fast as dense."""
    found: dict[str, dict[float, dict[str, dict[str, float]]]] = {name: {level: {} for level in SHOWN} for name in SPARSE}
    for network, levels in cells(folder / "hardware").items():
        for level in SHOWN:
            cell = levels.get(f"{level:.2f}")
            if cell is not None and (counted := _network(network, level, sums)):
                for name, speeds in zip(SPARSE, (counted, cell["cpu"], cell["gpu"]), strict=True):
                    found[name][level][network] = speeds
    return found


def _hardware(folder: Path, sums: Sums) -> Iterable[str]:
    found = on_hardware(folder, sums)
    if not any(found["CPU"].values()):
        return
    yield "### Three classes of hardware"
    yield (
        "How many times as fast as dense, the geometric mean of the three networks whole. Microcontroller: instructions, counted. CPU: "
        "this machine, float32, one thread, batch 1, `sc.run.compile` of both, measured in turns; blocks are as many outputs as an "
        "instruction takes numbers, of one input; where no sparse kernel is faster `compile` takes the dense one, so that what loses shows "
        "as 1. GPU: there is none on this machine; reckoned by `sc.recommend(…, sc.targets.gpu())`, batch 1, where 2:4 removes half of the "
        "weights at any sparsity asked for."
    )
    rows = []
    for name, by in found.items():
        for level, networks in by.items():
            means = {each: geometric_mean([speeds[each] for speeds in networks.values()]) for each in next(iter(networks.values()))}
            sparse = {each: means[each] for each in SPARSE[name]}
            best = max(sparse, key=lambda each: sparse[each])
            advice = best if sparse[best] >= PAYS else "none: leave it dense"
            rows.append([name, f"{level:.0%}", ", ".join(f"{each} {speed:.2f}" for each, speed in means.items()), f"**{advice}**"])
    yield markdown(["hardware", "sparsity", "times as fast as dense", "recommended of those that leave layers their shape"], rows)
    yield (
        "With as many weights left, narrower layers (channels, nodes) are faster nearly everywhere: they are the first choice as far as "
        "the accuracy bears it, and the recommended pattern is the one for what goes beyond. How far that is depends on the network: "
        "LeNets bear far fewer channels than single weights, the DS-CNN above bears channels better than blocks. Network by network, the "
        "fastest in bold:"
    )
    rows = [
        [network, f"{level:.0%}", *(_best_of(by[level][network]) for by in found.values())]
        for network in next(iter(found["CPU"].values()))
        for level in SHOWN
    ]
    yield markdown(["network", "sparsity", *found], rows)


def _network(name: str, level: float, sums: Sums) -> dict[str, float]:
    """Of all layers of a network together: how many times as fast as dense each pattern is."""
    parts = [by for kind, by in sums.items() if kind.startswith(f"{name},")]
    if not parts or any(level not in by for by in parts):
        return {}
    dense = sum(by[0.0]["dense"] for by in parts)
    names = [each for each in PATTERNS if all(each in by[level] for by in parts)]
    return {each: dense / sum(by[level][each] for by in parts) for each in names}


def _best_of(speeds: dict[str, float]) -> str:
    best = max(speeds, key=lambda name: speeds[name])
    shown = [f"{name} {speed:.2f}" for name, speed in speeds.items()]
    return ", ".join(f"**{each}**" if each.startswith(f"{best} ") and speeds[best] > 1.05 else each for each in shown)
