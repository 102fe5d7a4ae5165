"""From what was measured to the page: which goals are met, then everything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import markdown, write

from secateurs.run.forecast.bench import Gains, draw
from speed.cases import CASES, CONVOLUTIONS, LINEARS, NETWORKS, SMALL, UNSTRUCTURED, Case, Variant
from speed.contenders import FORCED

Cell = dict[str, Any]
"""What was measured of one case with one number of threads."""

Cells = Mapping[tuple[str, int], Cell]

SHOWN = (
    *sorted(UNSTRUCTURED, key=lambda variant: variant.sparsity),
    *(Variant(sparsity, rows) for rows in (4, 16) for sparsity in (0.5, 0.9)),
)
SLOWEST = 0.97


@dataclass(frozen=True)
class Goal:
    """How many times as fast one contender must be, and had better be: as the fastest dense one, or as deepsparse."""

    case: Case
    variant: Variant
    must: float
    aim: float | None = None
    threads: int = 1
    over: str = "speed"

    @property
    def title(self) -> str:
        other = ", against deepsparse sparse" if self.over == "over_deepsparse" else ""
        return f"{self.case.title}, {self.variant}{other}, {self.threads} thread{'s' * (self.threads > 1)}"

    def reached(self, cells: Cells) -> float | None:
        """What was measured; None where it was not."""
        return contender(cells, self.case, self.threads, f"ours {self.variant}").get(self.over)


def goals() -> Iterator[Goal]:
    """The table of issue 4."""
    ninety = Variant(0.9)
    for case in CONVOLUTIONS:
        last = case.name.endswith("-7")
        must, aim = (6, 7.5) if not last else (5, 7)
        yield Goal(case, ninety, must, aim)
        for rows in (4, 16):
            yield Goal(case, Variant(0.9, rows), 6.5 if last else 8, 9.5)
    yield Goal(CASES["linear-4096-4096-1-cold"], ninety, 6, 8)
    yield Goal(CASES["linear-4096-4096-8"], ninety, 3, 5)
    yield Goal(CASES["linear-4096-4096-128"], ninety, 5.5, 7)
    resnet = CASES["resnet_50"]
    yield Goal(resnet, ninety, 3.5, 4.5)
    yield Goal(resnet, ninety, 1.4, over="over_deepsparse")
    yield Goal(resnet, ninety, 3, 4, threads=2)


def contender(cells: Cells, case: Case, threads: int, name: str) -> dict[str, Any]:
    """What was measured of one contender; empty where it was not."""
    found: dict[str, Any] = cells.get((case.name, threads), {}).get("contenders", {}).get(name, {})
    return found


def machine(cell: Cell) -> str:
    """Where a part was measured: the processor, and the instructions that ours ran with."""
    instructions = re.search(r"\((\w+), \d+ threads?\)", cell.get("explained", ""))
    processor = cell["made"]["machine"].split(", Linux")[0]
    return f"{processor}, {instructions[1]}" if instructions else processor


# ---------------------------------------------------------------- tables


def goal_table(cells: Cells) -> str:
    """A row for each goal, and one for the slowest of all."""
    rows = []
    for goal in goals():
        reached, cell = goal.reached(cells), cells.get((goal.case.name, goal.threads))
        where = machine(cell) if cell else "–"
        rows.append(
            [goal.title, _times(reached), _times(goal.must), _times(goal.aim), _verdict(reached, goal.must, goal.aim), where]
        )
    ours = [
        (each["speed"], f"{CASES[name].title}, {label.removeprefix('ours ')}, threads: {threads}", machine(cell))
        for (name, threads), cell in cells.items()
        for label, each in cell["contenders"].items()
        if label.startswith("ours ") and not label.endswith(FORCED)
    ]
    if ours:
        least, what, where = min(ours)
        rows.append([f"slowest of {len(ours)}: {what}", _times(least), _times(SLOWEST), "", _verdict(least, SLOWEST, None), where])
    return markdown(["at 90 %", "times as fast as the fastest dense", "must", "aim", "", "machine"], rows)


def layer_table(cells: Cells, cases: Iterable[Case], threads: int) -> str:
    """A row for each layer: the fastest dense runtime, and how many times as fast ours is for each variant."""
    rows = []
    for case in cases:
        cell = cells.get((case.name, threads))
        if cell is None:
            continue
        best = cell["contenders"][cell["best"]]
        speeds = [_times(contender(cells, case, threads, f"ours {variant}").get("speed")) for variant in SHOWN]
        errors = [each["error"] for name, each in cell["contenders"].items() if name.startswith("ours ")]
        start = curve(case, cell).break_even()
        wins = "never" if start is None else f"{100 * start:.0f} %"
        error = f"{max(errors):.0e}" if errors else "–"
        rows.append([case.title, f"{cell['best']} {best['ms']:.3g}", *speeds, wins, error, machine(cell)])
    return markdown(["layer", "fastest dense, ms", *map(str, SHOWN), "wins from", "largest error", "machine"], rows)


def peer_table(cells: Cells, cases: Iterable[Case], threads: int) -> str:
    """A row for each case at its main sparsity: milliseconds of ours and of who is no plain float32 runtime."""
    rows = []
    for case in cases:
        cell = cells.get((case.name, threads))
        if cell is None:
            continue
        main = f"ours {case.main}"
        names = (cell["best"], main, f"deepsparse {case.main}", "deepsparse, dense", "int8, torch", "int8, ONNX Runtime")
        ms = [_ms(contender(cells, case, threads, name)) for name in names]
        over = _times(contender(cells, case, threads, main).get("over_deepsparse"))
        forced = [_times(contender(cells, case, threads, f"{main} {each}").get("speed")) for each in FORCED] if threads == 1 else []
        rows.append([case.title, str(case.main), *ms, over, *forced, machine(cell)])
    kinds = ["fastest dense", "ours", "deepsparse sparse", "deepsparse dense", "int8, torch", "int8, ONNX Runtime"]
    forced = [f"ours with {each}, times as fast as the fastest dense" for each in FORCED] if threads == 1 else []
    return markdown(["", "sparsity", *(f"{kind}, ms" for kind in kinds), "ours over deepsparse sparse", *forced, "machine"], rows)


def network_table(cells: Cells) -> str:
    """A row for each network and number of threads."""
    rows = []
    for case in NETWORKS:
        for threads in (1, 2):
            cell = cells.get((case.name, threads))
            if cell is None:
                continue
            main = f"ours {case.main}"
            ours = contender(cells, case, threads, main)
            names = ("torch", "torch, channels last", "torch, frozen", "ONNX Runtime", "OpenVINO", f"deepsparse {case.main}", main)
            ms = [_ms(contender(cells, case, threads, name)) for name in names]
            error = f"{ours['error']:.0e}" if ours else "–"
            seconds = f"{cell['compile_seconds']:.0f}" if "compile_seconds" in cell else "–"
            rows.append([case.title, str(case.main), threads, *ms, _times(ours.get("speed")), error, seconds, machine(cell)])
    columns = ("torch", "channels last", "frozen", "ONNX Runtime", "OpenVINO", "deepsparse sparse", "ours")
    headings = [
        "network",
        "sparsity",
        "threads",
        *(f"{name}, ms" for name in columns),
        "times as fast as the fastest dense",
        "error",
        "compiled in, s",
        "machine",
    ]
    return markdown(headings, rows)


def small_table(cells: Cells) -> str:
    """A row for each small network and sparsity: the dense runtimes, ours, what it runs, and whether it is slow beside the fastest."""
    names = ("torch", "torch, channels last", "torch, frozen", "ONNX Runtime", "OpenVINO")
    rows = []
    for case in SMALL:
        cell = cells.get((case.name, 1))
        if cell is None:
            continue
        dense = [_microseconds(contender(cells, case, 1, name)) for name in names]
        for variant in sorted(case.variants, key=lambda variant: variant.sparsity):
            ours = contender(cells, case, 1, f"ours {variant}")
            speed, chosen = ours.get("speed"), cell["chosen"].get(str(variant), "–")
            verdict = _verdict(speed, SLOWEST, None)
            rows.append([case.title, str(variant), *dense, _microseconds(ours), chosen, _times(speed), verdict, machine(cell)])
    headings = ("torch", "channels last", "frozen", "ONNX Runtime", "OpenVINO", "ours")
    return markdown(
        [
            "network",
            "sparsity",
            *(f"{name}, µs" for name in headings),
            "ours runs",
            "times as fast as the fastest dense",
            "",
            "machine",
        ],
        rows,
    )


def curve(case: Case, cell: Cell) -> Gains:
    """A layer's speed by sparsity."""
    found = ((each.sparsity, cell["contenders"].get(f"ours {each}")) for each in SHOWN if each.rows == 1)
    return Gains(case.title, tuple((sparsity, each["speed"]) for sparsity, each in found if each))


def absences(cells: Cells) -> str:
    """Who took no part, where and why."""
    places: dict[tuple[str, str], list[str]] = {}
    for (name, threads), cell in cells.items():
        for who, reason in cell["absent"].items():
            places.setdefault((who, reason), []).append(f"{name} ({threads})")
    return "\n".join(f"- {who}: {', '.join(where)}: {reason}" for (who, reason), where in sorted(places.items()))


def summary(cell: Cell) -> str:
    """A part in some lines, while the others are still being measured."""
    lines = [
        f"  {name}: {each['ms']:.3f} ms, {each['speed']:.2f}x, error {each['error']:.0e}"
        for name, each in cell["contenders"].items()
    ]
    return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in cell["absent"].items())])


# ---------------------------------------------------------------- the page


def report(cells: Cells, folder: Path) -> None:
    """Write the page and the chart beside the folder of the cells."""
    if not cells:
        raise SystemExit(f"there is nothing in {folder} to report on: measure first")
    parts = ["# The sparse runtime beside dense ones", _about(cells), "## Goals", goal_table(cells)]
    for threads in (1, 2):
        said = f"{threads} thread{'s' * (threads > 1)}"
        parts += [f"## Layers, {said}", layer_table(cells, (*CONVOLUTIONS, *LINEARS), threads)]
        parts += [
            f"At the main sparsity, beside who is no plain float32 runtime, {said}:",
            peer_table(cells, (case for case in CASES.values() if case.peers), threads),
        ]
    parts += ["## Networks", network_table(cells), "## Small networks, 1 thread, batch 1", small_table(cells)]
    curves = [curve(case, cells[case.name, 1]) for case in (*CONVOLUTIONS, *LINEARS) if (case.name, 1) in cells]
    curves = [each for each in curves if each.points]
    if curves:
        chart = folder.with_suffix(".png")
        draw(curves, chart, "Times as fast as the fastest dense runtime, one thread")
        parts += ["## Break-even", f"![Times as fast as the fastest dense runtime, by sparsity]({chart.name})"]
    if missing := absences(cells):
        parts += ["## Who took no part", missing]
    write(str(folder.resolve()), *parts)  # the page has the folder's name


def _about(cells: Cells) -> str:
    some = next(iter(cells.values()))
    versions = ", ".join(f"{name} {version}" for name, version in some["made"]["versions"].items())
    dates = sorted(cell["made"]["date"] for cell in cells.values())
    rounds = sorted({cell["rounds"] for cell in cells.values()})
    return (
        "`SECATEURS_DATA=… python benchmarks/runtime.py`. Milliseconds are medians of "
        f"at most {' or '.join(map(str, rounds))} rounds (at least three; fewer where a part would have taken longer than --seconds) "
        "in which all contenders of a row take turns in a shuffled order; times as fast are "
        "medians of the rounds' quotients against the fastest of torch (as it comes, channels last, frozen), ONNX Runtime and OpenVINO "
        "in float32, with the same weights, input and number of threads. Every call starts and ends with plain tensors, so packing and "
        f"unpacking of activations count. Each is warmed by unmeasured calls before each sample ({_warming(cells)}); “cold” "
        "empties the caches instead. Layers and networks have weights from He's distribution, removed at random, the same fraction "
        "everywhere (SqueezeNet: the authors' own; small networks: as they are made); what stays is scaled by the root of the fraction "
        "kept, and batch normalisations have the statistics of one batch. Images are 224 by 224 (SqueezeNet: 227), batch 1. The error is "
        "the largest difference from float64 as a part of the largest number of the output. “4x1” and “16x1” are blocks of output "
        "channels that share their places. "
        "deepsparse 1.8.0 has its own environment and process; its dense times stand for convolutions of the Winograd kind. int8 is "
        "dense with other, coarser numbers.\n\n"
        f"Measured {dates[0]} to {dates[-1]} with {versions}."
    )


def _warming(cells: Cells) -> str:
    """For how long, and which parts for longer."""
    usual = min(cell["settle"] for cell in cells.values())
    longer = {f"{name} with {threads} threads": cell["settle"] for (name, threads), cell in cells.items() if cell["settle"] > usual}
    return ", ".join([f"{1e3 * usual:.0f} ms", *(f"{part} {1e3 * settle:.0f} ms" for part, settle in longer.items())])


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _ms(found: Mapping[str, Any]) -> str:
    return f"{found['ms']:.3g}" if found else "–"


def _microseconds(found: Mapping[str, Any]) -> str:
    return f"{1e3 * found['ms']:.1f}" if found else "–"


def _verdict(reached: float | None, must: float, aim: float | None) -> str:
    if reached is None:
        return "not measured"
    if reached < must:
        return "**missed**"
    return "aim reached" if aim is not None and reached >= aim else "met"
