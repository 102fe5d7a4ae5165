"""Which units still matter, after whatever pruning has left of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateurs.graph import Axis, Choice, Dim, Structure, kept


def present_units(model: nn.Module, structure: Structure) -> dict[Axis, Tensor]:
    """Axis → which of its units still matter: something makes them and something reads them; at least one of each axis."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    present: dict[Axis, Tensor] = {}
    axes = [axis for axis in structure.places if not axis.pinned and axis.size > 1 and axis in structure.producers]
    while True:
        nonzero = {name: _nonzero(parameters[name].detach(), dims, present) for name, dims in structure.parameters.items()}
        before, present = present, {}
        for axis in axes:
            there, read = torch.zeros(axis.size, dtype=torch.bool), torch.zeros(axis.size, dtype=torch.bool)
            consumers = False
            for place in structure.places[axis]:
                here = place.view(nonzero[place.parameter], place.dim).flatten(1).any(1)
                there |= here
                if place.role == "consumer":
                    consumers, read = True, read | here
            if consumers and axis not in summed and not axis.approximate:
                there &= read
            there[0] |= not there.any()
            present[axis] = there
        if before and all(torch.equal(before[axis], present[axis]) for axis in axes):
            return present
        if not axes:
            return present


def _nonzero(weight: Tensor, dims: Sequence[Dim], present: Choice) -> Tensor:
    """Which weights are not zero, and lie in no unit that is gone."""
    found = (weight != 0).cpu()
    for place, dim in enumerate(dims):
        if any(axis in present for axis in dim.axes()):
            found = found & kept(dim, present).view(-1, *(1,) * (found.ndim - place - 1))
    return found
