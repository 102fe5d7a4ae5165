"""A plan made as dense as budgets admit: the next unit of any site would break one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from secateurs.allocate.account import Ledger
from secateurs.allocate.levers import Lever, LossesOf, losses_of, next_scores
from secateurs.types import Plan, Scores, Sites

_MANY = 4096
"""Of levers with more numbers to choose from, not all scores are sorted."""

_JUMPS = 512
"""Of levers with more numbers to choose from, not all are tried: widths have cliffs, numbers of single weights have none."""

Worth = Callable[[Lever, int, int, float], float]
"""What it is worth that a lever goes from one count to a larger one, which takes such a part of the budgets."""


def fill_(levers: Sequence[Lever], ledger: Ledger, worth: Worth) -> None:
    """Give units one by one, those first that are worth most, until none fits any more.

    A cost may be one that falls where a site grows (widths that a machine likes): where the next unit of a lever does not fit, a larger
    number that does is taken. Of levers with more than 512 numbers only those are seen that halving finds.
    """
    _by_steps_(levers, ledger, worth)
    while _by_jump_(levers, ledger):
        _by_steps_(levers, ledger, worth)


@dataclass(frozen=True)
class _Offer:
    lever: Lever
    count: int
    worth: float


def _by_steps_(levers: Sequence[Lever], ledger: Ledger, worth: Worth) -> None:
    free = list(levers)
    while free:
        offers = [(lever, _offer(lever, ledger, worth)) for lever in free]
        free = [lever for lever, offer in offers if offer is not None]
        best = max((offer for _, offer in offers if offer is not None), key=lambda offer: offer.worth, default=None)
        if best is not None:
            ledger.move_(best.lever.kept(best.count))


def _offer(lever: Lever, ledger: Ledger, worth: Worth) -> _Offer | None:
    """What a lever could have: its next unit, of those with very many as much as fits."""
    now, before = lever.now(ledger.counts), ledger.now
    count = lever.bounds.after(now)
    if count == now or count > lever.bounds.high:
        return None
    cost = ledger.at(lever.kept(count))
    if not ledger.account.meet(cost):
        return None
    value = worth(lever, now, count, ledger.account.share(before, cost))
    return _Offer(lever, _furthest(lever, ledger, count) if lever.choices > _MANY else count, value)


def _furthest(lever: Lever, ledger: Ledger, fits: int) -> int:
    """The largest count that fits, found by halving."""
    low, high = fits, lever.bounds.high
    while lever.bounds.after(low) <= high and low < high:
        middle = max(lever.bounds.at_most((low + high + 1) // 2), lever.bounds.after(low))
        if ledger.account.meet(ledger.at(lever.kept(middle))):
            low = middle
        else:
            high = lever.bounds.at_most(middle - 1)
    return low


def _by_jump_(levers: Sequence[Lever], ledger: Ledger) -> bool:
    """Take the first larger number that fits of a lever whose next one does not, if there is any."""
    for lever in levers:
        if lever.choices <= _JUMPS:
            now = lever.now(ledger.counts)
            for count in lever.grid(_JUMPS):
                if count > now and ledger.account.meet(ledger.at(lever.kept(count))):
                    ledger.move_(lever.kept(count))
                    return True
    return False


def by_share(plan: Plan) -> Worth:
    """Worth most where a plan has grown least since: what stays of each site stays in proportion."""

    def worth(lever: Lever, now: int, then: int, cost: float) -> float:
        return -then / max(1, lever.now(plan))

    return worth


def by_score(sites: Sites, scores: Callable[[], Iterator[Scores]], levers: Sequence[Lever], plan: Plan) -> Worth:
    """Worth what the units score for what they cost."""
    many = [lever for lever in levers if lever.choices > _MANY]
    following = next_scores(sites, scores(), many, plan) if many else {}
    return by_loss(lambda levers, counts: losses_of(sites, scores(), levers, counts), levers, plan, following)


def by_loss(losses: LossesOf, levers: Sequence[Lever], plan: Plan, following: Mapping[str, float] | None = None) -> Worth:
    """Worth what is not lost for what it costs; of levers with very many units ``following`` says what the next is worth."""
    asked = [lever for lever in levers if lever.choices <= _MANY or following is None]
    counts = [
        [count for count in lever.grid(_MANY) if count >= lever.now(plan)]
        if lever.choices <= _MANY
        else [lever.now(plan), lever.bounds.after(lever.now(plan))]
        for lever in asked
    ]
    lost = {
        (lever.whole.name, count): loss
        for lever, *row in zip(asked, counts, losses(asked, counts), strict=True)
        for count, loss in zip(*row, strict=True)
    }

    def worth(lever: Lever, now: int, then: int, cost: float) -> float:
        name = lever.whole.name
        if lever.choices > _MANY:
            now = lever.now(plan)
            gained = lost[name, now] - lost[name, lever.bounds.after(now)] if following is None else following.get(name, 0.0)
        else:
            gained = lost[name, now] - lost[name, then]
        return gained / cost if cost > 0 else inf

    return worth
