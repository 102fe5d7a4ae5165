"""DS-CNN made smaller without a training set: channels and blocks of weights go, what stays is solved anew on 200 words.

How much goes where follows from what each layer alone costs (`sc.sensitivity`, by how far the answers are from the dense network's).
Channels: optimal brain surgery on whole channels (`sc.ZipLM`), least squares for all that read them. Blocks of four inputs: the largest
stay, least squares for these; then each block of the network is fitted to what the dense one gives (`sc.reconstruct_`). Where a way is
"taught", the whole then learns the dense network's answers to the same words, shifted and mixed. No labels are used anywhere.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from firmware_networks import Published
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import Pattern, Solver

LEVELS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
POINTWISE = "*.pw"
MODELS = Path("build/microcontroller")
FITTED, TAUGHT = 600, 2000
"""Steps of Adam: for each block of the network, and for the whole."""


@dataclass(frozen=True)
class Way:
    """What is kept, by channels first (of the instructions), then by blocks (of the pointwise layers' multiplications); 1 is all."""

    channels: float = 1.0
    blocks: float = 1.0
    taught: bool = False

    @property
    def name(self) -> str:
        parts = [f"{name} {each:.2f}" for name, each in (("channels", self.channels), ("blocks", self.blocks)) if each < 1]
        return ", ".join([*parts, *(["taught"] if self.taught else [])]) or "dense"


WAYS = (
    Way(),
    *(Way(channels=keep / 100) for keep in range(90, 39, -5)),
    *(Way(blocks=keep / 100) for keep in range(95, 54, -5)),
    *(Way(keep / 100, taught=True) for keep in (65, 60, 55, 50, 45, 40)),
    *(Way(blocks=keep / 100, taught=True) for keep in (60, 50)),
    *(Way(channels / 100, blocks / 100, True) for channels, blocks in ((50, 80), (50, 60), (45, 60))),
)


def made(about: Published, way: Way) -> nn.Module:
    """The network made so small, or what an earlier call has made."""
    model, path = copy.deepcopy(about.model), MODELS / f"{way.name.replace(', ', '-').replace(' ', '_')}.safetensors"
    if path.exists():
        sc.load(path, model)
        return model.eval()
    task, masks = soft(about), None
    if way.channels < 1:
        plan = budgeted(model, sc.Channel(), sc.ZipLM(1e-2), sc.Budget(sc.instructions(), keep=way.channels), task)
        sc.shrink_(model, plan)
    if way.blocks < 1:
        solver, dense = sc.LeastSquares(sc.TopK(sc.magnitude()), 1e-2), copy.deepcopy(model)
        pattern, budget = sc.Vector("inputs", 4, tail="keep"), sc.Budget(sc.macs, keep=way.blocks)
        masks = budgeted(model, pattern, solver, budget, task, POINTWISE)
        if way.channels == 1:
            sc.reconstruct_(model, dense, task, masks=masks, steps=FITTED)
    if way.taught:
        teach(model, about.model, task, masks)
    path.parent.mkdir(parents=True, exist_ok=True)
    sc.save(model, path)
    return model.eval()


def soft(about: Published) -> sc.Task:
    """The calibration words in batches of 20, with what the dense network says of them in the place of labels."""
    with torch.no_grad():
        parts = [(x, about.model(x).softmax(1)) for words in about.calibration for x in words.split(20)]
    return sc.Task(about.task.example, calibration=parts, validation=parts, loss=nn.functional.cross_entropy)


def budgeted(model: nn.Module, pattern: Pattern, solver: Solver, budget: sc.Budget, task: sc.Task, only: Any = None) -> sc.Masks:
    """Prune to a budget, more where it harms less. BatchNorm's statistics stay: 200 words are not the training set's mixture, and with
    theirs the dense network itself loses 16 points."""
    found = sc.sensitivity(model, pattern, solver, task, keeps=LEVELS, by="loss", show=False, only=only)
    return sc.prune_(model, pattern, solver, found.allocator(budget), task, only=only, recalibrate=False)


def teach(model: nn.Module, dense: nn.Module, task: sc.Task, masks: sc.Masks | None) -> None:
    """All weights learn the dense network's answers to the calibration words, each time shifted, mixed and with other noise; BatchNorms
    stay as in use."""
    words = torch.cat([x for x, _ in task.calibration])  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TAUGHT)
    if masks is not None:
        masks.attach(optimizer)
    for _ in range(TAUGHT):
        x = varied(words[torch.randperm(len(words), generator=draw)[:50]], draw)
        with torch.no_grad():
            wanted = (dense(x) / 2).softmax(1)
        optimizer.zero_grad()
        nn.functional.kl_div((model(x) / 2).log_softmax(1), wanted, reduction="batchmean").backward()
        optimizer.step()
        cosine.step()


def varied(x: Tensor, draw: torch.Generator) -> Tensor:
    """Words (n, 1, frames, coefficients) up to four frames earlier or later, with up to 40 % of another, and noise."""
    moved = torch.stack(
        [each.roll(int(by), 1) for each, by in zip(x, torch.randint(-4, 5, (len(x),), generator=draw), strict=True)]
    )
    share = 0.4 * torch.rand(len(x), 1, 1, 1, generator=draw)
    mixed = (1 - share) * moved + share * moved[torch.randperm(len(x), generator=draw)]
    return mixed + torch.randn(x.shape, generator=draw)
