"""NetAdapt: one layer smaller at a time, as a plain loop over copies does it; a run that was killed goes on to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.methods import netadapt_
from secateurs.search.adapting import Adapting
from secateurs.types import FileError, NonFiniteError, PlanError, SecateursError

CHOICE = sc.TopK(sc.magnitude(members="all"))


def work(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
    x = torch.randn(64, 6)
    with torch.no_grad():
        model.train()(x)
        model.eval()
        y = model(x)
    batches = [(x, y)]
    metric = lambda output, target: -nn.functional.mse_loss(output, target)  # noqa: E731
    return model, sc.Task(x[:1], train=batches, validation=batches, calibration=batches, loss=nn.functional.mse_loss, metric=metric)


def trained(model, masks, task):
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.05), 1, masks=masks, show=False)


def naive(model, task, keep, step, decay, then=None):
    """The loop of the paper, on copies, each pruned by `prune_`."""
    dense = sc.macs(model, task.example)
    plan, masks, number = sc.uniform(keep=1.0)(sc.find_sites(model, sc.Channel(), task.example), lambda: iter([])), None, 0
    price = sc.macs.prepare(model, task.example)
    while price(plan) > keep * dense:
        goal, proposals = max(keep * dense, price(plan) - dense * step * decay**number), []
        for name in plan:
            fits = [n for n in range(1, plan[name]) if price(plan.with_counts({name: n})) <= goal]
            if fits:
                smaller = plan.with_counts({name: max(fits)})
                tried = copy.deepcopy(model)
                held = None if masks is None else masks.bind(tried)
                found = sc.prune_(tried, sc.Channel(), CHOICE, smaller, task, masks=held, recalibrate=False)
                if then is not None:
                    torch.manual_seed(0)
                    then(tried, found, task)
                proposals.append((sc.evaluate(tried, task, task.validation, show=False), smaller, tried, found))
        _, plan, model, masks = max(proposals, key=lambda each: each[0])
        number += 1
    return model, plan


@pytest.mark.parametrize("then", [None, trained], ids=["pruned alone", "trained a little"])
def test_it_is_the_loop_of_the_paper(then):
    model, task = work()
    torch.manual_seed(0)
    expected, plan = naive(copy.deepcopy(model), task, 0.5, 0.12, 0.9, then)
    torch.manual_seed(0)
    masks = netadapt_(model, task, budget=sc.Budget(sc.macs, keep=0.5), step=0.12, decay=0.9, then=then)
    assert dict(masks.plan) == dict(plan)
    for name, value in model.state_dict().items():
        assert torch.allclose(value.double(), expected.state_dict()[name].double(), atol=1e-6), name
    assert masks.plan.promised["macs"] <= 0.5 * 207


def test_a_run_that_is_killed_goes_on_to_the_bit(tmp_path, monkeypatch):
    asked = {"budget": [sc.Budget(sc.macs, keep=0.4), sc.Budget(sc.params, keep=0.6)], "step": 0.12, "then": trained}
    whole, task = work()
    torch.manual_seed(1)
    masks = netadapt_(whole, task, **asked)
    model, _ = work()
    before, best, calls = copy.deepcopy(model.state_dict()), Adapting._best, []

    def killed(self, wanted):
        calls.append(wanted)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return best(self, wanted)

    monkeypatch.setattr(Adapting, "_best", killed)
    with pytest.raises(KeyboardInterrupt):
        netadapt_(model, task, checkpoint=tmp_path, **asked)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = netadapt_(model, task, checkpoint=tmp_path, **asked)
    assert again.plan == masks.plan and len(calls) > 4
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())
    model, _ = work()
    steps = len(calls)
    netadapt_(model, task, checkpoint=tmp_path, **asked)
    assert len(calls) == steps  # all of it was there
    with pytest.raises(FileError, match="belongs to another pruning: its steps is"):
        netadapt_(work()[0], task, checkpoint=tmp_path, **{**asked, "step": 0.2})


def test_a_measured_cost_with_cliffs_is_met_and_equal_blocks_stay_equal():
    torch.manual_seed(0)
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2)))
    model, x = nn.Sequential(blocks, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(16, 8)
    quick = sc.Cost("clock", "ms", lambda model, example: lambda plan: sum(4 * -(-n // 4) for n in plan.values()) if plan else 32.0)
    metric = lambda output, target: nn.functional.mse_loss(output, target)  # noqa: E731
    task = sc.Task(x[:1], validation=[(x, model(x).detach())], metric=metric, metric_name="error", higher_is_better=False)
    only = ["0.?.0", "1"]
    masks = netadapt_(model, task, budget=sc.Budget(quick, limit=20), step=0.1, same_in_every_block=True, only=only)
    assert masks.plan["0.0.0"] == masks.plan["0.1.0"] and masks.plan.promised["clock"] <= 20
    assert masks.kept and all(kept in (4, 8) for name, kept in masks.plan.items() if name != "1")


def test_bad_input_is_an_error_and_the_model_as_it_was():
    model, task = work()
    before, budget = copy.deepcopy(model.state_dict()), sc.Budget(sc.macs, keep=0.5)
    with pytest.raises(PlanError, match=r"netadapt_: macs can fall to 10 MACs at the least, but the budget is 9"):
        netadapt_(model, task, budget=sc.Budget(sc.macs, limit=9))
    lost = sc.Task(task.example, validation=task.validation, metric=lambda output, target: torch.tensor(torch.nan))
    with pytest.raises(
        NonFiniteError, match=r"netadapt_: no proposal has a finite accuracy \(0 nan, 3 nan\): look at what the model"
    ):
        netadapt_(model, lost, budget=budget)
    for wrong in ({"step": 1.5}, {"step": 0.0}, {"decay": 0}):
        with pytest.raises(SecateursError, match=r"the step is a fraction of the dense cost, in \(0, 1\), and decay"):
            netadapt_(model, task, budget=budget, **wrong)
    with pytest.raises(SecateursError, match="then is 3, but must be a function"):
        netadapt_(model, task, budget=budget, then=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    everything = netadapt_(model, task, budget=sc.Budget(sc.macs, keep=1.0))
    assert dict(everything.plan) == {"0": 12, "3": 9}


def test_steps_of_another_netadapt_are_refused(tmp_path):
    model, task = work()
    asked = {"budget": sc.Budget(sc.macs, keep=0.6), "step": 0.2, "checkpoint": tmp_path}
    netadapt_(model, task, **asked)
    for changed, said in (
        ({"floor": 7}, "bounds"),
        ({"skip": "3"}, "layers"),
        ({"then": trained}, "judge"),
    ):
        with pytest.raises(FileError, match=f"belongs to another pruning: its {said} is"):
            netadapt_(work()[0], task, **asked, **changed)
    with pytest.raises(FileError, match="its data is"):
        netadapt_(work()[0], replace(task, validation=[(torch.zeros(4, 6), torch.zeros(4, 3))]), **asked)
    model, _ = work()
    model[1] = nn.Tanh()
    with pytest.raises(FileError, match="its model is"):
        netadapt_(model, task, **asked)
