"""The plainest solver: the units with the highest scores stay, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from secateurs.given import CRITERION, require
from secateurs.patterns import joined_scores, unit_scores, weight_of
from secateurs.select import kth_largest
from secateurs.types import (
    Criterion,
    Evidence,
    NonFiniteError,
    PatternError,
    Scores,
    SecateursError,
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
            yield self._scores(site, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        each = site.each_of(kept)
        chosen = highest(self._scores(site, stats), each)
        return Solution(chosen if site.alive is None else chosen & site.alive)

    def _scores(self, site: Site, stats: Stats) -> Scores:
        evidence = evidence_of(site, self.criterion, stats)
        if len(site.members) == 1:
            scores = unit_scores(site, self.criterion, evidence[0][1])
        else:
            scores = joined_scores(site, self.criterion, evidence)
        _require_finite(scores, [weight_of(site.members[index]) for index, _ in evidence], site, self.criterion)
        return scores if site.alive is None else scores.masked_fill(~site.alive, -torch.inf)


def evidence_of(site: Site, criterion: Criterion, stats: Stats) -> list[tuple[int, Evidence]]:
    """The evidence of the members whose elements count in a score, by index: the weights that make the units, or all.

    Raises `PatternError` where a weight has no values, `SecateursError` where what the criterion needs of it was not observed.

    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Channel, find_sites
    >>> site = find_sites(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), Channel(), torch.zeros(1, 3))[0]
    >>> [evidence.name for _, evidence in evidence_of(site, magnitude(), {})]
    ['0.weight']
    >>> [evidence.name for _, evidence in evidence_of(site, magnitude(members="all"), {})]
    ['0.weight', '1.weight', '0.bias']
    """
    made = [index for index, member in enumerate(site.members) if member.role == "producer" and member.weight.ndim > 1]
    counted = made if criterion.members == "producers" and made else range(len(site.members))
    return [(index, _evidence(site, index, criterion, stats)) for index in counted]


def _evidence(site: Site, index: int, criterion: Criterion, stats: Stats) -> Evidence:
    member = site.members[index]
    weight = weight_of(member)
    if weight.is_meta:
        raise PatternError(f"{site.name}: its weight is on the meta device and has no values; load the weights first")
    observed = stats.get(member.parameter, {})
    for statistic in criterion.needs:
        if statistic not in observed:
            why = "give the stats that observe(...) found"
            if member.role != "producer":
                why = 'of coupled weights only those that make the units are; count those alone, with members="producers"'
            raise SecateursError(
                f"{site.name}: {criterion.name} needs {statistic.name} of {member.parameter}, which was not observed: "
                f"{why}, or skip=[{site.name!r}]"
            )
    return Evidence(member.parameter, member.canonical(weight).float(), observed)


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


def _require_finite(scores: Scores, weights: list[Tensor], site: Site, criterion: Criterion) -> None:
    low, high = torch.aminmax(scores)
    if isfinite(float(low)) and isfinite(float(high)):
        return
    count = sum(int((~torch.isfinite(weight)).sum()) for weight in weights)
    if count:
        raise NonFiniteError(
            f"{site.name}: {count} of its {sum(weight.numel() for weight in weights)} weights are NaN or infinite; "
            f"restore a checkpoint from before they diverged, or skip=[{site.name!r}]"
        )
    raise NonFiniteError(
        f"{site.name}: {criterion.name} gave a score that is NaN or infinite from finite weights; look at what it observed"
    )
