"""Networks of integers/ in float32 against torch: models, and random chains of operations that move numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs import export, models, targets
from secateurs.forward import run_example
from secateurs.integers.build import UnsupportedError, built
from secateurs.integers.layers import Add, Concat, Conv, Network, Table
from secateurs.integers.module import IntegerModel
from secateurs.integers.qdq import onnx_model, steps_apart
from secateurs.integers.reference import run
from secateurs.nested import tensors_in


def answered(model: nn.Module, inputs: Tensor, network: Network | None = None) -> None:
    """Hold a network's answers against the model's."""
    model.eval()
    network = built(model, inputs) if network is None else network
    with torch.no_grad():
        wanted = [tensor.numpy() for tensor in tensors_in(run_example(model, inputs))]
    found = run(network, [network.inputs[0].packed(inputs.numpy())])
    for face, numbers, right in zip(network.outputs, found, wanted, strict=True):
        assert numbers.dtype == np.float32
        np.testing.assert_allclose(face.unpacked(numbers), right, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(right).max()))


def livened(model: nn.Module) -> nn.Module:
    """With statistics and factors of batch normalisations that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (models.ds_cnn, (3, 1, 49, 10)),
        (models.mobilenet_v2, (1, 3, 48, 48)),
        (models.mobilenet_v3_small, (2, 3, 48, 48)),
        (models.squeezenet_1_0, (1, 3, 64, 64)),
        (models.resnet_20, (2, 3, 32, 32)),
        (models.lenet_5, (3, 1, 28, 28)),
        (models.lenet_300_100, (3, 1, 28, 28)),
        (models.googlenet, (1, 3, 64, 64)),
        (models.shufflenet_v2, (1, 3, 64, 64)),
        (models.digits_cnn, (2, 1, 8, 8)),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_models_answer_as_in_torch(make, shape):
    torch.manual_seed(1)
    answered(livened(make()), torch.randn(shape))


class Branching(nn.Module):
    """What is before a clamp is read elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + 2 * torch.relu(y)


def test_a_clamp_stays_where_what_is_before_it_is_read_elsewhere():
    answered(Branching(), torch.randn(2, 2, 5, 5))


def test_clamps_go_into_the_layer_before_them():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Hardtanh(-1.5, 0.125), nn.Hardtanh(0.03, 7))
    network = built(model, torch.randn(1, 1, 5, 5))
    (conv,) = network.layers
    assert isinstance(conv, Conv) and (conv.low, conv.high) == (pytest.approx(0.03), pytest.approx(0.125))
    answered(model, torch.randn(4, 1, 5, 5))


def test_a_model_that_begins_with_a_clamp():
    network = built(nn.Sequential(nn.ReLU6(), nn.Flatten(), nn.Linear(4, 1)), torch.randn(2, 1, 2, 2))
    assert isinstance(network.layers[0], Table)
    answered(nn.ReLU6(), torch.randn(3, 4))


def test_bounds_of_a_clamp_are_told_to_the_bit():
    answered(nn.Sequential(nn.Flatten(), nn.Hardtanh(-1 / 3, 1 / 3)), torch.randn(3, 4))
    network = built(nn.Sequential(nn.Hardtanh(-1 / 3, 1 / 3)), torch.randn(3, 4))
    assert run(network, [network.inputs[0].packed(np.ones((1, 4), np.float32))])[0].max() == np.float32(1 / 3)


def test_what_has_no_kernels_is_told():
    with pytest.raises(UnsupportedError, match="no kernels for"):
        built(nn.Sequential(nn.Conv2d(1, 1, 3), nn.LayerNorm(3)), torch.randn(1, 1, 5, 5))


# ---------------------------------------------------------------- fixed numbers


class Applied(nn.Module):
    """A function of the input, and buffers ``a`` and ``b``."""

    def __init__(self, function: Callable[..., Tensor], *sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, size in zip("ab", sizes, strict=False):
            self.register_buffer(name, torch.rand(size, generator=torch.Generator().manual_seed(ord(name))) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.buffers())


@pytest.mark.parametrize(
    ("function", "sizes", "shape"),
    [
        (lambda x, a, b: (x - a) / b, [(1, 3, 1, 1), (3, 1, 1)], (2, 3, 4, 5)),
        (lambda x, a, b: a * x + b, [(), (1,)], (2, 3, 4, 5)),
        (lambda x, a, b: (a - x) * b, [(3, 1, 1), (1, 1, 4, 1)], (2, 3, 4, 5)),
        (lambda x, a, b: x.mean(1) * a + b, [(4, 5), (5,)], (2, 3, 4, 5)),
        (lambda x, a: x * a, [(3, 4, 5)], (2, 3, 4, 5)),
        (lambda x, a, b: x * a + b, [(4,), (1, 4)], (2, 4)),
        (lambda x, a, b: a + x.reshape(-1, 3, 4).permute(0, 2, 1) / b, [(1, 4, 3), (3,)], (2, 12)),
        (lambda x, a: x + a, [(1, 5, 4)], (2, 5, 4)),
        (lambda x, a: F.conv2d(x, torch.ones(2, 3, 1, 1)).flatten(1) + a, [(40,)], (2, 3, 4, 5)),
    ],
)
def test_fixed_numbers_are_operands(function, sizes, shape):
    torch.manual_seed(0)
    answered(Applied(function, *sizes), torch.randn(shape))


def test_normalised_inputs_move_nothing():
    network = built(Applied(lambda x, a, b: (x - a) / b, (1, 3, 1, 1), (1, 3, 1, 1)), torch.randn(2, 3, 4, 5))
    assert [(type(layer), layer.is_depthwise) for layer in network.layers] == [(Conv, True)] * 2


def test_fixed_numbers_that_do_not_fit_are_told():
    with pytest.raises(UnsupportedError, match=r"operand \(1, 1, 4\) that a constant of the shape \(3, 4\) makes larger"):
        built(Applied(lambda x, a: x * a, (3, 4)), torch.randn(2, 1, 4))
    with pytest.raises(UnsupportedError, match="a number divided by a tensor"):
        built(Applied(lambda x, a: a / x, (4,)), torch.randn(2, 4))
    with pytest.raises(UnsupportedError, match=r"a constant tensor \(1, 6\) that belongs to no layer"):
        built(Applied(lambda x, a: torch.cat([x, a.reshape(1, 6)], 1), (2, 3)), torch.randn(1, 4))


# ---------------------------------------------------------------- functions of single numbers

EACH = [
    nn.LeakyReLU(0.2),
    nn.ELU(0.7),
    nn.SELU(),
    nn.CELU(0.5),
    nn.Softplus(),
    nn.Softplus(2.0, 5.0),
    nn.Mish(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Hardtanh(-0.3, 2),
    nn.PReLU(init=-0.4),
    Applied(lambda x: -x.abs()),
    Applied(torch.exp),
    Applied(lambda x: x**2),
]


@pytest.mark.parametrize("function", EACH, ids=lambda each: repr(each).split("\n")[0])
def test_functions_of_single_numbers(function):
    inputs = 4 * torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(3))
    inputs[0, 0, 0, 0], inputs[0, 0, 0, 1] = 30.0, -30.0
    answered(function, inputs.clamp(max=8) if function is EACH[-2] else inputs)


def test_softsign_is_one_table_and_no_other_quotient_is():
    assert [layer.function for layer in built(nn.Softsign(), torch.randn(2, 4)).layers] == ["softsign"]
    for function in (lambda x: x / (x.abs() + 2), lambda x: x / (1 + (-x).abs()), lambda x: x / (1 + x)):
        with pytest.raises(UnsupportedError, match="div of two tensors"):
            built(Applied(function), torch.randn(2, 4))


def test_functions_without_kernels_are_told():
    with pytest.raises(UnsupportedError, match=r"a PReLU with 2 slopes, where one for all channels, PReLU\(\), has a kernel"):
        built(nn.PReLU(2), torch.randn(2, 2, 4, 5))
    with pytest.raises(UnsupportedError, match="the power 3 of a tensor, where its square has a kernel"):
        built(Applied(lambda x: x**3), torch.randn(2, 4))


def test_functions_in_integers_and_as_c(tmp_path):
    """All of them one after the other, in each kind of number, in C and in ONNX."""
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    model = Applied(lambda x: torch.cat([function(x) for function in EACH], 1))
    for kind in ("int8", "int16", "float32"):
        chip = targets.microcontroller()
        made = export.c(model, inputs, tmp_path / kind, calibration=[inputs], target=chip, kind=kind, search=False, show=False)
        network = made.program.network
        if kind != "float32":
            meant = IntegerModel(network)(inputs)
            steps = (meant - model(inputs)).abs().max() / network.outputs[0].array.scale
            assert steps < (2 if kind == "int8" else 40), kind
        if importlib.util.find_spec("onnxruntime"):
            apart = steps_apart(network, onnx_model(network), [inputs.numpy()])
            assert apart <= {"int8": 1, "int16": 8, "float32": 1e-4}[kind]  # int16: lines between 513 numbers


# ---------------------------------------------------------------- random chains of moves


class Moves(nn.Module):
    """A convolution or a linear layer, and then a random chain of operations on a list of tensors."""

    def __init__(self, first: nn.Module, steps: list[tuple]) -> None:
        super().__init__()
        self.first, self.steps = first, steps
        self.weights = nn.ParameterDict()  # made where a first call needs them

    def forward(self, x: Tensor) -> Tensor:
        tensors = [self.first(x)]
        for step in self.steps:
            tensors.append(self.made(tensors, step))
        return tensors[-1]

    def made(self, tensors: list[Tensor], step: tuple) -> Tensor:
        kind, which, number = step
        x = tensors[-1 - which % len(tensors)]
        dims = x.ndim
        dim = number % max(1, dims)
        rng = np.random.default_rng(number)
        if kind == "reshape":
            return x.reshape(_reshaped(tuple(x.shape), rng))
        if kind == "permute":
            order = [0, *(1 + rng.permutation(dims - 1))] if number % 3 else list(rng.permutation(dims))
            return x.permute(*map(int, order))
        if kind == "slice" and x.shape[dim] > 1:
            start = int(rng.integers(0, x.shape[dim] - 1))
            return x[(slice(None),) * dim + (slice(start, None, 1 + number % 2),)]
        if kind == "select" and dims > 2 and x.shape[dim]:
            return x.select(dim, int(rng.integers(0, x.shape[dim])))
        if kind == "cat":
            others = [each for each in tensors if _but(each.shape, dim) == _but(x.shape, dim) and each.ndim == dims]
            return torch.cat([x, others[number % len(others)]], dim)
        if kind == "chunk" and x.shape[dim] > 1:
            return x.chunk(2, dim)[number % 2]
        if kind == "stack":
            return torch.stack([x, x * 2], dim)
        if kind == "unsqueeze":
            return x.unsqueeze(dim)
        if kind == "add":
            others = [each for each in tensors if each.shape == x.shape]
            return x + others[number % len(others)]
        if kind == "product":
            others = [each for each in tensors if each.shape == x.shape]
            return x * others[number % len(others)]
        if kind == "softmax":
            return x.softmax(dim)
        if kind == "mean" and dims > 1:
            return x.mean(dim, keepdim=bool(number % 2))
        if kind == "scalar":
            return [x * 2.5, x + 1.5, 0.5 - x, x / 4, x - 2][number % 5]
        if kind == "act":
            return [F.relu, F.relu6, F.hardswish, torch.sigmoid, F.silu, torch.tanh][number % 6](x)
        if kind == "linear" and dims >= 2 and x.numel() > 1:
            return F.linear(x, self.weight(x.shape[-1], number))
        if kind == "pool" and dims == 4 and x.shape[0] == 1 and min(x.shape[2:]) > 1:
            return [F.max_pool2d, F.avg_pool2d][number % 2](x, 2)
        if kind == "pad" and dims == 4 and x.shape[0] == 1:
            return F.pad(x, [int(each) for each in rng.integers(0, 2, 4)])
        if kind == "conv" and dims == 4 and x.shape[0] == 1 and x.shape[1] < 30:
            return F.conv2d(x, self.weight(x.shape[1], number)[:, :, None, None])
        return x

    def weight(self, inputs: int, number: int) -> Tensor:
        name = f"{number}_{inputs}"
        if name not in self.weights:
            self.weights[name] = nn.Parameter(torch.randn(1 + number % 4, inputs) / inputs**0.5)
        return self.weights[name]


def _but(shape, dim):
    return tuple(size for place, size in enumerate(shape) if place != dim)


def _reshaped(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """A shape of as many numbers: dimensions merged with their neighbours, or split; now and then anything."""
    sizes = list(shape)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(0, len(sizes)))
        factors = [one for one in range(2, sizes[at]) if sizes[at] % one == 0]
        if rng.random() < 0.5 and at + 1 < len(sizes):
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        elif factors and len(sizes) < 6:
            factor = int(rng.choice(factors))
            sizes[at : at + 1] = [factor, sizes[at] // factor]
    if rng.random() < 0.15:
        sizes = [1, -1]
    return tuple(sizes)


KINDS = ["reshape", "permute", "reshape", "permute", "slice", "select", "cat", "chunk", "stack", "unsqueeze", "add", "product"]
KINDS += ["softmax", "mean", "scalar", "act", "linear", "pool", "pad", "conv"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.integers(0, 1000)), min_size=1, max_size=9),
    st.sampled_from([(1, 2, 4, 6), (1, 3, 5, 4), (1, 6, 4), (1, 12)]),
)
def test_random_moves_answer_as_in_torch(steps, shape):
    torch.manual_seed(0)
    first = nn.Conv2d(shape[1], 4, (1, 3), padding=(0, 1)) if len(shape) == 4 else nn.Linear(shape[-1], shape[-1])
    model, inputs = Moves(first, steps), torch.randn(shape)
    model(inputs)
    try:
        network = built(model, inputs)
    except UnsupportedError as error:  # pooling of several samples and the like
        if "where one sample" not in str(error):
            raise
    else:
        answered(model, inputs, network=network)


def test_concatenations_and_sums_move_nothing_that_they_need_not():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.one(x), self.two(x)
            return torch.cat([one + two, one], 1)

    kinds = [type(layer) for layer in built(Two(), torch.randn(1, 2, 4, 4)).layers]
    assert kinds == [Conv, Conv, Add, Concat] or kinds == [Conv, Conv, Concat]


class Stacked(nn.Module):
    """One of the rows of what was stacked along another dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return torch.stack([y, 2 * y], 2)[:, 3]


def test_one_of_what_was_stacked_along_another_dimension():
    answered(Stacked(), torch.randn(4, 6))
