"""Channels that pruning has made constant: what they add to the layers that read them goes into those layers' biases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.apply.present import Nonzero
from secateurs.apply.resize import Undo
from secateurs.forward import modules_in, run_example
from secateurs.graph import Axis, Place, Structure, Value, untouched


@dataclass(frozen=True)
class _Reader:
    """A layer that reads some units: where they lie among its inputs, and what holds its bias."""

    module: Any
    place: Place
    bias: Tensor
    sign: float


Work = list[tuple[Tensor, list[_Reader]]]
"""For each axis the units that nothing feeds, and the layers that read them."""


def constant_units(model: nn.Module, structure: Structure, there: Nonzero) -> Work:
    """The units whose weights are all zero, but that are read: they may be the same number everywhere."""
    modules = modules_in(model)
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    work: Work = []
    for axis, places in structure.places.items():
        if axis.pinned or axis.approximate or axis in summed or axis not in structure.producers:
            continue
        unfed = _unfed(axis, places, there)
        if not bool(unfed.any()):
            continue
        readers = [_reader(place, modules, structure) for place in places if place.role == "consumer"]
        known = [reader for reader in readers if reader is not None]
        if readers and len(known) == len(readers):
            work.append((unfed, known))
    return work


@torch.no_grad()
def fold_constants_(model: nn.Module, work: Work, examples: list[Any], undo: Undo) -> int:
    """Stop reading units that are the same number everywhere since nothing feeds them; returns how many.

    A unit counts where its number is the same at every place of every example. What it adds is moved to the reading layers' biases (or
    the means of the BatchNorm behind them); a convolution that pads with zeros does not see the same number at its borders, so there
    only zeros count.
    """
    watched = {id(reader.module): reader.module for _, readers in work for reader in readers}
    inputs = _inputs(model, list(watched.values()), examples)
    return sum(_fold_(unfed, readers, inputs, undo) for unfed, readers in work)


def _unfed(axis: Axis, places: list[Place], there: Nonzero) -> Tensor:
    """The units whose weights are all zero while something still reads them."""
    makers = [place for place in places if place.role == "producer" and there.weights[place.parameter].ndim > 1]
    return ~there.at(axis, makers) & there.at(axis, [place for place in places if place.role == "consumer"])


def _reader(place: Place, modules: dict[str, nn.Module], structure: Structure) -> _Reader | None:
    path, _, attribute = place.parameter.rpartition(".")
    module: Any = modules[path]
    plain = isinstance(module, nn.Linear) or (
        isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1
    )
    if not plain or attribute != "weight" or place.dim != 1:
        return None
    if module.bias is not None:
        return _Reader(module, place, module.bias, 1.0)
    mean = _mean_behind(path, modules, structure)
    return None if mean is None else _Reader(module, place, mean, -1.0)


def _mean_behind(path: str, modules: dict[str, nn.Module], structure: Structure) -> Tensor | None:
    """The running mean of the BatchNorm that alone uses what a layer without bias gives."""
    made = [value for op in structure.trace.ops if op.module == path for value in op.outputs]
    users = [op for op in structure.trace.ops if op.module != path and any(value in made for value in op.inputs)]
    norm = modules.get(users[0].module) if len(users) == 1 else None
    fits = isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(users[0].args[0], Value)
    return norm.running_mean if fits else None  # type: ignore[union-attr,return-value]


def _inputs(model: nn.Module, watched: list[nn.Module], examples: list[Any]) -> dict[int, list[Tensor]]:
    seen: dict[int, list[Tensor]] = {id(module): [] for module in watched}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[id(module)].append(inputs[0].detach())

    handles = [module.register_forward_pre_hook(note) for module in watched]
    try:
        for example in examples if watched else ():
            with untouched(model):
                run_example(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _fold_(unfed: Tensor, readers: list[_Reader], inputs: dict[int, list[Tensor]], undo: Undo) -> int:
    """Fold the units of one axis that are constant for all of their readers."""
    numbers = [_constants(reader, inputs[id(reader.module)]) for reader in readers]
    folded = unfed.clone()
    for reader, (constant, number) in zip(readers, numbers, strict=True):
        by_unit = reader.place.view(constant[None], 1).flatten(1).all(1)
        if isinstance(reader.module, _ConvNd) and reader.module.padding_mode == "zeros" and _pads(reader.module):
            by_unit &= (reader.place.view(number[None], 1) == 0).flatten(1).all(1)
        folded &= by_unit.cpu()
    for reader, (_, number) in zip(readers, numbers, strict=True):
        weight = reader.module.weight
        chosen = torch.zeros(1, weight.shape[1], dtype=torch.bool, device=weight.device)
        view = reader.place.view(chosen, 1)
        view.copy_(folded.to(weight.device).view(-1, *(1,) * (view.ndim - 1)).expand_as(view))
        columns = chosen[0]
        added = weight[:, columns].flatten(2).sum(2) if weight.ndim > 2 else weight[:, columns]
        for tensor in (weight.data, reader.bias.data):
            before = tensor.clone()
            undo.add(partial(tensor.copy_, before))
        reader.bias.data += reader.sign * (added @ number[columns])
        weight.data[:, columns] = 0
    return int(folded.sum())


def _pads(module: Any) -> bool:
    return module.padding == "same" or (module.padding != "valid" and any(module.padding))


def _constants(reader: _Reader, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Which input features are one number everywhere, and that number."""
    kernel = reader.module.weight.ndim - 2
    rows = torch.cat([each.movedim(each.ndim - kernel - 1, 0).flatten(1) for each in inputs], dim=1)
    low, high = rows.aminmax(dim=1)
    return high - low <= 1e-6 * torch.maximum(low.abs(), high.abs()), rows[:, 0]
