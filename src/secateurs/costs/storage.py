"""The bytes of a model whose weights lie in a format."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.costs.elements import constant, elements, times
from secateurs.costs.formats import FORMAT, Format
from secateurs.costs.sums import Sum
from secateurs.costs.workload import Layer, workload
from secateurs.forward import buffers_in, parameters_in
from secateurs.given import COUNT, require
from secateurs.types import Cost, Plan, Prepared, SecateursError, Term


def stored_bytes(format: Format, value_bits: int | Mapping[str, int | Tensor] | None = None, codebook: bool = False) -> Cost:
    """The bytes of a model whose weights lie in a format: of `secateurs.costs`, or one of your own.

    Weights are the parameters of two dimensions or more; biases, normalisations and buffers are as they are. A number takes as many bits
    as the plan gives it, else ``value_bits``, else what its type has. ``value_bits`` may tell weight → bits (as `secateurs.learned_bits`
    finds them); of a weight with bits for each output channel the mean counts. ``codebook=True``: these bits are a place in a table of
    ``2 ** bits`` numbers of the weight's type, one table a weight, which is counted too (Deep Compression, 1510.00149). Of a model as it is
    the count is exact; what a plan tells, the format says. Needs the example; raises `SecateursError` where a format cannot hold a weight.

    >>> import torch
    >>> from secateurs.costs import Bitmap, Dense
    >>> layer = nn.Linear(100, 10)
    >>> stored_bytes(Dense())(layer, torch.zeros(1, 100)), stored_bytes(Bitmap(), value_bits=8)(layer, torch.zeros(1, 100))
    (4040.0, 1165.0)
    """
    require("stored_bytes", "format", format, FORMAT)
    by_weight = {name: _mean_bits(name, each) for name, each in value_bits.items()} if isinstance(value_bits, Mapping) else {}
    plain = None if isinstance(value_bits, Mapping) else value_bits
    if plain is not None:
        require("stored_bytes", "value_bits", plain, COUNT)
        if not 1 <= plain <= 64:
            raise SecateursError(f"stored_bytes: value_bits={plain}, but must be from 1 to 64")
    if codebook and plain is None:
        raise SecateursError("stored_bytes: codebook=True needs value_bits, the bits of a place in the table, one number for all")
    if codebook and plain is not None and plain > 16:
        raise SecateursError(f"stored_bytes: codebook=True with value_bits={plain} makes a table of 2 ** {plain}; 16 at most")

    def prepare(model: nn.Module, example: Any) -> Prepared:
        held, load = parameters_in(model), workload(model, example)
        widths = {name: 8 * parameter.element_size() for name, parameter in held.items()}
        buffers = {name: (buffer.numel(), buffer.element_size()) for name, buffer in buffers_in(model).items()}

        def terms(plan: Plan | None) -> list[Term]:
            weights = load.stored(plan)
            if unknown := by_weight.keys() - weights.keys():
                raise SecateursError(f"stored_bytes: value_bits names {min(unknown)}, but the weights are {', '.join(weights)}")
            others = {name: (size, widths[name] // 8) for name, size in load.sizes.items() if name not in weights}
            kept = [_as_it_is(name, size, each, plan) for name, (size, each) in {**others, **buffers}.items()]
            return [
                *(_in_format(layer, format, by_weight.get(name, plain), widths[name], codebook) for name, layer in weights.items()),
                *kept,
            ]

        return Sum(terms)

    return Cost(f"stored_bytes({format!r}, value_bits={by_weight or plain}, codebook={codebook})", "bytes", prepare)


def _mean_bits(name: str, bits: int | Tensor) -> float:
    """The bits of a weight's number, on average over its output channels."""
    each = torch.as_tensor(bits, dtype=torch.float64) if isinstance(bits, (int, Tensor)) else torch.empty(0)
    if not each.numel() or bool((each.round() != each).any()) or not 1 <= float(each.min()) <= float(each.max()) <= 64:
        raise SecateursError(f"stored_bytes: value_bits of {name} is {bits!r}, but must be whole numbers from 1 to 64")
    return float(each.mean())


def _in_format(layer: Layer, format: Format, value_bits: float | None, width: int, codebook: bool) -> Term:
    def size(counts: Mapping[str, int]) -> float:
        work = layer.left(counts)
        bits = work.bits or value_bits or width
        table = 2**bits * width if codebook and work.nonzeros else 0
        fewer, more = floor(bits), ceil(bits)
        numbers = format.bits(work, fewer)
        if more > fewer:  # a mean: as much of both
            numbers += (bits - fewer) * (format.bits(work, more) - numbers)
        return float(ceil((numbers + table) / 8))

    return Term(layer.parameter or layer.name, layer.sites, size)


def _as_it_is(name: str, size: int, width: int, plan: Plan | None) -> Term:
    """What is written number by number: all of it, but for what goes with whole channels."""
    whole = plan is None or name not in plan.extents
    return constant(name, size * width) if whole or plan is None else times(elements(name, size, plan), width)
