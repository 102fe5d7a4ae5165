"""One table: ATen operation → what it says of the dimensions of its operands. No rule knows a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.infer import Dims, Rule, Typing
from secateurs.graph.trace import Op, Value, values_in

# ---------------------------------------------------------------- one index of the result, one index of each operand


def pointwise(t: Typing, op: Op) -> Dims:
    """Dimensions line up from the right; those of size 1 stretch."""
    shape = op.outputs[0].shape
    dims: Dims = [ONE] * len(shape)
    for value in op.inputs():
        for place, dim in enumerate(reversed(t.dims(value)), start=1):
            if place <= len(shape) and dim.size == shape[-place] and dim.size > 1:
                dims[-place] = t.same(dims[-place], dim, op) if dims[-place] is not ONE else dim
    return [Dim.fresh(size) if dim is ONE else dim for dim, size in zip(dims, shape, strict=True)]


def identity(t: Typing, op: Op) -> Dims:
    """The first operand as it is."""
    return list(t.dims(op.args[0]))


def factory(t: Typing, op: Op) -> Dims:
    """The same number everywhere: whatever length is asked for would do."""
    return [Dim.fresh(size) for size in op.outputs[0].shape]


def indexed_factory(t: Typing, op: Op) -> list[Dims]:
    """Numbers that depend on the index: no index may go."""
    return [[Dim.fresh(size, f"{op.name} at {op.where} counts its indices") for size in value.shape] for value in op.outputs]


# ---------------------------------------------------------------- the same numbers in another shape


def view(t: Typing, op: Op) -> Dims:
    """Group the sizes on both sides to the shortest stretches of equal product; each stretch is one product of axes."""
    source, shape = t.dims(op.args[0]), op.outputs[0].shape
    found: Dims = []
    for old, new in stretches([dim.size for dim in source], shape):
        inside = [source[i] for i in old]
        if len(old) == 1 and len(new) == 1:
            found += inside
            continue
        made = [Dim.fresh(shape[i]) for i in new]
        if len(new) == 1:
            made = [Dim.product(*inside)]
        elif made:
            t.same(Dim.product(*made), Dim.product(*inside), op)
        found += made
    return found


def stretches(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Indices of the dimensions before and after that belong together.

    >>> stretches([2, 5, 12], [10, 3, 4])
    [([0, 1], [0]), ([2], [1, 2])]
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        here = there = 1
        if i < len(old):
            left, here, i = [i], old[i], i + 1
        if j < len(new):
            right, there, j = [j], new[j], j + 1
        while here != there:
            if here < there and i < len(old):
                left, here, i = [*left, i], here * old[i], i + 1
            elif j < len(new):
                right, there, j = [*right, j], there * new[j], j + 1
            else:
                left, here, i = [*left, i], here * old[i], i + 1
        found.append((left, right))
    return found


def permute(t: Typing, op: Op) -> Dims:
    """Dimensions in another order."""
    dims = t.dims(op.args[0])
    return [dims[place] for place in op.args[1]]


def transpose(t: Typing, op: Op) -> Dims:
    """Two dimensions change places."""
    dims = list(t.dims(op.args[0]))
    if len(dims) < 2:
        return dims
    a, b = (op.args[1], op.args[2]) if len(op.args) > 2 else (-2, -1)
    dims[a], dims[b] = dims[b], dims[a]
    return dims


def squeeze(t: Typing, op: Op) -> Dims:
    """Dimensions of size 1 go."""
    dims = t.dims(op.args[0])
    wanted = op.args[1] if len(op.args) > 1 else range(len(dims))
    gone = {place % len(dims) for place in (wanted if isinstance(wanted, (tuple, list, range)) else [wanted])} if dims else set()
    return [dim for place, dim in enumerate(dims) if not (place in gone and dim.size == 1)]


def unsqueeze(t: Typing, op: Op) -> Dims:
    """A dimension of size 1 comes."""
    dims = list(t.dims(op.args[0]))
    dims.insert(op.args[1] % (len(dims) + 1), ONE)
    return dims


def expand(t: Typing, op: Op) -> Dims:
    """Dimensions of size 1 stretch to new axes."""
    dims, shape = t.dims(op.args[0]), op.outputs[0].shape
    padded = [ONE] * (len(shape) - len(dims)) + list(dims)
    return [dim if dim.size == size else Dim.fresh(size) for dim, size in zip(padded, shape, strict=True)]


def repeat(t: Typing, op: Op) -> Dims:
    """The whole again and again: repetitions × indices."""
    dims, times = t.dims(op.args[0]), op.args[1]
    padded = [ONE] * (len(times) - len(dims)) + list(dims)
    return [Dim.product(Dim.fresh(count), dim) for count, dim in zip(times, padded, strict=True)]


def repeat_interleave(t: Typing, op: Op) -> Dims:
    """Each index again and again: indices × repetitions."""
    dims, place = list(t.dims(op.args[0])), op.argument("dim")
    times = op.argument("repeats")
    if place is None or not isinstance(times, int):
        return unknown(t, op)
    dims[place] = Dim.product(dims[place], Dim.fresh(times))
    return dims


def cat(t: Typing, op: Op) -> Dims:
    """One dimension is the sum of the parts, the others are the same."""
    parts = [value for value in op.args[0] if value.shape != (0,)]
    place = op.argument("dim", 0) % len(parts[0].shape)
    dims = list(t.dims(parts[0]))
    for other in parts[1:]:
        t.same_all(dims[:place] + dims[place + 1 :], [d for i, d in enumerate(t.dims(other)) if i != place], op)
    dims[place] = Dim.sum(*(t.dims(value)[place] for value in parts if value.shape[place]))
    return dims


def stack(t: Typing, op: Op) -> Dims:
    """A new dimension numbers the operands."""
    values = op.args[0]
    dims = list(t.dims(values[0]))
    for other in values[1:]:
        t.same_all(dims, t.dims(other), op)
    place = op.argument("dim", 0) % (len(dims) + 1)
    return [*dims[:place], Dim.fresh(len(values), f"stacked at {op.where}"), *dims[place:]]


def pieces(t: Typing, op: Op) -> list[Dims]:
    """split, chunk: the parts follow each other."""
    dims = t.dims(op.args[0])
    place = op.argument("dim", 0) % len(dims)
    start, found = 0, []
    for value in op.outputs:
        stop = start + value.shape[place]
        found.append([*dims[:place], t.part(dims[place], start, stop, op), *dims[place + 1 :]])
        start = stop
    return found


def slice_(t: Typing, op: Op) -> Dims:
    """A stretch of one dimension, or every n-th index of it."""
    dims = list(t.dims(op.args[0]))
    place, step = op.argument("dim", 0) % len(dims), op.argument("step", 1)
    size = dims[place].size
    start, stop, _ = slice(op.argument("start"), op.argument("end")).indices(size)
    if step == 1:
        dims[place] = t.part(dims[place], start, max(start, stop), op)
    elif start < step and stop == size and size % step == 0:
        dims[place], inner = t.split(dims[place], step, op)
        t.pin([inner], f"one of each {step} is taken at {op.where}")
    else:
        t.pin([dims[place]], f"sliced with a step of {step} at {op.where}")
        dims[place] = Dim.fresh(op.outputs[0].shape[place], f"sliced at {op.where}")
    return dims


def select(t: Typing, op: Op) -> Dims:
    """One index of one dimension."""
    dims = list(t.dims(op.args[0]))
    t.pin([dims.pop(op.args[1])], f"indexed by number at {op.where}")
    return dims


def unbind(t: Typing, op: Op) -> list[Dims]:
    """Every index of one dimension apart."""
    dims = list(t.dims(op.args[0]))
    t.pin([dims.pop(op.argument("dim", 0))], f"indexed by number at {op.where}")
    return [dims for _ in op.outputs]


def pad(t: Typing, op: Op) -> Dims:
    """Constants around what was there."""
    dims, widths = list(t.dims(op.args[0])), op.args[1]
    for i in range(len(widths) // 2):
        before, after = widths[2 * i], widths[2 * i + 1]
        place, size = len(dims) - 1 - i, dims[-1 - i].size
        inner = t.part(dims[place], max(0, -before), size + min(0, after), op)
        around = [Dim.fresh(width) if width > 0 else Dim(()) for width in (before, after)]
        dims[place] = Dim.sum(around[0], inner, around[1])
    return dims


def ordered(*places: str) -> Rule:
    """Indices of the named dimensions are moved about or counted: none may go. Everything else passes."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        given = [op.argument(name) for name in places]
        chosen = [each for item in given if item is not None for each in (item if isinstance(item, (tuple, list)) else [item])]
        t.pin(
            [dims[place] for place in chosen] if chosen and dims else dims,
            f"{op.name} at {op.where} depends on the order of its indices",
        )
        return [
            [
                dim if size == dim.size else Dim.fresh(size, f"{op.name} at {op.where}")
                for dim, size in zip(dims, value.shape, strict=True)
            ]
            if len(value.shape) == len(dims)
            else [Dim.fresh(size, f"{op.name} at {op.where}") for size in value.shape]
            for value in op.outputs
        ]

    return rule


def index(t: Typing, op: Op) -> Dims:
    """Indexing with tensors: the indexed dimensions may not change, the others pass."""
    dims, indices = t.dims(op.args[0]), op.args[1]
    places = [place for place, each in enumerate(indices) if each is not None]
    masks = any(indices[place].dtype in (torch.bool, torch.uint8) for place in places)
    if masks or not places:
        return unknown(t, op)
    reason = f"looked up by index at {op.where}"
    t.pin([dims[place] for place in places], reason)
    looked_up = [Dim.fresh(size, reason) for size in torch.broadcast_shapes(*(indices[place].shape for place in places))]
    for place in places:
        t.same_all(looked_up[len(looked_up) - len(indices[place].shape) :], t.dims(indices[place]), op)
    rest = [dim for place, dim in enumerate(dims) if place not in places]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return [*rest[:first], *looked_up, *rest[first:]]


def embedding(t: Typing, op: Op) -> Dims:
    """Rows of a table: its width goes on."""
    weight, ids = op.args[0], op.args[1]
    rows, width = t.dims(weight)
    t.pin([rows], f"looked up by index at {op.where}")
    t.produced.append((t.fixed.get(weight, frozenset()), width))
    return [*t.dims(ids), width]


def embedding_bag(t: Typing, op: Op) -> list[Dims]:
    """Sums of rows of a table: its width goes on."""
    rows, width = t.dims(op.args[0])
    t.pin([rows], f"looked up by index at {op.where}")
    t.produced.append((t.fixed.get(op.args[0], frozenset()), width))
    first = [[Dim.fresh(op.outputs[0].shape[0], "the bags"), width]]
    return first + [[Dim.fresh(size, "the bags") for size in value.shape] for value in op.outputs[1:]]


def index_select(t: Typing, op: Op) -> Dims:
    """Some indices of one dimension, by number."""
    dims, place = list(t.dims(op.args[0])), op.args[1]
    reason = f"looked up by index at {op.where}"
    t.pin([dims[place]], reason)
    dims[place] = t.dims(op.args[2])[0] if op.args[2].shape else ONE
    t.pin([dims[place]], reason)
    return dims


def into(place_of_source: int) -> Rule:
    """index_add, scatter and their like: one dimension is addressed by index; where the others are alike, they are the same."""

    def rule(t: Typing, op: Op) -> Dims:
        dims, place = t.dims(op.args[0]), op.args[1]
        reason = f"written by index at {op.where}"
        t.pin([dims[place]], reason)
        for value in (each for each in op.args[2:] if isinstance(each, Value)):
            others = t.dims(value)
            if len(others) == len(dims):
                t.pin([others[place]], reason)
                t.same_all(
                    [d for i, d in enumerate(dims) if i != place % len(dims)],
                    [d for i, d in enumerate(others) if i != place % len(dims)],
                    op,
                )
            else:
                t.pin(others, reason)
        return dims

    return rule


def gather(t: Typing, op: Op) -> Dims:
    """One dimension by index, the others each by their own."""
    dims, place, found = t.dims(op.args[0]), op.args[1], list(t.dims(op.args[2]))
    reason = f"looked up by index at {op.where}"
    t.pin([dims[place], found[place]], reason)
    for i, (dim, other) in enumerate(zip(dims, found, strict=True)):
        if i != place % len(dims):
            if dim.size == other.size:
                t.same(dim, other, op)
            else:
                t.pin([dim, other], reason)
    return found


def index_put(t: Typing, op: Op) -> Dims:
    """The dimensions that are written by index stay whole, the others are those of what is written."""
    dims, indices = t.dims(op.args[0]), op.args[1]
    reason = f"written by index at {op.where}"
    taken = 0
    for place, each in enumerate(indices):
        if each is not None:
            span = len(each.shape) if each.dtype == torch.bool else 1
            t.pin(dims[place + taken : place + taken + span], reason)
            t.pin(t.dims(each), reason)
            taken += span - 1
    free = [dim for place, dim in enumerate(dims) if place >= len(indices) + taken]
    source = t.dims(op.args[2])
    if free and len(source) >= len(free):
        t.same_all(free, source[len(source) - len(free) :], op)
    t.pin(source[: len(source) - len(free)], reason)
    return dims


# ---------------------------------------------------------------- products that sum over a dimension


def mm(t: Typing, op: Op) -> Dims:
    """Rows and columns go on, what lies between is contracted."""
    a, b = op.args[-2:] if op.name.startswith("add") else op.args[:2]
    (rows, common), (other, columns) = t.dims(a), t.dims(b)
    t.same(common, other, op)
    t.contraction(a, b, [rows], [columns], common)
    t.products.append([rows, common, columns])
    if op.name.startswith("add"):
        _broadcast(t, op, op.args[0], [rows, columns])
    return [rows, columns]


def _broadcast(t: Typing, op: Op, value: Value, dims: Dims) -> None:
    for dim, other in zip(reversed(dims), reversed(t.dims(value)), strict=False):
        if dim.size == other.size:
            t.same(dim, other, op)


def bmm(t: Typing, op: Op) -> Dims:
    """The same, many times over; of two activations, these are heads."""
    a, b = op.args[1:3] if op.name.startswith("baddbmm") else op.args[:2]
    (batch, rows, common), (also, other, columns) = t.dims(a), t.dims(b)
    t.same(batch, also, op)
    t.same(common, other, op)
    t.contraction(a, b, [rows], [columns], common)
    t.products.append([batch, rows, common, columns])
    if not t.is_fixed(a) and not t.is_fixed(b):
        t.heads([batch], op)
    if op.name.startswith("baddbmm"):
        _broadcast(t, op, op.args[0], [batch, rows, columns])
    return [batch, rows, columns]


def mv(t: Typing, op: Op) -> Dims:
    """A matrix with a vector."""
    a, b = op.args[-2:] if op.name.startswith("add") else op.args[:2]
    rows, common = t.dims(a)
    t.same(common, t.dims(b)[0], op)
    t.contraction(a, b, [rows], [], common)
    t.products.append([rows, common])
    if op.name.startswith("add"):
        _broadcast(t, op, op.args[0], [rows])
    return [rows]


def dot(t: Typing, op: Op) -> Dims:
    """Two vectors."""
    a, b = op.args[:2]
    t.same(t.dims(a)[0], t.dims(b)[0], op)
    t.contraction(a, b, [], [], t.dims(a)[0])
    t.products.append([t.dims(a)[0]])
    return []


def linear(t: Typing, op: Op) -> Dims:
    """The last dimension is contracted with a weight ``(out, in)``."""
    x, weight = op.args[:2]
    (*rows, common), (out, other) = t.dims(x), t.dims(weight)
    t.same(common, other, op)
    t.contraction(x, weight, [], [out], common)
    t.products.append([*rows, common, out])
    if len(op.args) > 2 and op.args[2] is not None:
        t.same(out, t.dims(op.args[2])[0], op)
    return [*rows, out]


def convolution(t: Typing, op: Op) -> Dims:
    """Channels are groups × channels of one group, on either side."""
    x, weight, bias = op.args[:3]
    transposed, groups = op.argument("transposed", False), op.argument("groups", 1)
    first, second, *kernel = t.dims(weight)
    spatial = len(kernel)
    *batch, channels = t.dims(x)[: len(x.shape) - spatial]
    group = Dim.fresh(groups)
    inputs, outputs = (
        Dim.fresh(channels.size // groups),
        Dim.fresh((second if transposed else first).size // (1 if transposed else groups)),
    )
    t.same(channels, Dim.product(group, inputs), op)
    t.same(first, Dim.product(group, inputs if transposed else outputs), op)
    t.same(second, outputs if transposed else inputs, op)
    if t.is_fixed(weight):
        names = t.fixed[weight]
        t.produced.append((names, outputs))
        t.consumed.append((names, inputs))
        t.scaled.append((names, group))
        t.groups.update(dict.fromkeys(names, group))
    made = Dim.product(group, outputs)
    if bias is not None:
        t.same(made, t.dims(bias)[0], op)
    t.pin(kernel, "the kernel's extent")
    before = t.dims(x)[len(x.shape) - spatial :]
    after = _new_space(t, op, before, op.outputs[0].shape[-spatial:])
    t.products.append([*batch, group, inputs, outputs, *kernel, *(before if transposed else after)])
    return [*batch, made, *after]


def _new_space(t: Typing, op: Op, old: Dims, sizes: Sequence[int]) -> Dims:
    t.pin(old, f"positions in space ({op.name} at {op.where})")
    return [Dim.fresh(size, f"positions in space ({op.name} at {op.where})") for size in sizes]


def bilinear(t: Typing, op: Op) -> Dims:
    """out[…, o] = Σ x[…, i] W[o, i, j] y[…, j], which ATen writes as one product over expanded operands."""
    expands = op.args[3:6]
    sumdims = set(op.args[6])
    full: list[Dim | None] = [None] * (
        max(len(value.shape) + len(places) for value, places in zip(op.args[:3], expands, strict=True))
    )
    for value, places in zip(op.args[:3], expands, strict=True):
        free = iter(t.dims(value))
        for place in range(len(full)):
            if place not in places:
                dim = next(free)
                known = full[place]
                full[place] = (
                    dim if known is None or known.size == 1 else t.same(known, dim, op) if dim.size == known.size else known
                )
    weight = op.args[1]
    if t.is_fixed(weight):
        names = t.fixed[weight]
        t.produced += [
            (names, dim) for place, dim in enumerate(full) if dim is not None and place not in sumdims and place not in expands[1]
        ]
        t.consumed += [(names, dim) for place, dim in enumerate(full) if dim is not None and place in sumdims]
    t.products.append([dim or ONE for dim in full])
    return [dim or ONE for place, dim in enumerate(full) if place not in sumdims]


def cdist(t: Typing, op: Op) -> Dims:
    """Distances between rows: a sum over the last dimension."""
    (*batch, rows, width), (*_, columns, other) = t.dims(op.args[0]), t.dims(op.args[1])
    t.same(width, other, op)
    return [*batch, rows, columns]


# ---------------------------------------------------------------- sums and other reductions over dimensions


def reduction(kind: str) -> Rule:
    """``kind`` is "sum" where a zero adds nothing, "mean" where the number of terms matters, "order" where the index does."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        places = op.argument("dim")
        if places is None or places == ():
            chosen = set(range(len(dims)))
        else:
            chosen = {place % len(dims) for place in (places if isinstance(places, (tuple, list)) else [places])} if dims else set()
        over = [dims[place] for place in chosen]
        t.summed += over
        if kind == "mean" and t.place not in t.rms_norms:
            t.approximate(over, f"{op.name} at {op.where} reduces over it")
        elif kind == "order":
            t.pin(over, f"{op.name} at {op.where} depends on the order of its indices")
        keep = bool(op.argument("keepdim", False))
        made = [ONE if place in chosen else dim for place, dim in enumerate(dims) if keep or place not in chosen]
        return [made for _ in op.outputs]

    return rule


def along(kind: str) -> Rule:
    """Softmax and cumulative sums: the same shape, mixed along one dimension."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = list(t.dims(op.args[0]))
        if dims:
            over = dims[op.args[1]]
            if kind == "order":
                t.pin([over], f"{op.name} at {op.where} depends on the order of its indices")
            else:
                t.approximate([over], f"{op.name} at {op.where} mixes along it")
        return [dims for _ in op.outputs]

    return rule


def batch_norm(t: Typing, op: Op) -> list[Dims]:
    """One number for each channel, from elsewhere, or in training from all the other dimensions."""
    dims = list(t.dims(op.args[0]))
    if op.argument("training", False):  # a weight that is standardised, say
        t.approximate([dims[0], *dims[2:]], f"{op.name} at {op.where} reduces over it")
    for value in op.args[1:5]:
        if isinstance(value, Value):
            t.same(dims[1], t.dims(value)[0], op)
    return [
        dims,
        *([dims[1]] if value.shape == (dims[1].size,) else [Dim.fresh(n) for n in value.shape] for value in op.outputs[1:]),
    ]


def layer_norm(t: Typing, op: Op) -> list[Dims]:
    """The last dimensions are reduced over and scaled."""
    dims, shape = list(t.dims(op.args[0])), op.args[1]
    last = dims[len(dims) - len(shape) :]
    t.summed += last
    if t.place not in t.rms_norms:
        t.approximate(last, f"{op.name} at {op.where} reduces over it")
    for value in op.args[2:4]:
        if isinstance(value, Value):
            t.same_all(last, t.dims(value), op)
    statistics = [*dims[: len(dims) - len(shape)], *[ONE] * len(shape)]
    return [dims, *(statistics[: len(value.shape)] for value in op.outputs[1:])]


def group_norm(t: Typing, op: Op) -> list[Dims]:
    """Channels are groups × channels of one group, which are reduced over."""
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], op.args[6]
    dims = list(t.dims(x))
    group, inner = t.split(dims[1], dims[1].size // groups, op)
    t.approximate([inner], f"{op.name} at {op.where} reduces over it")
    for value in (weight, bias):
        if isinstance(value, Value):
            t.same(dims[1], t.dims(value)[0], op)
    return [dims, *([dims[0], group] for _ in op.outputs[1:])]


def weight_norm(t: Typing, op: Op) -> list[Dims]:
    """A weight is divided by its norm."""
    dims = list(t.dims(op.args[0]))
    _broadcast(t, op, op.args[1], dims)
    t.pin(t.dims(op.args[1]), f"divided by its norm at {op.where}, which would be 0; remove the parametrization first")
    return [dims, *([Dim.fresh(size) if size > 1 else ONE for size in value.shape] for value in op.outputs[1:])]


# ---------------------------------------------------------------- space


def spatial(t: Typing, op: Op) -> list[Dims]:
    """Pooling and interpolation: batch and channels pass, positions in space are new. The name tells how many of these there are."""
    found = re.search(r"([123])d", op.name)
    count = int(found.group(1)) if found else 2
    dims = t.dims(op.args[0])
    leading = dims[: len(dims) - count]
    space = _new_space(t, op, dims[len(dims) - count :], op.outputs[0].shape[len(leading) :])
    return [[*leading, *space] for _ in op.outputs]


def im2col(t: Typing, op: Op) -> Dims:
    """Channels × window, at each position."""
    *batch, channels = t.dims(op.args[0])[:-2]
    made = op.outputs[0].shape
    window = Dim.fresh(made[-2] // channels.size, f"a window's extent at {op.where}")
    return [*batch, Dim.product(channels, window), *_new_space(t, op, t.dims(op.args[0])[-2:], made[-1:])]


def col2im(t: Typing, op: Op) -> Dims:
    """Channels × window back into space."""
    *batch, columns, positions = t.dims(op.args[0])
    made = op.outputs[0].shape
    channels, window = t.split(columns, columns.size // made[-3], op)
    t.pin([window, positions], f"a window's extent at {op.where}")
    return [*batch, channels, *_new_space(t, op, [], made[-2:])]


def unfold(t: Typing, op: Op) -> Dims:
    """Windows along one dimension."""
    dims = list(t.dims(op.args[0]))
    place = op.args[1] % len(dims)
    reason = f"cut into windows at {op.where}"
    t.pin([dims[place]], reason)
    return [
        *(dim if i != place else Dim.fresh(op.outputs[0].shape[i], reason) for i, dim in enumerate(dims)),
        Dim.fresh(op.args[2], reason),
    ]


def pixel_shuffle(t: Typing, op: Op) -> Dims:
    """Channels are channels × a square of pixels."""
    *batch, channels, height, width = t.dims(op.args[0])
    outer, _ = t.split(channels, op.args[1] ** 2, op)
    t.pin([_], f"becomes space at {op.where}")
    return [*batch, outer, *_new_space(t, op, [height, width], op.outputs[0].shape[-2:])]


def pixel_unshuffle(t: Typing, op: Op) -> Dims:
    """A square of pixels becomes channels."""
    *batch, channels, height, width = t.dims(op.args[0])
    inner = Dim.fresh(op.args[1] ** 2, f"was space at {op.where}")
    return [*batch, Dim.product(channels, inner), *_new_space(t, op, [height, width], op.outputs[0].shape[-2:])]


def channel_shuffle(t: Typing, op: Op) -> Dims:
    """Groups × channels change places."""
    dims = list(t.dims(op.args[0]))
    groups = op.args[1]
    outer, inner = t.split(dims[1], dims[1].size // groups, op)
    t.pin([outer], f"shuffled in {groups} groups at {op.where}")
    dims[1] = Dim.product(inner, outer)
    return dims


def diagonal(t: Typing, op: Op) -> Dims:
    """Two dimensions become one."""
    dims = list(t.dims(op.args[0]))
    a, b = op.argument("dim1", 0) % len(dims), op.argument("dim2", 1) % len(dims)
    if op.argument("offset", 0) == 0 and dims[a].size == dims[b].size:
        both = t.same(dims[a], dims[b], op)
    else:
        t.pin([dims[a], dims[b]], f"a diagonal at {op.where}")
        both = Dim.fresh(op.outputs[0].shape[-1], f"a diagonal at {op.where}")
    return [*(dim for place, dim in enumerate(dims) if place not in (a, b)), both]


def glu(t: Typing, op: Op) -> Dims:
    """Two halves, of which one gates the other."""
    dims = list(t.dims(op.args[0]))
    place = op.argument("dim", -1) % len(dims)
    half = dims[place].size // 2
    first, second = t.part(dims[place], 0, half, op), t.part(dims[place], half, 2 * half, op)
    dims[place] = t.same(first, second, op)
    return dims


def as_complex(t: Typing, op: Op) -> Dims:
    """Real and imaginary part become one number."""
    *dims, parts = t.dims(op.args[0])
    t.pin([parts], f"real and imaginary part at {op.where}")
    return dims


def as_real(t: Typing, op: Op) -> Dims:
    """One complex number becomes two."""
    return [*t.dims(op.args[0]), Dim.fresh(2, f"real and imaginary part at {op.where}")]


def grouped_mm(t: Typing, op: Op) -> Any:
    """Rows (tokens, in) of several experts, one after the other, each with a weight (experts, in, out) of its own."""
    a, b = op.args[:2]
    if len(a.shape) != 2 or len(b.shape) != 3:
        return unknown(t, op)
    (rows, common), (_, other, columns) = t.dims(a), t.dims(b)
    t.same(common, other, op)
    t.contraction(a, b, [], [columns], common)
    t.products.append([rows, common, columns])
    return [rows, columns]


def ending(count: int) -> Rule:
    """Triangles, inverses, transforms: the last dimensions stay whole, the ones before pass."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        dims = t.dims(op.args[0])
        t.pin(dims[len(dims) - count :], f"{op.name} at {op.where} depends on the order of its indices")
        return [dims if [d.size for d in dims] == list(value.shape) else None for value in op.outputs]  # type: ignore[misc]

    return rule


def unknown(t: Typing, op: Op) -> Any:
    """Nothing is known: all that it touches is pinned, and the operation is listed."""
    t.unknown.setdefault(op.name, op.where)
    return None


# ---------------------------------------------------------------- the table

Names = dict[str, Rule]


def _rows(rule: Rule, names: str) -> Names:
    return dict.fromkeys(names.split(), rule)


RULES: Names = {
    **_rows(identity, "clone detach alias contiguous lift lift_fresh lift_fresh_copy _to_copy native_dropout dropout zeros_like ones_like "
            "empty_like full_like fill fill_ zero zero_ detach_ positive _conj resolve_conj resolve_neg _neg_view data "
            "new_empty_strided_like requires_grad_ relu_ special_expit"),
    **_rows(factory, "zeros ones full empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided scalar_tensor"),
    **_rows(indexed_factory, "arange linspace logspace eye rand randn randint randperm range tril_indices triu_indices hann_window "
            "rand_like randn_like randint_like bernoulli bernoulli_ uniform_ normal_ normal multinomial"),
    **_rows(pointwise, "copy_ copy where masked_fill masked_fill_ lerp addcmul addcdiv bitwise_and bitwise_or logical_and logical_or "
            "logical_not isin bucketize nan_to_num complex polar view_as_real_like clamp clamp_min clamp_max expand_as rsub prelu "
            "_prelu_kernel rrelu_with_noise celu heaviside fmod remainder gelu silu mish hardswish hardsigmoid hardtanh leaky_relu elu "
            "softplus floor_divide softshrink threshold log_sigmoid_forward binary_cross_entropy mse_loss"),
    **_rows(view, "view _unsafe_view reshape _reshape_alias flatten unflatten _reshape_copy view_copy ravel"),
    **_rows(permute, "permute"),
    **_rows(transpose, "transpose t swapaxes transpose_ t_ numpy_T"),
    **_rows(squeeze, "squeeze squeeze_"),
    **_rows(unsqueeze, "unsqueeze unsqueeze_"),
    **_rows(expand, "expand broadcast_to expand_copy"),
    **_rows(repeat, "repeat"),
    **_rows(repeat_interleave, "repeat_interleave"),
    **_rows(cat, "cat concat"),
    **_rows(stack, "stack"),
    **_rows(pieces, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split split_copy "
            "split_with_sizes_copy"),
    **_rows(slice_, "slice"),
    **_rows(select, "select"),
    **_rows(unbind, "unbind"),
    **_rows(pad, "constant_pad_nd"),
    **_rows(ordered("dims"), "flip"),
    **_rows(ordered("dims"), "roll"),
    **_rows(ordered("dim"), "topk sort argsort kthvalue mode"),
    **_rows(along("order"), "cumsum cumprod cummax cummin logcumsumexp"),
    **_rows(index, "index"),
    **_rows(index_put, "index_put index_put_ _unsafe_index_put"),
    **_rows(index_select, "index_select"),
    **_rows(into(3), "index_add index_add_ index_copy index_copy_ index_fill index_fill_ scatter scatter_ scatter_add scatter_add_ "
            "scatter_reduce"),
    **_rows(gather, "gather"),
    **_rows(embedding, "embedding"),
    **_rows(embedding_bag, "_embedding_bag embedding_bag _embedding_bag_forward_only"),
    **_rows(mm, "mm addmm"),
    **_rows(bmm, "bmm baddbmm"),
    **_rows(mv, "mv addmv"),
    **_rows(dot, "dot vdot"),
    **_rows(linear, "linear"),
    **_rows(convolution, "convolution _convolution convolution_overrideable"),
    **_rows(bilinear, "_trilinear"),
    **_rows(cdist, "_cdist_forward _euclidean_dist cdist"),
    **_rows(reduction("sum"), "sum any all nansum linalg_vector_norm norm count_nonzero"),
    **_rows(reduction("mean"), "mean var std var_mean std_mean amax amin max min aminmax logsumexp prod median nanmedian"),
    **_rows(reduction("order"), "argmax argmin"),
    **_rows(along("softmax"), "_softmax _log_softmax softmax log_softmax _safe_softmax"),
    **_rows(batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
            "_batch_norm_no_update batch_norm _batch_norm_with_update miopen_batch_norm"),
    **_rows(layer_norm, "native_layer_norm layer_norm _fused_rms_norm rms_norm"),
    **_rows(group_norm, "native_group_norm"),
    **_rows(weight_norm, "_weight_norm_interface _weight_norm"),
    **_rows(spatial, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d avg_pool1d avg_pool2d "
            "avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d adaptive_max_pool1d "
            "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
            "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d grid_sampler_3d max_unpool2d fractional_max_pool2d"),
    **_rows(im2col, "im2col"),
    **_rows(col2im, "col2im"),
    **_rows(unfold, "unfold"),
    **_rows(pixel_shuffle, "pixel_shuffle"),
    **_rows(pixel_unshuffle, "pixel_unshuffle"),
    **_rows(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_rows(diagonal, "diagonal"),
    **_rows(glu, "glu"),
    **_rows(as_complex, "view_as_complex"),
    **_rows(as_real, "view_as_real"),
    **_rows(grouped_mm, "_grouped_mm"),
    **_rows(ending(2), "tril triu tril_ triu_ linalg_inv_ex"),
}  # fmt: skip
"""ATen operation → its rule; those that ATen itself tags as pointwise need no line."""


def rule_of(op: Op) -> Rule:
    """The rule of an operation: from the table, or what ATen's own tags say, or none."""
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.func.tags:
        return pointwise
    if not any(True for _ in values_in((op.args, op.kwargs))):
        return indexed_factory
    return unknown
