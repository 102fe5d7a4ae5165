"""A plan tried out: the model pruned for the time of a block, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, parameters_in
from secateurs.masks import Masks
from secateurs.prune import prune_
from secateurs.random_state import random_state, restore_random_state
from secateurs.types import Pattern, Plan, SecateursError, Selection, Solver, Task


@contextmanager
def trial(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    plan: Plan,
    task: Task,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    masks: Masks | None = None,
) -> Iterator[Masks]:
    """Prune a model as a plan says for the time of a block; gives the masks. For allocators that try plans, and measure what they cost.

    Afterwards, also where the block fails, the model is as it was to the bit: parameters, buffers, gradients, training modes, and all
    random numbers (so that plans are compared under the same ones). The block may prune on, and train with an optimizer of its own; to
    see a smaller model it shrinks a copy, else `SecateursError`. ``only``, ``skip`` and ``masks`` are those of `prune_`, and so are the
    errors. A copy of the model's tensors is held meanwhile. Statistics of BatchNorms are left as they are: the
    block may call `recalibrate_`.

    >>> from secateurs import Element, TopK, find_sites, magnitude, uniform
    >>> model, task = nn.Linear(4, 2), Task(example=torch.zeros(1, 4))
    >>> plan = uniform(keep=0.25)(find_sites(model, Element(), only="*"), lambda: iter([]))
    >>> with trial(model, Element(), TopK(magnitude()), plan, task, only="*") as masks:
    ...     int(model.weight.count_nonzero()), masks.kept
    (2, 2)
    >>> int(model.weight.count_nonzero())
    8
    """
    with taken_back(model):
        yield prune_(model, pattern, solver, plan, task, only=only, skip=skip, masks=masks, recalibrate=False)


@contextmanager
def taken_back(model: nn.Module) -> Iterator[None]:
    """After the block the model is as it was before it, to the bit, as after a `trial`, and so are all random numbers.

    >>> layer = nn.Linear(1, 1)
    >>> before = layer.weight.item()
    >>> with taken_back(layer):
    ...     _ = layer.weight.data.zero_()
    >>> layer.weight.item() == before
    True
    """
    before = _Before(model)
    try:
        yield
    finally:
        before.put_back_()


@contextmanager
def taken_back_on_error(model: nn.Module) -> Iterator[None]:
    """Where the block fails or is interrupted, the model is as it was before it, to the bit, as after a `trial`.

    For methods of several steps, each of which may stand alone.

    >>> layer = nn.Linear(1, 1)
    >>> before = layer.weight.item()
    >>> with taken_back_on_error(layer):
    ...     layer.weight.data.zero_()
    ...     raise RuntimeError("stopped")
    Traceback (most recent call last):
    RuntimeError: stopped
    >>> layer.weight.item() == before
    True
    """
    before = _Before(model)
    try:
        yield
    except BaseException:
        before.put_back_()
        raise


class _Held(NamedTuple):
    """A tensor with its name, what was in it, and its gradient with what was in that."""

    name: str
    tensor: Tensor
    value: Tensor
    needs_gradient: bool
    gradient: Tensor | None
    gradient_value: Tensor | None

    @staticmethod
    def of(name: str, tensor: Tensor) -> _Held:
        gradient = tensor.grad if tensor.is_leaf else None
        value = None if gradient is None else gradient.clone()
        return _Held(name, tensor, tensor.detach().clone(), tensor.requires_grad, gradient, value)

    def put_back_(self) -> None:
        if self.tensor.shape != self.value.shape:
            raise SecateursError(
                f"trial: {self.name} was of shape {tuple(self.value.shape)} and is of {tuple(self.tensor.shape)}, which cannot be taken "
                "back: within the block shrink a copy: small = copy.deepcopy(model), then shrink_(small, masks.bind(small))"
            )
        self.tensor.detach().copy_(self.value)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.needs_gradient)
            self.tensor.grad = self.gradient
        if self.gradient is not None and self.gradient_value is not None:
            self.gradient.copy_(self.gradient_value)


class _Before:
    """A model as it is now: what its modules hold, what that is, and the random numbers that are next."""

    def __init__(self, model: nn.Module) -> None:
        self.chance = random_state()
        self.modules = [(module, module.training, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
        self.tensors = [_Held.of(name, tensor) for name, tensor in {**parameters_in(model), **buffers_in(model)}.items()]

    @torch.no_grad()
    def put_back_(self) -> None:
        for module, training, parameters, buffers in self.modules:
            module.training = training
            for slots, before in ((module._parameters, parameters), (module._buffers, buffers)):
                slots.clear()
                slots.update(before)  # type: ignore[arg-type]
        restore_random_state(self.chance)
        for held in self.tensors:
            held.put_back_()
