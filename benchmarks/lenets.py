"""What the benchmarks on LeNets share: images that are shifted, dense networks, parameters that are there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import secateurs as sc
from secateurs.types import Allocator


@dataclass(frozen=True)
class Shifted:
    """Training batches, each moved by up to one pixel in both directions: as many more images, without which 60,000 are learnt by heart."""

    batches: Collection[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, target in self.batches:
            down, right = torch.randint(0, 3, (2,)).tolist()
            padded = functional.pad(inputs, (1, 1, 1, 1), value=float(inputs.min()))
            yield padded[:, :, down : down + 28, right : right + 28], target


class Ensemble(nn.Module):
    """Several networks, whose outputs are averaged."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(0)


def channels_last(model: nn.Module) -> nn.Module:
    """The same model with its convolutions' weights in the order that is fastest on a CPU."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def error(model: nn.Module, task: sc.Task) -> float:
    """Test error in per cent."""
    return 100 * (1 - sc.evaluate(model, task, task.test))


def there(model: nn.Module) -> int:
    """The parameters that are not zero, biases included."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def cut_(
    model: nn.Module,
    task: sc.Task,
    limit: int,
    allocate: Callable[..., Allocator],
    masks: sc.Masks | None = None,
    criterion: sc.Criterion | None = None,
) -> sc.Masks:
    """Prune in place until at most `limit` parameters are there, biases included, once neurons that are cut off are gone as well.

    Where neurons die, their biases make room for weights: how many weights stay is searched on copies.
    """
    solver = sc.TopK(criterion or sc.magnitude())
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)

    def pruned_(pruned: nn.Module, kept: int) -> sc.Masks:
        before = None if masks is None else masks.bind(pruned)
        found = sc.prune_(pruned, sc.Element(), solver, allocate(keep=kept / weights), task, masks=before)
        sc.zero_dead_(pruned, found, task.example)
        return found

    low, high = 1, min(limit, weights)
    while high - low > max(1, limit // 500):
        middle = (low + high) // 2
        trial = copy.deepcopy(model)
        pruned_(trial, middle)
        low, high = (middle, high) if there(trial) <= limit else (low, middle)
    return pruned_(model, low)
