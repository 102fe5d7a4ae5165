"""Budgets: met on integers under any cost, one or several, and the next unit of any site would break one."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sc
from secateurs.allocate import limits_of
from secateurs.allocate.levers import levers_of, losses_of
from secateurs.costs import tensor_bytes
from secateurs.types import NonFiniteError, PlanError, SecateursError, Sites

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """A stream with two blocks on it, so that costs are products of neighbours and of a stream that many share."""

    def __init__(self, widths: tuple[int, ...] = (12, 9, 7)) -> None:
        super().__init__()
        stream, *inner = widths
        self.stem, self.head = nn.Conv2d(3, stream, 3, padding=1), nn.Linear(stream, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(stream, each, 3, padding=1), nn.ReLU(), nn.Conv2d(each, stream, 1)) for each in inner
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def scores_of(sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = [torch.rand(site.contest_count, site.units // site.contest_count, generator=generator) for site in sites]
    return lambda: iter(found)


def no_scores():
    raise AssertionError("this allocator needs no scores")


def cost_of(price, name="mine"):
    """A cost that is told by a plan's counts."""
    return sc.Cost(name, "coins", lambda model, example: lambda plan: price(plan))


def chain(*sizes):
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))


def assert_met_and_full(sites, plan, budgets, floor=1, ceiling=1.0, same=False):
    """The budgets are met as promised, and no larger number of units of any site alone meets them."""
    prices = [budget.cost.prepare(sites.model, sites.example) for budget in budgets]
    limits = [budget.limit_for(sites.model, sites.example) for budget in budgets]
    assert plan.promised == {budget.cost.name: price(plan) for budget, price in zip(budgets, prices, strict=True)}
    assert all(price(plan) <= limit for price, limit in zip(prices, limits, strict=True))
    for lever in levers_of(sites, floor, ceiling, same):
        now = lever.now(plan)
        assert lever.bounds.low <= now <= lever.bounds.high
        for count in {each for each in (lever.bounds.after(now), *lever.grid(6)) if each > now}:
            more = plan.with_counts(lever.kept(count))
            assert any(price(more) > limit for price, limit in zip(prices, limits, strict=True)), (lever.whole.name, now, count)


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (sc.uniform, sc.Channel()),
        (sc.global_threshold, sc.Channel(round_to=3)),
        (partial(sc.global_threshold, per=sc.macs), sc.Channel()),
        (sc.erdos_renyi, sc.Element()),
        (sc.global_threshold, sc.Filter()),
    ],
    ids=["uniform", "global, round_to", "global per macs", "erdos_renyi of weights", "global of filters"],
)
def test_several_budgets_are_met_and_the_next_unit_of_any_site_would_break_one(make, pattern):
    sites = sc.find_sites(Residual(), pattern, EXAMPLE)
    budgets = [sc.Budget(sc.macs, keep=0.5), sc.Budget(tensor_bytes, keep=0.6), sc.Budget(sc.params, keep=0.9)]
    for floor, ceiling in ((1, 1.0), (3, 0.7)):
        plan = sc.within_budget(budgets, make, floor=floor, ceiling=ceiling)(sites, scores_of(sites))
        assert_met_and_full(sites, plan, budgets, floor, ceiling)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=7, max_size=7), min_size=3, max_size=3),
    st.floats(0.2, 1.0),
    st.integers(0, 3),
    st.booleans(),
)
def test_costs_that_are_not_monotone_are_met_all_the_same(steps, keep, floor, known):
    """Whatever numbers a cost makes of the counts: where any plan that is tried meets the budget, the plan meets it and is full."""
    sites = sc.find_sites(chain(6, 6, 6, 6, 2), sc.Channel(), torch.zeros(1, 6))
    cost = cost_of(lambda plan: float(1 + sum(row[kept] for row, kept in zip(steps, plan.values(), strict=True))) if plan else 28.0)
    budget = sc.Budget(cost, limit=28 * keep)
    make = sc.global_threshold if known else sc.uniform
    try:
        plan = sc.within_budget(budget, make, floor=floor)(sites, scores_of(sites) if known else no_scores)
    except PlanError:
        return
    assert_met_and_full(sites, plan, [budget], floor)


def test_a_cliff_is_jumped_over():
    """Multiples of four are quick: 5 to 7 do not fit where 8 does."""
    sites = sc.find_sites(chain(4, 12, 2), sc.Channel(), torch.zeros(1, 4))
    quick = cost_of(lambda plan: 12.0 if plan is None else float(plan["0"] * (1 if plan["0"] % 4 == 0 else 2)))
    plan = sc.within_budget(sc.Budget(quick, limit=9), sc.uniform)(sites, no_scores)
    assert dict(plan) == {"0": 8}


def test_blocks_that_are_alike_stay_so_while_a_budget_is_used_up():
    model = nn.Sequential(nn.Sequential(*(chain(8, 12, 8) for _ in range(3))), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    sites = sc.find_sites(model, sc.Channel(), torch.zeros(1, 8), only=["0.?.0", "1"])
    budgets = [sc.Budget(sc.macs, keep=0.6), sc.Budget(sc.params, keep=0.58)]
    for make in (sc.uniform, sc.global_threshold):
        plan = sc.within_budget(budgets, make, same_in_every_block=True)(sites, scores_of(sites))
        assert len({plan[f"0.{number}.0"] for number in range(3)}) == 1
        assert_met_and_full(sites, plan, budgets, same=True)


def test_what_is_left_over_goes_to_what_scores_most_for_its_cost():
    sites = sc.find_sites(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)), sc.Channel(), torch.zeros(1, 4)
    )
    prices = {"0": 5, "2": 2}
    cost = cost_of(lambda plan: 42.0 if plan is None else float(sum(prices[name] * kept for name, kept in plan.items())))
    first, second = torch.full((1, 6), 5.0), torch.tensor([[9.0, 3, 2, 1, 0.5, 0.1]])
    plan = sc.within_budget(sc.Budget(cost, limit=16), sc.global_threshold)(sites, lambda: iter([first, second]))
    # One threshold takes 9 and two of 5 (12), a third of 5 does not fit (17); of the second's, worth 1.5 and 1 a coin, two do.
    assert dict(plan) == {"0": 2, "2": 3} and plan.promised == {"mine": 16.0}


def test_patterns_with_many_units_are_filled_in_a_few_steps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 200))
    sites = sc.find_sites(model, sc.Element(), EXAMPLE)
    budget = sc.Budget(sc.macs, limit=20_035.0)
    plan = sc.within_budget(budget, sc.uniform)(sites, no_scores)
    assert plan.promised == {"macs": 20_035.0}
    scored = sc.within_budget(budget, sc.global_threshold)(sites, scores_of(sites))
    assert scored.promised == {"macs": 20_035.0}


def test_what_is_lost_is_the_sum_of_what_the_units_that_go_score():
    sites = sc.find_sites(chain(6, 4, 4), sc.Element(within="row"), masks={"0.weight": torch.rand(4, 6) < 0.6})
    scores = [torch.rand(4, 6).masked_fill(~sites[0].alive, -torch.inf), torch.rand(4, 4)]
    levers = levers_of(sites, 1, 1.0, False)
    counts = [lever.grid(100) for lever in levers]
    found = losses_of(sites, iter(scores), levers, counts)
    for site, score, row, losses in zip(sites, scores, counts, found, strict=True):
        for count, loss in zip(row, losses, strict=True):
            each = site.each_of(count)
            gone = sum(
                sum(value for value in contest.sort(descending=True).values[each:].tolist() if value > -1) for contest in score
            )
            assert loss == pytest.approx(gone)


# ---------------------------------------------------------------- errors


def test_budgets_below_the_floors_are_an_error_that_says_the_least_of_each():
    sites = sc.find_sites(chain(8, 4), sc.Element())
    with pytest.raises(
        PlanError, match=r"^params can fall to 5 parameters at the least, but the budget is 4; tensor bytes can fall to .*raise"
    ):
        sc.within_budget([sc.Budget(sc.params, limit=4), sc.Budget(tensor_bytes, limit=5)], sc.uniform)(sites, no_scores)
    with pytest.raises(PlanError, match=r"^params can fall to 5 parameters at the least, but the budget is 4: raise"):
        sc.within_budget([sc.Budget(sc.params, limit=4), sc.Budget(tensor_bytes, keep=0.9)], sc.uniform)(sites, no_scores)


def test_a_cost_that_rises_where_units_go_is_said():
    sites = sc.find_sites(chain(8, 4), sc.Element())
    rising = cost_of(lambda plan: 10.0 if plan is None else 50.0 - plan["0"])
    with pytest.raises(
        PlanError, match=r"mine can fall to 18 coins .* \(not where least stays, which costs 49: this cost does not"
    ):
        sc.within_budget(sc.Budget(rising, keep=1.0), sc.uniform)(sites, no_scores)
    assert dict(sc.within_budget(sc.Budget(rising, limit=20), sc.uniform)(sites, no_scores)) == {"0": 32}


def test_budgets_that_contradict_each_other_are_an_error_that_names_them():
    sites = sc.find_sites(chain(8, 4), sc.Element())
    falling, rising = (
        cost_of(lambda plan: 1.0 + sum((plan or {"": 32}).values())),
        cost_of(lambda plan: 50.0 - sum((plan or {"": 32}).values()), "other"),
    )
    with pytest.raises(PlanError, match=r"Budget\(mine, limit=10\) and Budget\(other, limit=25\) contradict each other: each can"):
        sc.within_budget([sc.Budget(falling, limit=10), sc.Budget(rising, limit=25)], sc.uniform)(sites, no_scores)
    with pytest.raises(
        SecateursError, match=r"within_budget: Budget\(params, keep=0.5\) and Budget\(params, limit=9\) limit costs of one name"
    ):
        sc.within_budget([sc.Budget(sc.params, keep=0.5), sc.Budget(sc.params, limit=9)], sc.uniform)


def test_a_cost_that_is_no_number_is_an_error_that_names_it():
    sites = sc.find_sites(chain(8, 4), sc.Element())
    lost = cost_of(lambda plan: 40.0 if plan is None else nan)
    with pytest.raises(
        NonFiniteError, match=r"Budget\(mine, keep=0.5\): the cost of a plan that keeps 1 units is nan, .* look at mine"
    ):
        sc.within_budget(sc.Budget(lost, keep=0.5), sc.uniform)(sites, no_scores)
    with pytest.raises(NonFiniteError, match=r"the cost of the model as it is is nan"):
        sc.within_budget(sc.Budget(cost_of(lambda plan: nan), keep=0.5), sc.uniform)(sites, no_scores)
    with pytest.raises(SecateursError, match=r"budget is a list, but must be a budget, .* or a list of them"):
        sc.within_budget([], sc.uniform)


def test_the_grid_of_a_lever_has_both_ends_and_only_numbers_that_can_be_kept():
    for site in sc.find_sites(chain(30, 17, 8), sc.Channel(round_to=4), torch.zeros(1, 30)):
        [lever] = levers_of(Sites((site,), (), nn.Identity()), 3, 0.9, False)
        assert lever.grid(100) == tuple(range(4, 17, 4)) and lever.grid(2) == (4, 16) and lever.grid(1)[-1] == 16
        assert limits_of(Sites((site,), (), nn.Identity()), 3, 0.9)[site.name].low == 4
