"""Residual networks: bottleneck blocks for ImageNet, basic blocks for CIFAR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from secateurs.models.he import he_


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which a shortcut leads; ``expansion * width`` channels come out.

    He et al. 2015, arXiv:1512.03385, figure 5. The stride is on the 3x3 convolution, and not on the first 1x1 as in the paper:
    "v1.5", in which no pixel goes unseen. With ``groups``, the 3x3 convolution falls into that many side by side: Xie et al.
    2016, arXiv:1611.05431, figure 3c. Input ``(n, in_channels, h, w)``, output
    ``(n, expansion * width, h / stride, w / stride)``.

    >>> import torch
    >>> tuple(Bottleneck(64, 32, stride=2)(torch.zeros(1, 64, 8, 8)).shape)
    (1, 128, 4, 4)
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1, groups: int = 1, expansion: int = 4) -> None:
        super().__init__()
        out_channels = expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return relu(y + self.downsample(x))


class Basic(nn.Module):
    """Two 3x3 convolutions around which a shortcut leads, which has parameters only with ``projection``.

    He et al. 2015, arXiv:1512.03385, section 4.2 (without, for CIFAR) and figure 5 (with, for ImageNet). Input
    ``(n, in_channels, h, w)``, output ``(n, width, h / stride, w / stride)``.

    >>> import torch
    >>> tuple(Basic(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape)
    (1, 32, 4, 4)
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if projection:
            self.downsample = _projection(in_channels, width, stride)
        elif stride != 1:
            self.downsample = PaddedShortcut(stride, added=width - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.downsample(x))


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, and zeros for the channels that are missing: half of them before, half after.

    Option A of He et al. 2015, arXiv:1512.03385, section 4.1. Input ``(n, c, h, w)``, output
    ``(n, c + added, h / stride, w / stride)``.

    >>> import torch
    >>> PaddedShortcut(stride=2, added=2)(torch.ones(1, 1, 2, 2)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """

    def __init__(self, stride: int, added: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = added // 2
        self.after = added - self.before

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


Block = Callable[[int, int, int], nn.Module]
"""Makes a block from its input channels, its output channels and its stride."""


def bottleneck_of_four(in_channels: int, out_channels: int, stride: int) -> Bottleneck:
    """The block of ResNet-50: a quarter of the channels inside, in one group.

    >>> bottleneck_of_four(256, 512, stride=2).conv2
    Conv2d(128, 128, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
    """
    return Bottleneck(in_channels, out_channels // 4, stride)


def _basic(in_channels: int, out_channels: int, stride: int) -> Basic:
    return Basic(in_channels, out_channels, stride, projection=True)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 1x1 convolution where the shape changes, else nothing: option B of arXiv:1512.03385, section 4.1."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ImageNetResNet(nn.Module):
    """A 7x7 convolution, four stages of blocks, and one linear layer; layers are named as in torchvision.

    ``blocks`` is the number of blocks in each of the four stages. ``block(in_channels, out_channels, stride)`` makes one.
    ``stem`` channels come out of the first convolution, ``out_channels`` out of the first stage, and each further stage
    doubles them.

    >>> import torch
    >>> model = ImageNetResNet((1, 1, 1, 1), classes=5)
    >>> tuple(model(torch.zeros(1, 3, 64, 64)).shape)
    (1, 5)
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        classes: int,
        in_channels: int = 3,
        block: Block = bottleneck_of_four,
        stem: int = 64,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(block, stem, out_channels, blocks[0], stride=1)
        self.layer2 = _stage(block, out_channels, 2 * out_channels, blocks[1], stride=2)
        self.layer3 = _stage(block, 2 * out_channels, 4 * out_channels, blocks[2], stride=2)
        self.layer4 = _stage(block, 4 * out_channels, 8 * out_channels, blocks[3], stride=2)
        self.fc = nn.Linear(8 * out_channels, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _stage(block: Block, in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of ``blocks`` `Basic` blocks with 16, 32 and 64 channels, and one linear layer.

    >>> import torch
    >>> model = CifarResNet(blocks=1, classes=5)
    >>> tuple(model(torch.zeros(1, 3, 32, 32)).shape)
    (1, 5)
    """

    def __init__(self, blocks: int, classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Basic(16, 16), *(Basic(16, 16) for _ in range(blocks - 1)))
        self.layer2 = nn.Sequential(Basic(16, 32, stride=2), *(Basic(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Basic(32, 64, stride=2), *(Basic(64, 64) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet_18(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ImageNetResNet:
    """Eight basic blocks for ImageNet, with 1x1 convolutions in those shortcuts where the shape changes.

    He et al. 2015, arXiv:1512.03385, table 1. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 11,689,512 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = resnet_18()
    >>> sum(p.numel() for p in model.parameters())
    11689512
    """
    stem = round(64 * width)
    return ImageNetResNet((2, 2, 2, 2), classes, in_channels, _basic, stem, out_channels=stem)


def resnet_34(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ImageNetResNet:
    """Sixteen basic blocks for ImageNet, with 1x1 convolutions in those shortcuts where the shape changes.

    He et al. 2015, arXiv:1512.03385, table 1. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 21,797,672 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = resnet_34()
    >>> sum(p.numel() for p in model.parameters())
    21797672
    """
    stem = round(64 * width)
    return ImageNetResNet((3, 4, 6, 3), classes, in_channels, _basic, stem, out_channels=stem)


def resnet_50(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> ImageNetResNet:
    """Sixteen bottleneck blocks for ImageNet.

    He et al. 2015, arXiv:1512.03385, table 1, in the "v1.5" form (see `Bottleneck`). Input ``(n, in_channels, 224, 224)`` or
    other sizes from 32, output ``(n, classes)``; with 1000 classes and 3 channels, 25,557,032 parameters and 4.1 G
    multiply-accumulates an image. ``width`` multiplies all channels.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = resnet_50()
    >>> sum(p.numel() for p in model.parameters())
    25557032
    """
    stem = round(64 * width)
    return ImageNetResNet((3, 4, 6, 3), classes, in_channels, bottleneck_of_four, stem, out_channels=4 * stem)


def resnet_20(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Nine basic blocks for CIFAR.

    He et al. 2015, arXiv:1512.03385, section 4.2, with the parameter-free shortcuts of option A. Input
    ``(n, in_channels, 32, 32)``, output ``(n, classes)``; 269,722 parameters with 10 classes and 3 channels.

    >>> sum(p.numel() for p in resnet_20().parameters())
    269722
    """
    return CifarResNet(3, classes, in_channels)


def resnet_56(classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Twenty-seven basic blocks for CIFAR.

    He et al. 2015, arXiv:1512.03385, section 4.2, with the parameter-free shortcuts of option A. Input
    ``(n, in_channels, 32, 32)``, output ``(n, classes)``; 853,018 parameters with 10 classes and 3 channels.

    >>> sum(p.numel() for p in resnet_56().parameters())
    853018
    """
    return CifarResNet(9, classes, in_channels)
