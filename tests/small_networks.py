"""Random networks of the layers that small machines have, with zeros of all patterns in their weights.

model, example = small_network(seed=7)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu,
    F.relu,
    F.relu6,
    F.hardswish,
    torch.sigmoid,
    torch.tanh,
    F.hardsigmoid,
    F.silu,
    F.gelu,
    lambda x: x,
)


class Padded(nn.Module):
    """A convolution with padding of its own on each side."""

    def __init__(self, inner: nn.Module, pads: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.pads = inner, pads

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.pad(x, self.pads))


class SmallNetwork(nn.Module):
    """Steps on images, each of which reads the last result and perhaps an earlier one; then a head."""

    def __init__(self, seed: int, steps: int | None = None, recurrent: bool = False) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.steps: list[tuple[str, Any]] = []
        self.parts = nn.ModuleList()
        channels, height, width = draw.choice((1, 2, 3, 4, 5, 8)), draw.randint(5, 14), draw.randint(5, 14)
        self.example = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
        shapes = [(channels, height, width)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _ in range(draw.randint(1, 7) if steps is None else steps):
                shapes.append(self._add_step(draw, shapes))
            self._add_head(draw, shapes[-1])
            for part in self.parts:
                _statistics_(part, draw)
                _sparse_(part, draw)
        self.eval()

    def _add(self, module: nn.Module) -> int:
        self.parts.append(module)
        return len(self.parts) - 1

    def _add_step(self, draw: random.Random, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        channels, height, width = shapes[-1]
        kind = draw.choice(("conv", "conv", "conv", "depthwise", "pointwise", "pool", "add", "concat", "scale", "norm"))
        act = draw.choice(ACTIVATIONS)
        if kind == "pool" and min(height, width) >= 4:
            size, stride = draw.choice((2, 3)), draw.choice((1, 2))
            padding, sticks_out = draw.choice(((0, False), (0, True), (1, False)))
            pool = draw.choice((nn.MaxPool2d, nn.AvgPool2d))(size, stride, padding, ceil_mode=sticks_out)
            self.steps.append(("module", (self._add(pool), act)))
            return tuple(pool(torch.zeros(1, channels, height, width)).shape[1:])  # type: ignore[return-value]
        twins = [place for place, shape in enumerate(shapes[:-1]) if shape == shapes[-1]]
        if kind == "add" and twins:
            self.steps.append((draw.choice(("add", "sub", "mul")), (draw.choice(twins), act)))
            return shapes[-1]
        beside = [place for place, shape in enumerate(shapes[:-1]) if shape[1:] == shapes[-1][1:]]
        if kind == "concat" and beside:
            other = draw.choice(beside)
            self.steps.append(("cat", (other, act)))
            return channels + shapes[other][0], height, width
        if kind == "scale":
            self.steps.append(("scale", (self._add(nn.Conv2d(channels, channels, 1)), act)))
            return shapes[-1]
        if kind == "norm":
            self.steps.append(("module", (self._add(nn.BatchNorm2d(channels)), act)))
            return shapes[-1]
        module, shape = _convolution(draw, kind, shapes[-1])
        self.steps.append(("module", (self._add(module), act)))
        return shape

    def _add_head(self, draw: random.Random, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self.head = draw.choice(("none", "mean", "flatten", "softmax", "two"))
        features = channels * height * width if self.head == "flatten" else channels
        self.last = self._add(nn.Linear(features, draw.choice((2, 3, 5, 12)), bias=draw.random() < 0.8))

    def forward(self, x: Tensor) -> Any:
        seen = [x]
        for kind, (what, act) in self.steps:
            x = seen[-1]
            if kind == "module":
                x = self.parts[what](x)
            elif kind == "cat":
                x = torch.cat([x, seen[what]], 1)
            elif kind == "scale":
                x = x * torch.sigmoid(self.parts[what](x.mean((2, 3), keepdim=True)))
            else:
                x = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}[kind](x, seen[what])
            seen.append(act(x))
        x = seen[-1]
        if self.head == "none":
            return x
        found = self.parts[self.last](x.flatten(1) if self.head == "flatten" else x.mean((2, 3)))
        if self.head == "two":
            return found, x
        return torch.softmax(found, 1) if self.head == "softmax" else found


def _convolution(draw: random.Random, kind: str, shape: tuple[int, int, int]) -> tuple[nn.Module, tuple[int, int, int]]:
    channels, height, width = shape
    if kind == "pointwise":
        kernel, groups, outputs = (1, 1), 1, draw.choice((1, 3, 4, 7, 8, 16))
    else:
        kernel = draw.randint(1, min(4, height)), draw.randint(1, min(4, width))
        groups = channels if kind == "depthwise" else draw.choice([each for each in (1, 1, 1, 2, 3) if channels % each == 0])
        outputs = groups * draw.choice((1, 1, 2, 3, 4) if kind != "depthwise" else (1, 1, 1, 2))
    stride = draw.choice((1, 1, 2)), draw.choice((1, 1, 2))
    dilation = tuple(
        draw.choice((1, 1, 2)) if size * 2 - 1 <= side else 1 for size, side in zip(kernel, (height, width), strict=True)
    )
    pads = tuple(draw.choice((0, 0, 1, 2)) for _ in range(4))
    conv = nn.Conv2d(channels, outputs, kernel, stride, 0, dilation, groups, bias=draw.random() < 0.8)  # type: ignore[arg-type]
    inner: nn.Module = nn.Sequential(conv, nn.BatchNorm2d(outputs)) if draw.random() < 0.5 else conv
    module = Padded(inner, pads) if any(pads) else inner
    made = conv(F.pad(torch.zeros(1, channels, height, width), pads))
    return module, tuple(made.shape[1:])  # type: ignore[return-value]


def _statistics_(module: nn.Module, draw: random.Random) -> None:
    """Normalisations that do something."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
            for tensor, low, high in (
                (part.running_mean, -1, 1),
                (part.running_var, 0.3, 2),
                (part.weight, -1, 2),
                (part.bias, -1, 1),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)


def _sparse_(module: nn.Module, draw: random.Random) -> None:
    """Zeros in the weights: none, single ones, blocks of inputs, blocks shared by outputs, N:M, whole outputs, all."""
    for part in module.modules():
        if not isinstance(part, (nn.Conv2d, nn.Linear)):
            continue
        weight = part.weight.data
        rows = weight.view(weight.shape[0], -1)
        gone = draw.choice((0.3, 0.7, 0.95))
        noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(draw.randrange(1 << 30)))
        match draw.choice(("none", "none", "none", "element", "block", "shared", "n:m", "outputs", "all")):
            case "element":
                rows[noise < gone] = 0
            case "block":
                rows[noise[:, ::4].repeat_interleave(4, 1)[:, : rows.shape[1]] < gone] = 0
            case "shared":
                rows[noise[::4, ::4].repeat_interleave(4, 0)[: len(rows)].repeat_interleave(4, 1)[:, : rows.shape[1]] < gone] = 0
            case "n:m":
                rows[:, [place for place in range(rows.shape[1]) if place % 4 in (1, 2)]] = 0
            case "outputs":
                rows[noise[:, 0] < gone] = 0
            case "all" if draw.random() < 0.3:
                rows.zero_()


def small_network(seed: int) -> tuple[nn.Module, Tensor]:
    """A network and an input of two samples."""
    model = SmallNetwork(seed)
    return model, model.example
