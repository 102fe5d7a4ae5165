"""The trial that every subject stands: half of each site goes, and what is left must compute what the masked model computes."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.forward import call
from secateurs.graph import analyse
from secateurs.nested import changed, tensors_in
from secateurs.patterns.axes import coupled_sites
from zoo.subject import Subject

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4}
"""The largest difference, as a part of the largest number, that is rounding; models in float64 compute some things in float32."""


@dataclass
class Outcome:
    """What became of one subject: sites, what was left alone and why, and whether the small model is the masked one."""

    name: str
    family: str
    exact: int = 0
    approximate: int = 0
    pinned: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    parameters: tuple[int, int] = (0, 0)
    difference: float | None = None
    double: bool = False
    reloaded: bool = False
    put_back: tuple[sc.types.Skipped, ...] = ()
    seconds: float = 0.0
    nothing: bool = False
    failure: str = ""

    @property
    def same(self) -> bool:
        """Whether the small model's answers are the masked one's."""
        return self.difference is not None and self.difference <= TOLERANCE[torch.float64 if self.double else torch.float32]


def halve(subject: Subject) -> Outcome:
    """Remove half of each site of a subject, and compare; what goes wrong is the outcome's failure."""
    outcome = Outcome(subject.name, subject.family)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try_halving(subject, outcome)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        outcome.failure = f"{type(error).__name__}: {first}"
    return outcome


def try_halving(subject: Subject, outcome: Outcome) -> None:
    """Fill in the outcome of one subject; raises whatever goes wrong."""
    model, example = subject.make(), subject.example()
    start = time.perf_counter()
    sites = coupled_sites(model, sc.Channel(), example, analyse(model, example))  # find_sites would raise where there are none
    outcome.seconds = time.perf_counter() - start
    outcome.exact = len(sites)
    for item in sites.skipped:
        if item.reason.startswith("approximate: "):
            outcome.approximate += 1
        elif not item.name.startswith(("operation ", "trace")) and "lies within each unit" not in item.reason:
            outcome.pinned += 1
            outcome.reasons[_in_short(item.reason)] += 1
    size = sum(parameter.numel() for parameter in model.parameters())
    outcome.parameters, outcome.nothing = (size, size), not sites
    if outcome.nothing:
        return
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example))
    masked = subject.make()
    masks.apply_(masked)
    shrunk = sc.shrink_(model, masks)
    outcome.parameters, outcome.put_back = shrunk.parameters, shrunk.skipped
    outcome.reloaded = _comes_back(model, subject, example)
    outcome.difference, outcome.double = compared(masked, model, example)


def _in_short(reason: str) -> str:
    """The reason without the place that it names."""
    return re.sub(r" at \S+:\d+", "", reason)


def _comes_back(model: nn.Module, subject: Subject, example: Any) -> bool:
    """Whether a file gives the same model again, bit for bit, and the same answers."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "small.safetensors")
        sc.save(model, path)
        loaded = sc.load(path, subject.make)
    one, other = model.state_dict(), loaded.state_dict()
    same = one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    pairs = zip(answers(model, example), answers(loaded, example), strict=True)
    return same and all(_equal(a, b) for a, b in pairs)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a != a) & (b != b)).all())


@torch.no_grad()
def answers(model: nn.Module, example: Any) -> list[Tensor]:
    """Every floating-point tensor that a model returns."""
    return [tensor.clone() for tensor in tensors_in(call(model.eval(), example)) if tensor.is_floating_point()]


def compared(masked: nn.Module, small: nn.Module, example: Any) -> tuple[float, bool]:
    """The largest difference of answers, as a part of the largest number, and whether both ran in float64."""
    doubled = changed(example, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    try:
        return largest(answers(masked.double(), doubled), answers(small.double(), doubled)), True
    except Exception:  # a model whose code names a dtype
        return largest(answers(masked.float(), example), answers(small.float(), example)), False


def largest(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference, as a part of the largest number; infinite where shapes, NaNs or infinities differ."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float("inf")
    found = 0.0
    for one, other in zip(before, after, strict=True):
        finite = torch.isfinite(one)
        if not torch.equal(finite, torch.isfinite(other)):
            return float("inf")
        if finite.any():
            found = max(found, float((one - other)[finite].abs().max() / one[finite].abs().max().clamp_min(1e-30)))
    return found
