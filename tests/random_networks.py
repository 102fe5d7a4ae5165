"""Random networks to prune: graphs of up to thirty operations over images, sequences and vectors, and a hypothesis strategy for them.

    model, example = network(seed=7)   # outside of hypothesis; print(model) gives Python that builds it again
    python tests/random_networks.py    # draws a thousand, runs them, and counts the operations

Images are (n, c, h, w), sequences (n, s, c), vectors (n, c). Only operations that fit the tensors at hand are offered, so building
never fails and nothing is thrown away. Options stand in the order of their simplicity: hypothesis shrinks towards the first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any, TypeVar
from zlib import crc32

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

T = TypeVar("T")
Shape = tuple[int, ...]
Settings = dict[str, Any]

BATCH, MOST_OPS, MOST_CHANNELS, MOST_SPACE, MOST_ELEMENTS = 2, 30, 24, 12, 1024
WIDTHS = (4, 6, 8, 2, 3, 12, 9, 5, 10, 7, 11, 1)


@dataclass(frozen=True)
class Op:
    """One step of a network: what it does, the numbers of the tensors that it reads, and how its module is made."""

    kind: str
    inputs: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        words = [repr(self.kind), *map(str, self.inputs), *(f"{name}={value!r}" for name, value in self.settings)]
        return f"op({', '.join(words)})"


def op(kind: str, *inputs: int, **settings: Any) -> Op:
    return Op(kind, inputs, tuple(settings.items()))


@dataclass(frozen=True)
class Chooser:
    """Chooses among options: ``index(n)`` is a number below n. ``literals``: whether a size may be written in the code."""

    index: Callable[[int], int]
    literals: bool = True

    def __call__(self, options: Sequence[T]) -> T:
        return options[self.index(len(options))] if len(options) > 1 else options[0]

    def literal(self) -> bool:
        return self.literals and self((False, False, True))


# ---------------------------------------------------------------- shapes


def channel_dim(shape: Shape) -> int:
    return 2 if len(shape) == 3 else 1


def channels(shape: Shape) -> int:
    return shape[channel_dim(shape)]


def divisors(number: int, least: int = 2) -> list[int]:
    return [divisor for divisor in range(least, number + 1) if number % divisor == 0]


def widths(shape: Shape) -> tuple[int, ...]:
    """How many channels an operation may make: often as many as it was given, so that results can be added."""
    return (channels(shape),) * 6 + WIDTHS


def factors(choose: Chooser, number: int) -> tuple[int, int]:
    first = choose(divisors(number)[:-1] or [number])
    return first, number // first


def known(choose: Chooser, first: int, second: int) -> tuple[int, int]:
    """The sizes of an unflatten; mostly one of them is left to be inferred."""
    return choose(((first, -1), (-1, second), (first, second)))


# ---------------------------------------------------------------- modules


class Shaped(nn.Module):
    """A function of tensors and of whole numbers, which are attributes of the module, or constants that nobody can change."""

    def __init__(self, function: Callable[..., Any], literal: bool = False, **numbers: int) -> None:
        super().__init__()
        self.names = () if literal else tuple(numbers)
        self.function = partial(function, **numbers) if literal else function
        for name in self.names:
            setattr(self, name, numbers[name])

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors, **{name: getattr(self, name) for name in self.names})


class Permuted(nn.Module):
    """A module that sees its input with other dimensions in other places, as ConvNeXt's normalisation does."""

    def __init__(self, inner: nn.Module, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.dims = inner, dims
        self.back = tuple(dims.index(dim) for dim in range(len(dims)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(self.dims)).permute(self.back)


class Residual(nn.Module):
    def __init__(self, *block: nn.Module, after: nn.Module | None = None, in_place: bool = False) -> None:
        super().__init__()
        self.block, self.after, self.in_place = nn.Sequential(*block), after or nn.Identity(), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.in_place:
            y += x
            return self.after(y)
        return self.after(x + y)


class Gate(nn.Module):
    """Squeeze and excitation (1709.01507)."""

    def __init__(self, width: int, hidden: int, style: str) -> None:
        super().__init__()
        self.style, layer = style, nn.Linear if style == "linear" else partial(nn.Conv2d, kernel_size=1)
        self.squeeze, self.excite = (layer(width, hidden), layer(hidden, width)) if hidden else (None, layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.style == "linear" else F.adaptive_avg_pool2d(x, 1)
        pooled = self.excite(pooled if self.squeeze is None else F.relu(self.squeeze(pooled)))
        gate = pooled.sigmoid() if self.style != "hard" else F.hardsigmoid(pooled)
        return x * (gate[:, :, None, None] if self.style == "linear" else gate)


class PlaceGate(nn.Module):
    """A gate that is one number for each place (the spatial attention of 1807.06521), or for each sample."""

    def __init__(self, width: int, kernel: int, sample: bool) -> None:
        super().__init__()
        self.sample, self.map = sample, nn.Conv2d(width if sample else 2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.sample else torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        gate = self.map(seen).sigmoid()
        return x * (gate.mean((2, 3), keepdim=True) if self.sample else gate)


class GatedMlp(nn.Module):
    """Gated linear units (2002.05202), with two projections or a fused one."""

    def __init__(self, width: int, hidden: int, outputs: int, fused: bool, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()
        self.gate = nn.Linear(width, hidden * (2 if fused else 1), bias)
        self.up = None if fused else nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, outputs, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x).chunk(2, -1) if self.up is None else (self.gate(x), self.up(x))
        return self.down(self.activation(gate) * up)


class Attention(nn.Module):
    """Self-attention in the ways it is written: fused or separate projections, grouped queries, by hand or by torch."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, style: str, cut: str, core: str, rope: int, bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.scale = heads, kv_heads, head_dim, head_dim**-0.5
        self.style, self.cut, self.core = style, cut, core
        inner, kv = heads * head_dim, kv_heads * head_dim
        if style == "separate":
            self.q, self.k, self.v = nn.Linear(width, inner, bias), nn.Linear(width, kv, bias), nn.Linear(width, kv, bias)
        else:
            self.qkv = nn.Linear(width, inner + 2 * kv, bias)
        self.out = nn.Linear(inner, width, bias)
        if rope:
            angles = torch.outer(torch.arange(rope), 0.5 ** torch.arange(head_dim // 2)).repeat(1, 2)
            self.register_buffer("angles", angles)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projections(x)
        if hasattr(self, "angles"):
            q, k = (y * self.angles.cos() + rotate_half(y) * self.angles.sin() for y in (q, k))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def projections(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.style == "fused reshape":
            n, s, _ = x.shape
            sizes = {"heads": (self.heads, -1), "dims": (-1, self.head_dim), "both": (self.heads, self.head_dim)}[self.cut]
            return self.qkv(x).reshape(n, s, 3, *sizes).permute(2, 0, 3, 1, 4).unbind(0)
        if self.style == "fused chunk":
            q, k, v = self.qkv(x).chunk(3, -1)
        elif self.style == "fused split":
            kv = self.kv_heads * self.head_dim
            q, k, v = self.qkv(x).split([self.heads * self.head_dim, kv, kv], -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        return self.of_heads(q, self.heads), self.of_heads(k, self.kv_heads), self.of_heads(v, self.kv_heads)

    def of_heads(self, x: Tensor, heads: int) -> Tensor:
        sizes = {"heads": (heads, -1), "dims": (-1, self.head_dim), "both": (heads, self.head_dim)}[self.cut]
        return x.unflatten(-1, sizes).transpose(1, 2) if self.cut != "both" else x.view(*x.shape[:2], *sizes).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.core == "gqa":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1 and self.core.startswith("matmul"):
            k, v = (y[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2) for y in (k, v))
        elif repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        if self.core.startswith("sdpa"):
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.core == "sdpa causal")
        scale = self.scale if self.core == "matmul" else q.shape[-1] ** -0.5
        return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class TorchAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, cell: str, inputs: int, hidden: int, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.cell = getattr(nn, cell)(inputs, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Bare(nn.Module):
    """A parameter or a buffer of the model itself that is multiplied, added, or put before a sequence as its first token."""

    def __init__(self, shape: Shape, role: str, buffer: bool) -> None:
        super().__init__()
        self.role = role
        if buffer:
            self.register_buffer("value", torch.empty(shape))
        else:
            self.value = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.role == "token":
            return torch.cat([self.value.expand(x.shape[0], -1, -1), x], 1)
        return x * self.value if self.role == "scale" else x + self.value


class Contraction(nn.Module):
    """A weight without a module of its own: einsum, matmul, or torch's functional linear."""

    def __init__(self, shape: Shape, style: str) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.empty(shape)), style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "matmul":
            return x @ self.weight
        if self.style == "F.linear":
            return F.linear(x, self.weight)
        y = torch.einsum(self.style, x, self.weight)
        return y.flatten(2) if self.style.endswith("shd") else y


class Head(nn.Module):
    """The means over space of one or more tensors, and a classifier on all of them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(inputs, outputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        pooled = [x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x for x in tensors]
        return self.classifier(torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0])


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "relu6": nn.ReLU6,
    "F.relu": lambda: Shaped(F.relu),
    "swish": lambda: Shaped(lambda x: x * x.sigmoid()),
    "where": lambda: Shaped(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "clamp": lambda: Shaped(lambda x: x.clamp(-1, 2)),
    "1 - x": lambda: Shaped(lambda x: 1 - x),
    "x / 2 + 1": lambda: Shaped(lambda x: x / 2 + 1),
    "dropout": nn.Dropout,
    "identity": nn.Identity,
    "contiguous": lambda: Shaped(lambda x: x.contiguous()),
    "clone": lambda: Shaped(lambda x: x.clone()),
}

IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu_": lambda: Shaped(F.relu_),
    "ReLU(inplace)": lambda: nn.ReLU(inplace=True),
    "Hardswish(inplace)": lambda: nn.Hardswish(inplace=True),
    "mul_": lambda: Shaped(lambda x: x.mul_(0.5)),
    "clamp_": lambda: Shaped(lambda x: x.clamp_(min=0)),
}

ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "sub": torch.sub,
    "maximum": torch.maximum,
    "lerp": lambda a, b: torch.lerp(a, b, 0.25),
}

ACROSS_CHANNELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda x, dim: x.softmax(dim),
    "cumsum": lambda x, dim: x.cumsum(dim),
    "flip": lambda x, dim: x.flip(dim),
    "roll": lambda x, dim: x.roll(1, dim),
    "normalize": lambda x, dim: F.normalize(x, dim=dim, eps=0.01),
    "centre": lambda x, dim: x - x.mean(dim, keepdim=True),
    "mean": lambda x, dim: x.mean(dim, keepdim=True),
    "amax": lambda x, dim: x.amax(dim, keepdim=True),
}


# ---------------------------------------------------------------- what fits what, and how it is made


class Graph:
    """A network while it is made: its operations, and the tensors that they gave for the example."""

    def __init__(self, example: Tensor, seed: int) -> None:
        self.network = RandomNetwork(tuple(example.shape), (), (0,), seed)
        self.values: list[Tensor] = []
        self.shapes: list[Shape] = []
        self.makers: list[Op | None] = []
        self.moderate: list[bool] = []  # whether products of a tensor stay within reason
        self.record([example], None)

    @property
    def unused(self) -> list[int]:
        used = {number for step in self.network.ops for number in step.inputs}
        return [number for number in range(len(self.values)) if number not in used]

    def append(self, step: Op) -> None:
        self.network.append_(step)
        with torch.no_grad():
            self.record(self.network.run(step, self.values), step)

    def record(self, results: list[Tensor], step: Op | None) -> None:
        self.values += results
        self.shapes += [tuple(value.shape) for value in results]
        self.makers += [step] * len(results)
        self.moderate += [bool(value.abs().amax() <= 8) for value in results]


Candidates = Callable[[Graph], list[tuple[int, ...]]]


@dataclass(frozen=True)
class Kind:
    """A kind of operation: what it can read, how its settings are chosen for inputs of given shapes, and its module.

    ``settle(choose, *shapes)`` gives the settings, with which ``make(**settings)`` gives the module.
    """

    fits: Candidates
    settle: Callable[..., Settings]
    make: Callable[..., nn.Module]
    weight: int = 1


def one(*ranks: int, where: Callable[[Shape], bool] = lambda shape: True) -> Candidates:
    return lambda graph: [(i,) for i, shape in enumerate(graph.shapes) if len(shape) in ranks and where(shape)]


def two(related: Callable[[Shape, Shape], bool], *, itself: bool = False) -> Candidates:
    """Pairs of related tensors; where there are none, and if `itself`, a tensor with itself."""

    def fits(graph: Graph) -> list[tuple[int, ...]]:
        shapes, recent = graph.shapes, range(len(graph.shapes))[-10:]
        pairs = [(i, j) for i, j in product(recent, repeat=2) if i != j and related(shapes[i], shapes[j])]
        return sorted(pairs, key=max) or [(i, i) for i in recent if itself and related(shapes[i], shapes[i])]

    return fits


def moderate(fits: Candidates) -> Candidates:
    return lambda graph: [inputs for inputs in fits(graph) if all(graph.moderate[number] for number in inputs)]


FRESH = {"conv", "grouped_conv", "depthwise_conv", "conv_transpose", "batch_norm", "group_norm", "linear", "add", "residual"}


def fresh(graph: Graph) -> list[int]:
    """Tensors that an operation may overwrite: memory of their own, and read by nobody so far."""
    return [number for number in graph.unused if (maker := graph.makers[number]) is not None and maker.kind in FRESH]


def overwritable(graph: Graph) -> list[tuple[int, ...]]:
    return [(number,) for number in fresh(graph)]


def overwritable_pair(graph: Graph) -> list[tuple[int, ...]]:
    own = set(fresh(graph))
    return [(i, j) for i, j in two(same)(graph) if i in own]


def same(a: Shape, b: Shape) -> bool:
    return a == b


def broadcast(a: Shape, b: Shape) -> bool:
    """Whether b, smaller than a, is spread over it: a gate on channels, a map on space, a vector on an image."""
    if len(b) == 2 and len(a) > 2:
        return channels(a) == channels(b)
    return len(a) == len(b) and a != b and all(y in (x, 1) for x, y in zip(a, b, strict=True))


def joinable(a: Shape, b: Shape) -> bool:
    """Whether the two can be concatenated, over channels or over the sequence."""
    return len(a) == len(b) and bool(joins(a, b))


def joins(a: Shape, b: Shape) -> list[int]:
    dims = [channel_dim(a)] if len(a) != 3 else [2, 1]
    limits = {1: MOST_CHANNELS if len(a) != 2 else 96, 2: MOST_CHANNELS}
    return [dim for dim in dims if a[:dim] + a[dim + 1 :] == b[:dim] + b[dim + 1 :] and a[dim] + b[dim] <= limits[dim]]


# convolutions


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolve(choose: Chooser, shape: Shape, inputs: int, outputs: int, groups: int = 1) -> Settings:
    kernel = choose((1, 3, 3))
    geometries = [
        (stride, padding, dilation)
        for stride, dilation in ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2))
        for padding in range(dilation * (kernel // 2), -1, -1)
        if all(out_size(size, kernel, stride, padding, dilation) >= 1 for size in shape[2:])
    ]
    stride, padding, dilation = choose(geometries)
    settings = {"in_channels": inputs, "out_channels": outputs, "kernel_size": kernel, "bias": choose((True, False))}
    unusual = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1), "groups": (groups, 1)}
    settings |= {name: value for name, (value, default) in unusual.items() if value != default}
    if padding and min(shape[2:]) > padding and choose((False,) * 5 + (True,)):
        settings["padding_mode"] = choose(("circular", "reflect", "replicate"))
    return settings


def settle_grouped(choose: Chooser, shape: Shape) -> Settings:
    groups = choose(divisors(channels(shape)))
    outputs = choose([groups * per for per in (channels(shape) // groups, 1, 2, 3, 4) if groups * per <= 12] or [groups])
    return convolve(choose, shape, channels(shape), outputs, groups)


def settle_depthwise(choose: Chooser, shape: Shape) -> Settings:
    return convolve(choose, shape, channels(shape), channels(shape) * choose((1, 1, 2)), channels(shape))


def settle_transpose(choose: Chooser, shape: Shape) -> Settings:
    groups = choose([1, 1, *divisors(channels(shape))])
    outputs = groups * choose([per for per in (channels(shape) // groups, 1, 2, 3, 4) if groups * per <= 12] or [1])
    kernel, stride, padding = choose(((1, 1, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0)))
    settings = {"in_channels": channels(shape), "out_channels": outputs, "kernel_size": kernel, "stride": stride}
    settings |= {"padding": padding, "groups": groups, "bias": choose((True, False))}
    return settings | ({"output_padding": 1} if stride == 2 and kernel == 3 and choose((False, True)) else {})


def settle_conv1d(choose: Chooser, shape: Shape) -> Settings:
    inputs, groups = channels(shape), choose([1, 1, *divisors(channels(shape))])
    settings = {"in_channels": inputs, "out_channels": groups * choose((max(1, inputs // groups), 1, 2)), "kernel_size": 3}
    return settings | {"padding": 1, "groups": groups, "bias": choose((True, False))}


# normalisations, linear layers


def settle_batch_norm(choose: Chooser, shape: Shape) -> Settings:
    return {"space": len(shape) - 2, "num_features": channels(shape), "affine": choose((True, True, True, False))}


def make_batch_norm(space: int, **settings: Any) -> nn.Module:
    if space == 1:
        return Permuted(nn.BatchNorm1d(**settings), (0, 2, 1))
    return nn.BatchNorm2d(**settings) if space else nn.BatchNorm1d(**settings)


def settle_group_norm(choose: Chooser, shape: Shape) -> Settings:
    return {
        "num_groups": choose([*divisors(channels(shape)), 1]),
        "num_channels": channels(shape),
        "affine": choose((True, True, False)),
    }


def settle_instance_norm(choose: Chooser, shape: Shape) -> Settings:
    return {
        "num_features": channels(shape),
        "affine": choose((True, True, False)),
        "track_running_stats": choose((False, True)),
    }


def settle_layer_norm(choose: Chooser, shape: Shape) -> Settings:
    over = choose((shape[1:2], shape[1:])) if len(shape) == 4 else shape[-1:]
    return {
        "over": over,
        "permuted": len(shape) == 4 and len(over) == 1,
        "elementwise_affine": choose((True, True, False)),
        "bias": choose((True, False)),
    }


def make_layer_norm(over: Shape, permuted: bool, **settings: Any) -> nn.Module:
    norm = nn.LayerNorm(over, **settings)
    return Permuted(norm, (0, 2, 3, 1)) if permuted else norm


def settle_rms_norm(choose: Chooser, shape: Shape) -> Settings:
    width = channels(shape)
    return {"permuted": len(shape) == 4, "width": width, "eps": 1e-5, "elementwise_affine": choose((True, True, False))}


def make_rms_norm(permuted: bool, width: int, **settings: Any) -> nn.Module:
    norm = nn.RMSNorm(width, **settings)
    return Permuted(norm, (0, 2, 3, 1)) if permuted else norm


def settle_linear(choose: Chooser, shape: Shape) -> Settings:
    permuted = len(shape) == 4 and choose((True, True, False))
    inputs = channels(shape) if permuted else shape[-1]
    outputs = choose((inputs if inputs <= 12 else 8, *widths(shape))) if permuted or len(shape) < 4 else inputs
    return {"permuted": permuted, "in_features": inputs, "out_features": min(outputs, 24), "bias": choose((True, False))}


def make_linear(permuted: bool, **settings: Any) -> nn.Module:
    return Permuted(nn.Linear(**settings), (0, 2, 3, 1)) if permuted else nn.Linear(**settings)


def settle_contraction(choose: Chooser, shape: Shape) -> Settings:
    c, o = channels(shape), choose(WIDTHS)
    styles: list[tuple[str, Shape]] = {
        2: [("nc,oc->no", (o, c)), ("matmul", (c, o)), ("F.linear", (o, c))],
        3: [("nsc,oc->nso", (o, c)), ("matmul", (c, o)), ("F.linear", (o, c)), ("nsc,hcd->nshd", (2, c, 3))],
        4: [("nchw,oc->nohw", (o, c)), ("nchw,co->nohw", (c, o))],
    }[len(shape)]
    if len(shape) == 3:
        styles.append(("nsc,ts->ntc", (choose((shape[1], 4)), shape[1])))
    style, weight = choose(styles)
    return {"style": style, "shape": weight}


# activations, arithmetic


def named(table: dict[str, Any]) -> Callable[..., Settings]:
    return lambda choose, *shapes: {"name": choose(list(table))}


def settle_prelu(choose: Chooser, shape: Shape) -> Settings:
    return {"num_parameters": choose((channels(shape), 1)) if len(shape) != 3 else 1}


def make_arithmetic(name: str) -> nn.Module:
    return Shaped(ARITHMETIC[name])


def arithmetic(a: str) -> tuple[Callable[..., Settings], Callable[..., nn.Module]]:
    return (lambda choose, *shapes: {}), (lambda: make_arithmetic(a))


def make_broadcast(name: str) -> nn.Module:
    def spread(a: Tensor, b: Tensor) -> Tensor:
        if b.ndim < a.ndim:
            b = b[:, :, None, None] if a.ndim == 4 else b.unsqueeze(1)
        return ARITHMETIC[name](a, b)

    return Shaped(spread)


def make_add_(style: str) -> nn.Module:
    def add(a: Tensor, b: Tensor) -> Tensor:
        a += b
        return a

    return Shaped(add if style == "+=" else lambda a, b: a.mul_(b.sigmoid()))


def settle_across(choose: Chooser, shape: Shape) -> Settings:
    return {"name": choose(list(ACROSS_CHANNELS)), "dim": channel_dim(shape)}


def make_across(name: str, dim: int) -> nn.Module:
    return Shaped(lambda x: ACROSS_CHANNELS[name](x, dim))


def settle_stack(choose: Chooser, *shapes: Shape) -> Settings:
    return {"dim": choose((0, 1, -1)), "reduce": choose(("sum", "mean", "amax"))}


def make_stack(dim: int, reduce: str) -> nn.Module:
    return Shaped(lambda *tensors: getattr(torch.stack(tensors, dim), reduce)(dim))


def settle_bilinear(choose: Chooser, a: Shape, b: Shape) -> Settings:
    if len(a) == 4:
        return {"equation": "nchw,ndhw->ncd"}
    return {"equation": choose(["nsc,ntc->nst"] * (a[2] == b[2]) + ["nsc,nsd->ncd"] * (a[1] == b[1]))}


def bilinear(a: Shape, b: Shape) -> bool:
    return (len(a) == len(b) == 3 and (a[2] == b[2] or a[1] == b[1])) or (len(a) == len(b) == 4 and a[2:] == b[2:])


# joining and cutting


def settle_cat(choose: Chooser, *shapes: Shape) -> Settings:
    return {"dim": choose(joins(shapes[0], shapes[1]))}


def settle_split(choose: Chooser, shape: Shape) -> Settings:
    width, dim = channels(shape), channel_dim(shape)
    parts = choose(divisors(width)[:2])
    first = choose(range(1, width))
    style, sizes = choose(
        (
            ("chunk", (width // parts,) * parts),
            ("half", (width // 2, width - width // 2)),
            ("split", (first, width - first)),
            ("slice", (first, width - first)),
            ("each", (width // parts,) * parts),
            ("every other", (width - width // 2, width // 2)),
        )
    )
    return {"style": style, "dim": dim, "sizes": sizes, "literal": choose.literal()}


def make_split(style: str, dim: int, sizes: Shape, literal: bool) -> nn.Module:
    ahead = (slice(None),) * dim

    def half(x: Tensor) -> tuple[Tensor, ...]:
        middle = x.shape[dim] // 2
        return x[(*ahead, slice(None, middle))], x[(*ahead, slice(middle, None))]

    if style == "half":
        return Shaped(half)
    if style == "every other":
        return Shaped(lambda x: (x[(*ahead, slice(None, None, 2))], x[(*ahead, slice(1, None, 2))]))
    if style == "chunk":
        return Shaped(lambda x, parts: x.chunk(parts, dim), literal, parts=len(sizes))
    if style == "each":
        return Shaped(lambda x, split_size: x.split(split_size, dim), literal, split_size=sizes[0])
    if style == "slice":
        return Shaped(lambda x, at: (x[(*ahead, slice(None, at))], x[(*ahead, slice(at, None))]), literal, at=sizes[0])
    return Shaped(lambda x, first, second: x.split([first, second], dim), literal, first=sizes[0], second=sizes[1])


def settle_narrow(choose: Chooser, shape: Shape) -> Settings:
    width = channels(shape)
    return {
        "dim": channel_dim(shape),
        "length": choose(range(1, width)),
        "last": choose((False, True)),
        "literal": choose.literal(),
    }


def make_narrow(dim: int, length: int, last: bool, literal: bool) -> nn.Module:
    return Shaped(lambda x, length: x.narrow(dim, x.shape[dim] - length if last else 0, length), literal, length=length)


def settle_repeat(choose: Chooser, shape: Shape) -> Settings:
    return {"dim": channel_dim(shape), "style": choose(("repeat", "repeat_interleave", "expand"))}


def make_repeat(dim: int, style: str) -> nn.Module:
    if style == "repeat_interleave":
        return Shaped(lambda x: x.repeat_interleave(2, dim))
    if style == "repeat":
        return Shaped(
            lambda x: torch.cat([x] * 2, dim) if x.ndim == 2 else x.repeat(*(2 if d == dim else 1 for d in range(x.ndim)))
        )
    return Shaped(lambda x: x.unsqueeze(dim + 1).expand(*x.shape[: dim + 1], 2, *x.shape[dim + 1 :]).flatten(dim, dim + 1))


# views


def settle_flatten(choose: Chooser, shape: Shape) -> Settings:
    return {"style": choose(("flatten", "reshape", "view", "size")), "size": prod(shape[1:]), "literal": choose.literal()}


def make_flatten(style: str, size: int, literal: bool) -> nn.Module:
    if style == "flatten":
        return nn.Flatten()
    if style == "reshape":
        return Shaped(lambda x: x.reshape(x.shape[0], -1))
    if style == "view":
        return Shaped(lambda x: x.contiguous().view(x.size(0), prod(x.shape[1:])))
    return Shaped(lambda x, size: x.reshape(-1, size), literal, size=size)


def settle_to_sequence(choose: Chooser, shape: Shape) -> Settings:
    styles = ["flatten", "permute", "size", *(["rows"] if shape[1] * shape[3] <= MOST_CHANNELS else [])]
    return {"style": choose(styles), "size": shape[1], "literal": choose.literal()}


def make_to_sequence(style: str, size: int, literal: bool) -> nn.Module:
    if style == "flatten":
        return Shaped(lambda x: x.flatten(2).transpose(1, 2))
    if style == "permute":
        return Shaped(lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]))
    if style == "rows":
        return Shaped(lambda x: x.permute(0, 2, 1, 3).flatten(2))
    return Shaped(lambda x, size: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size), literal, size=size)


def settle_to_image(choose: Chooser, shape: Shape) -> Settings:
    height = choose([1, *divisors(shape[1])])
    return {
        "style": choose(("unflatten", "view", "size")),
        "size": (shape[2], height, shape[1] // height),
        "literal": choose.literal(),
    }


def make_to_image(style: str, size: Shape, literal: bool) -> nn.Module:
    c, height, width = size
    if style == "unflatten":
        return Shaped(lambda x: x.transpose(1, 2).unflatten(2, (height, width)))
    if style == "view":
        return Shaped(lambda x: x.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2) if x.is_contiguous() else images(x, size))
    return Shaped(lambda x, c: x.transpose(1, 2).reshape(x.shape[0], c, height, width), literal, c=c)


def images(x: Tensor, size: Shape) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size[1:])


def settle_patchify(choose: Chooser, shape: Shape) -> Settings:
    return {"style": choose(("reshape", "unfold"))}


def make_patchify(style: str) -> nn.Module:
    def cut(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)

    return Shaped(cut if style == "reshape" else lambda x: F.unfold(x, 2, stride=2).transpose(1, 2))


def settle_unflatten(choose: Chooser, shape: Shape) -> Settings:
    a, b = factors(choose, shape[1])
    to = choose(("sequence", "image")) if a <= 12 and b <= MOST_CHANNELS else "sequence"
    return {"sizes": known(choose, a, b), "to": to, "literal": choose.literal()}


def make_unflatten(sizes: Shape, to: str, literal: bool) -> nn.Module:
    def function(x: Tensor, a: int, b: int) -> Tensor:
        y = x.unflatten(1, (a, b))
        return y if to == "sequence" else y.unsqueeze(-1)

    return Shaped(function, literal, a=sizes[0], b=sizes[1])


def make_as_image() -> nn.Module:
    return Shaped(lambda x: x[:, :, None, None])


def settle_channel_shuffle(choose: Chooser, shape: Shape) -> Settings:
    groups, per = factors(choose, channels(shape))
    style = choose(("unflatten", "view", "module") if len(shape) == 4 else ("unflatten",))
    return {
        "style": style,
        "dim": channel_dim(shape),
        "sizes": known(choose, groups, per) if style == "unflatten" else (groups, per),
        "literal": choose.literal(),
    }


def make_channel_shuffle(style: str, dim: int, sizes: Shape, literal: bool) -> nn.Module:
    def by_view(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    def by_unflatten(x: Tensor, a: int, b: int) -> Tensor:
        return x.unflatten(dim, (a, b)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    if style == "module":
        return nn.ChannelShuffle(sizes[0])
    if style == "view":
        return Shaped(by_view, literal, groups=sizes[0])
    return Shaped(by_unflatten, literal, a=sizes[0], b=sizes[1])


def settle_regroup(choose: Chooser, shape: Shape) -> Settings:
    a, b = factors(choose, channels(shape))
    dim = channel_dim(shape)
    tall = dim != 1 or len(shape) == 2 or shape[2] * b <= MOST_SPACE
    styles = [*("sum first", "mean second", "amax first"), *(["into space"] if tall and len(shape) > 2 else [])]
    return {"style": choose(styles), "dim": dim, "sizes": known(choose, a, b), "literal": choose.literal()}


def make_regroup(style: str, dim: int, sizes: Shape, literal: bool) -> nn.Module:
    """Channels taken as a product a × b, of which one factor is summed, or becomes a part of space."""

    def function(x: Tensor, a: int, b: int) -> Tensor:
        y = x.unflatten(dim, (a, b))
        if style == "into space":
            return y.flatten(2, 3) if dim == 1 else y.flatten(1, 2)
        if style == "mean second":
            return y.mean(dim + 1)
        return y.sum(dim) if style == "sum first" else y.amax(dim)

    return Shaped(function, literal, a=sizes[0], b=sizes[1])


def settle_pixels(choose: Chooser, shape: Shape) -> Settings:
    return {"style": choose(("module", "function"))}


# space


def settle_pool(choose: Chooser, shape: Shape) -> Settings:
    if len(shape) == 3:
        return {"name": "AvgPool1d", "size": (2,)}
    adaptive = [("AdaptiveAvgPool2d", (1,)), ("AdaptiveAvgPool2d", (2,)), ("AdaptiveMaxPool2d", (1,)), ("AdaptiveAvgPool2d", (3,))]
    large = [("MaxPool2d", (2,)), ("AvgPool2d", (2,)), ("MaxPool2d", (3, 2, 1)), ("AvgPool2d", (3, 1, 1))]
    name, size = choose([*(large if min(shape[2:]) >= 2 else []), *adaptive])
    return {"name": name, "size": size}


def make_pool(name: str, size: Shape) -> nn.Module:
    pool = getattr(nn, name)(*size)
    return Permuted(pool, (0, 2, 1)) if name == "AvgPool1d" else pool


def settle_interpolate(choose: Chooser, shape: Shape) -> Settings:
    return {"mode": choose(("nearest", "bilinear", "bicubic")), "module": choose((True, False))}


def make_interpolate(mode: str, module: bool) -> nn.Module:
    if module:
        return nn.Upsample(scale_factor=2, mode=mode)
    return Shaped(lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode=mode))


def settle_pad(choose: Chooser, shape: Shape) -> Settings:
    modes = ["constant", *(["reflect"] if len(shape) == 4 and min(shape[2:]) > 1 else [])]
    return {"pad": (1, 1, 0, 1) if len(shape) == 4 else (0, 0, 1, 0), "mode": choose(modes)}


def settle_pad_channels(choose: Chooser, shape: Shape) -> Settings:
    return {"pad": (0, 0) * (2 if len(shape) == 4 else 0) + choose(((0, 2), (1, 1), (3, 0))), "mode": "constant"}


def make_pad(pad: Shape, mode: str) -> nn.Module:
    return Shaped(lambda x: F.pad(x, pad, mode))


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)) if x.ndim == 4 else x.mean(1),
    "amax": lambda x: x.amax((2, 3)) if x.ndim == 4 else x.amax(1),
    "keepdim": lambda x: x.mean((2, 3), keepdim=True) if x.ndim == 4 else x.mean(1, keepdim=True),
    "first": lambda x: x[:, :, 0, 0] if x.ndim == 4 else x[:, 0],
    "pooled": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1) if x.ndim == 4 else x.transpose(1, 2).mean(-1),
}


# blocks


def settle_gate(choose: Chooser, shape: Shape) -> Settings:
    return {"width": channels(shape), "hidden": choose((0, 3, 4)), "style": choose(("conv", "hard", "linear"))}


def settle_place_gate(choose: Chooser, shape: Shape) -> Settings:
    return {"width": channels(shape), "kernel": choose((1, 3)), "sample": choose((False, True))}


def settle_gated_mlp(choose: Chooser, shape: Shape) -> Settings:
    return {
        "width": channels(shape),
        "hidden": choose(WIDTHS),
        "outputs": choose(widths(shape)),
        "fused": choose((False, True)),
        "activation": choose(("silu", "gelu", "sigmoid")),
        "bias": choose((False, True)),
    }


def settle_attention(choose: Chooser, shape: Shape) -> Settings:
    heads = choose((2, 1, 3, 4))
    kv_heads = choose([heads, heads, *divisors(heads, 1)])
    head_dim = choose((4, 2, 3, 6))
    rope = choose((0, 0, 0, shape[1])) if head_dim % 2 == 0 else 0
    styles = ["separate", "fused split", *(["fused reshape", "fused chunk"] if heads == kv_heads else [])]
    cores = ["matmul", "sdpa", "matmul read", "sdpa causal", *(["gqa"] if heads != kv_heads else [])]
    return {
        "width": channels(shape),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "style": choose(styles),
        "cut": choose(("heads", "dims", "both")),
        "core": choose(cores),
        "rope": rope,
        "bias": choose((True, False)),
    }


def settle_torch_attention(choose: Chooser, shape: Shape) -> Settings:
    return {"width": channels(shape), "heads": choose([1, *divisors(channels(shape))])}


def settle_recurrent(choose: Chooser, shape: Shape) -> Settings:
    return {
        "cell": choose(("LSTM", "GRU")),
        "inputs": channels(shape),
        "hidden": choose((4, 3, 5)),
        "layers": choose((1, 1, 2)),
        "bidirectional": choose((False, True)),
    }


def settle_bare(choose: Chooser, shape: Shape) -> Settings:
    c = channels(shape)
    role = choose(("scale", "bias", "token") if len(shape) == 3 else ("scale", "bias"))
    plain = [(c, 1, 1), (1, c, 1, 1), shape[1:]] if len(shape) == 4 else [(c,), shape[1:]]
    return {
        "shape": (1, 1, c) if role == "token" else choose(plain),
        "role": role,
        "buffer": role != "token" and choose((False, False, True)),
    }


def settle_residual(choose: Chooser, shape: Shape) -> Settings:
    style = choose(("basic", "bottleneck", "inverted", "convnext") if len(shape) == 4 else ("mlp",))
    return {"style": style, "width": channels(shape), "hidden": choose(WIDTHS), "in_place": choose((False, True))}


def make_residual(style: str, width: int, hidden: int, in_place: bool) -> nn.Module:
    def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs)]

    def relu() -> nn.Module:
        return nn.ReLU(inplace=in_place)

    if style == "basic":
        return Residual(*conv(width, hidden, 3), relu(), *conv(hidden, width, 3), after=relu(), in_place=in_place)
    if style == "bottleneck":
        inner = [*conv(width, hidden, 1), relu(), *conv(hidden, hidden, 3), relu()]
        return Residual(*inner, *conv(hidden, width, 1), after=relu(), in_place=in_place)
    if style == "inverted":
        inner = [*conv(width, hidden, 1), nn.ReLU6(), *conv(hidden, hidden, 3, hidden), nn.Hardswish()]
        return Residual(*inner, Gate(hidden, 3, "hard"), *conv(hidden, width, 1))
    layers = [nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)]
    if style == "convnext":
        return Residual(nn.Conv2d(width, width, 3, padding=1, groups=width), Permuted(nn.Sequential(*layers), (0, 2, 3, 1)))
    return Residual(*layers)


# again: a module that was used before, or a new one with the weight of an earlier one

TIEABLE = {"conv", "grouped_conv", "depthwise_conv", "conv_transpose", "linear"}
REPEATABLE = TIEABLE | {"batch_norm", "layer_norm", "group_norm", "prelu", "gate", "gated_mlp", "attention", "residual", "bare"}


def earlier(kinds: set[str]) -> Candidates:
    """Tensors of the shape that an earlier operation of these kinds was made for."""

    def fits(graph: Graph) -> list[tuple[int, ...]]:
        return [(i,) for i in range(len(graph.values)) if earlier_ops(graph, kinds, graph.shapes[i])]

    return fits


def earlier_ops(graph: Graph, kinds: set[str], shape: Shape) -> list[int]:
    """Numbers of the operations of these kinds that read one tensor of this shape."""
    shapes = graph.shapes
    return [number for number, step in enumerate(graph.network.ops) if step.kind in kinds and shapes[step.inputs[0]] == shape]


def no_settings(choose: Chooser, *shapes: Shape) -> Settings:
    return {}


def channels_of(least: int) -> Callable[[Shape], bool]:
    return lambda shape: channels(shape) >= least


def product_of_channels(shape: Shape) -> bool:
    return len(divisors(channels(shape))) > 1


def space_at_least(least: int) -> Callable[[Shape], bool]:
    return lambda shape: min(shape[2:]) >= least


def small(shape: Shape) -> bool:
    return max(shape[2:]) * 2 <= MOST_SPACE


def even_space(shape: Shape) -> bool:
    return shape[2] % 2 == shape[3] % 2 == 0 and shape[1] * 4 <= MOST_CHANNELS


ANY, IMAGE, SEQUENCE, VECTOR = (4, 3, 2), (4,), (3,), (2,)

KINDS: dict[str, Kind] = {
    "conv": Kind(one(4), lambda choose, s: convolve(choose, s, channels(s), choose(widths(s))), nn.Conv2d, 8),
    "linear": Kind(one(*ANY), settle_linear, make_linear, 6),
    "activation": Kind(one(*ANY), named(ACTIVATIONS), lambda name: ACTIVATIONS[name](), 5),
    "batch_norm": Kind(one(*ANY), settle_batch_norm, make_batch_norm, 3),
    "add": Kind(two(same), *arithmetic("add"), 4),
    "mul": Kind(moderate(two(same)), *arithmetic("mul"), 2),
    "arithmetic": Kind(two(same), lambda choose, *s: {"name": choose(("sub", "maximum", "lerp"))}, make_arithmetic),
    "broadcast": Kind(moderate(two(broadcast)), lambda choose, *s: {"name": choose(("mul", "add", "sub"))}, make_broadcast, 2),
    "cat": Kind(two(joinable, itself=True), settle_cat, lambda dim: Shaped(lambda *tensors: torch.cat(tensors, dim)), 4),
    "split": Kind(one(*ANY, where=channels_of(2)), settle_split, make_split, 3),
    "narrow": Kind(one(*ANY, where=channels_of(2)), settle_narrow, make_narrow),
    "grouped_conv": Kind(one(4, where=channels_of(2)), settle_grouped, nn.Conv2d, 2),
    "depthwise_conv": Kind(one(4, where=lambda s: 2 * s[1] <= MOST_CHANNELS), settle_depthwise, nn.Conv2d, 2),
    "conv_transpose": Kind(one(4, where=small), settle_transpose, nn.ConvTranspose2d, 2),
    "conv1d": Kind(one(3), settle_conv1d, lambda **settings: Permuted(nn.Conv1d(**settings), (0, 2, 1))),
    "residual": Kind(one(4, 3), settle_residual, make_residual, 3),
    "gate": Kind(one(4), settle_gate, Gate, 2),
    "place_gate": Kind(one(4), settle_place_gate, PlaceGate, 2),
    "group_norm": Kind(one(4), settle_group_norm, nn.GroupNorm),
    "instance_norm": Kind(one(4, where=space_at_least(2)), settle_instance_norm, nn.InstanceNorm2d),
    "layer_norm": Kind(one(*ANY), settle_layer_norm, make_layer_norm),
    "rms_norm": Kind(one(*ANY), settle_rms_norm, make_rms_norm),
    "prelu": Kind(one(*ANY), settle_prelu, nn.PReLU),
    "relu_": Kind(overwritable, named(IN_PLACE), lambda name: IN_PLACE[name](), 2),
    "add_": Kind(overwritable_pair, lambda choose, *s: {"style": choose(("+=", "gate"))}, make_add_, 2),
    "bare": Kind(one(*ANY), settle_bare, Bare, 2),
    "attention": Kind(one(3), settle_attention, Attention, 4),
    "torch_attention": Kind(one(3), settle_torch_attention, TorchAttention),
    "gated_mlp": Kind(one(3, 2), settle_gated_mlp, GatedMlp, 3),
    "recurrent": Kind(one(3), settle_recurrent, Recurrent),
    "contraction": Kind(one(*ANY), settle_contraction, Contraction, 2),
    "bilinear": Kind(
        moderate(two(bilinear, itself=True)),
        settle_bilinear,
        lambda equation: Shaped(lambda a, b: torch.einsum(equation, a, b) / 4),
    ),
    "stack": Kind(two(same), settle_stack, make_stack),
    "repeat": Kind(one(*ANY, where=lambda s: 2 * channels(s) <= MOST_CHANNELS), settle_repeat, make_repeat),
    "across_channels": Kind(one(*ANY), settle_across, make_across),
    "flatten": Kind(one(4, 3, where=lambda s: prod(s[1:]) <= 96), settle_flatten, make_flatten, 2),
    "unflatten": Kind(one(2, where=product_of_channels), settle_unflatten, make_unflatten, 2),
    "as_image": Kind(one(2, where=lambda s: s[1] <= MOST_CHANNELS), no_settings, make_as_image),
    "to_sequence": Kind(one(4), settle_to_sequence, make_to_sequence, 2),
    "to_image": Kind(one(3), settle_to_image, make_to_image, 2),
    "patchify": Kind(one(4, where=even_space), settle_patchify, make_patchify, 2),
    "channel_shuffle": Kind(one(*ANY, where=product_of_channels), settle_channel_shuffle, make_channel_shuffle),
    "regroup": Kind(one(*ANY, where=product_of_channels), settle_regroup, make_regroup),
    "pixel_shuffle": Kind(
        one(4, where=lambda s: s[1] % 4 == 0 and small(s)),
        settle_pixels,
        lambda style: nn.PixelShuffle(2) if style == "module" else Shaped(lambda x: F.pixel_shuffle(x, 2)),
        2,
    ),
    "pixel_unshuffle": Kind(
        one(4, where=even_space),
        settle_pixels,
        lambda style: nn.PixelUnshuffle(2) if style == "module" else Shaped(lambda x: F.pixel_unshuffle(x, 2)),
        2,
    ),
    "pool": Kind(one(4, 3, where=lambda s: len(s) == 4 or s[1] >= 2), settle_pool, make_pool, 2),
    "mean": Kind(one(4, 3), named(MEANS), lambda name: Shaped(MEANS[name]), 2),
    "interpolate": Kind(one(4, where=small), settle_interpolate, make_interpolate),
    "pad": Kind(one(4, 3, where=lambda s: max(s[1:]) < MOST_SPACE), settle_pad, make_pad),
    "pad_channels": Kind(one(*ANY, where=lambda s: channels(s) + 3 <= MOST_CHANNELS), settle_pad_channels, make_pad),
    "again": Kind(earlier(REPEATABLE), no_settings, nn.Identity, 2),
    "tied": Kind(earlier(TIEABLE), no_settings, nn.Identity),
    "head": Kind(lambda graph: [], no_settings, Head, 0),
}


# ---------------------------------------------------------------- the network


class RandomNetwork(nn.Module):
    """Walks through a list of operations; tensor 0 is the input. ``repr`` is Python that builds the same network again."""

    def __init__(self, shape: Shape, ops: Sequence[Op], outputs: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        self.shape, self.outputs, self.seed = shape, outputs, seed
        self.ops: tuple[Op, ...] = ()
        self.names: tuple[str, ...] = ()
        self.eval()
        for step in ops:
            self.append_(step)

    def append_(self, step: Op) -> None:
        """One operation more, with random weights of its own."""
        settings, number = dict(step.settings), len(self.ops)
        name = f"{step.kind}_{number}"
        if step.kind == "again":
            name = self.names[settings["of"]]
        else:
            source = dict(self.ops[settings["of"]].settings) if step.kind == "tied" else settings
            kind = self.ops[settings["of"]].kind if step.kind == "tied" else step.kind
            module = KINDS[kind].make(**source)
            randomise_(module, torch.Generator().manual_seed(crc32(f"{self.seed} {number}".encode())))
            if step.kind == "tied":
                tie_(module, self.get_submodule(self.names[settings["of"]]))
            self.add_module(name, module.eval())
        self.ops, self.names = (*self.ops, step), (*self.names, name)

    def run(self, step: Op, values: list[Tensor]) -> list[Tensor]:
        """What an operation gives: one tensor or several."""
        result = getattr(self, self.names[next(index for index, known in enumerate(self.ops) if known is step)])(
            *[values[number] for number in step.inputs]
        )
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def forward(self, example: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = [example]
        for step, name in zip(self.ops, self.names, strict=True):
            result = getattr(self, name)(*[values[number] for number in step.inputs])
            values += result if isinstance(result, (tuple, list)) else [result]
        outputs = tuple(values[number] for number in self.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def __repr__(self) -> str:
        lines, graph = [f"RandomNetwork({self.shape}, ["], Graph(example_of(self), self.seed)
        for step in self.ops:
            known = len(graph.values)
            graph.append(step)
            shapes = ", ".join(f"{known + index}: {shape}" for index, shape in enumerate(graph.shapes[known:]))
            lines.append(f"    {step},  # {shapes}")
        return "\n".join([*lines, f"], outputs={self.outputs}, seed={self.seed})"])


def rebuilt(model: RandomNetwork) -> RandomNetwork:
    """The same network made anew, dense and in float32, whatever has been done to the first."""
    return RandomNetwork(model.shape, model.ops, model.outputs, model.seed)


def example_of(model: RandomNetwork) -> Tensor:
    return torch.randn(model.shape, generator=torch.Generator().manual_seed(model.seed))


def tie_(module: nn.Module, owner: nn.Module) -> None:
    if isinstance(module, Permuted):
        module, owner = module.inner, owner.inner
    module.weight = owner.weight


def randomise_(module: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the scale of activations, biases and scales of either sign, and statistics that say something."""
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            word = name.rpartition(".")[2]
            if not tensor.is_floating_point() or word == "angles":
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if word == "running_var":
                tensor.copy_(0.5 + noise.abs())
            elif "bias" in word or word == "running_mean":
                tensor.copy_(0.3 * noise)
            elif tensor.ndim < 2 or word == "value":
                tensor.copy_(noise.sign() * (0.5 + noise.abs() / 2))
            else:
                tensor.copy_(noise / (tensor.numel() / tensor.shape[0]) ** 0.5)


# ---------------------------------------------------------------- drawing one


def start(choose: Chooser) -> Graph:
    """The input: mostly an image."""
    layout = choose(("image", "image", "image", "sequence", "sequence", "vector"))
    width, space = choose((3, 4, 2, 6, 8)), (4, 6, 8, 5, 7)
    shape = {
        "image": lambda: (BATCH, width, choose(space), choose(space)),
        "sequence": lambda: (BATCH, choose(space), width),
        "vector": lambda: (BATCH, 2 * width),
    }[layout]()
    model = RandomNetwork(shape, (), (0,), seed=choose(range(8)))
    return Graph(example_of(model), model.seed)


def grow(graph: Graph, choose: Chooser) -> None:
    """One operation more, of a kind that fits the tensors at hand."""
    candidates = {kind: KINDS[kind].fits(graph) for kind in KINDS}
    name = choose([kind for kind, found in candidates.items() for _ in range(KINDS[kind].weight) if found])
    latest, unused = candidates[name][::-1], set(graph.unused)
    untouched = [inputs for inputs in latest if unused.issuperset(inputs)]
    inputs = choose([*latest[:1] * 4, *untouched, *latest])
    shapes = [graph.shapes[number] for number in inputs]
    settings = KINDS[name].settle(choose, *shapes)
    if name in ("again", "tied"):
        settings = {"of": choose(earlier_ops(graph, REPEATABLE if name == "again" else TIEABLE, shapes[0])[::-1])}
    graph.append(op(name, *inputs, **settings))


def finish(graph: Graph, choose: Chooser) -> RandomNetwork:
    """One or two outputs, classifiers or the feature map itself; operations that lead to neither are mostly left out."""
    last = len(graph.values) - 1
    ends = choose(("head", "head of all", "head of all", "map", "head and map", "two heads"))
    outputs = [last] if "map" in ends else []
    for _ in range({"map": 0, "two heads": 2}.get(ends, 1)):
        inputs = [last] if ends != "head of all" else [number for number in graph.unused if number][-5:] or [last]
        graph.append(op("head", *inputs, inputs=sum(channels(graph.shapes[i]) for i in inputs), outputs=choose((3, 5))))
        outputs.insert(0, len(graph.values) - 1)
    network = graph.network
    network.outputs = tuple(outputs)
    return without_dead_ends(graph, network.outputs) if choose((True, True, True, False)) else rebuilt(network)


def without_dead_ends(graph: Graph, outputs: tuple[int, ...]) -> RandomNetwork:
    """The network without the operations that no output depends on; tensors and operations get new numbers."""
    ops = graph.network.ops
    made_by = [-1, *(index for index, step in enumerate(ops) for maker in graph.makers if maker is step)]
    needed, waiting = set(), {made_by[number] for number in outputs} - {-1}
    while waiting:
        index = waiting.pop()
        needed.add(index)
        of = dict(ops[index].settings).get("of")
        sources = {made_by[number] for number in ops[index].inputs} | ({of} if of is not None else set())
        waiting |= sources - needed - {-1}
    tensors = {old: new for new, old in enumerate(number for number, index in enumerate(made_by) if index in needed | {-1})}
    numbers = {old: new for new, old in enumerate(sorted(needed))}
    kept = [renumbered(step, tensors, numbers) for index, step in enumerate(ops) if index in needed]
    return RandomNetwork(graph.network.shape, kept, tuple(tensors[number] for number in outputs), graph.network.seed)


def renumbered(step: Op, tensors: dict[int, int], numbers: dict[int, int]) -> Op:
    settings = tuple((name, numbers[value] if name == "of" else value) for name, value in step.settings)
    return Op(step.kind, tuple(tensors[number] for number in step.inputs), settings)


def network(seed: int, *, most_ops: int = MOST_OPS, literals: bool = True) -> tuple[RandomNetwork, Tensor]:
    """The network of a seed and an example for it; ``literals=False`` writes no size into the code, only to attributes."""
    choose = Chooser(random.Random(seed).randrange, literals)
    graph = start(choose)
    while len(graph.network.ops) < most_ops and choose(range(40)):
        grow(graph, choose)
    model = finish(graph, choose)
    return model, example_of(model)


@st.composite
def networks(draw: Any, most_ops: int = MOST_OPS, literals: bool = True) -> tuple[RandomNetwork, Tensor]:
    """Strategy for ``(model, example)``, float32 and in eval mode; each operation can be left out by itself when it shrinks."""
    choose = Chooser(lambda n: draw(st.integers(0, n - 1)), literals)
    graph = start(choose)
    while len(graph.network.ops) < most_ops and draw(one_more(graph, literals)):
        pass
    model = finish(graph, choose)
    return model, example_of(model)


@st.composite
def one_more(draw: Any, graph: Graph, literals: bool) -> bool:
    choose = Chooser(lambda n: draw(st.integers(0, n - 1)), literals)
    if not choose(range(40)):
        return False
    grow(graph, choose)
    return True


# ---------------------------------------------------------------- does it work?


def flat(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def check_one(model: RandomNetwork, example: Tensor) -> None:
    """A network runs in float64, gives finite numbers, always the same, and so does its text; its input stays as it was."""
    model, example = model.double(), example.double()
    before = example.clone()
    with torch.no_grad():
        first = flat(model(example))
        others = [flat(model(example)), flat(eval(repr(model), globals()).double()(example))]
    assert all(torch.isfinite(value).all() for value in first), f"not finite:\n{model}"
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)), f"not deterministic:\n{model}"
    assert torch.equal(example, before), f"it writes to its input:\n{model}"


def drawn(count: int) -> Counter[str]:
    """How often each kind of operation is drawn for the seeds below `count`."""
    return Counter(step.kind for seed in range(count) for step in network(seed)[0].ops)


if __name__ == "__main__":
    for seed in range(1000):
        check_one(*network(seed))
    counts = drawn(1000)
    print(f"1000 networks run, {counts.total() / 1000:.1f} operations each")
    for kind in sorted(KINDS, key=lambda kind: -counts[kind]):
        print(f"{counts[kind]:6} {kind}")
