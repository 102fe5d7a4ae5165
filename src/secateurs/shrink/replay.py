"""What shrinking did to a model, remembered as steps, and done again to a fresh one of its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from secateurs.forward import modules_in
from secateurs.shrink.factors import factor_
from secateurs.shrink.fastfood import fry_
from secateurs.shrink.layer_sizes import SIZES
from secateurs.shrink.remembered import remember_
from secateurs.shrink.stacks import require_entries, take_entries_
from secateurs.shrink.step import Step
from secateurs.shrink.surgery import cut_, no_module, places_in, require_outermost, rewrite_, set_attributes_, take_out_
from secateurs.shrink.undo import Undo
from secateurs.types import FileError

_STEPS_AT_MOST = 1000
"""More than a model was ever shrunk in; each takes a look at the whole model."""


def replay_(model: nn.Module, steps: Sequence[Step], optimizer: torch.optim.Optimizer | None = None) -> Undo:
    """Shrink a freshly made model as another one of its class was, what an optimizer holds of it too, and return how to take it back.

    Raises `FileError` at the first difference between that model and this one, which then is as it was.
    """
    if len(steps) > _STEPS_AT_MOST:
        raise FileError(f"the model is said to be shrunk in {len(steps)} steps; the file is damaged")
    undo = Undo()
    try:
        for step in steps:
            require_entries(model, step)
            take_entries_(model, step, undo)
            require_outermost(model, [*step.identities, *step.zeros])
            take_out_(model, step, undo)
            _require_same(model, step)
            factor_(model, step.factors, undo)
            cut_(model, step.cuts, undo, optimizer)
            fry_(model, step.fried, undo)
            set_attributes_(model, step.attributes, undo)
            _require_implied(model, step)
            rewrite_(model, step.rewrites, undo)
            remember_(model, step, undo)
    except FileError:
        undo()
        raise
    except Exception as error:  # a record may ask anything of a model that its class does not know
        undo()
        raise FileError(f"the record of how the model was shrunk cannot be followed ({type(error).__name__}: {error})") from error
    except BaseException:
        undo()
        raise
    return undo


def _require_same(model: nn.Module, step: Step) -> None:
    """Raise `FileError` where a model is not what a step was made for, or where the step would make it larger."""
    slots, modules = places_in(model), modules_in(model)
    for name, shape in step.shapes.items():
        if name not in slots:
            raise FileError(f"the model was shrunk from one with a tensor {name}, but {type(model).__name__} has none of that name")
        holder, key = slots[name]
        tensor = holder[key]
        here = None if tensor is None else list(tensor.shape)
        if here != shape:
            raise FileError(f"the model was shrunk from one whose {name} is {tuple(shape)}, but here it is {here and tuple(here)}")
    for name, by_dim in step.cuts.items():
        shape = step.shapes.get(name, [])
        if not all(dim < len(shape) and indices[-1] < shape[dim] for dim, indices in by_dim.items()):
            raise FileError(f"{name}: the record of how it was shrunk keeps indices that are not there; the file is damaged")
    largest = sum(tensor.numel() for tensor in model.parameters())
    for path, changes in step.attributes.items():
        if path not in modules:
            raise no_module(model, path)
        for key, (old, new) in changes.items():
            _require_same_attribute(path, modules[path], key, old, new, largest)
    for path, rewrites in step.rewrites.items():
        if path not in modules:
            raise no_module(model, path)
        for each in rewrites:
            given, new = (numbers if isinstance(numbers, list) else [numbers or 0] for numbers in (each.given, each.new))
            if any(abs(number) > max(largest, *map(abs, given)) for number in new):
                raise FileError(f"{path or 'the model'}: {each.name} is to be given {each.new}; the file is damaged")


def _require_same_attribute(path: str, module: nn.Module, key: str, old: Any, new: Any, largest: int) -> None:
    """Raise `FileError` where an attribute is not what it was, or would become what none of its kind is."""
    missing = object()
    here = module.__dict__.get(key, missing)
    several = isinstance(here, (tuple, list))
    kinds: tuple[type, ...] = (tuple, list, int, float, type(None))
    if type(here) not in kinds or (list(here) != old if several else (type(here), here) != (type(old), old)):
        shown = "missing" if here is missing else repr(here)[:60]
        raise FileError(f"the model was shrunk from one whose {path}.{key} is {old}, but here it is {shown}: its class has changed")
    pairs = list(zip(old, new, strict=True)) if several and isinstance(new, list) and len(new) == len(old) else [(old, new)]
    for before, after in pairs:
        size = type(before) is int and type(after) is int and 0 <= after <= max(before, largest)
        if not size and before != after and not (type(after) is float and type(before) in (float, type(None))):
            raise FileError(f"{path}.{key} cannot become {repr(new)[:60]} from {repr(old)[:60]}; the file is damaged")


def _require_implied(model: nn.Module, step: Step) -> None:
    """Raise `FileError` where a size that a step gives one of torch's layers is not that of its weights."""
    modules = modules_in(model)
    for path, changes in step.attributes.items():
        module = modules[path]
        rule = next((SIZES[base] for base in type(module).__mro__ if base in SIZES), None)
        for key, size in (rule(module) if rule else {}).items():
            if key in changes and getattr(module, key) != size:
                raise FileError(f"{path}.{key} is to be {getattr(module, key)}, but its weights say {size}; the file is damaged")
