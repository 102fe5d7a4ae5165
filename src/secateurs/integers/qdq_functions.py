"""Functions of single numbers as nodes of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.integers.layers import Table

if TYPE_CHECKING:
    from secateurs.integers.qdq import Graph


def table(graph: Graph, layer: Table, inputs: Sequence[str], output: str) -> None:
    """A function of single numbers as nodes of a graph."""
    kind, *given = layer.function.split()
    numbers = [float(number) for number in given]
    if kind == "clamp":
        named = zip(("low", "high"), numbers, strict=True)
        graph.node("Clip", [*inputs, *(graph.constant(f"{output}.{name}", np.float32(bound)) for name, bound in named)], output)
    else:
        _FUNCTIONS[kind](graph, inputs[0], output, *numbers)


def _silu(graph: Graph, x: str, output: str) -> None:
    graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{output}.sigmoid")], output)


def _gelu(graph: Graph, x: str, output: str) -> None:
    """x / 2 * (1 + erf(x / sqrt 2))."""
    root = graph.constant(f"{output}.root", np.float32(2**-0.5))
    erf = graph.node("Erf", [graph.node("Mul", [x, root], f"{output}.scaled")], f"{output}.erf")
    _half_of_one_and(graph, x, erf, output)


def _gelu_tanh(graph: Graph, x: str, output: str) -> None:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) = x / 2 * (1 + tanh(x * (a + b x^2)))."""
    a = float(np.sqrt(2 / np.pi))
    square = graph.node("Mul", [x, x], f"{output}.square")
    part = graph.node("Mul", [square, graph.constant(f"{output}.b", np.float32(0.044715 * a))], f"{output}.part")
    factor = graph.node("Add", [part, graph.constant(f"{output}.a", np.float32(a))], f"{output}.factor")
    tanh = graph.node("Tanh", [graph.node("Mul", [x, factor], f"{output}.inner")], f"{output}.tanh")
    _half_of_one_and(graph, x, tanh, output)


def _half_of_one_and(graph: Graph, x: str, other: str, output: str) -> None:
    more = graph.node("Add", [other, graph.constant(f"{output}.one", np.float32(1))], f"{output}.more")
    half = graph.node("Mul", [x, graph.constant(f"{output}.half", np.float32(0.5))], f"{output}.halved")
    graph.node("Mul", [half, more], output)


def _elu(graph: Graph, x: str, output: str, alpha: float, scale: float, within: float) -> None:
    if within == 1:
        graph.node("Selu", [x], output, alpha=alpha, gamma=scale)
    else:  # within is 1 / alpha and scale is 1: nothing else in torch has another
        graph.node("Celu", [x], output, alpha=alpha)


def _softplus(graph: Graph, x: str, output: str, beta: float, threshold: float) -> None:
    """log(1 + exp(beta x)) / beta, and x itself beyond the threshold."""
    factor = graph.constant(f"{output}.beta", np.float32(beta))
    scaled = graph.node("Mul", [x, factor], f"{output}.scaled")
    soft = graph.node("Div", [graph.node("Softplus", [scaled], f"{output}.inner"), factor], f"{output}.soft")
    end = graph.constant(f"{output}.end", np.float32(threshold))
    graph.node("Where", [graph.node("Greater", [scaled, end], f"{output}.beyond"), x, soft], output)


def _mish(graph: Graph, x: str, output: str) -> None:
    inner = graph.node("Softplus", [x], f"{output}.softplus")
    graph.node("Mul", [x, graph.node("Tanh", [inner], f"{output}.tanh")], output)


def _log_sigmoid(graph: Graph, x: str, output: str) -> None:
    inner = graph.node("Softplus", [graph.node("Neg", [x], f"{output}.negative")], f"{output}.softplus")
    graph.node("Neg", [inner], output)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "hard_swish": lambda graph, x, output: graph.node("HardSwish", [x], output),
    "hard_sigmoid": lambda graph, x, output: graph.node("HardSigmoid", [x], output, alpha=1 / 6, beta=0.5),
    "sigmoid": lambda graph, x, output: graph.node("Sigmoid", [x], output),
    "tanh": lambda graph, x, output: graph.node("Tanh", [x], output),
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "softsign": lambda graph, x, output: graph.node("Softsign", [x], output),
    "log_sigmoid": _log_sigmoid,
    "abs": lambda graph, x, output: graph.node("Abs", [x], output),
    "exp": lambda graph, x, output: graph.node("Exp", [x], output),
    "square": lambda graph, x, output: graph.node("Mul", [x, x], output),
    "leaky_relu": lambda graph, x, output, slope: graph.node("LeakyRelu", [x], output, alpha=slope),
    "elu": _elu,
    "softplus": _softplus,
}
