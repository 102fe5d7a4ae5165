"""A model that was shrunk from its teacher: which of the teacher's modules, channels and heads have stayed, by the record of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, parameters_in
from secateurs.graph import Axis, Dim, Structure, analyse, attention_weights, kept, normal
from secateurs.nested import Value
from secateurs.shrink.remembered import steps_of
from secateurs.shrink.step import Step

Stayed = dict[int, Tensor]
"""Dimension → the indices of the teacher's that stayed; the others are whole."""


def name_before(name: str, steps: Sequence[Step]) -> str:
    """The name that a module or parameter had before steps: entries of lists that some of them took out count again.

    >>> name_before("layers.1.fc", [Step(entries={"layers": [0, 2, 3]}), Step(entries={"layers": [1, 2]})])
    'layers.3.fc'
    """
    for step in reversed(steps):
        for holder, stay in step.entries.items():
            if name.startswith(f"{holder}."):
                place, _, rest = name.removeprefix(f"{holder}.").partition(".")
                name = ".".join([holder, str(stay[int(place)]), *([rest] if rest else [])])
    return name


@dataclass
class Descent:
    """How a model came from its teacher, if it did; ``example`` is what the teacher is traced with."""

    teacher: nn.Module
    model: nn.Module
    example: Any

    @cached_property
    def steps(self) -> list[Step]:
        """What was done to the model."""
        return steps_of(self.model)

    @cached_property
    def why_not(self) -> str:
        """Why the record says nothing of this teacher; empty where it does."""
        if not self.steps:
            return "the model was not shrunk from the teacher"
        parameters, buffers = parameters_in(self.teacher, again=True), buffers_in(self.teacher, again=True)
        for name, (shape, _) in self._cuts.items():
            known = parameters.get(name, buffers.get(name))
            here = None if known is None else tuple(known.shape)
            if here != tuple(shape):
                return f"the model was shrunk from one whose {name} is {tuple(shape)}, which this teacher's is not ({here})"
        return ""

    @cached_property
    def _cuts(self) -> dict[str, tuple[list[int], dict[int, Tensor]]]:
        """Tensor, by the name that it had at first → the shape that it had at first, and the indices of it that stayed in the end."""
        found: dict[str, tuple[list[int], dict[int, Tensor]]] = {}
        for number, step in enumerate(self.steps, 1):
            for name, by_dim in step.cuts.items():
                _, stay = found.setdefault(name_before(name, self.steps[:number]), (step.shapes[name], {}))
                for dim, indices in by_dim.items():
                    chosen = torch.tensor(indices)
                    stay[dim] = stay[dim][chosen] if dim in stay else chosen
        return found

    @cached_property
    def _structure(self) -> Structure:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return analyse(self.teacher, self.example)

    @cached_property
    def _choice(self) -> tuple[dict[Axis, Tensor], set[Axis]]:
        """Which units of each axis have stayed, and the axes of which the record says two things."""
        choice: dict[Axis, Tensor] = {}
        unclear: set[Axis] = set()
        types = {**self._structure.parameters, **self._structure.buffers}
        there = {**parameters_in(self.model, again=True), **buffers_in(self.model, again=True)}
        told = [
            (dim, self.stays(name, place, dim.size))
            for name in dict.fromkeys(name_before(name, self.steps) for name in there)
            for place, dim in enumerate(types.get(name, ()))
        ]
        for dim, stays in told:
            if not bool(stays.all()):
                _read(normal(dim), stays, choice, unclear)
        for dim, stays in told:
            if not torch.equal(kept(dim, choice), stays):
                unclear |= set(dim.axes())
        return choice, unclear

    def stays(self, name: str, place: int, size: int) -> Tensor:
        """Which indices of a dimension of a tensor have stayed, by the record alone."""
        _, by_dim = self._cuts.get(name, ([], {}))
        stays = torch.ones(size, dtype=torch.bool)
        if place in by_dim:
            stays.zero_()[by_dim[place]] = True
        return stays

    def of_output(self, module: str, call: int) -> tuple[tuple[int, ...], Stayed] | None:
        """For the first tensor that a module of the teacher gives in one of its calls: its shape for the example, and what stayed of it.

        Nothing where the graph cannot tell.
        """
        calls = [each for each in self._structure.trace.passes if each.module == module and each.gives]
        return self._of(calls[call].gives[0]) if call < len(calls) else None

    def heads(self, module: str, call: int, count: int) -> Tensor | None:
        """Which of the heads of an attention within a module of the teacher have stayed; nothing where the graph cannot tell."""
        passes = [each.ops for each in self._structure.trace.passes if each.module == module]
        inside = [dims for ops in passes for place, dims in attention_weights(self._structure) if place in ops]
        choice, unclear = self._choice
        dims = inside[call][:-2] if call < len(inside) else []
        if not dims or unclear.intersection(axis for dim in dims for axis in normal(dim).axes()):
            return None
        stays = kept(normal(dims[-1]), choice)
        return stays[-count:].nonzero().flatten() if len(stays) % count == 0 else None

    def _of(self, value: Value) -> tuple[tuple[int, ...], Stayed] | None:
        choice, unclear = self._choice
        stayed: Stayed = {}
        for place, dim in enumerate(map(normal, self._structure.typing.dims(value))):
            if unclear.intersection(dim.axes()):
                return None
            stays = kept(dim, choice)
            if not bool(stays.all()):
                stayed[place] = stays.nonzero().flatten()
        return tuple(value.shape), stayed


def _read(dim: Dim, stays: Tensor, choice: dict[Axis, Tensor], unclear: set[Axis]) -> None:
    """What the indices that stay of a dimension tell of its axes."""
    start = 0
    for term in normal(dim).terms:
        sizes = [factor.size for factor in term]
        part = stays[start : start + prod(sizes)].view(sizes)
        start += prod(sizes)
        for place, factor in enumerate(term):
            others = [other for other in range(len(sizes)) if other != place]
            here = part.any(others) if others else part
            if isinstance(factor, Dim):
                _read(factor, here, choice, unclear)
            elif factor in choice and not torch.equal(choice[factor], here):
                unclear.add(factor)
            else:
                choice[factor] = here
