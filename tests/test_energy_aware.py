"""Energy-aware pruning: the layers that cost most first, the weights back that are missed most, and least squares."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateurs as sc
from secateurs.costs import Sum
from secateurs.costs.elements import constant
from secateurs.evidence import observe
from secateurs.methods import energy_aware_
from secateurs.methods.energy_aware import dearest_first
from secateurs.patterns import as_units
from secateurs.solve import missed_by
from secateurs.types import SecateursError

CHOICE = sc.TopK(sc.magnitude())


def work(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.randn(48, 2, 6, 6) + torch.randn(1, 2, 1, 1)
    batches = [(x, model(x).detach())]
    return model, sc.Task(x[:1], train=batches, calibration=batches, loss=nn.functional.mse_loss)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([sc.Element(), sc.Element(within="row"), sc.Element(within=4)]))
def test_what_a_weight_is_missed_by_is_the_fall_of_the_error_with_it(seed, pattern):
    generator = torch.Generator().manual_seed(seed)
    layer, x = nn.Linear(8, 3, bias=False), torch.randn(20, 8, generator=generator).double().float()
    layer.weight.data = torch.randn(3, 8, generator=generator)
    [site] = sites = sc.find_sites(layer, pattern, only="*")
    stats = observe(layer, sites, sc.Restored(CHOICE).needs, sc.Task(x, calibration=[(x, None)]))
    kept = torch.rand(site.contest_count, site.units // site.contest_count, generator=generator) < 0.5
    found = missed_by(site, kept, stats[site.name] if site.name not in stats else stats)
    dense = layer.weight.detach().double()
    gram = x.double().T @ x.double() / _per(stats, x)

    def error(stays):
        mask = torch.zeros(3, 8, dtype=torch.bool)
        as_units(site, mask).copy_(stays)
        gone = dense.masked_fill(mask, 0)
        return float((gone @ gram * gone).sum())

    for contest in range(kept.shape[0]):
        for unit in range(kept.shape[1]):
            with_it = kept.clone()
            with_it[contest, unit] = True
            assert float(found[contest, unit]) == pytest.approx(error(kept) - error(with_it), rel=1e-4, abs=1e-4)


def _per(stats, x):
    """What the products of the inputs are divided by."""
    gram = next(iter(next(iter(stats.values())).values()))
    return float((x.double().T @ x.double())[0, 0] / gram[0, 0, 0])


@torch.no_grad()
def test_so_many_of_those_that_stay_are_put_back_and_the_error_is_smaller():
    model, task = work()
    errors = []
    for part in (0.0, 0.3):
        pruned = copy.deepcopy(model)
        sc.prune_(pruned, sc.Element(), sc.Restored(CHOICE, part=part), sc.uniform(keep=0.4), task, only="3")
        errors.append(float((pruned(task.train[0][0]) - task.train[0][1]).square().mean()))
        assert int(pruned[3].weight.count_nonzero()) == round(0.4 * 64 * 12)
    assert errors[1] < 0.8 * errors[0]


def test_the_layers_that_cost_most_go_first_and_each_is_observed_with_those_before_it_pruned():
    model, task = work()
    sites = sc.find_sites(model, sc.Element(), task.example)
    order = [[site.name for site in part] for part in dearest_first(sc.macs)(sites)]
    assert order == [["0"], ["3"], ["5"]]  # 1152, 768 and 36 MACs
    turned = sc.layerwise("turned", "coins", lambda work: 1e6 / work.macs)
    assert [part[0].name for part in dearest_first(turned)(sites)] == ["5", "3", "0"]
    expected = copy.deepcopy(model)
    solver, plan = sc.LeastSquares(sc.Restored(CHOICE, 0.2), 1e-3), sc.uniform(keep=0.3)(sites, lambda: iter([]))
    for name in ("5", "3", "0"):
        only = replace(plan, shares={name: plan.shares[name]})
        sc.prune_(expected, sc.Element(), solver, only, task, only=name)
    masks = energy_aware_(model, task, cost=turned, keep=0.3, restore=0.2, damping=1e-3)
    assert dict(masks.plan) == dict(plan)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], atol=1e-5), name


def test_it_trains_at_the_end_and_takes_plans():
    model, task = work()
    sites = sc.find_sites(model, sc.Element(), task.example)
    plan = sc.by_layer({"0": 0.5, "3": 0.9})(sites, lambda: iter([]))
    before = copy.deepcopy(model)
    masks = energy_aware_(
        model, task, torch.optim.SGD(model.parameters(), lr=0.05), cost=sc.macs, allocate=plan, epochs=2, show=False
    )
    assert dict(masks.plan) == dict(plan) and all(int(masks[f"{n}.weight"].sum()) == plan[n] for n in plan)
    assert not torch.equal(model[5].weight, before[5].weight)
    assert int(model[3].weight.count_nonzero()) <= plan["3"]


def test_bad_input_is_an_error_that_says_what_to_do():
    model, task = work()
    with pytest.raises(SecateursError, match="energy_aware_: epochs=1 need an optimizer"):
        energy_aware_(model, task, cost=sc.macs, sparsity=0.5, epochs=1)
    whole = sc.Cost("whole", "coins", lambda model, example: lambda plan: 1.0)
    with pytest.raises(SecateursError, match="whole: this cost is of the whole model, and does not tell what each layer takes"):
        energy_aware_(model, task, cost=whole, sparsity=0.5)
    other = sc.Cost("other", "coins", lambda model, example: Sum(lambda plan: [constant("elsewhere", 1.0)]))
    with pytest.raises(SecateursError, match="other tells of elsewhere, none of which is to be pruned"):
        energy_aware_(model, task, cost=other, sparsity=0.5)
    with pytest.raises(SecateursError, match=r"Restored: part=1.5 must be a fraction in \[0, 1\]"):
        sc.Restored(CHOICE, part=1.5)
    with pytest.raises(SecateursError, match="Restored: rounds=0 must be a whole number of at least 1"):
        sc.Restored(CHOICE, rounds=0)
    with pytest.raises(SecateursError, match=r"^0: Restored is for patterns on single weights, and its units lie in 3"):
        sc.prune_(model, sc.Channel(), sc.Restored(CHOICE), sc.uniform(keep=0.5), task)
    with pytest.raises(SecateursError, match=r"give either sparsity= .* or keep="):
        energy_aware_(model, task, cost=sc.macs)
