"""The same numbers in another shape: views, concatenations, slices, repetitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

from secateurs.graph.axes import ONE, Dim
from secateurs.graph.ops import Op
from secateurs.graph.rules.lookups import unknown
from secateurs.graph.typing_context import Dims, Typing


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
    place = op.argument("dim", 0) % len(dims)
    taken = range(dims[place].size)[slice(op.argument("start"), op.argument("end"), op.argument("step", 1))]
    dims[place] = regular(t, op, dims[place], taken)
    return dims


def slice_scatter(t: Typing, op: Op) -> Dims:
    """What is written into a stretch of one dimension is of its type."""
    dims = list(t.dims(op.args[0]))
    place = op.argument("dim", 0) % len(dims)
    taken = range(dims[place].size)[slice(op.argument("start"), op.argument("end"), op.argument("step", 1))]
    within = [*dims[:place], regular(t, op, dims[place], taken), *dims[place + 1 :]]
    t.same_all(within, t.dims(op.args[1]), op)
    return dims


def regular(t: Typing, op: Op, dim: Dim, taken: range) -> Dim:
    """Every n-th index of a stretch."""
    size, step = dim.size, taken.step
    if step == 1:
        return t.part(dim, taken.start, taken.start + len(taken), op)
    if taken.start < step and size % step == 0 and len(taken) == size // step:
        outer, inner = t.split(dim, step, op)
        t.pin([inner], f"one of each {step} is taken at {op.where}")
        return outer
    t.pin([dim], f"sliced with a step of {step} at {op.where}")
    return Dim.fresh(len(taken), f"sliced at {op.where}")


def select(t: Typing, op: Op) -> Dims:
    """One index of one dimension."""
    dims = list(t.dims(op.args[0]))
    t.pin([dims.pop(op.args[1])], f"indexed by number at {op.where}")
    return dims


def select_scatter(t: Typing, op: Op) -> Dims:
    """What is written at one index of one dimension has all the others."""
    dims = list(t.dims(op.args[0]))
    place = op.args[2] % len(dims)
    t.pin([dims[place]], f"indexed by number at {op.where}")
    t.same_all([*dims[:place], *dims[place + 1 :]], t.dims(op.args[1]), op)
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


def diagonal(t: Typing, op: Op) -> Dims:
    """Two dimensions become one."""
    dims = list(t.dims(op.args[0]))
    a, b = op.argument("dim1", 0) % len(dims), op.argument("dim2", 1) % len(dims)
    if op.argument("offset", 0) == 0 and dims[a].size == dims[b].size:
        both = t.same(dims[a], dims[b], op)
    else:
        t.pin([dims[a], dims[b]], f"a diagonal at {op.where}")
        size = op.outputs[0].shape[-1] if op.name == "diagonal" else op.args[1].shape[-1]
        both = Dim.fresh(size, f"a diagonal at {op.where}")
    return [*(dim for place, dim in enumerate(dims) if place not in (a, b)), both]


def diagonal_scatter(t: Typing, op: Op) -> Dims:
    """What is written on a diagonal."""
    t.same_all(diagonal(t, op), t.dims(op.args[1]), op)
    return list(t.dims(op.args[0]))


def diag_embed(t: Typing, op: Op) -> Dims:
    """One dimension becomes the diagonal of two."""
    *dims, last = t.dims(op.args[0])
    size = op.outputs[0].shape[-1]
    if op.argument("offset", 0):
        t.pin([last], f"a diagonal at {op.where}")
    both = last if size == last.size else Dim.fresh(size, f"a diagonal at {op.where}")
    for place in sorted(op.argument(name, usual) % (len(dims) + 2) for name, usual in (("dim1", -2), ("dim2", -1))):
        dims.insert(place, both)
    return dims


def as_strided(t: Typing, op: Op) -> Dims | None:
    """Windows over some dimensions that follow each other in memory; those that keep their size and stride beside them pass."""
    dims, source = t.dims(op.args[0]), op.args[0]
    if source.strides is None:
        return None
    old, new = list(zip(source.shape, source.strides, strict=True)), list(zip(op.args[1], op.args[2], strict=True))
    same = [(old.index(each), place) for place, each in enumerate(new) if each in old and new.index(each) == place]
    kept = (dict(few) for count in range(len(same), -1, -1) for few in combinations(same, count))
    passed = next((each for each in kept if _within(_others(new, each.values()), _others(old, each))), None)
    if passed is None:
        return None
    reason = f"cut into windows at {op.where}"
    t.pin([dim for place, dim in enumerate(dims) if place not in passed], reason)
    where = {after: dims[before] for before, after in passed.items()}
    return [where[place] if place in where else Dim.fresh(size, reason) for place, (size, _) in enumerate(new)]


def _others(layout: list[tuple[int, int]], places: Iterable[int]) -> list[tuple[int, int]]:
    """Sizes and strides of the other dimensions, the widest stride first."""
    gone = set(places)
    left = [each for place, each in enumerate(layout) if place not in gone and each[0] > 1]
    return sorted(left, key=lambda each: -each[1])


def _within(windows: list[tuple[int, int]], whole: list[tuple[int, int]]) -> bool:
    """Whether windows never leave some dimensions, and these follow each other in memory without a gap."""
    dense = all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(whole))
    step = whole[-1][1] if whole else 1
    last, end = (sum((size - 1) * stride for size, stride in each) for each in (windows, whole))
    return dense and last <= end and all(stride % step == 0 for _, stride in windows)


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
