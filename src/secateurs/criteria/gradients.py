"""First and second order: what removing a unit does to the loss, from the gradients of some batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.criteria.parts import total, weights_alone
from secateurs.evidence import activation_change, change, gradient, squared_gradient
from secateurs.types import Counted, Criterion, Evidence, Statistic


def taylor(*, activations: bool = False, members: Counted = "producers") -> Criterion:
    """The change of the loss that removing a unit makes, to first order, from the gradients of the calibration batches.

    By weights: (Σ g·w)² over the weights of the unit, the mean over batches (1906.10771). With ``activations=True``, for coupled units
    alone: |Σ g·a| over the numbers that the unit's readers are given, the mean over samples (1611.06440). Needs the task's loss.

    >>> taylor().name, taylor(activations=True).name
    ('taylor()', 'taylor(activations=True)')
    """
    if activations:
        return _of_units("taylor(activations=True)", activation_change())
    return _of_units("taylor()" if members == "producers" else f"taylor(members={members!r})", change(members))


def snip(members: Counted = "producers") -> Criterion:
    """|g·w| of each weight, the gradient being that of all calibration batches, summed over a unit (1810.02340: at initialisation).

    >>> snip().needs[0].name
    'gradient'
    """
    return Criterion("snip()", _Product(gradient(members), 1), total, (gradient(members),), members)


def fisher(members: Counted = "producers") -> Criterion:
    """½·E[g²]·w² summed over a unit: the change of the loss to second order, with the empirical Fisher information for the curvature.

    Gradients are those of whole batches: give batches of one sample for the Fisher information itself (1801.05787, 1905.11530).

    >>> fisher().needs[0].name
    'squared_gradient'
    """
    return Criterion("fisher()", _Product(squared_gradient(members), 2), total, (squared_gradient(members),), members)


def _of_units(name: str, statistic: Statistic) -> Criterion:
    return Criterion(name, weights_alone, total, (statistic,), statistic.members, units=statistic)


@dataclass(frozen=True)
class _Product:
    """|g·w| of the first power, or ½·g²·w² of the squared gradient."""

    statistic: Statistic
    power: int

    def __call__(self, evidence: Evidence) -> Tensor:
        observed = evidence[self.statistic]
        return (observed * evidence.weight).abs() if self.power == 1 else torch.mul(observed, evidence.weight.square()) / 2
