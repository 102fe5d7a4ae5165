"""What was done to a model to make it smaller, noted on the model itself."""

from __future__ import annotations

from functools import partial
from operator import setitem

from torch import nn

from secateurs.shrink.step import Step
from secateurs.shrink.undo import Undo

_STEPS = "_secateurs_steps"


def steps_of(model: nn.Module) -> list[Step]:
    """What was done to make this model smaller than its class makes it."""
    return list(model.__dict__.get(_STEPS, []))


def remember_(model: nn.Module, step: Step, undo: Undo) -> None:
    """Note a step on the model, so that it can be saved with it."""
    slots, before = model.__dict__, model.__dict__.get(_STEPS)
    undo.add(partial(slots.pop, _STEPS) if before is None else partial(setitem, slots, _STEPS, before))
    slots[_STEPS] = [*(before or []), step]
