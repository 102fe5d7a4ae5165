"""SparseGPT beside its authors' code, on one layer and one matrix of products: same masks, same weights, time and memory.

    git clone https://github.com/IST-DASLab/sparsegpt build/sparsegpt       # only to compare with, never a part of this
    python benchmarks/sparsegpt.py build/sparsegpt                          # about ten minutes on two cores
    python benchmarks/sparsegpt.py                                          # without it that half is left out

Each run is a process of its own with one thread, whose processor time other jobs on the machine lengthen little; ours and theirs take
turns, and medians are told. ``--size`` and ``--rounds`` set the budget.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.solve.reconstruct import GRAM
from secateurs.types import Pattern

BLOCK = 128
PATTERNS: dict[str, Pattern] = {"half of the weights": sc.Element(), "2:4": sc.NofM(2, 4)}


def prepare(size: int, where: Path) -> None:
    """A layer, and the products of inputs whose features tell about each other."""
    torch.manual_seed(0)
    x = torch.randn(size + size // 4, size)
    x += 0.8 * x.roll(1, 1) + 0.6 * x.roll(7, 1) + torch.randn(len(x), 32) @ torch.randn(32, size) / 4
    torch.save({"weight": torch.randn(size, size) / size**0.5, "gram": x.T @ x / len(x)}, where)


def kept_of(pattern: str, size: int) -> int:
    """As many as the reference keeps: of every block it removes one weight more than half."""
    if pattern == "2:4":
        return size * size // 2
    return size * size - sum(size * min(BLOCK, size - start) // 2 + 1 for start in range(0, size, BLOCK))


def ours(weight: Tensor, gram: Tensor, pattern: str) -> tuple[Any, Any]:
    """What is timed, and where the weights are afterwards."""
    size = len(weight)
    layer = nn.Linear(size, size, bias=False)
    layer.weight.data = weight
    full = torch.zeros(1, size + 1, size + 1)
    full[0, :size, :size], full[0, -1, -1] = gram, 1.0
    (site,) = sc.find_sites(layer, PATTERNS[pattern], only="*")
    solver, kept = sc.SparseGPT(block=BLOCK), kept_of(pattern, size)
    return lambda: solver(site, kept, {"weight": {GRAM: full}}).weights["weight"], None


def theirs(weight: Tensor, gram: Tensor, pattern: str, checkout: Path) -> tuple[Any, Any]:
    """The same with the authors' class, which reports to a GPU that is not there."""
    sys.path.insert(0, str(checkout))
    torch.cuda.synchronize = lambda *_: None
    layer = nn.Linear(len(weight), len(weight), bias=False)
    layer.weight.data = weight.clone()
    solver = import_module("sparsegpt").SparseGPT(layer)
    solver.H, solver.nsamples = 2 * gram, 1
    how = {"sparsity": 0.5} if pattern != "2:4" else {"sparsity": 0.0, "prunen": 2, "prunem": 4}
    return lambda: solver.fasterprune(**how, blocksize=BLOCK, percdamp=0.01), layer


def peak() -> float:
    """The most memory that this process has held, MiB; what `resource` tells counts what held its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def child(data: Path, who: str, pattern: str, checkout: str, out: str) -> None:
    """One run, in this process; prints what it took."""
    torch.set_num_threads(1)
    tensors = torch.load(data, weights_only=True)
    arguments = (tensors["weight"], tensors["gram"], pattern)
    run, layer = ours(*arguments) if who == "ours" else theirs(*arguments, Path(checkout))
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = peak()
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = peak() - before
    torch.save((found if layer is None else layer.weight).detach(), out)
    print("RESULT " + json.dumps({"wall": wall, "cpu": cpu, "mib": memory}))


def measured(
    data: Path, contenders: list[str], pattern: str, checkout: str, rounds: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Medians of each, taking turns."""
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in contenders}
    for turn in range(rounds):
        for who in contenders[:: 1 if turn % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--child", str(data), who, pattern, checkout, str(folder / f"{who}.pt")]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[who].append(json.loads(output.rpartition("RESULT ")[2].splitlines()[0]))
            print(pattern, who, runs[who][-1], flush=True)
    return {who: {key: statistics.median(run[key] for run in each) for key in each[0]} for who, each in runs.items()}


def agreement(tensors: dict[str, Tensor], folder: Path) -> str:
    """How many entries of the masks differ, by how much the weights do where they agree, and what each changed."""
    one, other = (torch.load(folder / f"{who}.pt", weights_only=True) for who in ("ours", "reference"))
    same = (one != 0) == (other != 0)
    apart = ((one - other).abs() * same).max() / other.abs().max()
    gram, dense = tensors["gram"].double(), tensors["weight"].double()

    def change(weight: Tensor) -> float:
        moved = weight.double() - dense
        return float(((moved @ gram) * moved).sum() / ((dense @ gram) * dense).sum())

    ratio = change(one) / change(other)
    return (
        f"{int((~same).sum()):,} of {same.numel():,} entries of the masks differ; where they agree the weights differ by at most "
        f"{float(apart):.0e} of the largest; the answers change by {ratio:.6f} times as much."
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", help="where the authors' repository is")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    contenders = ["ours", *(["reference"] if arguments.checkout else [])]
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments.size, folder / "data.pt")
        tensors = torch.load(folder / "data.pt", weights_only=True)
        for pattern in PATTERNS:
            found = measured(folder / "data.pt", contenders, pattern, arguments.checkout or "", arguments.rounds, folder)
            for who, each in found.items():
                faster = [f"{found['reference'][key] / each[key]:.1f}" if "reference" in found else "" for key in ("wall", "cpu")]
                rows.append([pattern, who, f"{each['wall']:.1f}", faster[0], f"{each['cpu']:.1f}", faster[1], f"{each['mib']:.0f}"])
            if "reference" in found:
                notes.append(f"{pattern}: {agreement(tensors, folder)}")
    about = (
        f"One linear layer of {arguments.size} × {arguments.size} in float32, blocks of {BLOCK} columns, damping 0.01; from the products "
        f"of the inputs on. Medians of {arguments.rounds} runs, each in a process of its own with one thread, taking turns; other jobs "
        "loaded the machine, so that processor time says more than seconds. Memory is what the peak lies above that "
        "of a process that holds the layer and the products."
    )
    if not arguments.checkout:
        notes.append("The reference was not given, so that half is left out.")
    headings = ["pattern", "", "seconds", "times as fast", "processor seconds", "times as few", "memory, MiB"]
    write("sparsegpt", "# SparseGPT beside its authors' code", about, markdown(headings, rows), *notes)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), *sys.argv[3:])
    else:
        main()
