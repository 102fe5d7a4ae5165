"""Hassibi & Stork 1993: second order derivatives for network pruning, optimal brain surgeon."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.allocate import fraction_kept
from secateurs.evidence import gauss_newton_rows, mean_loss
from secateurs.forward import device_of
from secateurs.masks import Masks
from secateurs.patterns import Selection, find_parameters
from secateurs.ranks import WAY_OUT, count
from secateurs.recover import mask_gradients, train_
from secateurs.solve import Surgeon, in_shape, write_
from secateurs.types import Hook, SecateursError, Task


def obs_(
    model: nn.Module,
    task: Task,
    *,
    keep: float | None = None,
    sparsity: float | None = None,
    max_loss: float | None = None,
    damping: float = 1e-4,
    every: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
    epochs: int = 1,
    only: Selection | None = None,
    skip: Selection | None = None,
    hooks: Sequence[Hook] = (),
    **training: Any,
) -> Masks:
    """Remove one weight after the other, each time the one with the smallest w²/(2·[H⁻¹]qq), and let all others make up for it.

    H is that of the whole network, biases and all, from every sample's gradients (Gauss–Newton, ``damping`` on its diagonal), inverted
    by recursion; for up to 8,192 weights. It is made anew after ``every`` removals, with a backward pass for each number that each sample
    is answered with: with thousands of samples, take more removals at once. Where an ``optimizer`` is given, what is left is
    trained for `epochs` then, the optimizer beginning anew; ``training`` goes to `train_`. It ends when the fraction ``keep`` is left
    (or ``sparsity`` gone), or before the mean loss over the calibration batches would be above ``max_loss``.

    Raises `SecateursError` where none of the three is given, or both fractions, and as `gauss_newton_rows` and `inverse_of` do.

    >>> layer, x = nn.Linear(4, 1), torch.randn(50, 4)
    >>> layer.weight.data = torch.tensor([[1.0, 0.1, -2.0, 0.2]])
    >>> masks = obs_(layer, Task(x[:1], calibration=[(x, layer(x).detach())], loss=nn.functional.mse_loss), keep=0.4)
    >>> masks["weight"], masks["bias"]
    (tensor([[ True, False,  True, False]]), tensor([False]))
    """
    parameters = find_parameters(model, only, skip)
    weights = list(parameters.values())
    alive = torch.ones(sum(weight.numel() for weight in weights), dtype=torch.bool, device=device_of(model))
    least, masks = _least(len(alive), keep, sparsity, max_loss), _masks(model, parameters, alive)
    _require_possible(model, task, every, max_loss)
    beginning = copy.deepcopy(optimizer.state_dict()) if optimizer is not None else {}
    while (left := int(alive.sum())) > least:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        surgeon = Surgeon.of(weights, alive, gauss_newton_rows(model, task, weights), damping)
        for _ in range(min(every, left - least)):
            surgeon.remove()
        write_(weights, in_shape(surgeon.values, weights))
        fewer = _masks(model, parameters, surgeon.alive).apply_()
        if optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(beginning))
            train_(model, task, optimizer, epochs, masks=fewer, hooks=[mask_gradients(), *hooks], show=False, **training)
        if max_loss is not None and not mean_loss(model, task) <= max_loss:
            model.load_state_dict(before)
            break
        alive, masks = surgeon.alive, fewer
    return masks


def _least(number: int, keep: float | None, sparsity: float | None, max_loss: float | None) -> int:
    """How many weights stay at least: a fraction of them, or none where ``max_loss`` alone says when to end."""
    if keep is None and sparsity is None:
        if max_loss is None:
            raise SecateursError("obs_: say when to end: keep= or sparsity= (fractions), or max_loss= (of the calibration batches)")
        return 0
    return max(1, int(fraction_kept("obs_", sparsity, keep) * number + 1e-9))


def _require_possible(model: nn.Module, task: Task, every: int, max_loss: float | None) -> None:
    if count() > 1:
        raise SecateursError(f"obs_ is for one process, and here are {count()}: {WAY_OUT}")
    if every < 1:
        raise SecateursError(f"obs_: every={every} must be a number of removals, at least 1")
    if max_loss is not None and (dense := mean_loss(model, task)) > max_loss:
        raise SecateursError(
            f"obs_: the loss is {dense:.4g} before anything is removed, above max_loss={max_loss}: allow more, or train first"
        )


def _masks(model: nn.Module, parameters: Mapping[str, nn.Parameter], alive: Tensor) -> Masks:
    return Masks(dict(zip(parameters, in_shape(alive, list(parameters.values())), strict=True)), model)
