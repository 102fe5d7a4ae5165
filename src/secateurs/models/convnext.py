"""ConvNeXt: a convolutional network with the proportions of a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from secateurs.models.stochastic_depth import StochasticDepth
from secateurs.models.truncated_normal import truncated_normal_


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, and two linear layers on each pixel, with a learned scale for each channel.

    Liu et al. 2022, arXiv:2201.03545, figure 4; the scale is that of Touvron et al. 2021, arXiv:2103.17239. Input and output
    ``(n, width, h, w)``.

    >>> tuple(ConvNeXtBlock(8, drop=0.1)(torch.zeros(1, 8, 5, 5)).shape)
    (1, 8, 5, 5)
    """

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.scale * self.fc2(gelu(self.fc1(self.norm(y))))
        return x + self.drop(y.permute(0, 3, 1, 2))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel. Input and output ``(n, channels, h, w)``.

    >>> ChannelNorm(2)(torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)).flatten().round().tolist()
    [-1.0, 1.0]
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normed = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """A 4x4 convolution, stages of `ConvNeXtBlock` with 2x2 convolutions between them, and one linear layer.

    ``blocks`` holds the number of blocks in each stage. ``width`` channels are in the first stage, and each further one doubles
    them.

    >>> model = ConvNeXt((1, 1), width=4, classes=5, in_channels=3)
    >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    (2, 5)
    """

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 4, stride=4), ChannelNorm(width))
        self.stages = nn.Sequential()
        drops = torch.linspace(0, 0.1, sum(blocks), device="cpu").tolist()
        for i, depth in enumerate(blocks):
            if i > 0:
                self.stages.append(nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, stride=2)))
                width *= 2
            self.stages.append(nn.Sequential(*(ConvNeXtBlock(width, drops.pop(0)) for _ in range(depth))))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        truncated_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(self.norm(x.mean([-2, -1])))


def convnext_t(classes: int = 1000, in_channels: int = 3, width: int = 96, blocks: tuple[int, ...] = (3, 3, 9, 3)) -> ConvNeXt:
    """Eighteen blocks in four stages for ImageNet, with stochastic depth up to 0.1: "ConvNeXt-T".

    Liu et al. 2022, arXiv:2201.03545, section 3. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 28,589,128 parameters with 1000 classes and 3 channels.

    >>> with torch.device("meta"):
    ...     model = convnext_t()
    >>> sum(p.numel() for p in model.parameters())
    28589128
    """
    return ConvNeXt(blocks, width, classes, in_channels)
