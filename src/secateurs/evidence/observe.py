"""Gathering the evidence: one walk over the calibration batches for everything that a criterion needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import run_batch, split
from secateurs.evidence.adding import Accumulators, add_up_
from secateurs.forward import check_fit, evaluating
from secateurs.given import STATISTICS, TASK, require
from secateurs.products import Product, Products
from secateurs.progress import track
from secateurs.ranks import count, gathered, together
from secateurs.types import Accumulator, Member, SecateursError, Sites, Statistic, Stats, Task, TaskError


def observe(model: nn.Module, sites: Sites, needs: Sequence[Statistic], task: Task) -> Stats:
    """Statistics of every weight of the sites, from the task's calibration batches (else its training batches), on the model's device.

    Each expert of a mixture is observed with the tokens that reach it; where none does, the mean of the others stands for it, with a
    warning. Where several processes train one model, each observes its own batches, and what all have seen counts. Without needs it
    does nothing. Raises `TaskError` where there are no batches or none passes.

    >>> import torch
    >>> from secateurs.patterns import Element, find_sites
    >>> from secateurs.evidence import input_norm
    >>> model, batch = nn.Linear(2, 1), (torch.tensor([[3.0, 0.0], [4.0, 1.0]]), None)
    >>> norm = input_norm()
    >>> observe(model, find_sites(model, Element()), [norm], Task(example=batch[0], train=[batch]))["weight"][norm]
    tensor([[[5., 1.]]])
    """
    require("observe", "needs", needs, STATISTICS)
    require("observe", "task", task, TASK)
    if not needs:
        return {}
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        names = ", ".join(statistic.name for statistic in needs)
        raise TaskError(f"{names} must be observed on data: give Task(calibration=...) or Task(train=...)")
    # of coupled weights those are watched that make the units; one that makes two kinds of units, once
    members = {member.parameter: member for site in sites for member in site.members if member.role == "producer"}
    layers = {name: {need: need.start(member) for need in needs} for name, member in members.items() if not member.stacked}
    stacks = {name: _Stack(member, needs) for name, member in members.items() if member.stacked}
    seen = 0
    with together(), _fed(members, layers), _watched(stacks), evaluating(model), closing(track(batches, "observing")) as walk:
        for batch in walk:
            inputs, _ = split(model, task, batch)
            check_fit(model, inputs, "a calibration batch")
            run_batch(model, inputs, "a calibration batch", task.example)
            seen += 1
        if not seen:
            raise TaskError("the calibration loader is empty: it gave no batch to observe")
    if count() > 1:
        add_up_(layers | {f"{name}[{index}]": part for name, stack in stacks.items() for index, part in stack.of_all().items()})
    found = {name: {need: value.result() for need, value in layer.items()} for name, layer in layers.items()}
    return found | {name: stack.results() for name, stack in stacks.items()}


@contextmanager
def _fed(members: Mapping[str, Member], layers: Mapping[str, Accumulators]) -> Iterator[None]:
    """While it is entered, each layer feeds its accumulators with what passes it."""
    hooks = [members[name].module.register_forward_hook(_feed(list(layer.values()))) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _feed(accumulators: list[Accumulator]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for accumulator in accumulators:
            accumulator.add(inputs, output)

    return hook


def _watched(stacks: Mapping[str, _Stack]) -> Any:
    """While it is entered, each product of a stack's matrix feeds the accumulators of that matrix."""
    if not stacks:
        return nullcontext()
    return Products({name: stack.member.weight for name, stack in stacks.items()}, lambda seen: stacks[seen.parameter].add(seen))


class _Stack:
    """The accumulators of matrices that lie in one parameter and meet inputs of their own."""

    def __init__(self, member: Member, needs: Sequence[Statistic]) -> None:
        self.member, self.needs = member, needs
        self.parts: dict[int, Accumulators] = {}

    def add(self, seen: Product) -> None:
        for accumulator in self._part(seen.index).values():
            accumulator.add((seen.inputs,), seen.output)

    def _part(self, index: int) -> Accumulators:
        if index not in self.parts:
            one = replace(self.member, canonical=lambda tensor: self.member.canonical(tensor)[index : index + 1])
            self.parts[index] = {need: need.start(one) for need in self.needs}
        return self.parts[index]

    def of_all(self) -> Mapping[int, Accumulators]:
        """The accumulators of each matrix that any process has seen at work."""
        for indices in gathered(list(self.parts)):
            for index in indices:
                self._part(index)
        return self.parts

    def results(self) -> dict[Statistic, Tensor]:
        count, name = self.member.weight.shape[0], self.member.parameter
        if not self.parts:
            raise SecateursError(
                f"{name}: none of its {count} matrices was seen at work, so its inputs are unknown: fused kernels hide them (in "
                'Hugging Face, model.set_experts_implementation("eager") does not), or skip it with skip=[...]'
            )
        if len(self.parts) < count:
            unreached = [index for index in range(count) if index not in self.parts]
            shown = ", ".join(map(str, unreached[:8])) + (", …" if len(unreached) > 8 else "")
            warnings.warn(
                f"{name}: no calibration token reached {len(unreached)} of {count} experts ({shown}); the mean of the others stands "
                "for them: observe more or other batches",
                stacklevel=4,
            )
        return {need: self._joined({index: part[need].result() for index, part in self.parts.items()}) for need in self.needs}

    def _joined(self, results: Mapping[int, Tensor]) -> Tensor:
        mean = torch.stack(list(results.values())).mean(0)
        return torch.cat([results.get(index, mean) for index in range(self.member.weight.shape[0])])
