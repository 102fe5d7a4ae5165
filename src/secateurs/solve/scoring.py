"""From a criterion and what was observed to a score for each unit."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, prod

import torch
from torch import Tensor

from secateurs.patterns import NORMALISATIONS, joined_scores, unit_elements, unit_scores, weight_of
from secateurs.types import Counted, Criterion, Evidence, NonFiniteError, PatternError, Scores, SecateursError, Site, Stats


def scores_of(site: Site, criterion: Criterion, stats: Stats) -> Scores:
    """What a criterion says of each unit of a site, ``(contests, competitors)``, float32; units that are gone already score −∞.

    Raises `NonFiniteError` that names the layer where a weight or a score is NaN or infinite, `SecateursError` where what the criterion
    needs was not observed, `PatternError` where it is not defined for such units.

    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Filter, find_sites
    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> scores_of(find_sites(layer, Filter(), only="*")[0], magnitude(), {})
    tensor([[5., 1.]])
    """
    scores = _scores(site, criterion, stats)
    return scores if site.alive is None else scores.masked_fill(~site.alive, -torch.inf)


def _scores(site: Site, criterion: Criterion, stats: Stats) -> Scores:
    scores = _plain_scores(site, criterion, stats)
    return scores if criterion.normalise is None else criterion.normalise(scores, site.alive)


def _plain_scores(site: Site, criterion: Criterion, stats: Stats) -> Scores:
    if criterion.factors:
        left, right = (_scores(site, factor, stats) for factor in criterion.factors)
        return left * right
    weights: list[Tensor] = []
    if criterion.units is not None:
        scores = _observed_units(site, criterion, stats)
    else:
        evidence = evidence_of(site, criterion, stats)
        scores, weights = joined(site, criterion, evidence), [weight_of(site.members[index]) for index, _ in evidence]
    _require_finite(scores, weights, site, criterion)
    return scores


def joined(site: Site, criterion: Criterion, evidence: Sequence[tuple[int, Evidence]]) -> Scores:
    """Scores of units, ``(contests, competitors)``, from the evidence of the weights in which they lie, whether that is one or many.

    >>> from torch import nn
    >>> from secateurs.criteria import fpgm
    >>> from secateurs.patterns import Filter, find_sites
    >>> site = find_sites(nn.Linear(1, 3), Filter(), only="*")[0]
    >>> joined(site, fpgm(), [(0, Evidence("weight", torch.tensor([[[0.0], [1.0], [4.0]]])))])
    tensor([[5., 4., 7.]])
    """
    if criterion.compare is not None:
        units = (site.contest_count, prod(site.competitors))
        rows = [unit_elements(site, criterion, each, index).reshape(*units, -1) for index, each in evidence]
        return criterion.compare(rows[0] if len(rows) == 1 else torch.cat(rows, dim=2))
    if len(site.members) == 1:
        return unit_scores(site, criterion, evidence[0][1])
    return joined_scores(site, criterion, evidence)


def _observed_units(site: Site, criterion: Criterion, stats: Stats) -> Scores:
    found = stats.get(site.name, {})
    if criterion.units is None or criterion.units not in found:
        raise SecateursError(
            f"{site.name}: {criterion.name} needs what is observed of whole units, which was not: give the stats that observe(...) "
            f"found, or skip=[{site.name!r}]"
        )
    return found[criterion.units].reshape(site.contest_count, prod(site.competitors))


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
    return [(index, _evidence(site, index, criterion, stats)) for index in _members(site, criterion.members)]


def _members(site: Site, counted: Counted) -> list[int]:
    """The members whose elements count; where no weight makes or reads the units, all."""
    if counted == "norms":
        found = [
            index
            for index, member in enumerate(site.members)
            if isinstance(member.module, NORMALISATIONS) and member.attribute == "weight"
        ]
        if not found:
            raise PatternError(
                f"{site.name}: no normalisation with a scale lies on its units: take Channel() on a model with BatchNorm, another "
                f"criterion, or skip=[{site.name!r}]"
            )
        return found
    role = {"producers": "producer", "consumers": "consumer"}.get(counted)
    found = [index for index, member in enumerate(site.members) if member.role == role and member.weight.ndim > 1]
    return found or list(range(len(site.members)))


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
                why = 'it cannot be observed of every weight; count those alone that make the units, with members="producers"'
            raise SecateursError(
                f"{site.name}: {criterion.name} needs {statistic.name} of {member.parameter}, which was not observed: "
                f"{why}, or skip=[{site.name!r}]"
            )
    return Evidence(member.parameter, member.canonical(weight).float(), observed)


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
