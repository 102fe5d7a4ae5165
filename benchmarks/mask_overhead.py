"""What keeping pruned weights at zero costs: training steps of ResNet-20 on CIFAR shapes with and without masks, interleaved.

python benchmarks/mask_overhead.py
"""

from __future__ import annotations

import time
from statistics import median

import torch
from tables import markdown, write
from torch import nn

import secateurs as sc
from secateurs.models import resnet_20

STEPS = 20


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), target).backward()
    optimizer.step()
    return time.perf_counter() - start


def measure(batch: int) -> list[str]:
    """One row: steps of a dense and of a masked copy take turns, so that both see the same machine."""
    inputs, target = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    dense, masked = resnet_20(), resnet_20()
    masks = sc.prune_(masked, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.9), sc.Task(example=inputs[:1]))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (dense, masked)]
    masks.attach(optimizers[1])
    times: list[list[float]] = [[], []]
    for step in range(STEPS + 5):
        for index in ((0, 1), (1, 0))[step % 2]:
            seconds = step_seconds((dense, masked)[index], optimizers[index], inputs, target)
            if step >= 5:
                times[index].append(seconds)
    overhead = median(b / a for a, b in zip(*times, strict=True)) - 1
    held = sum(mask.untyped_storage().nbytes() for mask in masks.values())
    weights = sum(mask.numel() for mask in masks.values())
    return [
        str(batch),
        f"{1e3 * median(times[0]):.1f}",
        f"{1e3 * median(times[1]):.1f}",
        f"{100 * overhead:+.1f} %",
        f"{held / weights:.0f}",
    ]


def main() -> None:
    """Measure, and write the page."""
    torch.manual_seed(0)
    headings = ["batch", "dense, ms a step", "masked, ms a step", "overhead (median of pairs)", "bytes of masks a weight"]
    rows = [measure(batch) for batch in (32, 128)]
    about = f"ResNet-20, 3x32x32 inputs, SGD with momentum, {torch.get_num_threads()} threads, {STEPS} pairs of steps in turn."
    write("mask_overhead", "# What masks cost while training", about, markdown(headings, rows))


if __name__ == "__main__":
    main()
