"""GoogLeNet: convolutions of several sizes side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, dropout, max_pool2d, relu

from secateurs.models.he import he_

# the six right-hand columns of table 1 in arXiv:1409.4842
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ConvNorm(nn.Module):
    """A convolution that keeps the size, batch normalisation and ReLU.

    Input ``(n, in_channels, h, w)``, output ``(n, out_channels, h / stride, w / stride)``.

    >>> tuple(ConvNorm(3, 8, kernel=7, stride=2)(torch.zeros(1, 3, 16, 16)).shape)
    (1, 8, 8, 8)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches whose channels are put one after the other: 1x1, 1x1 then 3x3, 1x1 then 5x5, pooling then 1x1.

    Szegedy et al. 2014, arXiv:1409.4842, figure 2b. The third branch's 5x5 convolution is a 3x3 one here, as in the common
    published weights. ``widths`` are the columns "#1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj" of the paper's table
    1. Input ``(n, in_channels, h, w)``, output ``(n, widths[0] + widths[2] + widths[4] + widths[5], h, w)``.

    >>> block = Inception(192, (64, 96, 128, 16, 32, 32))
    >>> tuple(block(torch.zeros(1, 192, 7, 7)).shape)
    (1, 256, 7, 7)
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, three_reduced, three, five_reduced, five, pooled = widths
        self.branch1 = ConvNorm(in_channels, one, 1)
        self.branch2 = nn.Sequential(ConvNorm(in_channels, three_reduced, 1), ConvNorm(three_reduced, three, 3))
        self.branch3 = nn.Sequential(ConvNorm(in_channels, five_reduced, 1), ConvNorm(five_reduced, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvNorm(in_channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class GoogLeNet(nn.Module):
    """Three convolutions, nine `Inception` modules, and one linear layer; ``width`` multiplies all channels.

    >>> model = GoogLeNet(classes=5, in_channels=3, width=0.25)
    >>> tuple(model(torch.zeros(2, 3, 64, 64)).shape)
    (2, 5)
    """

    def __init__(self, classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        first, channels = _scaled((64, 192), width)
        self.conv1 = ConvNorm(in_channels, first, 7, stride=2)
        self.conv2 = ConvNorm(first, first, 1)
        self.conv3 = ConvNorm(first, channels, 3)
        self.inception = nn.ModuleDict()
        for name, row in _INCEPTIONS.items():
            widths = _scaled(row, width)
            self.inception[name] = Inception(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.fc = nn.Linear(channels, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _halve(self.conv1(x))
        x = _halve(self.conv3(self.conv2(x)))
        for name, inception in self.inception.items():
            x = inception(x)
            if name in ("3b", "4e"):
                x = _halve(x)
        x = adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(dropout(x, 0.4, self.training))


def googlenet(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> GoogLeNet:
    """Nine `Inception` modules for ImageNet, with batch normalisation and without auxiliary classifiers.

    Szegedy et al. 2014, arXiv:1409.4842, table 1; batch normalisation, from Ioffe and Szegedy 2015, arXiv:1502.03167, takes the
    place of the auxiliary classifiers and of local response normalisation. Input ``(n, in_channels, 224, 224)`` or other sizes
    from 32, output ``(n, classes)``; 6,624,904 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels.

    >>> with torch.device("meta"):
    ...     model = googlenet()
    >>> sum(p.numel() for p in model.parameters())
    6624904
    """
    return GoogLeNet(classes, in_channels, width)


def _scaled(channels: tuple[int, ...], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(width * c)) for c in channels)


def _halve(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, 2, ceil_mode=True)
