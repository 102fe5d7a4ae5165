"""Fang et al. 2024: MaskLLM, learnable semi-structured sparsity for large language models (2409.17481)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.patterns import Selection
from secateurs.recover import learned_n_of_m, train_
from secateurs.types import Run, Task


def maskllm_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    n: int = 2,
    m: int = 4,
    prior: Mapping[str, Tensor] | None = None,
    frozen: bool = True,
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Learn which `n` of each `m` weights stay, as a choice among all such masks; the weights themselves stay as they are.

    `secateurs.learned_n_of_m` states its equations. ``prior``: masks to begin with, such as those of `wanda_` or `sparsegpt_` on a copy of
    the model. ``training`` goes to `train_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> run = maskllm_(model, digits(), torch.optim.Adam(model.parameters()), 1, skip=["conv1"])
    >>> run.masks.sparsity
    0.5
    """
    prune = learned_n_of_m(n=n, m=m, prior=prior, frozen=frozen, only=only, skip=skip)
    return train_(model, task, optimizer, epochs, hooks=[prune], **training)
