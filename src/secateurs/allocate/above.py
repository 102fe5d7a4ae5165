"""What a score says by itself: units above a number stay, however many they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

import torch

from secateurs.allocate.apportion import bounds, plan_of
from secateurs.types import Allocator, Plan, Scores, SecateursError, Site, Sites


def above(score: float, *, floor: int = 1, ceiling: float = 1.0) -> Allocator:
    """Keeps the units that score above a number: ``above(0.0)`` by magnitude all that are not zero, such as a penalty has left.

    At least `floor` units of each site stay, and no site loses more than the fraction `ceiling`. Where contests keep the same number each,
    or widths are multiples, that number is the least that keeps every unit above. Raises `SecateursError` for a score that is not finite.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)), Element())
    >>> dict(above(1.0)(sites, lambda: iter([torch.tensor([[4.0, 3.0]]), torch.tensor([[1.0, 0.0]])])))
    {'0': 2, '1': 1}
    """
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not isfinite(score):
        raise SecateursError(f"above(score={score!r}): units stay that score above a finite number, for example above(0.0)")

    def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        return plan_of(sites, {site.name: _kept(site, piece) for site, piece in zip(sites, scores(), strict=True)})

    def _kept(site: Site, scores: Scores) -> int:
        limits, each = bounds(site, floor, ceiling), int(torch.count_nonzero(scores > score, dim=1).max())
        wanted = min(max(site.kept_by(each), limits.low), limits.high)
        kept = limits.at_most(wanted)
        return kept if kept == wanted else limits.after(kept)

    return allocate
