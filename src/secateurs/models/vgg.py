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
    model = nn.Sequential(_convolutions(in_channels) | _classifier(classes))
    he_(model)
    return model


def _convolutions(in_channels: int) -> OrderedDict[str, nn.Module]:
    layers = OrderedDict[str, nn.Module]()
    for stage, widths in enumerate(_STAGES_OF_VGG_16, start=1):
        for i, width in enumerate(widths, start=1):
            layers[f"conv{stage}_{i}"] = nn.Conv2d(in_channels, width, 3, padding=1)
            layers[f"relu{stage}_{i}"] = nn.ReLU()
            in_channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return layers


def _classifier(classes: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(
        flatten=nn.Flatten(),
        fc6=nn.Linear(512 * 7 * 7, 4096),
        relu6=nn.ReLU(),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(),
        drop7=nn.Dropout(0.5),
        fc8=nn.Linear(4096, classes),
    )
