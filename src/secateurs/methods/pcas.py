"""Yamamoto & Maeno 2018: PCAS, pruning channels with attention statistics (1806.05382)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from secateurs.allocate import global_threshold
from secateurs.criteria import pcas
from secateurs.patterns import Channel, Selection, find_sites
from secateurs.prune import prune_
from secateurs.recover import channel_attention, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Pattern, Run, Task


def pcas_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparsity: float,
    gate_epochs: int,
    epochs: int,
    lr: float = 1e-2,
    reduction: int = 4,
    allocate: Callable[..., Allocator] = global_threshold,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train small attention gates on all channels of the frozen network, remove those with the smallest mean gate, and fine-tune.

    One fraction for the whole network: the gates of all layers are compared. Where those of one layer saturate near 1 and others do not,
    that strips the others: look at the plan, or take ``allocate=uniform``. ``lr`` and ``reduction`` are those of the gates
    (`channel_attention`); ``training`` goes to `train_`. `shrink_` takes out what was removed.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = pcas_(model, digits(), torch.optim.Adam(model.parameters()), sparsity=0.5, gate_epochs=1, epochs=1)
    >>> sum(int(run.masks[name].sum()) for name in ("conv1.bias", "conv2.bias", "fc1.bias"))
    56
    """
    sites = find_sites(model, pattern, task.example, only=only, skip=skip)
    gates = channel_attention(model, task, sites, epochs=gate_epochs, lr=lr, reduction=reduction, show=False)
    masks = prune_(model, pattern, TopK(pcas(gates)), allocate(sparsity=sparsity), task, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, masks=masks, **training)
