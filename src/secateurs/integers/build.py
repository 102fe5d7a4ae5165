"""A model as a network of layers for small machines, in float32, from which integers come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.answers import alike
from secateurs.forward import describe, run_example
from secateurs.integers.building import Building
from secateurs.integers.functions import function_of
from secateurs.integers.gru import Whole
from secateurs.integers.gru import refused as recurrent_refused
from secateurs.integers.layers import (
    Add,
    Array,
    Conv,
    Face,
    Layer,
    Network,
    Pad,
    Recurrent,
    Table,
    View,
    read,
    with_layers,
    written,
)
from secateurs.integers.operations import build
from secateurs.integers.placed import lying
from secateurs.integers.unrolled import joined
from secateurs.nested import Value, changed, leaves, tensors_in
from secateurs.run.lowering.lower import lower
from secateurs.run.network import nodes
from secateurs.run.network.nodes import Torch, inputs_of
from secateurs.run.recording.one_call import network_of
from secateurs.types import NonFiniteError, SecateursError
from secateurs.watch import untouched


class UnsupportedError(SecateursError):
    """A model has layers that a small machine has no kernels for."""


def built(model: nn.Module, example: Any) -> Network:
    """The layers of a model, for one sample, in float32: batch normalisation folded, channels last, reshapes without a copy.

    Of an example with several samples the first one is taken, where the model answers for each alone.

    Raises `UnsupportedError` that lists all layers without kernels, or tensors of whole numbers; `CompileError` where what the model does
    depends on the numbers of the input; `TaskError` where it rejects the example.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    >>> network = built(model, torch.zeros(5, 1, 4, 4))
    >>> [type(layer).__name__ for layer in network.layers], network.layers[0].low, network.inputs[0].array.shape
    (['Conv', 'View', 'Conv'], 0.0, (4, 4, 1))
    """
    _require_kernels(model, recurrent_refused(model))
    sample, batched = one_sample(model, example)
    with Whole():
        recorded = lower(network_of(model, sample))
    _require_floats(recorded)
    to = Building(constants=recorded.constants)
    known: set[str] = set()
    inputs = tuple(
        _input(to, recorded, value, name, batched) for name, value in _apart(_named(recorded.example, "input"), "input", known)
    )
    _require_kernels(model, build(to, recorded.nodes))
    outputs = tuple(_output(to, value, name, batched) for name, value in _apart(_named(recorded.result, "output"), "output", known))
    return _tidy(joined(Network(inputs, outputs, tuple(to.layers))))


def _require_kernels(model: nn.Module, refused: list[str]) -> None:
    if refused:
        kinds = "\n  ".join(dict.fromkeys(refused))
        raise UnsupportedError(
            f"{type(model).__name__} cannot run on a small machine: it has no kernels for\n  {kinds}\nreplace these, or leave them to what "
            "calls the network: cut the model before them"
        )


def one_sample(model: nn.Module, example: Any) -> tuple[Any, bool]:
    """The first sample of an example, and whether its first dimension counts samples.

    It does where each tensor has it, and the model answers for the first sample as it does for all together; else the example is one
    sample as it is.
    """
    tensors = list(tensors_in(example))
    if not tensors:
        raise UnsupportedError(f"there is no tensor in the example ({describe(example)}): give what the model is called with")
    many = {tensor.shape[0] if tensor.ndim > 1 else None for tensor in tensors}
    if len(many) != 1 or None in many or not next(iter(many)):
        return example, False
    first = changed(example, lambda tensor: tensor[:1])
    with torch.no_grad(), untouched(model):
        whole = list(tensors_in(run_example(model, example)))
        try:
            alone = list(tensors_in(run_example(model, first)))
        except Exception:
            return example, False
    several = tensors[0].shape[0] > 1
    each = all(
        one.ndim and two.ndim and two.shape[0] == 1 and one.shape[0] == tensors[0].shape[0]
        for one, two in zip(whole, alone, strict=True)
    )
    if each and (not several or alike([one[:1] for one in whole], alone, 1e-3)):
        return first, True
    return example, False


def require_finite(network: Network) -> None:
    """Raise `NonFiniteError` where a weight or bias of a layer is NaN or infinite."""
    for layer in network.layers:
        if isinstance(layer, (Conv, Recurrent)):
            for what in ("weight", "bias", "recurrent", "recurrent_bias"):
                numbers = getattr(layer, what, None)
                if numbers is not None and (wrong := numbers.size - int(np.isfinite(numbers).sum())):
                    raise NonFiniteError(
                        f"{layer.name}: {wrong} of {numbers.size} numbers of its {what} (batch normalisation folded in) are NaN or "
                        "infinite; load other weights, or look where training went astray"
                    )


_TAKEN = re.compile(r"run|steps?|step_[0-9]+|arena_bytes")
"""What C calls other things by than inputs and outputs."""


def _apart(named: Iterable[tuple[str, Value]], what: str, known: set[str]) -> Iterator[tuple[str, Value]]:
    """The same with names that are told apart without capitals, from each other, the ``known`` ones and what C has anyway."""
    for name, value in named:
        wanted = f"{what}_{name}" if name.lower() in known or _TAKEN.fullmatch(name.lower()) else name
        found, number = wanted, 2
        while found.lower() in known:
            found, number = f"{wanted}_{number}", number + 1
        known.add(found.lower())
        yield found, value


def _named(nest: Any, what: str) -> Iterator[tuple[str, Value]]:
    found = [(path, value) for path, value in leaves(nest) if isinstance(value, Value)]
    for path, value in found:
        tail = "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in str(path)).strip("_")
        yield (what if len(found) == 1 or not tail else f"{what}_{tail}" if tail[0].isdigit() else tail), value


def _require_floats(recorded: nodes.Network) -> None:
    for name, value in _named(recorded.example, "input"):
        if value.dtype != torch.float32:
            way = (
                "call model.float(), and .float() of the example"
                if value.dtype.is_floating_point
                else "call .float() of the example, or leave out what looks whole numbers up, embeddings for example"
            )
            raise UnsupportedError(
                f"the {name} is {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}: a small machine takes float32, which it "
                f"quantises; {way}"
            )


def _input(to: Building, recorded: nodes.Network, value: Value, name: str, batched: bool) -> Face:
    """An image, or what becomes one, with channels last; else as torch has it."""
    order = _order(recorded, value)
    shape = tuple(value.shape[dim] for dim in order)
    if len(shape) == 4 and shape[0] == 1:
        of = (shape[1], shape[2], shape[3])
    else:
        of = (1, int(torch.Size(shape[:-1]).numel()), shape[-1] if shape else 1)
    array = to.array(name, of)
    to.places[value] = lying(array, value.shape, order)
    return Face(name, array, tuple(value.shape), order, batched)


def _order(recorded: nodes.Network, value: Value) -> tuple[int, ...]:
    dims = len(value.shape)
    readers = [node for node in recorded.nodes if value in inputs_of(node)]
    if dims == 3 and readers and all(_makes_image(node) for node in readers):
        return (0, 2, 1)
    if dims == 4 and not any(isinstance(node, nodes.Linear) for node in readers):
        return (0, 2, 3, 1)
    return tuple(range(dims))


def _makes_image(node: nodes.Node) -> bool:
    """Whether a step sees a tensor (1, channels, length) as an image of height 1, or pads it."""
    if not isinstance(node, Torch):
        return False
    shape = node.outputs[0].shape if node.outputs else ()
    pads = str(node.function).startswith("aten.constant_pad_nd")
    return pads or (len(shape) == 4 and shape[2] == 1 and shape[:2] == node.args[0].shape[:2])


def _output(to: Building, value: Value, name: str, batched: bool) -> Face:
    if value in to.constants or value not in to.places:
        raise UnsupportedError(f"the {name} does not depend on the inputs")
    placed = to.places[value]
    if placed.dims is not None:
        return Face(name, placed.array, tuple(value.shape), placed.dims, batched)
    array = to.rows(value)
    return Face(name, array, tuple(value.shape), tuple(range(len(value.shape))), batched)


# ---------------------------------------------------------------- what goes into its neighbours


def _tidy(network: Network) -> Network:
    """Clamps go into the sums before them, paddings of zeros into the convolutions behind them; what nobody reads is left out."""
    network = _clamped(network)
    layers = list(network.layers)
    pads = {layer.y.name: layer for layer in layers if isinstance(layer, Pad) and layer.value == 0 and not any(layer.channels)}
    for place, layer in enumerate(layers):
        if isinstance(layer, Conv) and layer.x.name in pads:
            pad = pads[layer.x.name]
            both = tuple(one + two for one, two in zip(layer.padding, pad.padding, strict=True))
            layers[place] = replace(layer, x=pad.x, padding=both)  # type: ignore[arg-type]
    needed = Counter(face.array.name for face in network.outputs)
    kept: list[Layer] = []
    for layer in reversed(layers):
        if any(needed[array.name] for array in written(layer)):
            needed.update(array.name for array in read(layer))
            kept.append(layer)
    return replace(network, layers=tuple(kept[::-1]))


def _clamped(network: Network) -> Network:
    """The same with clamps taken into the convolutions and sums that they alone read."""
    readers = Counter(array.name for layer in network.layers for array in read(layer))
    readers.update(face.array.name for face in network.outputs)
    kept: list[Layer] = []
    of: dict[str, Array] = {}
    places: dict[str, int] = {}
    for layer in network.layers:
        if isinstance(layer, Table) and layer.function.startswith("clamp ") and readers[layer.x.name] == 1:
            place = places.get(of.get(layer.x.name, layer.x).name)
            if place is not None:
                before, limit = kept[place], function_of(layer.function)
                assert isinstance(before, (Conv, Add))
                low, high = limit(np.array([before.low, before.high])).tolist()
                kept[place], of[layer.y.name] = replace(before, low=low, high=high), before.y
                continue
        if isinstance(layer, (Conv, Add)):
            places[layer.y.name] = len(kept)
        kept.append(layer)
    return with_layers(network, kept, of)


def folded(layers: tuple[Layer, ...]) -> dict[str, Array]:
    """Of each array that is a view, the array whose memory it is."""
    found: dict[str, Array] = {}
    for layer in layers:
        if isinstance(layer, View):
            found[layer.y.name] = found.get(layer.x.name, layer.x)
    return found
