"""The bytes of a model whose weights lie in a format."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from torch import nn

from secateurs.costs.elements import constant, elements, times
from secateurs.costs.formats import FORMAT, Format
from secateurs.costs.sums import Sum
from secateurs.costs.workload import Layer, workload
from secateurs.forward import buffers_in, parameters_in
from secateurs.given import COUNT, require
from secateurs.types import Cost, Plan, Prepared, SecateursError, Term


def stored_bytes(format: Format, value_bits: int | None = None, codebook: bool = False) -> Cost:
    """The bytes of a model whose weights lie in a format: of `secateurs.costs`, or one of your own.

    Weights are the parameters of two dimensions or more; biases, normalisations and buffers are as they are. A number takes as many bits
    as the plan gives it, else ``value_bits``, else what its type has. ``codebook=True``: these bits are a place in a table of
    ``2 ** bits`` numbers of the weight's type, one table a weight, which is counted too (Deep Compression, 1510.00149). Of a model as it is
    the count is exact; what a plan tells, the format says. Needs the example; raises `SecateursError` where a format cannot hold a weight.

    >>> import torch
    >>> from secateurs.costs import Bitmap, Dense
    >>> layer = nn.Linear(100, 10)
    >>> stored_bytes(Dense())(layer, torch.zeros(1, 100)), stored_bytes(Bitmap(), value_bits=8)(layer, torch.zeros(1, 100))
    (4040.0, 1165.0)
    """
    require("stored_bytes", "format", format, FORMAT)
    if value_bits is not None:
        require("stored_bytes", "value_bits", value_bits, COUNT)
        if not 1 <= value_bits <= 64:
            raise SecateursError(f"stored_bytes: value_bits={value_bits}, but must be from 1 to 64")
    if codebook and value_bits is None:
        raise SecateursError("stored_bytes: codebook=True needs value_bits, the bits of a place in the table")
    if codebook and value_bits is not None and value_bits > 16:
        raise SecateursError(
            f"stored_bytes: codebook=True with value_bits={value_bits} makes a table of 2 ** {value_bits}; 16 at most"
        )

    def prepare(model: nn.Module, example: Any) -> Prepared:
        held, load = parameters_in(model), workload(model, example)
        widths = {name: 8 * parameter.element_size() for name, parameter in held.items()}
        buffers = {name: (buffer.numel(), buffer.element_size()) for name, buffer in buffers_in(model).items()}

        def terms(plan: Plan | None) -> list[Term]:
            weights = load.stored(plan)
            others = {name: (size, widths[name] // 8) for name, size in load.sizes.items() if name not in weights}
            kept = [_as_it_is(name, size, each, plan) for name, (size, each) in {**others, **buffers}.items()]
            return [
                *(_in_format(layer, format, value_bits, widths[name], codebook) for name, layer in weights.items()),
                *kept,
            ]

        return Sum(terms)

    return Cost(f"stored_bytes({format!r}, value_bits={value_bits}, codebook={codebook})", "bytes", prepare)


def _in_format(layer: Layer, format: Format, value_bits: int | None, width: int, codebook: bool) -> Term:
    def size(counts: Mapping[str, int]) -> float:
        work = layer.left(counts)
        bits = work.bits or value_bits or width
        table = 2**bits * width if codebook and work.nonzeros else 0
        return float(ceil((format.bits(work, bits) + table) / 8))

    return Term(layer.parameter or layer.name, layer.sites, size)


def _as_it_is(name: str, size: int, width: int, plan: Plan | None) -> Term:
    """What is written number by number: all of it, but for what goes with whole channels."""
    whole = plan is None or name not in plan.extents
    return constant(name, size * width) if whole or plan is None else times(elements(name, size, plan), width)
