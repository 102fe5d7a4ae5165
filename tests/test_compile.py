"""Compiled models: the same answers whatever comes, clear errors otherwise, and never slower than what is at hand."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.models import mobilenet_v2, resnet_20, squeezenet_1_0
from secateurs.nested import Value
from secateurs.run import CompileError, KernelError, available, compile, instruction_set
from secateurs.run.choosing import limits as limit_module
from secateurs.run.choosing import race as racing
from secateurs.run.choosing import tune as tuning
from secateurs.run.clock import memory as memory_module
from secateurs.run.clock.backends import Absent, Lent
from secateurs.run.clock.memory import Memory
from secateurs.run.clock.timing import Timing
from secateurs.run.kernels import machine as machine_module
from secateurs.run.lowering.lower import lower
from secateurs.run.network.nodes import Linear
from secateurs.run.recording.one_call import network_of

compiling = importlib.import_module("secateurs.run.compiled")  # the package has functions of these names
whole_module = importlib.import_module("secateurs.run.forecast.whole")
has_kernels = pytest.mark.skipif(not available(), reason="secateurs was installed without its kernels")


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path / "cache"))


def pruned(model: nn.Module, example: Any, sparsity: float = 0.8, pattern: Any = None) -> nn.Module:
    """The model with random weights removed, and running statistics that are not those of a new one."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    masks = sc.prune_(
        model, pattern or sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), sc.Task(example=example)
    )
    masks.apply_()
    return model.eval()


def small() -> nn.Module:
    """A little of everything that has kernels."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.SiLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("make", [resnet_20, mobilenet_v2, squeezenet_1_0], ids=lambda make: make.__name__)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_gives_its_answers(make: Any, threads: int) -> None:
    x = torch.randn(2, 3, 64, 64)
    model = pruned(make(), x)
    fast = compile(model, x, threads=threads, tune=False)
    for batch in (x, torch.randn(2, 3, 64, 64)):
        with torch.no_grad():
            same(fast(batch), model(batch))


@pytest.mark.parametrize("pattern", [sc.Block(4, 1, tail="keep"), sc.Kernel(), sc.Filter(), sc.NofM(2, 4, tail="keep")], ids=str)
def test_every_pattern_gives_its_answers(pattern: Any) -> None:
    x = torch.randn(1, 3, 32, 32)
    model = pruned(resnet_20(), x, 0.5, pattern)
    with torch.no_grad():
        same(compile(model, x, threads=1, tune=False)(x), model(x))


@has_kernels
def test_tuning_chooses_remembers_and_explains() -> None:
    x = torch.randn(1, 3, 32, 32)
    model = small()
    fast = compile(model, x, threads=1, dense={})
    with torch.no_grad():
        same(fast(x), model(x))
    explained = fast.explain()
    assert [layer.name for layer in explained.layers] == ["0", "4", "8"]
    assert explained.chosen in ("kernels", "torch")
    assert all(layer.sparse_ms > 0 and layer.dense_ms > 0 and layer.of_limit > 0 for layer in explained.layers)
    text = str(explained)
    assert "3x3/2 8->16 @16x16" in text
    assert explained.chosen in text
    assert Memory().path.exists()


@has_kernels
def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, count = torch.randn(1, 3, 32, 32), []
    measured = tuning._measured
    monkeypatch.setattr(tuning, "_measured", lambda *args: (count.append(1), measured(*args))[1])
    compile(small(), x, threads=1, dense={})
    assert len(count) == 3
    compile(small(), x, threads=1, dense={})
    assert len(count) == 3


@has_kernels
def test_a_faster_dense_runtime_runs_instead() -> None:
    x = torch.randn(1, 3, 32, 32)
    model = small()
    with torch.no_grad():
        answer = model(x)
    fast = compile(
        model, x, threads=1, dense={"oracle": lambda *_: lambda inputs: (answer,), "none": lambda *_: Absent("not here")}
    )
    assert fast.explain().chosen == "oracle"
    assert torch.equal(fast(x), answer)


@has_kernels
@pytest.mark.parametrize(
    ("first", "again", "chosen"), [(2.0, None, "kernels"), (1.2, 1.1, "kernels"), (1.2, 1.0, "torch"), (0.8, 0.9, "torch")]
)
def test_a_close_race_is_run_again_and_in_doubt_a_dense_runtime_runs(
    monkeypatch: pytest.MonkeyPatch, first: float, again: float | None, chosen: str
) -> None:
    asked = []

    def race(runs: Any, example: Any, threads: int, rounds: int = 15) -> dict[str, Timing]:
        asked.append(sorted(runs))
        ahead = first if len(asked) < 3 else again  # torch alone comes first, then all runtimes
        assert ahead is not None
        return {name: Timing((1.0,) if name == "kernels" else (ahead,)) for name in runs}

    monkeypatch.setattr(racing, "in_turns", race)
    fast = compile(small(), torch.randn(1, 3, 32, 32), threads=1, dense={})
    assert fast.explain().chosen == chosen
    assert len(asked) == (2 if again is None else 3)


@has_kernels
def test_a_race_run_again_is_against_the_dense_runtime_that_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(runs: Any, example: Any, threads: int, rounds: int = 15) -> dict[str, Timing]:
        first = {"kernels": 1.0, "torch": 1.1, "other": 1.2}
        return {name: Timing((first[name],) if rounds == 15 else (2.0 if name == "torch" else 1.0,) * 3) for name in runs}

    monkeypatch.setattr(racing, "in_turns", race)
    fast = compile(small(), torch.randn(1, 3, 32, 32), threads=1, dense={"other": lambda model, *_: model})
    assert fast.explain().chosen == "kernels" and fast.explain().race_ms == {"kernels": 1e3, "torch": 2e3, "other": 1.2e3}


def test_dense_runtimes_race_among_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), torch.randn(1, 3, 32, 32)
    monkeypatch.setattr(racing, "in_turns", lambda runs, *_, **__: {name: Timing((float(len(name)),)) for name in runs})
    found = racing.race(model, x, network_of(model, x), 1, {"a": lambda model, *_: model, "absent": lambda *_: Absent("not here")})
    assert found.timings.keys() == {"torch", "a"} and found.fastest_dense == "a" and found.winner.chosen == "a" and found.ahead == 0
    with torch.no_grad():
        same(found.winner.run(x), model(x))


@has_kernels
def test_the_race_is_between_calls_as_callers_make_them_and_lent_answers_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, held, checked = small(), torch.randn(1, 3, 32, 32), torch.zeros(1, 5), []

    def lender(model: nn.Module, example: Any, threads: int) -> Any:
        return lambda inputs: Lent((held.copy_(model(inputs)),))

    def race(runs: Any, example: Any, threads: int, rounds: int = 15) -> dict[str, Timing]:
        for run in runs.values():
            same(run(torch._neg_view(-example)), model(example))  # only a call of the compiled model takes such an input
            checked.append(run)
        return {name: Timing((1.0,) if name == "lender" else (2.0,)) for name in runs}

    monkeypatch.setattr(racing, "in_turns", race)
    with torch.no_grad():
        fast = compile(model, x, threads=1, dense={"lender": lender})
        assert fast.explain().chosen == "lender" and len(checked) >= 5
        first = fast(x)
        fast(2 * x)
        same(first, model(x))


def fastest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a race be won by this one."""
    won = {True: Timing((1.0,)), False: Timing((2.0,))}
    monkeypatch.setattr(racing, "in_turns", lambda runs, *_, **__: {each: won[each == name] for each in runs})


@has_kernels
def test_an_onnx_session_with_places_of_its_own_answers_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    fastest("ONNX Runtime", monkeypatch)
    model, x = small().requires_grad_(False), torch.randn(2, 3, 32, 32)
    fast = compile(model, x, threads=1)
    assert fast.explain().chosen == "ONNX Runtime"
    across = x.to(memory_format=torch.channels_last)
    first = fast(x)
    for other in (2 * x, across, torch._neg_view(x), x[:, :, :30], x[:1].expand(2, -1, -1, -1)):
        same(fast(other), model(other))
    same(first, model(x))  # later calls leave it alone
    freed = torch.randn(2, 3, 32, 32)
    freed.untyped_storage().resize_(0)
    with pytest.raises(CompileError, match="has no memory any more"):
        fast(freed)
    several = [torch.randn(2, 3, 32, 32) for _ in range(64)]
    with ThreadPoolExecutor(4) as threads:
        for each, found in zip(several, threads.map(fast, several), strict=True):
            same(found, model(each))


@has_kernels
def test_a_dtype_that_onnx_runtime_cannot_take_leaves_it_out_of_the_race() -> None:
    model, x = nn.Sequential(Cast(), nn.Linear(8, 4)).eval().requires_grad_(False), torch.randn(2, 8).bfloat16()
    same(compile(model, x, threads=1)(x), model(x))


class Cast(nn.Module):
    """Takes any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Summed(nn.Module):
    """Something that only torch runs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@has_kernels
@pytest.mark.parametrize(("between", "threads", "expected"), [(Summed(), 2, [1]), (Summed(), 1, []), (nn.ReLU(), 2, [])])
def test_torch_gets_one_thread_where_it_takes_turns_with_kernels_of_several(
    monkeypatch: pytest.MonkeyPatch, between: nn.Module, threads: int, expected: list[int]
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 16, 3), between, nn.Conv2d(16, 8, 3)).eval(), torch.randn(1, 8, 12, 12)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.05)
    fast, given = compile(model, x, threads=threads, tune=False), []
    real = compiling.torch_threads
    monkeypatch.setattr(compiling, "torch_threads", lambda number: (given.append(number), real(number))[1])
    before = torch.get_num_threads()
    with torch.no_grad():
        same(fast(x), model(x))
    assert given == expected
    assert torch.get_num_threads() == before


def test_other_shapes_are_planned_when_they_come() -> None:
    model = small()
    fast = compile(model, torch.randn(1, 3, 32, 32), threads=1, tune=False)
    for shape in [(4, 3, 32, 32), (1, 3, 20, 27), (4, 3, 32, 32)]:
        x = torch.randn(shape)
        with torch.no_grad():
            same(fast(x), model(x))
    assert len(fast._plans) == 2


def test_strides_of_any_kind() -> None:
    model = small()
    fast = compile(model, torch.randn(1, 3, 32, 32), threads=1, tune=False)
    wide = torch.randn(1, 3, 64, 64)
    for x in (wide[:, :, ::2, ::2], wide[:, :, 16:48, 8:40], torch.randn(1, 3, 32, 32).to(memory_format=torch.channels_last)):
        with torch.no_grad():
            same(fast(x), model(x))


class Multiplied(nn.Module):
    """Kernels, then operations of torch, then kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x @ x.mT + torch.ones(8, 8))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@has_kernels
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(16, 16, 3, padding=1), Multiplied], ids=["kernels only", "between torch"])
def test_what_is_set_around_a_call_does_not_matter(make: Any) -> None:
    x = torch.randn(1, 16, 8, 8)
    model = pruned(make(), x, 0.95)
    fast, expected = compile(model, x, threads=1, tune=False), model(x).detach()
    for around in (default_dtype(torch.float64), torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        with around:
            found = fast(x)
        assert found.dtype == torch.float32
        same(found, expected)


@has_kernels
def test_another_default_device_does_not_matter() -> None:
    x = torch.randn(1, 16, 8, 8)
    model = pruned(nn.Conv2d(16, 16, 3, padding=1), x, 0.95)
    fast = compile(model, x, threads=1, tune=False)
    with torch.device("meta"):
        found = fast(x)
    same(found, model(x).detach())


def test_an_empty_batch_gives_an_empty_answer() -> None:
    fast = compile(small(), torch.randn(1, 3, 32, 32), threads=1, tune=False)
    assert fast(torch.zeros(0, 3, 32, 32)).shape == (0, 5)


def test_the_model_may_change_or_go_afterwards() -> None:
    model, x = small(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        fast = compile(model, x, threads=1, tune=False)
        for parameter in model.parameters():
            parameter.zero_()
    same(fast(x), before)
    same(fast(torch.cat([x, x]))[1:], before)


def test_the_model_stays_as_it_is() -> None:
    model, x = small().train(), torch.randn(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile(model, x, threads=1, tune=False)(x)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrong", [torch.randn(1, 4, 32, 32), torch.randn(3, 32), torch.zeros(1, 3, 32, 32, dtype=torch.float64)])
def test_inputs_that_the_model_rejects(wrong: Tensor) -> None:
    fast = compile(small(), torch.randn(1, 3, 32, 32), threads=1, tune=False)
    with pytest.raises(sc.TaskError):
        fast(wrong)
    assert fast(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_inputs_elsewhere() -> None:
    fast = compile(small(), torch.randn(1, 3, 32, 32), threads=1, tune=False)
    with pytest.raises(CompileError, match=r"is on meta: .*\.cpu\(\)"):
        fast(torch.zeros(1, 3, 32, 32, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_on_torch(dtype: torch.dtype) -> None:
    model, x = small().to(dtype), torch.randn(1, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        assert torch.allclose(compile(model, x, threads=1, tune=False)(x), model(x), rtol=1e-2)


def test_nan_weights_give_nan() -> None:
    model, x = small(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
        model[8].weight[1, 1] = float("nan")
        same_places = model(x).isnan()
    assert torch.equal(compile(model, x, threads=1, tune=False)(x).isnan(), same_places)


def test_control_flow_on_numbers_is_refused() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x

    with pytest.raises(CompileError, match="decides by the numbers"):
        compile(Fickle(), torch.ones(2, 2), threads=1, tune=False)


def test_no_threads_are_refused() -> None:
    with pytest.raises(CompileError, match="threads=0"):
        compile(small(), torch.randn(1, 3, 32, 32), threads=0)


def test_a_mixture_of_arguments_is_refused() -> None:
    fast = compile(nn.Linear(3, 2), torch.ones(1, 3), threads=1, tune=False)
    with pytest.raises(CompileError, match="mixture"):
        fast(torch.ones(1, 3), scale=2)


def test_two_threads_at_once() -> None:
    model = small()
    fast = compile(model, torch.randn(1, 3, 32, 32), threads=2, tune=False)
    inputs = [torch.randn(1, 3, 32, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            if not torch.allclose(fast(inputs[number]), expected[number], atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_child(fast: Any, x: Tensor, expected: Tensor, answer: Any) -> None:
    answer.put(bool(torch.allclose(fast(x), expected, atol=1e-4)))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_after_fork() -> None:
    torch.set_num_threads(1)  # torch's own OpenMP does not survive a fork
    model, x = small(), torch.randn(1, 3, 32, 32)
    fast = compile(model, x, threads=2, tune=False)
    expected = fast(x)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(fast, x, expected, answers))
    child.start()
    assert answers.get(timeout=60) is True
    child.join(timeout=60)
    assert child.exitcode == 0
    assert torch.equal(fast(x), expected)


# ---------------------------------------------------------------- machines and memories


def test_an_unknown_instruction_set_names_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match=r"mmx.*unset SECATEURS_ISA"):
        instruction_set("mmx")
    monkeypatch.setenv("SECATEURS_ISA", "mmx")
    with pytest.raises(KernelError, match="mmx"):
        compile(small(), torch.randn(1, 3, 32, 32), threads=1)


@has_kernels
@pytest.mark.parametrize("name", [isa.name for isa in available()])
def test_the_environment_names_the_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_ISA", name)
    model, x = small(), torch.randn(1, 3, 32, 32)
    fast = compile(model, x, threads=1, tune=False)
    assert fast.explain().isa == name
    with torch.no_grad():
        same(fast(x), model(x))


def test_without_kernels_models_run_on_torch_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "native", None)
    machine_module._say_that_there_is_none.cache_clear()
    model, x = small(), torch.randn(1, 3, 32, 32)
    with pytest.warns(RuntimeWarning, match="without its kernels"):
        fast = compile(model, x, threads=1)
    compile(model, x, threads=1)  # a second warning would be an error
    with torch.no_grad():
        same(fast(x), model(x))
    assert fast.explain().isa == "no kernels"


def test_plain_torch_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_ISA", "none")
    assert compile(small(), torch.randn(1, 3, 32, 32), threads=1).explain().isa == "no kernels"


@pytest.mark.parametrize("damage", ["", "{", '{"machine": "another", "entries": {"a": 1}}', "[1]", "\x00\xff", "[" * 100_000])
def test_a_damaged_memory_counts_as_empty(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(damage)
    memory = Memory(path)
    assert memory.get("a", int) is None
    with memory.changing() as entries:
        entries["a"] = 2
    assert Memory(path).get("a", int) == 2


_BAD = [None, -7, "x", [], {}, -1.0, 0, float("nan"), float("inf"), 10**400, True]


def _damaged(value: Any) -> Iterator[Any]:
    """Copies of what was remembered in which one number, or the whole, is another one."""
    yield from _BAD
    if isinstance(value, dict):
        for key, part in value.items():
            yield {other: each for other, each in value.items() if other != key}
            yield from ({**value, key: damaged} for damaged in (_damaged(part) if isinstance(part, dict) else _BAD))
        yield {**value, "more": 1}


def _is_fine(value: Any, like: Any) -> bool:
    """Whether what was damaged may be taken for a measurement all the same."""
    return value == like or (isinstance(value, dict) and {**value, "measured": True} == like)


@has_kernels
def test_a_damaged_measurement_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = torch.randn(1, 3, 12, 12), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 2)).eval()
    tuned = tuning.Tuned(tuning.Choice(), 1e-3, 2e-3)
    monkeypatch.setattr(
        tuning, "_measured", lambda node, *_: replace(tuned, choice=next(tuning.candidates(node, instruction_set())))
    )  # type: ignore[arg-type]
    monkeypatch.setattr(limit_module, "_bandwidth", lambda: 1e10)
    monkeypatch.setattr(limit_module, "native_module", lambda: SimpleNamespace(peak=lambda isa: 1e11))
    network, tried = compiling.lower(compiling.network_of(model, x)), 0
    tuning.tune(network, instruction_set(), 1, Memory())  # type: ignore[arg-type]
    limit_module.limits(instruction_set())  # type: ignore[arg-type]
    path, expected = Memory().path, Memory()._entries
    for key, value in expected.items():
        for damaged in _damaged(value):
            if not _is_fine(damaged, value):
                path.write_text(json.dumps({"machine": memory_module.machine(), "entries": {**expected, key: damaged}}))
                memory = Memory()
                found = tuning.tune(network, instruction_set(), 1, memory)  # type: ignore[arg-type]
                assert {(each.seconds, each.dense_seconds) for each in found.values()} == {(1e-3, 2e-3)}, (key, damaged)
                assert limit_module.limits(instruction_set(), memory) == limit_module.Limits(1e11, 1e10), (key, damaged)  # type: ignore[arg-type]
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("damaged", [*_BAD, [1e-3], [1e-3, None], [1e-3, 2e-3, 3e-3], {"a": 1, "b": 2}, {"runtimes": {}}], ids=repr)
def test_other_measurements_that_are_damaged_count_as_unknown(damaged: Any, tmp_path: Path) -> None:
    memory = Memory(tmp_path / "measured.json")
    with memory.changing() as entries:
        entries["a"] = damaged
    assert memory.get("a", memory_module.read_seconds) is None
    assert memory.get("a", whole_module._read) is None
    assert memory.recall("a", memory_module.read_seconds, lambda: 0.5) == 0.5
    assert Memory(memory.path).get("a", memory_module.read_seconds) == 0.5


def test_two_processes_add_to_one_memory(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    one, other = Memory(path), Memory(path)
    with one.changing() as entries:
        entries["a"] = 1
    with other.changing() as entries:
        entries["b"] = 2
    assert (Memory(path).get("a", int), Memory(path).get("b", int)) == (1, 2)


def test_a_memory_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file" / "measured.json")
    with memory.changing() as entries:
        entries["a"] = 1
    assert memory.get("a", int) == 1


@has_kernels
def test_a_killed_tune_leaves_a_valid_memory(tmp_path: Path) -> None:
    script = (
        "import torch; from secateurs.run import compile; from secateurs.models import resnet_20; print('go', flush=True);"
        "compile(resnet_20(), torch.randn(1, 3, 64, 64), threads=1)"
    )
    environment = {**os.environ, "SECATEURS_CACHE": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.time() + 60
        while time.time() < deadline and not list(tmp_path.glob("measured-*.json")) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    (found,) = tmp_path.glob("measured-????????????????.json")
    assert json.loads(found.read_text())["entries"]
    left = tmp_path / f".{found.name}.abc_1234.part"  # as if it had been writing just then
    left.mkdir()
    (left / found.name).write_text("half")
    with Memory(found).changing() as entries:
        entries["a"] = 1
    assert os.listdir(tmp_path) == [found.name] and json.loads(found.read_text())["entries"]["a"] == 1


@pytest.fixture
def quiet_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@has_kernels
def test_threads_are_torchs_by_default(quiet_torch: None) -> None:
    torch.set_num_threads(2)
    assert compile(nn.Linear(3, 2), torch.ones(1, 3), tune=False).threads == 2


@has_kernels
@pytest.mark.parametrize("values", ["bfloat16", "int8"])
def test_rounded_weights_where_they_are_asked_for(values: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 64)
    x = torch.randn(1, 300)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) > 0.8)
        expected = layer(x)
    fast = compile(layer, x, threads=1, tune=False, values=values)
    assert [each.rounded for each in fast.explain().layers] == [values]
    assert f"weights rounded to {values}: " in str(fast.explain())
    found = fast(x)
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert 0 < difference < 0.02


@has_kernels
def test_where_nothing_was_rounded_it_is_told() -> None:
    fast = compile(small(), torch.zeros(9, 3, 32, 32), threads=1, tune=False, values="int8")
    assert not any(each.rounded for each in fast.explain().layers)
    assert "no weights were rounded to int8: only linear layers" in str(fast.explain())
    assert "rounded" not in str(compile(small(), torch.zeros(9, 3, 32, 32), threads=1, tune=False).explain())


def test_unknown_numbers_for_weights_are_refused() -> None:
    with pytest.raises(CompileError, match=r"values='int4': weights are held as 'float32', 'bfloat16', 'int8'"):
        compile(small(), torch.randn(1, 3, 32, 32), threads=1, values="int4")  # type: ignore[arg-type]


@has_kernels
@pytest.mark.parametrize("wrong", [2.0, float("nan")])
def test_kernels_that_are_wrong_are_not_used(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), torch.randn(1, 3, 32, 32)
    honest = compiling.Runner.__call__
    monkeypatch.setattr(compiling.Runner, "__call__", lambda self, *tensors: tuple(wrong * each for each in honest(self, *tensors)))
    with pytest.warns(RuntimeWarning, match="answers differ from torch's"):
        fast = compile(model, x, threads=1, tune=False)
    assert fast.explain().chosen == "torch"
    with torch.no_grad():
        same(fast(x), model(x))


@has_kernels
def test_layers_of_one_shape_and_like_sparsity_are_timed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def layer(zeros: int) -> nn.Linear:
        made = nn.Linear(20, 20, bias=False)
        places = (
            torch.arange(400).view(20, 5, 4).transpose(1, 2).reshape(-1)
        )  # rows that share places with none: none of four are alike
        made.weight.data = torch.cat([torch.zeros(zeros), torch.ones(400 - zeros)])[places].view(20, 20)
        return made

    timed: list[float] = []

    def measured(node: Any, *_: Any) -> tuning.Tuned:
        timed.append(float((node.weight != 0).float().mean()))
        return tuning.Tuned(next(tuning.candidates(node, isa)), timed[-1], 1.0)

    isa = instruction_set()
    assert isa is not None
    monkeypatch.setattr(tuning, "_measured", measured)
    model = nn.Sequential(*(layer(zeros) for zeros in (40, 0, 196, 200, 204, 360, 0, 4)))
    network = lower(network_of(model, torch.ones(2, 8, 20)))
    found = tuning.tune(network, isa, 1, Memory(tmp_path / "measured.json"))
    assert [round(each, 2) for each in timed] == [0.9, 1.0, 0.51, 0.1, 0.99]  # what is dense is not like what nearly is
    assert [round(each.seconds, 2) for each in found.values()] == [0.9, 1.0, 0.51, 0.5, 0.49, 0.1, 1.0, 0.99]


@has_kernels
def test_a_large_layer_is_timed_by_some_of_its_rows() -> None:
    x = Value((1, 8, 600))
    large = Linear("large", x, Value((1, 8, 30000)), torch.ones(1, 600).expand(30000, 600), torch.ones(30000))
    some, times = tuning.sample(large)
    assert some.weight.shape == (3488, 600) and some.out.shape == (1, 8, 3488) and times == 30000 / 3488
    assert some.bias is not None and some.bias.shape == (3488,)
    single = replace(large, x=Value((1, 600)), out=Value((1, 30000)))
    assert tuning.sample(single) == (single, 1.0)


@has_kernels
def test_a_dense_runtime_that_cannot_win_by_its_layers_is_not_asked_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    seconds: list[float] = []

    def backend(model: nn.Module, example: Any, threads: int) -> Any:
        asked.append(type(model).__name__)
        return model

    def timed(runs: Any, example: Any, threads: int, rounds: int = 15) -> dict[str, Timing]:
        return {name: Timing((seconds[0] if name == "kernels" else 2 * seconds[0],)) for name in runs}

    monkeypatch.setattr(racing, "in_turns", timed)
    monkeypatch.setattr(racing, "measure", lambda calls, **_: {"layer": Timing((seconds[1],))})
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    linear, whole = ["Linear"] * 2, ["Sequential"]
    for kernels, layer, expected in ((0.2, 0.1, linear), (0.2, 0.01, linear + whole), (0.01, 0.1, whole)):
        seconds[:] = kernels, layer
        asked.clear()
        compile(model, torch.randn(3, 8), threads=1, dense={"other": backend})
        assert asked == expected
