"""Small hooks: a scheduler that steps more often, gradients that are clipped, weights that cost something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from secateurs.forward import modules_in, parameters_in
from secateurs.patterns import NORMALISATIONS
from secateurs.ranks import whole
from secateurs.recover.trial import require_scheduler_goes_on
from secateurs.types import Hook, Run, SecateursError


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


def penalty(strength: float, p: float = 2, of: Literal["weights", "scales"] = "weights") -> Hook:
    """Adds ``strength · Σ|w|ᵖ`` over all weights that may be pruned to the loss: L2 for p = 2, L1 for p = 1 (1506.02626, §3.1).

    ``of="scales"``: over the scales of all normalisations instead, which L1 drives to zero channel by channel (1708.06519).

    Raises `SecateursError` for a negative strength or p outside [1, ∞), and, when training begins, where there are no scales.

    >>> penalty(1e-4, p=1).name
    'penalty(p=1)'
    """
    if strength < 0 or not 1 <= p < float("inf"):
        raise SecateursError(f"penalty(strength={strength}, p={p}): strength must be at least 0, and p in [1, inf)")
    if of not in ("weights", "scales"):
        raise SecateursError(f'penalty(of={of!r}): of is "weights" or "scales"')

    def punished(run: Run) -> list[Tensor]:
        if of == "weights":
            return [parameter for parameter in run.model.parameters() if parameter.ndim > 1]
        norms = [module for module in modules_in(run.model).values() if isinstance(module, NORMALISATIONS)]
        return [weight for module in norms if isinstance(weight := getattr(module, "weight", None), Tensor)]

    def loss(run: Run) -> Tensor:
        return strength * sum((whole(weight.abs().pow(p).sum()) for weight in punished(run)), torch.zeros(()))

    def require_some(run: Run) -> None:
        if of == "scales" and not punished(run):
            raise SecateursError(
                f'penalty(of="scales"): {type(run.model).__name__} has no normalisation with a scale: put nn.BatchNorm2d behind its '
                'layers, or take of="weights"'
            )

    return Hook(f"penalty(p={p}{'' if of == 'weights' else ', of=scales'})", start=require_some, loss=loss)
