"""ResNeXt: residual networks whose 3x3 convolutions are grouped."""

from __future__ import annotations

from secateurs.models.resnet import Bottleneck, ImageNetResNet


def resnext_50(classes: int = 1000, in_channels: int = 3, width: float = 1.0, groups: int = 32) -> ImageNetResNet:
    """Sixteen bottleneck blocks with 3x3 convolutions of 32 groups: "32x4d", four channels a group in the first stage.

    Xie et al. 2016, arXiv:1611.05431, table 1, in the form of figure 3c. Input ``(n, in_channels, 224, 224)`` or other sizes
    from 32, output ``(n, classes)``; 25,028,904 parameters with 1000 classes and 3 channels. ``width`` multiplies all channels;
    ``ValueError`` where ``groups`` do not divide those of the first stage.

    >>> import torch
    >>> with torch.device("meta"):
    ...     model = resnext_50()
    >>> sum(p.numel() for p in model.parameters())
    25028904
    """
    stem = round(64 * width)
    if 2 * stem % groups:
        raise ValueError(
            f"resnext_50: the 3x3 convolutions of the first stage have {2 * stem} channels, which do not fall into {groups} groups"
        )

    def block(in_channels: int, out_channels: int, stride: int) -> Bottleneck:
        return Bottleneck(in_channels, out_channels // 2, stride, groups, expansion=2)

    return ImageNetResNet((3, 4, 6, 3), classes, in_channels, block, stem, out_channels=4 * stem)
