"""Allocators that weigh what each site would lose against what it costs, within budgets: greedy, by a price, and by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from secateurs.allocate.account import Account, budgets_of
from secateurs.allocate.levers import LossesOf
from secateurs.allocate.weighing import Choice, Numbers, Weighing, settled
from secateurs.given import COUNT, require
from secateurs.types import Allocator, Budget, Plan, Scores, SecateursError, Sites

Places = NDArray[np.int64]

Losses = Callable[[Sites], LossesOf]
"""Measured losses in place of scores: what `Sensitivity.losses` gives."""


def marginal(
    budget: Budget | Sequence[Budget],
    *,
    levels: int = 129,
    losses: Losses | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """Greedy: from the dense model, always that goes which loses least for what it saves, until the budgets are met.

    What is lost is the sum of the scores of the units that go, so scores should be changes of the loss, or of what all sites have in
    common (`fisher`, `taylor`, ``normalised(magnitude())``), or it is what ``losses`` has measured (`Sensitivity.losses`). What is saved
    is told anew after each step, as the costs of channels are products of neighbours. A site goes down in at most ``levels`` steps; what
    the budgets leave over is then given back unit by unit, so that the next unit of any site would break one. ``floor``, ``ceiling`` and
    ``same_in_every_block`` are those of `within_budget`, and so are the errors.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs import Channel, TopK, find_sites, macs, magnitude
    >>> _ = torch.manual_seed(0)
    >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), torch.zeros(1, 4)
    >>> sites = find_sites(model, Channel(), x)
    >>> plan = marginal(Budget(macs, keep=0.5))(sites, lambda: TopK(magnitude()).scores(sites, {}))
    >>> plan.promised["macs"] <= 0.5 * macs(model, x) < plan.promised["macs"] + 18
    True
    """
    return weighed(
        "marginal", budget, levels, losses, floor, ceiling, same_in_every_block, lambda weighing: weighing.filled(_greedy(weighing))
    )


def lagrangian(
    budget: Budget | Sequence[Budget],
    *,
    levels: int = 33,
    losses: Losses | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """By a price: each site keeps what is best for it where a cost has a price, and the price is found by halving (Everett 1963).

    Where losses are convex in what is kept this is the best there is, up to what one step takes; other plans lie in gaps that no price
    reaches, see `dynamic`. Several budgets have a price each. Arguments and errors are those of `marginal`. Costs that are products of
    neighbours are told around a plan, and told anew around the one that is found; then sites exchange units, until that helps no more.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.costs import params
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), Element(), only="*")
    >>> scores = [torch.tensor([[9.0, 8.0, 1.0, 1.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])]
    >>> dict(lagrangian(Budget(params, limit=5))(sites, lambda: iter(scores)))
    {'0': 2, '1': 3}
    """
    return weighed(
        "lagrangian",
        budget,
        levels,
        losses,
        floor,
        ceiling,
        same_in_every_block,
        lambda weighing: weighing.filled(settled(weighing, by_price)),
    )


def dynamic(
    budget: Budget | Sequence[Budget],
    *,
    levels: int = 33,
    states: int = 4_000,
    losses: Losses | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """By dynamic programming over a table of losses and costs (SPDY, 2201.13096; ZipLM, 2302.04089): the least loss within the budgets.

    Site after site, of all that can be kept so far those combinations stay that nothing cheaper beats; where they are more than
    ``states``, the one with the least loss in each of so many slices of the cost. With costs that add up over sites, and while there are
    no more, the plan is the best of all with the given ``levels`` of each site. Costs that are products of neighbours are treated as in
    `lagrangian`. Arguments and errors are those of `marginal`.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.costs import params
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), Element(), only="*")
    >>> scores = [torch.tensor([[9.0, 8.0, 1.0, 1.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])]
    >>> dict(dynamic(Budget(params, limit=5))(sites, lambda: iter(scores)))
    {'0': 2, '1': 3}
    """
    require("dynamic", "states", states, COUNT)
    if states < 1:
        raise SecateursError(f"dynamic: states={states} must be at least 1")

    def best(weighing: Weighing) -> Plan:
        return weighing.filled(settled(weighing, lambda losses, costs, limits: by_table(losses, costs, limits, states)))

    return weighed("dynamic", budget, levels, losses, floor, ceiling, same_in_every_block, best)


def weighed(
    who: str,
    budget: Budget | Sequence[Budget],
    levels: int,
    losses: Losses | None,
    floor: int,
    ceiling: float,
    same_in_every_block: bool,
    best: Callable[[Weighing], Plan],
) -> Allocator:
    """The allocator that finds the best plan in a way of its own."""
    budgets = budgets_of(who, budget)
    require(who, "levels", levels, COUNT)
    if levels < 2:
        raise SecateursError(f"{who}: levels={levels} must be at least 2: the sparsest and the densest that a site may be")

    def allocate(sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        account = Account.of(budgets, sites)
        return best(Weighing.of(account, sites, scores, levels, losses, floor, ceiling, same_in_every_block))

    return allocate


# ---------------------------------------------------------------- greedy


def _greedy(weighing: Weighing) -> Choice:
    """Down from the densest choice; where that ends before the budgets are met, the choice with the same fraction of all."""
    choice = list(weighing.densest)
    now = weighing.costs(tuple(choice))
    owner = {site.name: place for place, lever in enumerate(weighing.levers) for site in lever.group}
    beside = {frozenset(owner[site] for site in sites) for sites in weighing.ledger.together}
    offers: dict[int, tuple[float, int] | None] = {}
    limits = np.array(weighing.account.limits)
    while (now > limits).any():
        for place in range(len(choice)):
            if place not in offers:
                offers[place] = _saving(weighing, place, choice[place], now, limits)
        best = min((offer[0], place) for place, offer in offers.items() if offer is not None) if any(offers.values()) else None
        if best is None:
            return weighing.start()
        place = best[1]
        choice[place] = offers[place][1]  # type: ignore[index]
        weighing.ledger.move_(weighing.levers[place].kept(weighing.counts[place][choice[place]]))
        now = np.array(weighing.ledger.now)
        near = {other for group in beside if place in group for other in group} | {place}
        met = (now > limits).sum()
        offers = {other: offer for other, offer in offers.items() if other not in near and met == len(limits)}
    return tuple(choice)


def _saving(weighing: Weighing, place: int, at: int, now: Numbers, limits: Numbers) -> tuple[float, int] | None:
    """What a lever loses for what it saves of the budgets that are not met yet, at the next lower choice that saves any, and that."""
    over, lever = now > limits, weighing.levers[place]
    for lower in range(at - 1, -1, -1):
        saved = ((now - np.array(weighing.ledger.at(lever.kept(weighing.counts[place][lower])))) / limits)[over].sum()
        if saved > 0:
            return float((weighing.losses[place][lower] - weighing.losses[place][at]) / saved), lower
    return None


# ---------------------------------------------------------------- by a price


def by_price(losses: Sequence[Numbers], costs: Sequence[Numbers], limits: Numbers) -> Choice | None:
    """The choice with the least loss within the limits that prices find: one for each cost, all of them scaled until the limits are met."""
    spread = np.array([np.abs(each).max(axis=0) for each in costs]).max(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    weights, best, least = np.ones(len(limits)), None, np.inf
    for _ in range(1 if len(limits) == 1 else 20):
        low, high = -40.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            found = tuple(
                int(np.argmin(loss + each / scale @ weights * np.exp(middle))) for loss, each in zip(losses, costs, strict=True)
            )
            spent = sum(each[number] for each, number in zip(costs, found, strict=True))
            fits = bool((spent <= limits).all())
            loss = sum(each[number] for each, number in zip(losses, found, strict=True))
            if fits and loss < least:
                best, least = found, loss
            low, high = (low, middle) if fits else (middle, high)
        excess = (spent - limits) / scale
        weights = weights * np.exp(np.clip(excess - excess.max() / 2, -1, 1))
        weights /= weights.max()
    return best


# ---------------------------------------------------------------- dynamic programming


def by_table(losses: Sequence[Numbers], costs: Sequence[Numbers], limits: Numbers, states: int) -> Choice | None:
    """The choice with the least loss within the limits; exact while there are no more combinations than states that nothing beats."""
    least_after = np.zeros((len(costs) + 1, len(limits)))
    for place in range(len(costs) - 1, -1, -1):
        least_after[place] = least_after[place + 1] + costs[place].min(axis=0)
    lost: Numbers = np.zeros(1)
    spent: Numbers = np.zeros((1, len(limits)))
    came: list[tuple[Places, Places]] = []
    for place, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        all_lost = (lost[:, None] + loss[None, :]).ravel()
        all_spent = (spent[:, None] + cost[None, :]).reshape(-1, len(limits))
        slack = 1e-9 * (1 + np.abs(limits))
        possible = np.flatnonzero((all_spent + least_after[place + 1] <= limits + slack).all(axis=1))
        if not len(possible):
            return None
        kept = possible[_undominated(all_lost[possible], all_spent[possible], states)]
        came.append((kept // len(loss), kept % len(loss)))
        lost, spent = all_lost[kept], all_spent[kept]
    fitting = np.flatnonzero((spent <= limits).all(axis=1))
    if not len(fitting):
        return None
    state, found = int(fitting[np.argmin(lost[fitting])]), list[int]()
    for before, number in reversed(came):
        found.append(int(number[state]))
        state = int(before[state])
    return tuple(reversed(found))


def _undominated(lost: Numbers, spent: Numbers, states: int) -> Places:
    """The combinations of which none is better and no dearer; of too many, the best in each slice of the costs."""
    budgets = spent.shape[1]
    if budgets == 1:
        order = np.lexsort((lost, spent[:, 0]))
        before = np.concatenate([[np.inf], np.minimum.accumulate(lost[order])[:-1]])
        order = order[lost[order] < before]
    else:
        order = np.arange(len(lost))
    if len(order) <= states:
        return order
    slices = max(1, int(states ** (1 / budgets)))
    low, high = spent[order].min(axis=0), spent[order].max(axis=0)
    cell = np.minimum(((spent[order] - low) / np.where(high > low, high - low, 1) * slices).astype(np.int64), slices - 1)
    key = np.ravel_multi_index(tuple(cell.T), (slices,) * budgets)
    best = np.lexsort((lost[order], key))
    first = np.concatenate([[True], key[best][1:] != key[best][:-1]])
    return order[best[first]]
