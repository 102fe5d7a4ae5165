"""Scalpel's part of the page: which pattern pays from which sparsity on, on three classes of hardware."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from firmware_scalpel import BLOCKS, LEVELS, NODES, OF_FOUR
from tables import markdown

DOCS = Path(__file__).parent.parent / "docs"
Cells = dict[str, Any]
PATTERNS = ("CSR", *BLOCKS, NODES)


def cells(folder: Path) -> Cells:
    """What is there of a part: name → cell."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def scalpel_sums(folder: Path) -> dict[str, dict[float, dict[str, float]]]:
    """Instructions by kind of layer, sparsity and pattern, summed over the layers of a network that have all that patterns."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    for path in sorted((folder / "scalpel").glob("*")):
        layers = {float(name): cell for name, cell in cells(path).items()}
        kind = f"{path.name.split(',')[0]}, {'fully connected' if _is_linear(path.name) else 'convolutions'}"
        for level, cell in layers.items():
            for pattern, told in cell.items():
                sums = found.setdefault(kind, {}).setdefault(level, {})
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


def _curves(sums: dict[str, dict[float, dict[str, float]]]) -> None:
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


def _hardware(folder: Path, sums: dict[str, dict[float, dict[str, float]]]) -> Iterable[str]:
    rows = []
    for path in sorted((folder / "hardware").glob("*")):
        for level, cell in cells(path).items():
            mcu = _network(path.name, float(level), sums)
            if mcu:
                rows.append([path.name, f"{float(level):.0%}", _best_of(mcu), _best_of(cell["cpu"]), _best_of(cell["gpu"])])
    if not rows:
        return
    yield "### Three classes of hardware"
    yield (
        "How many times as fast as dense, the best pattern in bold: that is the one to use there. Microcontroller: instructions, counted. "
        "CPU: this machine, float32, one thread, batch 1, `sc.run.compile` of both, measured in turns; blocks are as many outputs as an "
        "instruction takes numbers, of one input; where no sparse kernel is faster `compile` takes the dense one, so that what loses "
        "shows as 1. GPU: there is none on this machine; reckoned by `sc.recommend(…, sc.targets.gpu())`, batch 1."
    )
    yield markdown(["network", "sparsity", "microcontroller", "CPU", "GPU (reckoned)"], rows)


def _network(name: str, level: float, sums: dict[str, dict[float, dict[str, float]]]) -> dict[str, float]:
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
