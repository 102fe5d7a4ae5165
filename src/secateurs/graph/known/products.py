"""Products that sum over a dimension: matrices, convolutions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from secateurs.graph.known.knowing import Knowing
from secateurs.graph.known.pointwise import total_of
from secateurs.graph.known.shapes import reordered
from secateurs.graph.known.state import Free, Known, Size, fixed
from secateurs.graph.ops import Op
from secateurs.nested import Value


def product_of(a: Known, b: Known) -> Known:
    """``(…, rows, common) @ (…, common, columns)``: known where each term is, or has a factor that is zero."""
    rows, columns = a.sizes[-2], b.sizes[-1]
    sure = all(isinstance(factor, int) for size in (a.sizes[-1], b.sizes[-2]) for factor in size)
    many = a.uniform[-1] and b.uniform[-2] and not sure
    uniform = (
        *(x and y for x, y in zip(a.uniform[:-2], b.uniform[:-2], strict=True)),
        a.uniform[-2],
        b.uniform[-1],
    )
    sizes = (*(x if x == y or y == () else y for x, y in zip(a.sizes[:-2], b.sizes[:-2], strict=True)), rows, columns)
    if not many:
        a, b = a.spread([-1]), b.spread([-2])
    known = ~_meets(~a.known, ~b.zero) & ~_meets(~a.zero, ~b.known)
    if many:  # over as many terms as there happen to be
        known = known & ~_meets(~a.zero, ~b.zero)
    number = torch.zeros([1] * len(sizes), dtype=torch.float64)
    if not many and bool(known.any()) and _any_number(a) and _any_number(b):
        number = _numbers(a) @ _numbers(b)
    return Known(number, known, uniform, sizes)


def _meets(a: Tensor, b: Tensor) -> Tensor:
    """``(…, rows, columns)``: whether both hold at any common index."""
    if not bool(a.any()) or not bool(b.any()):
        return torch.zeros([1] * a.ndim, dtype=torch.bool)
    if a.shape[-1] == 1 or bool(a.all()):
        return a.any(-1, keepdim=True) & b.any(-2, keepdim=True)
    if b.shape[-2] == 1 or bool(b.all()):
        return a.any(-1, keepdim=True) & b.any(-2, keepdim=True)
    if a.numel() == a.shape[-1] and b.ndim == 2:
        return b[a.flatten()].any(0).reshape([1] * (a.ndim - 1) + [-1])
    return a.float() @ b.float() > 0


def _any_number(each: Known) -> bool:
    return bool((each.known & (each.number != 0)).any())


def _numbers(each: Known) -> Tensor:
    return torch.where(each.known, each.number.double(), 0.0)


def _turned(each: Known) -> Known:
    order = list(range(len(each.sizes)))
    return reordered(each, [*order[:-2], order[-1], order[-2]])


def _note(know: Knowing, a: Value, b: Value) -> None:
    """Of a product of two activations, which common indices add nothing."""
    if know.typing.is_fixed(a) or know.typing.is_fixed(b):
        return
    of_a, of_b = know.of(a), know.of(b)
    zero = of_a.along(-1, zeros=True) | of_b.along(-2 if len(b.shape) > 1 else -1, zeros=True)
    know.zeros_in_sum(a, len(a.shape) - 1, zero)
    know.zeros_in_sum(b, max(len(b.shape) - 2, 0), zero)


def mm(know: Knowing, op: Op) -> Known:
    """Matrices, and many of them; with something added, perhaps."""
    added = op.name in ("addmm", "baddbmm")
    a, b = op.args[1:3] if added else op.args[:2]
    _note(know, a, b)
    made = product_of(know.of(a), know.of(b))
    return total_of(know, op, made, op.args[0]) if added else made


def mv(know: Knowing, op: Op) -> Known:
    """A matrix with a vector."""
    added = op.name == "addmv"
    a, b = op.args[1:3] if added else op.args[:2]
    _note(know, a, b)
    made = product_of(know.of(a), _column(know.of(b)))
    made = replace(made, number=made.number[..., 0], known=made.known[..., 0], uniform=made.uniform[:-1], sizes=made.sizes[:-1])
    return total_of(know, op, made, op.args[0]) if added else made


def _column(each: Known) -> Known:
    return replace(
        each,
        number=each.number.unsqueeze(-1),
        known=each.known.unsqueeze(-1),
        uniform=(*each.uniform, True),
        sizes=(*each.sizes, ()),
    )


def dot(know: Knowing, op: Op) -> Known | None:
    """Two vectors."""
    _note(know, op.args[0], op.args[1])
    return None


def linear(know: Knowing, op: Op) -> Known:
    """The last dimension with a weight ``(out, in)``."""
    x, weight = op.args[:2]
    before, turned = know.of(x), _turned(know.of(weight))
    ahead = len(before.sizes) - 2
    if ahead < 0:
        before = replace(before, number=before.number[None], known=before.known[None], uniform=(True, *before.uniform),
                         sizes=((), *before.sizes))  # fmt: skip
    for _ in range(ahead):
        turned = replace(turned, number=turned.number[None], known=turned.known[None], uniform=(True, *turned.uniform),
                         sizes=((), *turned.sizes))  # fmt: skip
    made = product_of(before, turned)
    if ahead < 0:
        made = replace(made, number=made.number[0], known=made.known[0], uniform=made.uniform[1:], sizes=made.sizes[1:])
    return total_of(know, op, made, op.args[2]) if len(op.args) > 2 and op.args[2] is not None else made


# ---------------------------------------------------------------- convolutions


def convolution(know: Knowing, op: Op) -> Known:
    """Channels that only channels of known numbers feed; where there is padding, only zeros are the same at the borders."""
    x, weight, bias = op.args[:3]
    spatial = len(weight.shape) - 2
    place = len(x.shape) - spatial - 1
    before, kernel = know.of(x), know.of(weight)
    transposed, groups = op.argument("transposed", False), op.argument("groups", 1)
    plain = not transposed and not any(op.argument("padding")) and not know.sized
    known, number = before.along(place, zeros=not plain), before.numbers(place)
    outputs, sums = _through(known, torch.where(known, number, 0.0), kernel, groups, transposed)
    if bias is not None:
        shift = know.of(bias).spread([0])
        outputs, sums = outputs & shift.known.expand(len(sums)), sums + shift.number.double()
    around = [1] * spatial
    return Known(
        sums.reshape([*[1] * place, -1, *around]),
        outputs.reshape([*[1] * place, -1, *around]),
        tuple(dim != place for dim in range(len(x.shape))),
        _sizes_after(know, op, before, place, spatial),
    )


def _through(known: Tensor, number: Tensor, kernel: Known, groups: int, transposed: bool) -> tuple[Tensor, Tensor]:
    """Which outputs of a convolution are known from which inputs, and their numbers without a bias."""
    zero, weight = kernel.zero.expand(kernel.shape), kernel.number.expand(kernel.shape)
    if transposed:  # (in, out of a group, …) -> (out of a group, in of a group, groups, …)
        zero, weight = (each.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) for each in (zero, weight))
    zero, weight = zero.unflatten(0, (groups, -1)).flatten(3), weight.unflatten(0, (groups, -1)).flatten(3)
    sure = kernel.known.expand(kernel.shape).all() if kernel.known.numel() > 1 else kernel.known.flatten()[0]
    feeds = known.reshape(groups, 1, -1)
    silent = feeds & (number.reshape(groups, 1, -1) == 0)
    off = zero.all(-1)
    outputs = (off | silent | (feeds & sure)).all(-1)
    sums = torch.zeros(outputs.shape, dtype=torch.float64)
    if bool(number.any()):
        sums = (weight.double().sum(-1) * number.reshape(groups, 1, -1)).sum(-1)
    return outputs.flatten(), sums.flatten()


def _sizes_after(know: Knowing, op: Op, before: Known, place: int, spatial: int) -> tuple[Size, ...]:
    """The sizes of what a convolution gives; those in space are the same where stride and padding leave them."""
    shape, kernel = op.outputs[0].shape, op.args[1].shape[2:]
    stride, padding, dilation = (_each(op.argument(name), spatial) for name in ("stride", "padding", "dilation"))
    stays = not op.argument("transposed", False) and not know.sized
    sizes: list[Size] = [*before.sizes[:place], fixed(shape[place])]
    for dim in range(spatial):
        same = stays and stride[dim] == 1 and 2 * padding[dim] == dilation[dim] * (kernel[dim] - 1)
        sizes.append(before.sizes[place + 1 + dim] if same else (Free(shape[place + 1 + dim]),))
    return tuple(sizes)


def _each(numbers: object, count: int) -> list[int]:
    found = list(numbers) if isinstance(numbers, (tuple, list)) else [numbers]
    return found * count if len(found) == 1 else found  # type: ignore[return-value]
