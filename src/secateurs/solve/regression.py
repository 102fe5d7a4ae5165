"""Channels chosen by how well the next layers' answers can be made without them: LASSO, and greedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.solve.reconstruct import GRAM, reconstructed, require_damping, unit_products
from secateurs.solve.topk import highest
from secateurs.types import PatternError, Scores, Site, Solution, Statistic, Stats


@dataclass(frozen=True)
class Lasso:
    """Channels by L1-regularised regression of the next layers' answers, the penalty raised until the wanted number remains; then least
    squares for the weights that read them (1707.06168).

    Scikit-learn's path of least angles gives every penalty at once. A unit's score is the penalty at which it comes in.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, prune_, uniform
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> prune_(model, Channel(), Lasso(), uniform(sparsity=0.5), Task(data, calibration=[(data, None)])).plan["0"]
    4
    """

    damping: float = 1e-4

    def __post_init__(self) -> None:
        require_damping("Lasso", self.damping)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (GRAM,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """The penalty at which each unit comes in, ``(1, units)``."""
        for site in sites:
            yield _path(site, stats).entries[None]

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        kept, path = site.each_of(kept), _path(site, stats)
        as_many = (path.coefficients != 0).sum(1) == kept
        by_entry = highest(path.entries[None], kept)[0]  # where the path passes over this number
        chosen = path.coefficients[int(as_many.int().argmax())] != 0 if bool(as_many.any()) else by_entry
        return with_least_squares(site, chosen[None], stats, self.damping)


@dataclass(frozen=True)
class ThiNet:
    """Channels one after the other, always the one without which the next layers' answers change least together with those gone already;
    then least squares for the weights that read them (1707.06342).

    >>> from torch import nn
    >>> from secateurs import Channel, Task, prune_, uniform
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> prune_(model, Channel(), ThiNet(), uniform(sparsity=0.5), Task(data, calibration=[(data, None)])).plan["0"]
    4
    """

    damping: float = 1e-4

    def __post_init__(self) -> None:
        require_damping("ThiNet", self.damping)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (GRAM,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """What the answers have changed by when a unit goes, ``(1, units)``: those that go later score higher."""
        for site in sites:
            yield _removals(site, stats)[1][None]

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        kept, (order, _) = site.each_of(kept), _removals(site, stats)
        chosen = torch.zeros(1, site.units, dtype=torch.bool)
        chosen[0, order[len(order) - kept :]] = True
        return with_least_squares(site, chosen, stats, self.damping)


def with_least_squares(site: Site, chosen: Tensor, stats: Stats, damping: float) -> Solution:
    """A choice of units, and least squares for the weights that read them."""
    chosen = chosen if site.alive is None else chosen & site.alive
    solution = Solution(chosen)
    return Solution(chosen, reconstructed(site, solution, stats, damping))


def require_read_units(site: Site, who: str) -> None:
    """Raise `PatternError` where units are not such that other layers read them."""
    if site.contest_count > 1 or len(site.members) == 1:
        raise PatternError(
            f"{site.name}: {who} chooses units that other layers read, so it needs Channel() or Head(), not {site.pattern}"
        )


def _products(site: Site, stats: Stats, who: str) -> Tensor:
    require_read_units(site, who)
    return unit_products(site, stats)


@dataclass(frozen=True)
class _Path:
    """All penalties from the one that leaves nothing on: what remains at each, and the penalty at which each unit comes in."""

    coefficients: Tensor
    entries: Scores


def _path(site: Site, stats: Stats) -> _Path:
    from sklearn.linear_model import lars_path_gram

    products = _products(site, stats, "Lasso").cpu()
    alive = alive_units(site)
    gram = (products[alive][:, alive] / (float(products.diagonal().mean()) or 1.0)).numpy()
    gram[np.diag_indices_from(gram)] += 1e-12  # of units that are alike one comes in
    penalties, _, found = lars_path_gram(gram.sum(1), gram, n_samples=1, method="lasso")
    ever, first = (found != 0).any(1), (found != 0).argmax(1)
    entries = np.asarray(penalties)[np.maximum(first - 1, 0)].astype(np.float64)
    # What never comes in is what the others can stand for; of these the one that adds least goes first.
    entries[~ever] = -1 + gram.diagonal()[~ever] / (1 + gram.diagonal().max())
    whole = torch.full((site.units,), -torch.inf)
    whole[alive] = torch.from_numpy(entries).float()
    coefficients = torch.zeros(found.shape[1], site.units)
    coefficients[:, alive] = torch.from_numpy(np.ascontiguousarray(found.T)).float()
    return _Path(coefficients, whole)


def _removals(site: Site, stats: Stats) -> tuple[list[int], Scores]:
    """The units in the order in which they go, and how much the answers have changed by then."""
    products, there = _products(site, stats, "ThiNet").cpu(), alive_units(site)
    scores = torch.full((site.units,), -torch.inf, dtype=torch.float64)
    with_gone, changed, order = torch.zeros(site.units, dtype=torch.float64), 0.0, []
    for _ in range(int(there.sum())):
        costs = (products.diagonal() + 2 * with_gone).masked_fill(~there, torch.inf)
        index = int(costs.argmin())
        changed += max(0.0, float(costs[index]))  # what goes later never scores lower
        scores[index] = changed
        with_gone += products[index]
        there[index] = False
        order.append(index)
    return order, scores.float()


def alive_units(site: Site) -> Tensor:
    """Which units of a site of one contest are left, ``(units,)``."""
    return torch.ones(site.units, dtype=torch.bool) if site.alive is None else site.alive[0].cpu().clone()
