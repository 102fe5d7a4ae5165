"""One threshold over 10⁸ weights: ours against torch.nn.utils.prune.global_unstructured, time and extra memory.

python benchmarks/global_selection.py

Each run is a process of its own, the two take turns, and the extra memory is the peak of the process above what it held before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from tables import markdown, write
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateurs as sc

LAYERS, SIZE = 10, 3163  # 10 x 3163² = 100,045,690 weights
SPARSITY = 0.9
RUNS = 3


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def one_run(which: str) -> dict[str, float]:
    """Prune a fresh model, and tell seconds and extra bytes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS)))
    model(torch.zeros(1, SIZE))  # whatever torch allocates once is not counted
    before, start = held_bytes(), time.perf_counter()
    if which == "ours":
        allocate = sc.global_threshold(sparsity=SPARSITY)
        masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), allocate, sc.Task(example=torch.zeros(1, SIZE)))
        kept = masks.kept
    else:
        layers = [(layer, "weight") for layer in model]
        torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=SPARSITY)
        kept = sum(int(torch.count_nonzero(mask)) for name, mask in model.named_buffers() if name.endswith("weight_mask"))
    return {"seconds": time.perf_counter() - start, "bytes": peak_bytes() - before, "kept": kept}


def main() -> None:
    """Take turns, and write the page."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
    for _ in range(RUNS):
        for which, results in found.items():
            output = subprocess.run([sys.executable, __file__, which], check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output))
    seconds = {which: median(result["seconds"] for result in results) for which, results in found.items()}
    memory = {which: median(result["bytes"] for result in results) for which, results in found.items()}
    faster = median(theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found["ours"], found["torch"], strict=True))
    rows = [
        [name, f"{seconds[which]:.2f}", f"{memory[which] / 2**20:,.0f}", f"{found[which][0]['kept']:,.0f}"]
        for which, name in (("ours", "`prune_(…, global_threshold(…))`"), ("torch", "`torch.nn.utils.prune.global_unstructured`"))
    ]
    about = (
        f"{LAYERS} linear layers, {LAYERS * SIZE**2:,} float32 weights, sparsity {SPARSITY}, {torch.get_num_threads()} threads, medians "
        f"of {RUNS} processes each, in turn: **{faster:.1f}x as fast, {memory['ours'] / memory['torch']:.2f} of the extra memory**, "
        "masks included."
    )
    write("global_selection", "# Global selection at scale", about, markdown(["", "seconds", "extra MiB", "weights kept"], rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_run(sys.argv[1])))
    else:
        main()
