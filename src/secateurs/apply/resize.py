"""Making a model physically smaller, and doing it again on a fresh one: tensors, attributes, and the sizes in the model's code.

A `Step` says everything: which indices of which tensors stay, which attributes follow, and which calls in a module's forward are
given other sizes than its code writes down. The last is needed where a size is no attribute but a number in the source
(``view(-1, 400)``) or the outcome of arithmetic that no longer holds (``C // self.num_heads``).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateurs.apply.attention import attend
from secateurs.graph import TABLE
from secateurs.types import FileError

_STEPS, _REWRITES = "_secateurs_steps", "_secateurs_rewrites"


@dataclass(frozen=True)
class Rewrite:
    """One number in a call: ``path`` is where it stands, ``given`` what the code writes, ``new`` what it must be.

    ``ordinal`` counts the calls that take sizes within one forward pass of the module, where it matters which of them it is. A split whose parts are no longer equal has
    the path ``("pieces",)``, and the new length of each part.
    """

    ordinal: int | None
    name: str
    path: tuple[int | str, ...]
    given: Any
    new: Any


@dataclass(frozen=True)
class Step:
    """One shrinking: everything that it takes to do it again on a model as it was before.

    ``identities`` and ``zeros`` are modules that do nothing any more and were taken out.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    rewrites: dict[str, list[Rewrite]] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """What JSON can hold; lists of kept indices that occur again and again are written once."""
        lists: list[list[int]] = []
        cuts = {name: {str(dim): _place(lists, indices) for dim, indices in by_dim.items()} for name, by_dim in self.cuts.items()}
        return {**asdict(self), "cuts": cuts, "kept": lists}

    @staticmethod
    def from_document(document: Any) -> Step:
        """Raises `FileError` where it is not what `to_document` made."""
        try:
            lists = [[_natural(index) for index in indices] for indices in document["kept"]]
            cuts = {
                str(name): {_natural(int(dim)): lists[_natural(place)] for dim, place in by_dim.items()}
                for name, by_dim in document["cuts"].items()
            }
            rewrites = {str(name): [_rewrite(each) for each in entries] for name, entries in document["rewrites"].items()}
            attributes = {
                str(name): {str(key): [_size(old), _size(new)] for key, (old, new) in changes.items()}
                for name, changes in document["attributes"].items()
            }
            shapes = {str(name): [_natural(size) for size in shape] for name, shape in document["shapes"].items()}
            gone = [[str(name) for name in document[key]] for key in ("identities", "zeros")]
            return Step(shapes, cuts, attributes, rewrites, *gone)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise FileError(f"the record of how the model was shrunk is damaged ({error!r})") from error


def _place(lists: list[list[int]], indices: list[int]) -> int:
    if indices not in lists:
        lists.append(indices)
    return lists.index(indices)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index")
    return value


def _size(value: Any) -> Any:
    """Attributes hold whole numbers, sequences of them, or a normalisation's ε."""
    if isinstance(value, list):
        return [_size(item) for item in value]
    if type(value) not in (int, float, type(None)):
        raise ValueError(f"{value!r} is no size")
    return value


def _rewrite(entry: Any) -> Rewrite:
    path = tuple(entry["path"])
    if not all(isinstance(part, (int, str)) for part in path):
        raise ValueError(f"{path!r} is no path")
    ordinal = entry["ordinal"]
    return Rewrite(None if ordinal is None else _natural(ordinal), str(entry["name"]), path, entry["given"], entry["new"])


# ---------------------------------------------------------------- tensors


class Undo:
    """What was changed, so that it can be put back, last first."""

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []

    def add(self, back: Callable[[], None]) -> None:
        self._back.append(back)

    def __call__(self) -> None:
        while self._back:
            self._back.pop()()


def _slots(model: nn.Module) -> dict[str, tuple[dict[str, Tensor | None], str]]:
    """Name → the dict and key in which a module holds that parameter or buffer; tied ones under each of their names."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for slots in (module._parameters, module._buffers):
            for key in slots:
                found[f"{path}.{key}" if path else key] = (slots, key)
    return found


@torch.no_grad()
def cut_(
    model: nn.Module, cuts: Mapping[str, Mapping[int, Sequence[int]]], undo: Undo, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Keep only the indices given of each tensor: parameters with their gradients and what the optimizer holds of them, buffers."""
    slots = _slots(model)
    done: set[int] = set()
    for name, by_dim in cuts.items():
        holder, key = slots[name]
        tensor = holder[key]
        assert tensor is not None
        if id(tensor) in done:
            continue
        if isinstance(tensor, nn.Parameter):
            _cut_parameter(tensor, by_dim, undo, optimizer)
            done.add(id(tensor))
        else:
            undo.add(lambda holder=holder, key=key, tensor=tensor: holder.__setitem__(key, tensor))
            smaller = _kept(tensor, by_dim)
            for other, other_key in slots.values():
                if other[other_key] is tensor:
                    other[other_key] = smaller
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _cut_parameter(
    parameter: nn.Parameter, by_dim: Mapping[int, Sequence[int]], undo: Undo, optimizer: torch.optim.Optimizer | None
) -> None:
    data, gradient, shape = parameter.data, parameter.grad, parameter.shape
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    held = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == shape}

    def back() -> None:
        parameter.grad = None
        parameter.data = data
        parameter.grad = gradient
        state.update(held)

    undo.add(back)
    parameter.grad = None
    parameter.data = _kept(data, by_dim)
    if gradient is not None:
        parameter.grad = _kept(gradient, by_dim)
    state.update({key: _kept(value, by_dim) for key, value in held.items()})


def _kept(tensor: Tensor, by_dim: Mapping[int, Sequence[int]]) -> Tensor:
    format_ = (
        torch.channels_last
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    for dim, indices in by_dim.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, dtype=torch.long, device=tensor.device))
    return tensor.contiguous(memory_format=format_)


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


def implied(model: nn.Module) -> dict[str, dict[str, list[Any]]]:
    """Attributes of torch's own layers that are not what the weights' shapes imply: module → attribute → [old, new]."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, module in model.named_modules():
        rule = next((SIZES[base] for base in type(module).__mro__ if base in SIZES), None)
        for key, new in (rule(module) if rule else {}).items():
            if (old := getattr(module, key)) != new:
                found.setdefault(name, {})[key] = [old, new]
    return found


def set_attributes_(model: nn.Module, attributes: Mapping[str, Mapping[str, Sequence[Any]]], undo: Undo) -> None:
    """Give attributes their new values."""
    modules = dict(model.named_modules())
    for name, changes in attributes.items():
        slots = modules[name].__dict__
        for key, (_, new) in changes.items():
            old = slots[key]
            undo.add(lambda slots=slots, key=key, old=old: slots.__setitem__(key, old))
            slots[key] = type(old)(new) if isinstance(old, (tuple, list)) else new


# ---------------------------------------------------------------- sizes in the model's code


class Rewriting(TorchFunctionMode):
    """Gives the calls of one module's forward pass the sizes that its smaller weights need."""

    def __init__(self, rewrites: Sequence[Rewrite]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rewrites = rewrites
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not takes_sizes(func):
            return func(*args, **kwargs)
        ordinal, self._count = self._count, self._count + 1
        return rewritten(func, args, kwargs, self._meant(func, args, kwargs, ordinal))

    def _meant(self, func: Any, args: Any, kwargs: Any, ordinal: int) -> list[Rewrite]:
        """The rewrites that are meant for this call: its numbers fit them, and so does its place in the pass."""
        return [
            each
            for each in self._rewrites
            if each.name == func.__name__ and each.ordinal in (None, ordinal) and _fits(each, args, kwargs)
        ]


def _fits(rewrite: Rewrite, args: Any, kwargs: Any) -> bool:
    if rewrite.path == ("pieces",):
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return args[0].shape[dim] == rewrite.given
    try:
        return at(args, kwargs, rewrite.path) == rewrite.given
    except (IndexError, TypeError, AttributeError):
        return False


def at(args: Any, kwargs: Any, path: Sequence[int | str]) -> Any:
    """The number that stands at a place in the arguments."""
    here: Any = kwargs.get(path[0]) if isinstance(path[0], str) else args[path[0]]
    for part in path[1:]:
        here = getattr(here, part) if isinstance(part, str) else here[part]
    return here


def takes_sizes(func: Any) -> bool:
    """Whether a call counts among those that take sizes: the same calls must count in every pass."""
    return func in TABLE or func is attend


def rewritten(func: Any, args: Any, kwargs: Any, rewrites: Sequence[Rewrite]) -> Any:
    """Call a function with some of its numbers replaced."""
    for each in rewrites:
        if each.path == ("pieces",):
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            return torch.split(args[0], each.new, dim)
        args, kwargs = replaced(args, kwargs, each.path, each.new)
    if func is functional.multi_head_attention_forward and rewrites:
        return attend(*args, **kwargs)
    return func(*args, **kwargs)


def replaced(args: Any, kwargs: Any, path: Sequence[int | str], new: Any) -> tuple[Any, Any]:
    """Arguments with one number replaced."""
    if isinstance(path[0], str):
        return args, {**kwargs, path[0]: _with(kwargs.get(path[0]), path[1:], new)}
    return (*args[: path[0]], _with(args[path[0]], path[1:], new), *args[path[0] + 1 :]), kwargs


def _with(value: Any, path: Sequence[int | str], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, slice):
        ends = {"start": value.start, "stop": value.stop, path[0]: new}
        return slice(ends["start"], ends["stop"], value.step)
    place = int(path[0])
    return (*value[:place], _with(value[place], path[1:], new), *value[place + 1 :])


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with Rewriting(getattr(self, _REWRITES)):
        return type(self).forward(self, *args, **kwargs)


def rewrite_(model: nn.Module, rewrites: Mapping[str, Sequence[Rewrite]], undo: Undo) -> None:
    """Let the forward passes of these modules run with other sizes than their code writes down."""
    for name, entries in rewrites.items():
        slots = model.get_submodule(name).__dict__
        for key, new in ((_REWRITES, list(entries)), ("forward", types.MethodType(_forward, model.get_submodule(name)))):
            before = slots.get(key)
            undo.add(
                lambda slots=slots, key=key, before=before: slots.pop(key) if before is None else slots.__setitem__(key, before)
            )
            slots[key] = new


# ---------------------------------------------------------------- doing it again


def steps_of(model: nn.Module) -> list[Step]:
    """What was done to make this model smaller than its class makes it."""
    return list(model.__dict__.get(_STEPS, []))


def remember_(model: nn.Module, step: Step, undo: Undo) -> None:
    """Note a step on the model, so that it can be saved with it."""
    before = steps_of(model)
    undo.add(lambda: model.__dict__.__setitem__(_STEPS, before))
    model.__dict__[_STEPS] = [*before, step]


def replay_(model: nn.Module, steps: Sequence[Step]) -> Undo:
    """Shrink a freshly made model as another one of its class was, and return how to take it back.

    Raises `FileError` at the first difference between that model and this one, which then is as it was.
    """
    undo = Undo()
    try:
        for step in steps:
            _require_same(model, step)
            take_out_(model, step, undo)
            cut_(model, step.cuts, undo)
            set_attributes_(model, step.attributes, undo)
            rewrite_(model, step.rewrites, undo)
            remember_(model, step, undo)
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
    undo.add(lambda: parent._modules.__setitem__(key, old))
    parent._modules[key] = new


def _require_same(model: nn.Module, step: Step) -> None:
    slots, modules = _slots(model), dict(model.named_modules())
    for name, shape in step.shapes.items():
        if name not in slots:
            raise FileError(f"the model was shrunk from one with a tensor {name}, but {type(model).__name__} has none of that name")
        holder, key = slots[name]
        tensor = holder[key]
        here = None if tensor is None else list(tensor.shape)
        if here != shape:
            raise FileError(f"the model was shrunk from one whose {name} is {tuple(shape)}, but here it is {here and tuple(here)}")
        for dim, indices in step.cuts.get(name, {}).items():
            if dim >= len(shape) or not indices or max(indices) >= shape[dim]:
                raise FileError(f"{name}: the record of how it was shrunk keeps indices that are not there; the file is damaged")
    for path, changes in step.attributes.items():
        for key, (old, _) in changes.items():
            here = modules[path].__dict__.get(key) if path in modules else None
            if here != old and not (isinstance(here, tuple) and list(here) == old):
                raise FileError(
                    f"the model was shrunk from one whose {path}.{key} is {old}, but here it is {here}: its class has changed"
                )
    for path in (*step.rewrites, *step.identities, *step.zeros):
        if path not in modules:
            raise FileError(
                f"the model was shrunk from one with a module {path!r}, but {type(model).__name__} has none of that name"
            )
