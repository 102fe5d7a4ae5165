"""EfficientNet: width and depth scaled together."""

from __future__ import annotations

from math import ceil

from torch import nn
from torch.nn.functional import sigmoid, silu

from secateurs.models.mobilenet import ConvNorm, InvertedResidual, MobileNet, SqueezeExcite, divisible
from secateurs.models.stochastic_depth import StochasticDepth

# expansion, kernel, channels, blocks, stride: table 1 of arXiv:1905.11946
_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def efficientnet_b0(classes: int = 1000, in_channels: int = 3, width: float = 1.0, depth: float = 1.0) -> MobileNet:
    """Sixteen inverted residual blocks for ImageNet, all with `SqueezeExcite`, and stochastic depth up to 0.2.

    Tan and Le 2019, arXiv:1905.11946, table 1. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 5,288,548 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels and ``depth`` the
    number of blocks in each stage: 1.0 and 1.1 give B1, 1.1 and 1.2 give B2.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = efficientnet_b0()
    >>> sum(p.numel() for p in model.parameters())
    5288548
    """
    blocks = nn.Sequential()
    before = first = divisible(32 * width)
    total = sum(ceil(depth * repeats) for _, _, _, repeats, _ in _STAGES)
    for expansion, kernel, channels, repeats, stride in _STAGES:
        after = divisible(channels * width)
        for i in range(ceil(depth * repeats)):
            expanded = expansion * before
            excite = SqueezeExcite(expanded, max(1, before // 4), silu, sigmoid)
            drop = StochasticDepth(0.2 * len(blocks) / total)
            blocks.append(InvertedResidual(before, expanded, after, kernel, stride if i == 0 else 1, silu, excite, drop))
            before = after
    last = divisible(1280 * width)
    return MobileNet(
        ConvNorm(in_channels, first, 3, stride=2, activation=silu),
        blocks,
        ConvNorm(before, last, activation=silu),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes)),
    )
