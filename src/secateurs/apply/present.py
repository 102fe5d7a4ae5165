"""Which units still matter, after whatever pruning has left of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from secateurs.graph import Axis, Choice, Dim, Place, Structure, kept

Nonzero = Mapping[str, Tensor]
"""Parameter → 1 where it is not zero, else 0, as uint8: the largest of many is found faster than whether any of them is ``True``."""


def nonzero(model: nn.Module) -> Nonzero:
    """Where a model's parameters are not zero.

    >>> nonzero(nn.ReLU6()), nonzero(nn.ParameterList([torch.tensor([2.0, 0.0])]))
    ({}, {'0': tensor([1, 0], dtype=torch.uint8)})
    """
    named = model.named_parameters(remove_duplicate=False)
    return {name: (parameter.detach() != 0).view(torch.uint8).cpu() for name, parameter in named}


class Slices:
    """Which units have anything at one of their places, of tensors that tell where there is something."""

    def __init__(self, there: Nonzero) -> None:
        self._there = there
        self._along: dict[tuple[str, int], Tensor] = {}

    def __call__(self, axis: Axis, place: Place) -> Tensor:
        """A bool tensor of the axis's size."""
        key = place.parameter, place.dim
        if key not in self._along:
            self._along[key] = _reduced(self._there[place.parameter].movedim(place.dim, 0))
        along = self._along[key]
        return (along if len(along) == axis.size else _reduced(place.view(along, 0))).bool()


def _reduced(there: Tensor) -> Tensor:
    return there.amax(tuple(range(1, there.ndim))) if there.ndim > 1 else there


def present_units(model: nn.Module, structure: Structure, there: Nonzero) -> dict[Axis, Tensor]:
    """Axis → which of its units still matter: something makes them and something reads them; at least one of each axis."""
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    present: dict[Axis, Tensor] = {}
    axes = [axis for axis in structure.places if not axis.pinned and axis.size > 1 and axis in structure.producers]
    free = set(axes)
    where = {name: _within(there[name], dims, free) for name, dims in structure.parameters.items()}
    while True:
        there_now = Slices({name: _kept(found, structure.parameters[name], present) for name, found in where.items()})
        before, present = present, {}
        for axis in axes:
            made, read = torch.zeros(axis.size, dtype=torch.bool), torch.zeros(axis.size, dtype=torch.bool)
            consumers = False
            for place in structure.places[axis]:
                here = there_now(axis, place)
                made |= here
                if place.role == "consumer":
                    consumers, read = True, read | here
            if consumers and axis not in summed and not axis.approximate:
                made &= read
            made[0] |= not made.any()
            present[axis] = made
        if before and all(torch.equal(before[axis], present[axis]) for axis in axes):
            return present
        if not axes:
            return present


def _within(there: Tensor, dims: Sequence[Dim], free: set[Axis]) -> Tensor:
    """Without the last dimensions, where these have no axis that may go: the kernel of a convolution."""
    last = max((place for place, dim in enumerate(dims) if not free.isdisjoint(dim.axes())), default=-1)
    return there.flatten(last + 1).amax(last + 1) if -1 < last < there.ndim - 1 else there


def _kept(there: Tensor, dims: Sequence[Dim], present: Choice) -> Tensor:
    """What is not zero, and lies in no unit that is gone."""
    for place, dim in enumerate(dims[: there.ndim]):
        if any(axis in present and not bool(present[axis].all()) for axis in dim.axes()):
            there = there & kept(dim, present).view(torch.uint8).view(-1, *(1,) * (there.ndim - place - 1))
    return there
