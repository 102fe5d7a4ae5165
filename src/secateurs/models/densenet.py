"""DenseNet: every layer reads all layers before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d, relu

from secateurs.models.he import he_


class DenseLayer(nn.Module):
    """A 1x1 convolution down to ``4 * growth`` channels and a 3x3 one to ``growth``, which are put behind the input.

    Huang et al. 2016, arXiv:1608.06993, section 3, "DenseNet-B". Input ``(n, in_channels, h, w)``, output
    ``(n, in_channels + growth, h, w)``.

    >>> tuple(DenseLayer(64, growth=32)(torch.zeros(1, 64, 5, 5)).shape)
    (1, 96, 5, 5)
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(relu(self.norm1(x)))
        y = self.conv2(relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


class Transition(nn.Module):
    """A 1x1 convolution to half the channels and 2x2 average pooling.

    Huang et al. 2016, arXiv:1608.06993, section 3, "DenseNet-C" with compression 0.5. Input ``(n, in_channels, h, w)``, output
    ``(n, in_channels // 2, h / 2, w / 2)``.

    >>> tuple(Transition(64)(torch.zeros(1, 64, 4, 4)).shape)
    (1, 32, 2, 2)
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv(relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """A 7x7 convolution, dense blocks with a `Transition` between each two, and one linear layer.

    ``blocks`` is the number of `DenseLayer` in each block, ``growth`` the number of channels that each of them adds.

    >>> model = DenseNet((1, 2), growth=4, classes=5, in_channels=3)
    >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    (2, 5)
    """

    def __init__(self, blocks: tuple[int, ...], growth: int, classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv0 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.norm0 = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential()
        for i, layers in enumerate(blocks):
            if i > 0:
                self.blocks.append(Transition(channels))
                channels //= 2
            self.blocks.append(nn.Sequential(*(DenseLayer(channels + j * growth, growth) for j in range(layers))))
            channels += layers * growth
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(relu(self.norm0(self.conv0(x))), 3, 2, padding=1)
        x = relu(self.norm(self.blocks(x)))
        return self.classifier(adaptive_avg_pool2d(x, 1).flatten(1))


def densenet_121(
    classes: int = 1000, in_channels: int = 3, growth: int = 32, blocks: tuple[int, ...] = (6, 12, 24, 16)
) -> DenseNet:
    """Four dense blocks of 6, 12, 24 and 16 layers for ImageNet, each of which adds ``growth`` channels.

    Huang et al. 2016, arXiv:1608.06993, table 1. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 7,978,856 parameters with 1000 classes and 3 channels.

    >>> with torch.device("meta"):
    ...     model = densenet_121()
    >>> sum(p.numel() for p in model.parameters())
    7978856
    """
    return DenseNet(blocks, growth, classes, in_channels)
