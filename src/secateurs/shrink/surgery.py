"""Making a model physically smaller, and doing it again on a fresh one: tensors, attributes, and the sizes in the model's code.

A `Step` says everything: which indices of which tensors stay, which attributes follow, and which calls in a module's forward are
given other sizes than its code writes down. The last is needed where a size is no attribute but a number in the source
(``view(-1, 400)``) or the outcome of arithmetic that no longer holds (``C // self.num_heads``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import setitem
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, parameters_in
from secateurs.masks.pieces import LARGE, pieces
from secateurs.shrink.optimizer_state import cut_state_, forget_shared_
from secateurs.shrink.rewritten_forward import REWRITES, RewrittenForward
from secateurs.shrink.step import Rewrite, Step
from secateurs.shrink.undo import Undo
from secateurs.types import FileError

Indices = Mapping[int, Sequence[int] | Tensor]
"""Dimension → the indices of it that stay."""


def places_in(model: nn.Module) -> dict[str, tuple[dict[str, Tensor | None], str]]:
    """Name → the dict and key in which a module holds that parameter or buffer; tied ones under each of their names."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for path, module in modules_in(model, again=True).items():
        for slots in (module._parameters, module._buffers):
            for key in slots:
                found[f"{path}.{key}" if path else key] = (slots, key)
    return found


@torch.no_grad()
def cut_(
    model: nn.Module, cuts: Mapping[str, Indices], undo: Undo, optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Keep only the indices given of each tensor: parameters with their gradients and what the optimizer holds of them, buffers.

    Returns the parameters of which the optimizer could not keep what it held: it begins anew with them.
    """
    slots = places_in(model)
    holding: dict[int, list[tuple[dict[str, Tensor | None], str]]] = {}
    for slots_of, key in slots.values():
        holding.setdefault(id(slots_of[key]), []).append((slots_of, key))
    done: set[int] = set()
    anew: set[int] = set()
    for name, by_dim in cuts.items():
        holder, key = slots[name]
        tensor = holder[key]
        assert tensor is not None
        if id(tensor) in done:
            continue
        if isinstance(tensor, nn.Parameter):
            anew |= _cut_state(tensor, by_dim, undo, optimizer)
            _cut_parameter(tensor, by_dim, undo)
            _cut_computed(name, model, by_dim, undo)
            done.add(id(tensor))
        else:
            smaller = kept_of(tensor, by_dim)
            for holder, key in holding[id(tensor)]:
                undo.add(partial(setitem, holder, key, tensor))
                holder[key] = smaller
            done.add(id(smaller))
    for module in modules_in(model).values():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return tuple(name for name, parameter in parameters_in(model).items() if id(parameter) in anew)


def _cut_state(parameter: nn.Parameter, by_dim: Indices, undo: Undo, optimizer: torch.optim.Optimizer | None) -> set[int]:
    """Cut what an optimizer holds of a parameter; returns the parameters (ids) with which it begins anew instead."""
    if optimizer is None:
        return set()
    shared, back = forget_shared_(optimizer)
    undo.add(back)
    known, back = cut_state_(
        optimizer, parameter, tuple(by_dim), lambda tensor, dims: kept_of(tensor, {dim: by_dim[dim] for dim in dims})
    )
    undo.add(back)
    return {id(each) for each in shared} | (set() if known else {id(parameter)})


def _cut_parameter(parameter: nn.Parameter, by_dim: Indices, undo: Undo) -> None:
    data, gradient = parameter.data, parameter.grad

    def back() -> None:
        parameter.grad = None
        parameter.data = data
        parameter.grad = gradient

    undo.add(back)
    parameter.grad = None
    # Graphs of earlier passes that are still about know the parameter by its old shape; another dtype makes it forget them.
    parameter.data = data.new_empty(0, dtype=torch.float32 if data.dtype == torch.float64 else torch.float64)
    parameter.data = kept_of(data, by_dim)
    if gradient is not None:
        parameter.grad = kept_of(gradient, by_dim)


def _cut_computed(name: str, model: nn.Module, by_dim: Indices, undo: Undo) -> None:
    """What a layer's hook made of a parameter in its last pass (``weight`` of ``weight_orig``) tells the layer's sizes until the next."""
    path, _, key = name.rpartition(".")
    slots = model.get_submodule(path).__dict__
    made = slots.get(key.removesuffix("_orig"))
    if key.endswith("_orig") and isinstance(made, Tensor):
        undo.add(partial(setitem, slots, key.removesuffix("_orig"), made))
        slots[key.removesuffix("_orig")] = kept_of(made.detach(), by_dim)


def kept_of(tensor: Tensor, by_dim: Indices) -> Tensor:
    """Only the indices given of each dimension, in the memory format that the tensor had."""
    format_ = (
        torch.channels_last
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    chosen = {dim: torch.as_tensor(by_dim[dim], dtype=torch.long, device=tensor.device) for dim in sorted(by_dim)}
    twice = 0 in chosen and len(chosen) > 1
    smaller = _few_at_a_time(tensor, chosen) if twice and tensor.numel() > LARGE else _selected(tensor, chosen)
    return smaller.contiguous(memory_format=format_)


def _selected(tensor: Tensor, chosen: Mapping[int, Tensor]) -> Tensor:
    for dim, indices in chosen.items():
        tensor = tensor.index_select(dim, indices)
    return tensor


def _few_at_a_time(tensor: Tensor, chosen: Mapping[int, Tensor]) -> Tensor:
    """As `_selected`, some rows after the other: what one dimension leaves for the next is never in memory as a whole."""
    smaller = tensor.new_empty([len(chosen[dim]) if dim in chosen else size for dim, size in enumerate(tensor.shape)])
    for part, rows in pieces(smaller, chosen[0]):
        part.copy_(_selected(tensor, {**chosen, 0: rows}))
    return smaller


def set_attributes_(model: nn.Module, attributes: Mapping[str, Mapping[str, Sequence[Any]]], undo: Undo) -> None:
    """Give attributes their new values."""
    modules = modules_in(model) if attributes else {}
    for name, changes in attributes.items():
        slots = modules[name].__dict__
        for key, (_, new) in changes.items():
            old = slots[key]
            undo.add(partial(setitem, slots, key, old))
            slots[key] = type(old)(new) if isinstance(old, (tuple, list)) else new


# ---------------------------------------------------------------- sizes in the model's code


def rewrite_(model: nn.Module, rewrites: Mapping[str, Sequence[Rewrite]], undo: Undo) -> None:
    """Let the forward passes of these modules run with other sizes than their code writes down."""
    for name, entries in rewrites.items():
        module = model.get_submodule(name)
        slots = module.__dict__
        for key, new in ((REWRITES, [*slots.get(REWRITES, []), list(entries)]), ("forward", RewrittenForward(module))):
            before = slots.get(key)
            undo.add(partial(slots.pop, key) if before is None else partial(setitem, slots, key, before))
            slots[key] = new


class Zero(nn.Module):
    """What is left of a branch that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like the input."""
        return torch.zeros_like(x)


def take_out_(model: nn.Module, step: Step, undo: Undo) -> None:
    """Replace the modules that do nothing any more."""
    for name in step.identities:
        replace_module_(model, name, nn.Identity(), undo)
    for name in step.zeros:
        replace_module_(model, name, Zero(), undo)


def replace_module_(model: nn.Module, name: str, new: nn.Module, undo: Undo) -> None:
    """Put another module in the place of one."""
    path, _, key = name.rpartition(".")
    parent = model.get_submodule(path)
    old = parent._modules[key]
    undo.add(partial(setitem, parent._modules, key, old))
    parent._modules[key] = new


def require_outermost(model: nn.Module, names: Sequence[str]) -> None:
    """Raise `FileError` where modules that are to be replaced are not there, or are within each other."""
    modules, gone = modules_in(model), set(names)
    for name in names:
        outer = name
        while outer := outer.rpartition(".")[0]:
            if outer in gone:
                raise FileError(f"the model was shrunk by {outer!r} and by {name!r} in it; the file is damaged")
        if not name or name not in modules:
            raise no_module(model, name)
    if len(gone) < len(names):
        raise FileError("the model was shrunk by one module twice; the file is damaged")


def no_module(model: nn.Module, name: str) -> FileError:
    """What to raise where a model has no module of a name that a file tells of."""
    return FileError(f"the model was shrunk from one with a module {name!r}, but {type(model).__name__} has none of that name")
