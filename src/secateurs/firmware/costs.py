"""What a model takes on a microcontroller, as costs: bytes of flash, bytes of SRAM, instructions; of plans of channels without making them.

They need the example, of which one sample counts, and raise `UnsupportedError` for models that a small machine has no kernels for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from secateurs.costs.formats import fillers
from secateurs.costs.sums import Sum
from secateurs.costs.workload import Work
from secateurs.firmware.arena import lay_out
from secateurs.firmware.call import Call
from secateurs.firmware.cores import STACK
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.outline import Outline, Sizes, outline, padded, taps
from secateurs.integer.layers import Kind
from secateurs.types import Cost, Plan, Prepared, Term

CODE = 9_000
"""Bytes of kernels' code that are reckoned with."""
KINDS = ("int8", "int16", "float32")
_REACH = 256  # from one weight of a row to the next, as far as 8 bits tell


def flash_bytes(kind: Kind = "int8") -> Cost:
    """The bytes of flash of a model as C: weights in the format that takes least, factors and tables, and 9,000 for the kernels' code.

    Zeros make a layer smaller where blocks of four taps or single weights with 8-bit distances take less than all of them; where a plan
    removes blocks of 4, 8 or 16 weights, they are taken to be the kernels' (4 inputs of 1, 2 or 4 outputs). Of plans of channels the
    weights are exact; of plans of single weights they are what distances by chance take.

    >>> import torch
    >>> model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.zeros(1, 64)
    >>> 9_000 + 64 * 32 + 32 * 8 + 12 * (32 + 8) <= flash_bytes()(model, x) <= 12_000
    True
    """
    _require("flash_bytes", kind)

    def prepare(model: nn.Module, example: Any) -> Prepared:
        whole = outline(model, example, kind)
        dense = whole.under(None)
        rest = {
            name: call.flash - (_dense(dense.products[name].left({}), kind) if name in dense.products else 0)
            for name, call in whole.calls.items()
        }

        def terms(plan: Plan | None) -> list[Term]:
            products = whole.under(plan).products
            found = []
            for name, bytes_ in rest.items():
                if name in products:
                    value = _flash(products[name].left, kind, bytes_)
                    found.append(Term(name, products[name].sites, value))
                else:
                    found.append(Term(name, (), lambda _, bytes_=bytes_: float(bytes_)))  # type: ignore[misc]
            return [*found, Term("code", (), lambda _: float(CODE))]

        return Sum(terms)

    return Cost(f"flash_bytes(kind={kind!r})", "bytes", prepare)


def sram_bytes(kind: Kind = "int8") -> Cost:
    """The bytes of SRAM of a model as C: the smallest arena that is found for its arrays and what its kernels need, and 1,024 of stack.

    The network's inputs lie in the arena too, outputs to the end. No layers go patch by patch. Masked weights change nothing; of channels,
    what a plan promises is what the smaller model takes.

    >>> import torch
    >>> model, x = nn.Sequential(nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 10)), torch.zeros(1, 400)
    >>> sram_bytes("float32")(model, x)
    3024.0
    """
    _require("sram_bytes", kind)

    def prepare(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
        whole = outline(model, example, kind)
        inputs, outputs = ([face.array.name for face in faces] for faces in (whole.network.inputs, whole.network.outputs))
        under, calls = _remembering(whole), dict[tuple[str, int, int], Call]()
        known: dict[tuple[int, ...], float] = {}

        def cost(plan: Plan | None) -> float:
            sizes, counts = under(plan), {} if plan is None else dict(plan)
            held, steps = sizes.bytes(counts), sizes.steps(counts, calls)
            key = (*held.values(), *(step.scratch for step in steps))
            if key not in known:
                known[key] = float(lay_out(steps, held, inputs, outputs).bytes + STACK)
            return known[key]

        return cost

    return Cost(f"sram_bytes(kind={kind!r})", "bytes", prepare)


def _require(who: str, kind: Kind) -> None:
    if kind not in KINDS:
        raise FirmwareError(f"{who}: kind={kind!r}, but must be one of {', '.join(map(repr, KINDS))}")


def _remembering(whole: Outline) -> Callable[[Plan | None], Sizes]:
    """Sizes under plans: a search asks about many of the same sites."""
    last: list[tuple[Plan, Sizes]] = []

    def under(plan: Plan | None) -> Sizes:
        if plan is None or not plan.extents:
            return whole.under(plan)
        if not last or plan.extents is not last[0][0].extents or plan.shares.keys() != last[0][0].shares.keys():
            last[:] = [(plan, whole.under(plan))]
        return last[0][1]

    return under


def _flash(left: Callable[[Mapping[str, int]], Work], kind: Kind, rest: float) -> Callable[[Mapping[str, int]], float]:
    """What a layer's weights take, and the rest of it; nothing where the layer is gone."""

    def value(counts: Mapping[str, int]) -> float:
        work = left(counts)
        return min([_dense(work, kind), *_sparse(work, kind)]) + rest if work.groups * work.outputs else 0.0

    return value


def _dense(work: Work, kind: Kind) -> float:
    """All weights, in fours of taps (and, of int8, pairs of outputs), and what becomes of each output's sum; of floats, the bias."""
    outputs = work.groups * work.outputs
    if kind == "float32":
        return 4 * (work.weights + outputs)
    each = 12 if kind == "int8" else 16
    if work.inputs == work.outputs == 1 < work.groups:
        return work.weights + each * outputs
    rows = padded(work.outputs, 2) if kind == "int8" else work.outputs
    return work.groups * rows * taps(work.kernel, work.inputs) + each * outputs


def _sparse(work: Work, kind: Kind) -> list[float]:
    """What the weights take in each format that leaves zeros out."""
    if work.nonzeros >= work.weights or kind == "int16" or (work.groups > 1 and kind == "int8"):
        return []
    outputs, kept = work.groups * work.outputs, ceil(work.nonzeros)
    entries = kept + fillers(work.weights, kept, _REACH)
    if kind == "float32":
        return [5 * entries + 6 * outputs]
    found = [2 * entries + 2 * outputs]
    places = work.outputs * taps(work.kernel, work.inputs) // 4
    for tall in (1, 2, 4):
        blocks = _blocks(work, tall)
        if blocks is not None:
            blocks += fillers(places // tall, ceil(blocks), _REACH)
            found.append((4 * tall + 1) * blocks + 2 * ceil(outputs / tall))
    if work.weight is not None:
        most = int(_fours(work.weight[0]).sum(2).max())
        found += [places * 1.25 * each + 2 * outputs for each in (1, 2) if most <= each]
    return [12 * outputs + each for each in found]


def _blocks(work: Work, tall: int) -> float | None:
    """How many blocks of four taps of so many outputs hold anything, where that is known."""
    if work.weight is None:
        return work.nonzeros / (4 * tall) if work.unit % (4 * tall) == 0 else None
    fours = _fours(work.weight[0]).any(2)
    return int(pad(fours, (0, 0, 0, -len(fours) % tall)).reshape(-1, tall, fours.shape[1]).any(1).sum())


def _fours(weight: Tensor) -> Tensor:
    """Which numbers of a weight (outputs, inputs, *kernel) are there, four taps together: in the order of the kernel, inputs last."""
    rows = weight.movedim(1, -1).flatten(1) != 0
    return pad(rows, (0, -rows.shape[1] % 4)).reshape(len(rows), -1, 4)
