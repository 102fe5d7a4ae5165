"""Scores that were learned in training, and are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secateurs.criteria.parts import total, weights_alone
from secateurs.evidence import recorded
from secateurs.types import Counted, Criterion, Observed, SecateursError


def movement(numbers: Mapping[str, Tensor] | None = None, members: Counted = "producers") -> Criterion:
    """−Σ g·w over the steps of a training run, summed over a unit: weights stay that moved away from zero (2005.07683).

    ``numbers`` are those of a `secateurs.Movement` that was there while the network was trained. Raises `SecateursError` without.

    >>> import torch
    >>> movement({"weight": torch.ones(1, 2)}).name
    'movement()'
    """
    if numbers is None:
        raise SecateursError(
            "movement() needs what was recorded in training: moved = Movement(), train_(..., hooks=[moved.hook()]), then "
            "movement(moved.numbers); or secateurs.methods.movement_, which does all of it"
        )
    statistic = recorded("movement", numbers, members)
    return Criterion("movement()", Observed(statistic), total, (statistic,), members)


def pcas(numbers: Mapping[str, Tensor] | None = None) -> Criterion:
    """The mean of a learned attention gate on each unit of a frozen network (1806.05382); for `Channel` and `Head`.

    ``numbers`` are those of `secateurs.channel_attention`. Raises `SecateursError` without.

    >>> import torch
    >>> pcas({"0": torch.rand(8)}).name
    'pcas()'
    """
    if numbers is None:
        raise SecateursError(
            "pcas() needs gates that were trained: pcas(channel_attention(model, task, sites, epochs=5)); or secateurs.methods.pcas_, "
            "which does all of it"
        )
    statistic = recorded("pcas", numbers, of="units")
    return Criterion("pcas()", weights_alone, total, (statistic,), units=statistic)


def learned(numbers: Mapping[str, Tensor], by: str, of: Literal["weights", "units"] = "weights") -> Criterion:
    """What was learned beside each weight, or each unit of a site, for the penalty or the loss: what stands lowest goes first.

    >>> import torch
    >>> learned({"weight": torch.ones(1, 2)}, "indicators").name
    'learned by indicators'
    """
    if of == "units":
        statistic = recorded(by, numbers, of="units")
        return Criterion(f"learned by {by}", weights_alone, total, (statistic,), units=statistic)
    statistic = recorded(by, numbers)
    return Criterion(f"learned by {by}", Observed(statistic), total, (statistic,))
