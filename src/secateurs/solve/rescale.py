"""One number for each unit that stays, folded into the weights that read it, so that these answer as before."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateurs.given import SOLVER, require
from secateurs.patterns import as_units, weight_of
from secateurs.solve.reconstruct import GRAM, cholesky_solve, require_damping, unit_products
from secateurs.solve.regression import alive_units, require_read_units
from secateurs.types import Scores, SecateursError, Site, Solution, Solver, Statistic, Stats

_LARGEST = 10.0
"""No unit is to count more than so many times: where a fit says so, its data are too few (as in the paper's code)."""


@dataclass(frozen=True)
class Rescale:
    """After any choice, each unit that stays is multiplied by a number, by least squares: so that those who read it answer as before
    (2204.09656: mask tuning). Far fewer numbers are fitted than by `LeastSquares`, from far less data.

    With a walk in order each makes up for what it loses of the answers to what it is given then. ``damping``, a part of the units' mean
    square, holds the numbers near 1. Where a number would be beyond ±10 all of its site stay 1, with a warning.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> model, data = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(256, 4)
    >>> before, task = model(data), Task(data, calibration=[(data, None)])
    >>> masks = prune_(model, Channel(), Rescale(TopK(magnitude())), uniform(sparsity=0.25), task)
    >>> bool((model(data) - before).square().mean() < 0.3 * before.var())
    True
    """

    choice: Solver
    damping: float = 1e-2

    def __post_init__(self) -> None:
        require("Rescale", "choice", self.choice, SOLVER)
        require_damping("Rescale", self.damping)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys((*self.choice.needs, GRAM)))

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Those of the choice."""
        for site in sites:
            require_read_units(site, "Rescale")
            yield from self.choice.scores([site], stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        require_read_units(site, "Rescale")
        solution = self.choice(site, kept, stats)
        numbers = self._numbers(site, solution.kept[0].cpu(), stats)
        weights = dict(solution.weights)
        for member in site.members:
            if member.role == "consumer":
                weight = weights.get(member.parameter, weight_of(member)).clone()
                view = member.cut(member.canonical(weight))
                view.mul_(numbers.to(view).reshape(-1, *(1,) * (view.ndim - 1)))
                weights[member.parameter] = weight
        return Solution(solution.kept, weights)

    def _numbers(self, site: Site, stay: Tensor, stats: Stats) -> Tensor:
        """What each unit is multiplied by, ``(units,)``; of those that go, 1."""
        numbers, products = torch.ones(site.units, dtype=torch.float64), unit_products(site, stats).cpu()
        if not bool(stay.any()):
            return numbers
        wanted = products[:, alive_units(site)].sum(1)
        ridge = self.damping * (float(products.diagonal().mean()) or 1.0)
        system = products[stay][:, stay] + ridge * torch.eye(int(stay.sum()), dtype=torch.float64)
        fitted = cholesky_solve(system, (wanted[stay] + ridge)[:, None], site.name)[:, 0]
        if (largest := float(fitted.abs().max())) > _LARGEST:
            warnings.warn(
                f"{site.name}: its units stay as they are, as the fit would count one {largest:.0f} times: give more data, or a larger "
                "damping=",
                stacklevel=2,
            )
            return numbers
        numbers[stay] = fitted
        return numbers


@dataclass(frozen=True)
class Chosen:
    """The units that masks keep, whatever their number: for solvers that adjust what stays after a choice that was made before.

    Raises `SecateursError` where the plan says another number.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> model, task = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Task(torch.zeros(1, 4))
    >>> masks = prune_(model, Channel(), TopK(magnitude()), uniform(sparsity=0.5), task)
    >>> again = prune_(model, Channel(), Chosen(masks), masks.plan, task)
    >>> all(torch.equal(again[name], masks[name]) for name in masks)
    True
    """

    masks: Mapping[str, Tensor] = field(repr=False)

    needs = ()

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """1 for the units that stay, else 0."""
        for site in sites:
            yield self._kept(site).float()

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        return Solution(self._kept(site))

    def _kept(self, site: Site) -> Tensor:
        index = next((index for index, member in enumerate(site.members) if member.parameter in self.masks), None)
        if index is None:
            raise SecateursError(f"{site.name}: the masks say nothing of it; they hold {', '.join(list(self.masks)[:3])}, …")
        units = as_units(site, self.masks[site.members[index].parameter], index)
        return units.reshape(site.contest_count, site.units // site.contest_count, -1).any(2)
