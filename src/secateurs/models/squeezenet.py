"""SqueezeNet: AlexNet's accuracy from 1x1 convolutions and few channels."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from secateurs.models.he import he_


class Fire(nn.Module):
    """A 1x1 convolution down to few channels, then 1x1 and 3x3 convolutions side by side, ``expand`` channels from each.

    Input ``(n, in_channels, h, w)``, output ``(n, 2 * expand, h, w)``.

    >>> tuple(Fire(96, squeeze=16, expand=64)(torch.zeros(1, 96, 5, 5)).shape)
    (1, 128, 5, 5)
    """

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.squeeze1x1(x))
        return relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


def squeezenet_1_0(classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """Eight `Fire` modules between two convolutions, and no linear layer.

    Iandola et al. 2016, arXiv:1602.07360; padding and pooling as in the authors' Caffe model, whose weights fit. Input
    ``(n, in_channels, 227, 227)`` or 224, output ``(n, classes)``; 1,248,424 parameters with 1000 classes and 3 channels. The
    authors' weights expect pixels from 0 to 255 in the order blue, green, red, less the mean (104, 117, 123), as Caffe gives
    them.

    >>> model = squeezenet_1_0()
    >>> sum(p.numel() for p in model.parameters())
    1248424
    """
    model = nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(in_channels, 96, 7, stride=2),
            relu1=nn.ReLU(),
            pool1=_pool(),
            fire2=Fire(96, 16, 64),
            fire3=Fire(128, 16, 64),
            fire4=Fire(128, 32, 128),
            pool4=_pool(),
            fire5=Fire(256, 32, 128),
            fire6=Fire(256, 48, 192),
            fire7=Fire(384, 48, 192),
            fire8=Fire(384, 64, 256),
            pool8=_pool(),
            fire9=Fire(512, 64, 256),
            drop9=nn.Dropout(0.5),
            conv10=nn.Conv2d(512, classes, 1, padding=1),  # the authors pad even this 1x1 convolution
            relu10=nn.ReLU(),
            pool10=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    he_(model)
    nn.init.normal_(model.get_parameter("conv10.weight"), std=0.01)
    return model


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe rounds up
