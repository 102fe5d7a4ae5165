"""Small hooks: a scheduler that steps more often, gradients that are clipped or masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from secateurs.forward import parameters_in
from secateurs.recover.trial import require_scheduler_goes_on
from secateurs.types import Hook, Run


def per_step(scheduler: Any) -> Hook:
    """A learning-rate scheduler that steps after each optimizer step (one-cycle, warm-up), as a hook.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> per_step(torch.optim.lr_scheduler.StepLR(optimizer, 10)).name
    'per_step'
    """

    def restore(state: Mapping[str, Any]) -> None:
        require_scheduler_goes_on(scheduler, state)
        scheduler.load_state_dict(dict(state))

    return Hook("per_step", stepped=lambda run: scheduler.step(), state=scheduler.state_dict, restore=restore)


def clip_gradients(norm: float) -> Hook:
    """Keeps the norm of all gradients together at most `norm`.

    >>> clip_gradients(1.0).name
    'clip_gradients'
    """

    def clip(run: Run) -> None:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), norm)

    return Hook("clip_gradients", gradients=clip)


def mask_gradients() -> Hook:
    """Pruned weights have no gradient: for optimizers that take several steps at once (L-BFGS), between which masks cannot set them to
    zero.

    >>> mask_gradients().name
    'mask_gradients'
    """

    def mask(run: Run) -> None:
        for name, parameter in parameters_in(run.model).items():
            if name in run.masks and parameter.grad is not None:
                parameter.grad.masked_fill_(~run.masks[name], 0)

    return Hook("mask_gradients", gradients=mask)
