"""Where the model's code gives a size as a number: ``view(-1, 16 * 5 * 5)``, ``split(768)``, ``x[:, :64]``, a number of heads.

Once the tensors are smaller these numbers must be others. Each call that takes sizes is noted here with the dimension that each of
its numbers measures, so that the number can be worked out anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateurs.forward import modules_in

Path = tuple[int | str, ...]
"""Where in the arguments a number stands: an index or a name, and an index within a sequence."""

Measure = Callable[[Tensor], Any]
"""From the kept indices of a dimension to the number that the call must be given."""


@dataclass(frozen=True)
class Number:
    """One number in a call: where it stands, what it is, and what it measures of dimension ``dim`` of a tensor."""

    path: Path
    given: Any
    tensor: Any
    dim: int
    measure: Measure = lambda kept: int(kept.sum())


@dataclass(frozen=True)
class Pieces:
    """A split into parts of one dimension: how long each part is."""

    tensors: tuple[Any, ...]
    dim: int


@dataclass(frozen=True)
class SizeCall:
    """One call of a function that takes sizes: in which module, the how-manieth in its forward, and its numbers."""

    module: str
    ordinal: int
    name: str
    numbers: tuple[Number, ...]
    pieces: Pieces | None = None


Source = tuple[str, str, "int | None"]
"""An attribute of the model: a module's name, the attribute's, and a place in it where it is a tuple."""


class Told(int):
    """A whole number that the size of a tensor gave, as it is or computed with: at another size it is another one."""


def _told(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: int, *others: Any) -> Any:
        result = plain(self, *others)
        return Told(result) if type(result) is int else result

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg"):
    setattr(Told, f"__{_name}__", _told(f"__{_name}__"))


def told(size: Any) -> Any:
    """What a tensor's ``shape`` or ``size()`` gave, with numbers that know where they came from."""
    if isinstance(size, torch.Size):
        return torch.Size([told(each) for each in size])
    return Told(size) if type(size) is int else size


def is_told(number: Any) -> bool:
    """Whether a number came from a size.

    >>> is_told(told(torch.zeros(2, 6).shape)[1] // 2), is_told(3)
    (True, False)
    """
    return isinstance(number, (Told, Measured))


def asks_size(func: Any, out: Any) -> bool:
    """Whether a call asked for sizes."""
    return isinstance(out, torch.Size) or (func.__name__ == "size" and type(out) is int)


class Computing(int):
    """A whole number that tells when the code divides by it, takes a root of it, or makes a floating-point number of it."""

    told: Callable[[], None]

    def _told(self) -> int:
        self.told()
        return int.__int__(self)

    def __rfloordiv__(self, other: int) -> int:
        return other // self._told()

    def __truediv__(self, other: float) -> float:
        return self._told() / other

    def __rtruediv__(self, other: float) -> float:
        return other / self._told()

    def __rmod__(self, other: int) -> int:
        return other % self._told()

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return self._told() ** other

    def __float__(self) -> float:
        return float(self._told())


class Tagged(Computing):
    """A number that knows which attribute it came from.

    An attribute that the code computes with must keep its value: ``(width // self.heads) ** -0.5`` would scale attention otherwise with
    fewer heads.
    """

    source: Source


class Measured(Computing):
    """The size of a tensor, as its ``shape`` told it. Where the code computes with it, fewer indices would change the answers.

    ``used`` hears of whatever the model's own code makes of it: it may do something else at another size.
    """

    used: Callable[[], None]

    def _used(self) -> int:
        if not sys._getframe(2).f_code.co_filename.startswith(_TORCH):
            self.used()
        return int.__int__(self)

    def _told(self) -> int:
        self.used()
        return super()._told()

    def __rfloordiv__(self, other: int) -> int:  # sizes divide sizes all the time, to give other sizes
        return Told(other // self._used())

    def __rmod__(self, other: int) -> int:
        return Told(other % self._used())

    def __hash__(self) -> int:
        return int.__hash__(self)


def _noticed(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Measured, *others: Any) -> Any:
        result = plain(self._used(), *[int.__int__(other) if isinstance(other, Measured) else other for other in others])
        return Told(result) if type(result) is int else result

    return method


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "floordiv",
    "mod",
    "divmod",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "bool",
):
    setattr(Measured, f"__{_name}__", _noticed(f"__{_name}__"))


@contextmanager
def tagged(model: nn.Module) -> Iterator[set[Source]]:
    """While a model runs, the whole numbers among its modules' attributes know where they came from; yields those computed with.

    Numbers that the forward pass itself writes down are for `untouched` around it to take back.
    """
    computed: set[Source] = set()
    held: list[tuple[dict[str, Any], str, Any]] = []
    for name, module in modules_in(model).items():
        for key, value in list(module.__dict__.items()):
            if type(value) in (int, tuple, list) and (marked := _marked(value, name, key, computed)) is not None:
                held.append((module.__dict__, key, value))
                module.__dict__[key] = marked
    try:
        yield computed
    finally:
        for slots, key, value in held:
            slots[key] = value


def _marked(value: Any, module: str, attribute: str, computed: set[Source]) -> Any:
    def tag(number: int, place: int | None) -> Tagged:
        made = Tagged(number)
        made.source = source = (module, attribute, place)
        made.told = lambda: computed.add(source)
        return made

    if type(value) is int and value > 1:
        return tag(value, None)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        return type(value)(tag(item, place) if item > 1 else item for place, item in enumerate(value))
    return None


class SizeCalls(TorchFunctionMode):
    """Notes every call that takes sizes while a model runs, and every size that it computes with.

    `value` gives a tensor its name in the trace, `where` is the line of the user's code.
    """

    def __init__(self, stack: list[str], value: Callable[[Tensor], Any], where: Callable[[], str]) -> None:
        super().__init__()
        self.calls: list[SizeCall] = []
        self.sized: str | None = None
        self.computed: dict[tuple[Any, int], str] = {}
        self._stack, self._value, self._where = stack, value, where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for arg in args if func.__name__ in _SCALING else ():
            if isinstance(arg, Measured):
                arg.told()
        if func.__name__ in _COUNTING or (_changes(func) and _holds_size((*args, *kwargs.values()))):
            self._use()
        out = _called(func, _plain(args), _plain(kwargs))  # what torch's own code divides by is none of the model's business
        if isinstance(out, torch.Size):
            return torch.Size([self._measured(args[0], dim, size) for dim, size in enumerate(out)])
        if func.__name__ == "size":
            return self._measured(args[0], kwargs.get("dim", args[-1]) % args[0].ndim, out)
        if (note := TABLE.get(func)) is not None:
            self._note(func, *_parts(note(args, kwargs, out)))
        return out

    def _note(self, func: Any, numbers: list[Number], pieces: Pieces | None) -> None:
        named = [Number(n.path, n.given, self._value(n.tensor), n.dim, n.measure) for n in numbers]
        if pieces is not None:
            pieces = Pieces(tuple(self._value(tensor) for tensor in pieces.tensors), pieces.dim)
        self.calls.append(SizeCall(self._stack[-1], len(self.calls), func.__name__, tuple(named), pieces))

    def _measured(self, tensor: Tensor, dim: int, size: int) -> int:
        """A size that tells where the code computes with it."""
        value, made = self._value(tensor), Measured(size)

        def told() -> None:
            if size > 1:
                self.computed.setdefault((value, dim), self._where())

        made.told, made.used = told, self._use
        return made

    def _use(self) -> None:
        """Note that the code computes with a size, and where it does so first."""
        self.sized = self.sized or self._where()


_SCALING = {
    "mul",
    "div",
    "true_divide",
    "mul_",
    "div_",
    "__mul__",
    "__rmul__",
    "__imul__",
    "__truediv__",
    "__rtruediv__",
    "__itruediv__",
}
"""Calls by which a tensor is scaled: by one of its sizes, say."""

_COUNTING = {"numel", "nelement", "__len__"}

_TORCH = str(FilePath(torch.__file__).parent)


def _changes(func: Any) -> bool:
    """Whether a size among the arguments of a function may change numbers of its result, and not only how many there are."""
    return func is functional.pad or (func not in TABLE and func.__name__ not in _ONLY_SHAPE)


_ONLY_SHAPE = {"arange", "eye", "rand", "randn", "interpolate", "upsample", "flatten", "expand_as", "view_as"} | {
    f"adaptive_{kind}_pool{count}d" for kind in ("avg", "max") for count in (1, 2, 3)
}


def _holds_size(nest: Any) -> bool:
    if isinstance(nest, (tuple, list)):
        return any(_holds_size(item) for item in nest)
    return isinstance(nest, Measured)


_KNOW_NOTHING = {Tensor, nn.Parameter, FakeTensor, int, float, bool, str, type(None)}


def _parts(found: list[Number] | tuple[list[Number], Pieces | None]) -> tuple[list[Number], Pieces | None]:
    return found if isinstance(found, tuple) else (list(found), None)


def _plain(value: Any) -> Any:
    """Arguments with whole numbers that know nothing."""
    if type(value) in _KNOW_NOTHING:
        return value
    if isinstance(value, Computing):
        return int.__int__(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (tuple, list, torch.Size):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    """A call; a list of indices that is a stretch of every n-th of them is written as a slice, which tells more."""
    if func not in (Tensor.__getitem__, Tensor.__setitem__) or (index := as_slices(args[0].shape, args[1])) is None:
        return func(*args, **kwargs)
    out = func(args[0], index, *args[2:], **kwargs)
    return out if out is None else out.clone()


def as_slices(shape: torch.Size, index: Any) -> tuple[Any, ...] | None:
    """An index that holds one list, with a slice in its place; nothing where that would not be the same.

    >>> as_slices(torch.Size([4, 6, 5]), (..., [-2, -1], slice(None)))
    (Ellipsis, slice(4, 6, 1), slice(None, None, None))
    """
    parts = list(index) if type(index) is tuple else [index]
    lists = [place for place, part in enumerate(parts) if type(part) is list]
    if len(lists) != 1 or any(isinstance(part, (Tensor, bool)) for part in parts):
        return None
    (place,) = lists
    dims = [part is not None for part in parts]
    behind = sum(dims[place:])
    dim = len(shape) - behind if Ellipsis in parts[:place] else sum(dims[:place])
    given = parts[place]
    if (
        not given
        or dim < 0
        or dim >= len(shape)
        or not all(type(item) is int and -shape[dim] <= item < shape[dim] for item in given)
    ):
        return None
    taken = [item % shape[dim] for item in given]
    step = taken[1] - taken[0] if taken[1:] else 1
    if step < 1 or taken != list(range(taken[0], taken[-1] + 1, step)):
        return None
    return (*parts[:place], slice(taken[0], taken[-1] + 1, step), *parts[place + 1 :])


Note = Callable[[Any, Any, Any], "list[Number] | tuple[list[Number], Pieces | None]"]


def sequence(args: Any, kwargs: Any, place: int, *names: str) -> Iterator[tuple[Path, Any]]:
    """The numbers of an argument that is a sequence, or of the rest of the arguments where they stand one by one."""
    for name in names:
        if name in kwargs:
            given = kwargs[name]
            yield from (
                (((name, i), number) for i, number in enumerate(given)) if isinstance(given, (tuple, list)) else (((name,), given),)
            )
            return
    if len(args) > place and isinstance(args[place], (tuple, list)):
        yield from (((place, i), number) for i, number in enumerate(args[place]))
    else:
        yield from (((i,), number) for i, number in enumerate(args[place:], start=place))


def _shape(place: int, *names: str) -> Note:
    """A call whose numbers are the sizes of its result, one by one."""

    def note(args: Any, kwargs: Any, out: Any) -> list[Number]:
        given = [(path, number) for path, number in sequence(args, kwargs, place, *names) if not isinstance(number, torch.dtype)]
        return [Number(path, number, out, dim) for dim, (path, number) in enumerate(given)] if len(given) == out.ndim else []

    return note


def _repeat(args: Any, kwargs: Any, out: Any) -> list[Number]:
    """How often each dimension is repeated."""
    given = list(sequence(args, kwargs, 1, "repeats", "dims"))
    return [Number(path, number, out, out.ndim - len(given) + i, _outer(number)) for i, (path, number) in enumerate(given)]


def _outer(count: int) -> Measure:
    return lambda kept: int(kept.view(count, -1).any(1).sum()) if count else count


def _repeat_interleave(args: Any, kwargs: Any, out: Any) -> list[Number]:
    times, dim = kwargs.get("repeats", args[1] if len(args) > 1 else None), kwargs.get("dim", args[2] if len(args) > 2 else None)
    if not isinstance(times, int) or dim is None:
        return []
    return [
        Number(("repeats",) if "repeats" in kwargs else (1,), times, out, dim, lambda kept: int(kept.view(-1, times).any(0).sum()))
    ]


def _unflatten(args: Any, kwargs: Any, out: Any) -> list[Number]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % args[0].ndim
    return [Number(path, number, out, dim + i) for i, (path, number) in enumerate(sequence(args, kwargs, 2, "sizes"))]


def _split(args: Any, kwargs: Any, out: Any) -> tuple[list[Number], Pieces]:
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % args[0].ndim
    given = [
        (path, number) for path, number in sequence(args[:2], kwargs, 1, "split_size", "split_size_or_sections", "split_sizes")
    ]
    of_each = len(given) == len(out) or (len(given) == 1 and given[0][1] == out[0].shape[dim])
    numbers = [Number(path, number, piece, dim) for (path, number), piece in zip(given, out, strict=False)] if of_each else []
    return numbers, Pieces(tuple(out), dim)


def _narrow(args: Any, kwargs: Any, out: Any) -> list[Number]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % args[0].ndim
    numbers = [Number((3,), args[3], out, dim)] if len(args) > 3 else []
    start = args[2] if len(args) > 2 else None
    return [Number((2,), start, args[0], dim, _between(0, start)), *numbers] if isinstance(start, int) else numbers


def _between(start: int | None, stop: int | None, sign: int = 1) -> Measure:
    return lambda kept: sign * int(kept[start:stop].sum())


def _getitem(args: Any, kwargs: Any, out: Any) -> list[Number]:
    tensor, index = args[0], args[1]
    nested = isinstance(index, tuple)
    parts = list(index) if nested else [index]
    if any(isinstance(part, (list, Tensor)) for part in parts):
        consumed = sum(part is not None and part is not Ellipsis for part in parts if not isinstance(part, Tensor))
        if any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts) or consumed > tensor.ndim:
            return []
    numbers, dim = [], 0
    for place, part in enumerate(parts):
        if part is Ellipsis:
            dim = tensor.ndim - sum(other is not None for other in parts[place + 1 :])
        here: Path = (1, place) if nested else (1,)
        if type(part) is list and as_slices(tensor.shape, _plain(index)) is not None:
            numbers.append(Number(here, part, tensor, dim, _listed(part)))
        elif isinstance(part, slice) and part.step in (None, 1):
            numbers += [
                Number((*here, end), at, tensor, dim, _edge(at))
                for end in ("start", "stop")
                if (at := getattr(part, end)) is not None
            ]
        dim += part is not None and part is not Ellipsis
    return numbers


def _listed(given: list[int]) -> Measure:
    """A list of indices: those that stay, counted among those that stay, from the end where they were."""

    def measure(kept: Tensor) -> list[int]:
        places = (kept.cumsum(0) - 1).tolist()
        return [int(places[at]) - (int(kept.sum()) if at < 0 else 0) for at in given if kept[at]]

    return measure


def _edge(at: int) -> Measure:
    return _between(None, at) if at >= 0 else _between(at, None, -1)


def _pad(args: Any, kwargs: Any, out: Any) -> list[Number]:
    numbers = []
    for path, number in sequence(args[:2], kwargs, 1, "pad"):
        place = path[-1]
        dim = out.ndim - 1 - int(place) // 2
        first = int(place) % 2 == 0
        if number > 0:
            numbers.append(Number(path, number, out, dim, _between(0, number) if first else _between(-number, None)))
        elif number < 0:
            cut = _between(0, -number, -1) if first else _between(number, None, -1)
            numbers.append(Number(path, number, args[0], dim, cut))
    return numbers


def _normalized_shape(args: Any, kwargs: Any, out: Any) -> list[Number]:
    given = (
        list(sequence(args, kwargs, 1, "normalized_shape"))
        if "normalized_shape" in kwargs or isinstance(args[1], (tuple, list))
        else []
    )
    return [Number(path, number, args[0], args[0].ndim - len(given) + i) for i, (path, number) in enumerate(given)]


def _groups(place: int, name: str) -> Note:
    """A number of groups into which the channels of the input fall."""

    def note(args: Any, kwargs: Any, out: Any) -> list[Number]:
        groups = kwargs.get(name, args[place] if len(args) > place else 1)
        path: Path = (name,) if name in kwargs else (place,)
        x = args[0] if args else kwargs["input"]
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        dim = 1 if name == "num_groups" else x.ndim - (weight.ndim - 2) - 1
        return [Number(path, groups, x, dim, lambda kept: int(kept.view(groups, -1).any(1).sum()))] if groups > 1 else []

    return note


def _scale(args: Any, kwargs: Any, out: Any) -> list[Number]:
    """Attention whose scale is left to be worked out from the width of its heads keeps the one that it was trained with."""
    query = args[0] if args else kwargs["query"]
    if kwargs.get("scale") is not None or len(args) > 6:
        return []
    return [Number(("scale",), None, query, query.ndim - 1, lambda kept: None if bool(kept.all()) else len(kept) ** -0.5)]


def _multi_head(args: Any, kwargs: Any, out: Any) -> list[Number]:
    heads = args[4]
    weight = kwargs.get("q_proj_weight") if kwargs.get("use_separate_proj_weight") else args[5]
    if weight is None:
        return []
    rows = args[3]
    scale = (int.__int__(rows) // int.__int__(heads)) ** -0.5
    return [
        Number((4,), heads, weight, 0, lambda kept: int(kept[:rows].view(heads, -1).any(1).sum())),
        Number(("scale",), None, weight, 0, lambda kept: scale),
    ]


TABLE: dict[Any, Note] = {
    Tensor.view: _shape(1, "size"),
    Tensor.reshape: _shape(1, "shape"),
    torch.reshape: _shape(1, "shape"),
    Tensor.expand: _shape(1, "size"),
    Tensor.broadcast_to: _shape(1, "size"),
    torch.broadcast_to: _shape(1, "size"),
    Tensor.repeat: _repeat,
    Tensor.tile: _repeat,
    torch.tile: _repeat,
    Tensor.repeat_interleave: _repeat_interleave,
    torch.repeat_interleave: _repeat_interleave,
    Tensor.unflatten: _unflatten,
    torch.unflatten: _unflatten,
    Tensor.split: _split,
    torch.split: _split,
    Tensor.split_with_sizes: _split,
    torch.split_with_sizes: _split,
    Tensor.chunk: _split,
    torch.chunk: _split,
    Tensor.tensor_split: _split,
    torch.tensor_split: _split,
    Tensor.narrow: _narrow,
    torch.narrow: _narrow,
    Tensor.__getitem__: _getitem,
    Tensor.__setitem__: _getitem,
    torch.zeros: _shape(0, "size"),
    torch.ones: _shape(0, "size"),
    torch.empty: _shape(0, "size"),
    torch.full: _shape(0, "size"),
    torch.rand: _shape(0, "size"),
    torch.randn: _shape(0, "size"),
    Tensor.new_zeros: _shape(1, "size"),
    Tensor.new_ones: _shape(1, "size"),
    Tensor.new_empty: _shape(1, "size"),
    Tensor.new_full: _shape(1, "size"),
    functional.pad: _pad,
    functional.layer_norm: _normalized_shape,
    functional.rms_norm: _normalized_shape,
    functional.group_norm: _groups(1, "num_groups"),
    functional.conv1d: _groups(6, "groups"),
    functional.conv2d: _groups(6, "groups"),
    functional.conv3d: _groups(6, "groups"),
    functional.conv_transpose1d: _groups(6, "groups"),
    functional.conv_transpose2d: _groups(6, "groups"),
    functional.conv_transpose3d: _groups(6, "groups"),
    functional.scaled_dot_product_attention: _scale,
    functional.multi_head_attention_forward: _multi_head,
}
"""Function that takes sizes → what its numbers measure."""
