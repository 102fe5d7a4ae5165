"""What a model takes on a microcontroller, as costs: bytes of flash, bytes of SRAM, instructions; of plans of channels without making them.

They need the example, of which one sample counts, and raise `UnsupportedError` for models that a small machine has no kernels for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from torch import nn

from secateurs.costs.sums import Sum
from secateurs.costs.workload import Work
from secateurs.costs.workload import size_of as count_of
from secateurs.firmware.arena import lay_out
from secateurs.firmware.call import Call
from secateurs.firmware.calls import call_of
from secateurs.firmware.cores import STACK, core_of
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.instructions import USUAL, size_of
from secateurs.firmware.instructions import instructions as predicted
from secateurs.firmware.kept import TALL, formats_of, padded, taps
from secateurs.firmware.outline import Outline, Sizes, outline, resized
from secateurs.integers.layers import Conv, Cut, Kind, Layer, Pad, Recurrent, Reorder, with_arrays
from secateurs.types import Cost, Plan, Prepared, Term

CODE = 9_000
"""Bytes of kernels' code that are reckoned with."""
KINDS = ("int8", "int16", "float32")


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
        dense = whole.under(None).products
        rest = {
            name: call.flash - (_all_stored(dense[name].left({}), kind) if name in dense else 0)
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


def instructions(kind: Kind = "int8", core: str = USUAL) -> Cost:
    """The instructions of one pass on a microcontroller's core, as its kernels are predicted to take them; instructions are no cycles.

    Each layer of int8 has the format of its weights that is fastest there; in int16 and float32 zeros are multiplied like others. ``core``
    is the name of a core, such as ``"cortex-m4"``. Of plans the formats are told as for `flash_bytes`.

    >>> import torch
    >>> model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.zeros(1, 64)
    >>> 64 * 32 + 32 * 8 < instructions()(model, x) < 4 * (64 * 32 + 32 * 8)
    True
    """
    _require("instructions", kind)
    core_of(core)

    def prepare(model: nn.Module, example: Any) -> Prepared:
        whole = outline(model, example, kind)

        def terms(plan: Plan | None) -> list[Term]:
            sizes, found = whole.under(plan), []
            for layer in whole.network.layers:
                if isinstance(layer, Conv) and layer.name in sizes.products:
                    product = sizes.products[layer.name]
                    found.append(Term(layer.name, product.sites, _run(layer, product.left, kind, core)))
                elif whole.calls[layer.name].instructions:
                    found.append(Term(layer.name, sizes.sites(layer), _moved(layer, whole.calls[layer.name], sizes)))
            return found

        return Sum(terms)

    return Cost(f"instructions(kind={kind!r}, core={core!r})", "instructions", prepare)


def _run(layer: Conv, left: Callable[[Mapping[str, int]], Work], kind: Kind, core: str) -> Callable[[Mapping[str, int]], float]:
    """The instructions of a convolution in the format that takes fewest; none where the layer is gone."""

    def value(counts: Mapping[str, int]) -> float:
        work = left(counts)
        if not work.groups * work.outputs:
            return 0.0
        now = resized(layer, work.groups, work.inputs, work.groups * work.outputs)
        if kind != "int8":
            return call_of(now, "layer").instructions
        size = size_of(now)
        return min(predicted(format, replace(size, kept=round(kept)), core) for format, kept in formats_of(work, kind).items())

    return value


def _moved(layer: Layer, call: Call, sizes: Sizes) -> Callable[[Mapping[str, int]], float]:
    """The instructions of a layer without weights; of one that says more of its arrays than their sizes, so many for each number."""
    numbers = sizes.numbers[layer.y.name]
    if isinstance(layer, (Reorder, Cut, Pad, Recurrent)):
        return lambda counts: call.instructions * count_of(numbers, counts) / layer.y.size
    return lambda counts: call_of(with_arrays(layer, sizes.arrays(layer, counts)), "layer").instructions


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
        if not work.groups * work.outputs:
            return 0.0
        return min(_stored(work, kind, format, kept) for format, kept in formats_of(work, kind).items()) + rest

    return value


def _all_stored(work: Work, kind: Kind) -> float:
    format, kept = next(iter(formats_of(work, kind).items()))
    return _stored(work, kind, format, kept)


def _stored(work: Work, kind: Kind, format: str, kept: float) -> float:
    """The bytes of weights in a format, and of what becomes of each output's sum; of floats, of the bias."""
    outputs, each = work.groups * work.outputs, {"int8": 12, "int16": 16, "float32": 4}[kind]
    if format == "dense":
        rows = padded(work.outputs, 2) if kind == "int8" else work.outputs
        weights = 4 * work.weights if kind == "float32" else work.groups * rows * taps(work.kernel, work.inputs)
    elif format == "depthwise":
        weights = work.weights * (4 if kind == "float32" else 1)
    elif format == "CSR":
        weights = (5 if kind == "float32" else 2) * kept + 2 * outputs  # type: ignore[assignment]
    else:
        tall = TALL.get(format, 1)
        weights = (4 * tall + 1) * kept + 2 * ceil(outputs / tall)  # type: ignore[assignment]
    return weights + each * outputs
