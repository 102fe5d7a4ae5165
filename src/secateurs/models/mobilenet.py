"""MobileNets: depthwise convolutions between 1x1 ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, hardsigmoid, hardswish, relu, relu6

from secateurs.models.he import he_

Activation = Callable[[Tensor], Tensor]

# expansion, channels, blocks, stride: table 2 of arXiv:1801.04381
_STAGES_OF_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

# kernel, expanded channels, channels, squeeze and excitation, activation, stride: tables 1 and 2 of arXiv:1905.02244
_BLOCKS_OF_V3_LARGE = (
    (3, 16, 16, False, relu, 1),
    (3, 64, 24, False, relu, 2),
    (3, 72, 24, False, relu, 1),
    (5, 72, 40, True, relu, 2),
    (5, 120, 40, True, relu, 1),
    (5, 120, 40, True, relu, 1),
    (3, 240, 80, False, hardswish, 2),
    (3, 200, 80, False, hardswish, 1),
    (3, 184, 80, False, hardswish, 1),
    (3, 184, 80, False, hardswish, 1),
    (3, 480, 112, True, hardswish, 1),
    (3, 672, 112, True, hardswish, 1),
    (5, 672, 160, True, hardswish, 2),
    (5, 960, 160, True, hardswish, 1),
    (5, 960, 160, True, hardswish, 1),
)
_BLOCKS_OF_V3_SMALL = (
    (3, 16, 16, True, relu, 2),
    (3, 72, 24, False, relu, 2),
    (3, 88, 24, False, relu, 1),
    (5, 96, 40, True, hardswish, 2),
    (5, 240, 40, True, hardswish, 1),
    (5, 240, 40, True, hardswish, 1),
    (5, 120, 48, True, hardswish, 1),
    (5, 144, 48, True, hardswish, 1),
    (5, 288, 96, True, hardswish, 2),
    (5, 576, 96, True, hardswish, 1),
    (5, 576, 96, True, hardswish, 1),
)


class ConvNorm(nn.Module):
    """A convolution that keeps the size, batch normalisation and, where one is given, an activation.

    Input ``(n, in_channels, h, w)``, output ``(n, out_channels, h / stride, w / stride)``.

    >>> tuple(ConvNorm(3, 8, kernel=3, stride=2, activation=relu6)(torch.zeros(1, 3, 16, 16)).shape)
    (1, 8, 8, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate that a small network of two layers computes from the means of all channels.

    Hu et al. 2017, arXiv:1709.01507. Input and output ``(n, channels, h, w)``.

    >>> block = SqueezeExcite(8, squeezed=2, activation=relu, gate=hardsigmoid)
    >>> tuple(block(torch.zeros(1, 8, 5, 5)).shape)
    (1, 8, 5, 5)
    """

    def __init__(self, channels: int, squeezed: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        mean = adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.fc2(self.activation(self.fc1(mean))))


class InvertedResidual(nn.Module):
    """A 1x1 convolution up to ``expanded`` channels, a depthwise one, and a 1x1 down again without activation.

    Sandler et al. 2018, arXiv:1801.04381, figure 4. The first one is left out where nothing is expanded. ``excite``, if given,
    follows the depthwise convolution. A shortcut leads around blocks that do not change the shape, and ``drop`` acts on what
    is added to it. Input ``(n, in_channels, h, w)``, output ``(n, out_channels, h / stride, w / stride)``.

    >>> block = InvertedResidual(8, 48, 16, kernel=3, stride=2, activation=relu6)
    >>> tuple(block(torch.zeros(1, 8, 4, 4)).shape)
    (1, 16, 2, 2)
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel: int,
        stride: int,
        activation: Activation,
        excite: nn.Module | None = None,
        drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.expand = nn.Identity() if expanded == in_channels else ConvNorm(in_channels, expanded, activation=activation)
        self.depthwise = ConvNorm(expanded, expanded, kernel, stride, groups=expanded, activation=activation)
        self.excite = excite or nn.Identity()
        self.project = ConvNorm(expanded, out_channels)
        self.drop = drop or nn.Identity()
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + self.drop(y) if self.residual else y


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of ``by`` that is nearest, and at least ``by`` and 90 % of ``channels``.

    The rounding in the authors' code of MobileNet.

    >>> divisible(30), divisible(1), divisible(0.75 * 24), divisible(0.35 * 32)
    (32, 8, 24, 16)
    """
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest + by if nearest < 0.9 * channels else nearest


class MobileNet(nn.Module):
    """A 3x3 convolution, a sequence of blocks, a 1x1 convolution, the mean over all pixels and a classifier.

    >>> blocks = nn.Sequential(InvertedResidual(4, 8, 4, kernel=3, stride=1, activation=relu6))
    >>> model = MobileNet(ConvNorm(3, 4, 3, 2, activation=relu6), blocks, ConvNorm(4, 9, activation=relu6), nn.Linear(9, 5))
    >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    (2, 5)
    """

    def __init__(self, stem: nn.Module, blocks: nn.Sequential, head: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.head = head
        self.classifier = classifier
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(adaptive_avg_pool2d(x, 1), 1))


def mobilenet_v2(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNet:
    """Seventeen inverted residual blocks for ImageNet.

    Sandler et al. 2018, arXiv:1801.04381, table 2. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 3,504,872 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels, but never makes
    the last 1280 fewer.

    >>> with torch.device("meta"):
    ...     model = mobilenet_v2()
    >>> sum(p.numel() for p in model.parameters())
    3504872
    """
    blocks = nn.Sequential()
    before = first = divisible(32 * width)
    for expansion, channels, repeats, stride in _STAGES_OF_V2:
        after = divisible(channels * width)
        for i in range(repeats):
            blocks.append(InvertedResidual(before, expansion * before, after, 3, stride if i == 0 else 1, relu6))
            before = after
    last = divisible(1280 * max(1.0, width))
    return MobileNet(
        ConvNorm(in_channels, first, 3, stride=2, activation=relu6),
        blocks,
        ConvNorm(before, last, activation=relu6),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes)),
    )


def mobilenet_v3_large(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNet:
    """Fifteen inverted residual blocks for ImageNet, eight of them with `SqueezeExcite`.

    Howard et al. 2019, arXiv:1905.02244, table 1. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 5,483,032 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels.

    >>> with torch.device("meta"):
    ...     model = mobilenet_v3_large()
    >>> sum(p.numel() for p in model.parameters())
    5483032
    """
    return _mobilenet_v3(_BLOCKS_OF_V3_LARGE, 1280, classes, in_channels, width)


def mobilenet_v3_small(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNet:
    """Eleven inverted residual blocks for ImageNet, nine of them with `SqueezeExcite`.

    Howard et al. 2019, arXiv:1905.02244, table 2. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 2,542,856 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels.

    >>> with torch.device("meta"):
    ...     model = mobilenet_v3_small()
    >>> sum(p.numel() for p in model.parameters())
    2542856
    """
    return _mobilenet_v3(_BLOCKS_OF_V3_SMALL, 1024, classes, in_channels, width)


def _mobilenet_v3(
    rows: tuple[tuple[int, int, int, bool, Activation, int], ...], hidden: int, classes: int, in_channels: int, width: float
) -> MobileNet:
    blocks = nn.Sequential()
    before = first = divisible(16 * width)
    for kernel, channels, out_channels, excites, activation, stride in rows:
        expanded, after = divisible(channels * width), divisible(out_channels * width)
        excite = SqueezeExcite(expanded, divisible(expanded / 4), relu, hardsigmoid) if excites else None
        blocks.append(InvertedResidual(before, expanded, after, kernel, stride, activation, excite))
        before = after
    hidden = divisible(hidden * width)
    return MobileNet(
        ConvNorm(in_channels, first, 3, stride=2, activation=hardswish),
        blocks,
        ConvNorm(before, 6 * before, activation=hardswish),
        nn.Sequential(nn.Linear(6 * before, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)),
    )
