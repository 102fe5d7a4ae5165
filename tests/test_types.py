"""Plans, budgets and criteria: the words that every room uses."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateurs.costs import params
from secateurs.criteria import magnitude, random
from secateurs.evidence import input_norm
from secateurs.types import (
    Budget,
    Criterion,
    Evidence,
    FileError,
    NonFiniteError,
    PatternError,
    Plan,
    PlanError,
    SecateursError,
    Share,
    TaskError,
    WriteError,
)

names = st.text(min_size=1, max_size=8)
shares = st.builds(
    lambda units, fraction, elements: Share(units, int(units * fraction), elements),
    st.integers(1, 2**40),
    st.floats(0, 1),
    st.dictionaries(names, st.integers(0, 2**20), max_size=3),
)
plans = st.builds(Plan, st.dictionaries(names, shares, max_size=4), st.dictionaries(names, st.floats(allow_nan=False), max_size=2))


@given(plans)
def test_a_plan_goes_through_json_unchanged(plan):
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_counts_elements_not_units():
    plan = Plan({"a": Share(10, 4, {"a.weight": 1}), "b": Share(5, 5, {"b.weight": 18})})
    assert plan.sparsity == pytest.approx(6 / 100)
    assert plan.removed("a.weight") == 6
    assert plan.removed("b.weight") == 0
    assert plan.removed("c.weight") == 0
    assert (plan["a"], list(plan), len(plan), plan.shares["a"].sparsity) == (4, ["a", "b"], 2, 0.6)


def test_a_parameter_in_two_sites_is_removed_from_in_both():
    plan = Plan({"a": Share(4, 1, {"w": 2}), "b": Share(4, 3, {"w": 5})})
    assert plan.removed("w") == 3 * 2 + 1 * 5


def test_bits_of_a_share_are_written_only_where_they_are_given():
    without, given = Share(4, 1, {"w": 2}), Share(4, 1, {"w": 2}, bits=4)
    assert "bits" not in Plan({"a": without}).to_json()
    again = Plan.from_json(Plan({"a": given, "b": Share(4, 3, {"w": 5, "v": 1}, 6), "c": without}).to_json())
    assert [share.bits for share in again.shares.values()] == [4, 6, None]
    assert (again.bits_of("w"), again.bits_of("v"), again.bits_of("u")) == (6, 6, None)
    assert Plan({"a": without}).bits_of("w") is None


def test_an_empty_plan_removes_nothing():
    assert Plan({}).sparsity == 0


GOOD = {"shares": {"a": {"units": 4, "kept": 2, "elements": {"a.weight": 1}}}, "promised": {}}


def broken(**change: object) -> str:
    return json.dumps({**GOOD, "shares": {"a": {**GOOD["shares"]["a"], **change}}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"shares": {}}',
        '{"shares": [], "promised": {}}',
        '{"shares": {"a": 1}, "promised": {}}',
        '{"shares": {}, "promised": {"params": "many"}}',
        "[" * 100_000,
        broken(kept=5),
        broken(kept=-1),
        broken(kept=None),
        broken(kept="all"),
        broken(kept=1.5),
        broken(kept=True),
        broken(kept=float("inf")),
        broken(units=float("nan")),
        broken(elements={"a.weight": -1}),
        broken(elements={"a.weight": 0.5}),
        broken(elements=[1]),
        broken(bits=0),
        broken(bits=65),
        broken(bits=None),
        broken(bits=True),
        broken(bits=2.0),
        '{"shares": {"a": {"units": 1e400, "kept": 0, "elements": {}}}, "promised": {}}',
        broken(units=2**63),
        broken(elements={"a.weight": 10**1000}),
        json.dumps({**GOOD, "promised": {"params": 10**400}}),
        json.dumps({**GOOD, "promised": {"params": "12"}}),
        json.dumps({**GOOD, "promised": {"params": True}}),
        json.dumps({**GOOD, "extents": {"macs": []}}),
        json.dumps({**GOOD, "extents": {"a.weight": [[[[1, ["b"]]]]]}}),
        json.dumps({**GOOD, "extents": {"a.weight": [[[[2**62, ["a"]]]] * 1000]}}),
        json.dumps({**GOOD, "extents": {"a.weight": [[[[1, ["a"] * 1000]]]]}}),
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_plan_is_refused_with_a_way_out(text):
    with pytest.raises(PlanError, match=r"this is not a plan .*expected what Plan.to_json\(\) wrote"):
        Plan.from_json(text)


def test_the_good_plan_that_the_broken_ones_are_made_from_is_good():
    assert Plan.from_json(json.dumps(GOOD))["a"] == 2
    assert Plan.from_json(json.dumps({**GOOD, "extents": {"a.weight": [[[[3, ["a"]]], [[2, []]]]]}})).sparsity == 0.5


def test_a_plan_of_weights_without_elements_removes_nothing():
    assert Plan.from_json(json.dumps({**GOOD, "extents": {"a.weight": []}})).sparsity == 0
    assert Plan.from_json(json.dumps({**GOOD, "extents": {"a.weight": [[[[2**62, ["a"]]], [[0, []]]] * 9]}})).sparsity == 0


@pytest.mark.parametrize("wrong", [{}, {"limit": 10, "keep": 0.5}])
def test_a_budget_is_a_limit_or_a_fraction(wrong):
    with pytest.raises(SecateursError, match=r"Budget\(params\): give either limit= \(in parameters\) or keep="):
        Budget(params, **wrong)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_a_budgets_fraction_is_above_0_and_at_most_1(keep):
    with pytest.raises(SecateursError, match=rf"keep={keep}\): the fraction kept must be in \(0, 1\]"):
        Budget(params, keep=keep)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_budgets_limit_is_above_0(limit):
    with pytest.raises(SecateursError, match=rf"limit={limit}\): the limit must be above 0 parameters"):
        Budget(params, limit=limit)


def test_a_budget_is_absolute_or_relative_to_the_model_as_it_is():
    model = nn.Linear(9, 10)
    assert Budget(params, limit=33).limit_for(model, None) == 33
    assert Budget(params, keep=0.25).limit_for(model, None) == 25


@pytest.mark.parametrize("error", [PatternError, PlanError, NonFiniteError, TaskError, FileError, WriteError])
def test_every_error_is_a_value_error_that_can_be_caught_together(error):
    assert issubclass(error, SecateursError)
    assert issubclass(error, ValueError)


def test_a_full_disk_is_an_os_error_too():
    assert issubclass(WriteError, OSError)


def test_a_product_has_both_names_all_needs_once_and_the_reduction_of_the_left_one():
    norm = input_norm()
    product = magnitude(p=1) * norm * random(seed=3) * norm
    assert product.name == "magnitude(p=1) * input_norm(p=2) * random(seed=3) * input_norm(p=2)"
    assert product.needs == (norm,)
    values = torch.tensor([[3.0, 4.0]])
    assert product.reduce(values, (1,)).item() == 7
    evidence = Evidence("w", torch.tensor([[[-2.0, 3.0]]]), {norm: torch.tensor([[[10.0, 100.0]]])})
    assert (magnitude(p=1) * norm).element(evidence).tolist() == [[[20.0, 300.0]]]


@pytest.mark.parametrize("other", [2, "random", None])
def test_a_criterion_multiplies_with_criteria_and_statistics_only(other):
    with pytest.raises(TypeError):
        magnitude() * other


def test_a_criterion_of_ones_own_is_five_lines():
    largest = Criterion("largest", lambda evidence: evidence.weight, lambda values, dims: values.amax(dims))
    assert largest.reduce(largest.element(Evidence("w", torch.tensor([[1.0, -5.0]]))), (1,)).tolist() == [1.0]
