"""What a penalty needs to take its own step after the optimizer's: whether there was one, and how far it went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.utils.hooks import RemovableHandle

from secateurs.recover.trial import needs_closure
from secateurs.types import Run, SecateursError

Step = Literal["subgradient", "proximal"]
"""A part of the loss, of which the optimizer gets the (sub)gradient; or a step by itself after each of the optimizer's."""


@dataclass
class Taken:
    """Whether the optimizer has taken a step since this was asked last: scaled training skips those whose gradients are not finite."""

    step: bool = False
    handle: RemovableHandle | None = None

    def watch(self, optimizer: torch.optim.Optimizer, who: str) -> None:
        """Raises `SecateursError` for an optimizer that takes several steps at once."""
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # accelerate's passes its steps on to this one, without the hooks
        if needs_closure(optimizer):
            raise SecateursError(
                f"{who}: a proximal step comes after each of the optimizer's, and {type(optimizer).__name__} takes several at once: use "
                'step="subgradient"'
            )
        self.leave()
        self.handle = optimizer.register_step_post_hook(self._note)

    def _note(self, *_: Any) -> None:
        self.step = True

    def __call__(self) -> bool:
        taken, self.step = self.step, False
        return taken

    def leave(self) -> None:
        """Watch no more."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


def require_step(who: str, step: str, until: int | None) -> None:
    """Raise `SecateursError` where there is no such way to take a step, or no epoch in which to take one."""
    if until is not None and (isinstance(until, bool) or not isinstance(until, int) or until < 1):
        raise SecateursError(
            f"{who}: until={until!r} is the epoch from which on nothing costs any more: a whole number, at least 1"
        )
    if step not in get_args(Step):
        raise SecateursError(f'{who}(step={step!r}): step is "subgradient" or "proximal"')


def trained_by(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """The parameters (ids) that an optimizer trains, with the learning rate of each.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> trained_by(torch.optim.SGD([weight], lr=0.5)) == {id(weight): 0.5}
    True
    """
    return {
        id(parameter): float(group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }


def rate(rates: dict[int, float], parameters: Iterable[Any]) -> float:
    """The learning rate of what is made smaller together: the smallest, where their parameters have several."""
    return min(rates[id(parameter)] for parameter in parameters)


def hold_(run: Run) -> None:
    """Make the constraints beside the masks hold again after weights have moved; zeros that masks hold have stayed."""
    for constraint in run.constraints:
        constraint.apply_()
