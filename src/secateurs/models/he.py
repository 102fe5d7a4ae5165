"""The initialisation that the deeper networks share."""

from __future__ import annotations

from torch import nn


def he_(model: nn.Module) -> None:
    """Draws all convolution and linear weights from N(0, 2 / fan-in) and zeroes their biases, in place.

    He et al. 2015, arXiv:1502.01852, equation 10: the signal then keeps its variance through any number of ReLU layers.

    >>> import torch
    >>> layer = torch.nn.Linear(5000, 100)
    >>> he_(layer)
    >>> f"{layer.weight.std():.3f}", layer.bias.any().item()
    ('0.020', False)
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
