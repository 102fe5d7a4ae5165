"""Layers that become two: the best of their rank, saved, loaded, compiled and exported."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import oats_
from secateurs.shrink.step import Factors, Step
from secateurs.types import FileError, NonFiniteError


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(12, 10, 3, bias=False), nn.Flatten(), nn.Linear(90, 20)
    )


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return net().eval()


def images(seed: int, count: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 10, 10, generator=generator).cumsum(3) + 1


def task_on(data: Tensor, **more) -> sc.Task:
    return sc.Task(data[:1], **more)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_without_data_two_layers_are_the_best_weight_of_their_rank(layer, rank):
    model, data = made(), images(1)
    weight = model.get_submodule(layer).weight.detach().clone()
    u, s, v = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    best = ((u[:, :rank] * s[:rank]) @ v[:rank]).float().view(weight.shape)
    by_hand = copy.deepcopy(model)
    by_hand.get_submodule(layer).weight.data.copy_(best)
    found = sc.low_rank_(model, task_on(data), ranks={layer: rank})
    assert found.ranks == {layer: rank}
    assert torch.allclose(model(data), by_hand(data), atol=1e-4)
    first, last = model.get_submodule(layer)
    assert first.weight.shape[0] == last.weight.shape[1] == rank


@pytest.mark.parametrize("seed", range(3))
def test_with_data_no_weight_of_the_rank_and_no_bias_answers_nearer(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8))
    data = torch.randn(200, 12) @ torch.randn(12, 12) + torch.randn(12)
    answers = model(data).detach().double()
    centred = answers - answers.mean(0)
    # Eckart and Young: no answers of rank 3 about their mean are nearer.
    best = float(torch.linalg.svdvals(centred)[3:].square().sum())
    sc.low_rank_(model, task_on(data, calibration=[(data, None)]), ranks={"0": 3})
    assert float((model(data).detach().double() - answers).square().sum()) == pytest.approx(best, rel=1e-3)


def test_data_help():
    missed = {}
    for seed in range(3):
        for weighted in (True, False):
            model, data = made(seed), images(seed)
            before = model(data).detach()
            sc.low_rank_(model, task_on(data, calibration=[(data, None)]), keep=0.5, weighted=weighted)
            missed[weighted] = missed.get(weighted, 0.0) + float((model(data).detach() - before).square().mean())
    assert missed[True] < 0.5 * missed[False], missed


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.8])
def test_the_rank_is_the_least_that_holds_the_energy(energy):
    model, data = made(), images(1)
    sizes = torch.linalg.svdvals(model[4].weight.detach().double()).square()
    rank = next(r for r in range(1, 21) if sizes[:r].sum() >= energy * sizes.sum())
    found = sc.low_rank_(model, task_on(data), energy=energy, only="4")
    assert found.ranks == {"4": rank}


def test_it_is_saved_loaded_and_shrunk_as_any_model(tmp_path):
    model, data = made(), images(1)
    sc.low_rank_(model, task_on(data), keep=0.6)
    before = model(data)
    sc.save(model, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", net).eval()
    assert torch.equal(loaded(data), before)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.25), task_on(data))
    masked = model(data)
    sc.shrink_(model, masks, data[:1])
    assert torch.allclose(model(data), masked, atol=1e-4)
    sc.save(model, tmp_path / "smaller.safetensors")
    assert torch.equal(sc.load(tmp_path / "smaller.safetensors", net).eval()(data), model(data))


@pytest.mark.slow
def test_the_runtime_and_onnx_take_it(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, data = made(), images(1)
    sc.low_rank_(model, task_on(data), keep=0.6)
    expected = model(data).detach()
    assert torch.allclose(sc.run.compile(model, data)(data), expected, atol=1e-3)
    sc.export.onnx(model, data, tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-3)


class AsksForItsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(30, 30), nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(nn.functional.linear(x, self.one.weight).relu())


def test_layers_that_cannot_become_two_stay_as_they_were_and_are_named():
    torch.manual_seed(0)
    model, data = AsksForItsWeight(), torch.randn(4, 30)
    kept = copy.deepcopy(model.one.state_dict())
    found = sc.low_rank_(model, task_on(data), keep=0.5)
    assert list(found.ranks) == ["two"]
    (skipped,) = found.skipped
    assert skipped.name == "one"
    assert "does not answer the same" in skipped.reason
    assert all(torch.equal(value, kept[name]) for name, value in model.one.state_dict().items())
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    model[4].weight = model[3].weight
    model[2].register_forward_hook(lambda *_: None)
    with pytest.raises(sc.SecateursError, match=r"no layer can become two: .*0: its groups never mix") as problem:
        sc.low_rank_(model, sc.Task(torch.randn(1, 4, 3, 3)), keep=0.5)
    assert "has hooks" in str(problem.value)
    assert "another layer's too" in str(problem.value)


def test_two_layers_that_would_be_no_smaller_are_left():
    model = made()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sc.SecateursError, match="rank 17 would be no smaller than the one, those of rank 16"):
        sc.low_rank_(model, task_on(images(0)), ranks={"4": 17})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("amount", "says"),
    [
        ({}, "not with none"),
        ({"keep": 0.5, "energy": 0.5}, "not with keep and energy"),
        ({"keep": 0.0}, r"keep=0.0 is not in \(0, 1\]"),
        ({"ranks": {"4": 0}}, "the rank of 4 is 0"),
        ({"ranks": {"fc": 3}}, "ranks names fc, but the layers are 0, 2, 4"),
    ],
)
def test_what_is_no_amount_is_refused(amount, says):
    with pytest.raises(sc.SecateursError, match=says):
        sc.low_rank_(made(), task_on(images(0)), **amount)


def test_what_is_not_finite_is_refused_by_name():
    model = made()
    model[2].weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"2\.weight: a weight is NaN or infinite"):
        sc.low_rank_(model, task_on(images(0)), keep=0.5)


def test_an_interruption_leaves_the_model_as_it_was(monkeypatch):
    from secateurs.shrink import factors

    model, data = made(), images(0)
    before, calls = copy.deepcopy(model.state_dict()), iter([None, KeyboardInterrupt()])
    swap = factors._swap_

    def interrupted(*arguments):
        swap(*arguments)
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr(factors, "_swap_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sc.low_rank_(model, task_on(data), keep=0.5)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "entry",
    [
        {"rank": 10**9, "sparse": False},
        {"rank": 0, "sparse": False},
        {"rank": -1, "sparse": False},
        {"rank": 2},
        {"rank": 2, "sparse": 1},
        3,
    ],
)
def test_a_damaged_record_is_refused_and_changes_nothing(entry):
    from secateurs.shrink.replay import replay_

    model = made()
    document = {**Step(factors={"4": Factors(3)}).to_document(), "factors": {"4": entry}}
    with pytest.raises(FileError):
        replay_(model, [Step.from_document(document)])
    assert isinstance(model[4], nn.Linear)


@pytest.mark.parametrize("name", ["", "nothing", "1", "4.weight"])
def test_a_record_of_a_layer_that_is_none_is_refused(name):
    from secateurs.shrink.replay import replay_

    with pytest.raises(FileError):
        replay_(made(), [Step(factors={name: Factors(3)})])


# ---------------------------------------------------------------- sparse plus low rank


def split_by_definition(weight: Tensor, norms: Tensor, each: int, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
    scaled, sparse = weight * norms, torch.zeros_like(weight)
    for _ in range(rounds):
        u, s, v = torch.linalg.svd(scaled - sparse, full_matrices=False)
        low = (u[:, :rank] * s[:rank]) @ v[:rank]
        sparse = torch.zeros_like(weight)
        for row, left in enumerate(scaled - low):
            largest = left.abs().argsort(descending=True)[:each]
            sparse[row, largest] = left[largest]
    return sparse / norms, low / norms


@pytest.mark.parametrize("shape", [(16, 24), (24, 10)])
def test_oats_splits_by_its_definition(shape):
    torch.manual_seed(0)
    outputs, features = shape
    model = nn.Sequential(nn.Linear(features, outputs), nn.ReLU(), nn.Linear(outputs, 3))
    data = torch.randn(50, features) * torch.rand(features) * 3
    weight = model[0].weight.detach().double()
    rank, each = int(0.3 * 0.6 * outputs * features / (outputs + features)), round(0.7 * 0.6 * features)
    sparse, low = split_by_definition(weight, data.double().norm(dim=0), each, rank, 12)
    masks = oats_(model, task_on(data, calibration=[(data, None)]), sparsity=0.4, low_rank=0.3, iterations=12, only="0")
    first, last = model[0].low_rank
    assert torch.allclose(model[0].sparse.weight.double(), sparse, atol=1e-5)
    assert torch.allclose((last.weight @ first.weight).double(), low, atol=1e-5)
    assert torch.equal(masks["0.sparse.weight"], sparse != 0)


def test_oats_loses_less_than_wanda_with_as_many_numbers_and_is_saved_and_loaded(tmp_path):
    lost = {}
    for seed in range(3):
        for method in (oats_, sc.methods.wanda_):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
            with torch.no_grad():
                for layer in (model[0], model[2]):
                    layer.weight += torch.randn(len(layer.weight), 2) @ torch.randn(2, layer.weight.shape[1]) / 8
            data = torch.randn(256, 8) @ torch.randn(8, 64) + 0.3 * torch.randn(256, 64)
            before = model(data).detach()
            masks = method(model, task_on(data, calibration=[(data, None)]), sparsity=0.6, only="*")
            lost[method.__name__] = lost.get(method.__name__, 0.0) + float((model(data).detach() - before).square().mean())
            if method is oats_:
                assert sum(int(parameter.count_nonzero()) for parameter in model.parameters()) <= 0.4 * 2 * 64 * 96 + 160
                sc.save(model, tmp_path / "split.safetensors", masks, sparse=True)
                fresh = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
                loaded = sc.load(tmp_path / "split.safetensors", fresh)
                assert torch.equal(loaded(data), model(data))
                assert torch.equal(
                    sc.load_masks(tmp_path / "split.safetensors", loaded)["0.sparse.weight"], masks["0.sparse.weight"]
                )
    assert lost["oats_"] < 0.7 * lost["wanda_"], lost


class AlsoAsksForItsWeight(AsksForItsWeight):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) + self.one.weight.mean()


def test_oats_refuses_what_it_cannot_split_and_takes_all_back():
    torch.manual_seed(0)
    model, data = AlsoAsksForItsWeight(), torch.randn(4, 30)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sc.SecateursError, match="oats_: one: the model does not answer the same"):
        oats_(model, task_on(data, calibration=[(data, None)]), only="*")
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(sc.SecateursError, match=r"low_rank=0 is not in \(0, 1\)"):
        oats_(model, task_on(data), low_rank=0)


# ---------------------------------------------------------------- what reads a weight only at times, few bits, too little left


@pytest.mark.parametrize(
    "method", [lambda model, task: sc.low_rank_(model, task, keep=0.5), lambda model, task: oats_(model, task, iterations=3)]
)
def test_layers_that_torch_reads_in_evaluation_mode_stay_one(method):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True)
    model, data = nn.Sequential(nn.Linear(24, 16), encoder, nn.Linear(16, 30)), torch.randn(4, 5, 24)
    method(model.train(), task_on(data, calibration=[(data, None)]))
    assert type(encoder.linear1) is type(encoder.linear2) is nn.Linear
    assert model.eval()(data).shape == model.train()(data).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_bits_become_two_layers_of_as_few(dtype):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(dtype), torch.randn(32, 64).to(dtype)
    by_hand = copy.deepcopy(model).float()
    found = sc.low_rank_(model, task_on(data), keep=0.5)
    sc.low_rank_(by_hand, task_on(data.float()), keep=0.5)
    assert found.ranks == {"0": 21, "2": 21}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.allclose(model(data).float(), by_hand(data.float()), atol=0.05)
    masks = oats_(copy.deepcopy(model), task_on(data, calibration=[(data, None)]), iterations=3, only="*")
    assert all(mask.any() for mask in masks.values())


@pytest.mark.parametrize(
    ("amount", "says"), [({"sparsity": 0.99}, "leave no rank"), ({"sparsity": 0.5, "low_rank": 0.999}, "leave none in a row")]
)
def test_oats_refuses_to_leave_too_little_and_names_the_layer(amount, says):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 20)), torch.randn(8, 20)
    with pytest.raises(sc.SecateursError, match=rf"0: of its 16 x 20 weights sparsity=.* {says}"):
        oats_(model, task_on(data, calibration=[(data, None)]), only="*", **amount)
    assert isinstance(model[0], nn.Linear)


@pytest.mark.parametrize("iterations", [0, 1.5, -1])
def test_oats_refuses_what_is_no_number_of_turns(iterations):
    with pytest.raises(sc.SecateursError, match=f"iterations is {iterations}"):
        oats_(made(), task_on(images(0)), iterations=iterations)


def test_what_is_no_number_is_refused():
    with pytest.raises(sc.SecateursError, match="keep='x' is not in"):
        sc.low_rank_(made(), task_on(images(0)), keep="x")
    with pytest.raises(sc.SecateursError, match="sparsity='x' is not in"):
        oats_(made(), task_on(images(0)), sparsity="x")
