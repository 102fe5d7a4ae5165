"""Gates on units: 1 on everything that a unit's reader is given, and the gradients of each sample's loss by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateurs.evidence.gradients import Mean
from secateurs.evidence.units import readers_of
from secateurs.types import SecateursError, Seen, Site, Statistic


def gate_importance() -> Statistic:
    """½·E[(∂L/∂m)²] by a gate m on each unit: what the loss changes by without it, to second order, with the diagonal of the empirical
    Fisher information of gates for the curvature (2204.09656).

    >>> gate_importance().needs_loss
    True
    """
    return Statistic("gate_importance", _Start(_squares, joint=False), "value_gradients", "units")


def gate_fisher() -> Statistic:
    """The mean over samples of ∂L/∂mᵢ · ∂L/∂mⱼ by the gates on all units of a site: their empirical Fisher information, ``(units, units)``
    (2204.09656). Float32, 4·units² bytes a site.

    >>> gate_fisher().of
    'units'
    """
    return Statistic("gate_fisher", _Start(_products, joint=True), "value_gradients", "units")


@dataclass(frozen=True)
class _Start:
    of: Callable[[Seen], Tensor]
    joint: bool

    def __call__(self, site: Site) -> Mean:
        readers = len(readers_of(site))
        if readers > 1:
            raise SecateursError(
                f"{site.name}: its units are read by {readers} layers, and a gate on all of these at once is not watched: choose sites "
                f"with one reader, as heads and inner units of transformers have, or skip it with skip=[{site.name!r}]"
            )
        units, joint = (site.contest_count, site.units // site.contest_count), self.joint
        return Mean(site.name, self.of, lambda mean: mean if joint else mean.reshape(units))


def by_gates(seen: Seen) -> Tensor:
    """The gradient of each sample's own loss by the gates, ``(units, samples)``.

    Where a reader is given several rows a sample (the two sentences of a pair), those of one sample stand together, and are added up.

    >>> import torch
    >>> ones = torch.ones(1, 4, 2)
    >>> by_gates(Seen(values=ones, gradient=ones, samples=2))
    tensor([[8., 8.]])
    """
    if seen.values is None or seen.gradient is None:
        raise SecateursError("values and gradients were to be watched, and are not there")
    changes = (seen.values * seen.gradient).sum(2)
    rows = changes.shape[1]
    samples = seen.samples if rows % seen.samples == 0 else rows
    return changes.reshape(len(changes), samples, -1).sum(2) * samples  # the loss is the mean over samples


def _squares(seen: Seen) -> Tensor:
    return by_gates(seen).square().mean(1) / 2


def _products(seen: Seen) -> Tensor:
    gradients = by_gates(seen)
    return gradients @ gradients.T / gradients.shape[1]
