"""Liu et al. 2024: TEAL, small activations of a language model taken as zero without training (2408.14690)."""

from __future__ import annotations

from torch import nn

from secateurs.per_input import PerInput, skip_small_, small_inputs, small_inputs_by_block
from secateurs.types import Selection, Task


def teal_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    by_block: bool = True,
    step: float = 0.01,
    only: Selection | None = None,
    skip: Selection | None = None,
    seed: int = 0,
) -> PerInput:
    """Find thresholds for the inputs of linear layers in a model's blocks at which a fraction ``sparsity`` of the weights is not read
    for a token, and take what is below as zero.

    ``by_block`` shares it out within each block by the greedy algorithm of the paper (`small_inputs_by_block`); else every layer
    loses the same (`small_inputs`). A single vector, as in decoding, meets no column that it does not need. Raises as these and
    `skip_small_` do.

    >>> import torch
    >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> model, x = nn.Sequential(block(), block()), torch.randn(32, 4)
    >>> list(teal_(model, Task(example=x, calibration=[(x, None)]), sparsity=0.4, step=0.1).parts)
    ['0.0', '0.2', '1.0', '1.2']
    """
    if by_block:
        thresholds = small_inputs_by_block(model, task, sparsity=sparsity, step=step, only=only, skip=skip, seed=seed)
    else:
        thresholds = small_inputs(model, task, sparsity=sparsity, only=only, skip=skip, seed=seed)
    return skip_small_(model, thresholds)
