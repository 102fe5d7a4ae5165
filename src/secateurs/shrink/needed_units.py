"""Which units still matter, after whatever pruning has left of the weights."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from secateurs.forward import parameters_in, torch_masks
from secateurs.graph import Axis, Choice, Knowing, Place, Structure, kept, occurrences
from secateurs.masks.masks import Masks
from secateurs.masks.pieces import pieces


class _Sides:
    """Which indices of each dimension of a tensor have a number that is not zero; of one dimension after the other, as asked for."""

    def __init__(self, parts: Iterable[Tensor]) -> None:
        found = [_largest(part) for part in parts]
        self._rows = (torch.cat([rows for rows, _ in found]) if len(found) > 1 else found[0][0]).bool().cpu()
        self._columns = torch.stack([columns for _, columns in found]).amax(0) if len(found) > 1 else found[0][1]

    def __getitem__(self, dim: int) -> Tensor:
        return self._others[dim - 1] if dim else self._rows

    @cached_property
    def _others(self) -> _Sides:
        return _Sides([self._columns])


def _largest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The largest absolute values of each index of the first dimension, and of the others over the first."""
    sizes = weight.abs() if weight.is_floating_point() and weight.element_size() > 1 else weight != 0
    return (sizes.amax(tuple(range(1, sizes.ndim))), sizes.amax(0)) if sizes.ndim > 1 else (sizes, sizes)


class Nonzero:
    """Where weights are not zero, found out when it is asked for.

    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    >>> there = Nonzero.of(layer)
    >>> there.along("weight", 0), there.along("weight", 1)
    (tensor([ True, False]), tensor([False,  True]))
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self._sides: dict[str, _Sides] = {}
        self.moved: dict[str, int] = {}

    @staticmethod
    def of(model: nn.Module) -> Nonzero:
        """Where a model's parameters are not zero, under the masks of `torch.nn.utils.prune` if there are any."""
        weights = {name: parameter.detach() for name, parameter in parameters_in(model, again=True).items()}
        return Nonzero({**weights, **{name: weights[name] * mask for name, mask in torch_masks(model).items()}})

    @staticmethod
    def under(masks: Masks, model: nn.Module) -> Nonzero:
        """Where they are not zero once the masks are applied, in one walk through the weights; ``moved``: how many masked ones were not."""
        names: dict[int, list[str]] = {}
        hidden = torch_masks(model)
        for name, parameter in parameters_in(model, again=True).items():
            if name not in hidden:
                names.setdefault(id(parameter), []).append(name)
        sides: dict[str, _Sides] = {}
        moved: dict[str, int] = {}
        for parameter, parts in masks.applied_(moved):
            if not parameter.numel():
                continue  # nothing to set to zero, and nothing to see
            sides.update(dict.fromkeys(names.get(id(parameter), ()), _Sides(parts)))
        there = Nonzero.of(model)
        there._sides.update(sides)
        there.moved.update(moved)
        return there

    def along(self, name: str, dim: int) -> Tensor:
        """Which indices of a weight's dimension have anything, as a bool tensor on the CPU."""
        if name not in self._sides:
            self._sides[name] = _Sides(part for (part,) in pieces(self.weights[name]))
        return self._sides[name][dim]

    def anything(self, name: str) -> bool:
        """Whether any number of a weight is not zero, which a few of its rows nearly always tell."""
        weight = self.weights[name]
        if name in self._sides:
            return bool(self.along(name, 0).any())
        some = weight[:: max(1, weight.shape[0] // 4)] if weight.ndim else weight
        return bool(some.any()) or bool(self.along(name, 0).any())

    def at(self, axis: Axis, places: Iterable[Place]) -> Tensor:
        """Which units of an axis have anything at one of these places."""
        found = [torch.zeros(axis.size, dtype=torch.bool)]
        for place in places:
            along = self.along(place.parameter, place.dim)
            found.append(along if along.shape[0] == axis.size else place.view(along, 0).flatten(1).any(1))
        return torch.stack(found).any(0)

    def within(self, structure: Structure, present: Choice) -> Nonzero:
        """The same without what lies in units that are gone."""
        gone = {axis for axis, stay in present.items() if not bool(stay.all())}
        weights = dict(self.weights)
        for name, dims in structure.parameters.items():
            for place, dim in enumerate(dims):
                if not gone.isdisjoint(dim.axes()):
                    stay = kept(dim, present).to(weights[name].device)
                    weights[name] = weights[name].masked_fill(~stay.view(-1, *(1,) * (len(dims) - place - 1)), 0)
        return Nonzero(weights)


def present_units(
    structure: Structure, there: Nonzero, asked: Container[Axis], knowing: Knowing | None = None
) -> tuple[dict[Axis, Tensor], dict[Axis, str]]:
    """Axis → which of its units still matter: something makes them and something reads them; at least one of each axis. And why some
    axes keep units that have nothing.

    A unit that is gone and had anything takes that with it, so that other units may be without makers or readers then. Units of axes
    that are added up or normalised over need no readers; they go where they are known to be zero there. Approximate axes are looked at
    where they were ``asked`` for; their units go where they have nothing, which takes nothing with it.
    """
    free = [axis for axis in structure.places if not axis.pinned and axis.size > 1 and axis in structure.producers]
    axes = [axis for axis in free if not axis.approximate or axis in asked]
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    readers = {axis: [place for place in structure.places[axis] if place.reads] for axis in axes}
    others = {axis: [place for place in structure.places[axis] if not place.reads] for axis in axes}
    must_be_read = {axis for axis in axes if readers[axis] and axis not in summed and not axis.approximate}
    adding = _adding(structure, knowing, {axis for axis in axes if axis in summed and not axis.approximate})
    now = there
    before: dict[Axis, Tensor] = {}
    while True:
        read = {axis: now.at(axis, readers[axis]) for axis in axes}
        some = {axis: read[axis] | now.at(axis, others[axis]) for axis in axes}
        present = {axis: _at_least_one((read if axis in must_be_read else some)[axis] | adding.get(axis, _NONE)) for axis in axes}
        nothing_lost = now is there and not any(bool((some[axis] & ~present[axis]).any()) for axis in axes)
        if nothing_lost or (before and all(torch.equal(before[axis], present[axis]) for axis in axes)):
            return present, _kept_back(some, adding)
        now, before = there.within(structure, present), present


_NONE = torch.zeros(1, dtype=torch.bool)


def _adding(structure: Structure, knowing: Knowing | None, axes: Container[Axis]) -> dict[Axis, Tensor]:
    """Axis → which of its units may be other than zero where they are added up."""
    found: dict[Axis, Tensor] = {}
    for value, dim, zero in knowing.summed if knowing is not None else ():
        whole = structure.typing.dims(value)[dim]
        for axis in dict.fromkeys(whole.axes()):
            if axis in axes:
                for view in occurrences(whole, axis):
                    adds = ~view(zero, 0).reshape(axis.size, -1).all(1)
                    found[axis] = found[axis] | adds if axis in found else adds
    return found


def _kept_back(some: Mapping[Axis, Tensor], adding: Mapping[Axis, Tensor]) -> dict[Axis, str]:
    kept_back = {axis: int((~some[axis] & adds).sum()) for axis, adds in adding.items()}
    return {
        axis: f"{count} unit{'s' if count > 1 else ''} without weights may be other than zero where units are added up"
        for axis, count in kept_back.items()
        if count
    }


def _at_least_one(units: Tensor) -> Tensor:
    """These units, or the first one where there are none."""
    present = units.clone()
    present[0] |= not present.any()
    return present
