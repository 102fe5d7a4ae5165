"""How large sums can become, for any input: proven from the weights, so that no accumulator overflows."""

from __future__ import annotations

import numpy as np

from secateurs.integers.layers import LIMITS, Conv, Numbers
from secateurs.types import SecateursError

ROOM = {"int8": 2**31 - 1, "int16": 2**47}
"""What a sum may reach: 32 bits for int8 arrays, and 48 for int16 ones, whose sums are multiplied by 16 bits in 64."""


def largest_sums(layer: Conv) -> Numbers:
    """For each output of a layer in integers, the largest absolute value that any partial sum can have, whatever the input, (outputs,).

    Partial sums of any order are at most the sum of what each weight can add, and the bias. The zero of ``x`` may be taken off the numbers
    or, as kernels do, off the bias before: both are covered.
    """
    least, most = LIMITS[layer.x.kind]
    zero = layer.x.zero
    weight = np.abs(layer.weight.reshape(len(layer.weight), -1).astype(np.int64)).sum(1)
    reach = max(most - zero, zero - least)
    bias = np.abs(layer.bias.astype(np.int64)) if layer.bias.dtype != np.int64 else np.abs(layer.bias.astype(np.float64))
    folded = bias + weight * abs(zero) + weight * max(most, -least)
    return np.maximum(folded, bias + weight * reach)


def require_room(layer: Conv) -> None:
    """Raise `SecateursError` where a sum could leave its accumulator.

    >>> from secateurs.integers.layers import Array
    >>> x = Array("x", (1, 1, 200_000), "int8", 1.0, -128)
    >>> require_room(Conv("fc", x, x, np.full((1, 1, 1, 200_000), 127, np.int8), np.zeros(1, np.int32)))
    Traceback (most recent call last):
    secateurs.types.errors.SecateursError: fc: the sum of output 0 can reach 9753600000, ...
    """
    reached = largest_sums(layer)
    worst = int(reached.argmax())
    if reached[worst] > ROOM[layer.x.kind]:
        raise SecateursError(
            f"{layer.name}: the sum of output {worst} can reach {int(reached[worst])}, more than its accumulator holds "
            f"({ROOM[layer.x.kind]}): the layer has too many inputs ({layer.weight[0].size}) for {layer.x.kind}; split it"
        )
