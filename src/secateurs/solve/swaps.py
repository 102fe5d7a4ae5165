"""Swaps: a choice of single weights made better, one exchange after the other, until none helps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.given import SOLVER, require
from secateurs.solve.layer import COLUMNS, Layer, layer_of
from secateurs.solve.reconstruct import GRAM
from secateurs.types import PatternError, Scores, Site, Solution, Solver, Statistic, Stats

_NEAR = 128  # weights of a row that are tried first, on either side
_PAIRS = 1 << 23  # pairs that are in memory at once


@dataclass(frozen=True)
class Swaps:
    """Exchanges in each row one weight that stays with one that goes, always the pair that lowers the change of the row's answers most,
    until no pair helps (2512.10922). Starts from what another solver chose, and is never worse.

    With w the row, m its mask and r = w·(1 − m), the answers change by r·G·r in mean square; G are the products of the inputs. How many
    weights of a row stay does not change, nor of N:M how many of a group; the weights keep their values, whatever the first solver made of
    them, so that ``LeastSquares(Swaps(start))`` is what goes with it. The last look at a row takes (features / 2)² steps.

    >>> from torch import nn
    >>> from secateurs import Element, Task, TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> layers, data = [nn.Linear(16, 8) for _ in range(2)], torch.randn(256, 4) @ torch.randn(4, 16)
    >>> _ = layers[1].load_state_dict(layers[0].state_dict())
    >>> before, task, changes = layers[0](data), Task(data, calibration=[(data, None)]), []
    >>> for layer, solver in zip(layers, (TopK(magnitude()), Swaps(TopK(magnitude())))):
    ...     masks = prune_(layer, Element(within="row"), solver, uniform(sparsity=0.5), task, only="*")
    ...     changes.append((layer(data) - before).square().mean())
    >>> bool(changes[1] < 0.3 * changes[0])
    True
    """

    start: Solver

    def __post_init__(self) -> None:
        require("Swaps", "start", self.start, SOLVER)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys((*self.start.needs, GRAM)))

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Those of the solver that it starts from."""
        for site in sites:
            self._layer(site, stats)  # says what it is not defined for
            yield from self.start.scores([site], stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        layer = self._layer(site, stats)
        stays = layer.stays(self.start(site, kept, stats).kept)
        return layer.solution(torch.stack([_Rows(layer, group, stays[group]).exchanged() for group in range(len(stays))]))

    def _layer(self, site: Site, stats: Stats) -> Layer:
        layer = layer_of(site, stats, "Swaps")
        if layer.among is COLUMNS:
            raise PatternError(
                f"{site.name}: Swaps exchanges single weights of a row, so it needs Element() or NofM(2, 4), not {site.pattern}"
            )
        return layer


class _Rows:
    """The rows of one group while weights are exchanged; all float64, ``(rows, features)``."""

    def __init__(self, layer: Layer, group: int, stays: Tensor) -> None:
        size = layer.weight.shape[2]
        self.weight, self.gram = layer.weight[group].double(), layer.gram[group, :size, :size].double()
        self.first, self.stays, self.free = stays, stays.clone(), layer.candidates[group]
        self.among = layer.among.to(stays.device) if isinstance(layer.among, Tensor) else None
        self.own = self.weight.square() * self.gram.diagonal()

    def losses(self, stays: Tensor) -> Tensor:
        """By how much the answers of each row change."""
        gone = self.weight * ~stays
        return ((gone @ self.gram) * gone).sum(1)

    def exchanged(self) -> Tensor:
        """What stays when no exchange helps any more."""
        self.products = (self.weight * ~self.stays) @ self.gram
        before = self.losses(self.first)
        least = 1e-9 * before  # what is rounding is no gain
        rows = torch.arange(len(self.weight), device=self.weight.device)
        while len(rows):
            if self.among is None:
                gains, back, away = self._best(rows, _NEAR)
                stuck = (gains >= -least[rows]).nonzero()[:, 0]
                if len(stuck):  # among the most likely ones there is none: look at all
                    gains[stuck], back[stuck], away[stuck] = self._best(rows[stuck], self.weight.shape[1])
            else:
                gains, back, away = self._best_of_groups(rows)
            helps = gains < -least[rows]
            rows, back, away = rows[helps], back[helps], away[helps]
            self._swap(rows, back, away)
        worse = self.losses(self.stays) > before
        return torch.where(worse[:, None], self.first, self.stays)

    def _swap(self, rows: Tensor, back: Tensor, away: Tensor) -> None:
        """In each of the rows one feature comes back and one goes."""
        self.stays[rows, back], self.stays[rows, away] = True, False
        moved = self.weight[rows, away, None] * self.gram[away] - self.weight[rows, back, None] * self.gram[back]
        self.products.index_add_(0, rows, moved)

    def _alone(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """How the loss changes when one feature comes back, and when one goes; infinite where it may not."""
        cross, own = 2 * self.weight[rows] * self.products[rows], self.own[rows]
        stays, free = self.stays[rows], self.free[rows]
        return (own - cross).masked_fill(stays | ~free, torch.inf), (own + cross).masked_fill(~stays | ~free, torch.inf)

    def _best(self, rows: Tensor, near: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best exchange of each row among the `near` most likely features on either side: its gain (negative), what comes and goes."""
        found = []
        for some in rows.split(max(1, _PAIRS // near**2)):
            coming, going = self._alone(some)
            many = [min(near, max(1, int(side.isfinite().sum(1).max()))) for side in (coming, going)]
            (one, back), (other, away) = (side.topk(k, dim=1, largest=False) for side, k in zip((coming, going), many, strict=True))
            weight = self.weight[some]
            together = (
                self.gram[back[:, :, None], away[:, None]]
                .mul_(weight.gather(1, back)[:, :, None])
                .mul_(weight.gather(1, away)[:, None])
            )
            changes = together.mul_(-2).add_(one[:, :, None]).add_(other[:, None]).flatten(1)
            gains, index = changes.min(1)
            back, away = back.gather(1, (index // many[1])[:, None])[:, 0], away.gather(1, (index % many[1])[:, None])[:, 0]
            found.append((gains, back, away))
        gains, back, away = (torch.cat(parts) for parts in zip(*found, strict=True))
        return gains, back, away

    def _best_of_groups(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same where only the features of one group are exchanged with each other."""
        among = self.among
        assert among is not None
        inside, size = self.gram[among[:, :, None], among[:, None]], among.shape[1]
        found = []
        for some in rows.split(max(1, _PAIRS // inside.numel())):
            (coming, going), weight = (side[:, among] for side in self._alone(some)), self.weight[some][:, among]
            changes = coming[..., None] + going[..., None, :] - 2 * weight[..., None] * weight[..., None, :] * inside
            gains, index = changes.flatten(1).min(1)
            places = among.flatten()
            group, pair = index // size**2, index % size**2
            found.append((gains, places[group * size + pair // size], places[group * size + pair % size]))
        gains, back, away = (torch.cat(parts) for parts in zip(*found, strict=True))
        return gains, back, away
