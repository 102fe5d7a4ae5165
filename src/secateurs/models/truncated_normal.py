"""The initialisation that the transformers and ConvNeXt share."""

from __future__ import annotations

from torch import nn


def truncated_normal_(model: nn.Module) -> None:
    """Draws all convolution and linear weights from N(0, 0.02²), cut off at ±2, and zeroes their biases, in place.

    As in the code of Liu et al. 2021, arXiv:2103.14030, and Liu et al. 2022, arXiv:2201.03545.

    >>> import torch
    >>> layer = torch.nn.Linear(500, 100)
    >>> truncated_normal_(layer)
    >>> f"{layer.weight.std():.3f}", layer.bias.any().item()
    ('0.020', False)
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
