"""Han, Mao & Dally 2016: Deep Compression, pruned, with trained shared values, entropy coded (1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.compressing import Shared, compress, share_
from secateurs.methods.han import iterative_magnitude_
from secateurs.patterns import Selection
from secateurs.recover import train_
from secateurs.types import Run, Task


def deep_compression_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    bits: int | Mapping[str, int] = 5,
    rounds: int = 10,
    epochs_per_round: int = 2,
    last_epochs: int = 0,
    epochs: int = 2,
    path: str | Path | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> tuple[Run, Shared]:
    """Prune a trained model in rounds, share what is left among 2 ** `bits` values a layer, train these for `epochs`, and write the file.

    `iterative_magnitude_` prunes and `share_` starts evenly over the range, as the paper does; ``bits`` may differ by layer (8 for
    convolutions and 5 for linear layers there). `compress` writes the model to ``path``, if there is one, with Huffman coding or whatever
    is smaller. Returns the run of the values, whose masks are those of the pruning, and their levels. ``training`` goes to both trainings.

    >>> from secateurs.tasks import digits
    >>> model, task = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), digits()
    >>> adam = torch.optim.Adam(model.parameters())
    >>> run, shared = deep_compression_(model, task, adam, sparsity=0.9, bits=3, rounds=1, epochs_per_round=1, epochs=1)
    >>> run.masks.sparsity > 0.89, {size.values for size in shared.sizes.values()}
    (True, {8})
    """
    pruning: dict[str, Any] = {"rounds": rounds, "epochs_per_round": epochs_per_round, "last_epochs": last_epochs, **training}
    pruned = iterative_magnitude_(model, task, optimizer, sparsity=sparsity, only=only, skip=skip, **pruning)
    shared = share_(model, bits, masks=pruned.masks, start="linear", only=only, skip=skip, example=task.example)
    run = train_(model, task, optimizer, epochs, masks=pruned.masks, hooks=[shared], **training)
    if path is not None:
        compress(model, path, run.masks, levels=shared.levels)
    return run, shared
