"""One site after the other pruned alone: what is measured is what pruning does, and plans from it lose least."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import report
from secateurs.allocate.levers import levers_of
from secateurs.search import Sensitivity, SiteCurve, Study
from secateurs.search.bench import Bench
from secateurs.types import FileError, PlanError, SecateursError, TaskError

CHOICE = sc.TopK(sc.magnitude())


def work(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [torch.randn(16, 6) for _ in range(2)]
    batches = [(x, model(x).detach().argmax(1)) for x in data]
    task = sc.Task(
        data[0][:1],
        validation=batches[:1],
        calibration=batches[1:],
        loss=nn.functional.cross_entropy,
        metric=lambda output, target: (output.argmax(1) == target).float().mean(),
    )
    return model, task


@pytest.mark.parametrize("solver", [CHOICE, sc.LeastSquares(CHOICE, damping=0.01)], ids=["topk", "least squares"])
@pytest.mark.parametrize(("by", "on"), [("loss", "validation"), ("metric", "calibration")])
def test_what_is_measured_is_what_pruning_that_site_alone_does(solver, by, on):
    model, task = work()
    before = copy.deepcopy(model.state_dict())
    found = sc.sensitivity(model, sc.Channel(), solver, task, keeps=(0.75, 0.3), by=by, on=on, show=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    measured = task if by == "metric" else replace(task, metric=task.loss)
    batches = task.validation if on == "validation" else task.calibration
    assert found.dense == sc.evaluate(model, measured, batches, show=False)
    assert [(curve.site, curve.kept) for curve in found.curves] == [("0", (12, 9, 4)), ("2", (8, 6, 2))]
    for curve in found.curves:
        for kept, value in zip(curve.kept, curve.values, strict=True):
            pruned = copy.deepcopy(model)
            plan = sc.uniform(keep=1.0)(sc.find_sites(pruned, sc.Channel(), task.example), lambda: iter([]))
            sc.prune_(pruned, sc.Channel(), solver, plan.with_counts({curve.site: kept}), task)
            assert sc.evaluate(pruned, measured, batches, show=False) == pytest.approx(value, abs=1e-6)


def test_a_scan_that_is_killed_goes_on_and_comes_to_the_same(tmp_path, monkeypatch):
    model, task = work()
    asked = {"keeps": (0.75, 0.5, 0.25), "by": "loss", "show": False}
    whole, judged, calls = sc.sensitivity(model, sc.Element(), CHOICE, task, **asked), Bench.judged, []

    def interrupted(self, plan):
        calls.append(plan)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return judged(self, plan)

    monkeypatch.setattr(Bench, "judged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sc.sensitivity(model, sc.Element(), CHOICE, task, checkpoint=tmp_path, **asked)
    again = sc.sensitivity(model, sc.Element(), CHOICE, task, checkpoint=tmp_path, **asked)
    assert again.curves == whole.curves and again.dense == whole.dense
    assert len(calls) == 5 + 10 - 4  # the dense model and nine trials, of which four were done
    sc.sensitivity(model, sc.Element(), CHOICE, task, checkpoint=tmp_path, **asked)
    assert len(calls) == 11
    with pytest.raises(FileError, match="holds trials of something else: its solver"):
        sc.sensitivity(model, sc.Element(), sc.TopK(sc.random(0)), task, checkpoint=tmp_path, **asked)


def test_its_allocator_loses_least_of_all_plans_by_the_curves():
    model, task = work()
    found = sc.sensitivity(model, sc.Element(), CHOICE, task, keeps=(0.8, 0.5, 0.25), by="loss", show=False)
    sites = sc.find_sites(model, sc.Element())
    lost = found.losses(sites)
    levers = module_levers(sites)
    for keep in (0.4, 0.6, 0.9):
        budget = sc.Budget(sc.params, keep=keep)
        for by in (sc.dynamic, sc.integer):
            plan = found.allocator(budget, by=by, levels=5)(sites, no_scores)
            counts = [lever.grid(5) for lever in levers]
            rows = lost(levers, counts)
            limit, price = budget.limit_for(model, None), sc.params.prepare(model, None)
            best = min(
                sum(row[n] for row, n in zip(rows, numbers, strict=True))
                for numbers in product(range(5), repeat=3)
                if price(plan.with_counts({s.name: c[n] for s, c, n in zip(sites, counts, numbers, strict=True)})) <= limit
            )
            mine = sum(row[0] for row in lost(levers, [[plan[site.name]] for site in sites]))
            assert plan.promised["params"] <= limit and mine <= best + 1e-9
    masks = sc.prune_(model, sc.Element(), CHOICE, found.allocator(sc.Budget(sc.params, keep=0.5)), task, walk=sc.in_order())
    assert sc.nonzero_params(model) <= 0.5 * sc.params(model) and masks.plan.promised


def no_scores():
    raise AssertionError("curves need no scores")


def module_levers(sites):
    return levers_of(sites, 1, 1.0, False)


def by_hand(values, higher_is_better=True):
    curve = SiteCurve("0", 10, (10, 8, 4, 2), values, ())
    return Sensitivity((curve,), values[0], higher_is_better, "accuracy", Study((), higher_is_better))


def test_curves_never_fall_where_more_goes_and_go_on_beyond_what_was_measured():
    sites = sc.find_sites(nn.Linear(10, 1), sc.Element(), only="*")
    sites = replace(sites, found=(replace(sites[0], name="0"),))
    lost = by_hand((0.9, 0.95, 0.8, 0.6)).losses(sites)(module_levers(sites), [[1, 2, 3, 4, 6, 8, 9, 10]])[0]
    assert lost == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.05, 0, 0, 0])
    lost = by_hand((2.0, 2.5, 2.25, 4.0), higher_is_better=False).losses(sites)(module_levers(sites), [[2, 4, 8]])[0]
    assert lost == pytest.approx([2.0, 0.5, 0.5])
    with pytest.raises(PlanError, match="the curves say nothing of weight: measure the same model"):
        by_hand((0.9, 0.9, 0.8, 0.6)).losses(sc.find_sites(nn.Linear(10, 1), sc.Element(), only="*"))


def test_a_metric_that_is_nan_where_much_goes_is_told_and_no_plan_goes_there():
    model, task = work()

    def shaky(model, task):
        kept = int(model[2].weight.count_nonzero())
        return float("nan") if kept < 40 else kept / 96

    found = sc.sensitivity(model, sc.Element(), CHOICE, task, keeps=(0.75, 0.5, 0.25), by=shaky, show=False)
    curve = found.curves[1]
    assert curve.values == (1.0, 0.75, 0.5, None) and len(found.study.failed) == 1
    assert curve.errors == ("24 of 96 units: NonFiniteError: the shaky is nan, which cannot be compared",)
    plan = found.allocator(sc.Budget(sc.params, keep=0.5))(sc.find_sites(model, sc.Element()), no_scores)
    assert plan["2"] >= 40
    with pytest.raises(
        SecateursError, match=r"sensitivity: the model as it is cannot be measured: NonFiniteError: the lost is nan"
    ):
        sc.sensitivity(model, sc.Element(), CHOICE, task, by=lost, show=False)
    with pytest.raises(SecateursError, match=r"sensitivity: 0: each of 2 trials failed: RuntimeError: no"):
        sc.sensitivity(model, sc.Element(), CHOICE, task, keeps=(0.5, 0.2), by=raising, show=False)


def lost(model, task):
    return float("nan")


def raising(model, task):
    if int(model[0].weight.count_nonzero()) < 72:
        raise RuntimeError("no")
    return 1.0


@pytest.mark.parametrize("keeps", [(), (1.5,), (0.5, float("nan")), 0.5])
def test_fractions_that_are_none_are_an_error(keeps):
    model, task = work()
    with pytest.raises(SecateursError, match=r"sensitivity: keeps=.* must be fractions in \[0, 1\)"):
        sc.sensitivity(model, sc.Element(), CHOICE, task, keeps=keeps)


def test_where_there_is_nothing_to_measure_on_that_is_said():
    model, task = work()
    with pytest.raises(TaskError, match=r"there is nothing to measure on: give Task\(calibration="):
        sc.sensitivity(model, sc.Element(), CHOICE, replace(task, calibration=None), on="calibration")
    with pytest.raises(SecateursError, match='on=\'test\' is none of "validation" and "calibration"'):
        sc.sensitivity(model, sc.Element(), CHOICE, task, on="test")


def test_the_curves_are_drawn():
    curves = report.site_curves(by_hand((0.9, None, 0.8, 0.6)))
    assert [point.sparsity for point in curves[0].points] == pytest.approx([0, 0.6, 0.8])
    assert "<title>0</title>" in report.sensitivity_curves(report.SearchRecord("scan", "accuracy", sensitivity=curves))
