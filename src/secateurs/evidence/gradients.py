"""Sums over batches of products of weights, activations and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from secateurs.types import Counted, Curvature, SecateursError, Seen, Statistic


@dataclass
class Mean:
    """The mean over all batches of something that `of` makes of each, weighted by samples; ``power`` of it at the end."""

    name: str
    of: Callable[[Seen], Tensor]
    finish: Callable[[Tensor], Tensor]
    total: Tensor | None = None
    samples: Tensor | None = None

    sums: ClassVar = ("total", "samples")

    def add(self, seen: Seen) -> None:
        """Add one batch, or one call."""
        found = self.of(seen) * seen.samples
        here = torch.tensor(float(seen.samples))
        self.total = found if self.total is None else self.total + found
        self.samples = here if self.samples is None else self.samples + here

    def result(self) -> Tensor:
        """The mean, finished; raises where nothing was seen."""
        if self.total is None or self.samples is None:
            raise SecateursError(
                f"{self.name}: no calibration batch passed there, so nothing was observed; skip it with skip=[...]"
            )
        return self.finish(self.total / float(self.samples))


@dataclass(frozen=True)
class _Start:
    """What begins a mean; data and no closure, so that statistics go to other processes."""

    of: Callable[[Seen], Tensor]
    finish: Callable[[Tensor], Tensor]

    def __call__(self, watched: Any) -> Mean:
        name = getattr(watched, "parameter", None) or watched.name
        shape = getattr(watched, "shape", None)
        finish = self.finish
        if shape is None:  # a site: results are (contests, competitors)
            units = (watched.contest_count, watched.units // watched.contest_count)
            return Mean(name, self.of, lambda mean: finish(mean).reshape(units))
        return Mean(name, self.of, finish)


def _same(value: Tensor) -> Tensor:
    return value


def _of(seen: Seen) -> tuple[Tensor, Tensor]:
    if seen.values is None or seen.gradient is None:
        raise SecateursError("values and gradients were to be watched, and are not there")
    return seen.values, seen.gradient


def _gradient(seen: Seen) -> Tensor:
    assert seen.gradient is not None
    return seen.gradient


def _squared_gradient(seen: Seen) -> Tensor:
    return _gradient(seen).square()


def gradient(members: Counted = "producers") -> Statistic:
    """The gradient of the loss by each weight, over all calibration batches.

    >>> gradient().needs_loss
    True
    """
    return Statistic("gradient", _Start(_gradient, _same), "weight_gradients", members=members)


def squared_gradient(members: Counted = "producers") -> Statistic:
    """The mean over batches of the squared gradient by each weight: with batches of one sample, the diagonal of the empirical Fisher
    information.

    >>> squared_gradient()
    Statistic(name='squared_gradient')
    """
    return Statistic("squared_gradient", _Start(_squared_gradient, _same), "weight_gradients", members=members)


@dataclass
class _NormOverSamples:
    """The root of the sum of squared gradients over all batches, each as often as it has samples."""

    name: str
    total: Tensor | None = None

    sums: ClassVar = ("total",)

    def add(self, seen: Seen) -> None:
        """Add one batch."""
        found = _squared_gradient(seen) * seen.samples
        self.total = found if self.total is None else self.total + found

    def result(self) -> Tensor:
        """The norm; raises where nothing was seen."""
        if self.total is None:
            raise SecateursError(f"{self.name}: no calibration batch was observed; skip it with skip=[...]")
        return self.total.sqrt()


def _norm_over_samples(watched: Any) -> _NormOverSamples:
    return _NormOverSamples(watched.parameter)


def regional_gradient() -> Statistic:
    """The L2 norm over samples of the gradient of the norm of the answers: of a block's, where it is observed by itself (2503.04992).

    Gradients are those of whole batches: batches of one sample give the paper's. Needs no labels.

    >>> regional_gradient().needs_loss, regional_gradient().needs_gradients
    (False, True)
    """
    return Statistic("regional_gradient", _norm_over_samples, "weight_gradients", loss="answers")


def _squared_change(seen: Seen) -> Tensor:
    values, gradient = _of(seen)
    return (values * gradient).sum(2).square()


def change(members: Counted = "producers") -> Statistic:
    """What removing a unit does to the loss, to first order, squared: the mean over batches of (Σ g·w)² over its weights (1906.10771).

    >>> change().of
    'units'
    """
    return Statistic("change", _Start(_squared_change, _same), "weight_gradients", "units", members)


def _change_of_samples(seen: Seen) -> Tensor:
    values, gradient = _of(seen)
    return (values * gradient).sum(2).abs().mean(1) * values.shape[1]  # of the loss of each sample, not of their mean


def activation_change() -> Statistic:
    """|Σ g·a| over the numbers of a unit that its readers are given, the mean over samples (1611.06440).

    >>> activation_change().watches
    'value_gradients'
    """
    return Statistic("activation_change", _Start(_change_of_samples, _same), "value_gradients", "units")


# ---------------------------------------------------------------- second derivatives


def _halved(value: Tensor) -> Tensor:
    return value / 2


def _curvature(seen: Seen) -> Tensor:
    assert seen.curvature is not None
    return seen.curvature


def curvature(
    hessian: Literal["hutchinson", "gauss_newton", "exact"] = "hutchinson",
    probes: int = 4,
    seed: int = 0,
    members: Counted = "producers",
) -> Statistic:
    """The diagonal of the matrix of second derivatives of the loss by each weight, over all calibration batches.

    - ``"hutchinson"``: the mean of v ⊙ Hv over ``probes`` vectors v of random signs a batch, all watched weights together; two backward
      passes each
    - ``"gauss_newton"``: without second derivatives of the network, the mean of (JᵀSz)² over random signs z, S Sᵀ being those of the loss
      by the answers; never negative, one backward pass each; for a loss that is a mean over samples, of one tensor of at most 1,024
      numbers a sample
    - ``"exact"``: number by number, a backward pass for each weight of at most 16,384

    Raises `SecateursError` for other words, or no probes.

    >>> curvature("exact").needs_loss
    True
    """
    if hessian not in ("hutchinson", "gauss_newton", "exact"):
        raise SecateursError(f'hessian={hessian!r} is none of "hutchinson", "gauss_newton" and "exact"')
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise SecateursError(f"probes={probes!r} must be a number of random vectors, at least 1")
    which = Curvature(hessian) if hessian == "exact" else Curvature(hessian, probes, seed)
    drawn = "" if hessian == "exact" else f", probes={probes}, seed={seed}"
    name = f"curvature({hessian!r}{drawn})"
    return Statistic(name, _Start(_curvature, _same), "weight_curvatures", members=members, curvature=which)


def curvature_of_units(
    hessian: Literal["hutchinson", "gauss_newton", "exact"] = "hutchinson",
    probes: int = 4,
    seed: int = 0,
    members: Counted = "producers",
) -> Statistic:
    """½·wᵀHw of each unit, all its weights together, over all calibration batches; found as `curvature` is, with one random sign a unit.

    >>> curvature_of_units("gauss_newton").of
    'units'
    """
    single = curvature(hessian, probes, seed, members)
    name = f"curvature_of_units{single.name.removeprefix('curvature')}"
    return replace(single, name=name, start=_Start(_curvature, _halved), of="units")


def hessian_gradient(members: Counted = "producers") -> Statistic:
    """The product of the matrix of second derivatives with the gradient, H·g of each batch, the mean over batches.

    >>> hessian_gradient().curvature.of
    'gradient'
    """
    start = _Start(_curvature, _same)
    return Statistic("hessian_gradient", start, "weight_curvatures", members=members, curvature=Curvature("gradient"))


def synaptic_flow(members: Counted = "producers") -> Statistic:
    """The gradient by each absolute weight of what flows through the network of absolute weights, as a part of that flow; needs no data
    (2006.05467).

    >>> synaptic_flow().needs_data
    False
    """
    return Statistic("synaptic_flow", _Start(_gradient, _same), "flow", members=members)


# ---------------------------------------------------------------- activations


def _nonzero(seen: Seen) -> Tensor:
    assert seen.values is not None
    return (seen.values != 0).float().mean((1, 2))


def _mean_size(seen: Seen) -> Tensor:
    assert seen.values is not None
    return seen.values.abs().mean((1, 2))


def _mean_square(seen: Seen) -> Tensor:
    assert seen.values is not None
    return seen.values.square().mean((1, 2))


def _moments(seen: Seen) -> Tensor:
    assert seen.values is not None
    return torch.stack([seen.values.mean((1, 2)), seen.values.square().mean((1, 2))])


def _variance(moments: Tensor) -> Tensor:
    return (moments[1] - moments[0].square()).clamp_min(0)


def nonzero_activations() -> Statistic:
    """The fraction of the numbers that a unit's readers are given which are not zero: 1 - APoZ (1607.03250).

    >>> nonzero_activations()
    Statistic(name='nonzero_activations')
    """
    return Statistic("nonzero_activations", _Start(_nonzero, _same), "values", "units")


def activation_size(p: Literal[1, 2] = 1) -> Statistic:
    """The mean size of the numbers that a unit's readers are given, |a| or the root of the mean a².

    >>> activation_size(2)
    Statistic(name='activation_size(p=2)')
    """
    start = _Start(_mean_size, _same) if p == 1 else _Start(_mean_square, torch.sqrt)
    return Statistic(f"activation_size(p={p})", start, "values", "units")


def _turned(seen: Seen) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(seen.inputs[0], seen.output, dim=-1).mean()


def _values(seen: Seen) -> Tensor:
    assert seen.values is not None
    return seen.values


def stream_change() -> Statistic:
    """1 − the mean cosine of the stream before a unit and behind it (2403.03853).

    >>> stream_change().watches
    'stream'
    """
    return Statistic("stream_change", _Start(_turned, _same), "stream", "units")


def loss_rise() -> Statistic:
    """How much the mean loss rises without each unit.

    >>> loss_rise().needs_data
    False
    """
    return Statistic("loss_rise", _Start(_values, _same), "removals", "units")


def activation_variance() -> Statistic:
    """The variance of the numbers that a unit's readers are given, over samples and places.

    >>> activation_variance()
    Statistic(name='activation_variance')
    """
    return Statistic("activation_variance", _Start(_moments, _variance), "values", "units")
