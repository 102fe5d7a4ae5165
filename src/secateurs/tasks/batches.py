"""Minibatches from tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.types import SecateursError


@dataclass(frozen=True, eq=False, repr=False)
class Batches:
    """Walks through ``inputs`` and ``targets``, ``(n, ...)`` each, in minibatches ``(inputs, target)``, as often as one likes.

    ``shuffle`` draws a new order for each walk from torch's global CPU generator, so that a loop that saves and restores the
    state of that generator sees the same batches again. ``augment`` maps the inputs of each batch to what is handed out. The
    last batch may be smaller. Without shuffling, batches are views: do not write into them. Raises `SecateursError` where there
    is nothing to walk through, where the two lengths differ, or where the batch size is not a positive integer.

    >>> batches = Batches(torch.arange(5), torch.arange(5) % 2, batch_size=2)
    >>> len(batches), [inputs.tolist() for inputs, target in batches]
    (3, [[0, 1], [2, 3], [4]])
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int = 128
    shuffle: bool = False
    augment: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or self.targets.ndim == 0 or len(self.inputs) != len(self.targets):
            given = f"inputs {tuple(self.inputs.shape)}, targets {tuple(self.targets.shape)}"
            raise SecateursError(f"Batches: {given}: the first dimensions must be equal, one entry a sample")
        if len(self.inputs) == 0:
            raise SecateursError(f"Batches: inputs {tuple(self.inputs.shape)} hold no sample: give at least one")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise SecateursError(f"Batches(batch_size={self.batch_size!r}): the batch size must be a positive integer")

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs), device="cpu") if self.shuffle else None
        for start in range(0, len(self.inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = part if order is None else order[part]
            inputs = self.inputs[chosen]
            yield self.augment(inputs) if self.augment else inputs, self.targets[chosen]
