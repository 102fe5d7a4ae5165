"""Latency as predicted before pruning, beside that of the model which was then really pruned and compiled.

python benchmarks/predict.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.models import resnet_20, vit
from secateurs.run.clock.timing import measure
from secateurs.run.compiled import compile
from secateurs.run.forecast.latency import latency
from secateurs.types import Pattern, Plan

THREADS = 1


def perceptron() -> nn.Module:
    """Four linear layers of 2048."""
    parts = [part for _ in range(4) for part in (nn.Linear(2048, 2048), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(2048, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "ResNet-20, 3x64x64": (resnet_20, torch.randn(1, 3, 64, 64)),
    "perceptron, 4 x 2048, one vector": (perceptron, torch.randn(1, 2048)),
    "transformer, 4 x 192, 64 tokens": (
        lambda: vit(classes=10, width=192, depth=4, heads=3, patch=4, image=32),
        torch.randn(1, 3, 32, 32),
    ),
}
CASES: list[tuple[Pattern, tuple[float, ...]]] = [
    (sc.Element(), (0.5, 0.75, 0.9, 0.96)),
    (sc.Block(4, 1, tail="keep"), (0.9,)),
    (sc.Channel(), (0.5,)),
]


def pruned(model: nn.Module, example: Tensor, pattern: Pattern, sparsity: float) -> tuple[nn.Module, Plan]:
    """A copy of the model, really pruned, and smaller where whole channels go; and the plan that it followed."""
    small = copy.deepcopy(model)
    masks = sc.prune_(small, pattern, sc.TopK(sc.random()), sc.uniform(sparsity=sparsity), sc.Task(example=example))
    if isinstance(pattern, sc.Channel):
        sc.shrink_(small, masks, example)
    assert masks.plan is not None
    return small, masks.plan


def rows_of(name: str) -> list[tuple[list[str], float]]:
    """A row for each pattern and sparsity, and how far the predicted speed-up is from the measured one."""
    build, example = MODELS[name]
    model = build().eval()
    dense = compile(model, example, threads=THREADS)
    rows = []
    for pattern, sparsities in CASES:
        for sparsity in sparsities:
            small, plan = pruned(model, example, pattern, sparsity)
            count = latency(None if isinstance(pattern, sc.Channel) else pattern, threads=THREADS).prepare(model, example)
            now, then = count(None), count(plan)
            fast = compile(small, example, threads=THREADS)
            calls = {"dense": partial(dense, example), "pruned": partial(fast, example)}
            timings = measure(calls, rounds=41, seconds=4, threads=THREADS)
            quickest = {name: 1e3 * min(timing.samples) for name, timing in timings.items()}
            speed = quickest["dense"] / quickest["pruned"]
            off = (now / then) / speed - 1
            milliseconds = [now, quickest["dense"], then, quickest["pruned"]]
            cells = [name, str(pattern), f"{100 * sparsity:g} %", *(f"{each:.2f}" for each in milliseconds)]
            rows.append(([*cells, f"{now / then:.2f}", f"{speed:.2f}", f"{100 * off:+.0f} %"], off))
            print(*rows[-1][0], sep=" | ", flush=True)
    return rows


def main() -> None:
    """Measure, and write the page."""
    torch.manual_seed(0)
    rows = [row for name in MODELS for row in rows_of(name)]
    headings = [
        "model",
        "pattern",
        "sparsity",
        "dense ms, predicted",
        "measured",
        "pruned ms, predicted",
        "measured",
        "speed-up, predicted",
        "measured",
        "deviation",
    ]
    largest = max(rows, key=lambda row: abs(row[1]))[0]
    about = (
        f"{THREADS} thread, batch 1, units removed at random, the same fraction of every layer. Predicted: `latency_ms` of the plan, "
        "before anything is pruned. Measured: the pruned model compiled, taking turns with the dense one compiled, the fastest of up "
        "to 41 rounds, since other work ran on the machine. The deviation is that of the speed-up.\n\n"
        f"Largest deviation: {largest[-1]} ({largest[0]}, {largest[1]}, {largest[2]})."
    )
    write(
        "predict", "# Latency predicted before pruning, and measured after it", about, markdown(headings, [row for row, _ in rows])
    )


if __name__ == "__main__":
    main()
