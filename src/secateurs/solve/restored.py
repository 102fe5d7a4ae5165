"""What a choice removes, with what is missed most put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from secateurs.given import SOLVER, require
from secateurs.patterns import as_units, marked, weight_of
from secateurs.solve.reconstruct import GRAM, gram_of
from secateurs.solve.topk import highest
from secateurs.types import PatternError, Scores, SecateursError, Site, Solution, Solver, Statistic, Stats


@dataclass(frozen=True)
class Restored:
    """A choice that removes too much, and then the units back by which its layer's answers to the calibration data get nearest to what they
    were (the second step of 1611.05128).

    Of the units that stay, the fraction ``part`` is chosen so, in ``rounds`` that each look anew at what is missed; the rest by
    ``choice``. What a unit is worth is by how much the squared error of the answers falls if it alone comes back; of units with several
    weights, the sum over these. (The paper leaves the norm of the error open; squares are those of the least squares that follow.) For
    patterns on single weights.

    >>> from torch import nn
    >>> from secateurs import Element, Task, TopK, magnitude, prune_, uniform
    >>> layer, x = nn.Linear(4, 1, bias=False), torch.tensor([[9.0, 0.1, 0.1, 0.1]])
    >>> layer.weight.data = torch.tensor([[0.5, 3.0, 2.0, 1.0]])
    >>> solver, task = Restored(TopK(magnitude()), part=0.5), Task(x, calibration=[(x, None)])
    >>> prune_(layer, Element(), solver, uniform(keep=0.5), task, only="*")["weight"]
    tensor([[ True,  True, False, False]])
    """

    choice: Solver
    part: float = 0.1
    rounds: int = 10

    def __post_init__(self) -> None:
        require("Restored", "choice", self.choice, SOLVER)
        if not (isinstance(self.part, (int, float)) and 0 <= self.part <= 1):
            raise SecateursError(f"Restored: part={self.part} must be a fraction in [0, 1] of the units that stay")
        if not (isinstance(self.rounds, int) and self.rounds >= 1):
            raise SecateursError(f"Restored: rounds={self.rounds} must be a whole number of at least 1")

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys((*self.choice.needs, GRAM)))

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Those of the choice."""
        for site in sites:
            _require_single(site)
            yield from self.choice.scores([site], stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        _require_single(site)
        each = site.each_of(kept)
        back = round(self.part * each)
        first = self.choice(site, site.kept_by(each - back), stats)
        chosen = first.kept
        for left in sorted({back - -(-back * number // self.rounds) for number in range(1, self.rounds + 1)}, reverse=True):
            missed = missed_by(site, chosen, stats).masked_fill(chosen, torch.inf)
            if site.alive is not None:
                missed = missed.masked_fill(~site.alive, -torch.inf)
            chosen = highest(missed, each - left)
            chosen = chosen if site.alive is None else chosen & site.alive
        return Solution(chosen, first.weights)


def _require_single(site: Site) -> None:
    if len(site.members) > 1:
        raise PatternError(
            f"{site.name}: Restored is for patterns on single weights, and its units lie in {len(site.members)}: take Element(), or "
            "a solver such as LeastSquares(TopK(magnitude()))"
        )


def missed_by(site: Site, kept: Tensor, stats: Stats) -> Scores:
    """By how much the squared error of a layer's answers falls if a unit that is gone comes back alone, ``(contests, competitors)``.

    With w what is gone and G the products of the inputs the error is w·G·wᵀ, which without the j-th falls by 2·wⱼ·(w·G)ⱼ − wⱼ²·Gⱼⱼ.
    """
    member = site.members[0]
    if GRAM not in stats.get(member.parameter, {}):
        raise SecateursError(
            f"{site.name}: the inputs of {member.parameter} cannot be seen, so what its units are missed by is not known: take a solver "
            f"that does not ask, such as TopK, or skip=[{site.name!r}]"
        )
    weight = weight_of(member).double()
    gone = member.canonical(weight.masked_fill(marked(site, kept.to(weight.device), 0), 0))
    gram = gram_of(member, stats)[:, :-1, :-1]
    rows = gone.flatten(2)
    falls = 2 * rows * (rows @ gram) - rows.square() * gram.diagonal(dim1=1, dim2=2)[:, None]
    found = torch.empty_like(weight)
    member.canonical(found).copy_(falls.reshape(gone.shape))
    return as_units(site, found).reshape(site.contest_count, prod(site.competitors), -1).sum(2).float()
