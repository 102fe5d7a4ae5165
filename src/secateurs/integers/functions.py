"""The functions of single numbers that layers apply, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]


def _sigmoid(x: Numbers) -> Numbers:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _erf(x: Numbers) -> Numbers:
    from torch import from_numpy

    return from_numpy(np.ascontiguousarray(x)).erf().numpy()


FUNCTIONS: dict[str, Callable[[Numbers], Numbers]] = {
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
"""By the names that `run.network.nodes.Activation` has for them; a clamp has its bounds in its name."""


def function_of(name: str) -> Callable[[Numbers], Numbers]:
    """The function of a `Table`.

    >>> function_of("clamp 0 6")(np.array([-1.0, 3.0, 8.0])).tolist()
    [0.0, 3.0, 6.0]
    """
    if name.startswith("clamp "):
        low, high = map(float, name.split()[1:])
        return lambda x: np.clip(x, low, high)
    return FUNCTIONS[name]
