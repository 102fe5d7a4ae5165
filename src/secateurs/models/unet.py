"""U-Net: a class for every pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from secateurs.models.he import he_


class TwoConvs(nn.Module):
    """Two 3x3 convolutions, each with ReLU. Input ``(n, in_channels, h, w)``, output ``(n, out_channels, h, w)``.

    >>> tuple(TwoConvs(3, 8)(torch.zeros(1, 3, 5, 5)).shape)
    (1, 8, 5, 5)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.conv2(relu(self.conv1(x))))


class UNet(nn.Module):
    """``depth`` halvings of the resolution and as many doublings, each with what was there before the halving beside it.

    Each halving doubles the channels, of which the first has ``width``. ``ValueError`` where a side of the input is not a
    multiple of ``2 ** depth``.

    >>> model = UNet(classes=2, in_channels=1, width=4, depth=2)
    >>> tuple(model(torch.zeros(1, 1, 16, 8)).shape)
    (1, 2, 16, 8)
    """

    def __init__(self, classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(TwoConvs(before, after) for before, after in zip([in_channels, *widths], widths, strict=False))
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in upwards)
        self.merge = nn.ModuleList(TwoConvs(2 * after, after) for _, after in upwards)
        self.head = nn.Conv2d(width, classes, 1)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        _check_sides(x, 2 ** len(self.up))
        kept = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else max_pool2d(x, 2))
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


def unet(classes: int = 2, in_channels: int = 1, width: int = 64, depth: int = 4) -> UNet:
    """Eighteen 3x3 convolutions in the form of a U, and a 1x1 convolution that gives each pixel its classes.

    Ronneberger et al. 2015, arXiv:1505.04597, figure 1, with padded convolutions, so that the output is as large as the input.
    Input ``(n, in_channels, h, w)`` with sides that are multiples of ``2 ** depth``, output ``(n, classes, h, w)``; 31,030,658
    parameters with 2 classes and 1 channel.

    >>> with torch.device("meta"):
    ...     model = unet()
    >>> sum(p.numel() for p in model.parameters())
    31030658
    """
    return UNet(classes, in_channels, width, depth)


def _check_sides(x: Tensor, multiple: int) -> None:
    h, w = x.shape[-2:]
    if h % multiple or w % multiple:
        raise ValueError(f"unet: the input is {h}x{w}; its sides must be multiples of {multiple}: pad it or resize it")
