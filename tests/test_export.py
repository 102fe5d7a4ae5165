"""Models that leave: what onnxruntime and compiled packages answer is what the model answers, or no file is written."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.cli import commands as cli
from secateurs.export import ExportError, aot, onnx, onnx_file, package
from secateurs.export.placing import placing
from secateurs.export.program import Captured, named_outputs
from secateurs.models import digits_cnn, mobilenet_v2, resnet_20, squeezenet_1_0

onnx_package = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def sparse(model: nn.Module, example: Any, sparsity: float = 0.9) -> nn.Module:
    """Single weights masked."""
    sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), sc.Task(example=example))
    return model


def small(model: nn.Module, example: Any, pattern: Any = None) -> nn.Module:
    """Half of the channels, or of what the pattern says, physically gone."""
    before = sum(parameter.numel() for parameter in model.parameters())
    masks = sc.prune_(model, pattern or sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=example))
    sc.shrink_(model, masks, example)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.9 * before
    return model


def in_onnxruntime(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return [torch.from_numpy(out) for out in session.run(None, {k: x.numpy() for k, x in zip(names, inputs, strict=True)})]


def numbered(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


class Two(nn.Module):
    """Takes two inputs and a flag, gives nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor, double: bool = False, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.layer(x) * (2 if double else 1)
        return {"h": h, "more": (h + y, None, [y.argmax(1)])}


class Gives(nn.Module):
    """Whatever a function makes of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


# ------------------------------------------------------------------------------------------------ onnx: models


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(resnet_20, (1, 3, 16, 16), id="resnet"),
        pytest.param(lambda: mobilenet_v2(width=0.25), (2, 3, 32, 32), id="mobilenet", marks=pytest.mark.slow),
    ],
)
def test_a_shrunk_convolutional_network_of_any_batch(tmp_path, make, shape):
    example = numbered(*shape)
    model = small(make(), example).eval()
    made = onnx(model, example, tmp_path / "small.onnx", dynamic=(0,))
    assert made.bytes == made.path.stat().st_size < 4.4 * sum(parameter.numel() for parameter in model.parameters()) + 150_000
    for batch in (1, 5):
        x = numbered(batch, *shape[1:])
        [found] = in_onnxruntime(made.path, x)
        torch.testing.assert_close(found, model(x), rtol=1e-3, atol=1e-4)


def test_unstructured_weights_as_their_nonzeros(tmp_path):
    example = numbered(1, 1, 8, 8)
    model = sparse(digits_cnn(), example).eval()
    dense = onnx(model, example, tmp_path / "dense.onnx")
    made = onnx(model, example, tmp_path / "sparse.onnx", sparse=True)
    assert dense.opset == made.opset and dense.bytes > 2.5 * made.bytes
    graph = onnx_package.load(made.path).graph
    onnx_package.checker.check_model(onnx_package.load(made.path))
    assert {"conv2.weight", "fc1.weight"} <= {each.values.name for each in graph.sparse_initializer}
    assert "conv1.bias" in {each.name for each in graph.initializer}, "what does not get smaller stays as it is"
    x = numbered(1, 1, 8, 8) + 1
    assert torch.equal(in_onnxruntime(made.path, x)[0], in_onnxruntime(dense.path, x)[0])
    torch.testing.assert_close(in_onnxruntime(made.path, x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_a_weight_of_zeros_and_a_full_one_in_half_precision(tmp_path):
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).half()
    nn.init.zeros_(model[0].weight)
    made = onnx(model, numbered(3, 40).half(), tmp_path / "half.onnx", sparse=True)
    x = numbered(3, 40).half()
    torch.testing.assert_close(in_onnxruntime(made.path, x)[0], model(x), rtol=1e-2, atol=1e-2)
    assert len(onnx_package.load(made.path).graph.sparse_initializer) == 1


@pytest.mark.slow
def test_squeezenet_in_one_fixed_size(tmp_path):
    example = numbered(1, 3, 48, 48)
    model = sparse(squeezenet_1_0(), example, 0.5).train()
    made = onnx(model, example, tmp_path / "model.onnx")
    assert all(module.training for module in model.modules()), "the model's mode is as it was"
    torch.testing.assert_close(in_onnxruntime(made.path, example)[0], model.eval()(example), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_hugging_faces_bert_with_fewer_heads(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    example = {"attention_mask": torch.ones(1, 6, dtype=torch.long), "input_ids": torch.arange(6).view(1, 6)}
    model = small(transformers.BertModel(config).eval(), example)
    made = onnx(model, example, tmp_path / "bert.onnx", dynamic=(0, 1))
    assert made.inputs == ("attention_mask", "input_ids") and made.outputs == ("last_hidden_state", "pooler_output")
    graph = onnx_package.load(made.path).graph
    assert [[size.dim_param for size in each.type.tensor_type.shape.dim] for each in graph.input] == [["batch", "size_1"]] * 2
    mask, ids = torch.ones(3, 9, dtype=torch.long), torch.randint(0, 50, (3, 9))
    mask[1, 5:] = 0
    expected = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(in_onnxruntime(made.path, mask, ids), list(expected.values()), rtol=1e-3, atol=1e-4)


def test_hugging_faces_llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=50
    )
    ids = torch.arange(6).view(1, 6)
    model = sparse(transformers.LlamaForCausalLM(config).eval(), {"input_ids": ids, "use_cache": False}, 0.5)
    with pytest.raises(ExportError, match=r"output 'past_key_values' is a DynamicCache, no tensor.*use_cache"):
        onnx(model, {"input_ids": ids}, tmp_path / "llama.onnx", dynamic=(0, 1))
    made = onnx(model, {"use_cache": False, "input_ids": ids}, tmp_path / "llama.onnx", dynamic=(0, 1))
    longer = torch.randint(0, 50, (2, 11))
    torch.testing.assert_close(in_onnxruntime(made.path, longer), [model(longer).logits], rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ onnx: options


def test_names_and_what_is_no_tensor(tmp_path):
    model = Two()
    example = {"y": numbered(2, 3), "x": numbered(2, 4), "double": True, "mask": None}
    made = onnx(model, example, tmp_path / "model.onnx", dynamic=(0,))
    assert made.inputs == ("y", "x") and made.outputs == tuple(made.differences) == ("h", "more_0", "more_2_0")
    assert made.largest_difference == max(made.differences.values()) < 1e-5
    x, y = numbered(5, 4), numbered(5, 3)
    expected = [tensor for _, tensor in named_outputs(model(x, y, double=True))]
    torch.testing.assert_close(in_onnxruntime(made.path, y, x), expected)
    renamed = onnx(model, (x, y), tmp_path / "model.onnx", input_names=["a", "b"], output_names=["c", "d", "e"])
    assert renamed.inputs == ("a", "b") and renamed.outputs == tuple(renamed.differences) == ("c", "d", "e")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"input_names": ["a"]}, r"input_names=\['a'\]: 2 different names are needed"),
        ({"input_names": "ab"}, "input_names='ab': 2 different names"),
        ({"output_names": ["a", "b", "a"]}, r"output_names=.*: 3 different names are needed, .* \(h, more_0, more_2_0\)"),
        ({"dynamic": (2,)}, r"dynamic=\(2,\): no input has a dimension 2 \(the example: tensor \(2, 4\)"),
        ({"dynamic": (-1,)}, "no input has a dimension -1"),
        ({"dynamic": 0}, r"dynamic=0: give a tuple of dimensions, \(0,\) for the batch"),
        ({"dynamic": ("batch",)}, r"dynamic=\('batch',\): give a tuple of dimensions"),
        ({"sparse": True, "external_data": True}, "either sparse=True or external_data=True"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(tmp_path, option, message):
    with pytest.raises(ExportError, match=message):
        onnx(Two(), (numbered(2, 4), numbered(2, 3)), tmp_path / "model.onnx", **option)
    assert not list(tmp_path.iterdir())


def test_an_opset_is_met_or_refused(tmp_path):
    model, x = nn.Linear(4, 3), numbered(2, 4)
    assert onnx(model, x, tmp_path / "model.onnx", opset=18).opset == 18
    imports = onnx_package.load(tmp_path / "model.onnx").opset_import
    assert {each.domain: each.version for each in imports}[""] == 18
    with pytest.raises(ExportError, match="cannot write this model in opset 7; it wrote opset 18: leave opset= out"):
        onnx(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), model), numbered(2, 1, 2, 2), tmp_path / "model.onnx", opset=7)


def test_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), numbered(2, 64)
    made = onnx(model, x, tmp_path / "model.onnx", external_data=True)
    data = tmp_path / "model.onnx.data"
    assert sorted(tmp_path.iterdir()) == [made.path, data]
    assert made.bytes == made.path.stat().st_size + data.stat().st_size and data.stat().st_size > 64 * 64 * 4
    torch.testing.assert_close(in_onnxruntime(made.path, x), [model(x)])
    data.unlink()
    onnx(model, x, tmp_path / "model.onnx")
    assert not data.exists()
    monkeypatch.setattr(onnx_file, "_ONE_FILE", 64 * 64 * 4)
    onnx(model, x, tmp_path / "model.onnx")
    assert data.exists(), "what is too large for one file is never in one"


def test_sizes_that_differ_have_different_names(tmp_path):
    class Cross(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y.transpose(1, 2)

    made = onnx(Cross(), (numbered(2, 5, 4), numbered(2, 3, 4)), tmp_path / "model.onnx", dynamic=(0, 1))
    graph = onnx_package.load(made.path).graph
    names = [[size.dim_param for size in each.type.tensor_type.shape.dim] for each in (*graph.input, *graph.output)]
    assert names == [["batch", "size_1", ""], ["batch", "size_1_1", ""], ["batch", "size_1", "size_1_1"]]


def test_the_model_is_as_it_was(tmp_path):
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls, self.last, self.seen = nn.BatchNorm1d(4), 0, None, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            self.seen.append(x)
            return 0 * x if self.training else self.norm(x)

    model = Counts()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    onnx(model, numbered(3, 4), tmp_path / "model.onnx")
    assert model.training and model.calls == 0 and model.last is None and model.seen == [] and not model._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# ------------------------------------------------------------------------------------------------ onnx: refused


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x


@dataclass
class Answer:
    logits: Tensor
    label: str


NESTED = {
    "str": (lambda x: "text", "the model's output is a str, no tensor"),
    "number": (lambda x: (x, 0.5), "the output 'output_1' is a float, no tensor"),
    "dataclass": (lambda x: Answer(x, "cat"), "the output 'label' is a str, no tensor"),
    "complex": (lambda x: x * 1j, "the output 'output' is torch.complex64; return torch.view_as_real"),
    "none": (lambda x: {"loss": None}, "Gives returns no tensor"),
}


@pytest.mark.parametrize("case", NESTED)
def test_outputs_that_are_no_tensors(tmp_path, case):
    make, message = NESTED[case]
    with pytest.raises(ExportError, match=message):
        onnx(Gives(make), numbered(2, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_names_of_outputs():
    pair = namedtuple("pair", "first second")(torch.zeros(1), torch.zeros(2))
    names = [name for name, _ in named_outputs([{"a": pair}, torch.zeros(3), Answer(torch.zeros(4), None)])]  # type: ignore[arg-type]
    assert names == ["output_0_a_first", "output_0_a_second", "output_1", "output_2_logits"]


def test_a_branch_on_values_is_refused_with_its_place(tmp_path, capfd):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Branches()))
    message = r"Sequential cannot be exported: .*data-dependent.*; in 1\.1 \(Branches, test_export\.py:\d+\); .*use torch\.where"
    with pytest.raises(ExportError, match=message):
        onnx(model, numbered(2, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", ""), "torch prints the graph; we do not"
    assert not model._forward_hooks


def test_an_operator_that_onnx_does_not_have(tmp_path):
    with pytest.raises(ExportError, match=r"cannot be written as ONNX: .*No ONNX function found for .*aten\._linalg_eigh"):
        onnx(Gives(torch.linalg.eigvalsh), torch.eye(3), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x[:2] * 1.0 if x.shape[0] == 2 else x, r"specialized it to be a constant \(2\).*leave out of dynamic="),
        (lambda x: x.reshape(2, 3), r"dynamic=\(0,\): Gives does not take other sizes: .*\(3, 3\)"),
    ],
    ids=["constant", "rejected"],
)
def test_a_batch_that_cannot_change(tmp_path, make, message):
    with pytest.raises(ExportError, match=message):
        onnx(Gives(make), numbered(2, 3), tmp_path / "model.onnx", dynamic=(0,))


def test_a_difference_at_another_size_is_found(tmp_path):
    """The graph is made for two samples; that three are another thing, only trying three can tell."""
    with pytest.raises(
        ExportError, match=r"the output 'output' differs in onnxruntime \S+ from the model's by \d.*0\.0002 is allowed"
    ):
        onnx(Gives(lambda x: -x if x.shape[0] == 3 else x), numbered(2, 3), tmp_path / "model.onnx", dynamic=(0,))
    assert not list(tmp_path.iterdir())


def test_random_outputs_are_named(tmp_path):
    model = Gives(lambda x: {"same": x, "random": nn.functional.dropout(x, 0.5, training=True)})
    with pytest.raises(ExportError, match=r"the output 'random' differs .* random numbers in evaluation mode"):
        onnx(model, numbered(20, 3), tmp_path / "model.onnx")
    made = onnx(model, numbered(20, 3), tmp_path / "model.onnx", tolerance=10.0)
    assert made.differences["same"] == 0 < made.differences["random"] == made.largest_difference


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e-3])
def test_a_file_whose_answers_are_others_replaces_nothing(tmp_path, monkeypatch, broken):
    model, x, path = nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(onnx_file, "_run", lambda session, inputs: [model(inputs).detach() + torch.tensor([0, 0, broken])])
    with pytest.raises(ExportError, match="the output 'output' differs in onnxruntime"):
        onnx(model, x, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_largest_difference_of_all_inputs_counts():
    one = torch.ones(2)
    captured = Captured(None, (), ("a", "b"), ((0.1, [one, one]), (0.0, [one, one])))  # type: ignore[arg-type]
    found = captured.differences(lambda off: [one, one + off], "there", tolerance=0.2)
    assert found == {"a": 0.0, "b": pytest.approx(0.1)}


def test_answers_of_another_shape_are_others(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_run", lambda session, inputs: [torch.zeros(2, 1)])
    with pytest.raises(ExportError, match=r"'output' is tensor \(2, 1\) torch.float32 in onnxruntime \S+, and tensor \(2, 3\)"):
        onnx(nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.onnx")


def test_nan_and_infinity_of_the_model_itself(tmp_path):
    with pytest.raises(sc.NonFiniteError, match="the model's own output 'output' has NaN"):
        onnx(Gives(lambda x: x.sqrt()), -torch.ones(2, 3), tmp_path / "model.onnx")
    masked = Gives(lambda x: x.masked_fill(x > 0, float("-inf")))
    assert onnx(masked, numbered(2, 3), tmp_path / "model.onnx").largest_difference == 0


def test_what_is_no_model_or_has_no_values(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="there is no example input: give what Linear is called with"):
        onnx(nn.Linear(4, 3), None, path)
    with pytest.raises(ExportError, match=r"function is no torch\.nn\.Module"):
        onnx(lambda x: x, numbered(2, 4), path)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="weight is on the meta device and has no values"):
        onnx(nn.Linear(4, 3, device="meta"), numbered(2, 4), path)
    with pytest.raises(sc.TaskError, match="the model rejects the example"):
        onnx(nn.Linear(4, 3), numbered(2, 5), path)
    assert not list(tmp_path.iterdir())


def test_types_that_onnxruntime_has_no_kernels_for(tmp_path):
    with pytest.raises(ExportError, match=r"weight is torch\.bfloat16, for which onnxruntime has no kernels .*model\.half\(\)"):
        onnx(nn.Linear(4, 3).bfloat16(), numbered(2, 4).bfloat16(), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"onnxruntime \S+ refuses the file: .*NOT_IMPLEMENTED.*Conv.*model\.float\(\)"):
        onnx(nn.Conv2d(1, 1, 1).double(), numbered(1, 1, 2, 2).double(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_is_missing(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=rf"needs the package {name} .*pip install 'secateurs\[onnx\]'"):
        onnx(nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.onnx")


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = {"onnx", "onnxruntime", "onnxscript", "torch._inductor.cpp_builder"}
    code = f"import sys, secateurs.export; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------ files


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "model.onnx", tmp_path / "file" / "model.onnx", tmp_path):
        with pytest.raises(sc.WriteError, match=rf"could not write {path}: .*what was there before is untouched"):
            onnx(nn.Linear(4, 3), numbered(2, 4), path)
    with pytest.raises(sc.WriteError, match="it is a folder; name a file in it"):
        onnx(nn.Linear(4, 3), numbered(2, 4), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_take_their_place_together_or_not_at_all(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def half(error: Exception) -> None:
        with placing(path) as file:
            file.write_text("new")
            raise error

    with pytest.raises(ZeroDivisionError):
        half(ZeroDivisionError())
    with pytest.raises(sc.WriteError, match="No space left"):
        half(OSError(28, "No space left on device"))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with placing(path) as file:
        file.write_text("new")
        file.with_name("model.onnx.data").write_text("data")
    assert path.read_text() == "new" and (tmp_path / "model.onnx.data").read_text() == "data"
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with placing("model.onnx") as file:
        file.write_text("new")
    assert Path("model.onnx").read_text() == "new"


# ------------------------------------------------------------------------------------------------ packages


def test_a_compiled_package_of_a_shrunk_model(tmp_path):
    package_path = tmp_path / "model.pt2"
    package_path.write_bytes(b"old")
    example = {"y": numbered(1, 3), "x": numbered(1, 4)}
    made = aot(Two(), example, package_path, dynamic=(0,))
    assert made.bytes == package_path.stat().st_size > 10_000 and made.opset is None
    assert made.inputs == ("y", "x") and made.outputs == ("h", "more_0", "more_2_0") and made.largest_difference < 1e-5
    assert list(tmp_path.iterdir()) == [package_path]


def test_a_package_whose_answers_are_others_replaces_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"old")
    monkeypatch.setattr(package, "_compiled", lambda program, file: lambda x: (x,))
    with pytest.raises(ExportError, match="the output 'output' differs in the package from the model's"):
        aot(Gives(lambda x: -x), numbered(2, 3), path)
    monkeypatch.undo()
    with pytest.raises(ExportError, match=r"cannot be exported: .*; in the model itself \(Branches"):
        aot(Branches(), numbered(2, 3), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_package_has_its_ending(tmp_path):
    with pytest.raises(ExportError, match=r"model\.so: torch loads packages by their ending; call it .*model\.pt2"):
        aot(nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.so")


def test_there_is_no_compiler(tmp_path, monkeypatch):
    import torch._inductor.cpp_builder as builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(builder, "get_cpp_compiler", none)
    with pytest.raises(ExportError, match=r"there is no C\+\+ compiler \(RuntimeError: No working.*\): install one .*CXX"):
        aot(nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.pt2")


def test_what_the_compiler_says_is_told(tmp_path, monkeypatch):
    def fails(*args: Any, **options: Any) -> None:
        raise RuntimeError("C++ compile error\nlong output")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(ExportError, match=r"cannot be compiled ahead of time: RuntimeError: C\+\+ compile error$"):
        aot(nn.Linear(4, 3), numbered(2, 4), tmp_path / "model.pt2")


# ------------------------------------------------------------------------------------------------ the command line


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["secateurs", "export", *arguments])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_export_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = numbered(1, 1, 8, 8)
    model = small(digits_cnn(), example).eval()
    sc.save(model, "pruned.safetensors")
    options = ("--weights", "pruned.safetensors", "--input-shape", "1,1,8,8", "--dynamic", "0")
    assert command(monkeypatch, "digits_cnn", "small.onnx", *options) == 0
    assert "small.onnx: " in (said := capsys.readouterr().out) and f"{Path('small.onnx').stat().st_size:,} bytes" in said
    x = numbered(4, 1, 8, 8)
    torch.testing.assert_close(in_onnxruntime(Path("small.onnx"), x)[0], model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.onnx",), "give --task or --input-shape"),
        (("model.bin", "--input-shape", "1,1,8,8"), "ends in .onnx, or in .pt2"),
        (("model.pt2", "--input-shape", "1,1,8,8", "--sparse"), "--opset and --sparse are for ONNX"),
    ],
    ids=str,
)
def test_the_command_lines_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "digits_cnn", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
