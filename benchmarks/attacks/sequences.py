"""Random sequences of all that may happen to a pruned model, after each of which no pruned weight has moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import secateurs as sc
from attacks.verdict import Verdict
from secateurs.types import SecateursError

CHECKS = 12
"""Steps of one sequence, each with a check."""

OPTIMIZERS: tuple[Callable[[Any], torch.optim.Optimizer], ...] = (
    lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01),
    lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
    lambda parameters: torch.optim.Adam(parameters, 0.01, amsgrad=True),
    lambda parameters: torch.optim.AdamW(parameters, 0.01),
    lambda parameters: torch.optim.NAdam(parameters, 0.01),
    lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5, centered=True),
    lambda parameters: torch.optim.Adagrad(parameters, 0.01),
    lambda parameters: torch.optim.Rprop(parameters, 0.01),
)


def make() -> nn.Module:
    """A small convolutional network with a residual block."""
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), _Residual(8), nn.Flatten(), nn.Linear(128, 3))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.within = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.within(x)


@dataclass
class _Loop:
    """A training loop of somebody's own, with masks."""

    chance: Random
    folder: Path
    model: nn.Module = field(default_factory=make)
    masks: sc.Masks = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    average: AveragedModel | None = None
    handle: Any = None

    def __post_init__(self) -> None:
        self.example = torch.randn(4, 2, 4, 4)
        self.masks = self.pruned(sc.Element(), None)
        self.another_optimizer()

    def pruned(self, pattern: Any, masks: sc.Masks | None) -> sc.Masks:
        allocate = sc.uniform(sparsity=self.chance.uniform(0.2, 0.8))
        return sc.prune_(self.model, pattern, sc.TopK(sc.magnitude()), allocate, sc.Task(self.example), masks=masks)

    def another_optimizer(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.optimizer = self.chance.choice(OPTIMIZERS)(self.model.parameters())
        self.handle = self.masks.attach(self.optimizer)

    def train(self) -> None:
        for _ in range(3):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.chance.random() < 0.5):
                loss = nn.functional.cross_entropy(self.model(torch.randn(4, 2, 4, 4)), torch.tensor([0, 1, 2, 0]))
            loss.backward()
            self.optimizer.step()

    def average_weights(self) -> None:
        if self.average is None:
            self.average = AveragedModel(self.model, multi_avg_fn=None, avg_fn=lambda old, new, _: 0.9 * old + 0.1 * new)
        self.average.update_parameters(self.model)
        self.masks.apply_(self.average)

    def prune_again(self) -> None:
        try:
            masks = self.pruned(sc.Element(), self.masks)
        except SecateursError:
            return  # less than is gone already
        self.masks.replace_(masks)
        if self.average is not None:
            self.masks.apply_(self.average)

    def save_and_load(self) -> None:
        path = self.folder / "model"
        sc.save(self.model, path, self.masks, sparse=self.chance.random() < 0.5)
        plain = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.fill_(1)
        self.model = sc.load(path, plain)
        self.masks, self.average = sc.load_masks(path, self.model), None
        self.another_optimizer()

    def load_optimizer(self) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))

    def shrink(self) -> None:
        try:
            masks = self.pruned(sc.Channel(), self.masks)
        except SecateursError:
            return  # nothing is left to be taken out
        self.masks.replace_(masks)
        sc.shrink_(self.model, self.masks, self.example, optimizer=self.optimizer)
        self.average = None

    def moved(self) -> list[str]:
        """Parameters of model and average of which a pruned weight is not +0.0 to the bit."""
        models = [self.model, *([self.average.module] if self.average is not None else [])]
        return [
            name
            for model in models
            for name, mask in self.masks.bind(model).items()
            if dict(model.named_parameters())[name].detach()[~mask].view(torch.int32).any()
        ]


def sequence(seed: str) -> Verdict:
    """One sequence; the same seed gives the same one."""
    chance, verdict = Random(seed), Verdict()
    torch.manual_seed(chance.randrange(2**31))
    with TemporaryDirectory() as folder:
        loop = _Loop(chance, Path(folder))
        ways = [loop.train] * 3 + [loop.average_weights, loop.another_optimizer, loop.prune_again, loop.save_and_load]
        ways += [loop.load_optimizer, loop.shrink]
        told: list[str] = []
        for _ in range(CHECKS):
            way = chance.choice(ways)
            told.append(way.__name__)
            try:
                way()
            except Exception as error:
                verdict.add("faults", f"{seed}: {', '.join(told)}: {type(error).__name__}: {error}")
                return verdict
            moved = loop.moved()
            verdict.add("checks", f"{seed}: {', '.join(told)}: moved in {moved}" if moved else None)
            verdict.counts["faults"] += bool(moved)
    verdict.add("sequences")
    return verdict
