"""ShuffleNet V2: half of the channels pass by each block, and a shuffle mixes the halves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from secateurs.models.he import he_


class Branch(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions. Input ``(n, in_channels, h, w)``, output ``(n, width, h / stride, w / stride)``.

    >>> tuple(Branch(8, 16, stride=2)(torch.zeros(1, 8, 4, 4)).shape)
    (1, 16, 2, 2)
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return relu(self.bn3(self.conv3(x)))


class Unit(nn.Module):
    """One half of the channels goes through a `Branch`, the other passes, and the two are shuffled.

    Ma et al. 2018, arXiv:1807.11164, figure 3c. Input and output ``(n, channels, h, w)``.

    >>> tuple(Unit(8)(torch.zeros(1, 8, 4, 4)).shape)
    (1, 8, 4, 4)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        passing, changed = x.chunk(2, dim=1)
        return shuffle(torch.cat([passing, self.branch(changed)], dim=1))


class DownUnit(nn.Module):
    """All channels go through a `Branch` and through a depthwise and a 1x1 convolution, both at half the resolution.

    Ma et al. 2018, arXiv:1807.11164, figure 3d. Input ``(n, in_channels, h, w)``, output ``(n, out_channels, h / 2, w / 2)``.

    >>> tuple(DownUnit(8, 24)(torch.zeros(1, 8, 4, 4)).shape)
    (1, 24, 2, 2)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )
        self.branch = Branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


def shuffle(x: Tensor) -> Tensor:
    """Deals the channels' first and second half alternately: ``(n, c, h, w)`` to the same.

    Zhang et al. 2017, arXiv:1707.01083, figure 1, with two groups.

    >>> shuffle(torch.arange(6).reshape(1, 6, 1, 1)).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    """A 3x3 convolution, stages of a `DownUnit` and several `Unit`, a 1x1 convolution, and one linear layer.

    ``widths`` are the channels of the first convolution, of each stage, and of the last convolution; ``blocks`` is the number
    of units in each stage.

    >>> model = ShuffleNet((4, 8, 16, 32), (2, 1), classes=5, in_channels=3)
    >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    (2, 5)
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], classes: int, in_channels: int) -> None:
        super().__init__()
        first, *stages, last = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.stages = nn.Sequential()
        before = first
        for width, units in zip(stages, blocks, strict=True):
            self.stages.append(nn.Sequential(DownUnit(before, width), *(Unit(width) for _ in range(units - 1))))
            before = width
        self.conv5 = nn.Conv2d(before, last, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        x = relu(self.bn5(self.conv5(self.stages(x))))
        return self.fc(x.mean([2, 3]))


def shufflenet_v2(
    classes: int = 1000,
    in_channels: int = 3,
    widths: tuple[int, ...] = (24, 116, 232, 464, 1024),
    blocks: tuple[int, ...] = (4, 8, 4),
) -> ShuffleNet:
    """Sixteen units in three stages for ImageNet, at width "1x".

    Ma et al. 2018, arXiv:1807.11164, table 5, where the ``widths`` of other sizes stand: ``(24, 48, 96, 192, 1024)`` is "0.5x".
    Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output ``(n, classes)``; 2,278,604 parameters with 1000 classes
    and 3 channels. ``ValueError`` where a stage's width is odd, or ``blocks`` does not fit ``widths``.

    >>> with torch.device("meta"):
    ...     model = shufflenet_v2()
    >>> sum(p.numel() for p in model.parameters())
    2278604
    """
    if len(widths) != len(blocks) + 2 or any(width % 2 for width in widths[1:-1]):
        raise ValueError(
            f"shufflenet_v2: widths {widths} and blocks {blocks}: expected the first convolution's width, an even one for each "
            f"of the {len(blocks)} stages, and the last convolution's"
        )
    return ShuffleNet(widths, blocks, classes, in_channels)
