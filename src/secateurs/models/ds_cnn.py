"""DS-CNN: spoken keywords with depthwise convolutions, small enough for a microcontroller."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from secateurs.models.he import he_

_EPSILON = 1e-3
"""Of the batch normalisations, as in TensorFlow, where the network comes from."""


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 one across channels, both with batch normalisation and ReLU.

    Input and output ``(n, channels, h, w)``.

    >>> import torch
    >>> tuple(DepthwiseSeparable(8)(torch.zeros(1, 8, 25, 5)).shape)
    (1, 8, 25, 5)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.dw_bn = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.pw = nn.Conv2d(channels, channels, 1)
        self.pw_bn = nn.BatchNorm2d(channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.dw_bn(self.dw(x)))
        return relu(self.pw_bn(self.pw(x)))


class DsCnn(nn.Module):
    """One convolution, four `DepthwiseSeparable` blocks, the mean of each channel, and a linear layer."""

    def __init__(self, classes: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, (10, 4), stride=2)
        self.bn1 = nn.BatchNorm2d(channels, eps=_EPSILON)
        self.block1 = DepthwiseSeparable(channels)
        self.block2 = DepthwiseSeparable(channels)
        self.block3 = DepthwiseSeparable(channels)
        self.block4 = DepthwiseSeparable(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = pad(x, (1, 1, 4, 5))  # TensorFlow's "same", which is not symmetric here
        x = relu(self.bn1(self.conv1(x)))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.fc(x.mean((2, 3)))


def ds_cnn(classes: int = 12, in_channels: int = 1, width: float = 1.0) -> DsCnn:
    """The keyword spotting network of MLPerf Tiny, whose weights fit.

    Zhang et al. 2017, arXiv:1711.07128, section 4.3, in the small variant; as in Banbury et al. 2021, arXiv:2106.07597: every
    convolution has a bias, and batch normalisation an epsilon of 1e-3. Input ``(n, in_channels, 49, 10)``, which is 49 frames of
    10 cepstral coefficients, output ``(n, classes)``; 23,756 parameters with 12 classes and 1 channel. ``width`` scales the 64
    channels.

    >>> import torch
    >>> model = ds_cnn()
    >>> sum(p.numel() for p in model.parameters()), tuple(model(torch.zeros(2, 1, 49, 10)).shape)
    (23756, (2, 12))
    """
    model = DsCnn(classes, in_channels, max(1, round(64 * width)))
    he_(model)
    return model
