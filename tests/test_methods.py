"""Published methods on small trained networks: the budget is met, and what is left is better than chance and than random pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import methods
from secateurs.models import digits_cnn
from secateurs.tasks import digits
from secateurs.types import PatternError, SecateursError


def adam(model: nn.Module, lr: float = 2e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def normalised() -> nn.Module:
    """Two convolutions with BatchNorm, and a classifier."""
    layers = [(1, 16, 1), (16, 32, 2)]
    blocks = [nn.Sequential(nn.Conv2d(i, o, 3, step, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, step in layers]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 16, 10))


@pytest.fixture(scope="module")
def task() -> sc.Task:
    return digits()


@pytest.fixture(scope="module")
def trained(task) -> nn.Module:
    torch.manual_seed(0)
    model = digits_cnn()
    sc.train_(model, task, adam(model, 5e-3), 8, show=False)
    assert accuracy(model, task) > 0.95
    return model


def accuracy(model: nn.Module, task: sc.Task) -> float:
    return sc.evaluate(model, task, task.validation, show=False)


def channels_left(masks: sc.Masks) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items() if mask.ndim == 1}


def by_chance(model: nn.Module, task: sc.Task, pattern: Any, sparsity: float, epochs: int = 0) -> float:
    """What the same budget leaves of the accuracy if it is spent at random, in the mean over three seeds."""
    found = []
    for seed in range(3):
        pruned = copy.deepcopy(model)
        masks = sc.prune_(pruned, pattern, sc.TopK(sc.random(seed)), sc.uniform(sparsity=sparsity), task)
        if epochs:
            sc.train_(pruned, task, adam(pruned), epochs, masks=masks, show=False)
        found.append(accuracy(pruned, task))
    return sum(found) / 3


@pytest.mark.parametrize("method", [methods.thinet_, methods.he2017_])
def test_channels_by_reconstruction_without_training_and_with(method, trained, task):
    model, blind = copy.deepcopy(trained), sc.Task(example=task.example, calibration=task.calibration)  # no loss, no labels needed
    masks = method(model, blind, sparsity=0.5)
    assert channels_left(masks) == {"conv1.bias": 8, "conv2.bias": 16, "fc1.bias": 32}
    without = accuracy(model, task)
    assert without > 0.85 and without > by_chance(trained, task, sc.Channel(), 0.5) + 0.2
    again = copy.deepcopy(trained)
    masks = method(again, task, adam(again), sparsity=0.5, epochs=2, show=False)
    assert accuracy(again, task) > 0.95
    assert not sc.shrink_(again, masks).skipped and accuracy(again, task) > 0.95
    with pytest.raises(SecateursError, match="epochs=2 need an optimizer to train with"):
        method(copy.deepcopy(trained), task, sparsity=0.5, epochs=2)


def test_slimming_drives_scales_to_zero_and_takes_those_channels(task):
    torch.manual_seed(0)
    model = normalised()
    run = methods.network_slimming_(
        model, task, adam(model, 5e-3), sparsity=0.6, sparse_epochs=6, epochs=3, strength=3e-3, show=False
    )
    left = channels_left(run.masks)
    assert left["0.1.weight"] + left["1.1.weight"] == round(0.4 * 48) and accuracy(model, task) > 0.93
    plain, slim = normalised(), normalised()
    plain.load_state_dict(slim.state_dict())
    sizes = []
    for net, hooks in ((plain, []), (slim, [sc.penalty(0.05, p=1, of="scales")])):
        sc.train_(net, task, adam(net, 5e-3), 3, hooks=hooks, show=False)
        sizes.append(float(net[1][1].weight.detach().abs().sum()))
    assert sizes[1] < 0.9 * sizes[0]
    with pytest.raises(PatternError, match=r"network_slimming_: none of conv1, conv2, fc1 passes a normalisation"):
        methods.network_slimming_(digits_cnn(), task, adam(model), sparsity=0.5, sparse_epochs=1, epochs=1)
    with pytest.raises(SecateursError, match="network_slimming_: sparse_epochs=0 and epochs=1 must both be at least 1"):
        methods.network_slimming_(model, task, adam(model), sparsity=0.5, sparse_epochs=0, epochs=1)
    with pytest.raises(SecateursError, match=r'penalty\(of="scales"\): Linear has no normalisation with a scale'):
        sc.train_(nn.Linear(2, 2), task, adam(model), 1, hooks=[sc.penalty(1.0, of="scales")])
    with pytest.raises(SecateursError, match=r"penalty\(of='norms'\): of is \"weights\" or \"scales\""):
        sc.penalty(1.0, of="norms")


def test_slimming_leaves_alone_what_passes_no_normalisation(task):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    run = methods.network_slimming_(model, task, adam(model), sparsity=0.25, sparse_epochs=1, epochs=1, show=False)
    assert channels_left(run.masks) == {"1.weight": 6, "1.bias": 6, "0.bias": 6}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (methods.ssl_, {"strength": 0.95}),
        (methods.ssl_, {"target": sc.Target(0.4, strict=True)}),
        (methods.ssl_, {"strength": 0.1, "allocate": sc.within_budget(sc.Budget(sc.macs, keep=0.5), sc.uniform)}),
        (methods.group_sparsity_, {"strength": 1e-3, "allocate": sc.uniform(sparsity=0.5)}),
        (methods.growing_regularisation_, {"allocate": sc.uniform(sparsity=0.5), "delta": 20.0, "every": 4, "ceiling": 80.0}),
    ],
)
def test_channels_that_penalties_press_to_zero(method, options, trained, task):
    model = copy.deepcopy(trained)
    dense = sc.macs(model, task.example)
    run = method(model, task, adam(model), sparse_epochs=1, epochs=1, show=False, **options)
    assert (
        sum(run.masks.plan.values()) < 112 and accuracy(model, task) > 0.85 and [e["sparsity"] > 0 for e in run.history] == [0, 1]
    )
    assert not sc.shrink_(model, run.masks, task.example).skipped and accuracy(model, task) > 0.85
    assert sc.macs(model, task.example) < (0.51 if "allocate" in options else 0.95) * dense
    if method is methods.ssl_:
        with pytest.raises(SecateursError, match=r"ssl_: give strength=.*, with allocate= or without, or target=.*, one of them"):
            method(model, task, adam(model), sparse_epochs=1, epochs=1, **{"strength": 1.0, "target": 0.5, **options})
    with pytest.raises(SecateursError, match=f"{method.__name__}: sparse_epochs=0 and epochs=1 must both be at least 1"):
        method(model, task, adam(model), sparse_epochs=0, epochs=1, **options)


def test_geometric_medians_softly_and_for_good(trained, task):
    model = copy.deepcopy(trained)
    run = methods.fpgm_(model, task, adam(model), sparsity=0.5, soft_epochs=2, epochs=3, show=False)
    assert channels_left(run.masks) == {"conv1.bias": 8, "conv2.bias": 16, "fc1.bias": 32}
    assert [entry["sparsity"] > 0 for entry in run.history] == [False, False, True, True, True]
    assert accuracy(model, task) > 0.95
    with pytest.raises(SecateursError, match="fpgm_: epochs=0 must be at least 1"):
        methods.fpgm_(model, task, adam(model), sparsity=0.5, epochs=0)


@pytest.mark.parametrize(("activations", "shrink"), [(False, False), (True, True)])
def test_first_order_in_rounds_over_the_whole_network(activations, shrink, trained, task):
    model, options = copy.deepcopy(trained), {"activations": activations, "shrink": shrink, "show": False}
    run = methods.taylor_(model, task, adam(model), sparsity=0.7, rounds=4, last_epochs=1, **options)
    left = (
        channels_left(run.masks) if not shrink else {name: len(bias) for name, bias in model.named_parameters() if bias.ndim == 1}
    )
    assert sum(left.values()) == round(0.3 * (16 + 32 + 64)) + 10 * shrink and len(run.history) == 5
    assert accuracy(model, task) > max(0.93, by_chance(trained, task, sc.Channel(), 0.7))


@pytest.fixture(scope="module")
def randomly_pruned(task) -> float:
    """What a fresh network learns with 2 % of its connections, drawn at random."""
    torch.manual_seed(0)
    return by_chance(digits_cnn(), task, sc.Element(), 0.98, epochs=8)


@pytest.mark.parametrize("method", [methods.snip_, methods.grasp_, methods.synflow_], ids=lambda method: method.__name__)
def test_a_fresh_network_is_pruned_and_trains_better_than_a_random_one(method: Callable[..., sc.Masks], task, randomly_pruned):
    torch.manual_seed(0)
    fresh = digits_cnn()
    model, more = copy.deepcopy(fresh), {"rounds": 20} if method is methods.synflow_ else {"batches": 4}
    masks = method(model, task, sparsity=0.98, **more)
    assert masks.sparsity == pytest.approx(0.98, abs=1e-4) and all(bool(mask.any()) for mask in masks.values())
    assert all(torch.equal(model.get_parameter(name)[mask], fresh.get_parameter(name)[mask]) for name, mask in masks.items())
    sc.train_(model, task, adam(model, 5e-3), 8, masks=masks, show=False)
    assert accuracy(model, task) > max(0.5, randomly_pruned + 0.2)


@pytest.mark.parametrize(("sparsity", "at_least"), [(0.9, 0.85), (0.97, 0.4)])
def test_movement_fine_tunes_what_it_keeps(sparsity, at_least, trained, task):
    model = copy.deepcopy(trained)
    run = methods.movement_(model, task, adam(model), 6, sparsity=sparsity, show=False)
    assert run.masks.sparsity == pytest.approx(sparsity, abs=1e-3)
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in run.masks.items())
    assert accuracy(model, task) > max(at_least, by_chance(trained, task, sc.Element(), sparsity, epochs=3) + 0.2)


def test_gates_choose_channels_of_the_whole_network_or_of_each_layer(trained, task):
    model = copy.deepcopy(trained)
    run = methods.pcas_(model, task, adam(model), sparsity=0.6, gate_epochs=2, epochs=1, show=False)
    assert sum(channels_left(run.masks).values()) == round(0.4 * (16 + 32 + 64))
    model = copy.deepcopy(trained)
    run = methods.pcas_(model, task, adam(model), sparsity=0.5, gate_epochs=4, epochs=3, allocate=sc.uniform, show=False)
    assert channels_left(run.masks) == {"conv1.bias": 8, "conv2.bias": 16, "fc1.bias": 32}
    assert accuracy(model, task) > 0.94
    assert not sc.shrink_(model, run.masks).skipped


def test_rounds_save_layers_that_one_round_loses_as_a_whole():
    """At 16 of 2,148 weights, one round takes the large layer whole, though nothing flows then; many rounds keep a way through."""
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 500), nn.ReLU(), nn.Linear(500, 4))
    task = sc.Task(example=torch.zeros(1, 4))
    left = []
    for rounds in (1, 60):
        model = copy.deepcopy(fresh)
        sites = sc.find_sites(model, sc.Element(), task.example)
        methods.synflow_(model, task, sparsity=1 - 24 / sum(site.units for site in sites), rounds=rounds)
        flow = copy.deepcopy(model)
        for parameter in flow.parameters():
            parameter.data.abs_()
        for layer in (0, 2, 4):
            flow[layer].bias.data.zero_()
        left.append(float(flow(torch.ones(1, 4)).detach().sum()))
    assert left[0] < left[1] and left[1] > 0


def test_what_is_pruned_before_training_is_taken_back_on_error(task):
    model = digits_cnn()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SecateursError):
        methods.synflow_(model, task, sparsity=0.9, rounds=3, only="fc3")
    calls = []

    def interrupt(name: str, module: nn.Module) -> bool:
        calls.append(name)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        methods.synflow_(model, task, sparsity=0.9, rounds=30, only=interrupt)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(SecateursError, match="synflow_: rounds=0 must be at least 1"):
        methods.synflow_(model, task, sparsity=0.9, rounds=0)
    with pytest.raises(SecateursError, match="batches=0 must be at least 1"):
        methods.snip_(model, task, sparsity=0.9, batches=0)
