"""Layer after layer through a network, each deciding how much it keeps: what an agent sees, and what it may still do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateurs.allocate import limits_of, plan_of
from secateurs.costs import Tally, macs, workload
from secateurs.costs.workload import Layer
from secateurs.search.wishes import Wished
from secateurs.types import Plan, PlanError, Site, Sites

FEATURES = (
    "index",
    "outputs",
    "inputs",
    "height",
    "width",
    "stride",
    "kernel",
    "MACs",
    "MACs gone so far",
    "MACs of those to come",
    "last action",
)
"""What is told of each layer (1802.03494, section 3.1), each as a fraction of the largest among all."""


@dataclass(frozen=True)
class Stop:
    """A site on the way: what is known of it, and of the layers that make its units."""

    site: Site
    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int
    macs: float


class Course:
    """Sites in the order of the pass. At each an agent says which fraction it would like to keep, and gets as much of it as the budgets
    allow: so much that they can still be met with the least of all that come later (algorithm 1 of 1802.03494, for any costs).

    >>> import torch
    >>> from torch import nn
    >>> from secateurs import Budget, Channel, find_sites
    >>> model, x = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2)), torch.zeros(1, 4)
    >>> sites = find_sites(model, Channel(), x)
    >>> course = Course(sites, Wished("mine", sites, Budget(macs, keep=0.5), floor=1, ceiling=1.0))
    >>> course.begin()
    >>> course.state.shape, course.step(0.9), course.step(1.0), course.done, dict(course.plan)
    ((11,), 0.9, 0.4, True, {'0': 9, '2': 4})
    """

    def __init__(self, sites: Sites, wished: Wished) -> None:
        self._sites, self._wished = sites, wished
        self._limits = limits_of(sites, wished.floor, wished.ceiling)
        everything = {site.name: site.available for site in sites}
        self._whole = plan_of(sites, everything)
        least = self._whole.with_counts({name: limit.low for name, limit in self._limits.items()})
        self.stops = _stops(sites, self._whole)
        self._macs = Tally(macs.prepare(sites.model, sites.example), self._whole)
        self._dense_macs = self._macs.total
        self._tallies = [
            (Tally(budget.cost.prepare(sites.model, sites.example), least), budget.limit or 0.0) for budget in wished.budgets
        ]
        for budget, (tally, limit) in zip(wished.budgets, self._tallies, strict=True):
            if tally.total > limit:
                raise PlanError(
                    f"amc: with the least of each site {budget.cost.name} is {tally.total:g} {budget.cost.unit}, above the budget of "
                    f"{limit:g}: raise the budget, or lower floor="
                )
        self._least = dict(least)
        self.begin()

    def begin(self) -> None:
        """Go back to the first site; nothing is decided."""
        self._place, self._last = 0, 1.0
        self._counts: dict[str, int] = {}
        for name, share in self._whole.shares.items():
            self._macs.move_(name, share.kept)
            for tally, _ in self._tallies:
                tally.move_(name, self._least[name])

    @property
    def done(self) -> bool:
        return self._place == len(self.stops)

    @property
    def plan(self) -> Plan:
        """What was decided; what was not, stays."""
        return self._whole.with_counts(self._counts)

    @property
    def state(self) -> NDArray[np.float32]:
        """The eleven features of the site that is next, in [0, 1]; at the end, those of the last."""
        stop = self.stops[min(self._place, len(self.stops) - 1)]
        later = sum(each.macs for each in self.stops[self._place + 1 :])
        whole = max(self._dense_macs, 1.0)
        found = [
            self._place / max(1, len(self.stops) - 1),
            *(self._relative(part, stop) for part in ("outputs", "inputs", "height", "width", "stride", "kernel", "macs")),
            (self._dense_macs - self._macs.total) / whole,
            later / max(sum(each.macs for each in self.stops), 1.0),
            self._last,
        ]
        return np.clip(np.array(found, dtype=np.float32), 0.0, 1.0)

    def step(self, keep: float) -> float:
        """Let the next site keep such a fraction, or as much as is allowed; gives the fraction that it keeps."""
        site = self.stops[self._place].site
        limit = self._limits[site.name]
        count = self._allowed(site, limit.nearest(keep * site.units))
        self._counts[site.name] = count
        self._macs.move_(site.name, count)
        for tally, _ in self._tallies:
            tally.move_(site.name, count)
        self._place, self._last = self._place + 1, count / max(1, site.units)
        return self._last

    def _allowed(self, site: Site, wanted: int) -> int:
        """The largest number of units up to what is wanted with which the budgets can still be met."""
        limit = self._limits[site.name]
        count = wanted
        while count > limit.low and not all(tally.at(site.name, count) <= most for tally, most in self._tallies):
            count = limit.at_most(count - 1)
        return count

    def _relative(self, part: str, stop: Stop) -> float:
        largest = max(getattr(each, part) for each in self.stops)
        return getattr(stop, part) / largest if largest else 0.0


def _stops(sites: Sites, whole: Plan) -> tuple[Stop, ...]:
    """The sites in the order in which their units are made."""
    layers = workload(sites.model, sites.example).under(whole)
    counts = dict(whole)
    made: list[tuple[int, Stop]] = []
    for site in sites:
        own = _made_by(site, layers)
        works = [layers[place].left(counts) for place in own]
        first = works[0] if works else None
        space = (*first.space, 1, 1)[:2] if first is not None else (1, 1)
        stop = Stop(
            site,
            first.groups * first.outputs if first is not None else site.units,
            first.groups * first.inputs if first is not None else 1,
            space[0],
            space[1],
            max(first.stride, default=1) if first is not None else 1,
            max(first.kernel, default=1) if first is not None else 1,
            float(sum(work.macs for work in works)),
        )
        made.append((own[0] if own else len(layers), stop))
    return tuple(stop for _, stop in sorted(made, key=lambda item: item[0]))


def _made_by(site: Site, layers: Sequence[Layer]) -> list[int]:
    """Where the products stand whose weights make a site's units, or hold them."""
    producers = {member.parameter for member in site.members if member.role == "producer"}
    return [place for place, layer in enumerate(layers) if layer.parameter in producers]
