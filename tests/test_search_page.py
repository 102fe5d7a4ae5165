"""The page of a search: what it draws, what it says, and that it is safe to open."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateurs as sc
from secateurs import models
from secateurs.report import (
    Attempt,
    Check,
    Curve,
    LayerCost,
    Point,
    SearchRecord,
    cost_bars,
    costs_of,
    front,
    layer_costs,
    pareto,
    predictions,
    read_search,
    search_html,
    search_record,
    sensitivity_curves,
    write_search,
    write_search_html,
)
from secateurs.search import Study, Trial
from secateurs.types import FileError, Plan, SecateursError

TRIED = (
    Attempt("a", 0.90, {"macs": 3e6, "ms": 1.0}, "uniform"),
    Attempt("b", 0.80, {"macs": 4e6, "ms": 0.5}, "random"),
    Attempt("<c>", 0.70, {"macs": 1e6}, "random"),
    Attempt("d", None, {}, "random", error="ValueError: <no>"),
    Attempt("e", math.nan, {"macs": 2e6}, "random"),
)
RECORD = SearchRecord(
    "Digits <1>",
    units={"macs": "MACs", "ms": "ms"},
    dense=Attempt("dense", 0.95, {"macs": 8e6, "ms": 2.0}),
    attempts=TRIED,
    chosen="a",
    layers=(
        LayerCost("macs", "conv1", 6e6, 2e6),
        LayerCost("macs", "fc", 2e6, 1e6),
        *(LayerCost("macs", f"s{i}", 10.0, 5.0) for i in range(3)),
    ),
    sensitivity=tuple(Curve(f"site{i}", (Point(0.0, 0.95), Point(0.5, 0.95 - 0.01 * i))) for i in range(8)),
    checks=tuple(Check(f"plan {i}", "ms", 1.0 + i, 1.1 + i) for i in range(3)),
    notes=("a note",),
    seed=3,
)


def titles(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter() if each.tag.endswith("title")]


def test_every_attempt_and_the_dense_model_are_marked_and_named():
    found = titles(pareto(RECORD, "macs"))
    assert sorted(found) == sorted(
        [
            "uniform, a: accuracy 90.0 %, 3.00 M MACs",
            "random, b: accuracy 80.0 %, 4.00 M MACs",
            "random, <c>: accuracy 70.0 %, 1.00 M MACs",
            "dense: accuracy 95.0 %, 8.00 M MACs",
        ]
    )
    assert "chosen" in pareto(RECORD, "macs") and pareto(RECORD, "watts") == ""


def test_small_layers_are_drawn_as_one():
    drawn = cost_bars(RECORD, "macs")
    assert "3 others" in drawn and "s1" not in drawn and "2.00 M of 6.00 M (33.3 %)" in drawn and cost_bars(RECORD, "ms") == ""


def test_the_most_sensitive_sites_are_named_and_all_can_be_pointed_at():
    drawn = sensitivity_curves(RECORD)
    assert titles(drawn) == [f"site{i}" for i in range(8)]
    shown = drawn.replace("<title>", "").split("legend_1")[-1]
    assert all(f"site{i}" in shown for i in range(3, 8))


def test_predictions_are_drawn_from_three_on():
    assert titles(predictions(RECORD, "ms"))[0] == "plan 0: predicted 1, measured 1.1"
    assert predictions(SearchRecord("Digits", checks=RECORD.checks[:2]), "ms") == ""


def test_the_page_tells_what_was_chosen_and_loads_nothing(tmp_path):
    text = write_search_html(RECORD, tmp_path / "search.html").read_text()
    page = text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Of 5 plans, a (uniform) was chosen: accuracy 90.00 % on validation data (95.00 % dense), with 37.5" in page
    assert "<c>" not in page and "<no>" not in page and "<script" not in page and "default-src 'none'" in page
    assert "ValueError: &lt;no&gt;" in page and "-9.1 %" in page
    assert search_html(RECORD) == text


def test_without_anything_tried_the_page_says_so():
    assert "Nothing was tried." in search_html(SearchRecord("Digits"))
    assert "1 plan was tried; none was chosen." in search_html(SearchRecord("Digits", attempts=TRIED[:1]))


def test_a_record_is_read_back_and_nothing_else_is(tmp_path):
    path = write_search(RECORD, tmp_path / "search.json")
    again = read_search(path)
    assert repr(again) == repr(RECORD) and again.best == TRIED[0]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match=r"search.json: this is not a search record: expected UTF-8"):
        read_search(path)
    path.write_text('{"format": "secateurs search record", "version": 1, "title": 7}')
    with pytest.raises(FileError, match=r"search.json: this is not a search record: search record.title is 7, expected text"):
        read_search(path)


def test_what_contradicts_itself_is_refused():
    with pytest.raises(SecateursError, match="chosen='z' is the name of no attempt"):
        SearchRecord("Digits", chosen="z")
    with pytest.raises(SecateursError, match=r"Attempt\('a'\): costs\['ms'\]=-1; expected zero or more"):
        Attempt("a", 0.5, {"ms": -1})


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12), st.booleans())
def test_the_front_is_what_none_beats(pairs, higher):
    tried = [Attempt(f"{place}", float(metric), {"c": float(cost)}) for place, (cost, metric) in enumerate(pairs)]
    sign = 1 if higher else -1
    expected = {
        (cost, metric)
        for cost, metric in pairs
        if not any((c <= cost and sign * m > sign * metric) or (c < cost and m == metric) for c, m in pairs)
    }
    found = [(each.costs["c"], each.metric) for each in front(tried, "c", higher)]
    assert sorted(found) == sorted(expected) and found == sorted(found)


def test_layers_of_a_real_plan_add_up_to_its_costs():
    model, x = models.digits_cnn(), torch.zeros(1, 1, 8, 8)
    plan = sc.uniform(keep=0.5)(sc.find_sites(model, sc.Channel(), x), lambda: iter([]))
    costs = [sc.macs, sc.params]
    layers, (dense, left) = layer_costs(model, x, plan, costs), costs_of(model, x, [None, plan], costs)
    for cost in costs:
        assert sum(each.dense for each in layers if each.cost == cost.name) == dense[cost.name]
        assert sum(each.left for each in layers if each.cost == cost.name) == left[cost.name] < dense[cost.name]


def test_a_record_of_no_study_of_failed_ones_or_of_some_that_cannot_be_compared_is_refused():
    model, x = nn.Linear(3, 2), torch.zeros(1, 3)
    dense, right = Trial(0, Plan({}), 0.9), Study((Trial(0, Plan({}), 0.8),), True, "accuracy")
    for studies, said in (
        ({}, "there is no study to show"),
        ({"a": Study((Trial(0, Plan({}), error="no"),), True, "accuracy")}, "no trial of a came to anything"),
        ({"a": right, "b": Study((Trial(0, Plan({}), 0.1),), False, "loss")}, "a is judged by accuracy and b by loss"),
    ):
        with pytest.raises(SecateursError, match=said):
            search_record("t", model, x, dense, studies, [sc.macs])
    with pytest.raises(SecateursError, match="two costs are called effective_macs"):
        search_record("t", model, x, dense, {"a": right}, [sc.effective_macs({}), sc.effective_macs({})])
