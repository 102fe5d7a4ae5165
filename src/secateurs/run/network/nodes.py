"""What a compiled model is made of: a list of steps on values, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from secateurs.nested import Value, among, changed, leaves


@dataclass(frozen=True)
class Activation:
    """A function of single numbers that a kernel can apply to its results, or None for the identity.

    ``kind`` is clamp (relu is a clamp to [0, inf), relu6 to [0, 6]), hard_swish, hard_sigmoid, silu, gelu, gelu_tanh, sigmoid or tanh.
    """

    kind: str
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution in one or two dimensions (a 1-d one has height 1), batch normalisation folded, with what was fused into it.

    ``out`` = activation(conv(x, weight) + bias + residual); ``x`` is (batch, channels, height, width).
    """

    name: str
    x: Value
    out: Value
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: Value | None = None
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Linear:
    """``out`` = activation(x @ weight.T + bias + residual) over the last dimension of ``x``; weight is (outputs, inputs)."""

    name: str
    x: Value
    out: Value
    weight: Tensor
    bias: Tensor | None
    residual: Value | None = None
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Pool:
    """Maximum or average over windows of (batch, channels, height, width)."""

    name: str
    x: Value
    out: Value
    kind: str  # "max" or "average"
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    counts_padding: bool = True  # average: whether padded zeros count in the divisor
    divisor: int | None = None


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean over height and width of (batch, channels, height, width); ``out`` may keep these dimensions as 1 or not."""

    name: str
    x: Value
    out: Value


@dataclass(frozen=True, eq=False)
class Add:
    """``out`` = activation(x + y), both of one shape."""

    name: str
    x: Value
    y: Value
    out: Value
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Scale:
    """``out`` = x * factors, where factors is (batch, channels, 1, 1): squeeze and excitation."""

    name: str
    x: Value
    factors: Value
    out: Value


@dataclass(frozen=True, eq=False)
class Affine:
    """``out`` = activation(x * scale + shift), one number for each channel: a batch normalisation that no convolution could take in."""

    name: str
    x: Value
    out: Value
    scale: Tensor
    shift: Tensor
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Activate:
    """``out`` = activation(x)."""

    name: str
    x: Value
    out: Value
    activation: Activation


@dataclass(frozen=True, eq=False)
class Concat:
    """Concatenation along the channels (dimension 1) of (batch, channels, height, width)."""

    name: str
    parts: tuple[Value, ...]
    out: Value


@dataclass(frozen=True, eq=False)
class Lstm:
    """One layer of an LSTM in one direction.

    ``x`` (steps, rows, inputs), ``hidden`` and ``cell`` (rows, width) are what it starts with; ``out`` (steps, rows, width) and the
    last two are what it gives. ``weight`` (4 * width, inputs) and ``recurrent`` (4 * width, width) hold the input, forget, cell and output
    gates in this order, ``bias`` the sum of both biases. ``backwards``: from the last step to the first.
    """

    name: str
    x: Value
    hidden: Value
    cell: Value
    out: Value
    last_hidden: Value
    last_cell: Value
    weight: Tensor
    recurrent: Tensor
    bias: Tensor | None
    backwards: bool = False


@dataclass(frozen=True, eq=False)
class Norm:
    """Each of ``groups`` equal parts of the last dimension, normalised: (x - mean) / sqrt(variance + eps) * weight + bias.

    Where it is not ``centred`` nothing is subtracted (RMSNorm). ``weight`` and ``bias`` have a number for each channel of a group.
    """

    name: str
    x: Value
    out: Value
    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Multiply:
    """``out`` = x * y, both of one shape."""

    name: str
    x: Value
    y: Value
    out: Value


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary embeddings (2104.09864): ``x`` is (batch, tokens, heads * size), ``cos`` and ``sin`` are (batch, tokens, width).

    The first ``width`` channels of each head become x * cos + turned(x) * sin, where turned(x) is their second half, negated, and then the
    first; the others stay.
    """

    name: str
    x: Value
    cos: Value
    sin: Value
    out: Value
    heads: int


@dataclass(frozen=True, eq=False)
class Past:
    """What attention keeps of earlier tokens, and where: ``keys`` and ``values`` (tokens, heads of keys * size) are written into from the
    number on that ``position`` (one float32) holds."""

    position: Value
    keys: Value
    values: Value


@dataclass(frozen=True, eq=False)
class Attention:
    """Softmax of scaled products of queries and keys, times values.

    ``x`` (the queries) and ``out`` are (batch, tokens, heads * size), ``keys`` and ``values`` (batch, tokens, of_keys * size): consecutive
    heads share keys where there are fewer. ``causal``: a token sees those before it and itself. With a ``past`` those that it keeps
    come first, and those of this call are added to it.
    """

    name: str
    x: Value
    keys: Value
    values: Value
    out: Value
    heads: int
    of_keys: int
    scale: float
    causal: bool
    past: Past | None = None


@dataclass(frozen=True, eq=False)
class Torch:
    """Any other operation, run by torch as it was recorded: ``function(*args, **kwargs)`` with values in place of tensors."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...]


Node = Conv | Linear | Pool | Mean | Add | Scale | Affine | Activate | Concat | Lstm | Norm | Multiply | Rotary | Attention | Torch


@dataclass
class Network:
    """A whole model for one shape of input: what goes in, the steps, and how to build what the model returns.

    ``result`` is the model's output with values in place of tensors; ``constants`` are values whose numbers never change; ``example``
    is what the model was called with, with values in place of tensors; ``written`` are values that share memory into which some `Torch`
    node without outputs writes: what makes and reads them runs as recorded, in this order.
    """

    inputs: tuple[Value, ...]
    nodes: list[Node]
    result: Any
    constants: dict[Value, Tensor] = field(default_factory=dict)
    example: Any = None
    written: frozenset[Value] = frozenset()


def inputs_of(node: Node) -> list[Value]:
    """The values that a node reads."""
    if isinstance(node, Torch):
        return list(among((node.args, node.kwargs), Value))
    if isinstance(node, Concat):
        return list(node.parts)
    names = ("x", "y", "factors", "residual", "hidden", "cell", "cos", "sin", "keys", "values")
    found = [getattr(node, name, None) for name in names]
    past = getattr(node, "past", None)
    if past is not None:
        found += [past.position, past.keys, past.values]
    return [value for value in found if value is not None]


def outputs_of(node: Node) -> tuple[Value, ...]:
    """The values that a node makes."""
    if isinstance(node, Torch):
        return node.outputs
    return (node.out, node.last_hidden, node.last_cell) if isinstance(node, Lstm) else (node.out,)


AnyNode = TypeVar("AnyNode", bound=Node)


def with_values(node: AnyNode, of: Callable[[Value], Value]) -> AnyNode:
    """The same step on other values, and with others in place of those that it makes."""
    parts = {each.name: getattr(node, each.name) for each in fields(node) if each.name not in ("name", "function")}
    return replace(
        node, **{name: changed(part, lambda leaf: of(leaf) if isinstance(leaf, Value) else leaf) for name, part in parts.items()}
    )


def needed(network: Network) -> Network:
    """The same network without the steps and constants that its result does not need; those that only write stay."""
    live = {value for _, value in leaves(network.result) if isinstance(value, Value)}
    nodes: list[Node] = []
    for node in reversed(network.nodes):
        if not outputs_of(node) or not live.isdisjoint(outputs_of(node)):
            live.update(inputs_of(node))
            nodes.append(node)
    constants = {value: tensor for value, tensor in network.constants.items() if value in live}
    return replace(network, nodes=nodes[::-1], constants=constants)
