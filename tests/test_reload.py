"""A shrunk model comes back from its file to the bit, goes through torch's and ONNX's exports, and no other model takes its file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sc


class Convolutional(nn.Module):
    """Its code has the width of its last map as a number."""

    def __init__(self, width: int = 8, hidden: int = 10) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.hidden, self.leave = nn.Linear(width * 16, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(self.norm(self.enter(x)).relu()).relu()
        return self.leave(self.hidden(h.view(-1, 128)).relu())


class Attentive(nn.Module):
    """Fused projections, cut by hand, with the number of heads in an attribute and their width worked out from it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 16
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=-1)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.up(x).relu())


class Encoder(nn.Sequential):
    """Torch's own encoder layer and a head."""

    def __init__(self) -> None:
        super().__init__(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "convolutional": (Convolutional, lambda batch: torch.randn(batch, 3, 4, 4)),
    "attentive": (Attentive, lambda batch: torch.randn(batch, 5, 16)),
    "encoder": (Encoder, lambda batch: torch.randn(batch, 5, 16)),
}


def prune(model: nn.Module, example: Any, sparsity: float = 0.5) -> sc.Masks:
    solver = sc.TopK(sc.random(seed=1))
    return sc.prune_(model, sc.Channel(), solver, sc.uniform(sparsity=sparsity), sc.Task(example=example))


def shrunk(make: Callable[[], nn.Module], example: Any) -> nn.Module:
    """A model with running statistics of its own, half of which is gone."""
    model = make()
    model.train()
    with torch.no_grad():
        sc.forward.call(model, example)
    model.eval()
    done = sc.shrink_(model, prune(model, example))
    assert done.sites and not done.skipped
    return model


def answers(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        return [each for each in sc.nested.tensors_in(sc.forward.call(model, example)) if each.is_floating_point()]


def assert_same(model: nn.Module, other: nn.Module, example: Any) -> None:
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert repr(model) == repr(other)
    assert all(torch.equal(a, b) for a, b in zip(answers(model, example), answers(other, example), strict=True))


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("into", ["class", "instance", "itself"])
def test_a_shrunk_model_comes_back_to_the_bit(tmp_path, name, into):
    make, example = MODELS[name]
    model = shrunk(make, example(2))
    sc.save(model, tmp_path / "small.safetensors")
    before = copy.deepcopy(model)
    if into == "itself":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    target = {"class": make, "instance": make(), "itself": model}[into]
    loaded = sc.load(tmp_path / "small.safetensors", target).eval()
    assert (loaded is target) == (into != "class")
    assert_same(loaded, before, example(3))


@pytest.mark.parametrize("name", MODELS)
def test_twice_shrunk_comes_back_too(tmp_path, name):
    make, example = MODELS[name]
    model = shrunk(make, example(2))
    assert sc.shrink_(model, prune(model, example(2), 0.4)).sites
    sc.save(model, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", make).eval()
    assert_same(loaded, model, example(3))
    sc.save(loaded, tmp_path / "again.safetensors")
    assert_same(sc.load(tmp_path / "again.safetensors", make).eval(), model, example(3))


def test_what_comes_back_trains_and_shrinks_on():
    make, example = MODELS["attentive"]
    model = shrunk(make, example(2))
    other = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(example(2)).square().mean().backward()
    optimizer.step()
    other.eval()
    assert sc.shrink_(other, prune(other, example(2))).sites


TRANSFORMERS: dict[str, Callable[[Any], nn.Module]] = {
    "bert": lambda t: t.BertModel(
        t.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=20)
    ),
    "llama": lambda t: t.LlamaForCausalLM(
        t.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, vocab_size=20
        )
    ),
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=16, vocab_size=20)),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_come_back_to_the_bit(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    make = lambda: TRANSFORMERS[name](transformers).eval()  # noqa: E731
    example = {"input_ids": torch.arange(10).view(2, 5)}
    model = make()
    before = sum(parameter.numel() for parameter in model.parameters())
    done = sc.shrink_(model, prune(model, example))
    assert not done.skipped and done.parameters[1] < 0.9 * before
    sc.save(model, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", make)
    assert_same(loaded, model, {"input_ids": torch.arange(12).view(2, 6)})


def test_the_file_is_as_small_as_the_model(tmp_path):
    make, example = MODELS["convolutional"]
    model = make()
    dense = sc.save(model, tmp_path / "dense.safetensors")
    model = shrunk(make, example(2))
    assert sc.save(model, tmp_path / "small.safetensors") < 0.75 * dense
    assert {name: tensor.shape for name, tensor in load_file(tmp_path / "small.safetensors").items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


# ------------------------------------------------------------------------------------------------ another model


class Renamed(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.reader, self.hidden = self.hidden, nn.Identity()


class Regrouped(Convolutional):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise.groups = 4


def refused(path: Path, target: nn.Module, message: str) -> None:
    before, sizes = {name: tensor.clone() for name, tensor in target.state_dict().items()}, repr(target)
    slots = [set(module.__dict__) for module in target.modules()]
    with pytest.raises(sc.FileError, match=message):
        sc.load(path, target)
    assert before.keys() == target.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert repr(target) == sizes
    assert [set(module.__dict__) for module in target.modules()] == slots


@pytest.fixture
def small(tmp_path: Path) -> Path:
    make, example = MODELS["convolutional"]
    sc.save(shrunk(make, example(2)), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Attentive, r"belongs to another model: .* tensor enter\.weight, but Attentive has none of that name"),
        (lambda: Convolutional(width=9), r"one whose enter\.weight is \(8, 3, 3, 3\), but here it is \(9, 3, 3, 3\)"),
        (lambda: Convolutional(hidden=11), r"one whose hidden\.weight is \(10, 128\), but here it is \(11, 128\)"),
        (Renamed, r"one with a tensor hidden\.weight, but Renamed has none of that name"),
        (Regrouped, r"one whose depthwise\.groups is 8, but here it is 4: its class has changed"),
    ],
    ids=["class", "width", "another width", "a missing module", "an attribute"],
)
def test_another_model_is_refused_and_the_first_difference_named(small, target, message):
    refused(small, target(), message)


def test_one_that_was_shrunk_in_another_way_is_refused(small):
    model, example = Convolutional().eval(), torch.randn(2, 3, 4, 4)
    sc.shrink_(model, prune(model, example, 0.25))
    refused(small, model, "this one was shrunk already, in another way; load into a fresh one")


def test_weights_that_do_not_fit_the_record_leave_the_model_whole(small, tmp_path):
    tensors, text = contents(small)
    tensors["leave.bias"] = torch.zeros(7)
    document = {key: value for key, value in json.loads(text).items() if not key.startswith("checksum")}
    save_file(tensors, tmp_path / "other.safetensors", metadata={"secateurs": json.dumps(document)})
    refused(tmp_path / "other.safetensors", Convolutional(), r"leave\.bias is \(7,\) in the file and \(4,\) in the model")


# ------------------------------------------------------------------------------------------------ damage


def contents(path: Path) -> tuple[dict[str, Tensor], str]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()["secateurs"]


WRONG = (None, True, -1, 10**30, 1.5, "text", [], {}, [[[]]], {"text": None})


def damaged(value: Any) -> list[Any]:
    """The value with each of its parts, at whatever depth, removed or replaced by something of another kind."""
    found: list[Any] = [wrong for wrong in WRONG if type(wrong) is not type(value)]
    if isinstance(value, dict):
        for key in value:
            found.append({other: item for other, item in value.items() if other != key})
            found += [{**value, key: item} for item in damaged(value[key])]
    elif isinstance(value, list) and value:
        found.append(value[1:])
        found += [[item, *value[1:]] for item in damaged(value[0])]
    return found


def test_no_damage_to_the_record_does_harm(small, tmp_path):
    """Either the file is refused in words and the model is as it was, or the model has the file's weights."""
    tensors, text = contents(small)
    document = {key: value for key, value in json.loads(text).items() if not key.startswith("checksum")}
    expected, refusals = load_file(small), 0
    target = Convolutional()
    before, sizes = {name: tensor.clone() for name, tensor in target.state_dict().items()}, repr(target)
    path = tmp_path / "damaged.safetensors"
    variants = damaged(document["shrunk"])
    assert len(variants) > 200
    for variant in variants:
        save_file(tensors, path, metadata={"secateurs": json.dumps({**document, "shrunk": variant})})
        try:
            loaded = sc.load(path, target)
        except sc.FileError:
            refusals += 1
            assert repr(target) == sizes, variant
            assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items()), variant
        else:
            assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items()), variant
            target = Convolutional()
            before, sizes = {name: tensor.clone() for name, tensor in target.state_dict().items()}, repr(target)
    assert refusals > 0.7 * len(variants)


WEIGHT = {"0.weight": [4, 2, 1, 1]}
STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "an index twice": ({"shapes": WEIGHT, "kept": [[0] * 1000], "cuts": {"0.weight": {"0": 0, "1": 0}}}, "is no ascending list"),
    "indices backwards": ({"shapes": WEIGHT, "kept": [[1, 0]], "cuts": {"0.weight": {"0": 0}}}, "is no ascending list"),
    "nothing kept": ({"shapes": WEIGHT, "kept": [[]], "cuts": {"0.weight": {"0": 0}}}, "is no ascending list"),
    "an index that is not there": ({"shapes": WEIGHT, "kept": [[4]], "cuts": {"0.weight": {"0": 0}}}, "indices that are not there"),
    "a dimension that is not there": ({"shapes": WEIGHT, "kept": [[0]], "cuts": {"0.weight": {"4": 0}}}, "that are not there"),
    "a cut of nobody": ({"kept": [[0]], "cuts": {"nobody": {"0": 0}}}, "nobody: the record .* that are not there"),
    "a cut of a tensor without a shape": ({"kept": [[0]], "cuts": {"0.weight": {"0": 0}}}, "indices that are not there"),
    "the model itself": ({"identities": [""]}, "a module '', but Sequential has none"),
    "a module in another": ({"identities": ["1", "1.0"]}, "by '1' and by '1.0' in it"),
    "a module twice": ({"identities": ["1"], "zeros": ["1"]}, "one module twice"),
    "an attribute of what was taken out": ({"identities": ["0"], "attributes": {"0": {"out_channels": [4, 1]}}}, "it is missing"),
    "an attribute of nobody": ({"attributes": {"nobody": {"size": [None, 1]}}}, "a module 'nobody', but"),
    "an attribute that is not there": ({"attributes": {"0": {"size": [None, 1]}}}, "0.size is None, but here it is missing"),
    "an attribute that is true": ({"attributes": {"0": {"training": [1, 0]}}}, "0.training is 1, but here it is True"),
    "an attribute that its weights contradict": ({"attributes": {"0": {"out_channels": [4, 1]}}}, "to be 1, but its weights say 4"),
    "a size below zero": ({"attributes": {"0": {"groups": [1, -1]}}}, "0.groups cannot become -1 from 1"),
    "a size beyond the model": (
        {"attributes": {"2": {"num_features": [3, 10**9]}}},
        "2.num_features cannot become 1000000000 from 3",
    ),
    "a number for a pair": ({"attributes": {"0": {"stride": [[1, 1], 1]}}}, r"0.stride cannot become 1 from \[1, 1\]"),
    "a rewrite that is too large": (
        {"rewrites": {"": [{"ordinal": None, "name": "view", "path": [1], "given": 4, "new": 10**9}]}},
        "the model: view is to be given 1000000000",
    ),
    "a rewrite of a thousand digits": (
        {"rewrites": {"": [{"ordinal": None, "name": "view", "path": [1], "given": 4, "new": 10**1000}]}},
        "the model: view is to be given 1000",
    ),
    "pieces of more than there is": (
        {"rewrites": {"": [{"ordinal": None, "name": "split", "path": ["pieces"], "given": 4, "new": [4, 1]}]}},
        "are no pieces of 4",
    ),
    "an argument's attribute": (
        {"rewrites": {"": [{"ordinal": None, "name": "view", "path": [0, "data"], "given": 4, "new": 1}]}},
        "cannot become 1",
    ),
    "no place": ({"rewrites": {"": [{"ordinal": None, "name": "view", "path": [], "given": 4, "new": 1}]}}, "cannot become 1"),
    "a number of heads that is none": ({"attributes": {"3": {"num_heads": [1, 0], "head_dim": [4, 2]}}}, "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", STEPS)
def test_hostile_steps_are_refused_and_the_model_stays(tmp_path, name):
    step, message = STEPS[name]
    empty: dict[str, Any] = {"shapes": {}, "kept": [], "cuts": {}, "attributes": {}, "rewrites": {}, "identities": [], "zeros": []}
    path = tmp_path / "hostile.safetensors"
    save_file({}, path, metadata={"secateurs": json.dumps({"format": 1, "shrunk": [{**empty, **step}]})})
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False), nn.Sequential(nn.ReLU()), nn.BatchNorm2d(3, False, False), nn.MultiheadAttention(4, 1)
    )
    refused(path, model, message)


def test_more_steps_than_any_model_was_shrunk_in_are_refused(tmp_path):
    path = tmp_path / "hostile.safetensors"
    step: dict[str, Any] = {"shapes": {}, "kept": [], "cuts": {}, "attributes": {}, "rewrites": {}, "identities": [], "zeros": []}
    save_file({}, path, metadata={"secateurs": json.dumps({"format": 1, "shrunk": [step] * 2000})})
    refused(path, nn.Sequential(nn.ReLU()), "is said to be shrunk in 2000 steps")


# ------------------------------------------------------------------------------------------------ downstream


@pytest.mark.parametrize("name", MODELS)
def test_torch_export(name):
    make, example = MODELS[name]
    model = shrunk(make, example(2))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (example(2),), dynamic_shapes=({0: batch},))
    other = example(4)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_torch_compile(name):
    make, example = MODELS[name]
    model = shrunk(make, example(2))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    other = example(4)
    torch.testing.assert_close(compiled(other), model(other))
    model.train()
    compiled(other).sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_onnx(tmp_path, name):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    make, example = MODELS[name]
    model = shrunk(make, example(2))
    path = tmp_path / "small.onnx"
    torch.onnx.export(model, (example(2),), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = example(2)
    [found] = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(other), rtol=1e-4, atol=1e-5)
    assert path.stat().st_size + sum(extra.stat().st_size for extra in tmp_path.glob("*.data")) < 200_000
