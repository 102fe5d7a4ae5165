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


def _softplus(x: Numbers, beta: float = 1.0, threshold: float = 20.0) -> Numbers:
    """log(1 + exp(beta x)) / beta, and ``x`` itself where beta x is above the threshold."""
    return np.where(beta * x > threshold, x, np.logaddexp(0.0, beta * x) / beta)


def _elu(x: Numbers, alpha: float, scale: float, within: float) -> Numbers:
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) * within))


FUNCTIONS: dict[str, Callable[[Numbers], Numbers]] = {
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "abs": np.abs,
    "exp": np.exp,
    "square": np.square,
}
"""By the names that `run.network.nodes.Activation` has for them."""

SHAPED: dict[str, Callable[..., Numbers]] = {
    "clamp": np.clip,
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "elu": _elu,
    "softplus": _softplus,
}
"""Those with numbers of their own, which follow the name: ``clamp 0 6``."""


def function_of(name: str) -> Callable[[Numbers], Numbers]:
    """The function of a `Table`.

    >>> function_of("clamp 0 6")(np.array([-1.0, 3.0, 8.0])).tolist()
    [0.0, 3.0, 6.0]
    >>> function_of("leaky_relu 0.25")(np.array([-1.0, 3.0])).tolist()
    [-0.25, 3.0]
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    kind, *given = name.split()
    numbers = [float(each) for each in given]
    return lambda x: SHAPED[kind](x, *numbers)
