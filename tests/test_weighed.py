"""Allocators that weigh losses against costs: they reach the best plan of all where it can be enumerated, and keep to every budget."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sc
from secateurs.allocate.account import Account
from secateurs.allocate.weighing import Weighing, exchanged
from secateurs.costs import tensor_bytes
from secateurs.types import KindError, NonFiniteError, PlanError, SecateursError

WEIGHED = [sc.marginal, sc.lagrangian, sc.dynamic, sc.integer]
NAMES = [make.__name__ for make in WEIGHED]
SCORES = st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=4, max_size=4)


def chain(*sizes):
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in pairwise(sizes)))


@cache
def channels():
    """Four sites of four channels in a row: what a layer costs is the product of two of them."""
    return sc.find_sites(chain(2, 4, 4, 4, 4, 3), sc.Channel(), torch.zeros(1, 2))


@cache
def elements():
    """Four sites of four weights that have nothing to do with each other's costs: of a weight 1, 1, 4 or 9 MACs."""
    model = nn.ModuleList(
        [nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)]
    )
    model.forward = lambda x: [layer(x[:, :, 0, 0] if n < 2 else x[:, :, :n, :n]) for n, layer in enumerate(model)]  # type: ignore[method-assign]
    return sc.find_sites(model, sc.Element(), torch.zeros(1, 2, 4, 4), only="*")


def lost(scores, counts):
    return sum(sum(sorted(row)[: 4 - count]) for row, count in zip(scores, counts, strict=True))


def best_of_all(sites, scores, budgets):
    """The least loss of any plan within the budgets, by trying them all."""
    plan = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    prices = [(budget.cost.prepare(sites.model, sites.example), budget.limit_for(sites.model, sites.example)) for budget in budgets]
    fitting = []
    for counts in product(range(1, 5), repeat=4):
        tried = plan.with_counts(dict(zip(plan, counts, strict=True)))
        if all(price(tried) <= limit for price, limit in prices):
            fitting.append(lost(scores, counts))
    return min(fitting, default=None)


def found_by(make, sites, scores, budgets):
    plan = make(budgets)(sites, lambda: iter([torch.tensor([row], dtype=torch.float32) for row in scores]))
    assert all(plan.promised[b.cost.name] == b.cost(sites.model, sites.example, plan) for b in budgets)
    assert all(plan.promised[b.cost.name] <= b.limit_for(sites.model, sites.example) for b in budgets)
    return lost(scores, plan.values())


@pytest.mark.parametrize("make", [sc.dynamic, sc.integer], ids=["dynamic", "integer"])
@settings(max_examples=4, deadline=None)
@given(scores=SCORES, keep=st.floats(0.3, 1.0), both=st.booleans())
def test_where_costs_add_up_the_best_of_all_plans_is_found(make, scores, keep, both):
    budgets = [sc.Budget(sc.macs, keep=keep), *([sc.Budget(sc.params, keep=0.6)] if both else [])]
    best = best_of_all(elements(), scores, budgets)
    assert found_by(make, elements(), scores, budgets) == best


@settings(max_examples=4, deadline=None)
@given(scores=SCORES, keep=st.floats(0.2, 1.0), both=st.booleans())
def test_where_costs_are_products_of_neighbours_integer_programming_finds_it_too(scores, keep, both):
    budgets = [sc.Budget(sc.macs, keep=keep), *([sc.Budget(tensor_bytes, keep=0.5)] if both else [])]
    assert found_by(sc.integer, channels(), scores, budgets) == best_of_all(channels(), scores, budgets)


@pytest.mark.parametrize(
    ("scores", "keep"),
    [
        ([[30, 42, 77, 63], [87, 15, 50, 66], [75, 50, 77, 37], [70, 77, 15, 77]], 0.67),
        ([[13, 2, 12, 76], [70, 67, 41, 24], [8, 56, 82, 55], [43, 37, 61, 45]], 0.528),
        ([[42, 18, 55, 86], [50, 39, 97, 26], [44, 91, 64, 80], [71, 49, 4, 7]], 0.388),
    ],
)
def test_problems_whose_best_plan_is_found_only_with_the_products_in_the_program(scores, keep):
    budgets = [sc.Budget(sc.macs, keep=keep)]
    best = best_of_all(channels(), scores, budgets)
    assert found_by(sc.integer, channels(), scores, budgets) == best < found_by(sc.dynamic, channels(), scores, budgets)


def test_the_others_come_near_it_where_costs_are_products():
    """How near is measured, not proven: of these six problems most are solved, and no plan loses a quarter more than the best."""
    chance = torch.Generator().manual_seed(0)
    reached, worst = dict.fromkeys(NAMES[:3], 0), 1.0
    for _ in range(6):
        scores = torch.randint(1, 100, (4, 4), generator=chance).tolist()
        budgets = [sc.Budget(sc.macs, keep=0.3 + 0.6 * float(torch.rand(1, generator=chance)))]
        best = best_of_all(channels(), scores, budgets)
        for make in WEIGHED[:3]:
            loss = found_by(make, channels(), scores, budgets)
            reached[make.__name__] += loss == best
            worst = max(worst, loss / best)
    assert min(reached.values()) >= 3 and reached["dynamic"] >= 4 and worst < 1.25


def test_sites_exchange_units_until_that_helps_no_more():
    scores = [torch.tensor([[row, 1.0, 1.0, 1.0]]) * scale for row, scale in zip((2, 3, 4, 5), (1, 9, 1, 9), strict=True)]
    account = Account.of([sc.Budget(sc.macs, keep=0.5)], channels())
    weighing = Weighing.of(account, channels(), lambda: iter(scores), 4, None, 1, 1.0, False)
    start = weighing.start()
    found = exchanged(weighing, start)
    assert weighing.fits(start) and weighing.fits(found) and weighing.loss(found) < 0.7 * weighing.loss(start)
    for one, other in permutations(range(4), 2):
        for number, then in product(range(max(0, found[one] - 2), 4), range(4)):
            tried = tuple(number if place == one else then if place == other else at for place, at in enumerate(found))
            near = abs(number - found[one]) <= 2 and (then - found[other]) * (number - found[one]) < 0
            assert not near or not weighing.fits(tried) or weighing.loss(tried) >= weighing.loss(found)


@pytest.mark.parametrize("make", WEIGHED, ids=NAMES)
def test_floors_ceilings_multiples_and_equal_blocks_hold_and_budgets_are_used_up(make):
    blocks = nn.Sequential(*(chain(8, 12, 8) for _ in range(3)))
    sites = sc.find_sites(
        nn.Sequential(blocks, nn.Linear(8, 5), nn.Linear(5, 3)), sc.Channel(), torch.zeros(1, 8), only=["0.?.0", "1"]
    )
    budgets = [sc.Budget(sc.macs, keep=0.6), sc.Budget(sc.params, keep=0.62)]
    scores = [torch.rand(1, site.units, generator=torch.Generator().manual_seed(n)) for n, site in enumerate(sites)]
    plan = make(budgets, floor=4, ceiling=0.6, same_in_every_block=True)(sites, lambda: iter(scores))
    assert len({plan[f"0.{number}.0"] for number in range(3)}) == 1 and plan["0.0.0"] >= 5 and plan["1"] >= 4
    fuller = [plan.with_counts({f"0.{n}.0": plan["0.0.0"] + 1 for n in range(3)}), plan.with_counts({"1": plan["1"] + 1})]
    for more in fuller:
        assert more["1"] > 5 or any(
            b.cost(sites.model, sites.example, more) > b.limit_for(sites.model, sites.example) for b in budgets
        )
    wide = sc.find_sites(chain(6, 32, 24, 4), sc.Channel(round_to=8), torch.zeros(1, 6))
    plan = make(sc.Budget(sc.macs, keep=0.5))(wide, lambda: iter([torch.rand(1, 32), torch.rand(1, 24)]))
    assert all(kept % 8 == 0 and kept for kept in plan.values())


def test_many_weights_of_a_few_layers_are_weighed_at_some_levels_and_filled_to_the_last():
    model = nn.Sequential(nn.Linear(60, 100, bias=False), nn.Linear(100, 50, bias=False))
    sites = sc.find_sites(model, sc.Element(), only="*")
    for make in WEIGHED:
        plan = make(sc.Budget(sc.params, keep=0.37))(sites, lambda: sc.TopK(sc.magnitude(p=2)).scores(sites, {}))
        assert plan.promised == {"params": 11_000 * 0.37}


@pytest.mark.parametrize("make", WEIGHED, ids=NAMES)
def test_costs_with_cliffs_are_met_and_where_nothing_meets_them_the_least_is_said(make):
    """Multiples of two are quick, and one unit is slower than two."""
    quick = sc.Cost("quick", "coins", lambda model, example: lambda plan: sum(_coins(n) for n in plan.values()) if plan else 40.0)
    scores = [torch.tensor([[9.0, 5, 4, 1]]), torch.tensor([[8.0, 3, 2, 1]]), torch.ones(1, 4), torch.ones(1, 4)]
    plan = make(sc.Budget(quick, limit=15))(channels(), lambda: iter(scores))
    assert plan.promised["quick"] <= 15 and set(plan.values()) == {2, 4}
    with pytest.raises(
        PlanError, match=r"quick can fall to 12 coins at the least \(not where least stays, which costs 20: this cost"
    ):
        make(sc.Budget(quick, limit=11))(channels(), lambda: iter(scores))


def _coins(kept):
    return {0: 0.0, 1: 5.0, 2: 3.0, 3: 9.0, 4: 6.0}[kept]


@pytest.mark.parametrize("make", WEIGHED, ids=NAMES)
def test_bad_input_is_an_error_that_says_what_to_do(make):
    name, scores = make.__name__, [torch.tensor([[1.0, torch.nan, 0, 0]])] * 4
    with pytest.raises(NonFiniteError, match=r"^0: its scores are NaN or infinite, so what it loses is not known"):
        make(sc.Budget(sc.macs, keep=0.5))(channels(), lambda: iter(scores))
    with pytest.raises(PlanError, match=r"macs can fall to 8 MACs at the least, but the budget is 5: raise"):
        make(sc.Budget(sc.macs, limit=5))(channels(), lambda: iter([torch.ones(1, 4)] * 4))
    with pytest.raises(SecateursError, match=rf"{name}: levels=1 must be at least 2"):
        make(sc.Budget(sc.macs, keep=0.5), levels=1)
    with pytest.raises(KindError, match=rf"{name}: budget is 0.5, but must be a budget, .* or a list of them"):
        make(0.5)
    measured = lambda sites: lambda levers, counts: [[float("nan") for _ in each] for each in counts]  # noqa: E731
    with pytest.raises(NonFiniteError, match="0: what it loses is not finite"):
        make(sc.Budget(sc.macs, keep=0.5), losses=measured)(channels(), lambda: iter([]))


def test_a_solver_without_time_and_a_table_without_room_are_errors():
    with pytest.raises(SecateursError, match="integer: seconds=0 must be above 0"):
        sc.integer(sc.Budget(sc.macs, keep=0.5), seconds=0)
    with pytest.raises(SecateursError, match="dynamic: states=0 must be at least 1"):
        sc.dynamic(sc.Budget(sc.macs, keep=0.5), states=0)


def test_with_few_states_the_plan_is_within_the_budgets_and_near_the_best():
    scores = torch.randint(1, 100, (4, 4), generator=torch.Generator().manual_seed(3)).tolist()
    for budgets in ([sc.Budget(sc.macs, keep=0.6)], [sc.Budget(sc.macs, keep=0.6), sc.Budget(sc.params, keep=0.7)]):
        best = best_of_all(elements(), scores, budgets)
        assert best <= found_by(partial(sc.dynamic, states=6), elements(), scores, budgets) <= 1.5 * best
