"""What the benchmarks on real images share: parts of the data, the published networks, and how they are fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.tasks import Batches
from secateurs.tasks.images import data_file


@dataclass(frozen=True)
class Part:
    """As many batches of a shuffled walk as hold the given number of images; each walk draws others."""

    batches: Batches
    images: int

    def __len__(self) -> int:
        return min(len(self.batches), math.ceil(self.images / self.batches.batch_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(iter(self.batches), len(self))


def batches_of(batches: Any, first: int, last: int, batch_size: int) -> Batches:
    """Images of a range, the same in each walk."""
    if not isinstance(batches, Batches):
        raise TypeError(f"expected Batches, not {type(batches).__name__}")
    return replace(batches, inputs=batches.inputs[first:last], targets=batches.targets[first:last], batch_size=batch_size)


def inside(name: str, module: nn.Module) -> bool:
    """Whether a layer is the first convolution of a block: its outputs are the channels that may go."""
    return name.startswith("layer") and name.endswith(".conv1")


def published(model: nn.Module, file: str) -> nn.Module:
    """A network with the weights of a file of the data folder."""
    found = load_file(data_file(file))
    model.load_state_dict(found, strict=False)
    missing = {name for name in model.state_dict().keys() - found.keys() if not name.endswith("num_batches_tracked")}
    if missing:
        raise sc.FileError(f"{file} has no {min(missing)}")
    return model


def tune(
    model: nn.Module,
    task: sc.Task,
    lr: float,
    epochs: int,
    checkpoint: Path | None = None,
    amp: torch.dtype | None = torch.bfloat16,
    masks: sc.Masks | None = None,
) -> None:
    """SGD with momentum, one cosine over all steps, bfloat16 mixed precision."""
    steps = len(task.train)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * steps)))
    task = replace(task, validation=None)  # it would cost time after each epoch
    sc.train_(model, task, optimizer, epochs, hooks=[cosine], amp=amp, checkpoint=checkpoint, show=False, masks=masks)
