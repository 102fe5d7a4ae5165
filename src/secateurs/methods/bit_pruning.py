"""Nikolić et al. 2020: BitPruning, learning bitlengths for aggressive and accurate quantization (2002.03090)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs.patterns import Selection
from secateurs.recover import learned_bits, train_
from secateurs.types import Run, Task


def bit_pruning_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    mean_bits: float,
    end: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> tuple[Run, dict[str, Tensor]]:
    """Train while each layer learns how many bits its weights need, `mean_bits` on average; returns the run, and weight → bits.

    `secateurs.learned_bits` states its equations; the strength is found on the way, and the rest, if any, cut by what was learned. From
    epoch `end` on, by default after three quarters, the bits are whole and stay. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = digits_cnn()
    >>> run, bits = bit_pruning_(model, digits(), torch.optim.Adam(model.parameters(), lr=3e-3), 3, mean_bits=4)
    >>> run.history[-1]["bits"] <= 4 and all(model.get_parameter(name).unique().numel() <= 2 ** int(n) for name, n in bits.items())
    True
    """
    bits, end = dict[str, Tensor](), max(1, epochs * 3 // 4) if end is None else end
    prune = learned_bits(target=mean_bits, bits=bits, end=end, strict=True, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[prune], **training), bits
