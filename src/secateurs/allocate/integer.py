"""Integer programming: the least loss within budgets, where what two sites cost may depend on both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np

from secateurs.allocate.weighed import Losses, by_table, weighed
from secateurs.allocate.weighing import Choice, Numbers, Weighing, exchanged, settled
from secateurs.types import Allocator, Budget, Plan, SecateursError

_TRIES = 8
_STATES = 2_000
_LARGEST = 1e4


def integer(
    budget: Budget | Sequence[Budget],
    *,
    levels: int = 9,
    seconds: float = 30.0,
    losses: Losses | None = None,
    floor: int = 1,
    ceiling: float = 1.0,
    same_in_every_block: bool = False,
) -> Allocator:
    """By integer programming with SciPy's solver: the least loss within one budget or several.

    Of the given ``levels`` of each site one is chosen, then of as many between its neighbours, until these are single units. Costs to
    which two sites contribute together, such as the products of a layer's inputs and outputs, are in the program as they are, told by
    the levels of both; where three or more meet in another way than in sums of such products the program does not see it, and gets less
    room until its plan meets the budgets. The plan is the best of all with these levels, where the solver ends within ``seconds``, given
    anew each time; else it is the best that it or `dynamic` has found. At the end sites exchange units, and what is left over is used
    up. Arguments and errors are those of `marginal`.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs import Channel, find_sites, macs
    >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 2)
    >>> scores = [torch.tensor([[5.0, 4, 3]]), torch.tensor([[9.0, 1, 1]])]
    >>> plan = integer(Budget(macs, limit=12))(find_sites(model, Channel(), x), lambda: iter(scores))
    >>> dict(plan), plan.promised
    ({'0': 3, '2': 1}, {'macs': 11.0})
    """
    if not seconds > 0:
        raise SecateursError(f"integer: seconds={seconds} must be above 0, the time that the solver may take")

    def best(weighing: Weighing) -> Plan:
        choice = settled(weighing, lambda lost, costs, limits: by_table(lost, costs, limits, _STATES))
        while True:
            found = _programmed(weighing, seconds)
            if found is not None and weighing.loss(found) < weighing.loss(choice):
                choice = exchanged(weighing, found)
            finer = weighing.finer(choice, levels)
            if finer is None:
                return weighing.filled(choice)
            weighing, choice = finer

    return weighed("integer", budget, levels, losses, floor, ceiling, same_in_every_block, best)


def _programmed(weighing: Weighing, seconds: float) -> Choice | None:
    """The choice that the program finds and that meets the budgets, if there is one."""
    limits, reference = np.array(weighing.account.limits), weighing.densest
    changes, pairs = weighing.changes(reference), _pairs(weighing, reference)
    room = limits - weighing.costs(reference)
    program = Program(weighing.losses, changes, pairs, limits)
    for _ in range(_TRIES):
        found = program.solved(room, seconds)
        if found is None or weighing.fits(found):
            return found
        room = room - np.maximum(weighing.costs(found) - limits, 1e-9 * limits)
    return None


def _pairs(weighing: Weighing, reference: Choice) -> dict[tuple[int, int], Numbers]:
    """Two levers → by how much what both change differs from the sum of what each does, ``(choices, choices, budgets)``, where it does."""
    owner = {site.name: place for place, lever in enumerate(weighing.levers) for site in lever.group}
    meeting = {pair for sites in weighing.ledger.together for pair in combinations(sorted({owner[site] for site in sites}), 2)}
    now, alone, found = weighing.costs(reference), weighing.changes(reference), dict[tuple[int, int], Numbers]()
    for one, other in sorted(meeting):
        first, second = weighing.counts[one], weighing.counts[other]
        table = np.zeros((len(first), len(second), len(now)))
        for i, j in product(range(len(first)), range(len(second))):
            kept = weighing.levers[one].kept(first[i]) | weighing.levers[other].kept(second[j])
            table[i, j] = np.array(weighing.ledger.at(kept)) - now - alone[one][i] - alone[other][j]
        if (np.abs(table) > 1e-9 * np.abs(now)).any():
            found[one, other] = table
    return found


class Program:
    """Zero or one for each choice of a lever; for two levers that meet, a number for each pair of their choices, which is the product of
    the two where these are whole."""

    def __init__(
        self, losses: Sequence[Numbers], costs: Sequence[Numbers], pairs: dict[tuple[int, int], Numbers], scale: Numbers
    ) -> None:
        self._sizes = [len(each) for each in losses]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(int)
        self._pairs, self._scale = pairs, scale
        products = [table.reshape(-1, table.shape[2]) for table in pairs.values()]
        self._costs = np.concatenate([*costs, *products]).T / scale[:, None]
        known = np.concatenate([*losses, np.zeros(sum(len(each) for each in products))])
        self._losses = known * (_LARGEST / (np.abs(known).max() or 1.0))  # the solver ends where its absolute gap is small

    def solved(self, room: Numbers, seconds: float) -> Choice | None:
        """The choice with the least loss whose costs are within the room, if the solver finds one in time."""
        from scipy import optimize

        whole = np.zeros(len(self._losses))
        whole[: self._starts[-1]] = 1
        matrix, right = self._equations()
        result = optimize.milp(
            self._losses,
            integrality=whole,
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(matrix, right, right),
                optimize.LinearConstraint(self._costs, -np.inf, room / self._scale),
            ],
            options={"time_limit": seconds, "mip_rel_gap": 0},
        )
        if result.x is None:
            return None
        return tuple(
            int(np.argmax(result.x[start : start + size])) for start, size in zip(self._starts[:-1], self._sizes, strict=True)
        )

    def _equations(self) -> tuple[Any, Numbers]:
        """Each lever makes one choice, and the numbers of pairs add up to those of single choices."""
        from scipy.sparse import coo_array

        rows, columns, values, right = list[int](), list[int](), list[float](), list[float]()

        def row(of: Sequence[int], minus: int | None, equals: float) -> None:
            terms = [(column, 1.0) for column in of] + ([] if minus is None else [(minus, -1.0)])
            rows.extend([len(right)] * len(terms))
            columns.extend(column for column, _ in terms)
            values.extend(value for _, value in terms)
            right.append(equals)

        for start, size in zip(self._starts[:-1], self._sizes, strict=True):
            row(range(start, start + size), None, 1.0)
        first = int(self._starts[-1])
        for (one, other), table in self._pairs.items():
            places = np.arange(first, first + table.shape[0] * table.shape[1]).reshape(table.shape[:2])
            for i in range(table.shape[0]):
                row(places[i].tolist(), int(self._starts[one]) + i, 0.0)
            for j in range(table.shape[1]):
                row(places[:, j].tolist(), int(self._starts[other]) + j, 0.0)
            first += places.size
        return coo_array((values, (rows, columns)), shape=(len(right), len(self._losses))), np.array(right)
