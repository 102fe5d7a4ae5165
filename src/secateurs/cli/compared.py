"""What a comparison is made of, from the words of a command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import nn

from secateurs import costs, criteria, recover, session
from secateurs.cli.parts import parsed_allocator, parsed_criterion, parsed_pattern, parsed_solver, usual_allocator
from secateurs.comparing import Pruning, Recipe
from secateurs.comparing.recipe import Drawn
from secateurs.files import save
from secateurs.recover import train_
from secateurs.recover.schedules import Schedule
from secateurs.run.clock.timing import torch_threads
from secateurs.solve import TopK
from secateurs.types import Cost, Pattern, SecateursError, Selection, Solver, Task

_SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    name: getattr(recover, name) for name in ("geometric", "linear", "cubic", "one_shot")
}


def recipes_of(
    criterion: Sequence[str],
    pattern: Sequence[str],
    allocator: Sequence[str],
    schedule: Sequence[str],
    keep_of: str,
    *,
    solver: Sequence[str] = (),
    epochs: int,
    rounds: int,
    only: Selection | None,
    skip: Selection | None,
) -> list[Recipe]:
    """Every criterion and solver with every pattern, allocator and schedule, named by the words that differ.

    >>> told = {"epochs": 0, "rounds": 1, "only": None, "skip": None}
    >>> [each.name for each in recipes_of(["magnitude", "random"], ["2:4", "channel"], [], ["cubic"], "units", **told)]
    ['magnitude, 2:4', 'magnitude, channel', 'random, 2:4', 'random, channel']
    >>> [each.name for each in recipes_of(["taylor"], ["channel"], [], ["cubic"], "units", solver=["ZipLM", "Merge()"], **told)]
    ['taylor', 'ZipLM', 'Merge()']
    """
    found, choosing = [], [*criterion, *solver]
    for words in product(choosing, pattern, allocator or [""], schedule):
        scored, cut, spread, grown = words
        shape = parsed_pattern(cut)
        share = parsed_allocator(spread or usual_allocator(shape))
        if grown not in _SCHEDULES:
            raise SecateursError(f"--schedule {grown!r} is none of {', '.join(_SCHEDULES)}")
        pruning = Pruning(shape, _chooses(scored, solver, shape), share, _cost(keep_of, shape), only, skip)
        differing = [
            word for word, all_of_it in zip(words, (choosing, pattern, allocator, schedule), strict=True) if len(all_of_it) > 1
        ]
        found.append(Recipe(", ".join(differing) or scored, pruning, epochs, rounds, _SCHEDULES[grown]))
    return found


def _chooses(words: str, solvers: Sequence[str], shape: Pattern) -> Solver | Drawn:
    """What a solver's or a criterion's words say; ``random`` is drawn anew with each seed."""
    if words in solvers:
        return parsed_solver(words, None)
    return Drawn(criteria.random) if words == "random" else TopK(parsed_criterion(words, 0, coupled=shape.removable))


def _cost(keep_of: str, shape: Pattern) -> Cost | None:
    if keep_of == "units":
        return None
    if not shape.removable:
        raise SecateursError(f"--keep-of {keep_of} is for --pattern channel and head, not for {shape}; leave it out")
    return costs.macs if keep_of == "macs" else costs.params


def trained_weights(name: str, network: nn.Module, work: Task, epochs: int, lr: float, out: Path) -> Path:
    """The file of the dense model's weights, trained from its checkpoint on where it is not there yet."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{name} {work.name} {epochs} {lr}").strip("-")
    path = out / f"dense-{plain}.safetensors"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        with torch_threads(session.quickest_threads(network, work)):
            train_(network, work, optimizer, epochs, scheduler=scheduler, checkpoint=path.with_suffix(".checkpoint"))
        save(network, path, seed=0)
    return path
