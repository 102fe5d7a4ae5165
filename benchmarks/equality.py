"""Random networks, pruned at random and shrunk: is there an input at which the small one answers otherwise than the masked one?

    python benchmarks/equality.py                    # 20,000 networks; goes on where it was stopped
    python benchmarks/equality.py --networks 1000    # fewer
    python benchmarks/equality.py --processes 2

Networks of up to thirty operations (convolutions of all kinds, gates over channels, places and samples, attention, normalisations, pooling,
padding, interpolation, concatenations, residuals, recurrent layers, …), some BatchNorm scales and biases at zero, lose 50 to 98 % of their
single weights, kernels, 2 x 2 blocks, filters or channels. What `shrink_` makes of them is compared in float64 with the masked network at
fresh inputs three times as large as the example, of three batch sizes and of up to three other sizes of image or sequence, where the masked
network takes them. `tests/random_pruning.py SEED` shows one network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tables import RESULTS, markdown, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CHUNK = 100
HEADINGS = (
    "pattern",
    "networks",
    "shrunk",
    "refused",
    "compared at",
    "parameters left",
    "units folded",
    "layers taken out",
    "wrong",
)


def chunk(first: int) -> dict[str, Any]:
    """The outcomes of some seeds, added up by pattern."""
    outcome: Any = import_module("random_pruning").outcome  # the tests' folder is found at run time

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, Counter[str]] = {}
    wrong = []
    for seed in range(first, first + CHUNK):
        found = outcome(seed)
        before, after = found.parameters
        rows.setdefault(found.pattern, Counter()).update(
            networks=1,
            shrunk=not found.nothing,
            refused=bool(found.nothing),
            asked=found.asked,
            before=before,
            after=after,
            folded=found.folded,
            layers=found.layers,
            wrong=found.wrong,
        )
        wrong += [asdict(found)] if found.wrong else []
    return {"first": first, "rows": rows, "wrong": wrong}


def page(chunks: list[dict[str, Any]], seconds: float) -> str:
    """The table, and the sums in words."""
    rows: dict[str, Counter[str]] = {}
    for each in chunks:
        for pattern, counts in each["rows"].items():
            rows.setdefault(pattern, Counter()).update(counts)
    table = [
        (
            pattern,
            f"{row['networks']:,}",
            f"{row['shrunk']:,}",
            f"{row['refused']:,}",
            f"{row['asked']:,} inputs",
            f"{row['after'] / max(1, row['before']):.0%}",
            f"{row['folded']:,}",
            f"{row['layers']:,}",
            f"{row['wrong']:,}",
        )
        for pattern, row in sorted(rows.items())
    ]
    whole = sum(rows.values(), Counter[str]())
    wrong = [each for one in chunks for each in one["wrong"]]
    lines = "".join(
        f"\n- seed {each['seed']}, {each['pattern']}: off by {each['worst']:.1e} of the largest answer" for each in wrong
    )
    return (
        f"{whole['networks']:,} networks, {whole['shrunk']:,} of them shrunk (the others have nothing that the pattern fits, which is an "
        f"error that says so), compared at {whole['asked']:,} inputs: **{whole['wrong']:,} wrong answers** (more than 1e-8 of the largest "
        f"number, in float64).{lines}\n\n{markdown(HEADINGS, table)}\n\n{seconds / 3600:.1f} hours of one core.\n"
    )


def main() -> None:
    """Try the networks that are still to be tried, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="forget what was found before")
    given = parser.parse_args()
    kept = RESULTS / "equality.json"
    state: dict[str, Any] = {"seconds": 0.0, "chunks": []}
    if kept.exists() and not given.again:
        state = json.loads(kept.read_text())
    done = {each["first"] for each in state["chunks"]}
    waiting = [first for first in range(0, given.networks, CHUNK) if first not in done]
    with ProcessPoolExecutor(given.processes) as pool:
        start = time.perf_counter()
        for number, found in enumerate(pool.map(chunk, waiting), start=1):
            now = time.perf_counter()
            state["chunks"].append(found)
            state["seconds"] += (now - start) * given.processes
            start = now
            kept.write_text(json.dumps(state))
            wrong = sum(len(each["wrong"]) for each in state["chunks"])
            print(f"{number * CHUNK:,} of {len(waiting) * CHUNK:,} networks; {wrong} wrong", flush=True)
    write("equality", "# Shrunk networks against masked ones", page(state["chunks"], state["seconds"]))


if __name__ == "__main__":
    main()
