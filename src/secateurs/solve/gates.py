"""Units by what their gates mean to the loss, all of a site together; and what the gates of those that stay become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.evidence import gate_fisher
from secateurs.solve.regression import alive_units, require_read_units
from secateurs.solve.topk import highest
from secateurs.types import Scores, SecateursError, Site, Solution, Statistic, Stats

FISHER = gate_fisher()


@dataclass(frozen=True)
class GateFisher:
    """Units without which the loss changes least, all that go from a site together: to second order, with the Fisher information of gates
    on them for the curvature (2204.09656: mask rearrangement).

    It starts from the units whose own gates mean most, then swaps one that stays for one that goes, always the pair that gains most, until
    none does. A score is ½·F of a unit alone, in the measure of the loss, so that sites of all kinds compare. Needs the task's loss, and
    sites whose units one layer reads: heads and inner units of transformers.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, prune_, uniform
    >>> model, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)
    >>> task = Task(data, calibration=[(data, torch.zeros(64, 2))], loss=nn.functional.mse_loss)
    >>> prune_(model, Channel(), GateFisher(), uniform(sparsity=0.5), task).plan["0"]
    4
    """

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (FISHER,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """½·F of each unit alone, ``(1, units)``."""
        for site in sites:
            yield _alone(_fisher_of(site, stats), alive_units(site))

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        fisher, alive = _fisher_of(site, stats), alive_units(site)
        chosen = highest(_alone(fisher, alive), site.each_of(kept))[0] & alive
        return Solution(rearranged(fisher.double().cpu(), chosen, alive)[None])


def _fisher_of(site: Site, stats: Stats) -> Tensor:
    require_read_units(site, "GateFisher")
    found = stats.get(site.name, {})
    if FISHER not in found:
        raise SecateursError(
            f"{site.name}: GateFisher needs {FISHER.name} of its units, which was not observed: give the stats that observe(...) found, or "
            f"skip=[{site.name!r}]"
        )
    return found[FISHER]


def _alone(fisher: Tensor, alive: Tensor) -> Scores:
    return (fisher.diagonal().float().cpu() / 2).masked_fill(~alive, -torch.inf)[None]


def rearranged(products: Tensor, kept: Tensor, alive: Tensor) -> Tensor:
    """A choice of units after all swaps that lower Σ products over the pairs of units that are gone; of those ``alive``, as many stay.

    >>> products = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.2]]).double()
    >>> rearranged(products, torch.tensor([False, False, True]), torch.ones(3, dtype=torch.bool))
    tensor([ True, False, False])
    """
    kept, alone = kept.clone(), products.diagonal()
    least = 1e-12 * float(alone.abs().sum())
    while True:
        gone = alive & ~kept
        back, instead = gone.nonzero().flatten(), kept.nonzero().flatten()
        if not len(back) or not len(instead):
            return kept
        beside = products[:, back].sum(1)
        changes = (alone - 2 * beside)[back][:, None] + (alone + 2 * beside)[instead] - 2 * products[back][:, instead]
        best = int(changes.argmin())
        if not float(changes.flatten()[best]) < -least:
            return kept
        kept[back[best // len(instead)]], kept[instead[best % len(instead)]] = True, False
