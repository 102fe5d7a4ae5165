"""A random network, pruned at random and shrunk: does it answer as the masked one does, whatever it is asked?

python tests/random_pruning.py 1234   # says what becomes of the network of that seed
"""

from __future__ import annotations

import copy
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

import secateurs as sc
from secateurs.allocate import plan_of

sys.path.insert(0, str(Path(__file__).parent))

from random_networks import flat, network

PATTERNS: dict[str, tuple[Any, Any, int]] = {
    "single weights": (sc.Element(), (), 0),
    "filters": (sc.Filter(), (), 1),
    "kernels": (sc.Kernel(), lambda name, module: not isinstance(module, _ConvNd), 0),
    "blocks of 2 x 2": (sc.Block(2, 2), lambda name, module: _odd(getattr(module, "weight", None)), 0),
    "channels": (sc.Channel(), None, 1),
}
"""Pattern, what it skips, and how many units stay at least."""


def _odd(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.ndim > 1 and bool(weight.shape[0] % 2 or weight.shape[1] % 2)


def _each(sparsity: float, least: int) -> sc.types.Allocator:
    """That fraction of each site, or as much of it as there are units to lose."""

    def allocate(sites: sc.types.Sites, scores: Any) -> sc.Plan:
        contests = {site.name: site.contest_count for site in sites}
        keep = {site.name: max(least, round((1 - sparsity) * site.units / site.contest_count)) for site in sites}
        return plan_of(sites, {name: contests[name] * each for name, each in keep.items()})

    return allocate


@dataclass(frozen=True)
class Outcome:
    """What became of one network: ``worst`` is the largest difference at any input, as a part of the largest number."""

    seed: int
    pattern: str
    sparsity: float = 0.0
    folded: int = 0
    layers: int = 0
    parameters: tuple[int, int] = (0, 0)
    asked: int = 0
    worst: float = 0.0
    nothing: str = ""

    @property
    def wrong(self) -> bool:
        return not self.worst < 1e-8


def outcome(seed: int) -> Outcome:
    """Prune the network of a seed, shrink it, and compare it with the masked one at other inputs, batch sizes and image sizes."""
    draw = random.Random(seed)
    pattern = draw.choice(list(PATTERNS))
    sparsity = draw.choice((0.5, 0.7, 0.9, 0.95, 0.98))
    model, example = network(seed, literals=False)
    model, example = model.double(), example.double()[: draw.choice((1, 2))]
    _silence_(model, draw)
    units, skip, least = PATTERNS[pattern]
    try:
        solver, task = sc.TopK(sc.random(seed)), sc.Task(example=example)
        masks = sc.prune_(model, units, solver, _each(sparsity, least), task, skip=skip)
    except sc.SecateursError as problem:
        return Outcome(seed, pattern, sparsity, nothing=str(problem).splitlines()[0])
    masked = copy.deepcopy(model)
    try:
        shrunk = sc.shrink_(model, masks)
    except sc.SecateursError as problem:
        return Outcome(seed, pattern, sparsity, nothing=str(problem).splitlines()[0])
    differences = [_difference(masked, model, x) for x in _inputs(example, seed)]
    found = [each for each in differences if each is not None]
    return Outcome(
        seed, pattern, sparsity, shrunk.folded, len(shrunk.layers), shrunk.parameters, len(found), max(found, default=0.0)
    )


@torch.no_grad()
def _silence_(model: nn.Module, draw: random.Random) -> None:
    """Some BatchNorm scales at zero, as network slimming leaves them, and some biases."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None and draw.random() < 0.5:
            module.weight[[channel for channel in range(len(module.weight)) if draw.random() < 0.4]] = 0
    for name, parameter in model.named_parameters():
        if "bias" in name and draw.random() < 0.4:
            parameter.zero_()


def _inputs(example: Tensor, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = list(example.shape)
    shapes = [shape, [3, *shape[1:]], [1, *shape[1:]]]
    if len(shape) == 4:
        shapes += [
            [2, shape[1], h, w] for h, w in ((shape[2] + 1, shape[3]), (2 * shape[2], 2 * shape[3]), (shape[2] + 3, shape[3] + 2))
        ]
    if len(shape) == 3:
        shapes += [[2, length, shape[2]] for length in (shape[1] + 1, 2 * shape[1], 3)]
    return [3 * torch.randn(each, generator=generator, dtype=example.dtype) for each in shapes]


class _SameLengths(TorchFunctionMode):
    """Attention refuses values that are fewer than the keys: torch reads what lies behind them, whatever it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and args[1].shape[-2] != args[2].shape[-2]:
            raise ValueError("as many values as keys are needed")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _difference(masked: nn.Module, small: nn.Module, x: Tensor) -> float | None:
    """The largest difference of the answers; ``None`` where the masked model does not take such an input, or mixes its samples."""
    try:
        with _SameLengths():
            expected = flat(masked(x))
    except Exception:
        return None
    if any(tensor.shape[:1] != x.shape[:1] or not tensor.isfinite().all() for tensor in expected):
        return None
    try:
        found = flat(small(x))
    except Exception:  # the masked one does take it
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1e-6)))
    return worst if worst == worst else float("inf")


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        print(outcome(seed))
