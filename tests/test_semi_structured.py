"""2:4 layers for sparse tensor cores: what is converted, what is not and why, as far as a machine without a GPU can tell."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import semi_structured as benchmark
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import secateurs as sc
from secateurs.export import Converted, ExportError, semi_structured, semi_structured_

pytestmark = pytest.mark.filterwarnings("ignore:2.4 weights lose time")


def two_of_four(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    weight = torch.randn(*shape)
    weak = weight.abs().unflatten(1, (-1, 4)).argsort(2)[..., :2]
    return weight.unflatten(1, (-1, 4)).scatter(2, weak, 0.0).flatten(1).to(dtype)


def linear(inputs: int = 64, outputs: int = 64, sparse: bool = True, dtype: torch.dtype = torch.float16) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).to(dtype)
    if sparse:
        layer.weight.data = two_of_four(outputs, inputs, dtype=dtype)
    return layer


@pytest.fixture
def a_gpu(monkeypatch) -> list[Tensor]:
    """As on a GPU, with a stand-in for torch's compression; the weights that it was given."""
    given: list[Tensor] = []

    def compress(weight: Tensor) -> Tensor:
        given.append(weight)
        return weight.clone()

    monkeypatch.setattr(semi_structured, "_no_sparse_cores", lambda device: None)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
    return given


# ------------------------------------------------------------------------------------------------ what is 2:4


def test_a_weight_is_2_of_4_where_no_group_along_the_inputs_has_three():
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        weight = torch.randn(3, 8, generator=generator) * (torch.rand(3, 8, generator=generator) < 0.3)
        expected = all(sum(bool(x) for x in row[i : i + 4]) <= 2 for row in weight.tolist() for i in (0, 4))
        assert (semi_structured.broken_group(weight) is None) == expected
        seen.add(expected)
    assert seen == {True, False}


def test_the_first_broken_group_is_named():
    weight = two_of_four(8, 16)
    weight[5, 8:12] = torch.tensor([1.0, float("nan"), 0.0, -1.0])
    weight[6] = 1
    assert semi_structured.broken_group(weight) == "output 5 has 3 nonzeros among inputs 8 to 11"
    assert semi_structured.broken_group(two_of_four(16, 8).T.contiguous()) is not None, "along the inputs, not along the outputs"


def test_what_passes_survives_torchs_compression():
    """The reference of torch's compression runs on a CPU: what we call 2:4 comes back whole, and what we do not, does not."""
    weight = two_of_four(64, 128)
    weight[3, 4:8] = 0
    weight[7, 0:4] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    assert semi_structured.broken_group(weight) is None
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight)
    weight[7, 0:4] = 1
    assert semi_structured.broken_group(weight) is not None
    assert not torch.equal(sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight)


# ------------------------------------------------------------------------------------------------ converting


def test_layers_that_fit_are_converted_and_all_others_listed(a_gpu):
    model = nn.Sequential()
    model.good, model.dense, model.narrow = linear(), linear(sparse=False), linear(64, 10)
    model.single, model.attention = linear(dtype=torch.float32), nn.MultiheadAttention(64, 4).half()
    model.tied, model.also_tied, model.bfloat = linear(), linear(), linear(dtype=torch.bfloat16)
    model.also_tied.weight = model.tied.weight
    model.convolution, model.skipped = nn.Conv2d(16, 16, 1).half(), linear()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    done = semi_structured_(model, skip="skipped")
    assert done.layers == ("good", "bfloat") and done.largest_difference is None
    assert [len(a_gpu), a_gpu[0].shape, a_gpu[1].dtype] == [2, (64, 64), torch.bfloat16]
    assert {item.name: item.reason for item in done.skipped} == {
        "dense": f"its weight is not 2:4 ({semi_structured.broken_group(model.dense.weight)}): prune it with NofM(2, 4)",
        "narrow": "its weight is (10, 64), and the kernels need multiples of (16, 16)",
        "single": "its weight is torch.float32, and the kernels are for float16 and bfloat16: model.half()",
        "attention.out_proj": "a NonDynamicallyQuantizableLinear may apply its weight in its own way; only torch.nn.Linear is converted",
        "tied": "another layer uses the same weight",
        "also_tied": "another layer uses the same weight",
        "skipped": "named in skip=",
    }
    assert not model.good.weight.requires_grad and model.dense.weight.requires_grad
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())


def test_inputs_must_be_a_multiple_too(a_gpu):
    with pytest.raises(ExportError, match=r"weight: its weight is \(64, 24\), and the kernels need multiples of \(16, 16\)"):
        semi_structured_(linear(24, 64))


def test_only_and_skip(a_gpu):
    model = nn.ModuleDict({"a": linear(), "b": linear(), "c": linear()})
    assert semi_structured_(model, only=["a", "b"], skip="b") == Converted(
        ("a",), (sc.types.Skipped("b", "named in skip="), sc.types.Skipped("c", "not named in only="))
    )
    with pytest.raises(sc.PatternError, match="nothing in ModuleDict is called 'd'"):
        semi_structured_(model, only="d")


def test_a_pruned_model_is_converted_and_the_outputs_compared(a_gpu):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).half()
    example = torch.randn(16, 64).half()
    sc.prune_(model, sc.NofM(2, 4), sc.TopK(sc.magnitude()), sc.as_pattern(), sc.Task(example=example), only="*")
    done = semi_structured_(model, example)
    assert done.layers == ("0", "2") and done.skipped == () and done.largest_difference == 0


def test_what_was_measured_is_told_once(a_gpu):
    semi_structured._say_what_was_measured.cache_clear()
    with pytest.warns(UserWarning, match=r"lose time in eager mode: .*0\.05 to 0\.40 times .*CUDA graph.*2,048 tokens"):
        semi_structured_(nn.Sequential(linear(64, 64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        semi_structured_(nn.Sequential(linear(64, 64)))


def test_other_outputs_undo_everything(a_gpu, monkeypatch):
    model = nn.Sequential(linear(), linear())
    before = list(model.parameters())
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight * 1.2)
    with pytest.raises(ExportError, match=r"'output 0' differs in the converted model from the model's by \d"):
        semi_structured_(model, torch.randn(16, 64).half())
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))


def test_a_refusal_of_torch_undoes_everything(a_gpu, monkeypatch):
    model = nn.Sequential(linear(), linear(64, 128))
    before = list(model.parameters())

    def compress(weight: Tensor) -> Tensor:
        if weight.shape[0] == 128:
            raise RuntimeError("cusparselt has no kernel\nand more")
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", compress)
    with pytest.raises(
        ExportError, match=r"1: torch cannot compress it: RuntimeError: cusparselt has no kernel; skip it with .*'1'"
    ):
        semi_structured_(model)
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------------ machines


def test_on_a_cpu_the_error_says_what_is_needed():
    with pytest.raises(
        ExportError, match=r"no layer can be converted: 0, 1: it is on cpu, and sparse tensor cores .*8\.0.*model\.cuda"
    ):
        semi_structured_(nn.Sequential(linear(), linear()))


def test_a_model_without_linear_layers():
    with pytest.raises(ExportError, match="ReLU: no layer can be converted: it has no linear layer"):
        semi_structured_(nn.ReLU())


def test_an_old_gpu_and_a_torch_without_cusparselt(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "Tesla V100 (compute capability 7.0), and sparse tensor cores" in str(semi_structured._no_sparse_cores(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert "has no cuSPARSELt" in str(semi_structured._no_sparse_cores(gpu))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert semi_structured._no_sparse_cores(gpu) is None


@pytest.mark.skipif(
    not torch.cuda.is_available() or semi_structured._no_sparse_cores(torch.device("cuda")) is not None,
    reason="needs a GPU with sparse tensor cores",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype):
    model = nn.Sequential(
        linear(256, 512, dtype=dtype), nn.ReLU(), linear(512, 256, dtype=dtype), linear(256, 10, dtype=dtype)
    ).cuda()
    example = torch.randn(7, 256, device="cuda", dtype=dtype)
    expected = model(example)
    done = semi_structured_(model, example)
    assert done.layers == ("0", "2") and [item.name for item in done.skipped] == ["3"]
    assert done.largest_difference is not None and done.largest_difference < 2e-2
    assert isinstance(model[0].weight.data, torch.sparse.SparseSemiStructuredTensor)
    torch.testing.assert_close(model(example), expected, rtol=5e-2, atol=5e-2)
    with pytest.raises(ExportError, match="0, 2: it is converted already"):
        semi_structured_(model)


# ------------------------------------------------------------------------------------------------ the benchmark


def test_the_benchmark_says_where_2_of_4_loses():
    rows = [
        benchmark.Row("down", 8, 4, torch.float16, 1, (10.0, 20.0), (4.0, 2.0), 0.0),
        benchmark.Row("down", 8, 4, torch.float16, 16, (30.0, 20.0), None, 0.0),
    ]
    assert rows[0].cells()[3:] == ["1", "10.0", "20.0", "0.50", "4.0", "2.0", "2.00"]
    assert rows[1].cells()[3:] == ["16", "30.0", "20.0", "1.50", "–", "–", "–"]
    assert len(rows[0].cells()) == len(benchmark.HEADINGS)
    said = benchmark.verdict(rows)
    assert "1 token, eager: 0.50 to 0.50 times as fast, slower in 1 of 1" in said
    assert "16 tokens, eager: 1.50 to 1.50 times as fast, never slower" in said
    assert said.endswith("**Where it loses:** down float16 at 1 (eager: 0.50).")
    assert benchmark.verdict(rows[1:]).endswith("**Where it loses:** nowhere.")


def test_the_benchmarks_layers_are_2_of_4_and_exceed_the_cache():
    made = benchmark.layer(64, 32, torch.bfloat16, device="cpu")
    assert made.weight.shape == (32, 64) and semi_structured.broken_group(made.weight) is None
    assert int(made.weight.count_nonzero()) == made.weight.numel() // 2
    assert [benchmark.copies_for(size, 50) for size in (10, 49, 1000)] == [15, 4, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_benchmark_refuses_to_run_without_a_gpu():
    page = Path(__file__).parents[1] / "benchmarks" / "semi_structured.py"
    done = subprocess.run([sys.executable, page], capture_output=True, text=True)
    assert done.returncode == 1 and "needs a CUDA GPU of Ampere" in done.stderr
