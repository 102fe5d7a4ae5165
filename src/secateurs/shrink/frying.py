"""Linear layers of a model become Fastfood layers, as many as a budget takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateurs.answers import telling
from secateurs.forward import run_example
from secateurs.given import COUNT, MODEL, TASK, require, require_values
from secateurs.patterns import Selection
from secateurs.shrink.fastfood import fry_, reason_against_frying, sizes_of
from secateurs.shrink.low_rank import cuttable, path_of
from secateurs.shrink.remembered import remember_
from secateurs.shrink.step import Step
from secateurs.shrink.undo import Undo
from secateurs.types import SecateursError, Skipped, Task


@dataclass(frozen=True)
class Fried:
    """What `fastfood_` did: the layers that became Fastfood, with their parameters before and after, all parameters, and what stayed."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.parameters[0]:,} -> {self.parameters[1]:,} parameters"]
        lines += [f"  {name}: Fastfood, {before:,} -> {after:,}" for name, (before, after) in self.layers.items()]
        return "\n".join([*lines, *(f"  left as it was: {item.name}: {item.reason}" for item in self.skipped)])


def fastfood_(
    model: nn.Module,
    task: Task,
    *,
    keep: float | None = None,
    seed: int = 0,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Fried:
    """Put fresh Fastfood layers in the place of linear ones, to be trained then: deep-fried networks (1412.7149).

    With ``keep``, of as few layers as leave at most that fraction of all parameters, those first that lose most by it; else of all that
    lose any. What they had learnt is gone. The small model is saved and loaded as any; optimizers are made anew.

    Raises `SecateursError` where no layer would be smaller, or not enough of them for ``keep``; the model is then as it was.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> import torch
    >>> print(fastfood_(model, Task(torch.zeros(1, 64)), keep=0.2))
    4,680 -> 776 parameters
      0: Fastfood, 4,160 -> 256
      left as it was: 2.weight: enough parameters are gone without it
    """
    for name, value, kind in (("model", model, MODEL), ("task", task, TASK), ("seed", seed, COUNT)):
        require("fastfood_", name, value, kind)
    require_values("fastfood_", model)
    if keep is not None and not (isinstance(keep, (int, float)) and 0 < keep <= 1):
        raise SecateursError(f"fastfood_: keep={keep!r} is not in (0, 1]; 0.5 is half")
    sites, skipped = cuttable(model, task, only, skip)
    sizes: dict[str, tuple[int, int]] = {}
    for site in sites:
        module: Any = site.members[0].module
        reason = reason_against_frying(module) or _no_smaller(module)
        if reason:
            skipped.append(Skipped(site.name, reason))
        else:
            sizes[path_of(site)] = _parameters(module)
    before = sum(parameter.numel() for parameter in model.parameters())
    chosen = _enough(sizes, before, keep)
    skipped += [Skipped(f"{name}.weight", "enough parameters are gone without it") for name in sizes if name not in chosen]
    if not chosen:
        raise SecateursError(
            "fastfood_: no layer was to become Fastfood: " + "; ".join(f"{s.name}: {s.reason}" for s in skipped[:5])
        )
    _put_in_place_(model, {name: seed + place for place, name in enumerate(chosen)}, telling(task.example))
    after = sum(parameter.numel() for parameter in model.parameters())
    return Fried({name: sizes[name] for name in chosen}, (before, after), tuple(skipped))


def _parameters(module: Any) -> tuple[int, int]:
    """Of a linear layer, and of the Fastfood layer in its place."""
    size, blocks = sizes_of(module.in_features, module.out_features)
    bias = 0 if module.bias is None else module.out_features
    return module.weight.numel() + bias, 3 * size * blocks + bias


def _no_smaller(module: Any) -> str:
    before, after = _parameters(module)
    return "" if after < before else f"a Fastfood layer of {after:,} parameters would be no smaller than its {before:,}"


def _enough(sizes: Mapping[str, tuple[int, int]], before: int, keep: float | None) -> list[str]:
    """The layers that become Fastfood: as few as are enough, in the model's order."""
    saved = {name: size - fried for name, (size, fried) in sizes.items()}
    if keep is None:
        return list(saved)
    left, chosen = before, set()
    for name in sorted(saved, key=lambda name: -saved[name]):
        if left <= keep * before:
            break
        left -= saved[name]
        chosen.add(name)
    if left > keep * before:
        raise SecateursError(
            f"fastfood_: keep={keep} is {int(keep * before):,} of {before:,} parameters, but with Fastfood for every linear layer "
            f"that loses by it there are {left:,}: ask for keep={left / before:.3f} or more"
        )
    return [name for name in saved if name in chosen]


def _put_in_place_(model: nn.Module, fried: Mapping[str, int], example: Any) -> None:
    shapes = {f"{name}.weight": list(model.get_parameter(f"{name}.weight").shape) for name in fried}
    undo = Undo()
    try:
        fry_(model, fried, undo)
        run_example(model, example)
        remember_(model, Step(shapes=shapes, fried=dict(fried)), undo)
    except BaseException as error:
        undo()
        if isinstance(error, SecateursError):
            raise SecateursError(
                f"fastfood_: the model does not run with Fastfood in the place of {', '.join(fried)} (does its code ask for their weights? "
                f"skip= leaves them): {error}"
            ) from error
        raise
