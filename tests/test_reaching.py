"""As small, or as fast, as an accuracy allows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.types import KindError, SecateursError, TaskError

from .test_search import TOPK, planted


def uniformly(model, budget, task):
    return sc.planned(model, sc.Channel(), TOPK, sc.within_budget(budget, sc.uniform), task)


def accuracy(output, target):
    return (output.argmax(1) == target.argmax(1)).float().mean()


def judged(seed: int = 0):
    model, task = planted(seed=seed)
    test = torch.randn(50, 6)
    return model, replace(task, metric=accuracy, test=[(test, model(test).detach())])


def smallest(model, task, **how):
    return sc.smallest(model, sc.Channel(), TOPK, task, **{"cost": sc.params, "show": False, **how})


def test_the_smallest_reaches_the_floor_and_a_little_less_does_not():
    model, task = judged()
    before = copy.deepcopy(model.state_dict())
    found = smallest(model, task, within=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    dense = sc.evaluate(model, task, task.validation)
    assert found.dense == dense and found.floor == dense - 0.1 and found.trial.value >= found.floor
    assert found.cost == sc.params(model, task.example, found.plan)
    limit = sc.Budget(sc.params, limit=found.cost / 1.03)  # known to 2 %: a little less does not reach it
    with sc.trial(model, sc.Channel(), TOPK, uniformly(model, limit, task), task):
        assert sc.evaluate(model, task, task.validation) < found.floor
    assert 3 < len(found.study.trials) < 12 and found.dense_cost == sc.params(model)


def test_what_is_applied_is_what_was_measured_training_included():
    model, task = judged()

    def then(model, masks, task):
        sc.train_(model, task, torch.optim.Adam(model.parameters(), lr=0.01), 40, masks=masks, show=False)

    own = replace(task, train=task.validation)
    found = smallest(model, own, within=0.05, then=then)
    bare = smallest(model, own, within=0.05)
    assert found.cost < bare.cost
    twin = copy.deepcopy(model)
    masks = found.apply_(twin)
    assert sc.evaluate(twin, own, own.validation) == found.trial.value and sc.evaluate(twin, own, own.test) == found.test
    assert masks.plan == found.plan and found.dense_test == 1.0
    sc.shrink_(twin, masks)
    assert sc.params(twin) == found.cost
    with pytest.raises(SecateursError, match="but Linear has no such parameter"):
        found.apply_(nn.Linear(2, 2))
    model[6].bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(SecateursError, match=r"6.bias is not in this Sequential, or of another shape"):
        found.apply_(model)
    assert "of 707" in str(found) and "on test data" in str(found)


def test_budgets_are_tried_several_at_a_time_where_there_are_workers(monkeypatch):
    model, task = judged()
    batches = []

    class Crew:
        def __init__(self, bench, workers):
            self.bench = bench

        def __call__(self, jobs):
            batches.append(len(jobs))
            return ((number, self.bench(counts)) for number, counts in jobs)

        def close(self):
            pass

    monkeypatch.setattr("secateurs.search.workers.Processes", Crew)
    found = smallest(model, task, within=0.1, backend="processes", workers=4)
    assert max(batches) == 4 and found.cost == pytest.approx(smallest(model, task, within=0.1).cost, rel=0.05)


def by_threshold(budget, **bounds):
    return sc.within_budget(budget, sc.global_threshold, **bounds)


@pytest.mark.parametrize("allocate", [sc.erdos_renyi, sc.marginal, by_threshold])
def test_any_allocator_of_keep_or_of_a_budget_will_do(allocate):
    model, task = judged()
    found = smallest(model, task, reach=0.8, allocate=allocate, cost=sc.macs, floor=2)
    assert found.trial.value >= 0.8 == found.floor and min(found.plan.values()) >= 2
    assert found.cost < 0.9 * sc.macs(model, task.example)


def test_the_fastest_is_bounded_in_milliseconds():
    model, task = judged()
    cost = sc.layerwise("latency_ms", "ms", lambda work: 0.01 + 0.001 * work.outputs)
    found = sc.fastest(model, sc.Channel(), TOPK, task, within=0.1, cost=cost, show=False)
    assert found.cost_name == "latency_ms" and found.cost < found.dense_cost and found.trial.value >= found.floor


def test_a_loss_is_to_be_low_and_a_stopped_search_goes_on(tmp_path):
    model, task = judged()
    found = smallest(model, task, within=0.001, by="loss", checkpoint=tmp_path)
    assert found.trial.value <= found.dense + 0.001
    again = smallest(model, task, within=0.001, by="loss", checkpoint=tmp_path)
    assert again.plan == found.plan and again.study == found.study
    assert len(sc.read_trials(tmp_path).trials) == len(found.study.trials) - 1  # all but the model as it is


def test_what_cannot_be_reached_is_said():
    model, task = judged()
    for changed, error, said in (
        (
            {"reach": 1.5},
            SecateursError,
            "even the plan that keeps everything has accuracy 1 on the validation data, but at least 1.5",
        ),
        ({}, SecateursError, "give either within= "),
        ({"reach": 0.5, "within": 0.1}, SecateursError, "give either within= "),
        ({"within": float("nan")}, KindError, "within is nan"),
        ({"within": 0.1, "precision": 0.0}, SecateursError, r"precision=0.0 is not in \(0, 1\)"),
        ({"within": 0.1, "allocate": 0.5}, KindError, "allocate is 0.5, but must make allocators"),
        ({"within": 0.1, "cost": 3}, KindError, "cost is 3"),
        ({"within": 0.1, "by": lambda model, task: float("nan")}, SecateursError, "is nan, which cannot be compared"),
    ):
        with pytest.raises(error, match=said):
            smallest(model, task, **changed)
    with pytest.raises(TaskError, match="there is nothing to choose plans by"):
        smallest(model, replace(task, validation=None), within=0.1)
    falling = sc.Cost("rest", "units", lambda model, example: lambda plan: 100.0 - (48 if plan is None else sum(plan.values())))
    with pytest.raises(SecateursError, match="so that less is not cheaper"):
        smallest(model, task, within=0.1, cost=falling)


class Told(nn.Linear):
    """A layer with a state beside its tensors."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


def test_a_state_beside_the_tensors_is_left_alone():
    model, task = judged()
    model[0] = Told(*reversed(model[0].weight.shape))
    found = smallest(model, task, within=1.0)
    found.apply_(model)
    assert int(model[0].weight.any(1).sum()) == found.plan["0"] < len(model[0].weight)
