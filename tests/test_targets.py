"""Classes of hardware and what is recommended there: held against counts by hand, and on a machine whose times are made up."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.costs import Work
from secateurs.costs.accelerators import Scalar, TensorCores
from secateurs.run.choosing.tune import Tuned
from secateurs.run.forecast.predict import Weighted
from secateurs.run.forecast.whole import Whole
from secateurs.run.kernels.machine import InstructionSet, available
from secateurs.run.planning.layers import positions_of
from secateurs.targets import PAYS, cpu, gpu, microcontroller, recommend
from secateurs.types import KindError, SecateursError, TaskError

tune_module, predict_module, latency_module = (
    importlib.import_module(f"secateurs.run.{name}") for name in ("choosing.tune", "forecast.predict", "forecast.latency")
)


def perceptron(width: int = 96) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 7)), torch.zeros(1, 40)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    layers = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5)
    return nn.Sequential(*layers), torch.zeros(1, 3, 10, 10)


# ---------------------------------------------------------------- a microcontroller


def test_cycles_by_hand():
    core = Scalar(lanes=2, load=1, multiply=1, address=1, output=8)
    work = Work("fc", "fc.weight", 1, 40, 10, (), 1, 40, 10, nonzeros=400)
    assert core.of_layer(work) == 400 * 3 / 2 + 10 * 8
    assert core.of_layer(replace(work, nonzeros=100)) == 100 * 5 + 80  # an index, and four instructions, for each that is there
    assert core.of_layer(replace(work, nonzeros=100, unit=2)) == 50 * 5 + 80  # the same for two at once
    assert core.of_layer(replace(work, nonzeros=399)) == core.of_layer(work)  # dense, where skipping takes longer
    assert core.of_layer(replace(work, inputs=39, nonzeros=390)) == core.of_layer(work)  # a lane is empty at the end of a row


@pytest.mark.parametrize("make", [perceptron, convolutions])
def test_scalpels_order_comes_out_on_a_microcontroller(make):
    model, example = make()
    for sparsity in (0.6, 0.85):
        element, group, channel = recommend(model, microcontroller(), example, sparsity=sparsity).options
        assert channel.speed_up > 1 and group.speed_up > element.speed_up
        assert element.sparsity == pytest.approx(sparsity, abs=0.01) and group.sparsity == pytest.approx(sparsity, abs=0.02)
        assert channel.sparsity >= sparsity
    assert not recommend(model, microcontroller(), example, sparsity=0.5).options[0].pays
    sparse = recommend(model, microcontroller(), example, sparsity=0.9).options[0]
    assert sparse.pays, "Scalpel measured 1.9 times for single weights there, where most are gone"


def test_what_does_not_fit_into_memory_is_told():
    model, example = perceptron()
    small = microcontroller(flash=7_000, sram=100)
    found = recommend(model, small, example, sparsity=0.5)
    assert all(
        len(option.over) >= 1 and ", 100 are there" in option.over[-1] and "activation_memory" in option.over[-1]
        for option in found.options
    )
    assert "does not fit" in str(found)
    fits = recommend(model, microcontroller(flash=7_000), example, sparsity=0.5)
    assert any("stored" in over for over in fits.options[0].over) and not fits.options[2].over
    assert fits.best is not None and not fits.best.over


def test_milliseconds_follow_the_clock():
    model, example = perceptron()
    slow, fast = (microcontroller(mhz=mhz).cost(None)(model, example) for mhz in (40, 160))
    assert slow == pytest.approx(4 * fast)
    assert slow == pytest.approx(1e3 / 40e6 * Scalar().cycles(model, example))


# ---------------------------------------------------------------- a GPU


def test_two_of_four_pays_on_large_layers_only_and_single_weights_never():
    model, example = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)), torch.zeros(64, 256)
    slow = gpu(cores=TensorCores(teraflops=0.3))  # beside which these layers are large
    element, half, channel = recommend(model, slow, example, sparsity=0.5).options
    assert element.speed_up == pytest.approx(1) and not element.pays
    assert 1.9 < half.speed_up <= 2 and channel.pays
    found = recommend(model, gpu(), example)
    assert not found.options[0].pays and found.options[1].speed_up < half.speed_up - 0.4
    assert "Element(), 50 % removed" in str(found) and "does not pay" in str(found)


def test_two_of_four_needs_widths_that_the_cores_take():
    gpu_ = TensorCores(two_of_four=True)
    work = Work("fc", "fc.weight", 1, 4096, 4096, (), 4096, 4096**2, 4096**2, nonzeros=4096**2 / 2)
    assert gpu_.halves(work) and not gpu_.halves(replace(work, inputs=4090)) and not gpu_.halves(replace(work, outputs=4090))
    assert not gpu_.halves(replace(work, nonzeros=0.6 * work.weights)) and not TensorCores().halves(work)
    assert gpu_.of_layer(replace(work, inputs=4096 - 8)) > gpu_.of_layer(work)
    weight = torch.zeros(1, 64, 64)
    weight[..., ::2] = 1
    measured = replace(work, inputs=64, outputs=64, nonzeros=64 * 32, weight=weight)
    assert TensorCores().halves(measured), "the weight itself tells, where it is there"
    weight[0, 0, :3] = 1
    assert not TensorCores().halves(replace(measured, weight=weight))


def test_a_wave_that_does_not_fill_the_processors_costs_a_whole_one():
    cores = TensorCores(start_us=0)
    work = Work("fc", "fc.weight", 1, 4096, 128, (), 128 * 108, 1, 1, nonzeros=4096 * 128)
    full, more = (cores.of_layer(replace(work, positions=positions)) for positions in (128 * 108, 128 * 108 + 1))
    assert more == pytest.approx(2 * full)


# ---------------------------------------------------------------- this machine, with times that are made up


@dataclass
class Machine:
    """Its kernels take 2 ns a nonzero and position, 1 where four rows share them, and torch 0.8 ns a weight and position."""

    def layer(self, layer: Weighted, isa: InstructionSet, *_: Any) -> Tuned:
        rows, positions = layer.weight.flatten(1) != 0, positions_of(layer)
        shared = len(rows) % 4 == 0 and bool((rows.unflatten(0, (-1, 4)).any(1).sum() * 4 == rows.sum()).item())
        seconds = (1e-9 if shared else 2e-9) * int(rows.sum()) * positions
        dense = 0.8e-9 * rows.numel() * positions
        choice = replace(next(tune_module.candidates(layer, isa)), dense=seconds > dense)
        return Tuned(choice, seconds, dense)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not available():
        pytest.skip("needs the compiled extension")
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(tune_module, "_measured", Machine().layer)
    monkeypatch.setattr(predict_module, "behind_a_kernel", lambda layer, *_: Machine().layer(layer, cpu_isa()).seconds)
    monkeypatch.setattr(latency_module, "whole", lambda *_: Whole({"torch": 1.0}, 0.0, 1e-9))
    monkeypatch.setattr(latency_module, "half", lambda *_: None)
    limits = importlib.import_module("secateurs.run.choosing.limits").Limits
    monkeypatch.setattr(predict_module, "limits", lambda *_: limits(1e15, 1e15))


def cpu_isa() -> InstructionSet:
    found = importlib.import_module("secateurs.run.kernels.machine").instruction_set()
    assert found is not None
    return found


def test_on_this_cpu_measured_times_decide_and_what_does_not_pay_is_told(machine):
    model, example = perceptron()
    found = recommend(model, cpu(threads=1), example, sparsity=0.5)
    element, block, channel = found.options
    assert element.speed_up == pytest.approx(1.0, abs=0.05) and not element.pays
    assert block.speed_up == pytest.approx(0.8 / 0.5, rel=0.15) and block.pays
    assert channel.speed_up == pytest.approx(2, rel=0.15)
    assert found.best is channel
    text = str(found)
    assert "use Channel()" in text and "does not pay" in text and "layer by layer" in text
    assert [each.layer for each in found.layers] == ["0", "2", "4"]
    assert all(each.best is not None and each.speed_ups[each.best] >= PAYS for each in found.layers[:2])


def test_blocks_are_as_high_as_the_instructions_are_wide(machine):
    target = cpu()
    assert target.lanes == cpu_isa().lanes and target.block == sc.Block(target.lanes, 1, tail="keep")


# ---------------------------------------------------------------- what is refused


def test_a_machine_without_kernels_has_no_measurements(monkeypatch):
    monkeypatch.setenv("SECATEURS_ISA", "none")
    with pytest.raises(SecateursError, match=r"targets.cpu: nothing can be measured .* use targets.microcontroller\(\)"):
        cpu()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: recommend(*swapped(gpu), sparsity=1.0), SecateursError, r"recommend: sparsity=1.0 is not in \(0, 1\)"),
        (lambda: recommend(perceptron()[0], "gpu", perceptron()[1]), KindError, "target is 'gpu', but must be a target"),
        (lambda: recommend(perceptron()[0], gpu(), torch.zeros(1, 3)), TaskError, "rejects the example"),
        (lambda: microcontroller(flash=0), SecateursError, "flash=0, but must be above 0"),
        (lambda: microcontroller(lanes=0), SecateursError, "lanes=0, but must be at least 1"),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()


def swapped(make: Any) -> tuple[nn.Module, Any, torch.Tensor]:
    model, example = perceptron()
    return model, make(), example


def test_a_pattern_that_fits_nowhere_says_why_and_the_model_stays():
    model, example = nn.Sequential(nn.Linear(15, 9)), torch.zeros(1, 15)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = recommend(model, gpu(), example)
    assert all("does not fit" in option.reason for option in found.options[1:])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.options[1].reason in str(found)
