"""What must follow once tensors are smaller: attributes that hold sizes, ε and weights of normalisations, sizes in the code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, parameters_in
from secateurs.graph import (
    Choice,
    Source,
    Structure,
    Value,
    kept,
)
from secateurs.shrink.undo import Undo


def measured(structure: Structure, choice: Choice, value: Value, dim: int) -> Tensor:
    """The indices that stay of one dimension of a value."""
    return kept(structure.typing.dims(value)[dim], choice)


Changes = dict[str, dict[str, list[Any]]]
"""Module → attribute → [old, new]."""


def attributes_of_code(model: nn.Module, structure: Structure, choice: Choice, follow: bool = True) -> Changes:
    """Attributes that the code passes to torch as sizes, where all its uses agree on the new one; and numbers of heads.

    ``follow=False`` leaves all but those of torch's own layers as they are.
    """
    modules = modules_in(model)
    changes = passed(modules, structure, choice)
    _count_channels(modules, structure, choice, changes)
    for axis, stay in choice.items():
        if axis.heads is not None:
            fixed = {attribute for path, attribute, _ in structure.trace.computed if path == axis.heads}
            _count_heads(modules[axis.heads], changes.setdefault(axis.heads, {}), fixed, axis.size, int(stay.sum()))
    return {path: found for path, found in changes.items() if found and (follow or _is_torch(modules[path]))}


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def passed(modules: Mapping[str, nn.Module], structure: Structure, choice: Choice) -> Changes:
    """Attributes that are passed to torch as sizes."""
    uses: dict[Source, set[int]] = {}
    for size_call in structure.trace.sizes:
        for number in size_call.numbers:
            source = getattr(number.given, "source", None)
            if source is not None and source not in structure.trace.computed:
                uses.setdefault(source, set()).add(number.measure(measured(structure, choice, number.tensor, number.dim)))
    changes: Changes = {}
    for (path, attribute, place), values in uses.items():
        old = modules[path].__dict__[attribute]
        here = old if place is None else old[place]
        if len(values) != 1 or (new := next(iter(values))) == here:
            continue
        known = changes.setdefault(path, {}).setdefault(attribute, [old, old if place is None else list(old)])
        if place is None:
            known[1] = new
        else:
            known[1][place] = new
    return changes


def _count_channels(modules: Mapping[str, nn.Module], structure: Structure, choice: Choice, changes: Changes) -> None:
    """Normalisations without weights: nothing but what comes in tells how many channels they have."""
    for op in structure.trace.ops:
        norm: Any = modules[op.module]
        x = op.args[0] if op.args else None
        if not isinstance(norm, nn.modules.batchnorm._NormBase) or norm._parameters["weight"] is not None:
            continue
        if isinstance(x, Value) and len(x.shape) > 1 and x.shape[1] == norm.num_features:
            new = int(measured(structure, choice, x, 1).sum())
            if new != norm.num_features:
                changes.setdefault(op.module, {})["num_features"] = [norm.num_features, new]


@torch.no_grad()
def rescale_(model: nn.Module, structure: Structure, choice: Choice, undo: Undo) -> Changes:
    """Root-mean-square normalisations over fewer features scale as before; returns the attributes that hold their ε."""
    parameters, modules = parameters_in(model, again=True), modules_in(model)
    changes: Changes = {}
    for norm in {norm.parameter: norm for norm in structure.typing.rms_norms.values()}.values():
        stay = measured(structure, choice, norm.source, len(norm.source.shape) - 1)
        more = len(stay) / int(stay.sum())
        if more == 1:
            continue
        weight = parameters[norm.parameter]
        before = weight.data
        undo.add(partial(setattr, weight, "data", before))
        weight.data = (before + norm.offset) * more**0.5 - norm.offset
        for key, value in modules[norm.module].__dict__.items():
            if type(value) is float and value == norm.eps:
                changes.setdefault(norm.module, {})[key] = [value, value * more]
            elif key == "eps" and value is None:
                changes.setdefault(norm.module, {})[key] = [None, torch.finfo(weight.dtype).eps * more]
    return changes


def _count_heads(module: nn.Module, changes: dict[str, list[Any]], computed: set[str], before: int, after: int) -> None:
    """Attributes that count heads and that no call shows, because the code writes −1 in their place."""
    for key, value in module.__dict__.items():
        if "heads" in key and type(value) is int and value % before == 0 and key not in changes and key not in computed:
            changes[key] = [value, value // before * after]
