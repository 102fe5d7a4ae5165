"""The plainest solver: the units with the highest scores stay, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.given import CRITERION, require
from secateurs.select import kth_largest
from secateurs.solve.scoring import scores_of
from secateurs.types import (
    Criterion,
    Scores,
    Site,
    Solution,
    Statistic,
    Stats,
)

_FEW, _PIECE = 1 << 16, 1 << 22


@dataclass(frozen=True)
class TopK:
    """Keeps the units that a criterion scores highest, exactly as many as the plan says; ties go to the first.

    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Element, find_sites
    >>> layer = nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -4.0, 1.0, 0.5]])
    >>> TopK(magnitude())(find_sites(layer, Element())[0], 2, {}).kept
    tensor([[ True,  True, False, False]])
    """

    criterion: Criterion

    def __post_init__(self) -> None:
        require("TopK", "criterion", self.criterion, CRITERION)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return self.criterion.needs

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Scores ``(contests, competitors)`` of each site in turn; units that are gone already score −∞.

        Raises `NonFiniteError` that names the layer where a weight or a score is NaN or infinite.
        """
        for site in sites:
            yield scores_of(site, self.criterion, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        each = site.each_of(kept)
        chosen = highest(scores_of(site, self.criterion, stats), each)
        return Solution(chosen if site.alive is None else chosen & site.alive)


def highest(scores: Scores, k: int) -> Tensor:
    """Bool tensor that marks the k highest of each row of ``(contests, competitors)``; exactly k, ties to the first.

    >>> highest(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    contests, competitors = scores.shape
    if k == 0 or k == competitors:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    if contests == 1 and competitors > _FEW:
        threshold = kth_largest(lambda: scores[0].split(_PIECE), k, competitors)
        value, missing = torch.tensor(threshold.value, device=scores.device), k - threshold.above
        kept = scores > value
        kept[0, (scores[0] == value).nonzero()[:missing, 0]] = True
        return kept
    value = scores.kthvalue(competitors - k + 1, dim=1, keepdim=True).values
    kept, ties = scores > value, scores == value
    return kept | (ties & (ties.cumsum(1, dtype=torch.int32) <= k - kept.sum(1, keepdim=True)))
