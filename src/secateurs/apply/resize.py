"""Making a model physically smaller, and doing it again on a fresh one: tensors, attributes, and the sizes in the model's code.

A `Step` says everything: which indices of which tensors stay, which attributes follow, and which calls in a module's forward are
given other sizes than its code writes down. The last is needed where a size is no attribute but a number in the source
(``view(-1, 400)``) or the outcome of arithmetic that no longer holds (``C // self.num_heads``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import setitem
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.apply.optimizers import cut_state_, forget_shared_
from secateurs.apply.pieces import LARGE, pieces
from secateurs.apply.rewrite import REWRITES, RewrittenForward
from secateurs.apply.step import Rewrite, Step
from secateurs.forward import modules_in, parameters_in
from secateurs.types import FileError

_STEPS = "_secateurs_steps"

Indices = Mapping[int, Sequence[int] | Tensor]
"""Dimension → the indices of it that stay."""


# ---------------------------------------------------------------- tensors


class Undo:
    """What was changed, so that it can be put back, last first."""

    def __init__(self) -> None:
        self._back: list[Callable[[], Any]] = []

    def add(self, back: Callable[[], Any]) -> None:
        self._back.append(back)

    def __call__(self) -> None:
        while self._back:
            self._back.pop()()


def _slots(model: nn.Module) -> dict[str, tuple[dict[str, Tensor | None], str]]:
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
    slots = _slots(model)
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


# ---------------------------------------------------------------- attributes


def _weight_sizes(out: str, inside: str) -> Callable[[Any], dict[str, int]]:
    return lambda module: {out: module.weight.shape[0], inside: module.weight.shape[1]}


def _length(attribute: str) -> Callable[[Any], dict[str, int]]:
    def of(module: Any) -> dict[str, int]:
        known = next((t for t in (module.weight, getattr(module, "running_mean", None)) if t is not None), None)
        return {} if known is None else {attribute: known.shape[0]}

    return of


def _convolution(module: Any) -> dict[str, int]:
    first, second = module.weight.shape[:2]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"in_channels": second * module.groups, "out_channels": first}


def _recurrent(module: Any) -> dict[str, int]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    sizes = {"input_size": module.weight_ih_l0.shape[1], "hidden_size": module.weight_ih_l0.shape[0] // gates}
    return {**sizes, "proj_size": module.weight_hr_l0.shape[0]} if module.proj_size else sizes


def _cell(module: Any) -> dict[str, int]:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _bilinear(module: Any) -> dict[str, int]:
    return dict(zip(("out_features", "in1_features", "in2_features"), module.weight.shape, strict=True))


def _attention(module: Any) -> dict[str, int]:
    return {"embed_dim": module.out_proj.weight.shape[0], "head_dim": module.out_proj.weight.shape[1] // module.num_heads}


SIZES: dict[type[nn.Module], Callable[[Any], dict[str, int]]] = {
    nn.Linear: _weight_sizes("out_features", "in_features"),
    nn.Bilinear: _bilinear,
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._NormBase: _length("num_features"),
    nn.GroupNorm: _length("num_channels"),
    nn.PReLU: _length("num_parameters"),
    nn.Embedding: _weight_sizes("num_embeddings", "embedding_dim"),
    nn.EmbeddingBag: _weight_sizes("num_embeddings", "embedding_dim"),
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.MultiheadAttention: _attention,
}
"""Layer class → the attributes that its weights' shapes imply. What a layer passes to torch as a size is found without this table."""


def implied(model: nn.Module, computed: Iterable[tuple[str, str, Any]] = ()) -> dict[str, dict[str, list[Any]]]:
    """Attributes of torch's own layers that are not what the weights' shapes imply: module → attribute → [old, new].

    Those that the model's code computes with (a scale of attention, say) stay as they are.
    """
    fixed = {(path, key) for path, key, _ in computed}
    found: dict[str, dict[str, list[Any]]] = {}
    for name, module in modules_in(model).items():
        rule = next((SIZES[base] for base in type(module).__mro__ if base in SIZES), None)
        for key, new in (rule(module) if rule else {}).items():
            if (old := getattr(module, key)) != new and (name, key) not in fixed:
                found.setdefault(name, {})[key] = [old, new]
    return found


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


# ---------------------------------------------------------------- doing it again


def steps_of(model: nn.Module) -> list[Step]:
    """What was done to make this model smaller than its class makes it."""
    return list(model.__dict__.get(_STEPS, []))


def remember_(model: nn.Module, step: Step, undo: Undo) -> None:
    """Note a step on the model, so that it can be saved with it."""
    slots, before = model.__dict__, model.__dict__.get(_STEPS)
    undo.add(partial(slots.pop, _STEPS) if before is None else partial(setitem, slots, _STEPS, before))
    slots[_STEPS] = [*(before or []), step]


_STEPS_AT_MOST = 1000
"""More than a model was ever shrunk in; each takes a look at the whole model."""


def replay_(model: nn.Module, steps: Sequence[Step]) -> Undo:
    """Shrink a freshly made model as another one of its class was, and return how to take it back.

    Raises `FileError` at the first difference between that model and this one, which then is as it was.
    """
    if len(steps) > _STEPS_AT_MOST:
        raise FileError(f"the model is said to be shrunk in {len(steps)} steps; the file is damaged")
    undo = Undo()
    try:
        for step in steps:
            _require_outermost(model, [*step.identities, *step.zeros])
            take_out_(model, step, undo)
            _require_same(model, step)
            cut_(model, step.cuts, undo)
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


def _require_outermost(model: nn.Module, names: Sequence[str]) -> None:
    """Raise `FileError` where modules that are to be replaced are not there, or are within each other."""
    modules, gone = modules_in(model), set(names)
    for name in names:
        outer = name
        while outer := outer.rpartition(".")[0]:
            if outer in gone:
                raise FileError(f"the model was shrunk by {outer!r} and by {name!r} in it; the file is damaged")
        if not name or name not in modules:
            raise _no_module(model, name)
    if len(gone) < len(names):
        raise FileError("the model was shrunk by one module twice; the file is damaged")


def _no_module(model: nn.Module, name: str) -> FileError:
    return FileError(f"the model was shrunk from one with a module {name!r}, but {type(model).__name__} has none of that name")


def _require_same(model: nn.Module, step: Step) -> None:
    """Raise `FileError` where a model is not what a step was made for, or where the step would make it larger."""
    slots, modules = _slots(model), modules_in(model)
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
            raise _no_module(model, path)
        for key, (old, new) in changes.items():
            _require_same_attribute(path, modules[path], key, old, new, largest)
    for path, rewrites in step.rewrites.items():
        if path not in modules:
            raise _no_module(model, path)
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
