"""First and second order: what removing a unit does to the loss, from the gradients of some batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from secateurs.criteria.normalised import normalised
from secateurs.criteria.parts import mean, total, weights_alone
from secateurs.evidence import (
    activation_change,
    change,
    curvature,
    curvature_of_units,
    gate_importance,
    gradient,
    hessian_gradient,
    input_norm,
    regional_gradient,
    squared_gradient,
    synaptic_flow,
)
from secateurs.types import Counted, Criterion, Evidence, SecateursError, Statistic


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


def fisher(members: Counted = "producers", *, activations: bool = False) -> Criterion:
    """½·E[g²]·w² summed over a unit: the change of the loss to second order, with the empirical Fisher information for the curvature.

    Gradients are those of whole batches: give batches of one sample for the Fisher information itself (1801.05787, 1905.11530). With
    ``activations=True``, for coupled units alone: ½·E[(∂L/∂m)²] by a gate m on what the unit's reader is given, of each sample by itself
    (2204.09656).

    >>> fisher().needs[0].name, fisher(activations=True).needs[0].name
    ('squared_gradient', 'gate_importance')
    """
    if activations:
        return _of_units("fisher(activations=True)", gate_importance())
    return Criterion("fisher()", _Product(squared_gradient(members), 2), total, (squared_gradient(members),), members)


def regional(alpha: float = 100.0) -> Criterion:
    """(α·g + ‖x‖₂)·|w|, summed over a unit: Wanda with the gradients of a region (Wanda++, 2503.04992).

    g is the root mean square over samples of the gradient of the L2 norm of what the region answers, ‖x‖₂ the norm of the weight's input;
    both over all samples here, which scales scores and changes no order. The region is the block with ``walk=in_blocks()``, as published,
    else the whole model. Give batches of one sample. No labels are needed. Raises `SecateursError` for a negative `alpha`.

    >>> regional().name, [statistic.name for statistic in regional().needs]
    ('regional(alpha=100)', ['input_norm(p=2)', 'regional_gradient'])
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < float("inf"):
        raise SecateursError(f"regional(alpha={alpha!r}): alpha is the weight of the gradients, a number that is not negative")
    needs = (input_norm(), regional_gradient())
    return Criterion(f"regional(alpha={alpha:g})", _Regional(alpha, *needs), total, needs)


def obd(
    hessian: Literal["hutchinson", "gauss_newton", "exact"] = "hutchinson",
    probes: int = 4,
    seed: int = 0,
    members: Counted = "producers",
    together: bool = False,
) -> Criterion:
    """½·h·w² summed over a unit, h the diagonal of the second derivatives of the loss: optimal brain damage (LeCun, Denker & Solla 1989).

    The change of the loss where its gradient is zero, and weights do not act together; with ``together=True`` those of a unit do: ½·wᵀHw.
    Below zero where the loss curves downwards, which Gauss–Newton never says. ``hessian`` says how h is found: see
    `secateurs.evidence.curvature`. Needs the task's loss.

    >>> obd("exact").name
    "obd('exact')"
    """
    statistic = curvature(hessian, probes, seed, members)
    name = f"obd{statistic.name.removeprefix('curvature')}"
    if together:
        return _of_units(f"{name[:-1]}, together=True)", curvature_of_units(hessian, probes, seed, members))
    return Criterion(name, _Product(statistic, 2), total, (statistic,), members)


def hessian_trace(
    hessian: Literal["hutchinson", "gauss_newton", "exact"] = "hutchinson",
    probes: int = 4,
    seed: int = 0,
    members: Counted = "producers",
) -> Criterion:
    """The mean of the diagonal of the second derivatives over a layer: how sensitive it is (1911.03852). The same for all units of a layer.

    For an allocator that compares layers, or as a factor: ``magnitude() * hessian_trace()``.

    >>> hessian_trace(probes=2).name
    "hessian_trace('hutchinson', probes=2, seed=0)"
    """
    statistic = curvature(hessian, probes, seed, members)
    name = f"hessian_trace{statistic.name.removeprefix('curvature')}"
    return Criterion(name, _MeanOfLayer(statistic), mean, (statistic,), members)


def grasp(members: Counted = "producers") -> Criterion:
    """w·(Hg) summed over a unit: weights stay whose removal would reduce the flow of gradients most (2002.07376: at initialisation).

    To first order, removing w changes gᵀg by −2·w·Hg. The paper's score is −w·Hg, of which the highest are *removed*; here higher = keep. H
    and g are those of each batch, the mean over batches: give one batch for the paper's.

    >>> grasp().needs[0].name
    'hessian_gradient'
    """
    statistic = hessian_gradient(members)
    return Criterion("grasp()", _Signed(statistic), total, (statistic,), members)


def synflow(members: Counted = "producers") -> Criterion:
    """|∂R/∂w · w| summed over a unit, R what flows through the network of absolute weights when it is given ones (2006.05467).

    Needs neither data nor a loss: ``task.example`` tells the shape. Scores are parts of R; those of a layer sum to at most 1. In rounds
    (`secateurs.methods.synflow_`) no layer is lost as a whole. A LayerNorm, given the same everywhere, lets nothing flow.

    >>> synflow().needs[0].needs_data
    False
    """
    statistic = synaptic_flow(members)
    return Criterion("synflow()", _Product(statistic, 1), total, (statistic,), members)


def head_importance(normalise: bool = True) -> Criterion:
    """The mean over samples of |∂L/∂ξ|, ξ = 1 being a gate on what a head answers (1905.10650); for `Head`, and `Channel` too.

    As in the paper the scores of a layer are divided by their 2-norm (``normalise=False``: they are not): it is
    ``normalised(taylor(activations=True), by="norm")``. Needs the task's loss.

    >>> head_importance().name
    'head_importance()'
    """
    gates = taylor(activations=True)
    return (
        replace(normalised(gates, "norm"), name="head_importance()")
        if normalise
        else replace(gates, name="head_importance(normalise=False)")
    )


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


@dataclass(frozen=True)
class _Signed:
    """The product of each weight with its statistic, signs and all."""

    statistic: Statistic

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.statistic] * evidence.weight


@dataclass(frozen=True)
class _MeanOfLayer:
    """One number for all weights of a layer."""

    statistic: Statistic

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.statistic].mean().reshape((1,) * evidence.weight.ndim)


@dataclass(frozen=True)
class _Regional:
    alpha: float
    norm: Statistic
    gradient: Statistic

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence.weight.abs() * (self.alpha * evidence[self.gradient] + evidence[self.norm])
