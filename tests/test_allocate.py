"""How much where: exact counts, and the same as a plain computation finds."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, pairwise
from math import ceil, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateurs.allocate import (
    apportion,
    as_pattern,
    bounds,
    by_layer,
    erdos_renyi,
    fraction_kept,
    global_threshold,
    limits_of,
    uniform,
    within_budget,
)
from secateurs.costs import macs, nonzero_params, params, tensor_bytes
from secateurs.criteria import magnitude
from secateurs.masks import Masks
from secateurs.patterns import Channel, Element, Filter, Kernel, NofM, find_sites
from secateurs.prune import masks_of, prune_
from secateurs.solve import TopK
from secateurs.types import Budget, PlanError, SecateursError, Solution, Task

ALLOCATORS = [uniform, erdos_renyi, global_threshold]


def linears(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))


def no_scores():
    raise AssertionError("this allocator needs no scores")


def scores_of(sites, criterion=None):
    return lambda: TopK(criterion or magnitude()).scores(sites, {})


def plan_with(allocate, model, pattern=None, **arguments):
    sites = find_sites(model, pattern or Element(), **arguments)
    return dict(allocate(sites, scores_of(sites)))


# ------------------------------------------------------------------------------------------------ against plain computations


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 6))
def test_the_global_threshold_is_what_sorting_all_scores_finds(seed, kept, distinct):
    generator = torch.Generator().manual_seed(seed)
    model = linears(6, 4, 3, 2)
    for parameter in model.parameters():
        parameter.data = torch.randint(distinct * 8, parameter.shape, generator=generator) + 1.0
    sites = find_sites(model, Element())
    scores = [next(TopK(magnitude()).scores([site], {})).flatten().tolist() for site in sites]
    plan = global_threshold(keep=kept / 42, floor=0)(sites, scores_of(sites))
    threshold = sorted(chain(*scores), reverse=True)[kept - 1]
    assert sum(plan.values()) == kept
    for count, each in zip(plan.values(), scores, strict=True):
        above, at = sum(s > threshold for s in each), sum(s == threshold for s in each)
        assert above <= count <= above + at


def test_a_site_that_one_threshold_would_empty_keeps_its_floor_and_the_others_pay_for_it():
    model = linears(4, 4, 4)
    model[0].weight.data = torch.arange(1.0, 17).view(4, 4)
    model[1].weight.data = torch.arange(1.0, 17).view(4, 4) / 1000
    assert plan_with(global_threshold(keep=0.25, floor=0), model) == {"0": 8, "1": 0}
    assert plan_with(global_threshold(keep=0.25), model) == {"0": 7, "1": 1}
    assert plan_with(global_threshold(keep=0.25, floor=3), model) == {"0": 5, "1": 3}


def test_ties_at_the_global_threshold_are_shared_out_evenly():
    model = linears(10, 10, 5, 2)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    assert plan_with(global_threshold(keep=0.5), model) == {"0": 50, "1": 25, "2": 5}


def test_uniform_gives_every_site_the_same_fraction():
    assert plan_with(uniform(sparsity=0.75), linears(8, 4, 2)) == {"0": 8, "1": 2}
    assert plan_with(uniform(keep=0.5), linears(5, 3, 1)) == {"0": 8, "1": 1}  # 7.5 and 1.5, in all 9


def test_erdos_renyi_density_by_hand_on_two_layers():
    # 1707.04780: density ~ (inputs + outputs) / (inputs * outputs), so the units kept are as 200 is to 110.
    kept = plan_with(erdos_renyi(keep=0.1), linears(100, 100, 10))
    assert kept == {"0": round(1100 * 200 / 310), "1": round(1100 * 110 / 310)}


def test_erdos_renyi_with_kernels_by_hand_on_two_layers():
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 32, 5))
    with_kernel, without = [8 + 16 + 3 + 3, 16 + 32 + 5 + 5], [(8 + 16) * 9, (16 + 32) * 25]
    total = round(0.1 * (8 * 16 * 9 + 16 * 32 * 25))
    for kernel, weights in ((True, with_kernel), (False, without)):
        kept = plan_with(erdos_renyi(keep=0.1, kernel=kernel), model)
        expected = [total * weight / sum(weights) for weight in weights]
        assert [abs(count - share) < 1 for count, share in zip(kept.values(), expected, strict=True)] == [True, True]
        assert sum(kept.values()) == total


def test_erdos_renyi_leaves_a_layer_dense_that_would_be_denser_and_the_others_make_up_for_it():
    sites = find_sites(linears(100, 100, 2), Element())
    plan = erdos_renyi(keep=0.6)(sites, no_scores)
    assert plan["1"] == 200
    assert plan["0"] == round(0.6 * 10_200) - 200


def test_erdos_renyi_counts_the_outputs_of_all_groups():
    model = nn.Sequential(nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 8, 1))
    assert plan_with(erdos_renyi(keep=0.4, kernel=False), model) == {"0": round(32 * 10 / 26), "1": round(32 * 16 / 26)}


# ------------------------------------------------------------------------------------------------ exact, within bounds


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.floats(0, 1),
    st.integers(0, 4),
    st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_shares_are_exact_and_within_their_bounds(sizes, fraction, floor, weights):
    sites = find_sites(linears(*sizes), Element())
    limits = limits_of(sites, floor)
    low, high = sum(limit.low for limit in limits.values()), sum(limit.high for limit in limits.values())
    total = round(low + fraction * (high - low))
    counts = apportion(sites, weights[: len(sites)], total, limits, "mine")
    assert sum(counts.values()) == total
    assert all(limits[name].low <= count <= limits[name].high for name, count in counts.items())


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.floats(0.3, 1))
def test_shares_of_rows_fall_short_by_less_than_a_step_and_are_never_over(sizes, keep):
    sites = find_sites(linears(*sizes), Element(within="row"))
    total = round(keep * sum(site.units for site in sites))
    low = sum(site.contest_count for site in sites)
    if total < low:
        with pytest.raises(PlanError):
            uniform(keep=keep)(sites, no_scores)
        return
    plan = uniform(keep=keep)(sites, no_scores)
    assert all(plan[site.name] % site.contest_count == 0 for site in sites)
    assert total - max(site.contest_count for site in sites) < sum(plan.values()) <= total


@pytest.mark.parametrize("make", ALLOCATORS)
@pytest.mark.parametrize("floor", [1, 2, 5])
def test_the_floor_holds_in_each_site(make, floor):
    model = linears(30, 30, 4, 4)
    model[2].weight.data *= 1e-6
    kept = plan_with(make(sparsity=0.97, floor=floor), model)
    assert min(kept.values()) >= floor
    assert sum(kept.values()) == round(0.03 * sum(p.numel() for p in model.parameters() if p.ndim == 2))


@pytest.mark.parametrize("make", ALLOCATORS)
def test_a_floor_of_0_may_empty_the_whole_model(make):
    assert set(plan_with(make(keep=1e-9, floor=0), linears(4, 4, 4)).values()) == {0}


@pytest.mark.parametrize("make", ALLOCATORS)
def test_a_floor_above_a_sites_units_keeps_it_whole(make):
    kept = plan_with(make(keep=0.5, floor=4), linears(20, 10, 1, 2))
    assert kept["2"] == 2


@pytest.mark.parametrize("make", ALLOCATORS)
def test_no_site_keeps_more_than_an_earlier_pruning_left(make):
    masks = {"0.weight": torch.arange(36).view(6, 6) < 5}
    model = linears(6, 6, 6)
    model[0].weight.data += 10  # all of them would stay by their scores
    assert plan_with(make(keep=0.5), model, masks=masks) == {"0": 5, "1": 31}


@pytest.mark.parametrize("make", ALLOCATORS)
def test_a_site_that_an_earlier_pruning_emptied_keeps_nothing(make):
    masks = {"0.weight": torch.zeros(6, 6, dtype=torch.bool)}
    assert plan_with(make(keep=0.25), linears(6, 6, 6), masks=masks) == {"0": 0, "1": 18}


def test_what_rows_that_are_uneven_keep_is_what_they_have():
    masks = {"weight": torch.tensor([[True] * 4, [True, False, False, False]])}
    site = find_sites(nn.Linear(4, 2), Element(within="row"), masks=masks)[0]
    found = bounds(site, 1)
    assert (found.low, found.high) == (2, site.available) == (2, 5)
    assert [found.at_most(wanted) for wanted in (0, 2.5, 3, 4.9, 9)] == [2, 2, 3, 4, 5]
    assert [found.after(kept) for kept in (2, 4, 5)] == [3, 5, 5]


@pytest.mark.parametrize("make", [uniform, erdos_renyi, lambda **fraction: by_layer({"*": 1 - fraction["keep"]})])
@pytest.mark.parametrize("keep", [0.2, 0.35, 0.5])
def test_a_plan_after_an_uneven_pruning_tells_what_stays(make, keep):
    generator = torch.Generator().manual_seed(0)
    masks = {f"{i}.weight": torch.rand(8, 8, generator=generator) < torch.linspace(0.3, 1, 8)[:, None] for i in range(2)}
    sites = find_sites(linears(8, 8, 8), Element(within="row"), masks=masks)
    plan = make(keep=keep)(sites, no_scores)
    kept = {site.name: int(TopK(magnitude())(site, plan[site.name], {}).kept.sum()) for site in sites}
    assert kept == dict(plan)
    assert keep * 128 - 16 < sum(plan.values()) <= keep * 128 + (8 if make not in (uniform, erdos_renyi) else 0)


def test_a_budget_after_an_uneven_pruning_is_used_up():
    model = linears(8, 4)
    with torch.no_grad():
        model[0].bias.zero_()
    masks = Masks({"0.weight": torch.arange(8) < torch.tensor([[8], [6], [7], [5]])}, model).apply_()
    budget = within_budget(Budget(params, limit=4 + 23), uniform)
    task = Task(example=torch.zeros(1, 8))
    masks = prune_(model, Element(within="row"), TopK(magnitude()), budget, task, masks=masks)
    assert masks.plan.promised == {"params": 27}
    assert (masks["0.weight"].sum(1).tolist(), nonzero_params(model)) == ([6, 6, 6, 5], 23)


def test_one_contest_over_the_model_is_one_threshold():
    model = linears(4, 4, 4)
    model[1].weight.data *= 1000
    assert plan_with(uniform(keep=0.5), model, Element(within="model")) == {"0": 1, "1": 15}
    for make in (erdos_renyi, lambda **fraction: by_layer({"0": 0.5})):
        with pytest.raises(PlanError, match=r"decides layer by layer, but Element\(within='model'\).*global_threshold"):
            plan_with(make(keep=0.5), model, Element(within="model"))


@pytest.mark.parametrize("make", [uniform, erdos_renyi])
def test_allocators_that_need_no_scores_compute_none(make):
    assert make(keep=0.5)(find_sites(linears(4, 4, 2), Element()), no_scores).sparsity == 0.5


# ------------------------------------------------------------------------------------------------ by hand


def test_sparsities_by_hand_are_rounded_to_whole_units():
    kept = plan_with(by_layer({"0": 0.5, "1": 0.85}), linears(3, 3, 3, 3))
    assert kept == {"0": 4, "1": 1, "2": 9}  # 4.5 to the smaller one


def test_the_first_name_or_glob_that_means_a_layer_counts_and_the_others_take_the_default():
    model = nn.Sequential(OrderedDict(conv1=nn.Linear(10, 10), conv2=nn.Linear(10, 10), fc=nn.Linear(10, 10)))
    assert plan_with(by_layer({"conv2": 0.9, "conv*": 0.5}, default=0.2), model) == {"conv1": 50, "conv2": 10, "fc": 80}


def test_by_hand_too_no_site_is_emptied():
    assert plan_with(by_layer({"*": 0.999}), linears(4, 4)) == {"0": 1}


@pytest.mark.parametrize("sparsity", [1.0, -0.5, float("nan")])
def test_a_sparsity_by_hand_out_of_range_is_an_error_that_names_the_layer(sparsity):
    with pytest.raises(SecateursError, match=rf"by_layer: fc1: sparsity={sparsity} is not in \[0, 1\)"):
        by_layer({"fc1": sparsity})
    with pytest.raises(SecateursError, match=rf"by_layer: default: sparsity={sparsity} is not in \[0, 1\)"):
        by_layer({}, default=sparsity)


def test_a_name_by_hand_that_means_no_site_is_an_error_that_suggests_close_ones():
    model = nn.Sequential(OrderedDict(conv1=nn.Linear(4, 4), fc=nn.Linear(4, 4)))
    with pytest.raises(SecateursError, match=r"by_layer: no site is called 'cnov1'; did you mean conv1\?"):
        plan_with(by_layer({"cnov1": 0.5}), model)


def test_by_hand_more_than_an_earlier_pruning_left_is_an_error():
    with pytest.raises(PlanError, match=r"^0: by_layer keeps 8 units, but only 4 of 16 can be kept"):
        plan_with(by_layer({"0": 0.5}), linears(4, 4), masks={"0.weight": torch.eye(4) > 0})


# ----------------------------------------------------------------------------------------- patterns that decide


def test_two_of_four_keeps_half_everywhere():
    assert plan_with(as_pattern(), linears(8, 8, 4), NofM(2, 4)) == {"0": 32, "1": 16}
    assert plan_with(uniform(keep=0.5), linears(8, 8, 4), NofM(2, 4)) == {"0": 32, "1": 16}


@pytest.mark.parametrize("make", [uniform, erdos_renyi])
def test_another_fraction_than_the_patterns_own_is_an_error_with_two_ways_out(make):
    with pytest.raises(PlanError, match=r"but NofM\(1, 4\) keeps 24 by itself: leave .* out \(or ask keep=0.25\), or .*within=4"):
        plan_with(make(keep=0.5), linears(8, 8, 4), NofM(1, 4))


def test_a_pattern_that_does_not_decide_needs_an_allocator():
    with pytest.raises(PlanError, match=r"Element\(\) does not say how many units stay: give an allocator, .*uniform"):
        plan_with(as_pattern(), linears(4, 4))


@pytest.mark.parametrize("pattern", [Element(within="row"), NofM(2, 4)], ids=repr)
def test_one_threshold_over_rows_is_an_error_with_a_way_out(pattern):
    with pytest.raises(PlanError, match=r"but global_threshold compares the whole model: use within=\"layer\", or uniform"):
        plan_with(global_threshold(keep=0.5), linears(8, 8, 8), pattern)


# ------------------------------------------------------------------------------------------------ bad fractions


@pytest.mark.parametrize("make", ALLOCATORS)
@pytest.mark.parametrize("sparsity", [1, 1.0, 2, -0.1, float("nan"), float("inf")])
def test_sparsity_outside_of_0_to_1_is_an_error(make, sparsity):
    with pytest.raises(SecateursError, match=rf"{make.__name__}: sparsity={sparsity} is not in \[0, 1\); 0.9 removes 90 %"):
        make(sparsity=sparsity)


@pytest.mark.parametrize("make", ALLOCATORS)
@pytest.mark.parametrize("keep", [0, 0.0, -1, 1.5, float("nan")])
def test_keep_outside_of_0_to_1_is_an_error(make, keep):
    with pytest.raises(SecateursError, match=rf"{make.__name__}: keep={keep} is not in \(0, 1\]; 0.1 keeps 10 %"):
        make(keep=keep)


@pytest.mark.parametrize("make", ALLOCATORS)
@pytest.mark.parametrize("arguments", [{}, {"sparsity": 0.5, "keep": 0.5}])
def test_both_or_neither_of_sparsity_and_keep_is_an_error(make, arguments):
    with pytest.raises(SecateursError, match=rf"{make.__name__}: give either sparsity= .* or keep="):
        make(**arguments)


def test_the_ends_of_the_ranges_are_allowed():
    assert fraction_kept("mine", 0, None) == fraction_kept("mine", None, 1) == 1


@pytest.mark.parametrize("make", ALLOCATORS)
def test_a_sparsity_that_the_floors_do_not_admit_is_an_error_that_says_so(make):
    with pytest.raises(
        PlanError, match=r"keeps 2 of 32 units, but what floor= and .* in each of 2 sites already takes 4: ask for less"
    ):
        plan_with(make(keep=2 / 32, floor=2), linears(4, 4, 4))


@pytest.mark.parametrize("make", ALLOCATORS)
def test_more_than_an_earlier_pruning_left_in_all_is_an_error_that_says_so(make):
    masks = {"0.weight": torch.eye(4) > 0}
    with pytest.raises(PlanError, match=r"keeps 8 of 16 units, but only 4 are left by the earlier pruning: .* more sparsity"):
        plan_with(make(keep=0.5), linears(4, 4), masks=masks)


@pytest.mark.parametrize("pattern", [Element(), Element(within="model"), Filter(), Element(within="isomorphic")], ids=repr)
def test_a_ceiling_keeps_a_ranking_of_all_layers_from_stripping_the_last_ones(pattern):
    model = linears(20, 20, 20, 10, 10)
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    units = {site.name: site.units for site in find_sites(model, pattern)}
    bare = plan_with(global_threshold(sparsity=0.6), model, pattern)
    capped = plan_with(global_threshold(sparsity=0.6, ceiling=0.7), model, pattern)
    assert bare["2"] == 1
    assert capped["2"] == round(0.3 * units["2"])
    assert sum(capped.values()) == sum(bare.values()) == round(0.4 * sum(units.values()))
    assert all(kept >= 0.3 * units[name] for name, kept in capped.items())


@pytest.mark.parametrize("make", [uniform, erdos_renyi, lambda ceiling, sparsity: by_layer({"*": sparsity}, ceiling=ceiling)])
def test_every_allocator_has_a_ceiling(make):
    sites = find_sites(linears(40, 30, 20, 10), Element(within="row"))
    plan = make(sparsity=0.65, ceiling=0.7)(sites, no_scores)
    assert all(plan[site.name] >= 0.3 * site.units for site in sites)


def test_a_ceiling_holds_in_a_budget_and_counts_what_an_earlier_pruning_took():
    model = linears(8, 8, 8)
    sites = find_sites(model, Element(), masks={"0.weight": torch.arange(64).view(8, 8) < 40})
    plan = within_budget(Budget(params, limit=16 + 64), uniform, ceiling=0.5)(sites, no_scores)
    assert dict(plan) == {"0": 32, "1": 32}
    sites = find_sites(model, Element(), masks={"0.weight": torch.arange(64).view(8, 8) < 20})
    plan = within_budget(Budget(params, limit=16 + 53), uniform, ceiling=0.5)(sites, no_scores)
    assert dict(plan) == {"0": 20, "1": 33}
    with pytest.raises(PlanError, match="params can fall to 68 parameters at the least"):
        within_budget(Budget(params, limit=67), uniform, ceiling=0.5)(sites, no_scores)


def test_a_ceiling_or_floor_out_of_range_is_an_error():
    for arguments in ({"ceiling": 0.0}, {"ceiling": 1.5}, {"ceiling": float("nan")}, {"floor": -1}):
        with pytest.raises(SecateursError, match=r"0.8 lets no site lose more than 80 % of its units"):
            plan_with(uniform(keep=0.5, **arguments), linears(4, 4, 4))
    with pytest.raises(PlanError, match=r"already takes 24: ask for less sparsity, a lower floor= or a higher ceiling="):
        plan_with(uniform(keep=0.5, ceiling=0.25), linears(4, 4, 4))


# ------------------------------------------------------------------------------------------------ coupled weights


def with_few_left(model, example, left, **pattern):
    """The one site of a model after a pruning that left its first few units."""
    site = find_sites(model, Channel(), example)[0]
    masks = masks_of(site, Solution(torch.arange(site.units)[None] < left))
    return find_sites(model, Channel(**pattern), example, masks=masks)


@pytest.mark.parametrize(("left", "expected"), [(0, (0, 0)), (3, (3, 3)), (10, (8, 8)), (16, (8, 16))])
def test_a_site_with_less_left_than_it_keeps_multiples_of_keeps_what_it_has(left, expected):
    sites = with_few_left(linears(3, 16, 2), torch.zeros(1, 3), left, round_to=8)
    found = bounds(sites[0], 1)
    assert (found.low, found.high) == expected
    assert dict(uniform(keep=0.5)(sites, no_scores)) == {"0": min(left, 8)}


@pytest.mark.parametrize("within", ["layer", "isomorphic", "model"])
@pytest.mark.parametrize("keep", [0.02, 0.2, 0.5, 0.9, 1.0])
def test_widths_are_multiples_of_round_to_and_no_site_is_emptied_however_little_is_kept(within, keep):
    sites = find_sites(linears(3, 32, 16, 64, 5), Channel(within, round_to=8), torch.zeros(1, 3))
    plan = uniform(keep=keep)(sites, scores_of(sites))
    assert all(plan[name] >= 8 and plan[name] % 8 == 0 for name in plan)
    assert keep < 1 or list(plan.values()) == [32, 16, 64]


def test_a_budget_for_everything_keeps_everything_that_multiples_allow():
    sites = find_sites(linears(3, 30, 17, 5), Channel("model", round_to=8), torch.zeros(1, 3))
    assert dict(within_budget(Budget(params, keep=1.0), uniform)(sites, scores_of(sites))) == {"0": 24, "1": 16}


def test_a_small_kind_of_sites_keeps_its_floor_and_the_others_their_fraction():
    model = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 2, bias=False), nn.Linear(2, 5))
    sites = find_sites(model, Channel("isomorphic"), torch.zeros(1, 3))
    assert len({site.kind for site in sites}) == 2
    assert dict(global_threshold(keep=0.2)(sites, scores_of(sites))) == {"0": 8, "1": 1}
    budget = within_budget(Budget(params, keep=0.2), global_threshold)(sites, scores_of(sites))
    assert all(budget.values())
    with pytest.raises(PlanError, match="in each of 2 sites already takes 2"):
        global_threshold(keep=0.02)(sites, scores_of(sites))


class Bare(nn.Module):
    """A layer without a module of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(shape)), nn.Conv2d(shape[0], 2, 1)

    def forward(self, x):
        return self.last(nn.functional.conv2d(x, self.weight))


@pytest.mark.parametrize(("kernel", "sizes"), [(True, (8, 3, 2, 2)), (False, (8, 3))])
def test_erdos_renyi_of_coupled_weights_goes_by_the_one_that_makes_the_units(kernel, sizes):
    from secateurs.allocate.allocators import _erdos_renyi_density

    site = find_sites(Bare(8, 3, 2, 2), Channel(), torch.randn(1, 3, 4, 4))[0]
    layer = find_sites(nn.Sequential(nn.Conv2d(3, 8, 2), nn.Conv2d(8, 2, 1)), Channel(), torch.randn(1, 3, 4, 4))[0]
    assert _erdos_renyi_density(site, kernel) == _erdos_renyi_density(layer, kernel) == sum(sizes) / prod(sizes)


# ------------------------------------------------------------------------------------------------ budgets


def budget_cases():
    for cost in (params, macs, tensor_bytes):
        for make in ALLOCATORS:
            for pattern in (Element(), Filter(), Kernel()):
                yield pytest.param(cost, make, pattern, id=f"{cost.name}-{make.__name__}-{pattern!r}")


@pytest.mark.parametrize(("cost", "make", "pattern"), list(budget_cases()))
@pytest.mark.parametrize("keep", [0.3, 0.55])
def test_a_budget_is_met_and_one_unit_more_would_not_meet_it(cost, make, pattern, keep):
    model, example = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)), torch.zeros(1, 3, 8, 8)
    sites = find_sites(model, pattern, example, only="*")
    plan = within_budget(Budget(cost, keep=keep), make)(sites, scores_of(sites))
    limit = keep * cost(model, example)
    assert cost(model, example, plan) <= limit
    assert plan.promised == {cost.name: cost(model, example, plan)}
    total, units = sum(plan.values()), sum(site.units for site in sites)
    more = make(keep=(total + 1) / units)(sites, scores_of(sites))
    assert sum(more.values()) == total + 1
    assert cost(model, example, more) > limit


def test_an_absolute_budget_is_met_to_the_unit():
    sites = find_sites(linears(8, 4), Element())
    for limit in (5, 14, 36, 1000):
        plan = within_budget(Budget(params, limit=limit), uniform)(sites, no_scores)
        assert plan.promised == {"params": min(limit, 36)}


def test_a_budget_without_a_floor_may_come_down_to_one_unit():
    sites = find_sites(linears(8, 4), Element())
    assert within_budget(Budget(params, limit=5), uniform, floor=0)(sites, no_scores)["0"] == 1


@pytest.mark.parametrize("floor", [0, 1])
def test_a_budget_that_cannot_be_met_is_an_error_that_says_how_far_it_goes(floor):
    sites = find_sites(linears(8, 4), Element())
    with pytest.raises(PlanError, match=r"params can fall to 5 parameters at the least, but the budget is 4: raise the budget"):
        within_budget(Budget(params, limit=4), uniform, floor=floor)(sites, no_scores)


def test_a_budget_in_rows_is_met_and_not_overshot_by_more_than_one_step():
    model = linears(16, 6, 4)
    sites = find_sites(model, Element(within="row"))
    plan = within_budget(Budget(params, keep=0.5), uniform)(sites, no_scores)
    limit = 0.5 * params(model)
    assert limit - max(site.contest_count for site in sites) < plan.promised["params"] <= limit
    assert all(plan[site.name] % site.contest_count == 0 for site in sites)


def test_the_steps_of_a_floor_are_whole_rows():
    site = find_sites(nn.Linear(8, 4), Element(within="row"))[0]
    assert [bounds(site, floor).low for floor in (0, 1, 4, 5)] == [ceil(floor / 4) * 4 for floor in (0, 1, 4, 5)]
