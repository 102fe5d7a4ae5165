"""Which units stay: exact under ties, and the same as a plain loop finds."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateurs import select
from secateurs.allocate import uniform
from secateurs.criteria import magnitude, random
from secateurs.evidence import input_norm, observe
from secateurs.patterns import Block, Channel, Element, Filter, NofM, Vector, as_units, find_sites
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.solve.topk import highest
from secateurs.types import Criterion, Evidence, NonFiniteError, PatternError, PlanError, SecateursError, Task

values = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, inf, -inf]) | st.floats(-3, 3, width=32)


def rows_of(contests: int, competitors: int) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(values, min_size=competitors, max_size=competitors)
    return st.lists(row, min_size=contests, max_size=contests)


def by_loop(row: list[float], k: int) -> list[bool]:
    """The k highest of a row, ties to the first."""
    best = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
    return [place in best for place in range(len(row))]


@given(data=st.data(), contests=st.integers(1, 4), competitors=st.integers(1, 9))
def test_the_highest_are_exactly_k_of_each_row_with_ties_to_the_first(data, contests, competitors):
    rows = data.draw(rows_of(contests, competitors))
    k = data.draw(st.integers(0, competitors))
    assert highest(torch.tensor(rows), k).tolist() == [by_loop(row, k) for row in rows]


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 2**20))
def test_one_long_row_is_treated_like_several(k, distinct, seed):
    row = torch.randint(distinct, (1, 60), generator=torch.Generator().manual_seed(seed)).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateurs.solve.topk._PIECE", 7)
        patch.setattr(select, "_FEW", 5)
        patch.setattr(select, "_SAMPLE", 4)
        assert highest(row, k).tolist() == [by_loop(row[0].tolist(), k)]
        assert torch.equal(highest(row, k), highest(torch.cat([row, row]), k)[:1])


@pytest.mark.parametrize("k", [0, 1, 7, 16])
def test_equal_scores_keep_the_first_k(k):
    assert highest(torch.ones(2, 16), k).tolist() == [[True] * k + [False] * (16 - k)] * 2


# ------------------------------------------------------------------------------------------------ against plain loops


def test_two_of_four_is_what_a_loop_over_fours_finds():
    layer = nn.Linear(16, 6)
    kept = TopK(magnitude())(find_sites(layer, NofM(2, 4))[0], 48, {}).kept.view(6, 16)
    for output in range(6):
        for start in range(0, 16, 4):
            four = layer.weight[output, start : start + 4].abs().tolist()
            assert kept[output, start : start + 4].tolist() == by_loop(four, 2)


def test_two_of_four_of_a_convolution_runs_along_its_input_channels():
    layer = nn.Conv2d(8, 3, 2)
    site = find_sites(layer, NofM(2, 4))[0]
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    site.members[0].cut(site.members[0].canonical(mask)).copy_(TopK(magnitude())(site, 48, {}).kept.view(1, 3, 2, 2, 2, 4))
    for output, row, column in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(2)).tolist():
        for start in (0, 4):
            four = layer.weight[output, start : start + 4, row, column].abs().tolist()
            assert mask[output, start : start + 4, row, column].tolist() == by_loop(four, 2)


def test_wanda_is_the_weight_times_the_norm_of_its_input_compared_in_each_row():
    layer, inputs = nn.Linear(12, 5), torch.randn(7, 12) * torch.arange(1, 13)
    solver, task = (
        TopK(magnitude(p=1) * input_norm()),
        Task(example=inputs, calibration=[(inputs[:3], None), (inputs[3:], None)]),
    )
    sites = find_sites(layer, Element(within="row"), inputs)
    kept = solver(sites[0], 5 * 4, observe(layer, sites, solver.needs, task)).kept
    for output in range(5):
        scores = [(layer.weight[output, i].abs() * inputs[:, i].norm()).item() for i in range(12)]
        assert kept[output].tolist() == by_loop(scores, 4)


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, inf])
@pytest.mark.parametrize("mean", [False, True])
def test_magnitude_is_its_definition_in_double_precision(p, mean):
    layer = nn.Linear(6, 4)
    site = find_sites(layer, Filter(), only="*")[0]
    (scores,) = TopK(magnitude(p, mean=mean)).scores([site], {})
    weights = layer.weight.detach().double().abs()
    each = weights.amax(1) if p == inf else (weights.pow(p).mean(1) if mean else weights.pow(p).sum(1)).pow(1 / p)
    assert torch.allclose(scores[0].double(), each, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("p", [3, 10, 100])
def test_magnitude_orders_very_small_and_very_large_weights_for_every_p(p, scale):
    layer = nn.Linear(4, 3)
    layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [2.0, 0, 0, 0]]) * scale
    (scores,) = TopK(magnitude(p)).scores([find_sites(layer, Filter(), only="*")[0]], {})
    assert torch.allclose(scores[0].double(), torch.tensor([1.0, 3.0, 2.0]).double() * scale, rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [1e-3, 0.1, 1e3])
def test_the_mean_magnitude_is_finite_for_every_p(p):
    site = find_sites(nn.Linear(64, 8), Filter(), only="*")[0]
    (scores,) = TopK(magnitude(p, mean=True)).scores([site], {})
    assert scores.unique().numel() == 8
    assert (scores > 0).all()


@pytest.mark.parametrize("p", [0.5, 1, 2, inf])
def test_a_unit_of_zeros_scores_zero(p):
    layer = nn.Linear(4, 2)
    layer.weight.data[0] = 0
    (scores,) = TopK(magnitude(p)).scores([find_sites(layer, Filter(), only="*")[0]], {})
    assert scores[0, 0] == 0 < scores[0, 1]


@pytest.mark.parametrize("p", [0, -1, float("nan"), "2", None, True])
def test_magnitudes_p_is_above_zero(p):
    with pytest.raises(ValueError, match=r"p must be in \(0, inf\]"):
        magnitude(p)


def test_a_criterion_of_single_weights_is_the_same_for_every_p():
    site = find_sites(nn.Linear(5, 4), Element())[0]
    scores = [next(TopK(magnitude(p)).scores([site], {})) for p in (0.5, 1, 2, inf)]
    assert all(torch.equal(scores[0], other) for other in scores)


def test_random_scores_depend_on_seed_and_layer_alone():
    first, second = find_sites(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), Element())

    def scores(site, seed):
        return next(TopK(random(seed)).scores([site], {}))

    torch.manual_seed(1)
    again = find_sites(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), Element())
    assert torch.equal(scores(first, 3), scores(again[0], 3))
    assert not torch.equal(scores(first, 3), scores(first, 4))
    assert not torch.equal(scores(first, 3), scores(second, 3))
    assert scores(first, -1).unique().numel() == 36


# ------------------------------------------------------------------------------------------------ earlier prunings


def test_units_that_are_gone_score_lower_than_any_other_and_stay_gone():
    layer = nn.Linear(4, 2)
    masks = {"weight": torch.tensor([[True, True, False, False], [True, False, False, True]])}
    site = find_sites(layer, Element(), masks=masks)[0]
    (scores,) = TopK(magnitude()).scores([site], {})
    assert torch.equal(scores.view(2, 4) == -inf, ~masks["weight"])
    assert torch.equal(TopK(magnitude())(site, 4, {}).kept.view(2, 4), masks["weight"])


def test_a_unit_is_alive_while_any_of_its_weights_is():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[3, 0] = True
    site = find_sites(nn.Linear(4, 4), Block(2, 2), only="*", masks={"weight": mask})[0]
    assert site.alive.tolist() == [[False, False, True, False]]
    assert site.available == 1


def test_rows_that_an_earlier_pruning_left_uneven_keep_at_most_their_number():
    layer = nn.Linear(4, 3)
    masks = {"weight": torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])}
    site = find_sites(layer, Element(within="row"), masks=masks)[0]
    assert (site.available, site.fullest) == (5, 4)
    assert TopK(magnitude())(site, 4, {}).kept.sum(1).tolist() == [3, 1, 0]
    assert torch.equal(TopK(magnitude())(site, 5, {}).kept, masks["weight"])
    with pytest.raises(PlanError, match=r"^weight: the plan keeps 6 units, but only 5 of 12 can be kept"):
        TopK(magnitude())(site, 6, {})
    wide = find_sites(
        nn.Linear(4, 2), Element(within="row"), masks={"weight": torch.tensor([[True] * 4, [True, True, False, False]])}
    )
    with pytest.raises(
        PlanError, match=r"the same number or all that an earlier pruning left of it, .* can keep 2 or 4 units, not 3"
    ):
        TopK(magnitude())(wide[0], 3, {})


def test_two_of_four_after_an_earlier_pruning_keeps_at_most_two():
    layer = nn.Linear(8, 1)
    masks = {"weight": torch.tensor([[True, False, False, False, True, True, True, True]])}
    site = find_sites(layer, NofM(2, 4), masks=masks)[0]
    assert site.available == 3
    assert TopK(magnitude())(site, 3, {}).kept.sum(1).tolist() == [1, 2]
    with pytest.raises(PlanError, match=r"^weight: the plan keeps 4 units, but only 3 of 8 can be kept"):
        TopK(magnitude())(site, 4, {})


# ------------------------------------------------------------------------------------------------ bad input


def one_linear(pattern=None, **arguments):
    layer = nn.Linear(4, 4)
    return layer, find_sites(layer, pattern or Element(), **arguments)[0]


@pytest.mark.parametrize("kept", [17, -1])
def test_more_units_than_there_are_is_an_error(kept):
    _, site = one_linear()
    with pytest.raises(PlanError, match=rf"^weight: the plan keeps {kept} units, but only 16 of 16 can be kept"):
        TopK(magnitude())(site, kept, {})


def test_more_units_than_an_earlier_pruning_left_is_an_error():
    _, site = one_linear(masks={"weight": torch.eye(4) > 0})
    with pytest.raises(PlanError, match=r"^weight: the plan keeps 5 units, but only 4 of 16 can be kept"):
        TopK(magnitude())(site, 5, {})


def test_a_number_that_rows_cannot_share_is_an_error():
    _, site = one_linear(Element(within="row"))
    with pytest.raises(PlanError, match=r"^weight: Element\(within='row'\) lets 4 groups compete.* keep 4 or 8 units, not 6"):
        TopK(magnitude())(site, 6, {})


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
@pytest.mark.parametrize("criterion", [magnitude(), magnitude(p=1), magnitude(p=inf)], ids=lambda it: it.name)
@pytest.mark.parametrize("pattern", [Element(), Vector("inputs")], ids=repr)
def test_weights_that_are_not_finite_are_an_error_that_names_the_layer_and_counts_them(bad, criterion, pattern):
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 2] = layer.weight.data[3, 3] = bad
    site = find_sites(nn.Sequential(layer), pattern, only="*")[0]
    with pytest.raises(NonFiniteError, match=r"^0: 2 of its 16 weights are NaN or infinite; restore .* or skip=\['0'\]"):
        TopK(criterion)(site, 8 if pattern == Element() else 2, {})


@pytest.mark.parametrize("bad", [float("nan"), inf, -inf])
def test_scores_that_are_not_finite_are_an_error_that_names_layer_and_criterion(bad):
    def one_bad(evidence: Evidence) -> torch.Tensor:
        scores = evidence.weight.abs().clone()
        scores.view(-1)[3] = bad
        return scores

    _, site = one_linear()
    with pytest.raises(NonFiniteError, match=r"^weight: mine gave a score that is NaN or infinite from finite weights"):
        TopK(Criterion("mine", one_bad, lambda values, dims: values.sum(dims)))(site, 8, {})


def test_a_criterion_of_all_members_that_needs_what_only_makers_see_is_an_error_with_two_ways_out():
    model, batch = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 3)
    task, weights = Task(example=batch, calibration=[(batch, None)]), model[0].weight.detach().clone()
    said = r'0: .* needs input_norm\(p=2\) of 0.bias, which was not observed: .* members="producers", or skip=\[\'0\'\]'
    with pytest.raises(SecateursError, match=said):
        prune_(model, Channel(), TopK(magnitude(members="all") * input_norm()), uniform(keep=0.5), task)
    assert torch.equal(model[0].weight, weights)
    masks = prune_(model, Channel(), TopK(magnitude() * input_norm()), uniform(keep=0.5), task)
    norms = (model[0].weight.detach().abs() * batch.pow(2).sum(0).sqrt()).pow(2).sum(1)
    assert int((norms > 0).sum()) == 4
    assert dict(masks.plan) == {"0": 4}


def test_statistics_that_were_not_observed_are_an_error_that_names_them():
    site = find_sites(nn.Linear(4, 2), Element())[0]
    with pytest.raises(SecateursError, match=r"needs input_norm\(p=2\) of weight, .* give the stats that observe"):
        TopK(magnitude() * input_norm())(site, 2, {})


def test_weights_without_values_are_an_error():
    site = find_sites(nn.Linear(4, 4, device="meta"), Element())[0]
    with pytest.raises(PatternError, match=r"^weight: its weight is on the meta device and has no values; load the weights first"):
        TopK(magnitude())(site, 8, {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_single_precision_whatever_the_model_is(dtype):
    layer = nn.Linear(4, 4, dtype=dtype)
    (scores,) = TopK(magnitude()).scores([find_sites(layer, Element())[0]], {})
    assert scores.dtype == torch.float32
    assert torch.equal(scores.view(4, 4), layer.weight.detach().abs().float())


def test_the_units_of_a_solution_lie_as_those_of_the_site():
    layer = nn.Linear(8, 4)
    site = find_sites(layer, Block(2, 2), only="*")[0]
    kept = TopK(magnitude())(site, 3, {}).kept
    norms = as_units(site, layer.weight.detach()).flatten(2).norm(dim=2)
    assert kept.tolist() == [by_loop(norms[0].tolist(), 3)]
