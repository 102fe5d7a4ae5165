"""Costs that are sums over layers: counted as a whole, layer by layer, or only where a plan has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateurs.costs.busy import checked_activations
from secateurs.costs.workload import Work, workload
from secateurs.types import Alternatives, Cost, Plan, Prepared, SecateursError, Term

Price = Callable[[Work], float]
"""What one product of a pass costs."""


@dataclass(frozen=True)
class Sum:
    """A prepared cost that is the sum of its terms."""

    terms_of: Callable[[Plan | None], Sequence[Term]]

    def __call__(self, plan: Plan | None) -> float:
        counts = {} if plan is None else dict(plan)
        return float(sum(term.value(counts) for term in self.terms(plan)))

    def terms(self, plan: Plan | None) -> Sequence[Term]:
        """The parts of the sum for plans of these sites."""
        return self.terms_of(plan)


_PROMISING = 0.25
"""The sum of several that is told to whoever asks for one is the least where so much of every site is kept: where there is much to gain."""


@dataclass(frozen=True)
class Least:
    """A prepared cost that is the least of several sums.

    Who asks for ``terms`` gets one of the sums, whatever a plan keeps: it is never below the cost, so a budget that it meets is met.
    """

    sums_of: Callable[[Plan | None], Sequence[Sequence[Term]]]

    def __call__(self, plan: Plan | None) -> float:
        return min(_total(terms, {} if plan is None else dict(plan)) for terms in self.sums(plan))

    def sums(self, plan: Plan | None) -> Sequence[Sequence[Term]]:
        """The parts of each sum."""
        return self.sums_of(plan)

    def terms(self, plan: Plan | None) -> Sequence[Term]:
        """The parts of the sum that falls lowest."""
        counts = {} if plan is None else {name: max(1, round(_PROMISING * share.units)) for name, share in plan.shares.items()}
        return min(self.sums(plan), key=lambda terms: _total(terms, counts))


def _total(terms: Sequence[Term], counts: Mapping[str, int]) -> float:
    return float(sum(term.value(counts) for term in terms))


def layerwise(name: str, unit: str, price: Price, activations: Mapping[str, float] | None = None) -> Cost:
    """A cost of your own from what each layer does: the sum of a price over all products of weights with activations, and of activations.

    Of the model as it is, each layer comes with its weight; of a plan, with what the plan leaves (`Work`). ``activations``: layer → the
    fraction of what it takes that is not zero (`activation_density`), which its `Work` tells as ``busy``; layers that are not named there
    take no zeros. Raises `SecateursError` where a name there is of no layer.

    >>> import torch
    >>> outputs = layerwise("outputs", "numbers", lambda work: work.made)
    >>> outputs(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(5, 3))
    50.0
    """
    busy = checked_activations(name, activations) or {}

    def prepare(model: nn.Module, example: Any) -> Prepared:
        load = workload(model, example)
        strange = busy.keys() - set(load.names)
        if strange:
            raise SecateursError(
                f"{name}: activations names {min(strange)!r}, but no layer of this {type(model).__name__} multiplies under that name; "
                "measure them with activation_density(model, task)"
            )
        return Sum(
            lambda plan: [Term(each.name, each.sites, _priced(each.left, price, busy.get(each.name))) for each in load.under(plan)]
        )

    return Cost(name, unit, prepare)


def effective_macs(activations: Mapping[str, float] | None = None) -> Cost:
    """MACs whose weight is not zero and, where `activation_density` is given, whose activation is not either, as if zeros met by chance.

    It is what a machine that skips both multiplies; not a measured time.

    >>> import torch
    >>> effective_macs({"0": 0.5})(nn.Sequential(nn.Linear(8, 2)), torch.zeros(1, 8))
    8.0
    """
    return layerwise("effective_macs", "MACs", lambda work: work.nonzeros * work.positions * work.busy, activations)


def _priced(left: Callable[[Mapping[str, int]], Work], price: Price, busy: float | None) -> Callable[[Mapping[str, int]], float]:
    if busy is None:
        return lambda counts: price(left(counts))
    return lambda counts: price(replace(left(counts), busy=busy))


def terms_of(prepared: Callable[[Plan | None], float], plan: Plan) -> Sequence[Term]:
    """The terms of a cost; of one that does not tell them, a single one that depends on everything."""
    if isinstance(prepared, Prepared):
        return prepared.terms(plan)

    def whole(counts: Mapping[str, int]) -> float:
        return prepared(plan.with_counts(counts))

    return [Term("", tuple(plan), whole)]


def _sums_of(prepared: Callable[[Plan | None], float], plan: Plan) -> Sequence[Sequence[Term]]:
    return prepared.sums(plan) if isinstance(prepared, Alternatives) else [terms_of(prepared, plan)]


class Tally:
    """A cost of a plan that changes site by site: what does not depend on a site is not counted again, and nothing is counted twice.

    >>> import torch
    >>> from secateurs import Channel, find_sites, macs, uniform
    >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3)
    >>> plan = uniform(keep=1.0)(find_sites(model, Channel(), x), lambda: iter([]))
    >>> tally = Tally(macs.prepare(model, x), plan)
    >>> tally.total, tally.at("0", 4), tally.total
    (40.0, 20.0, 40.0)
    >>> tally.move_("0", 6)
    >>> tally.total
    30.0
    """

    def __init__(self, prepared: Callable[[Plan | None], float], plan: Plan) -> None:
        self.counts = dict(plan)
        sums = _sums_of(prepared, plan)
        self._terms = [term for terms in sums for term in terms]
        self._sum_of = [index for index, terms in enumerate(sums) for _ in terms]
        self._of_site: dict[str, list[int]] = {name: [] for name in plan}
        for place, term in enumerate(self._terms):
            for site in term.sites:
                self._of_site[site].append(place)
        self._known: list[dict[tuple[int, ...], float]] = [{} for _ in self._terms]
        self._now = [self._value(place) for place in range(len(self._terms))]
        self._alternatives = len(sums)

    @property
    def total(self) -> float:
        """What the plan costs as it is now."""
        return min(self._sums())

    @property
    def together(self) -> list[tuple[str, ...]]:
        """For each term the sites on which it depends: those whose changes are not just added up."""
        return [term.sites for term in self._terms] if self._alternatives == 1 else [tuple(self.counts)]

    def at(self, site: str, kept: int) -> float:
        """What it would cost if a site kept so many units, the others as they are."""
        return self.total + self.change(site, kept)

    def change(self, site: str, kept: int) -> float:
        """How much more it would cost if a site kept so many units."""
        before, self.counts[site] = self.counts[site], kept
        changes = [0.0] * self._alternatives
        for place in self._of_site[site]:
            changes[self._sum_of[place]] += self._value(place) - self._now[place]
        self.counts[site] = before
        if self._alternatives == 1:
            return changes[0]
        now = self._sums()
        return min(one + change for one, change in zip(now, changes, strict=True)) - min(now)

    def move_(self, site: str, kept: int) -> None:
        """Let a site keep so many units."""
        self.counts[site] = kept
        for place in self._of_site[site]:
            self._now[place] = self._value(place)

    def by_layer(self) -> dict[str, float]:
        """Layer → what it costs now."""
        sums = self._sums()
        least, found = sums.index(min(sums)), dict[str, float]()
        for term, index, value in zip(self._terms, self._sum_of, self._now, strict=True):
            if index == least:
                found[term.layer] = found.get(term.layer, 0.0) + value
        return found

    def _sums(self) -> list[float]:
        sums = [0.0] * self._alternatives
        for index, value in zip(self._sum_of, self._now, strict=True):
            sums[index] += value
        return sums

    def _value(self, place: int) -> float:
        term, known = self._terms[place], self._known[place]
        key = tuple([self.counts[site] for site in term.sites])
        if key not in known:
            known[key] = term.value(self.counts)
        return known[key]
