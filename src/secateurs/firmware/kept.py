"""What the formats of weights keep, of a weight that is known and of one of which only a plan tells how much is left."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from torch import Tensor
from torch.nn.functional import pad

from secateurs.costs.formats import fillers
from secateurs.costs.workload import Work
from secateurs.integers.layers import Kind

TALL = {"blocks of 4": 1, "blocks of 2 x 4": 2, "blocks of 4 x 4": 4}
"""Formats of blocks of four taps, by the rows that share them."""
_REACH = 256  # from one weight of a row to the next, as far as 8 bits tell


def formats_of(work: Work, kind: Kind) -> dict[str, float]:
    """The formats that a layer can have, the one with all weights first, and what each keeps: blocks, weights, or fours of weights.

    Where a plan removes blocks of 4, 8 or 16 weights, they are taken to be the kernels': 4 inputs of 1, 2 or 4 outputs. Where single
    weights go, distances are those of chance, and each may lie in a block of its own.

    >>> work = Work("fc", "fc.weight", 1, 64, 16, (), 1, 64, 16, nonzeros=128, unit=4)
    >>> formats_of(work, "int8")
    {'dense': 0.0, 'CSR': 128.0, 'blocks of 4': 32.0, 'blocks of 2 x 4': 128.0, 'blocks of 4 x 4': 64.0}
    """
    if work.inputs == work.outputs == 1 < work.groups:
        return {"depthwise": 0.0}
    found = {"dense": 0.0}
    if kind == "int16" or (work.groups > 1 and kind == "int8"):
        return found
    kept = ceil(work.nonzeros)
    found["CSR"] = kept + fillers(work.weights, kept, _REACH)
    if kind == "int8":
        found |= _blocks(work) | _of_four(work)
    return found


def _blocks(work: Work) -> dict[str, float]:
    found = {}
    for format, tall in TALL.items():
        places = ceil(work.outputs / tall) * taps(work.kernel, work.inputs) // 4
        if work.weight is not None:
            fours = _fours(work.weight[0]).any(2)
            kept = int(pad(fours, (0, 0, 0, -len(fours) % tall)).reshape(-1, tall, fours.shape[1]).any(1).sum())
        else:
            kept = min(places, ceil(work.nonzeros / (4 * tall if work.unit % (4 * tall) == 0 else 1)))
        found[format] = kept + fillers(places, kept, _REACH)
    return found


def _of_four(work: Work) -> dict[str, float]:
    """Of weights that are known: plans do not tell where in each four they are."""
    if work.weight is None:
        return {}
    most = int(_fours(work.weight[0]).sum(2).max())
    wide = {each: padded(prod(work.kernel) * work.inputs, 16 // each) for each in (1, 2) if each >= most}
    return {f"{each} of 4": work.outputs * count * each / 16 for each, count in wide.items()}


def _fours(weight: Tensor) -> Tensor:
    """Which numbers of a weight (outputs, inputs, *kernel) are there, four taps together: in the order of the kernel, inputs last."""
    rows = weight.movedim(1, -1).flatten(1) != 0
    return pad(rows, (0, -rows.shape[1] % 4)).reshape(len(rows), -1, 4)


def padded(number: int, to: int) -> int:
    """The next multiple."""
    return -(-number // to) * to


def taps(kernel: Sequence[int], inputs: int) -> int:
    """The numbers that an output reads, in fours."""
    return padded(prod(kernel) * inputs, 4)
