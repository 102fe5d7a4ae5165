"""Scores of one site in the measure of that site, so that layers of other sizes and scales can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from secateurs.given import CRITERION, require
from secateurs.types import Criterion, SecateursError

Measure = Literal["mean", "max", "norm", "deviation"]
"""What the scores of a site are divided by: their mean or largest size, their Euclidean norm, or their standard deviation."""


def normalised(criterion: Criterion, by: Measure = "mean") -> Criterion:
    """A criterion's scores, divided site by site by their mean size, largest size, norm (1611.06440) or standard deviation.

    Which units of a site stay is the same; how many of each is, where one ranking goes over many sites (`global_threshold`,
    ``within="model"``). Units that are gone already do not count. A site whose units all score 0 keeps its zeros.

    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Filter, find_sites
    >>> from secateurs.solve import scores_of
    >>> layer = nn.Linear(1, 2)
    >>> layer.weight.data = torch.tensor([[30.0], [10.0]])
    >>> scores_of(find_sites(layer, Filter(), only="*")[0], normalised(magnitude()), {})
    tensor([[1.5000, 0.5000]])
    """
    require("normalised", "criterion", criterion, CRITERION)
    if by not in get_args(Measure):
        raise SecateursError(f"normalised(by={by!r}): scores are divided by one of {', '.join(get_args(Measure))}")
    return replace(criterion, name=f"normalised({criterion.name}, by={by!r})", normalise=_Divided(by, criterion.normalise))


@dataclass(frozen=True)
class _Divided:
    """Scores ``(contests, competitors)`` divided by one number, that of the units that are left."""

    by: Measure
    first: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def __call__(self, scores: Tensor, alive: Tensor | None) -> Tensor:
        if self.first is not None:
            scores = self.first(scores, alive)
        left = (scores if alive is None else scores[alive]).double()
        if not left.numel():
            return scores
        measure = self._measure(left)
        return (scores / measure.clamp_min(torch.finfo(torch.float64).tiny)).float() if measure > 0 else torch.zeros_like(scores)

    def _measure(self, left: Tensor) -> Tensor:
        match self.by:
            case "mean":
                return left.abs().mean()
            case "max":
                return left.abs().max()
            case "norm":
                return torch.linalg.vector_norm(left)
            case "deviation":
                return left.std(correction=0)
