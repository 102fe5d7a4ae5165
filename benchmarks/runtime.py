"""The sparse CPU runtime beside torch, ONNX Runtime, OpenVINO and deepsparse: single layers and whole networks.

    pip install --no-deps --target build/bench openvino==2026.4.1 openvino-telemetry   # only for the benchmarks
    python benchmarks/runtime.py --install                      # an environment for deepsparse 1.8.0, under build/
    SECATEURS_DATA=... python benchmarks/runtime.py             # everything; goes on where it was stopped
    python benchmarks/runtime.py --only 'conv*' resnet_50       # parts of it, by name or glob
    python benchmarks/runtime.py --report                       # only the page, from what is there

A part is a layer or a network with one number of threads, measured in one run in which all contenders take turns, those in other
processes too (deepsparse; ours with AVX2 or without any extension, which is decided when a process starts). Parts that were measured
with the same ``--rounds`` are not measured again, except with ``--again``. Nothing else should run on the machine meanwhile.

Weights are drawn from He's distribution, and removed at random, the same fraction of every layer; what stays is scaled by the root of
the fraction kept, and batch normalisations get the statistics of one batch, so that signals neither vanish nor explode.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from speed.cases import CASES, Case
from speed.contenders import BUILD, FORCED, INT8, Process, deepsparse, forced, install_deepsparse
from speed.page import Cell, report, summary
from tables import RESULTS
from torch import Tensor

from secateurs.report import environment
from secateurs.run.clock.backends import DENSE, Absent, Backend, Runner
from secateurs.run.clock.timing import Timing, interleaved, sampler, settling, torch_threads
from secateurs.run.forecast.bench import exact_answers, relative_error, sparse

CELLS = RESULTS / "runtime"


# ---------------------------------------------------------------- one part


class Field:
    """The contenders of one part, added one by one, and then measured together."""

    def __init__(self, case: Case, threads: int) -> None:
        self.case, self.threads, self.inputs = case, threads, case.inputs()
        self.samplers: dict[str, Any] = {}
        self.errors: dict[str, float] = {}
        self.absent: dict[str, str] = {}

    def add(self, name: str, found: Runner | Process | Absent, exact: list[Tensor]) -> None:
        """Take in a contender whose answers should be these."""
        if isinstance(found, Absent):
            self.absent[name] = found.reason
        elif isinstance(found, Process):
            self.samplers[name], self.errors[name] = found.sample, relative_error(found.outputs, exact)
        else:
            self.errors[name] = relative_error(found(self.inputs), exact)
            run = partial(found, self.inputs)
            self.samplers[name] = sampler(run, cold=self.case.cold, settle=settling(self.threads))


def tried(backend: Backend, *arguments: Any) -> Runner | Absent:
    """What a back end makes, or what went wrong: one that fails is told on the page, and the others go on."""
    try:
        return backend(*arguments)
    except Exception as error:
        return Absent(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")


def measured(case: Case, threads: int, rounds: int, seconds: float) -> Cell:
    """All contenders of a case in one run."""
    field, main, start = Field(case, threads), case.main, time.perf_counter()
    said: Cell = {"chosen": {}}
    with torch_threads(threads), ExitStack() as stack:
        model = case.pruned(main)
        exact = exact_answers(model, field.inputs)
        for name, backend in {**DENSE, **(INT8 if case.peers else {})}.items():
            field.add(name, tried(backend, model, field.inputs, threads), exact)
        for variant in case.variants:
            pruned, begun = case.pruned(variant), time.perf_counter()
            fast = tried(sparse, pruned, field.inputs, threads)
            if not isinstance(fast, Absent):
                explained = fast.explain()  # type: ignore[attr-defined]
                said["chosen"][str(variant)] = explained.chosen
                if variant == main:
                    said |= {"compile_seconds": time.perf_counter() - begun, "explained": str(explained)}
            field.add(f"ours {variant}", fast, exact_answers(pruned, field.inputs))
        dense = case.dense()
        for name, weights in (("deepsparse, dense", dense), (f"deepsparse {main}", model)) if case.peers else ():
            found = stack.enter_context(deepsparse(weights, field.inputs, threads, case.cold))
            field.add(name, found, exact if weights is model else exact_answers(dense, field.inputs))
        for instructions in FORCED if threads == 1 and case.peers else ():
            found = stack.enter_context(forced(case, main, instructions, threads))
            field.add(f"ours {main} {instructions}", found, exact)
        timings = interleaved(field.samplers, rounds, seconds)
    return {**cell_of(field, timings), **said, "rounds": rounds, "seconds": time.perf_counter() - start}


def cell_of(field: Field, timings: dict[str, Timing]) -> Cell:
    """What is written down about a part."""
    best = min((name for name in DENSE if name in timings), key=lambda name: timings[name].median)
    other = f"deepsparse {field.case.main}"
    contenders = {
        name: {
            "ms": 1e3 * timing.median,
            "quartiles": [1e3 * quartile for quartile in timing.quartiles],
            "speed": timing.speed_over(timings[best]),
            "over_deepsparse": timing.speed_over(timings[other]) if other in timings else None,
            "error": field.errors[name],
        }
        for name, timing in timings.items()
    }
    return {
        "case": field.case.name,
        "threads": field.threads,
        "settle": settling(field.threads),
        "best": best,
        "contenders": contenders,
        "absent": field.absent,
        "made": made(),
    }


def made() -> dict[str, Any]:
    """Versions, machine and date of a part."""
    versions, machine, date = environment()
    for package in ("onnxruntime", "openvino"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "(not installed)"
    return {"versions": versions, "machine": machine, "date": date}


# ---------------------------------------------------------------- all parts


def cells(folder: Path) -> dict[tuple[str, int], Cell]:
    """What was measured so far."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {(cell["case"], cell["threads"]): cell for cell in found}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], help=f"parts, by name or glob: {', '.join(CASES)}")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=240, help="rounds become fewer where a part would take longer")
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder for the measured parts")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    parser.add_argument("--install", action="store_true", help="only make the environment for deepsparse")
    parser.add_argument("--report", action="store_true", help="only write the page")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, part by part, then write the page."""
    given = options()
    sys.path.append(str(BUILD / "bench"))
    if given.install:
        install_deepsparse()
        return
    given.cells.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES.values() if any(fnmatch(case.name, glob) for glob in given.only)]
    if not chosen:
        sys.exit(f"--only {' '.join(given.only)} names no part; there are {', '.join(CASES)}")
    for case in chosen if not given.report else ():
        for threads in given.threads:
            done = cells(given.cells).get((case.name, threads))
            if done and done["rounds"] == given.rounds and not given.again:
                continue
            cell = measured(case, threads, given.rounds, given.seconds)
            (given.cells / f"{case.name}-{threads}.json").write_text(json.dumps(cell, indent=1) + "\n")
            print(f"{case.name}, {threads} threads: {cell['seconds']:.0f} s", summary(cell), sep="\n", flush=True)
    report(cells(given.cells), given.cells)


if __name__ == "__main__":
    main()
