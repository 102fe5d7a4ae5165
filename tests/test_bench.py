"""Measuring in turns, dense back ends, and the command that sets ours beside them."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli import commands as cli
from secateurs.models import digits_cnn
from secateurs.nested import tensors_in
from secateurs.run.clock import backends, timing
from secateurs.run.clock.backends import DENSE, Absent
from secateurs.run.clock.timing import Timing, interleaved, measure, sampler
from secateurs.run.forecast import bench
from secateurs.run.forecast.bench import Contender, Gains, Heat
from secateurs.types import SecateursError, TaskError, WriteError

TORCH = {"torch": DENSE["torch"]}

# ---------------------------------------------------------------- the clock


def noting(order: list[str], name: str) -> float:
    order.append(name)
    return 1.0


def test_all_take_turns_in_an_order_that_is_shuffled_and_the_same_each_time():
    orders: list[list[str]] = [[], []]
    for order in orders:
        found = interleaved({name: partial(noting, order, name) for name in "abc"}, rounds=8, seconds=60)
        assert {name: each.samples for name, each in found.items()} == dict.fromkeys("abc", (1.0,) * 8)
    turns = [tuple(orders[0][start : start + 3]) for start in range(0, 24, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert orders[0] == orders[1]


def test_rounds_end_with_the_time_but_not_before_the_third():
    assert len(interleaved({"a": lambda: 1.0}, rounds=10**9, seconds=0.01)["a"].samples) < 10**6
    assert len(interleaved({"a": lambda: 1.0}, rounds=100, seconds=0)["a"].samples) == 3
    assert len(interleaved({"a": lambda: 1.0}, rounds=2, seconds=0)["a"].samples) == 2


def test_a_short_call_runs_often_in_a_sample_and_a_cold_one_once():
    calls = []
    sample = sampler(lambda: calls.append(1), shortest=1e-3)
    calls.clear()
    assert 0 < sample() < 1e-4
    assert len(calls) > 100
    cold = sampler(lambda: calls.append(1), cold=True)
    calls.clear()
    cold()
    assert len(calls) == 1


def test_a_call_settles_before_it_is_measured():
    calls = []
    sample = sampler(lambda: calls.append(timing.perf_counter()), settle=0.02)
    calls.clear()
    sample()
    assert calls[-1] - calls[0] > 0.019


def test_a_long_call_is_not_run_only_to_settle():
    times = []

    def call() -> None:
        times.append(time.perf_counter())
        time.sleep(0.02)

    timing.sampler(call, settle=0.001)()
    assert len(times) == 3  # to warm up, to see how long it takes, and to measure it


@pytest.mark.parametrize("shape", [(3, 8), (1, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_is_a_graph_of_onnx_without_torchs_exporter(shape: tuple[int, ...], bias: bool, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported"))
    layer, x = nn.Linear(8, 4, bias=bias), torch.randn(shape)
    (found,) = DENSE["ONNX Runtime"](layer, x, 1)(x)
    assert torch.allclose(found, layer(x), atol=1e-6)


def test_measuring_leaves_threads_and_garbage_collector_as_they_were():
    seen = []
    measure({"a": lambda: seen.append((torch.get_num_threads(), gc.isenabled()))}, threads=2, rounds=3)
    assert seen[-1] == (2, False)
    assert torch.get_num_threads() == 1
    assert gc.isenabled()

    def fails() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        measure({"a": fails}, threads=2)
    assert torch.get_num_threads() == 1
    assert gc.isenabled()


def test_a_speed_is_the_median_of_quotients_not_the_quotient_of_medians():
    slow_machine_in_the_last_two_rounds = (1.0, 10.0, 10.0)
    one, other = (
        Timing(slow_machine_in_the_last_two_rounds),
        Timing(tuple(2 * each for each in slow_machine_in_the_last_two_rounds)),
    )
    assert one.speed_over(other) == 2
    assert Timing((1.0, 4.0, 4.0)).speed_over(Timing((4.0, 4.0, 8.0))) == 2
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == (2.0, 4.0)


# ---------------------------------------------------------------- dense back ends


class TwoInputs(nn.Module):
    """Takes a tensor and integers by name, and gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 8), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(ids)
        return {"logits": self.linear(hidden) + bias, "hidden": hidden}


class TwoPositional(nn.Module):
    """Takes two tensors one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.other(y)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "tensor": (digits_cnn, torch.randn(2, 1, 8, 8)),
    "tuple": (TwoPositional, (torch.randn(5, 3), torch.randn(5, 4))),
    "mapping": (TwoInputs, {"ids": torch.arange(6).view(1, 6), "bias": torch.randn(4)}),
    "nested output": (lambda: nn.LSTM(6, 5, batch_first=True), torch.randn(1, 3, 6)),
}


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("kind", MODELS)
def test_every_back_end_that_is_there_gives_what_the_model_gives(backend: str, kind: str) -> None:
    make, example = MODELS[kind]
    model = make().train()
    run = DENSE[backend](model, example, 1)
    if isinstance(run, Absent):
        if backend == "OpenVINO" and "not installed" in run.reason:
            pytest.skip(run.reason)
        assert (backend, kind == "tensor") == ("torch, channels last", False), run.reason
        return
    assert all(module.training for module in model.modules())
    expected = bench.exact_answers(model, example)
    assert len(list(tensors_in(run(example)))) == len(expected)
    assert bench.relative_error(run(example), expected) < 1e-5


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript", "openvino"])
def test_a_missing_package_is_a_reason_and_no_error(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    backend = backends.openvino if package == "openvino" else backends.onnx_runtime
    assert backend(nn.Sequential(nn.Linear(3, 2)), torch.ones(1, 3), 1) == Absent(
        f"{package} is not installed: pip install {package}"
    )


def test_a_model_that_cannot_be_converted_is_a_reason_and_no_error() -> None:
    class Numbers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy() * 2) if x.sum().item() > 0 else x

    for name in ("torch, frozen", "ONNX Runtime"):
        found = DENSE[name](Numbers(), torch.ones(2), 1)
        if isinstance(found, Absent):
            assert ": " in found.reason
    assert isinstance(DENSE["ONNX Runtime"](Numbers(), torch.ones(2), 1), Absent)


class Viewing(nn.Module):
    """Looks at what a convolution gives as it lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).view(-1, 16))


def test_a_model_that_cannot_run_with_channels_last_is_a_reason_and_no_error() -> None:
    model, x = Viewing().eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    found = DENSE["torch, channels last"](model, x, 1)
    assert isinstance(found, Absent) and "view size is not compatible" in found.reason
    fast = sc.run.compile(model, x, threads=1, dense={name: DENSE[name] for name in ("torch, channels last", "torch, frozen")})
    assert "torch, channels last" not in fast.explain().race_ms and torch.allclose(fast(x), model(x), atol=1e-5)


# ---------------------------------------------------------------- races and sweeps


def test_a_race_is_against_the_fastest_dense_runtime_and_names_who_took_no_part(small_cnn: nn.Module) -> None:
    absent = Absent("openvino is not installed: pip install openvino")
    (heat,) = bench.race(
        small_cnn, torch.randn(1, 4, 8, 8), rounds=3, dense={**TORCH, "OpenVINO": lambda *_: absent}, ours=DENSE["torch"]
    )
    assert heat.threads == 1
    assert heat.fastest_dense.name == "torch"
    assert heat.speed(heat.contenders[0]) == 1
    assert math.isnan(heat.speed(heat.contenders[1]))
    assert all(each.error < 1e-5 for each in heat.contenders if each.timing)
    assert small_cnn.training
    table = bench.table("a model", [heat])
    assert table.row_count == 2
    assert "OpenVINO: openvino is not installed" in str(table.caption)


def test_a_race_has_a_heat_for_each_number_of_threads_and_tells_what_ours_explains() -> None:
    class Explained:
        def __init__(self, model: nn.Module, threads: int) -> None:
            self.model, self.threads = model, threads

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            assert torch.get_num_threads() == self.threads
            return self.model(x)

        def explain(self) -> str:
            return f"{self.threads} threads"

    heats = bench.race(
        nn.Linear(4, 3),
        torch.ones(1, 4),
        threads=(1, 2),
        rounds=3,
        dense=TORCH,
        ours=lambda model, _, threads: Explained(model, threads),
    )
    assert [(heat.threads, heat.explained) for heat in heats] == [(1, "1 threads"), (2, "2 threads")]


def test_a_race_refuses_an_example_that_the_model_rejects() -> None:
    with pytest.raises(TaskError, match="the model rejects the example"):
        bench.race(nn.Linear(4, 3), torch.ones(1, 5), dense=TORCH)


def test_the_error_is_the_largest_of_all_outputs_and_nan_is_never_hidden() -> None:
    exact = [torch.tensor([0.0, 4.0]).double(), torch.tensor([10.0]).double()]
    assert bench.relative_error((torch.tensor([1.0, 4.0]), torch.tensor([10.0])), exact) == 0.25
    assert bench.relative_error((torch.tensor([math.nan, 4.0]), torch.tensor([10.0])), exact) == math.inf
    assert math.isnan(bench.relative_error(torch.ones(1), []))
    assert bench.relative_error(torch.ones(1), exact) == math.inf
    assert bench.relative_error((torch.ones(1, 2), torch.ones(1)), exact) == math.inf
    assert bench.relative_error(torch.ones(2), [torch.zeros(2).double()]) == 1


def test_layers_to_sweep_are_each_shape_once_the_costliest_first() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    found = bench.costly_layers(model, torch.zeros(1, 2, 8, 8))
    assert [label for label, _, _ in found] == ["Conv2d 4→4, 3x3 on 4x4", "Conv2d 2→4, 3x3 on 8x8, stride 2", "Linear 64→5"]
    for _, layer, inputs in found:
        layer(inputs)
        assert layer.get_parameter("0.weight").count_nonzero() == layer.get_parameter("0.weight").numel()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sweep_removes_what_it_says_and_leaves_the_model(small_cnn: nn.Module) -> None:
    seen = []

    def ours(model: nn.Module, example: Any, threads: int) -> Any:
        weight = model.get_parameter("0.weight")
        seen.append(1 - float(weight.count_nonzero()) / weight.numel())
        return DENSE["torch"](model, example, threads)

    before = {name: value.clone() for name, value in small_cnn.state_dict().items()}
    curves = bench.sweep(
        small_cnn, torch.zeros(1, 4, 8, 8), most=2, sparsities=(0.0, 0.75), rounds=3, seconds=1, dense=TORCH, ours=ours
    )
    assert [[sparsity for sparsity, _ in curve.points] for curve in curves] == [[0.0, 0.75]] * 2
    assert seen == pytest.approx([0.0, 0.75] * 2, abs=0.01)
    assert all(torch.equal(value, before[name]) for name, value in small_cnn.state_dict().items())


def test_a_sweep_of_a_model_without_layers_says_so() -> None:
    with pytest.raises(SecateursError, match="ReLU applies no convolution and no linear layer to its example"):
        bench.sweep(nn.ReLU(), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("speeds", "start"),
    [
        ((1.0, 1.0, 2.1), 0.705),  # 5 % above dense lies at 1/22 of the way from 0.7 to 0.9
        ((2.0, 3.0, 4.0), 0.5),
        ((1.0, 1.0, 1.0), None),
        ((2.0, 1.0, 3.0), 0.705),  # a lucky point below does not count
        ((2.0, 2.0, 0.9), None),
    ],
)
def test_break_even_is_where_the_layer_starts_to_win_for_good(speeds: tuple[float, ...], start: float | None) -> None:
    found = Gains("a layer", tuple(zip((0.5, 0.7, 0.9), speeds, strict=True))).break_even()
    assert found == pytest.approx(start, abs=0.006) if start else found is None


def test_a_chart_is_a_png_and_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    curves = [Gains(f"layer {index}", ((0.0, 0.9), (0.5, 1.5), (0.98, 20.0))) for index in range(8)]
    bench.draw(curves, tmp_path / "chart.png", "speed")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(WriteError, match="could not write"):
        bench.draw(curves, tmp_path / "absent" / "chart.png", "speed")


def test_a_heat_without_ours_still_has_a_table() -> None:
    heat = Heat(2, (Contender("torch", Timing((0.2, 0.3)), 1e-7), Contender("secateurs", reason="CompileError: no")))
    assert "secateurs: CompileError: no" in str(bench.table("net", [heat]).caption)


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``secateurs bench`` in a folder with a pruned model, with torch alone beside ours; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(bench.race, "__kwdefaults__", {**bench.race.__kwdefaults__, "dense": TORCH, "ours": DENSE["torch"]})
    monkeypatch.setattr(bench.sweep, "__kwdefaults__", {**bench.sweep.__kwdefaults__, "dense": TORCH, "ours": DENSE["torch"]})
    sc.save(bench.removed_at_random(digits_cnn(), torch.zeros(1, 1, 8, 8), 0.9), "pruned.safetensors")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateurs", "bench", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_bench_prints_a_row_for_each_runtime_and_number_of_threads(run) -> None:
    given = ("pruned.safetensors", "--model", "digits_cnn", "--input-shape", "1,1,8,8", "--batch", "3")
    status, out, err = run(*given, "--threads", "1,2", "--seconds", "0.1")
    assert (status, err) == (0, "timing the model in each runtime …\n")
    rows = [line.split()[:2] for line in out.splitlines() if line.strip().startswith(("torch", "secateurs"))]
    assert rows == [["torch", "1"], ["secateurs", "1"], ["torch", "2"], ["secateurs", "2"]]


def test_bench_sweeps_into_a_chart(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.sweep.__kwdefaults__, "most", 1)
    monkeypatch.setitem(bench.sweep.__kwdefaults__, "rounds", 3)
    given = ("pruned.safetensors", "--model", "digits_cnn", "--task", "digits", "--seconds", "0.1")
    status, out, _ = run(*given, "--sweep", "--out", "chart.png")
    assert status == 0
    assert "chart: chart.png" in out
    assert "Conv2d 16→32, 3x3 on 8x8" in out
    assert Path("chart.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.safetensors", "--model", "digits_cnn", "--task", "digits"), "absent.safetensors"),
        (("pruned.safetensors", "--model", "lenet_5", "--task", "mnist"), "pruned.safetensors belongs to another model"),
        (("pruned.safetensors", "--model", "digit_cnn", "--task", "digits"), "did you mean digits_cnn"),
        (("pruned.safetensors", "--model", "digits_cnn"), "give --task or --input-shape"),
        (("pruned.safetensors", "--model", "digits_cnn", "--input-shape", "1,1,8,8", "--batch", "0"), "--batch 0"),
        (("pruned.safetensors", "--model", "digits_cnn", "--task", "digits", "--threads", "1,two"), "--threads '1,two' is no list"),
        (("pruned.safetensors", "--model", "digits_cnn", "--task", "digits", "--threads", "0"), "--threads '0' is no list"),
        (("pruned.safetensors", "--model", "digits_cnn", "--input-shape", "1,3,8,8"), "the model rejects the example"),
    ],
)
def test_what_one_can_put_right_is_one_line_and_no_traceback(run, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith("error:")
    assert message in err
    assert "Traceback" not in err
