"""What the loss becomes without each unit: every one is removed in turn, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import loss_of, run_batch, size_of, split
from secateurs.forward import check_fit, evaluating
from secateurs.progress import track
from secateurs.ranks import is_sharded
from secateurs.types import SecateursError, Seen, Site, Task, TaskError


def observe_removals(model: nn.Module, sites: Sequence[Site], task: Task) -> dict[str, Seen]:
    """How much the mean loss of the calibration batches rises without each unit: ``values`` are ``(contests, competitors)``.

    Units that are gone already count 0. Raises `TaskError` where there are no batches.
    """
    with evaluating(model), torch.random.fork_rng(devices=[]):
        dense, samples = _loss(model, task)
        units = [
            (site, unit) for site in sites for unit in range(site.units) if site.alive is None or bool(site.alive.flatten()[unit])
        ]
        found = {site.name: torch.zeros(site.units) for site in sites}
        for site, unit in track(units, "removing one by one"):
            with _without(site, unit):
                found[site.name][unit] = _loss(model, task)[0] - dense
    return {site.name: Seen(values=found[site.name].view(site.contest_count, -1), samples=samples) for site in sites}


def _loss(model: nn.Module, task: Task) -> tuple[float, int]:
    """The mean loss over all samples, and how many there are."""
    batches: Any = task.calibration if task.calibration is not None else task.train
    if batches is None:
        raise TaskError("the loss without a unit must be observed on data: give Task(calibration=...) or Task(train=...)")
    total, samples = 0.0, 0
    for batch in batches:
        inputs, target = split(model, task, batch, "Task.loss" if task.loss is not None else None)
        check_fit(model, inputs, "a calibration batch")
        output = run_batch(model, inputs, "a calibration batch", task.example)
        size = size_of(inputs, target)
        total, samples = total + float(loss_of(task, output, target)) * size, samples + size
    if not samples:
        raise TaskError("the calibration loader is empty: it gave no batch to observe")
    return total / samples, samples


@contextmanager
def _without(site: Site, unit: int) -> Iterator[None]:
    """One unit at zero in all its weights, and afterwards as it was."""
    held: list[tuple[Tensor, Tensor]] = []
    leading = (*site.contests, *site.competitors)
    try:
        for member in site.members:
            if is_sharded(member.weight):
                raise SecateursError(
                    f"{member.parameter}: it is sharded, and no unit of it can be removed for a while; shard afterwards"
                )
            view = member.cut(member.canonical(member.weight.detach()))
            part = view[tuple(int(index) for index in torch.unravel_index(torch.tensor(unit), leading))] if prod(leading) else view
            held.append((part, part.clone()))
            part.zero_()
        yield
    finally:
        for part, before in reversed(held):
            part.copy_(before)
