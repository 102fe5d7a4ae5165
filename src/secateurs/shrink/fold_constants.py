"""Channels that are constants, since pruning has cut off what feeds them or their normalisation scales by zero: folded into biases.

What a unit is for every input is proven from the trace (`secateurs.graph.known`), never seen in an example. What a constant adds to a
layer that reads it goes into that layer's bias; then nothing reads the unit any more, and it can be taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.forward import modules_in
from secateurs.graph import Axis, Knowing, Op, Place, Structure, Value, occurrences
from secateurs.shrink.needed_units import Nonzero
from secateurs.shrink.undo import Undo


@dataclass(frozen=True)
class _Reader:
    """A layer that reads units: what holds its bias (with which sign), and every tensor that it is given, with its features' dimension.

    ``padded``: zeros stand around what it reads, so that a constant is another number at the borders.
    """

    name: str
    module: Any
    place: Place
    bias: Tensor
    sign: float
    inputs: tuple[tuple[Value, int], ...]
    padded: bool


@dataclass(frozen=True)
class Constants:
    """Axis → the units to fold, and the layers that read them; and why others that are constants stay, by axis."""

    work: list[tuple[Axis, Tensor, list[_Reader]]] = field(default_factory=list)
    left: dict[Axis, str] = field(default_factory=dict)


def constant_units(model: nn.Module, structure: Structure, knowing: Knowing, there: Nonzero) -> Constants:
    """The units that are read, but are the same number for every input, wherever they are read."""
    modules, users = modules_in(model), _users(structure.trace.ops)
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    found = Constants()
    for axis, places in structure.places.items():
        if axis.pinned or axis.approximate or axis in summed or axis not in structure.producers:
            continue
        reading = [place for place in places if place.reads]
        read = there.at(axis, reading)
        if not reading or not bool(read.any()):
            continue
        readers = [_reader(place, modules, structure, users) for place in reading]
        known = [reader for reader in readers if reader is not None]
        folded = read.clone()
        for reader in known:
            folded &= _certain(axis, reader, structure, knowing, zeros=reader.padded)
        if len(known) == len(readers) and bool(folded.any()):
            found.work.append((axis, folded, known))
        else:
            folded = torch.zeros_like(folded)
        if bool((stays := _silent(axis, places, modules, there) & read & ~folded).any()):
            unknown = next((place.parameter for place, reader in zip(reading, readers, strict=True) if reader is None), None)
            found.left[axis] = _why(axis, stays, unknown, known, structure, knowing)
    return found


@torch.no_grad()
def fold_constants_(constants: Constants, knowing: Knowing, undo: Undo) -> int:
    """Stop reading constant units: what they add is moved to the biases of the layers that read them (or the means of the BatchNorm
    behind these); returns how many there were."""
    for _, units, readers in constants.work:
        for reader in readers:
            _fold_(units, reader, knowing, undo)
    return sum(int(units.sum()) for _, units, _ in constants.work)


def _fold_(units: Tensor, reader: _Reader, knowing: Knowing, undo: Undo) -> None:
    weight = reader.module.weight
    chosen = torch.zeros(1, weight.shape[1], dtype=torch.bool)
    view = reader.place.view(chosen, 1)
    view.copy_(units.view(-1, *(1,) * (view.ndim - 1)).expand_as(view))
    columns = chosen[0]
    number = knowing.of(reader.inputs[0][0]).numbers(reader.inputs[0][1])[columns].to(weight.device)
    for tensor in (weight.data, reader.bias.data):
        before = tensor.clone()
        undo.add(partial(tensor.copy_, before))
    columns = columns.to(weight.device)
    added = weight[:, columns].flatten(2).sum(2) if weight.ndim > 2 else weight[:, columns]
    reader.bias.data += (reader.sign * (added.double() @ number)).to(reader.bias.dtype)
    weight.data[:, columns] = 0


def _certain(axis: Axis, reader: _Reader, structure: Structure, knowing: Knowing, zeros: bool) -> Tensor:
    """Which units are one number (or zero) in everything that a layer is given, the same each time."""
    sure = torch.ones(axis.size, dtype=torch.bool)
    first: Tensor | None = None
    for value, dim in reader.inputs:
        known, number = knowing.of(value).along(dim, zeros=zeros), knowing.of(value).numbers(dim)
        first = number if first is None else first
        known = known & (number == first) if len(first) == len(number) else torch.zeros_like(known)
        views = list(occurrences(structure.typing.dims(value)[dim], axis))
        for view in views:
            sure &= view(known, 0).reshape(axis.size, -1).all(1)
        if not views:
            return torch.zeros_like(sure)
    return sure


def _silent(axis: Axis, places: Sequence[Place], modules: dict[str, nn.Module], there: Nonzero) -> Tensor:
    """Units that nothing feeds, or that the BatchNorm behind the one layer that feeds them scales by zero: one would expect them to go."""
    makers = [place for place in places if place.role == "producer" and there.weights[place.parameter].ndim > 1]
    silent = ~there.at(axis, makers)
    for place in places if len(makers) == 1 else ():
        path, _, attribute = place.parameter.rpartition(".")
        if isinstance(modules.get(path), nn.modules.batchnorm._BatchNorm) and attribute == "weight":
            silent |= ~there.at(axis, [place])
    return silent


def _why(axis: Axis, units: Tensor, unknown: str | None, readers: list[_Reader], structure: Structure, knowing: Knowing) -> str:
    count = int(units.sum())
    what = f"{count} constant unit{'s' if count > 1 else ''} cannot be folded: "
    if unknown is not None:
        return f"{what}{unknown} reads them, and there is no bias of its own behind it into which they could go"
    for reader in readers:
        if reader.padded and bool((_certain(axis, reader, structure, knowing, zeros=False) & units).any()):
            return f"{what}{reader.name} pads with zeros, so that at its borders they are not the same"
        if not bool((_certain(axis, reader, structure, knowing, zeros=False) & units).any()):
            return f"{what}what {reader.name} reads of them is not the same number for every input and place"
    return f"{what}some of the layers that read them need them"


# ---------------------------------------------------------------- who reads


def _users(ops: Sequence[Op]) -> dict[Value, list[Op]]:
    users: dict[Value, list[Op]] = {}
    for op in ops:
        for value in dict.fromkeys(op.inputs):
            users.setdefault(value, []).append(op)
    return users


def _reader(place: Place, modules: dict[str, nn.Module], structure: Structure, users: dict[Value, list[Op]]) -> _Reader | None:
    """A linear layer or convolution, where all that its weight and its bias are used for is known."""
    path, _, attribute = place.parameter.rpartition(".")
    module: Any = modules.get(path)
    plain = isinstance(module, nn.Linear) or (
        isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1
    )
    if not plain or attribute != "weight" or place.dim != 1 or place.role != "consumer":
        return None
    parameters = structure.trace.parameters
    uses = list(_uses(parameters[place.parameter], users))
    if not uses or any(use is None for use in uses):
        return None
    ops = [use[0] for use in uses if use is not None]
    inputs = tuple(use[1:] for use in uses if use is not None)
    padded = any(op.name == "convolution" and any(op.argument("padding")) for op in ops) or (
        structure.trace.sized is not None and isinstance(module, _ConvNd)
    )
    shift = parameters.get(f"{path}.bias".removeprefix("."))
    if module.bias is not None and shift is not None:
        if users.get(shift, []) != ops:
            return None
        return _Reader(path or place.parameter, module, place, module.bias, 1.0, inputs, padded)
    mean = _mean_behind(ops, modules, structure, users) if module.bias is None else None
    return None if mean is None else _Reader(path or place.parameter, module, place, mean, -1.0, inputs, padded)


def _uses(weight: Value, users: dict[Value, list[Op]]) -> Iterator[tuple[Op, Value, int] | None]:
    """Every product with a weight, with the tensor that is multiplied and its features' dimension; ``None`` for any other use."""
    for op in users.get(weight, []):
        if op.name == "t":
            for inner in users.get(op.outputs[0], []):
                a, b = inner.args[1:3] if inner.name == "addmm" else inner.args[:2]
                right = inner.name in ("mm", "addmm") and b is op.outputs[0] and a is not b and _unscaled(inner)
                yield (inner, a, 1) if right else None
        elif op.name == "convolution" and op.args[1] is weight and op.args[0] is not weight:
            yield op, op.args[0], len(op.args[0].shape) - len(weight.shape) + 1
        elif op.name == "linear" and op.args[1] is weight and op.args[0] is not weight:
            yield op, op.args[0], len(op.args[0].shape) - 1
        else:
            yield None


def _unscaled(op: Op) -> bool:
    return op.argument("alpha", 1) == 1 and op.argument("beta", 1) == 1


def _mean_behind(
    ops: Sequence[Op], modules: dict[str, nn.Module], structure: Structure, users: dict[Value, list[Op]]
) -> Tensor | None:
    """The running mean of the BatchNorm that alone uses what a layer without bias gives, and that nothing else uses."""
    behind = [user for op in ops for user in users.get(op.outputs[0], [])]
    if len(ops) != 1 or len(behind) != 1:
        return None
    norm = modules.get(behind[0].module)
    means = {value: name for name, value in structure.trace.buffers.items()}
    if (
        not isinstance(norm, nn.modules.batchnorm._BatchNorm)
        or norm.running_mean is None
        or behind[0].args[0] is not ops[0].outputs[0]
    ):
        return None
    mean = behind[0].args[3]
    fits = means.get(mean) == f"{behind[0].module}.running_mean" and users.get(mean, []) == behind
    return norm.running_mean if fits and not behind[0].argument("training", False) else None
