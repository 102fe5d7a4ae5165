"""Costs: parameters, MACs and bytes against numbers computed by hand from the papers' tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import secateurs as sc
from secateurs import models
from secateurs.costs import tensor_bytes, trace_macs
from secateurs.types import PlanError, SecateursError, Share, TaskError


class Call(nn.Module):
    """A function as a model, with parameters of its own."""

    def __init__(self, function: Callable[..., Tensor], **parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape)))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.parameters())


# ---------------------------------------------------------------- MACs, layer by layer

x = torch.zeros
LAYERS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, float], float]] = {
    # name: model, example, MACs by parameter, MACs between activations
    "linear": (lambda: nn.Linear(5, 7), x(1, 5), {"weight": 5 * 7}, 0),
    "linear without bias": (lambda: nn.Linear(5, 7, bias=False), x(1, 5), {"weight": 5 * 7}, 0),
    "linear on one vector": (lambda: nn.Linear(5, 7), x(5), {"weight": 5 * 7}, 0),
    "linear on a batch of sequences": (lambda: nn.Linear(5, 7), x(2, 3, 4, 5), {"weight": 24 * 5 * 7}, 0),
    "linear on a transposed sequence": (
        lambda: Call(lambda i, w: F.linear(i.mT, w), w=(7, 5)),
        x(2, 5, 3),
        {"w": 6 * 5 * 7},
        0,
    ),
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, stride=2, padding=1), x(2, 3, 21), {"weight": 2 * 10 * 3 * 4 * 5}, 0),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, padding=1), x(1, 3, 10, 12), {"weight": 120 * 3 * 8 * 9}, 0),
    "conv2d without a batch": (lambda: nn.Conv2d(3, 8, 3, padding=1), x(3, 10, 12), {"weight": 120 * 3 * 8 * 9}, 0),
    "conv2d strided": (lambda: nn.Conv2d(3, 8, 3, stride=2), x(1, 3, 11, 9), {"weight": 5 * 4 * 3 * 8 * 9}, 0),
    "conv2d dilated": (lambda: nn.Conv2d(3, 8, 3, dilation=2), x(1, 3, 10, 10), {"weight": 36 * 3 * 8 * 9}, 0),
    "conv2d padded same": (lambda: nn.Conv2d(2, 3, 5, padding="same"), x(1, 2, 6, 6), {"weight": 36 * 2 * 3 * 25}, 0),
    "conv2d circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        x(1, 2, 6, 6),
        {"weight": 36 * 2 * 3 * 9},
        0,
    ),
    "conv2d grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2), x(1, 6, 5, 5), {"weight": 9 * 8 * 3 * 9}, 0),
    "conv2d depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), x(4, 6, 5, 5), {"weight": 4 * 9 * 6 * 9}, 0),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), x(1, 2, 4, 4, 4), {"weight": 4 * 3 * 2 * 2 * 3 * 6}, 0),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(3, 4, 5, stride=3), x(2, 3, 7), {"weight": 2 * 7 * 3 * 4 * 5}, 0),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
        x(1, 4, 5, 5),
        {"weight": 25 * 4 * 3 * 9},
        0,
    ),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 2, 2), x(1, 2, 3, 3, 3), {"weight": 27 * 2 * 2 * 8}, 0),
    "embedding": (lambda: nn.Embedding(10, 4), torch.tensor([[1, 2]]), {}, 0),
    "embedding bag": (lambda: nn.EmbeddingBag(10, 4), torch.tensor([[1, 2]]), {}, 0),
    "normalisations": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3)), x(2, 3, 4, 4), {}, 0),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), (x(2, 3), x(2, 4)), {"weight": 2 * 3 * 4 * 5}, 0),
    "bare parameter": (lambda: Call(lambda i, w: F.linear(i, w), w=(7, 5)), x(3, 5), {"w": 3 * 5 * 7}, 0),
    "weight on the left": (lambda: Call(lambda i, w: w @ i, w=(7, 5)), x(5, 3), {"w": 3 * 5 * 7}, 0),
    "weight at a vector": (lambda: Call(lambda i, w: w @ i, w=(7, 5)), x(5), {"w": 5 * 7}, 0),
    "two vectors": (lambda: Call(lambda i, w: w @ i, w=(5,)), x(5), {"w": 5}, 0),
    "matmul with a batch": (lambda: Call(lambda i, w: i @ w, w=(4, 5)), x(2, 3, 4), {"w": 6 * 4 * 5}, 0),
    "batched weight": (lambda: Call(torch.bmm, w=(2, 4, 5)), x(2, 3, 4), {"w": 2 * 3 * 4 * 5}, 0),
    "einsum": (lambda: Call(lambda i, w: torch.einsum("bsi,hio->bsho", i, w), w=(2, 4, 5)), x(3, 6, 4), {"w": 18 * 40}, 0),
    "baddbmm": (lambda: Call(lambda i, w: torch.baddbmm(x(1), i, w), w=(2, 4, 5)), x(2, 3, 4), {"w": 2 * 3 * 4 * 5}, 0),
    "addbmm": (lambda: Call(lambda i, w: torch.addbmm(x(1), i, w), w=(2, 4, 5)), x(2, 3, 4), {"w": 2 * 3 * 4 * 5}, 0),
    "addmv": (lambda: Call(lambda i, w: torch.addmv(x(1), w, i), w=(7, 5)), x(5), {"w": 5 * 7}, 0),
    "two weights": (lambda: Call(lambda i, a, b: F.linear(i, a @ b), a=(7, 2), b=(2, 5)), x(3, 5), {"a": 70}, 3 * 35),
    "converted weights, then activations": (
        lambda: Call(lambda i, w: sum((F.linear(i, w * n) @ F.linear(i, w + n).mT for n in range(4)), x(1)), w=(4, 4)),
        x(4, 4),
        {"w": 8 * 64},
        4 * 64,
    ),
    "activations": (lambda: Call(torch.matmul), (x(2, 3, 4), x(2, 4, 5)), {}, 2 * 3 * 4 * 5),
    "scaled weight": (lambda: Call(lambda i, w: F.linear(i, w * 2), w=(7, 5)), x(3, 5), {"w": 3 * 5 * 7}, 0),
    "elementwise only": (lambda: Call(lambda i, w: torch.relu(i * w), w=(5,)), x(3, 5), {}, 0),
    "sdpa": (
        lambda: Call(F.scaled_dot_product_attention),
        (x(2, 4, 3, 8), x(2, 4, 5, 8), x(2, 4, 5, 6)),
        {},
        2 * 4 * 3 * 5 * (8 + 6),
    ),
    "sdpa causal": (
        lambda: Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        (x(2, 4, 5, 8),) * 3,
        {},
        2 * 4 * 5 * 5 * 16,
    ),
    "multihead attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        (x(3, 5, 8), x(3, 5, 8), x(3, 5, 8)),
        {"in_proj_weight": 15 * 8 * 24, "out_proj.weight": 15 * 8 * 8},
        3 * 5 * 5 * 16,
    ),
    "multihead attention of other widths": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True),
        (x(1, 5, 8), x(1, 7, 6), x(1, 7, 4)),
        {"q_proj_weight": 5 * 64, "k_proj_weight": 7 * 48, "v_proj_weight": 7 * 32, "out_proj.weight": 5 * 64},
        5 * 7 * 16,
    ),
    "transformer encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 32, batch_first=True),
        x(3, 5, 8),
        {
            "self_attn.in_proj_weight": 15 * 8 * 24,
            "self_attn.out_proj.weight": 15 * 8 * 8,
            "linear1.weight": 15 * 8 * 32,
            "linear2.weight": 15 * 8 * 32,
        },
        3 * 5 * 5 * 16,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_macs_of_layers_and_functions(name: str) -> None:
    make, example, by_parameter, between = LAYERS[name]
    trace = trace_macs(make(), example)
    assert trace.by_parameter == by_parameter
    assert trace.between_activations == between
    assert trace.total == sum(by_parameter.values()) + between
    assert sc.macs(make(), example) == trace.total


GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@pytest.mark.parametrize("kind", GATES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_macs_of_recurrent_layers(kind: Any, layers: int, bidirectional: bool, batch_first: bool) -> None:
    """Each gate of each direction of each layer multiplies with input and state at every step."""
    model = kind(5, 6, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    expected = {}
    for layer in range(layers):
        inputs = 5 if layer == 0 else 6 * (1 + bidirectional)
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            expected[f"weight_ih_l{layer}{suffix}"] = GATES[kind] * 6 * inputs * 2 * 7
            expected[f"weight_hh_l{layer}{suffix}"] = GATES[kind] * 6 * 6 * 2 * 7
    trace = trace_macs(model, torch.zeros(2, 7, 5))
    assert trace.by_parameter == expected
    assert trace.between_activations == 0


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_macs_of_a_projected_lstm() -> None:
    trace = trace_macs(nn.LSTM(5, 6, proj_size=3), torch.zeros(7, 2, 5))
    assert trace.by_parameter == {"weight_ih_l0": 14 * 24 * 5, "weight_hh_l0": 14 * 24 * 3, "weight_hr_l0": 14 * 6 * 3}


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_macs_of_recurrent_cells(kind: Any) -> None:
    gates = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}[kind]
    trace = trace_macs(kind(5, 6), torch.zeros(2, 5))
    assert trace.by_parameter == {"weight_ih": 2 * gates * 30, "weight_hh": 2 * gates * 36}


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    assert trace_macs(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4)).by_parameter == {"0.weight": 32}


def test_tied_weights_count_once_as_parameters_and_each_time_as_macs() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    ids = torch.tensor([[1, 2, 3]])
    assert sc.params(model, ids) == 40
    assert trace_macs(model, ids).by_parameter == {"0.weight": 3 * 40}


def test_macs_under_autocast_are_those_of_the_same_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 3))
    example = torch.zeros(1, 1, 4, 4)
    expected = trace_macs(model, example)
    with torch.autocast("cpu", torch.bfloat16):
        assert trace_macs(model, example) == expected
    assert expected.by_parameter == {"0.weight": 4 * 18, "2.weight": 24, "3.weight": 9}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_macs_do_not_depend_on_the_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
    assert sc.macs(model, torch.zeros(1, 1, 4, 4, dtype=dtype)) == 4 * 18 + 24


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    trace_macs(model, torch.randn(2, 3, generator=torch.Generator()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_an_example_that_the_model_rejects_is_named() -> None:
    with pytest.raises(TaskError, match="the model rejects the example"):
        sc.macs(nn.Linear(3, 2), torch.zeros(1, 4))
    with pytest.raises(TaskError, match="there is no example input"):
        sc.macs(nn.Linear(3, 2), None)


# ---------------------------------------------------------------- published networks


def conv(inputs: int, outputs: int, kernel: int, side: int, bias: bool = True) -> tuple[int, int]:
    """Parameters and MACs of a convolution whose output has side × side positions."""
    weights = inputs * outputs * kernel * kernel
    return weights + outputs * bias, weights * side * side


def linear(inputs: int, outputs: int) -> tuple[int, int]:
    return inputs * outputs + outputs, inputs * outputs


def norm(channels: int) -> tuple[int, int]:
    return 2 * channels, 0


def fire(inputs: int, squeeze: int, expand: int, side: int) -> list[tuple[int, int]]:
    return [conv(inputs, squeeze, 1, side), conv(squeeze, expand, 1, side), conv(squeeze, expand, 3, side)]


def bottleneck(inputs: int, width: int, before: int, after: int) -> list[tuple[int, int]]:
    layers = [
        conv(inputs, width, 1, before, False),
        conv(width, width, 3, after, False),
        conv(width, 4 * width, 1, after, False),
    ]
    layers += [norm(width), norm(width), norm(4 * width)]
    if inputs != 4 * width:
        layers += [conv(inputs, 4 * width, 1, after, False), norm(4 * width)]
    return layers


def cifar_resnet(blocks: int) -> list[tuple[int, int]]:
    layers, before = [conv(3, 16, 3, 32, False), norm(16)], 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for _ in range(blocks):
            layers += [conv(before, width, 3, side, False), norm(width), conv(width, width, 3, side, False), norm(width)]
            before = width
    return [*layers, linear(64, 10)]


def imagenet_resnet() -> list[tuple[int, int]]:
    layers, inputs, before = [conv(3, 64, 7, 112, False), norm(64)], 64, 56
    for width, side, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for _ in range(blocks):
            layers += bottleneck(inputs, width, before, side)
            inputs, before = 4 * width, side
    return [*layers, linear(2048, 1000)]


def vgg() -> list[tuple[int, int]]:
    layers, inputs = [], 3
    for side, widths in ((224, [64] * 2), (112, [128] * 2), (56, [256] * 3), (28, [512] * 3), (14, [512] * 3)):
        for width in widths:
            layers.append(conv(inputs, width, 3, side))
            inputs = width
    return [*layers, linear(512 * 49, 4096), linear(4096, 4096), linear(4096, 1000)]


# layer tables, example's shape, published parameters, published MACs (as precisely as they were published)
NETWORKS: dict[str, tuple[Any, list[tuple[int, int]], tuple[int, ...], int, float]] = {
    "lenet_300_100": (
        models.lenet_300_100,
        [linear(784, 300), linear(300, 100), linear(100, 10)],
        (1, 28, 28),
        266_610,
        266_200,
    ),
    "lenet_5": (
        models.lenet_5,
        [conv(1, 20, 5, 24), conv(20, 50, 5, 8), linear(800, 500), linear(500, 10)],
        (1, 28, 28),
        431_080,
        2_293_000,
    ),
    "alexnet": (
        models.alexnet,
        [
            *(conv(3, 64, 11, 55), conv(64, 192, 5, 27), conv(192, 384, 3, 13), conv(384, 256, 3, 13), conv(256, 256, 3, 13)),
            *(linear(9216, 4096), linear(4096, 4096), linear(4096, 1000)),
        ],
        (3, 224, 224),
        61_100_840,
        714e6,
    ),
    "vgg_16": (models.vgg_16, vgg(), (3, 224, 224), 138_357_544, 15.5e9),
    "resnet_50": (models.resnet_50, imagenet_resnet(), (3, 224, 224), 25_557_032, 4.1e9),
    "resnet_20": (models.resnet_20, cifar_resnet(3), (3, 32, 32), 269_722, 40.6e6),
    "resnet_56": (models.resnet_56, cifar_resnet(9), (3, 32, 32), 853_018, 125.5e6),
    "squeezenet_1_0": (
        models.squeezenet_1_0,
        [
            *(conv(3, 96, 7, 111), *fire(96, 16, 64, 55), *fire(128, 16, 64, 55), *fire(128, 32, 128, 55)),
            *(*fire(256, 32, 128, 27), *fire(256, 48, 192, 27), *fire(384, 48, 192, 27), *fire(384, 64, 256, 27)),
            *(*fire(512, 64, 256, 13), conv(512, 1000, 1, 15)),
        ],
        (3, 227, 227),
        1_248_424,
        861e6,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_of_the_published_networks(name: str) -> None:
    factory, layers, shape, parameters, published_macs = NETWORKS[name]
    by_hand = sum(each for _, each in layers)
    with FakeTensorMode():  # computes shapes only
        model, example = factory(), torch.zeros(1, *shape)
        assert sc.params(model, example) == sum(each for each, _ in layers) == parameters
        assert sc.macs(model, example) == by_hand
    assert by_hand == pytest.approx(published_macs, rel=0.005)


def test_macs_of_two_samples_are_twice_those_of_one() -> None:
    with FakeTensorMode():
        model = models.resnet_20()
        one, two = (sc.macs(model, torch.zeros(n, 3, 32, 32)) for n in (1, 2))
    assert two == 2 * one


# ---------------------------------------------------------------- nonzero


def test_nonzero_counts_of_a_masked_model_by_hand() -> None:
    """A weight of the convolution counts at each of its 4 positions, attention counts whole."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)

        def forward(self, image: Tensor) -> Tensor:
            hidden = self.fc(self.conv(image).flatten(1))
            return hidden @ hidden.T

    model = Model()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    masks = {"conv.weight": torch.zeros(2, 1, 3, 3, dtype=torch.bool), "fc.weight": torch.zeros(3, 8, dtype=torch.bool)}
    masks["conv.weight"].view(-1)[:5] = True
    masks["fc.weight"].view(-1)[:7] = True
    sc.Masks(masks, model).apply_()
    assert sc.nonzero_params(model) == 5 + 2 + 7 + 3
    assert sc.macs(model, torch.zeros(1, 1, 4, 4)) == 4 * 18 + 24 + 3
    assert sc.nonzero_macs(model, torch.zeros(1, 1, 4, 4)) == 4 * 5 + 7 + 3


def test_nonzero_counts_of_tied_weights_and_of_no_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.data = torch.tensor([[1.0, 0], [0, torch.nan]])
    assert sc.nonzero_params(model) == 2
    assert sc.nonzero_macs(model, torch.zeros(1, 2)) == 4
    nothing = Call(lambda i, w: F.linear(i, w), w=(3, 0))
    assert sc.nonzero_macs(nothing, torch.zeros(1, 0)) == 0


# ---------------------------------------------------------------- plans


def pruned() -> tuple[nn.Module, sc.Masks, sc.Task]:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 5))
    task = sc.Task(torch.randn(1, 2, 4, 4))
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.6), task, skip=["4"])
    return model, masks, task


def test_bytes_count_the_bits_of_a_plan_and_no_other_cost_does() -> None:
    model, example = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 3)), torch.zeros(1, 10)
    plan = sc.uniform(keep=0.5)(sc.find_sites(model, sc.Element()), lambda: iter([]))
    first, *others = plan.shares.items()
    narrow = replace(plan, shares=dict([(first[0], replace(first[1], bits=3)), *others]))
    for cost in (sc.params, sc.macs):
        assert cost(model, example, plan) == cost(model, example, narrow)
    kept = first[1].kept
    saved = 4 * kept - (3 * kept + 7) // 8
    for cost in (tensor_bytes, sc.bytes_):
        assert cost(model, example, plan) - cost(model, example, narrow) == pytest.approx(saved, abs=32 if cost is sc.bytes_ else 0)
    assert tensor_bytes(model, example, plan) - tensor_bytes(model, example, narrow) == saved > 0


def test_a_plan_promises_what_is_counted_on_the_pruned_model() -> None:
    model, masks, task = pruned()
    count = sc.params.prepare(model, task.example)
    assert count(None) == sc.params(model, task.example) == 72 + 4 + 8 + 85 + 30
    assert count(masks.plan) == count(None) - sum(int((~mask).sum()) for mask in masks.values())
    work = sc.macs.prepare(model, task.example)
    assert work(None) == 4 * 72 + 80 + 25
    assert work(masks.plan) == pytest.approx(sc.nonzero_macs(model, task.example)) == 4 * 29 + 32 + 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.5, 0.9])
def test_bytes_are_those_of_the_file(tmp_path: Path, dtype: torch.dtype, sparsity: float) -> None:
    """Of the payload: weights kept, one bit for each, biases, buffers; tied weights once; also where nothing is removed."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12)).to(dtype)
    model[4].weight = model[3].weight
    task = sc.Task(torch.randn(1, 1, 4, 4).to(dtype))
    dense = sc.save(model, tmp_path / "dense")
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), task)
    sparse = sc.save(model, tmp_path / "sparse", masks, sparse=True)
    for name, plan in (("dense", None), ("sparse", masks.plan)):
        payload = sum(tensor.numel() * tensor.element_size() for tensor in load_file(tmp_path / name).values())
        assert tensor_bytes.prepare(model, task.example)(plan) == payload
    assert abs(sc.bytes_(model, task.example) - dense) <= 8
    assert sparse <= sc.bytes_(model, task.example, masks.plan) <= sparse + 400
    assert sc.file_bytes(tmp_path / "dense") == dense
    assert sc.file_bytes(tmp_path / "sparse") == sparse


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (models.digits_cnn, torch.zeros(1, 1, 8, 8)),
        (models.lenet_5, torch.zeros(1, 1, 28, 28)),
        (models.resnet_20, torch.zeros(1, 3, 32, 32)),
        (lambda: models.vit(image=16, patch=4, width=64, depth=3, heads=4, classes=10), torch.zeros(1, 3, 16, 16)),
    ],
    ids=["digits_cnn", "lenet_5", "resnet_20", "vit"],
)
@pytest.mark.parametrize("pattern", [sc.Element(), sc.Channel()], ids=repr)
def test_a_budget_in_bytes_is_met_by_the_file(make, example, pattern, tmp_path: Path) -> None:
    model, path = make(), tmp_path / "small.safetensors"
    dense = sc.save(model, path, seed=1)
    budget = sc.Budget(sc.bytes_, limit=0.4 * dense)
    task = sc.Task(example=example)
    masks = sc.prune_(model, pattern, sc.TopK(sc.magnitude()), sc.within_budget(budget, sc.uniform), task)
    whole = isinstance(pattern, sc.Channel)
    if whole:
        sc.shrink_(model, masks)
    metric = {"accuracy": 0.9712345678901234}
    size = sc.save(model, path, masks, sparse=not whole, metric=metric, seed=12345678901)
    assert size == sc.file_bytes(path)
    assert 0.36 * dense < size <= masks.plan.promised["bytes"] <= 0.4 * dense
    assert not whole or abs(sc.bytes_(model, example) - sc.save(model, path)) <= 8


@pytest.mark.parametrize("cost", [sc.params, sc.macs, sc.bytes_], ids=lambda cost: cost.name)
@pytest.mark.parametrize(
    ("share", "message"),
    [
        (Share(2, 1, {"nope.weight": 3}), "fc: the plan names the parameter 'nope.weight', which the model does not have"),
        (Share(7, 1, {"weight": 1}), "fc: the plan cuts weight into 7 units of 1, but it has 6 elements"),
    ],
)
def test_a_plan_of_another_model_is_refused(cost: sc.Cost, share: Share, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        cost.prepare(nn.Linear(3, 2), torch.zeros(1, 3))(sc.Plan({"fc": share}))


def test_costs_have_names_and_units() -> None:
    assert [(cost.name, cost.unit) for cost in (sc.params, sc.macs, sc.bytes_)] == [
        ("params", "parameters"),
        ("macs", "MACs"),
        ("bytes", "bytes"),
    ]


@pytest.mark.parametrize("options", [{}, {"limit": 3, "keep": 0.5}, {"keep": 0.0}, {"keep": 1.1}])
def test_a_budget_is_one_limit(options: dict[str, float]) -> None:
    with pytest.raises(SecateursError, match=r"Budget\(params"):
        sc.Budget(sc.params, **options)


def test_budgets_are_absolute_or_a_fraction_of_the_dense_model() -> None:
    assert sc.Budget(sc.macs, limit=10).limit_for(nn.Linear(3, 2), torch.zeros(1, 3)) == 10
    assert sc.Budget(sc.macs, keep=0.5).limit_for(nn.Linear(3, 2), torch.zeros(1, 3)) == 3
