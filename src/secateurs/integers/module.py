"""A network in integers as a module of torch, to be evaluated like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.integers.layers import Network
from secateurs.integers.quantise import from_integers, to_integers
from secateurs.integers.ranges import packed_batches
from secateurs.integers.reference import run


class IntegerModel(nn.Module):
    """Takes and gives what the model did from which a network was made, in float32, and computes in between as the C code does.

    Several outputs come as a tuple, in the order of the network's. There is nothing to train.

    >>> from secateurs.integers.build import built
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> tuple(IntegerModel(built(model, torch.ones(1, 2, 2)))(torch.ones(5, 2, 2)).shape)
    (5, 3)
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        network = self.network
        [given] = packed_batches(network, [named or (list(inputs) if len(inputs) > 1 else inputs[0])])
        whole = [to_integers(numbers, face.array) for face, numbers in zip(network.inputs, given, strict=True)]
        found = run(network, whole)
        made = [
            torch.from_numpy(np.ascontiguousarray(face.unpacked(from_integers(numbers, face.array))))
            for face, numbers in zip(network.outputs, found, strict=True)
        ]
        return made[0] if len(made) == 1 else tuple(made)
