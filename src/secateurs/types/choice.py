"""Solvers choose the units that stay, and may adjust the weights of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from secateurs.types.evidence import Statistic, Stats
from secateurs.types.units import Site

Scores = Tensor
"""``(contests, competitors)``, float32; higher = keep; only units of one contest are compared."""


Masks = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; ``True`` = kept."""


# ---------------------------------------------------------------- which ones


@dataclass(frozen=True)
class Solution:
    """What a solver decided for one site: which units stay (bool, ``(contests, competitors)``), and what the weights become.

    ``weights`` maps parameter names to new values, of weights of the site and of the biases beside them; parameters that are not named
    keep theirs.
    """

    kept: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class Solver(Protocol):
    """Chooses the units that a site keeps, and may adjust the weights that stay."""

    @property
    def needs(self) -> tuple[Statistic, ...]: ...

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]: ...

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution: ...
