"""How often a machine that walks over nonzeros fetches numbers from its memory (Mao et al., 1705.08922)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal, get_args

import torch

from secateurs.costs.formats import UNIT, Units, box_of, boxed, units_of
from secateurs.costs.sums import layerwise
from secateurs.costs.workload import Work
from secateurs.given import COUNT, require
from secateurs.types import Cost, SecateursError, Tiling

What = Literal["outputs", "weights", "indices", "inputs", "all"]


def memory_references(
    of: What = "all", unit: Tiling | None = None, activations: Mapping[str, float] | None = None, inputs_at_once: int = 4
) -> Cost:
    """How many numbers a machine fetches that multiplies nonzeros with nonzeros, as SCNN does (1705.08922, 1708.04485).

    ``unit`` is what its weights are stored and walked in: single numbers, vectors, kernels, filters (zeros in a unit that is there are
    walked too). What is assumed:

    - inputs: each that is not zero once, ``inputs_at_once`` of a channel at a time; they stay while the channel's weights go by
    - weights: all that are stored, once for each ``inputs_at_once`` nonzero inputs of their channel; indices: one for each unit of them
    - outputs: products of one unit, or of one row of a kernel where that is more, are summed up before the output is fetched and written
      back (once for both). A product is there where neither side is zero, by chance: of ``activations`` (`activation_density`), and, in a
      plan, of the weights that it keeps

    >>> import torch
    >>> from torch import nn
    >>> layer, x = nn.Conv1d(2, 3, 3, bias=False), torch.zeros(1, 2, 10)
    >>> [memory_references(of)(layer, x) for of in ("outputs", "weights", "indices", "inputs")]
    [48.0, 45.0, 45.0, 20.0]
    """
    if of not in get_args(What):
        raise SecateursError(f"memory_references: of={of!r}, but must be one of {', '.join(get_args(What))}")
    require("memory_references", "unit", unit, UNIT)
    require("memory_references", "inputs_at_once", inputs_at_once, COUNT)
    if inputs_at_once < 1:
        raise SecateursError(f"memory_references: inputs_at_once={inputs_at_once}, but must be at least 1")

    def price(work: Work) -> float:
        if not work.weights:
            return 0.0
        units = units_of(work, unit, "memory_references")
        walks = max(1.0, work.busy * work.taken / (work.groups * work.inputs) / inputs_at_once)
        found = {
            "outputs": work.positions * sums_of_products(work, unit, units) if of in ("outputs", "all") else 0.0,
            "weights": units.kept * units.size * walks,
            "indices": units.kept * walks,
            "inputs": work.busy * work.taken,
        }
        return float(sum(found.values()) if of == "all" else found[of])

    return layerwise(f"memory_references({of}, unit={unit!r})", "references", price, activations)


def sums_of_products(work: Work, unit: Tiling | None, units: Units) -> float:
    """How many sums of products there are at one position that have a product, on average."""
    shape = (work.groups, work.outputs, work.inputs, *work.kernel)
    box = box_of(unit, shape)
    span = [max(part, size) for part, size in zip(box, _row(work), strict=True)]
    missing = 1 - work.busy
    each = prod(span) // units.size  # units that are summed up together
    outputs, numbers = box[0], units.size // box[0]  # a unit of several outputs is several sums
    if units.places is None:
        spans = work.weights / prod(span)
        density = min(1.0, units.kept / units.count)
        return outputs * spans * (1 - (1 - density * (1 - missing**numbers)) ** each)
    if each == 1:
        return outputs * units.kept * (1 - missing**numbers)
    grid = [-(-size // part) for size, part in zip(shape[1:], box, strict=True)]
    together = boxed(units.places.view(work.groups, *grid), [a // b for a, b in zip(span, box, strict=True)]).sum(1)
    return outputs * float((1 - torch.tensor(missing, dtype=torch.float64) ** (together * numbers)).sum())


def _row(work: Work) -> list[int]:
    """A row of a kernel, along ``(outputs, inputs, *kernel)``."""
    return [1, 1, *(1 for _ in work.kernel[1:]), *work.kernel[-1:]]
