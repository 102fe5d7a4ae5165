"""Gathering the evidence: one walk over the calibration batches for everything that a criterion needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from torch import nn

from secateurs.batch import run_batch, split
from secateurs.forward import check_fit, evaluating
from secateurs.progress import track
from secateurs.types import Accumulator, Sites, Statistic, Stats, Task, TaskError


def observe(model: nn.Module, sites: Sites, needs: Sequence[Statistic], task: Task) -> Stats:
    """Statistics of every weight of the sites, from the task's calibration batches (else its training batches).

    Without needs it does nothing. Raises `TaskError` where there are no batches or none passes.

    >>> import torch
    >>> from secateurs.patterns import Element, find_sites
    >>> from secateurs.observe import input_norm
    >>> model, batch = nn.Linear(2, 1), (torch.tensor([[3.0, 0.0], [4.0, 1.0]]), None)
    >>> norm = input_norm()
    >>> observe(model, find_sites(model, Element()), [norm], Task(example=batch[0], train=[batch]))["weight"][norm]
    tensor([[[5., 1.]]])
    """
    if not needs:
        return {}
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        names = ", ".join(statistic.name for statistic in needs)
        raise TaskError(f"{names} must be observed on data: give Task(calibration=...) or Task(train=...)")
    # of coupled weights those are watched that make the units; one that makes two kinds of units, once
    members = list({member.parameter: member for site in sites for member in site.members if member.role == "producer"}.values())
    accumulators = {member.parameter: {need: need.start(member) for need in needs} for member in members}
    hooks = [member.module.register_forward_hook(_feed(list(accumulators[member.parameter].values()))) for member in members]
    seen = 0
    try:
        with evaluating(model), closing(track(batches, "observing")) as walk:
            for batch in walk:
                inputs, _ = split(model, task, batch)
                check_fit(model, inputs, "a calibration batch")
                run_batch(model, inputs, "a calibration batch", task.example)
                seen += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise TaskError("the calibration loader is empty: it gave no batch to observe")
    return {name: {need: value.result() for need, value in found.items()} for name, found in accumulators.items()}


def _feed(accumulators: list[Accumulator]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for accumulator in accumulators:
            accumulator.add(inputs, output)

    return hook
