"""What is lost against what it costs: the choices of all levers, and plans found among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secateurs.allocate.account import Account, Ledger
from secateurs.allocate.apportion import plan_of
from secateurs.allocate.budget import unreachable
from secateurs.allocate.filling import by_loss, fill_
from secateurs.allocate.levers import Lever, LossesOf, levers_of, losses_of
from secateurs.types import NonFiniteError, Plan, PlanError, Scores, Sites

Numbers = NDArray[np.float64]
Choice = tuple[int, ...]
"""For each lever the number of what it keeps among its counts."""

Solve = Callable[[Sequence[Numbers], Sequence[Numbers], Numbers], Choice | None]
"""``(losses, costs, limits)`` → a choice with little loss within the limits, if one is found: each lever has ``(choices,)`` losses and
``(choices, budgets)`` costs, and both add up over levers."""


@dataclass(frozen=True)
class Weighing:
    """Levers, the numbers of units that each may keep (ascending), what is lost there, and the budgets."""

    sites: Sites
    levers: Sequence[Lever]
    counts: Sequence[tuple[int, ...]]
    losses: Sequence[Numbers]
    account: Account
    losses_of: LossesOf

    @staticmethod
    def of(
        account: Account,
        sites: Sites,
        scores: Callable[[], Iterator[Scores]],
        levels: int,
        losses: Callable[[Sites], LossesOf] | None,
        floor: int,
        ceiling: float,
        same_in_every_block: bool,
    ) -> Weighing:
        """Of at most so many numbers of units a site; what is lost is the sum of the scores that go, or what ``losses`` says."""
        levers = levers_of(sites, floor, ceiling, same_in_every_block)
        counts = [lever.grid(levels) for lever in levers]
        lost: LossesOf = (lambda some, of: losses_of(sites, scores(), some, of)) if losses is None else losses(sites)
        found = [np.array(each) for each in lost(levers, counts)]
        wrong = next((lever for lever, each in zip(levers, found, strict=True) if not np.isfinite(each).all()), None)
        if wrong is not None:
            raise NonFiniteError(f"{wrong.whole.name}: what it loses is not finite, so that nothing can be weighed against it")
        return Weighing(sites, levers, counts, found, account, lost)

    def kept(self, choice: Choice) -> dict[str, int]:
        """Site → units, of a choice."""
        found: dict[str, int] = {}
        for lever, counts, number in zip(self.levers, self.counts, choice, strict=True):
            found |= lever.kept(counts[number])
        return found

    def costs(self, choice: Choice) -> Numbers:
        """What a choice costs by each budget."""
        self.ledger.move_(self.kept(choice))
        return np.array(self.ledger.now)

    def loss(self, choice: Choice) -> float:
        """What a choice loses."""
        return float(sum(losses[number] for losses, number in zip(self.losses, choice, strict=True)))

    def fits(self, choice: Choice) -> bool:
        self.costs(choice)
        return self.account.meet(self.ledger.now)

    @cached_property
    def ledger(self) -> Ledger:
        """The plan that is looked at, at first the densest."""
        return Ledger(self.account, plan_of(self.sites, self.kept(self.densest)))

    @property
    def densest(self) -> Choice:
        return tuple(len(counts) - 1 for counts in self.counts)

    @cached_property
    def adds_up(self) -> bool:
        """Whether what levers cost just adds up, so that none needs to know what others keep."""
        owner = {site.name: number for number, lever in enumerate(self.levers) for site in lever.group}
        return all(len({owner[site] for site in sites}) < 2 for sites in self.ledger.together)

    def changes(self, choice: Choice) -> list[Numbers]:
        """How much more everything costs where one lever keeps something else, and the others what the choice says."""
        now = self.costs(choice)
        return [
            np.array([self.ledger.at(lever.kept(count)) for count in counts]) - now
            for lever, counts in zip(self.levers, self.counts, strict=True)
        ]

    def start(self) -> Choice:
        """A choice within the budgets: all keep about the same fraction, as large as it can be; raises `PlanError` where there is none."""
        low, high = 0, max(self.densest)
        least = max(1, high)

        def at(level: int) -> Choice:
            return tuple(level * top // least for top in self.densest)

        if not self.fits(at(0)):
            return self._descended(at(0))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(at(middle)) else (low, middle - 1)
        return at(low)

    def _descended(self, choice: Choice) -> Choice:
        """From the sparsest choice, lever by lever to what costs less: where a cost does not rise with every unit."""
        sparsest, seen = choice, []
        for _ in self.levers:
            before = choice
            for place, counts in enumerate(self.counts):
                tried = [(*choice[:place], number, *choice[place + 1 :]) for number in range(len(counts))]
                costs = [self.costs(each) for each in tried]
                seen += costs
                over = [self._over(cost) for cost in costs]
                if min(over) < over[choice[place]]:
                    choice = tried[int(np.argmin(over))]
            if self.fits(choice):
                return choice
            if choice == before:
                break
        raise PlanError(unreachable(self.account, [self.costs(sparsest).tolist(), *(cost.tolist() for cost in seen)]))

    def _over(self, cost: Numbers) -> float:
        limits = np.array(self.account.limits)
        return float(np.maximum(cost / limits - 1, 0).sum())

    def finer(self, choice: Choice, levels: int) -> tuple[Weighing, Choice] | None:
        """The same with at most so many counts between those beside the chosen ones, and the choice; ``None`` where there are none."""
        counts = [
            lever.grid(levels, *_beside(each, number)) for lever, each, number in zip(self.levers, self.counts, choice, strict=True)
        ]
        now = [each[number] for each, number in zip(self.counts, choice, strict=True)]
        counts = [tuple(sorted({*each, count})) for each, count in zip(counts, now, strict=True)]
        if all(set(each) <= set(before) for each, before in zip(counts, self.counts, strict=True)):
            return None
        losses = [np.array(each) for each in self.losses_of(self.levers, counts)]
        finer = Weighing(self.sites, self.levers, counts, losses, self.account, self.losses_of)
        return finer, tuple(each.index(count) for each, count in zip(counts, now, strict=True))

    def filled(self, choice: Choice) -> Plan:
        """The plan of a choice, with what still fits beside it."""
        self.costs(choice)
        fill_(self.levers, self.ledger, by_loss(self.losses_of, self.levers, self.ledger.plan))
        plan = self.ledger.plan
        return replace(plan, promised=self.account.promised(plan))


def _beside(counts: Sequence[int], number: int) -> tuple[int, int]:
    """The counts on both sides of one."""
    return counts[max(0, number - 1)], counts[min(len(counts) - 1, number + 1)]


# ---------------------------------------------------------------- costs that do not add up


_ROUNDS, _TRIES = 8, 12


def settled(weighing: Weighing, solve: Solve) -> Choice:
    """The best choice that is found where costs are taken to add up, exactly so if they do.

    Else they are told around a choice, a better one is found, told anew around that, and so on; then levers exchange units.
    """
    limits, start = np.array(weighing.account.limits), weighing.start()
    if weighing.adds_up:
        found = solve(weighing.losses, weighing.changes(start), limits - weighing.costs(start))
        return _better(weighing, [start, found])
    best = start
    for reference in (start, weighing.densest):
        for _ in range(_ROUNDS):
            found = _around(weighing, solve, reference, limits)
            reference = _better(weighing, [best, found])
            if reference == best:
                break
            best = reference
    return exchanged(weighing, best)


def _around(weighing: Weighing, solve: Solve, reference: Choice, limits: Numbers) -> Choice | None:
    """A choice within the budgets by costs told around a reference, with less room where it turns out that they were told too low."""
    changes = weighing.changes(reference)
    room = limits - weighing.costs(reference)
    for _ in range(_TRIES):
        found = solve(weighing.losses, changes, room)
        if found is None or weighing.fits(found):
            return found
        room = room - np.maximum(weighing.costs(found) - limits, 0)
    return None


def _better(weighing: Weighing, choices: Sequence[Choice | None]) -> Choice:
    """Of choices the one with the least loss within the budgets; the first of equals."""
    fitting = [choice for choice in choices if choice is not None and weighing.fits(choice)]
    return min(fitting, key=weighing.loss)


def exchanged(weighing: Weighing, choice: Choice, rounds: int = 100) -> Choice:
    """A choice within the budgets from which no lever can take anything from another, so that less is lost: a local search.

    Tried are: one goes down by one or two of its counts, and another up as far as then fits; one goes up, and another down until it fits.
    """
    for _ in range(rounds):
        improved = False
        for one in range(len(choice)):
            better = _best_exchange(weighing, choice, one)
            if better is not None:
                choice, improved = better, True
        if not improved:
            break
    return choice


def _best_exchange(weighing: Weighing, choice: Choice, one: int) -> Choice | None:
    """The best exchange in which a lever takes part, if one loses less."""
    best, least = None, weighing.loss(choice) - 1e-12 * (1 + abs(weighing.loss(choice)))
    for number in _near(choice[one], len(weighing.counts[one])):
        changed = (*choice[:one], number, *choice[one + 1 :])
        if weighing.fits(changed) and weighing.loss(changed) < least:
            best, least = changed, weighing.loss(changed)
        for other in range(len(choice)):
            if other == one:
                continue
            found = _fitted(weighing, changed, other, choice[other])
            if found is not None and weighing.loss(found) < least:
                best, least = found, weighing.loss(found)
    return best


def _near(number: int, many: int, reach: int = 2) -> list[int]:
    return [other for other in range(max(0, number - reach), min(many, number + reach + 1)) if other != number]


def _fitted(weighing: Weighing, choice: Choice, place: int, now: int) -> Choice | None:
    """A choice with one lever as dense as fits without a gap, found upwards from what it keeps, or downwards where that does not fit."""

    def at(number: int) -> Choice:
        return (*choice[:place], number, *choice[place + 1 :])

    if not weighing.fits(at(now)):
        return next((at(number) for number in range(now - 1, -1, -1) if weighing.fits(at(number))), None)
    while now + 1 < len(weighing.counts[place]) and weighing.fits(at(now + 1)):
        now += 1
    return at(now)
