"""The page and the pictures of `microcontroller.py`, from the cells that are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
from firmware_cmsis import BUILDS
from firmware_curves import DOCS, Cells, cells, scalpel
from tables import markdown, write

FLOOR = 90.0
"""MLPerf Tiny's, in per cent."""
CHOSEN = {
    "fewest instructions, least squares": ("instructions", False),
    "least flash, least squares": ("flash", False),
    "fewest instructions, taught": ("instructions", True),
    "least flash, taught": ("flash", True),
}
"""What is chosen among the ways of which sort, by what."""


def ways(folder: Path) -> Cells:
    """DS-CNN's that are there."""
    return cells(folder / "ds_cnn")


def chosen(folder: Path) -> dict[str, str]:
    """The smallest ways that keep the floor on the 200 words: as `CHOSEN` says → the way's name."""
    found = {}
    for what, (by, taught) in CHOSEN.items():
        good = {
            name: each[by]
            for name, each in ways(folder).items()
            if each["int8, choosing"] >= FLOOR and ("taught" in name) == taught and name != "dense"
        }
        if good:
            found[what] = min(good, key=lambda name: good[name])
    return found


def lucky(found: Cells) -> dict[str, str]:
    """The fewest instructions that keep the floor on the words that are reported."""
    told = {}
    for what, taught in (("least squares", False), ("taught", True)):
        some = {
            name: each["instructions"]
            for name, each in found.items()
            if each["int8, reported"] >= FLOOR and ("taught" in name) == taught and name != "dense"
        }
        if some:
            told[f"fewest instructions with 90 % of the 800, {what}"] = min(some, key=lambda name: some[name])
    return told


def report(folder: Path) -> None:
    """Write all that can be written."""
    parts = ["# Small machines", _about(), *_ds_cnn(folder), *_cmsis(folder), *_tiny(folder), *scalpel(folder), *_energy(folder)]
    write("microcontroller", *(part for part in parts if part))


def _about() -> str:
    return (
        "`python benchmarks/microcontroller.py` (its docstring has the commands). Instructions of an emulated Cortex-M4 (qemu's "
        "mps2-an386, `arm-none-eabi-gcc -O2`), one run of the network: they are no cycles. Flash is code and weights of the network, "
        "as the linker sees them; SRAM the arena, in which the input lies too, and 1,024 bytes of stack. Every number of every test "
        "vector was the integer reference's, on this machine and on the emulated core; `sc.export.c` writes nothing otherwise."
    )


# ---------------------------------------------------------------- DS-CNN


def _ds_cnn(folder: Path) -> Iterable[str]:
    found, picked = ways(folder), chosen(folder)
    if "dense" not in found:
        return
    yield "## The keyword spotter: DS-CNN"
    yield (
        "200 of the 1,000 words calibrate and repair; accuracies in % of the other 800 (the standard error near 90 % is 1.1 points). Of "
        "each sort the smallest way is taken that keeps 90 % (MLPerf Tiny's floor) of the first 300 of these in int8; the other 500 have "
        "chosen nothing (1.3 points). The last rows are the smallest that keep 90 % of all 800: chosen on what they are judged by, they "
        "are a little lucky."
    )
    rows = [_row("float32, PyTorch", found["dense"], "float"), _row("int8, dense", found["dense"])]
    theirs = _total(folder, "ds_cnn")
    if theirs is not None:
        rows.append(["int8, dense, CMSIS-NN's kernels", "the same to the bit", "", "", "", f"{theirs:,.0f}", "1.00"])
    tflite = folder / "tflite.json"
    if tflite.exists():
        cell = json.loads(tflite.read_text())
        rows.append(
            ["int8, MLPerf's file (another training run)", f"{cell['reported']:.2f}", "", f"{cell['bytes']:,} (file)", "", "", ""]
        )
    for name in dict.fromkeys(picked.values()):
        whats = [what for what, each in picked.items() if each == name]
        rows.append(
            _row(f"{' and '.join(what.partition(',')[0] for what in whats)}, {whats[0].partition(', ')[2]}: {name}", found[name])
        )
    for what, name in lucky(found).items():
        rows.append(_row(f"{what}: {name}", found[name]))
    of_theirs = {f"{each['instructions']:,.0f}": each["instructions"] / theirs for each in found.values()} if theirs else {}
    for row in rows:
        row[-1] = row[-1] or (f"{of_theirs[row[-2]]:.2f}" if row[-2] in of_theirs else "")
    yield markdown(["network", "accuracy", "of the 500", "flash", "SRAM", "instructions", "of CMSIS-NN's"], rows)
    yield "### All ways"
    yield (
        "Channels: the fraction of the instructions that the plan was to keep (`sc.Budget(sc.instructions(), keep=…)`), by `sc.ZipLM`; "
        "blocks: the fraction of the multiplications, in blocks of four inputs of the pointwise layers, by least squares and "
        "`sc.reconstruct_`. Taught: 2,000 steps in which the whole learns the dense network's answers to the 200 words, shifted and mixed; "
        "no labels. Formats: what `export.c` chose for the layers that are not depthwise. BatchNorm's statistics were not taken anew: "
        "with those of the 200 words even the dense network falls to 75.5 %."
    )
    yield markdown(
        ["way", "float, 800", "int8, 800", "float, 500", "int8, 500", "MACs", "flash", "SRAM", "instructions", "formats"],
        [_all(name, each) for name, each in sorted(found.items(), key=lambda each: -each[1]["instructions"])],
    )
    _frontier(found, theirs)
    yield "![Accuracy and instructions](../../docs/microcontroller.png)"


def _row(what: str, cell: Cells, kind: str = "int8") -> list[str]:
    accuracy = [f"{cell[f'{kind}, {part}']:.2f}" for part in ("reported", "kept back")]
    if kind == "float":
        return [what, *accuracy, "", "", "", ""]
    return [what, *accuracy, f"{cell['flash']:,}", f"{cell['sram']:,}", f"{cell['instructions']:,.0f}", ""]


def _all(name: str, cell: Cells) -> list[str]:
    numbers = [f"{cell[f'{kind}, {part}']:.2f}" for part in ("reported", "kept back") for kind in ("float", "int8")]
    counts = (f"{cell[each]:,.0f}" for each in ("macs", "flash", "sram", "instructions"))
    return [name, *numbers, *counts, formats_in(cell)]


def formats_in(cell: Cells) -> str:
    """The formats of the weights, most used first, each with how many layers have it."""
    counts = Counter(each for _, each, *_ in cell["steps"] if each and each not in ("depthwise", "a view"))
    return ", ".join(f"{count} {each}" for each, count in counts.most_common())


def _frontier(found: Cells, theirs: float | None) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    sorts = {"channels": "channels", "blocks": "blocks of 4", "both": "channels, blocks"}
    for axis, by, label in ((axes[0], "instructions", "million instructions"), (axes[1], "flash", "kB of flash")):
        scale = 1e6 if by == "instructions" else 1e3
        for number, (sort, shown) in enumerate(sorts.items()):
            for taught in (False, True):
                some = [
                    (each[by] / scale, each["int8, reported"])
                    for name, each in found.items()
                    if _sort(name) == sort and ("taught" in name) == taught
                ]
                style = "o-" if taught else "s--"
                if some:
                    axis.plot(
                        *zip(*sorted(some), strict=True), style, color=f"C{number}", label=f"{shown}{', taught' * taught}", ms=4
                    )
        axis.plot(found["dense"][by] / scale, found["dense"]["int8, reported"], "k*", ms=12, label="dense")
        axis.axhline(FLOOR, color="grey", lw=0.8, ls=":")
        axis.set(xlabel=label, ylim=(80, 93), xlim=(0, None))
        axis.grid(alpha=0.3)
    if theirs is not None:
        axes[0].plot(theirs / 1e6, found["dense"]["int8, reported"], "r*", ms=12, label="dense, CMSIS-NN")
        axes[0].set_xlim(0, 1.05 * theirs / 1e6)
    axes[0].set_ylabel("int8 accuracy of 800 words, %")
    axes[0].legend(fontsize=8, loc="lower right")
    figure.suptitle("DS-CNN on an emulated Cortex-M4, pruned with 200 words and no training set")
    figure.tight_layout()
    figure.savefig(DOCS / "microcontroller.png", dpi=110)
    plt.close(figure)


def _sort(name: str) -> str:
    both = "channels" in name and "blocks" in name
    return "both" if both else "channels" if "channels" in name else "blocks" if "blocks" in name else ""


# ---------------------------------------------------------------- beside CMSIS-NN


def _best(folder: Path, network: str) -> tuple[str, Cells] | None:
    """The build of CMSIS-NN that takes the fewest instructions."""
    found = {build: cell for build in BUILDS if (cell := cells(folder / "cmsis").get(f"{network}{build}")) is not None}
    return min(found.items(), key=lambda each: sum(layer[2] for layer in each[1]["layers"])) if found else None


def _total(folder: Path, network: str) -> float | None:
    best = _best(folder, network)
    return None if best is None else float(sum(each[2] for each in best[1]["layers"]))


def _cmsis(folder: Path) -> Iterable[str]:
    tiny = cells(folder / "tiny")
    both = [name for name in tiny if _best(folder, name) is not None]
    if not both:
        return
    build, cell = _best(folder, both[0]) or ("", {})
    yield "## Beside CMSIS-NN"
    yield (
        f"CMSIS-NN {cell['version']}, built by the same compiler at -O2, -O3 and -Ofast, of which the one with the fewest instructions "
        "is taken; each layer gets the input of ours, and all answers were the same to the bit except those of the mean, which CMSIS-NN "
        "rounds to the scale of its input. Only calls of kernels are counted, neither theirs nor ours with an interpreter around. "
        "Zeros: of the weights in int8, as published; ours skip them where that pays, which it does in MobileNet alone."
    )
    rows = []
    for name in both:
        build = (_best(folder, name) or ("", {}))[0]
        ours, theirs = tiny[name]["instructions"], _total(folder, name) or 0.0
        zeros = f"{tiny[name]['zeros']:.0%}"
        rows.append([tiny[name]["title"], zeros, f"{ours:,.0f}", f"{theirs:,.0f}", build, f"**{ours / theirs:.2f}**"])
    yield markdown(["network as published", "zeros", "ours", "CMSIS-NN", "its build", "ours / theirs"], rows)
    for name in [each for each in both if each in ("ds_cnn", "resnet_8")]:
        found = (_best(folder, name) or ("", {}))[1]["layers"]
        ours_by = {step: count for step, _, _, count in tiny[name]["steps"]}
        yield f"### {tiny[name]['title']}, layer by layer"
        rows = [
            [
                layer,
                f"{ours_by[layer]:,.0f}",
                f"{count:,.0f}",
                f"{ours_by[layer] / count:.2f}",
                "same" if not wrong else "rounded otherwise",
            ]
            for layer, wrong, count in found
            if layer in ours_by
        ]
        yield markdown(["layer", "ours", "CMSIS-NN", "ours / theirs", "answers"], rows)


# ---------------------------------------------------------------- MLPerf Tiny


def _tiny(folder: Path) -> Iterable[str]:
    found = cells(folder / "tiny")
    if not found:
        return
    yield "## MLPerf Tiny's networks in int8, dense"
    rows = []
    for cell in found.values():
        shown = f"{cell['float, reported']:.2f} → {cell['int8, reported']:.2f}" if "int8, reported" in cell else "no data"
        counts = (f"{cell[each]:,.0f}" for each in ("macs", "flash", "sram", "instructions"))
        zeros = f"{cell['zeros']:.0%}"
        same = f"{cell['tests']} inputs on {' and '.join(cell['checked'])}"
        rows.append([cell["title"], *counts, zeros, formats_in(cell), same, shown, f"{cell['difference']:.1%}", cell["data"]])
    headings = [
        "network",
        "MACs",
        "flash",
        "SRAM",
        "instructions",
        "zeros",
        "formats",
        "C = reference to the bit",
        "accuracy, float → int8, %",
    ]
    yield markdown([*headings, "largest difference", "data"], rows)


# ---------------------------------------------------------------- energy


def _energy(folder: Path) -> Iterable[str]:
    found = cells(folder / "energy")
    if "dense" not in found:
        return
    yield "## Energy and memory, before and after"
    yield (
        "Energy: weights, inputs and sums by memory, as on Eyeriss (`sc.energy_on(weight_bits=8, activation_bits=8)`, in MACs of 16 "
        "bits); references: numbers fetched by a machine that skips zeros (`sc.memory_references`); stored: bytes of the parameters "
        "with weights of 8 bits, dense and with 4-bit relative indices. None of them is a "
        "microcontroller; what `export.c` measures there is above."
    )
    rows = []
    for name, cell in sorted(found.items(), key=lambda each: each[0] not in ("dense",)):
        title = f"DS-CNN, {name}" if "channels" in name or "blocks" in name or name == "dense" else name
        base = found["dense"] if title.startswith("DS-CNN") else None
        numbers = [
            f"{cell[each]:,.0f}" + (f" ({cell[each] / base[each]:.2f})" if base is not None and name != "dense" else "")
            for each in ("energy", "references", "macs", "stored", "stored, relative")
        ]
        rows.append([title, *numbers])
    yield markdown(["network", "energy", "references", "MACs that are not skipped", "stored, dense", "stored, relative"], rows)
