"""The same numbers in another shape: views, concatenations, slices, repetitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateurs.graph.known.knowing import Knowing, joined, regrouped
from secateurs.graph.known.state import Free, Known, Size, fixed, size_of
from secateurs.graph.ops import Op
from secateurs.graph.rules.shapes import stretches
from secateurs.nested import Value


def reordered(before: Known, order: Sequence[int]) -> Known:
    """Dimensions in another order."""
    return replace(
        before,
        number=before.number.permute(*order),
        known=before.known.permute(*order),
        uniform=tuple(before.uniform[dim] for dim in order),
        sizes=tuple(before.sizes[dim] for dim in order),
        same=None,
    )


def permute(know: Knowing, op: Op) -> Known:
    """Dimensions in another order."""
    before = know.of(op.args[0])
    return reordered(before, [dim % len(before.sizes) for dim in op.args[1]])


def transpose(know: Knowing, op: Op) -> Known:
    """Two dimensions change places."""
    before = know.of(op.args[0])
    order = list(range(len(before.sizes)))
    if len(order) > 1:
        a, b = (op.args[1], op.args[2]) if len(op.args) > 2 else (-2, -1)
        order[a], order[b] = order[b], order[a]
    return reordered(before, order)


def view(know: Knowing, op: Op) -> Known:
    """Stretch by stretch: dimensions that only change their name stay uniform; others are counted one by one where they were."""
    source, shape = op.args[0], op.outputs[0].shape
    before = know.of(source)
    if not all(source.shape) or not all(shape):
        return Known.nothing([(Free(size),) for size in shape])
    groups = stretches(source.shape, shape)
    sizes: list[Size] = []
    counted: list[int] = []
    uniform: list[bool] = []
    for old, new in groups:
        if len(old) == len(new) == 1:
            sizes.append(before.sizes[old[0]])
            uniform.append(before.uniform[old[0]])
            continue
        alike = all(before.uniform[dim] for dim in old) and bool(old)
        counted += [] if alike else old
        sizes += regrouped([before.sizes[dim] for dim in old], [shape[dim] for dim in new])
        uniform += [alike] * len(new)
    spread = before.spread(counted)
    grouped = [len(old) == len(new) == 1 or all(before.uniform[dim] for dim in old) for old, new in groups]

    def shaped(tensor: Tensor) -> Tensor:
        tensor = tensor.expand(spread.shape)
        made: list[int] = []
        for (old, new), same in zip(groups, grouped, strict=True):
            if len(old) == len(new) == 1:
                made.append(tensor.shape[old[0]])
            else:
                made += [1] * len(new) if same and old else [shape[dim] for dim in new]
        return tensor.reshape(made)

    same = know.viewed(op.outputs[0], source, sizes)
    return replace(
        before, number=shaped(spread.number), known=shaped(spread.known), uniform=tuple(uniform), sizes=tuple(sizes), same=same
    )


def squeeze(know: Knowing, op: Op) -> Known:
    """Dimensions of size 1 go."""
    before = know.of(op.args[0])
    wanted = op.args[1] if len(op.args) > 1 else range(len(before.sizes))
    dims = wanted if isinstance(wanted, (tuple, list, range)) else [wanted]
    gone = {dim % len(before.sizes) for dim in dims} if before.sizes else set()
    gone = {dim for dim in gone if op.args[0].shape[dim] == 1}
    before = before.collapsed([dim for dim in gone if before.sizes[dim] != ()])
    return before.without(gone)


def unsqueeze(know: Knowing, op: Op) -> Known:
    """A dimension of size 1 comes."""
    before = know.of(op.args[0])
    return _with_one(before, op.args[1] % (len(before.sizes) + 1))


def expand(know: Knowing, op: Op) -> Known:
    """Dimensions of size 1 stretch."""
    before, shape = know.of(op.args[0]), op.outputs[0].shape
    more = len(shape) - len(before.sizes)
    stretched = [dim for dim, size in enumerate(op.args[0].shape) if size != shape[dim + more] and not before.uniform[dim]]
    before = before.collapsed(stretched)
    sizes = [
        before.sizes[dim - more] if dim >= more and op.args[0].shape[dim - more] == size else (Free(size),)
        for dim, size in enumerate(shape)
    ]
    same = (before.same or op.args[0]) if tuple(sizes) == before.sizes else None
    return replace(
        before,
        number=before.number.reshape([1] * more + list(before.number.shape)),
        known=before.known.reshape([1] * more + list(before.known.shape)),
        uniform=(True,) * more + before.uniform,
        sizes=tuple(sizes),
        same=same,
    )


def repeat(know: Knowing, op: Op) -> Known:
    """The whole again and again."""
    before, times = know.of(op.args[0]), op.args[1]
    more, shape = len(times) - len(before.sizes), op.outputs[0].shape
    before = before.collapsed([dim for dim in range(len(before.sizes)) if times[dim + more] > 1 and know.sized])
    uniform = (True,) * more + before.uniform

    def again(tensor: Tensor) -> Tensor:
        tensor = tensor.reshape([1] * more + list(tensor.shape))
        return tensor.repeat([1 if flag or tensor.shape[dim] == 1 else times[dim] for dim, flag in enumerate(uniform)])

    sizes = [
        before.sizes[dim - more] if dim >= more and times[dim] == 1 else fixed(size) if dim >= more and _whole(before.sizes[dim - more])
        and not know.sized else (Free(size),)
        for dim, size in enumerate(shape)
    ]  # fmt: skip
    return replace(before, number=again(before.number), known=again(before.known), uniform=uniform, sizes=tuple(sizes), same=None)


def _whole(size: Size) -> bool:
    return all(isinstance(factor, int) for factor in size)


def cat(know: Knowing, op: Op) -> Known:
    """One dimension is the operands' one after the other; one without indices may have some for another input."""
    values = [value for value in op.args[0] if value.shape != (0,)]
    if any(0 in value.shape for value in op.args[0]):
        return know.nothing(op.outputs[0])
    place = op.argument("dim", 0) % len(values[0].shape)
    return _side_by_side([know.of(value) for value in values], place)


def _side_by_side(parts: list[Known], place: int) -> Known:
    """Tensors one after the other along one dimension."""
    others = [dim for dim in range(len(parts[0].sizes)) if dim != place]
    counted = [dim for dim in others if not all(part.uniform[dim] for part in parts)]
    spread = [part.spread([place, *counted]) for part in parts]
    shape = list(torch.broadcast_shapes(*[_but(each.shape, place) for each in spread]))

    def whole(tensor: Tensor, size: int) -> Tensor:
        return tensor.expand([*shape[:place], size, *shape[place + 1 :]])

    counts = [each.shape[place] for each in spread]
    lengths = [part.sizes[place] for part in parts]
    length: Size = fixed(sum(counts)) if all(_whole(size) for size in lengths) else (Free(sum(counts)),)
    sizes = joined([[part.sizes[dim] for dim in others] for part in parts], [size_of(parts[0].sizes[dim]) for dim in others])
    sizes.insert(place, length)
    return Known(
        torch.cat([whole(each.number.double(), count) for each, count in zip(spread, counts, strict=True)], place),
        torch.cat([whole(each.known, count) for each, count in zip(spread, counts, strict=True)], place),
        tuple(dim != place and dim not in counted for dim in range(len(parts[0].sizes))),
        tuple(sizes),
        positive=all(part.positive for part in parts),
    )


def _but(shape: Sequence[int], place: int) -> list[int]:
    return [1 if dim == place else size for dim, size in enumerate(shape)]


def stack(know: Knowing, op: Op) -> Known:
    """A new dimension numbers the operands."""
    parts = [know.of(value) for value in op.args[0]]
    place = op.argument("dim", 0) % (len(parts[0].sizes) + 1)
    return _side_by_side([_with_one(part, place) for part in parts], place)


def _cut(know: Knowing, source: Value, place: int, start: int, stop: int, step: int = 1) -> Known:
    """Some indices of one dimension."""
    place %= len(source.shape)
    size, count = source.shape[place], len(range(start, stop, step))
    before = know.of(source)
    if count == size and step == 1 and before.uniform[place]:
        return replace(before, same=None, sizes=_resized(before, place, (Free(size),)))
    before = know.indexed(source, [place])
    whole = _whole(before.sizes[place]) and know.exact(source, place)
    length: Size = fixed(count) if whole else (Free(count),)

    def part(tensor: Tensor) -> Tensor:
        if before.uniform[place] or tensor.shape[place] == 1:
            return tensor
        return tensor[(slice(None),) * place + (slice(start, stop, step),)]

    return replace(before, number=part(before.number), known=part(before.known), same=None, sizes=_resized(before, place, length))


def _resized(before: Known, place: int, size: Size) -> tuple[Size, ...]:
    return (*before.sizes[:place], size, *before.sizes[place + 1 :])


def slice_(know: Knowing, op: Op) -> Known:
    """A stretch of one dimension, or every n-th index of it."""
    place, step = op.argument("dim", 0), op.argument("step", 1)
    start, stop, _ = slice(op.argument("start"), op.argument("end")).indices(op.args[0].shape[place])
    return _cut(know, op.args[0], place, start, max(start, stop), step)


def pieces(know: Knowing, op: Op) -> list[Known | None]:
    """split, chunk: the parts follow each other."""
    place, start = op.argument("dim", 0), 0
    found: list[Known | None] = []
    for value in op.outputs:
        found.append(_cut(know, op.args[0], place, start, start + value.shape[place]))
        start += value.shape[place]
    return found


def select(know: Knowing, op: Op) -> Known:
    """One index of one dimension."""
    place, index = op.args[1] % len(op.args[0].shape), op.args[2] % op.args[0].shape[op.args[1]]
    return _cut(know, op.args[0], place, index, index + 1).without([place])


def unbind(know: Knowing, op: Op) -> list[Known | None]:
    """Every index of one dimension apart."""
    place = op.argument("dim", 0) % len(op.args[0].shape)
    return [_cut(know, op.args[0], place, index, index + 1).without([place]) for index in range(len(op.outputs))]


def pad(know: Knowing, op: Op) -> Known:
    """A number around what was there: along dimensions of which every index is alike, only that number is one everywhere."""
    source, widths, value = op.args[0], op.args[1], op.argument("value", 0)
    before = know.of(source)
    if know.sized:
        before = replace(before, known=before.zero & torch.tensor(value == 0))
    count = len(source.shape)
    around = {count - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2) if any(widths[2 * i : 2 * i + 2])}
    before = before.collapsed([dim for dim in around if not know.exact(source, dim)])
    if any(before.uniform[dim] for dim in around):
        before = before.but(before.known & (before.number == value))
    for dim, (first, last) in around.items():
        if not before.uniform[dim]:
            before = _padded(before, dim, first, last, value)
    sizes = list(before.sizes)
    for dim, width in around.items():
        whole = _whole(before.sizes[dim]) and not know.sized
        sizes[dim] = fixed(source.shape[dim] + sum(width)) if whole else (Free(source.shape[dim] + sum(width)),)
    return replace(before, sizes=tuple(sizes), same=None if around else before.same or source)


def _padded(before: Known, dim: int, first: int, last: int, value: float) -> Known:
    """A dimension whose indices count, with some more or fewer at its ends."""
    spread = before.spread([dim])
    widths = [0, 0] * (len(before.sizes) - 1 - dim) + [first, last]
    number = torch.nn.functional.pad(spread.number.expand(spread.shape).double(), widths, value=float(value))
    known = torch.nn.functional.pad(spread.known.expand(spread.shape).byte(), widths, value=1).bool()
    return replace(before, number=number, known=known)


def scattered(know: Knowing, op: Op) -> Known:
    """Some indices of one dimension are another tensor's: where they may be any, what both agree on is known."""
    source, written, place = op.args[0], know.of(op.args[1]), op.argument("dim", 0) % len(op.args[0].shape)
    size = source.shape[place]
    if op.name == "select_scatter":
        start, stop, step = op.args[3] % size, op.args[3] % size + 1, 1
        written = _with_one(written, place)
    else:
        start, stop, _ = slice(op.argument("start"), op.argument("end")).indices(size)
        step = op.argument("step", 1)
    before = know.of(source)
    if not know.exact(source, place):
        before, written = before.collapsed([place]), written.collapsed([place])
        agree = before.known & written.known & (before.number == written.number)
        counted = tuple(a and b for a, b in zip(before.uniform, written.uniform, strict=True))
        return before.but(agree, before.number.expand(torch.broadcast_shapes(before.number.shape, agree.shape)), counted)
    counted_dims = [place, *(dim for dim in range(len(before.sizes)) if not (before.uniform[dim] and written.uniform[dim]))]
    before, written = before.spread(counted_dims), written.spread(counted_dims)
    where = (slice(None),) * place + (slice(start, max(start, stop), step),)
    number, known = before.number.expand(before.shape).double().clone(), before.known.expand(before.shape).clone()
    number[where], known[where] = written.number.double(), written.known
    return before.but(known, number)


def _with_one(before: Known, place: int) -> Known:
    """A dimension of size 1 comes."""
    return replace(
        before,
        number=before.number.unsqueeze(place),
        known=before.known.unsqueeze(place),
        uniform=(*before.uniform[:place], True, *before.uniform[place:]),
        sizes=(*before.sizes[:place], (), *before.sizes[place:]),
        same=None,
    )


def diag_embed(know: Knowing, op: Op) -> Known | None:
    """Numbers on a diagonal, and zeros beside it."""
    if (op.argument("offset", 0), op.argument("dim1", -2), op.argument("dim2", -1)) != (0, -2, -1):
        return None
    before = know.of(op.args[0]).spread([-1])
    number, unknown = (torch.diag_embed(each.expand(before.shape).double()) for each in (before.number, ~before.known))
    return Known(number, unknown == 0, (*before.uniform[:-1], False, False), (*before.sizes, before.sizes[-1]))


def moved(*names: str) -> Callable[[Knowing, Op], Known]:
    """Indices of the named dimensions change places: what is alike stays, of the rest only what is zero at every index."""

    def rule(know: Knowing, op: Op) -> Known:
        before = know.of(op.args[0])
        given = [op.argument(name) for name in names]
        dims = [each for item in given if item is not None for each in (item if isinstance(item, (tuple, list)) else [item])]
        return replace(before.collapsed(dims or range(len(before.sizes))), same=None, positive=before.positive)

    return rule


def glu(know: Knowing, op: Op) -> Known:
    """Two halves, of which one gates the other: zero where the first is."""
    place = op.argument("dim", -1) % len(op.args[0].shape)
    half = op.args[0].shape[place] // 2
    first, second = (_cut(know, op.args[0], place, start, start + half) for start in (0, half))
    number = first.number.double() * second.number.double().sigmoid()
    known = first.zero | (first.known & second.known)
    number = torch.where(first.zero, torch.zeros((), dtype=torch.float64), number)
    return Known(number, known, tuple(a and b for a, b in zip(first.uniform, second.uniform, strict=True)), first.sizes)


def windows(know: Knowing, op: Op) -> Known:
    """Windows along one dimension."""
    place = op.args[1] % len(op.args[0].shape)
    before = know.of(op.args[0]).collapsed([place])
    known = replace(before, number=before.number.unsqueeze(-1), known=before.known.unsqueeze(-1), uniform=(*before.uniform, True))
    sizes = [*before.sizes, fixed(op.args[2])]
    sizes[place] = (Free(op.outputs[0].shape[place]),)
    return replace(known, sizes=tuple(sizes), same=None)


def looked_up(know: Knowing, op: Op) -> Known | None:
    """Indexing with tensors: of the indexed dimensions only what is zero at every index is known."""
    source, indices = op.args[0], op.args[1]
    places = [place for place, each in enumerate(indices) if each is not None]
    if any(indices[place].dtype in (torch.bool, torch.uint8) for place in places) or not places:
        return None
    before = know.of(source).collapsed(places)
    shape = torch.broadcast_shapes(*(indices[place].shape for place in places))
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    rest = before.without(places)

    def put(tensor: Tensor) -> Tensor:
        return tensor.reshape([*tensor.shape[:first], *[1] * len(shape), *tensor.shape[first:]])

    return Known(
        put(rest.number),
        put(rest.known),
        (*rest.uniform[:first], *(True,) * len(shape), *rest.uniform[first:]),
        (*rest.sizes[:first], *((Free(size),) for size in shape), *rest.sizes[first:]),
    )


def index_select(know: Knowing, op: Op) -> Known:
    """Some indices of one dimension, by number."""
    place = op.args[1] % len(op.args[0].shape)
    before = know.of(op.args[0]).collapsed([place])
    return replace(before, sizes=_resized(before, place, (Free(op.outputs[0].shape[place]),)), same=None)


def embedding(know: Knowing, op: Op) -> Known:
    """Rows of a table: a column that is zero in every row is known."""
    table, ids = know.of(op.args[0]), op.args[1]
    zero = table.along(1, zeros=True)
    more = len(ids.shape)
    sizes = [*know.of(ids).sizes, table.sizes[1]]
    return Known(torch.zeros([1] * (more + 1)), zero.reshape([1] * more + [-1]), (True,) * more + (len(zero) == 1,), tuple(sizes))
