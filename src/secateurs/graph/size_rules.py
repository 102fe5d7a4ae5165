"""Which of the numbers in a call of torch are sizes: a row a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateurs.graph.size_calls import Measure, Number, Path, Pieces
from secateurs.graph.tagged_sizes import as_ints


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
        if type(part) is list and as_slices(tensor.shape, as_ints(index)) is not None:
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
