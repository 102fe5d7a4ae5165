"""Predictions before pruning: the laws that they keep. No test asserts a time; most run on a machine that is made up."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.run.choosing.tune import Tuned
from secateurs.run.forecast.latency import GRID, falling, latency, latency_ms
from secateurs.run.forecast.narrow import near
from secateurs.run.forecast.predict import Weighted, predict
from secateurs.run.forecast.whole import Whole
from secateurs.run.kernels.machine import InstructionSet, available
from secateurs.run.planning.layers import Choice, positions_of
from secateurs.testing import COUPLED, LAYERS, NETWORKS, check_cost
from secateurs.types import PatternError, Plan, PlanError, SecateursError, Share, TaskError

tune_module, predict_module, latency_module, whole_module = (
    importlib.import_module(f"secateurs.run.{name}")
    for name in ("choosing.tune", "forecast.predict", "forecast.latency", "forecast.whole")
)

pytestmark = pytest.mark.skipif(not available(), reason="needs the compiled extension")


@dataclass
class Machine:
    """One whose kernels take 2 ns a nonzero and position, and whose torch 1 ns a weight: break-even at half the weights."""

    measured: list[Weighted]
    noise: float = 0.0
    runtime: float = 1.0

    def layer(self, layer: Weighted, isa: InstructionSet, *_: Any) -> Tuned:
        self.measured.append(layer)
        wobble = 1 + self.noise * (-1) ** len(self.measured)
        positions = positions_of(layer)
        dense, nonzeros = layer.weight.numel() * positions * 1e-9, int(layer.weight.count_nonzero())
        choice = replace(next(tune_module.candidates(layer, isa)), dense=2e-9 * nonzeros * positions > dense)
        return Tuned(choice, 2e-9 * nonzeros * positions * wobble, dense * wobble)

    def behind(self, layer: Weighted, *_: Any) -> float:
        return 2e-9 * int(layer.weight.count_nonzero()) * positions_of(layer)

    def whole(self, *_: Any) -> Whole:
        return Whole({"torch": self.runtime}, 0.0, 1e-9)


@pytest.fixture(autouse=True)
def _own_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(whole_module, "DENSE", {})  # torch as it comes is enough


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine([])
    monkeypatch.setattr(tune_module, "_measured", made.layer)
    monkeypatch.setattr(predict_module, "behind_a_kernel", made.behind)
    monkeypatch.setattr(latency_module, "whole", made.whole)
    monkeypatch.setattr(latency_module, "half", lambda *_: None)
    monkeypatch.setattr(
        predict_module, "limits", lambda *_: importlib.import_module("secateurs.run.choosing.limits").Limits(1e15, 1e15)
    )
    return made


def network() -> nn.Sequential:
    """A convolution into which a normalisation is folded, one without, and two linear layers, for inputs (1, 4, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 8),
    )


EXAMPLE = torch.zeros(1, 4, 8, 8)


def plan_of(model: nn.Module, example: Any, pattern: Any, **fraction: float) -> Plan:
    sites = sc.find_sites(model, pattern, example)
    return sc.uniform(**fraction)(sites, lambda: sc.TopK(sc.random()).scores(sites, {}))


# ---------------------------------------------------------------- one layer


def test_a_layer_takes_the_kernels_time_or_the_dense_one_where_that_is_less(machine):
    sparse = predict(nn.Linear(100, 40), sc.Element(), 0.9, threads=1)
    assert sparse.sparse_ms == pytest.approx(2 * 400e-6)
    assert sparse.dense_ms == pytest.approx(4000e-6)
    assert sparse.speed_up == pytest.approx(5)
    assert sparse.measured
    assert sparse.kernel.startswith("vector")
    half = predict(nn.Linear(100, 40), sc.Element(), 0.3, threads=1)
    assert half.sparse_ms == half.dense_ms == sparse.dense_ms
    assert half.kernel == "torch, dense"


def test_what_is_noise_never_makes_a_sparse_layer_slower_than_the_dense_one(machine):
    machine.noise = 0.2
    found = [predict(nn.Linear(100, 40), sc.Element(), sparsity, threads=1) for sparsity in (0.05, 0.1, 0.9)]
    assert all(each.sparse_ms <= each.dense_ms for each in found)


PATTERNS = [
    (sc.Element(), 0.9, 16 * 32 * 9 // 10),
    (sc.Element(within="row"), 0.5, 16 * 16),
    (sc.NofM(2, 4), 0.5, 16 * 16),
    (sc.Block(4, 1), 0.75, 16 * 24),
    (sc.Vector("inputs", 8), 0.75, 16 * 24),
    (sc.Filter(), 0.75, 12 * 32),
    (sc.Element(), 0.0, 0),
    (sc.NofM(2, 4), 0.0, 0),
]


@pytest.mark.parametrize(("pattern", "sparsity", "removed"), PATTERNS, ids=repr)
def test_the_stand_in_loses_what_the_pattern_says(machine, pattern, sparsity, removed):
    found = predict(nn.Linear(32, 16), pattern, sparsity, threads=1)
    assert 512 - int(machine.measured[-1].weight.count_nonzero()) == pytest.approx(removed, abs=1)
    assert (found.pattern, found.sparsity) == (pattern, sparsity)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pattern", [sc.Kernel(), sc.Block(2, 1), sc.Filter()], ids=repr)
def test_units_of_a_grouped_convolution_go_as_wholes(machine, pattern, kernel):
    predict(nn.Conv2d(8, 16, kernel, groups=2), pattern, 0.5, example=torch.zeros(1, 8, 6, 6), threads=1)
    alive = machine.measured[-1].weight != 0
    assert alive.shape == (16, 4, kernel, kernel)
    assert int(alive.sum()) == alive.numel() // 2
    units = {sc.Kernel(): alive.flatten(2), sc.Block(2, 1): alive.view(8, 2, -1).mT, sc.Filter(): alive.flatten(1)}[pattern]
    assert torch.equal(units.any(-1), units.all(-1))


def test_a_layer_whose_channels_go_is_a_smaller_dense_one(machine):
    conv = predict(nn.Conv2d(8, 16, 3), sc.Channel(), 0.5, example=torch.zeros(1, 8, 6, 6), threads=1)
    assert machine.measured[-1].weight.shape == (8, 8, 3, 3)
    assert machine.measured[-1].out.shape == (1, 8, 4, 4)
    assert conv.speed_up == pytest.approx(2)
    predict(nn.Conv2d(8, 16, 3, groups=8), sc.Channel(), 0.5, example=torch.zeros(1, 8, 6, 6), threads=1)
    depthwise = machine.measured[-1]
    assert (depthwise.weight.shape, depthwise.x.shape, depthwise.groups) == ((8, 1, 3, 3), (1, 4, 6, 6), 4)
    predict(nn.Linear(8, 10), sc.Head(), 0.99, threads=1)
    assert machine.measured[-1].weight.shape == (1, 8)


def test_asking_twice_measures_once_and_the_layer_stays_as_it_is(machine):
    layer = nn.Linear(32, 16).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    first = predict(layer, sc.Element(), 0.9, threads=1)
    count = len(machine.measured)
    assert count == 2
    assert predict(layer, sc.Element(), 0.9, threads=1) == first
    assert predict(nn.Linear(32, 16), sc.Element(), 0.9, threads=1) == first  # the numbers in it do not matter
    assert len(machine.measured) == count
    predict(layer, sc.Element(), 0.8, threads=1)
    predict(layer, sc.Element(), 0.9, threads=2)
    assert len(machine.measured) == count + 3
    assert layer.training
    assert layer.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_what_is_known_needs_no_stand_in(machine, monkeypatch):
    first = predict(nn.Linear(32, 16), sc.Element(), 0.9, threads=1)
    monkeypatch.setattr(predict_module, "_thinned", lambda *_: pytest.fail("made a stand-in again"))
    assert predict(nn.Linear(32, 16), sc.Element(), 0.9, threads=1) == first


def test_earlier_zeros_and_numbers_that_are_none_do_not_matter(machine):
    layer = nn.Linear(32, 16)
    fresh = predict(layer, sc.Element(), 0.5, threads=1)
    nn.init.zeros_(layer.weight[:8].data)
    layer.weight.data[8:] = torch.nan
    assert predict(layer, sc.Element(), 0.5, threads=1) == fresh


def test_without_tuning_nothing_is_measured(machine):
    found = predict(nn.Linear(64, 64), sc.Element(), 0.9, threads=1, tune=False)
    assert not machine.measured
    assert not found.measured
    assert found.sparse_ms <= found.dense_ms


def test_a_layer_of_another_kind_or_dtype_stays_as_slow_as_it_is_and_says_so():
    for layer, example in ((nn.LSTM(8, 4), torch.zeros(5, 1, 8)), (nn.Linear(4, 4).double(), None)):
        found = predict(layer, sc.Element(), 0.9, example=example, threads=1)
        assert found.sparse_ms == found.dense_ms > 0
        assert found.speed_up == 1
        assert found.kernel == f"dense: of {layer!r} no sparse time is predicted"


def test_layers_are_really_measured_and_remembered(monkeypatch):
    first = predict(nn.Conv1d(8, 8, 3), sc.Element(), 0.9, example=torch.zeros(1, 8, 20), threads=1)
    assert 0 < first.sparse_ms <= first.dense_ms
    monkeypatch.setattr(tune_module, "_measured", lambda *_: pytest.fail("measured again"))
    assert predict(nn.Conv1d(8, 8, 3), sc.Element(), 0.9, example=torch.zeros(1, 8, 20), threads=1) == first


def test_without_kernels_a_layer_takes_what_torch_takes(monkeypatch):
    monkeypatch.setenv("SECATEURS_ISA", "none")
    found = predict(nn.Linear(16, 16), sc.Element(), 0.9, threads=1)
    assert 0 < found.sparse_ms <= found.dense_ms
    assert found.kernel == "torch, dense"


# ---------------------------------------------------------------- what predict refuses

REFUSED: list[tuple[nn.Module, Any, float, dict[str, Any], type[SecateursError], str]] = [
    (nn.Linear(8, 8), sc.Element(), 1.0, {}, SecateursError, r"predict: sparsity=1.0 is not in \[0, 1\)"),
    (nn.Linear(8, 8), sc.Element(), -0.1, {}, SecateursError, "sparsity=-0.1"),
    (nn.Linear(8, 8), sc.Element(), 0.5, {"threads": 0}, SecateursError, "threads=0"),
    (nn.Linear(7, 8), sc.NofM(2, 4), 0.5, {}, PatternError, r"weight: NofM\(2, 4\)"),
    (nn.Linear(8, 8), sc.NofM(2, 4), 0.9, {}, PlanError, r"NofM\(2, 4\) keeps 32 by itself"),
    (nn.Conv1d(4, 4, 3), sc.Vector("height"), 0.5, {"example": torch.zeros(1, 4, 9)}, PatternError, "height"),
    (nn.Conv2d(3, 8, 3), sc.Element(), 0.5, {}, TaskError, r"Conv2d\(3, 8, kernel_size=\(3, 3\).*give example="),
    (nn.LSTM(8, 4), sc.Element(), 0.5, {}, TaskError, r"LSTM\(8, 4\).*give example="),
    (nn.Linear(8, 8), sc.Element(), 0.5, {"example": torch.zeros(1, 9)}, TaskError, "rejects the example"),
    (
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        sc.Element(),
        0.5,
        {"example": torch.zeros(1, 8)},
        SecateursError,
        "Sequential is 2 layers for the kernels, and predict takes one.*latency_ms",
    ),
]


@pytest.mark.parametrize(("layer", "pattern", "sparsity", "more", "error", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_predict_says_what_is_wrong(machine, layer, pattern, sparsity, more, error, message):
    with pytest.raises(error, match=message):
        predict(layer, pattern, sparsity, **{"threads": 1, **more})


# ---------------------------------------------------------------- a model


def test_falling_is_isotonic_regression():
    from sklearn.isotonic import isotonic_regression

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.randn(7, generator=generator).double()
        assert falling(values.tolist()) == pytest.approx(isotonic_regression(values.numpy(), increasing=False).tolist())


def test_a_plan_takes_what_was_measured_where_it_was_and_straight_lines_between(machine):
    model = nn.Sequential(nn.Linear(100, 40))
    count = latency(threads=1).prepare(model, torch.zeros(1, 100))
    assert count(None) == pytest.approx(4000e-6 + 1e-6)
    for sparsity in GRID[1:]:
        expected = min(4000, 2 * round(4000 * (1 - sparsity))) * 1e-6 + 1e-6
        assert count(plan_of(model, None, sc.Element(), sparsity=sparsity)) == pytest.approx(expected)
    between = [count(plan_of(model, None, sc.Element(), sparsity=sparsity)) for sparsity in (0.8, 0.85, 0.9)]
    assert between[1] == pytest.approx((between[0] + between[2]) / 2)
    last = count(plan_of(model, None, sc.Element(), sparsity=GRID[-1]))
    assert count(plan_of(model, None, sc.Element(), sparsity=0.999)) == last


@pytest.mark.parametrize(
    ("pattern", "noise"),
    [
        *((each, noise) for each in (sc.Element(), sc.Block(4, 1, tail="keep"), sc.Kernel(), sc.Filter()) for noise in (0.0, 0.5)),
        (sc.Channel(), 0.0),  # whose widths are told as they were measured
    ],
    ids=repr,
)
def test_keeping_more_never_gets_cheaper_and_never_dearer_than_dense(machine, pattern, noise):
    machine.noise = noise
    model, only = network(), ["0", "3"] if pattern == sc.Kernel() else None
    sites = sc.find_sites(model, pattern, EXAMPLE, only=only)
    cost = latency(pattern if isinstance(pattern, sc.Block) else None, threads=1)
    count = cost.prepare(model, EXAMPLE)
    found = [count(sc.uniform(keep=keep / 25)(sites, lambda: iter([]))) for keep in range(1, 26)]
    assert found == sorted(found)
    assert found[-1] <= count(None)
    assert found[0] < found[-1]


def test_each_layer_that_a_plan_names_gets_cheaper_folded_ones_too(machine):
    model = network()
    count = latency(threads=1).prepare(model, EXAMPLE)
    for name in ("0", "3", "6", "8"):
        plan = sc.by_layer({name: 0.9})(sc.find_sites(model, sc.Element(), EXAMPLE), lambda: iter([]))
        layer = model.get_submodule(name)
        positions = 1 if isinstance(layer, nn.Linear) else 64
        saved = (layer.weight.numel() - 2 * round(0.1 * layer.weight.numel())) * positions * 1e-6
        assert count(None) - count(plan) == pytest.approx(saved, rel=0.01)


def test_a_narrower_model_loses_in_both_dimensions(machine):
    model = network()
    count = latency(threads=1).prepare(model, EXAMPLE)
    plan = plan_of(model, EXAMPLE, sc.Channel(), keep=0.5)
    weights = {0: 4 * 8 * 9 * 64, 3: 8 * 8 * 9 * 64, 6: 512 * 32, 8: 32 * 8}
    assert count(plan) == pytest.approx(1e-6 * (1 + sum(weights.values())), rel=0.1)


def test_where_another_runtime_is_faster_zeros_pay_only_below_it_and_channels_at_once(machine):
    model = network()
    dense = latency(threads=1)(model, EXAMPLE)
    machine.runtime = dense / 1e3 / 2
    count = latency(threads=1).prepare(model, EXAMPLE)
    assert count(None) == count(plan_of(model, EXAMPLE, sc.Element(), sparsity=0.7)) == pytest.approx(dense / 2)
    assert count(plan_of(model, EXAMPLE, sc.Element(), sparsity=0.9)) < dense / 4
    assert count(plan_of(model, EXAMPLE, sc.Channel(), keep=0.5)) < dense / 2 * 0.4


def test_no_layer_falls_below_the_machines_limit(machine, monkeypatch):
    limits = importlib.import_module("secateurs.run.choosing.limits").Limits(2e9, 1e15)  # one weight and position a nanosecond
    monkeypatch.setattr(predict_module, "limits", lambda *_: limits)
    count = latency(threads=1).prepare(nn.Sequential(nn.Linear(100, 40)), torch.zeros(1, 100))
    monkeypatch.setattr(machine, "layer", lambda *_: pytest.fail("measured too early"))
    monkeypatch.setattr(tune_module, "_measured", lambda layer, *_: Tuned(Choice(), 1e-12, 1e-12))
    plan = plan_of(nn.Sequential(nn.Linear(100, 40)), None, sc.Element(), sparsity=0.9)
    assert count(plan) == pytest.approx(400e-6 + 1e-6)


def test_budgets_are_met_and_promised(machine):
    model = network()
    for pattern, keep in ((sc.Element(), 0.3), (sc.Channel(), 0.5)):
        for cost in (latency_ms, latency(threads=1)):
            sites = sc.find_sites(model, pattern, EXAMPLE)
            plan = sc.within_budget(sc.Budget(cost, keep=keep), sc.uniform)(sites, lambda: iter([]))
            assert 0.9 * keep * cost(model, EXAMPLE) < plan.promised["latency_ms"] <= keep * cost(model, EXAMPLE)
    with pytest.raises(PlanError, match=r"latency_ms can fall to .* ms at the least"):
        sc.within_budget(sc.Budget(latency_ms, limit=1e-9), sc.uniform)(sites, lambda: iter([]))


def test_a_second_search_measures_nothing(machine):
    model, plan = network(), plan_of(network(), EXAMPLE, sc.Element(), sparsity=0.6)
    first = latency(threads=1)(model, EXAMPLE, plan)
    assert len(machine.measured) == 4 * len(GRID)
    assert latency(threads=1)(network(), EXAMPLE, plan) == first
    assert len(machine.measured) == 4 * len(GRID)


def test_dense_layers_are_measured_at_once_and_the_others_when_a_plan_asks(machine):
    count = latency(threads=1).prepare(network(), EXAMPLE)
    assert len(machine.measured) == 4
    plan = sc.by_layer({"3": 0.6})(sc.find_sites(network(), sc.Element(), EXAMPLE), lambda: iter([]))
    count(plan)
    assert len(machine.measured) == 4 + len(GRID) - 1


def test_blocks_have_their_own_times_only_where_they_are_named(machine):
    model = nn.Sequential(nn.Linear(64, 64))
    plan = plan_of(model, None, sc.Block(4, 1), sparsity=0.9)
    latency(threads=1)(model, torch.zeros(1, 64), plan)
    latency(sc.Block(4, 1), threads=1)(model, torch.zeros(1, 64), plan)
    unions = [float((layer.weight != 0).view(16, 4, 64).any(1).float().mean()) for layer in machine.measured[1:]]
    singles, blocks = unions[: len(GRID) - 1], unions[len(GRID) - 1 :]
    assert blocks == pytest.approx([1 - sparsity for sparsity in GRID[1:]], abs=0.01)
    assert all(single > 1.4 * block for single, block in zip(singles, blocks, strict=True))


def test_the_pattern_that_is_named_must_be_the_plans(machine):
    model = network()
    plan = plan_of(model, EXAMPLE, sc.Element(), sparsity=0.9)
    for pattern, message in ((sc.Block(4, 1), r"those of Block\(4, 1\) 4"), (sc.Channel(), "are whole channels")):
        with pytest.raises(PlanError, match=rf"0.weight: the plan's units hold 1 of its weights, .*{message}.*latency\("):
            latency(pattern, threads=1)(model, EXAMPLE, plan)


def test_two_of_four_is_timed_as_single_weights(machine):
    model = nn.Sequential(nn.Linear(64, 64))
    sites = sc.find_sites(model, sc.NofM(2, 4), only="*")
    plan = sc.as_pattern()(sites, lambda: iter([]))
    example = torch.zeros(1, 64)
    assert latency(sc.NofM(2, 4), threads=1)(model, example, plan) == latency(threads=1)(model, example, plan)


def test_a_tied_weight_counts_wherever_it_is_used(machine):
    model = next(specimen for specimen in NETWORKS if "tied" in specimen.name)
    count = latency(threads=1).prepare(model.model(), model.example)
    sites = sc.find_sites(model.model(), sc.Element(), only="embedding")
    assert count(sc.uniform(sparsity=0.9)(sites, lambda: iter([]))) < count(None)


def test_layers_that_the_plan_does_not_name_cost_what_they_cost(machine):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    plan = Plan({"0": Share(64 * 64, 64 * 64, {"0.weight": 1})})
    count = latency(threads=1).prepare(model, torch.zeros(1, 64))
    assert count(plan) == count(None)


@pytest.mark.parametrize("specimen", [*LAYERS, *NETWORKS], ids=repr)
def test_the_cost_keeps_the_laws_of_costs(machine, specimen):
    check_cost(latency(threads=1), on=[specimen])


@pytest.mark.parametrize("specimen", COUPLED, ids=repr)
def test_the_cost_falls_with_channels_of_every_network(machine, specimen):
    model = specimen.model()
    sites = sc.find_sites(model, sc.Channel(), specimen.example)
    count = latency(threads=1).prepare(model, specimen.example)
    found = [count(sc.uniform(keep=keep)(sites, lambda: iter([]))) for keep in (0.5, 0.75, 1.0)]
    assert found == sorted(found)
    assert found[0] < found[-1] <= count(None) * (1 + 1e-12)


@pytest.mark.parametrize("specimen", [LAYERS[0], next(each for each in LAYERS if each.name == "LSTM"), NETWORKS[1]], ids=repr)
def test_the_cost_keeps_its_laws_when_it_really_measures(specimen):
    check_cost(latency(threads=1), on=[specimen])


def test_the_cost_keeps_its_laws_without_kernels(monkeypatch):
    monkeypatch.setenv("SECATEURS_ISA", "none")
    check_cost(latency(threads=1), on=[NETWORKS[1]])


def test_what_was_measured_of_a_model_is_remembered(monkeypatch):
    specimen = NETWORKS[1]
    first = latency(threads=1)(specimen.model(), specimen.example)
    assert first > 0
    for module, name in ((tune_module, "_measured"), (whole_module, "compile"), (whole_module, "_between")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("measured again"))
    assert latency(threads=1)(specimen.model(), specimen.example) == first


# ---------------------------------------------------------------- narrower layers


def measured_shapes(machine: Machine) -> set[tuple[int, ...]]:
    return {tuple(layer.weight.shape) for layer in machine.measured}


def test_layers_are_timed_at_the_widths_that_the_plan_leaves_them(machine):
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(), nn.Conv2d(32, 16, 1)
    )
    example = torch.zeros(1, 3, 6, 6)
    sites = sc.find_sites(model, sc.Channel(), example)
    count = latency(threads=1).prepare(model, example)
    plan = sc.uniform(keep=1.0)(sites, lambda: iter([])).with_counts({"0": 17})
    found = count(plan)
    assert {(17, 3, 3, 3), (17, 1, 3, 3), (16, 17, 1, 1)} <= measured_shapes(machine)
    depthwise = next(layer for layer in machine.measured if tuple(layer.weight.shape) == (17, 1, 3, 3))
    assert (depthwise.groups, depthwise.x.shape, depthwise.out.shape) == (17, (1, 17, 6, 6), (1, 17, 6, 6))
    assert found == pytest.approx(1e3 * (1e-9 * 36 * (17 * 27 + 17 * 9 + 16 * 17) + 1e-9))


def test_cliffs_of_widths_that_are_no_multiples_show(machine, monkeypatch):
    def padded(layer: Weighted, isa: InstructionSet, *_: Any) -> Tuned:
        seconds = 1e-6 * -(-len(layer.weight) // 16)
        return Tuned(replace(next(tune_module.candidates(layer, isa)), dense=True), 2 * seconds, seconds)

    monkeypatch.setattr(tune_module, "_measured", padded)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16)), torch.zeros(1, 8)
    sites = sc.find_sites(model, sc.Channel(), x)
    count = latency(threads=1).prepare(model, x)
    whole = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    at = {width: count(whole.with_counts({"0": width})) for width in (15, 16, 17, 31, 32, 33, 47, 48, 49)}
    assert at[15] == at[16] < at[17] == at[31] == at[32] < at[33] == pytest.approx(at[48])
    assert at[17] - at[16] == pytest.approx(1e-3)


def test_a_dense_runtime_that_comes_near_is_asked_for_its_own_widths(machine, monkeypatch):
    def blocks(layer: Weighted, clock: Any) -> float:
        """Half of what torch takes, but three times that where the inputs fill no blocks of eight."""
        return 0.5e-9 * layer.weight.numel() * positions_of(layer) * (3 if layer.weight.shape[1] % 8 else 1)

    narrow = latency_module.Narrow  # on machines with sixteen lanes too, multiples of eight are told from the rest
    monkeypatch.setattr(latency_module, "Narrow", lambda layer, dense, timer, lanes: narrow(layer, dense, timer, 8))
    monkeypatch.setattr(latency_module, "seconds_in_onnx", blocks)
    monkeypatch.setattr(latency_module, "whole", lambda *_: Whole({"torch": 1.0, "ONNX Runtime": 1.025e-6}, 0.0, 1e-9))
    model, x = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)), torch.zeros(1, 16)
    whole = sc.uniform(keep=1.0)(sc.find_sites(model, sc.Channel(), x), lambda: iter([]))
    count = latency(threads=1).prepare(model, x)
    at = {width: 1e3 * count(whole.with_counts({"0": width})) for width in (24, 31, 32, 39, 40)}
    assert count(None) == pytest.approx(1.025e-3)
    assert at[24] < at[32] == pytest.approx(0.513, rel=0.01) and at[40] == pytest.approx(0.641, rel=0.01)
    assert at[31] == pytest.approx(0.993, rel=0.01) and at[39] > at[40]


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("whole", [64, 96, 100, 190, 768])
def test_no_line_is_drawn_over_a_cliff(whole, lanes):
    measured: set[int] = set()
    for width in range(1, whole + 1):
        beside = near(width, whole, lanes)
        assert sum(part for _, part in beside) == pytest.approx(1)
        assert all(part > 0 for _, part in beside)
        assert sum(each * part for each, part in beside) == pytest.approx(width)
        if len(beside) > 1:
            assert {each % lanes == 0 for each, _ in beside} == {width % lanes == 0}
            assert beside[1][0] - beside[0][0] <= max(lanes, width / 4)
        measured |= {each for each, _ in beside}
    assert whole in measured and len(measured) <= 80


def test_a_search_asks_again_without_measuring(machine):
    model = network()
    sites = sc.find_sites(model, sc.Channel(), EXAMPLE)
    prepared = latency(threads=1).prepare(model, EXAMPLE)
    plan = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    tally = sc.costs.Tally(prepared, plan)
    asked = [(name, kept) for name, share in plan.shares.items() for kept in range(1, share.units + 1)]
    for _ in range(2):
        for name, kept in asked:
            anew = prepared(plan.with_counts({**tally.counts, name: kept}))
            assert tally.at(name, kept) == pytest.approx(anew, rel=1e-9)
        tally.move_("0", 9)
    count = len(machine.measured)
    for name, kept in asked:
        tally.at(name, kept)
    assert len(machine.measured) == count
    assert sum(tally.by_layer().values()) == pytest.approx(tally.total)


def test_the_milliseconds_of_layers_add_up(machine):
    model, cost = network(), latency(threads=1)
    for pattern in (sc.Element(), sc.Channel()):
        plan = plan_of(model, EXAMPLE, pattern, sparsity=0.6)
        found = cost.by_layer(model, EXAMPLE, plan)
        assert {"0", "3", "6", "8"} <= found.keys()
        assert sum(found.values()) == pytest.approx(cost(model, EXAMPLE, plan))
    assert sum(cost.by_layer(model, EXAMPLE).values()) == pytest.approx(cost(model, EXAMPLE))


def encoder() -> tuple[nn.Module, torch.Tensor]:
    """Two layers of BERT: 4 heads of 8, 48 inner units."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=16
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval(), torch.arange(12)[None]


def test_of_a_transformer_heads_take_their_projections_and_products_with_them(machine, monkeypatch):
    monkeypatch.setattr(latency_module, "whole", lambda *_: Whole({"torch": 1.0}, attention=8e-3, rest=1e-9))
    model, tokens = encoder()
    sites = sc.find_sites(model, sc.Channel(), tokens)
    prepared = latency(threads=1).prepare(model, tokens)
    dense = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    heads, inner = "encoder.layer.1.attention.self:heads", "encoder.layer.0.intermediate.dense"
    assert {heads, inner} <= set(dense)
    tally = sc.costs.Tally(prepared, dense)
    layer, products = 12 * 4 * 32 * 32 * 1e-9, 8e-3 / 2
    assert tally.total == pytest.approx(prepared(None))
    assert -tally.change(heads, 2) == pytest.approx(1e3 * (layer + products) / 2, rel=1e-6)
    assert -tally.change(inner, 19) == pytest.approx(1e3 * 12 * 2 * 32 * 29 * 1e-9, rel=1e-6)
    assert {(16, 32), (32, 16), (48, 32)} <= measured_shapes(machine)


def test_a_model_half_as_wide_tells_what_stays_between_layers_and_how_a_runtime_gains(machine, monkeypatch):
    model = network()
    monkeypatch.setattr(latency_module, "whole", lambda *_: Whole({"fast": 50e-6}, 0.0, 40e-6))
    monkeypatch.setattr(latency_module, "half", lambda *_: Whole({"fast": 30e-6}, 0.0, 30e-6))
    prepared = latency(threads=1).prepare(model, EXAMPLE)
    half = plan_of(model, EXAMPLE, sc.Channel(), keep=0.5)
    kernels, fast = ([1e3 * 0 + sum(term.value(dict(half)) for term in terms)] for terms in prepared.sums(half))
    own = 1e-9 * (64 * (8 * 4 * 9 + 8 * 8 * 9) + 512 * 32 + 32 * 8)
    assert kernels == pytest.approx([1e3 * (30e-6 + own)])
    assert fast == pytest.approx([30e-3])
    assert prepared(half) == pytest.approx(30e-3) and prepared(None) == pytest.approx(50e-3)
    least = prepared(half.with_counts(dict.fromkeys(half, 1)))
    assert 0 < least < 30e-3


def test_half_a_model_is_really_made_measured_and_remembered(monkeypatch):
    model, x = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)), torch.zeros(1, 16)
    plan = plan_of(model, x, sc.Channel(), keep=0.25)
    first = latency(threads=1)(model, x, plan)
    assert first > 0
    for module, name in ((tune_module, "_measured"), (whole_module, "compile"), (whole_module, "narrower")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("measured again"))
    assert latency(threads=1)(model, x, plan) == first


def test_measurements_of_another_machine_are_not_used(machine, monkeypatch):
    memory_module = importlib.import_module("secateurs.run.clock.memory")
    model, plan = network(), plan_of(network(), EXAMPLE, sc.Channel(), keep=0.5)
    first = latency(threads=1)(model, EXAMPLE, plan)
    count, (file,) = len(machine.measured), list(memory_module.folder().glob("measured-*.json"))
    monkeypatch.setattr(memory_module, "machine", lambda: "another one")
    other = memory_module.Memory().path
    assert other != file
    other.write_text(file.read_text())  # brought here from there, under the name of this one
    assert latency(threads=1)(model, EXAMPLE, plan) == first
    assert len(machine.measured) == 2 * count
