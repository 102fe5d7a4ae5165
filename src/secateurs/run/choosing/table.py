"""The table of kernels: what each is for, on which instruction sets it runs, and the plain function that it must agree with.

One table serves the choice for each layer, the tests and the benchmarks; a new kernel is a new line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from secateurs.run.kernels import gemv, spmm
from secateurs.run.kernels.machine import InstructionSet, native_module
from secateurs.run.network.nodes import Conv, Lstm
from secateurs.run.planning.layers import SINGLE, Choice, Layer, as_linear, positions_of, weights_of
from secateurs.run.planning.masked import has_masks

_FILL = 2.0
"""Four rows that share places may hold at most so many times the weights that are not zero: beyond, sharing cannot pay."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: ``pattern`` says which zeros it profits from, ``fits`` which layers it takes, ``choices`` what there is to try.

    ``exact``: whether weights are used as they are; the others round them, so they run only where the user asks for it.
    ``reference`` computes the same in plain NumPy.
    """

    name: str
    pattern: str
    fits: Callable[[Layer, InstructionSet], bool]
    choices: tuple[Choice, ...]
    reference: Callable[..., object]
    exact: bool = True


def candidates(layer: Layer, isa: InstructionSet, values: gemv.Values = "float32") -> Iterator[Choice]:
    """What is worth a try for a layer, its weights rounded to ``values`` where a kernel holds them so."""
    fitting = [kernel for kernel in KERNELS if kernel.fits(layer, isa)]
    rounded = [kernel for kernel in fitting if not kernel.exact and kernel.choices[0].values == values]
    for kernel in rounded or [kernel for kernel in fitting if kernel.exact]:
        yield from kernel.choices


def union(layer: Layer) -> float:
    """The share of places that at least one of four consecutive rows uses; 1 where these do not all read the same inputs."""
    rows = weights_of(layer) != 0
    if not has_fours(layer):
        return 1.0
    return float(rows.view(-1, 4, rows.shape[1]).any(1).float().mean())


def has_fours(layer: Layer) -> bool:
    """Whether its rows, or those of each of its groups, can be taken four at a time."""
    return layer.weight.shape[0] // (layer.groups if isinstance(layer, Conv) else 1) % 4 == 0


def is_single(layer: Layer) -> bool:
    """Whether it is a linear or recurrent layer that reads so few vectors at once that they are taken one by one."""
    if isinstance(layer, Lstm):
        return layer.x.shape[1] <= SINGLE
    linear = as_linear(layer)
    return linear is not None and positions_of(linear) <= SINGLE


def _is_spread(layer: Layer, isa: InstructionSet) -> bool:
    return not is_single(layer) and not isinstance(layer, Lstm)


def _shares(layer: Layer, isa: InstructionSet) -> bool:
    if not _is_spread(layer, isa) or not has_fours(layer):
        return False
    return union(layer) <= _FILL * float((weights_of(layer) != 0).float().mean())


def _reads_images(layer: Layer, isa: InstructionSet) -> bool:
    """Masks cost nothing only where they are registers of their own."""
    return isa.name == "avx512" and isinstance(layer, Conv) and has_masks(layer) and _shares(layer, isa)


def _takes_vectors(format: gemv.Format, values: gemv.Values) -> Callable[[Layer, InstructionSet], bool]:
    def fits(layer: Layer, isa: InstructionSet) -> bool:
        if not is_single(layer) or (format, values) not in native_module().gemv_formats(isa.name):
            return False
        return (format == "columns" and values != "int8") or bool(torch.isfinite(weights_of(layer)).all())

    return fits


def _vector(format: gemv.Format, values: gemv.Values, exact: bool) -> Kernel:
    choice = (Choice(format=format, values=values),)
    return Kernel(f"vector {format} {values}", "any element", _takes_vectors(format, values), choice, gemv.reference, exact)


KERNELS = (
    Kernel("spmm 1x1", "any element", _is_spread, tuple(Choice(1, size * 1024) for size in (12, 24, 48)), spmm.reference),
    Kernel(
        "spmm 4x1",
        "4x1, 8x1 and 16x1 blocks, kernels, dense",
        _shares,
        tuple(Choice(4, size * 1024) for size in (24, 48, 96)),
        spmm.reference,
    ),
    Kernel(
        "spmm 4x1, masked",
        "4x1, 8x1 and 16x1 blocks, kernels, dense",
        _reads_images,
        tuple(Choice(4, size * 1024, masked=True) for size in (48, 96)),
        spmm.reference,
    ),
    _vector("lanes", "float32", exact=True),
    _vector("columns", "float32", exact=True),
    _vector("masks", "float32", exact=True),
    _vector("lanes", "int8", exact=False),
    _vector("columns", "int8", exact=False),
    _vector("columns", "bfloat16", exact=False),
)
