"""VGG: nothing but 3x3 convolutions."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from secateurs.models.he import he_

_STAGES_OF_VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg_16(classes: int = 1000, in_channels: int = 3) -> nn.Sequential:
    """Thirteen convolutions in five stages, ``conv1_1`` to ``conv5_3``, and three linear layers, ``fc6`` to ``fc8``.

    Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D; He initialisation, so that it trains without the paper's
    pretraining of its first layers. Input ``(n, in_channels, 224, 224)``, output ``(n, classes)``; 138,357,544 parameters with
    1000 classes and 3 channels.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = vgg_16()
    >>> sum(p.numel() for p in model.parameters())
    138357544
    """
    layers = _convolutions(in_channels, 1.0, norm=False)
    model = nn.Sequential(layers | _classifier(classes, 1.0))
    he_(model)
    return model


def vgg_16_bn(classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """`vgg_16` with batch normalisation after each convolution, ``bn1_1`` to ``bn5_3``.

    Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D; Ioffe and Szegedy 2015, arXiv:1502.03167. Input
    ``(n, in_channels, 224, 224)`` or other sizes from 32, which are pooled to 7x7 before ``fc6``, output ``(n, classes)``;
    138,365,992 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels, those of ``fc6`` and ``fc7``
    included.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = vgg_16_bn()
    >>> sum(p.numel() for p in model.parameters())
    138365992
    """
    layers = _convolutions(in_channels, width, norm=True)
    layers["avgpool"] = nn.AdaptiveAvgPool2d(7)
    model = nn.Sequential(layers | _classifier(classes, width))
    he_(model)
    return model


def _convolutions(in_channels: int, width: float, norm: bool) -> OrderedDict[str, nn.Module]:
    layers = OrderedDict[str, nn.Module]()
    for stage, widths in enumerate(_STAGES_OF_VGG_16, start=1):
        for i, channels in enumerate(widths, start=1):
            out_channels = round(width * channels)
            layers[f"conv{stage}_{i}"] = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            if norm:
                layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(out_channels)
            layers[f"relu{stage}_{i}"] = nn.ReLU()
            in_channels = out_channels
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return layers


def _classifier(classes: int, width: float) -> OrderedDict[str, nn.Module]:
    channels, hidden = round(width * 512), round(width * 4096)
    return OrderedDict(
        flatten=nn.Flatten(),
        fc6=nn.Linear(channels * 7 * 7, hidden),
        relu6=nn.ReLU(),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(hidden, hidden),
        relu7=nn.ReLU(),
        drop7=nn.Dropout(0.5),
        fc8=nn.Linear(hidden, classes),
    )
