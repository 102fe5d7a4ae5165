"""What is recorded, lowered and fused computes what the model computes, also for inputs that were not there when it was recorded."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from secateurs import models
from secateurs.forward import call
from secateurs.nested import changed, leaves
from secateurs.run.lowering.lower import lower
from secateurs.run.network.fits import difference, fits
from secateurs.run.network.interpret import interpret, interpreter
from secateurs.run.network.nodes import Activation, Conv, Linear, Network, Torch, inputs_of, outputs_of
from secateurs.run.recording.one_call import CompileError, network_of
from secateurs.types import TaskError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers")
    from zoo import CLASSIC, HAND_WRITTEN, TRANSFORMERS

SUBJECTS = {subject.name: subject for subject in [*TRANSFORMERS, *HAND_WRITTEN, *CLASSIC]}


def tensors(nest: Any) -> list[Tensor]:
    return [leaf.detach() for _, leaf in leaves(nest) if isinstance(leaf, Tensor)]


def other(example: Any, seed: int = 3) -> Any:
    """Other numbers in the same shapes; whole numbers are shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.dtype == torch.bool or tensor.is_complex():
            return tensor
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)

    return changed(example, change)


@torch.no_grad()
def answers(model: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(11)
    return call(model, changed(inputs, torch.clone))


def error(found: Any, wanted: Any) -> float:
    """The greatest difference, relative to the greatest number of each tensor."""
    found, wanted = tensors(found), tensors(wanted)
    assert [(each.shape, each.dtype) for each in found] == [(each.shape, each.dtype) for each in wanted]
    worst = 0.0
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one.isfinite(), two.isfinite())
        near = two.isfinite()
        if near.any():
            worst = max(worst, float((one[near] - two[near]).abs().max() / two[near].abs().max().clamp(min=1e-30)))
    return worst


def same(model: nn.Module, example: Any, limit: float = 1e-5) -> Network:
    """Record and lower; both compute what the model does, for the example and for other numbers; the model and chance stay as they were."""
    model.eval()
    before = copy.deepcopy(model.state_dict())
    slots = [
        (module, dict(module.__dict__), list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()
    ]
    kept = changed(example, torch.clone)
    chance = torch.get_rng_state()
    recorded = network_of(model, example)
    network = lower(recorded)
    assert torch.equal(torch.get_rng_state(), chance)
    for inputs in (example, other(example)):
        wanted = answers(model, inputs)
        for each in (recorded, network):
            torch.manual_seed(11)
            assert error(interpret(each, inputs), wanted) <= limit
    assert error(example, kept) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor))
    for module, held, after, first in slots:
        assert module.__dict__.keys() == held.keys() and all(module.__dict__[name] is item for name, item in held.items())
        assert (list(module._forward_hooks), list(module._forward_pre_hooks)) == (after, first)
    well_formed(network)
    return network


def well_formed(network: Network) -> None:
    """Each value is made once, before it is read, by nothing that is never read; what is native is float32 and not written into."""
    known = {*network.inputs, *network.constants}
    read = {value for node in network.nodes for value in inputs_of(node)} | set(values(network.result))
    assert set(network.constants) <= read
    for node in network.nodes:
        assert known.issuperset(inputs_of(node))
        assert known.isdisjoint(outputs_of(node))
        assert not outputs_of(node) or not read.isdisjoint(outputs_of(node))
        known.update(outputs_of(node))
        if not isinstance(node, Torch):
            touched = {*inputs_of(node), *outputs_of(node)}
            assert all(value.dtype == torch.float32 for value in touched) and network.written.isdisjoint(touched)
        if isinstance(node, Conv):
            assert node.weight.dim() == len(node.x.shape) == len(node.out.shape) == 4
        if isinstance(node, (Conv, Linear)):
            assert node.residual is None or node.residual.shape == node.out.shape
    assert known.issuperset(values(network.result))


def values(nest: Any) -> list[Any]:
    return [leaf for _, leaf in leaves(nest) if type(leaf).__name__ == "Value"]


def kinds(network: Network) -> dict[str, int]:
    """How many nodes of each kind, those of torch by their operation."""
    return dict(
        Counter(node.function.overloadpacket.__name__ if isinstance(node, Torch) else type(node).__name__ for node in network.nodes)
    )


def settled(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Running statistics near those of a batch, so that signals keep their size and folding a normalisation matters."""
    torch.manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 0.9
    model.train()
    with torch.no_grad():
        if norms:
            model(torch.randn(shape))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


# ---------------------------------------------------------------- whole models

BUILT_IN: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "lenet_300_100": ((2, 1, 28, 28), {"reshape": 1, "Linear": 3}),
    "lenet_5": ((2, 1, 28, 28), {"Conv": 2, "Pool": 2, "reshape": 1, "Linear": 2}),
    "digits_cnn": ((2, 1, 8, 8), {"Conv": 2, "Pool": 1, "reshape": 1, "Linear": 2}),
    "resnet_20": ((2, 3, 32, 32), {"Conv": 19, "slice": 4, "constant_pad_nd": 2, "Mean": 1, "Linear": 1}),
    "resnet_18": ((2, 3, 64, 64), {"Conv": 20, "Pool": 1, "Mean": 1, "Linear": 1}),
    "resnet_50": ((2, 3, 64, 64), {"Conv": 53, "Pool": 1, "Mean": 1, "Linear": 1}),
    "resnext_50": ((2, 3, 64, 64), {"Conv": 53, "Pool": 1, "Mean": 1, "Linear": 1}),
    "mobilenet_v2": ((2, 3, 64, 64), {"Conv": 52, "Mean": 1, "Linear": 1}),
    "mobilenet_v3_small": ((2, 3, 64, 64), {"Conv": 52, "Mean": 10, "Scale": 9, "Linear": 2}),
    "efficientnet_b0": ((2, 3, 64, 64), {"Conv": 81, "Mean": 17, "Scale": 16, "Linear": 1}),
    "densenet_121": ((2, 3, 64, 64), {"Conv": 120, "Pool": 4, "Affine": 62, "Concat": 58, "Mean": 1, "Linear": 1}),
    "googlenet": ((2, 3, 64, 64), {"Conv": 57, "max_pool2d_with_indices": 4, "Pool": 9, "Concat": 9, "Mean": 1, "Linear": 1}),
    "squeezenet_1_0": ((2, 3, 64, 64), {"Conv": 26, "Pool": 2, "max_pool2d_with_indices": 1, "Concat": 8, "Mean": 1}),
    "shufflenet_v2": (
        (2, 3, 64, 64),
        {"Conv": 56, "Pool": 1, "Concat": 16, "reshape": 32, "permute": 16, "split": 13, "Mean": 1, "Linear": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name: str) -> None:
    shape, expected = BUILT_IN[name]
    network = same(settled(getattr(models, name)(), (8, *shape[1:])), torch.randn(shape), 5e-5)  # deep ones add up what is rounded
    assert kinds(network) == expected


QUICK = [
    "bert", "bert_eager", "roberta", "gpt2", "gpt2_eager", "llama", "mamba", "t5", "whisper", "wav2vec2", "clip", "swin", "convnext",
    "segformer", "vit", "deberta", "mixtral", "lstm_language_model", "lstm_stacked_bidirectional", "gru_tagger", "wave_net", "unet",
    "unet_classic", "linear_squeeze_excite", "conv3d", "norms", "complex_rotary", "torch_encoder", "window_attention", "capsules",
    "shared_layers", "bare_parameters", "early_exit", "hand_written_lstm", "einsum_attention", "graph_attention",
]  # fmt: skip
REFUSED = {
    "longformer": "decides by the numbers",
    "mixtral_eager": "decides by the numbers",
    "switch": "decides by the numbers",
    "packed_lstm": "decides by the numbers",
    "sparse_experts": "decides by the numbers",
    "rwkv": "is written by",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SUBJECTS if name not in REFUSED]
)
def test_zoo(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages' models have to say
        model, example = SUBJECTS[name].make(), SUBJECTS[name].example()
        network = interpreter(lower(network_of(model, example)))
        for inputs in (example, other(example)):
            wanted = answers(model, inputs)
            torch.manual_seed(11)
            found = network(inputs)
            if error(found, wanted) > 1e-5:
                # Statistics of one example make deep networks ill-conditioned: torch's own answers are as far from those in float64.
                exact = answers(copy.deepcopy(model).double(), changed(inputs, doubled))
                assert far(found, exact) < 20 * far(wanted, exact)


def doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def far(found: Any, exact: Any) -> float:
    return error([each.double() for each in tensors(found)], [each.double() for each in tensors(exact)])


@pytest.mark.parametrize("name", REFUSED)
def test_zoo_refused(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SUBJECTS[name].make()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(CompileError, match=REFUSED[name]):
            network_of(model, SUBJECTS[name].example())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_quick_ones_are_there() -> None:
    assert set(QUICK) | REFUSED.keys() <= SUBJECTS.keys()


# ---------------------------------------------------------------- one step at a time


class Does(nn.Module):
    """A model that is one function of its inputs, and some modules."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


def conv(inputs: int = 4, outputs: int = 4, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 6, 8)))


def norm(kind: type[nn.Module] = nn.BatchNorm2d, channels: int = 4, **options: Any) -> nn.Module:
    made = kind(channels, **options)
    made.running_mean.normal_()  # type: ignore[union-attr,operator]
    made.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    if made.affine:
        nn.init.normal_(made.weight)  # type: ignore[arg-type]
        nn.init.normal_(made.bias)  # type: ignore[arg-type]
    return made


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Activation]] = {
    "relu": (functional.relu, Activation("clamp")),
    "relu_": (lambda x: functional.relu(x, inplace=True), Activation("clamp")),
    "relu6": (functional.relu6, Activation("clamp", 0, 6)),
    "hardtanh_": (lambda x: functional.hardtanh_(x, -2, 0.5), Activation("clamp", -2, 0.5)),
    "clamp": (lambda x: x.clamp(-0.5, 0.25), Activation("clamp", -0.5, 0.25)),
    "clamp_min": (lambda x: x.clamp(min=-0.5), Activation("clamp", -0.5)),
    "clamp_max": (lambda x: x.clamp(max=0.5), Activation("clamp", float("-inf"), 0.5)),
    "hardswish": (functional.hardswish, Activation("hard_swish")),
    "hardsigmoid": (functional.hardsigmoid, Activation("hard_sigmoid")),
    "silu_": (lambda x: functional.silu(x, inplace=True), Activation("silu")),
    "gelu": (functional.gelu, Activation("gelu")),
    "gelu_tanh": (partial(functional.gelu, approximate="tanh"), Activation("gelu_tanh")),
    "sigmoid": (torch.sigmoid, Activation("sigmoid")),
    "tanh": (torch.tanh, Activation("tanh")),
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), Activation("silu")),
    "sigmoid(x) * x": (lambda x: torch.sigmoid(x) * x, Activation("silu")),
    "x * relu6(x + 3) / 6": (lambda x: x * functional.relu6(x + 3) / 6, Activation("hard_swish")),
    "x * (relu6(x + 3) / 6)": (lambda x: x * (functional.relu6(x + 3) / 6), Activation("hard_swish")),
    "clamp(x + 3, 0, 6) / 6": (lambda x: (x + 3).clamp(0, 6) / 6, Activation("hard_sigmoid")),
    "gelu_new": (lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))), Activation("gelu_tanh")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("layer", ["conv", "conv1d", "linear", "add", "affine", "none"])
def test_activations_go_into_what_is_before(name: str, layer: str) -> None:
    function, expected = ACTIVATIONS[name]
    befores: dict[str, tuple[nn.Module, Tensor]] = {
        "conv": (conv(), images()),
        "conv1d": (nn.Conv1d(4, 4, 3), images(2, 4, 9)),
        "linear": (nn.Linear(8, 8), images(2, 5, 8)),
        "add": (Does(lambda self, x: x + self.conv(x).neg(), conv=conv()), images()),
        "affine": (norm(), images()),
        "none": (nn.Identity(), images()),
    }
    before, x = befores[layer]
    network = same(Does(lambda self, x: function(self.before(x)), before=before), x)
    found = [node.activation for node in network.nodes if getattr(node, "activation", None) is not None]
    spelled = name not in ("x * relu6(x + 3) / 6", "x * (relu6(x + 3) / 6)", "clamp(x + 3, 0, 6) / 6") or layer != "none"
    assert found == [expected] or not spelled
    assert kinds(network).keys() <= {"Conv", "Linear", "Add", "Affine", "Activate", "reshape", "neg"}


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, int]]] = {
    "conv, stride, dilation": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2)), images, {"Conv": 1}),
    "conv, same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), images, {"Conv": 1}),
    "conv, depthwise": (lambda: conv(4, 8, groups=4, bias=False), images, {"Conv": 1}),
    "conv, grouped": (lambda: conv(4, 8, groups=2), images, {"Conv": 1}),
    "conv, not a batch": (conv, lambda: images(4, 6, 8), {"reshape": 2, "Conv": 1}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), lambda: images(2, 4, 9), {"reshape": 2, "Conv": 1}),
    "conv1d twice": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), norm(nn.BatchNorm1d, 6), nn.ReLU(), nn.Conv1d(6, 3, 3), norm(nn.BatchNorm1d, 3)),
        lambda: images(2, 4, 9),
        {"reshape": 2, "Conv": 2},
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), lambda: images(1, 2, 5, 5, 5), {"convolution": 1}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3), images, {"convolution": 1}),
    "conv, norm": (lambda: nn.Sequential(conv(), norm()), images, {"Conv": 1}),
    "conv, norm with much epsilon": (lambda: nn.Sequential(conv(), norm(eps=0.3)), images, {"Conv": 1}),
    "linear, norm between views": (
        lambda: Does(lambda self, x: self.n(self.l(x).flatten(0, 1)).view(2, 5, 4).relu(), l=nn.Linear(3, 4), n=norm(nn.BatchNorm1d)),
        lambda: images(2, 5, 3),
        {"Linear": 1},
    ),
    "norm over places": (
        lambda: Does(lambda self, x: self.n(self.l(x)), l=nn.Linear(4, 4), n=norm(nn.BatchNorm1d)), lambda: images(2, 4, 4),
        {"Linear": 1, "Affine": 1},
    ),
    "instance norm": (lambda: nn.InstanceNorm2d(4), images, {"reshape": 2, "native_batch_norm": 1}),
    "conv, plain norm": (lambda: nn.Sequential(conv(bias=False), norm(affine=False)), images, {"Conv": 1}),
    "linear, norm": (lambda: nn.Sequential(nn.Linear(5, 4), norm(nn.BatchNorm1d)), lambda: images(3, 5), {"Linear": 1}),
    "norm, norm": (lambda: nn.Sequential(norm(), norm(), nn.ReLU()), images, {"Affine": 1}),
    "norm, relu, norm": (lambda: nn.Sequential(norm(), nn.ReLU(), norm()), images, {"Affine": 2}),
    "two activations": (lambda: nn.Sequential(conv(), nn.ReLU(), nn.Sigmoid()), images, {"Conv": 1, "Activate": 1}),
    "norm, conv": (lambda: nn.Sequential(norm(), conv()), images, {"Affine": 1, "Conv": 1}),
    "norm of a batch": (lambda: norm(track_running_stats=True).train(), images, {"Affine": 1}),
    "relu between": (lambda: nn.Sequential(conv(), nn.ReLU(), norm()), images, {"Conv": 1, "Affine": 1}),
    "linear": (lambda: nn.Linear(5, 4), lambda: images(3, 5), {"Linear": 1}),
    "linear, no bias": (lambda: nn.Linear(5, 4, bias=False), lambda: images(2, 3, 5), {"Linear": 1}),
    "linear, one": (lambda: nn.Linear(5, 4), lambda: images(5), {"Linear": 1}),
    "linear, 4-d": (lambda: nn.Linear(5, 4), lambda: images(2, 3, 2, 5), {"Linear": 1}),
    "linear, transposed input": (
        lambda: Does(lambda self, x: self.linear(x.transpose(1, 2)), linear=nn.Linear(3, 4)), lambda: images(2, 3, 5),
        {"permute": 1, "Linear": 1},
    ),
    "matmul": (lambda: Matrix(5, 4), lambda: images(2, 3, 5), {"Linear": 1}),
    "einsum": (lambda: Matrix(5, 4, lambda x, w: torch.einsum("bti,io->bto", x, w)), lambda: images(2, 3, 5), {"Linear": 1}),
    "baddbmm": (lambda: Matrix(5, 4, lambda x, w: torch.baddbmm(x[..., :4], x, w.expand(2, 5, 4))), lambda: images(2, 3, 5), None),
    "matrix on the left": (lambda: Matrix(4, 5, lambda x, w: w @ x), lambda: images(5, 3), {"mm": 1}),
    "bias after": (lambda: Matrix(5, 5, lambda x, w: x @ w + w[0]), lambda: images(2, 3, 5), {"Linear": 1}),
    "layer scale": (lambda: Matrix(5, 5, lambda x, w: w[0] * (x @ w) / 2 - w[1]), lambda: images(2, 3, 5), {"Linear": 1}),
    "channel scale": (lambda: Does(lambda self, x: self.c(x) * self.c.bias[:, None, None] / 3, c=conv()), images, {"Conv": 1}),
    "scale and shift": (lambda: Does(lambda self, x: x * self.c.bias[None, :, None, None] + self.c.bias[:, None, None], c=conv()), images,
                        {"Affine": 1}),
    "max": (lambda: nn.MaxPool2d(3, 2, 1), images, {"Pool": 1}),
    "max, dilated": (lambda: nn.MaxPool2d((2, 3), (1, 2), (1, 0), 2), images, {"Pool": 1}),
    "max, ceil that fits": (lambda: nn.MaxPool2d(2, 2, ceil_mode=True), images, {"Pool": 1}),
    "max, ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), images, {"max_pool2d_with_indices": 1}),
    "max, with indices": (lambda: nn.MaxPool2d(2, return_indices=True), images, {"max_pool2d_with_indices": 1}),
    "average": (lambda: nn.AvgPool2d(3, 2, 1), images, {"Pool": 1}),
    "average, without padding": (lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False), images, {"Pool": 1}),
    "average, divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), images, {"Pool": 1}),
    "average, 1-d": (lambda: nn.AvgPool1d(2), lambda: images(2, 4, 8), {"reshape": 2, "Pool": 1}),
    "adaptive to 1": (lambda: nn.AdaptiveAvgPool2d(1), images, {"Mean": 1}),
    "adaptive, flat": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, {"Mean": 1}),
    "mean": (lambda: Does(lambda self, x: x.mean((-2, 3))), images, {"Mean": 1}),
    "mean over one": (lambda: Does(lambda self, x: x.mean(3)), images, {"mean": 1}),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d((3, 2)), images, {"Pool": 1}),
    "adaptive to what is there": (lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d((6, 8))), images, {"Conv": 1}),
    "adaptive, uneven": (lambda: nn.AdaptiveAvgPool2d((4, 2)), images, {"_adaptive_avg_pool2d": 1}),
    "adaptive max": (lambda: nn.AdaptiveMaxPool2d((3, 2)), images, {"Pool": 1}),
    "concatenated": (lambda: Does(lambda self, x: torch.cat([x, self.c(x)], 1), c=conv()), images, {"Conv": 1, "Concat": 1}),
    "concatenated, then relu": (
        lambda: Does(lambda self, x: torch.cat([self.c(x), self.d(x)], -3).relu(), c=conv(), d=conv()), images, {"Conv": 2, "Concat": 1}
    ),
    "concatenated elsewhere": (lambda: Does(lambda self, x: torch.cat([x, x], 2)), images, {"cat": 1}),
    "excited": (lambda: Does(lambda self, x: x * self.c(x.mean((2, 3), True)).sigmoid(), c=conv(size=1)), images,
                {"Mean": 1, "Conv": 1, "Scale": 1}),
    "gated by another": (lambda: Does(lambda self, x: x * (-x).sigmoid()), images, {"neg": 1, "Activate": 1, "Multiply": 1}),
    "nothing": (lambda: nn.Sequential(nn.Dropout(), nn.Identity()), images, {}),
    "no-ops": (
        lambda: Does(lambda self, x: self.c(x.view(2, 4, 48).detach().view(2, 2, 96).reshape(x.shape).expand(2, -1, -1, -1)[:]), c=conv()),
        images,
        {"Conv": 1},
    ),
    "weight norm": (lambda: parametrizations.weight_norm(conv()), images, {"Conv": 1}),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(8, 4)), images, {"Linear": 1}),
    "standardised": (
        lambda: Does(lambda self, x: functional.conv2d(x, functional.normalize(self.c.weight.flatten(1)).view(4, 4, 3, 3)), c=conv()),
        images,
        {"Conv": 1},
    ),
    "double": (lambda: nn.Sequential(conv(), norm()).double(), lambda: images().double(), {"convolution": 1, "native_batch_norm": 1}),
    "half": (lambda: nn.Linear(8, 3).bfloat16(), lambda: images(2, 8).bfloat16(), {"addmm": 1}),
}  # fmt: skip


class Matrix(nn.Module):
    def __init__(self, inputs: int, outputs: int, function: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, example, expected = LAYERS[name]
    network = same(make(), example(), 1e-5 if name != "half" else 1e-2)
    assert expected is None or kinds(network) == expected


RESIDUALS: dict[str, tuple[Callable[..., Any], dict[str, int], str]] = {
    "last": (lambda s, x: (s.two(s.one(x).relu()) + x).relu(), {"Conv": 2}, "two"),
    "in place": (lambda s, x: (s.two(s.one(x).relu_()).add_(x)).relu_(), {"Conv": 2}, "two"),
    "the later of two": (lambda s, x: s.one(x) + s.two(x), {"Conv": 2}, "two"),
    "the later of two, first in the sum": (lambda s, x: s.flip(lambda: s.one(x), lambda: s.two(x)), {"Conv": 2}, "one"),
    "before the other term": (lambda s, x: s.one(x) + x.abs().sum(0, True).expand_as(x).sqrt(), None, "one"),
    "activated before": (lambda s, x: s.one(x).relu() + x, {"Conv": 1, "Add": 1}, ""),
    "read elsewhere": (lambda s, x: (y := s.one(x)) + x + y.abs(), {"Conv": 1, "abs": 1, "Add": 2}, ""),
    "returned": (lambda s, x: ((y := s.one(x)) + x, y), {"Conv": 1, "Add": 1}, ""),
    "twice itself": (lambda s, x: (y := s.one(x)) + y, {"Conv": 1, "Add": 1}, ""),
    "broadcast": (lambda s, x: s.one(x) + x[:1], {"Conv": 1, "add": 1, "slice": 1}, ""),
    "weighted": (lambda s, x: torch.add(s.one(x), x, alpha=2), {"Conv": 1, "add": 1}, ""),
    "two sums": (lambda s, x: s.one(x) + x + x.abs(), {"Conv": 1, "abs": 1, "Add": 1}, "one"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name: str) -> None:
    function, expected, fused = RESIDUALS[name]
    model = Does(function, one=conv(), two=conv())
    model.flip = lambda one, two: (lambda later, first: first + later)(two(), one())
    network = same(model, images())
    assert expected is None or kinds(network) == expected
    assert [node.name for node in network.nodes if getattr(node, "residual", None) is not None] == ([fused] if fused else [])


def test_linear_layers_take_residuals_in_n_dimensions() -> None:
    model = Does(lambda s, x: x + s.out(s.inner(x).view(2, 5, 2, 4).transpose(1, 2).transpose(1, 2).reshape(2, 5, 8)))
    model.out, model.inner = nn.Linear(8, 8), nn.Linear(8, 8)
    assert kinds(same(model, images(2, 5, 8))) == {"Linear": 2}
    model = Does(lambda s, x: x + s.out(s.inner(x).view(2, 5, 2, 4).transpose(1, 2).tanh().transpose(1, 2).reshape(2, 5, 8)))
    model.out, model.inner = nn.Linear(8, 8), nn.Linear(8, 8)
    assert kinds(same(model, images(2, 5, 8)))["Linear"] == 2


def test_names_are_those_of_modules() -> None:
    model = nn.Sequential(nn.Sequential(conv(), norm(), nn.ReLU()), nn.Flatten(), nn.Linear(192, 8), nn.MultiheadAttention(8, 2))
    model.forward = lambda x: model[3](*[model[2](model[1](model[0](x)))] * 3)[0]  # type: ignore[method-assign,assignment]
    network = same(model, images())
    assert [node.name for node in network.nodes if isinstance(node, (Conv, Linear))] == [*("0.0", "2", "3", "3", "3", "3.out_proj")]


def test_weights_are_kept_by_reference_where_nothing_is_folded() -> None:
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(192, 3))
    layers = [node for node in same(model, images()).nodes if isinstance(node, (Conv, Linear))]
    assert [layer.weight.data_ptr() for layer in layers] == [model[0].weight.data_ptr(), model[2].weight.data_ptr()]


# ---------------------------------------------------------------- memory


def assigned(self: Any, x: Tensor) -> Tensor:
    y = self.c(x)
    y[:, 0] = x[:, 1]
    y[:, :, 1:3] *= 2
    return y.relu()


def put(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.index_put_((torch.tensor([0, 1]), torch.tensor([1, 2])), torch.tensor(5.0), accumulate=True)
    y.masked_fill_(x > 0, 7)
    return y


def seen(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.c(x)
    part = y[:, 1]
    y.relu_()
    return y + 1, part * 2


def seen_before(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.c(x)
    part = y[:, 1] * 2
    y.relu_()
    return y + 1, part


def cloned_before(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = self.c(x)
    part, copied = y[:, 1], y.clone()
    y.relu_()
    return y + 1, part * 2, copied.view(-1) + 1


def filled(self: Any, x: Tensor) -> Tensor:
    out = torch.zeros(2, 4, 6, 8)
    half = out[:, 2:]
    for channel in range(4):
        out[:, channel] = x[:, 3 - channel]
    half += 1
    return out * 2 + half.sum()


def constant_then_written(self: Any, x: Tensor) -> Tensor:
    ones = torch.ones(8)
    first = x * ones
    ones[2:] = 3
    second = x * ones
    ones.mul_(x[0, 0, 0])
    return first + second * ones


def turned(self: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.transpose_(2, 3).unsqueeze_(0).squeeze_(0)
    return y.relu_() + y


def out_argument(self: Any, x: Tensor) -> Tensor:
    room = torch.empty(2, 4, 6, 8)
    torch.add(x, x, out=room)
    room[:, :2].mul_(3)
    return room


def mixed(self: Any, x: Tensor) -> Tensor:
    y = self.c(x)
    view = y.view(2, -1)
    view += 1
    y = y + view.view(y.shape).relu_()
    return y.add_(x.double())


def writes_its_input(self: Any, x: Tensor) -> Tensor:
    part = x[:, 0]
    x.mul_(2)
    return part + x.sum()


def strides(self: Any, x: Tensor) -> Tensor:
    return self.c(x).as_strided((3, 5), (7, 2), 4) * 2


MEMORY = {
    each.__name__: each
    for each in (
        assigned, put, seen, seen_before, cloned_before, filled, constant_then_written, turned, out_argument, mixed,
        writes_its_input, strides,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORY)
def test_memory(name: str) -> None:
    same(Does(MEMORY[name], c=conv()), images())


@pytest.mark.parametrize("name", ["assigned", "seen", "turned", "strides"])
def test_memory_where_channels_are_last(name: str) -> None:
    same(Does(MEMORY[name], c=conv()).to(memory_format=torch.channels_last), images())


def test_writes_that_nothing_else_sees_become_new_values() -> None:
    network = same(nn.Sequential(conv(), nn.ReLU(inplace=True), conv(), nn.Hardswish(inplace=True)), images())
    assert kinds(network) == {"Conv": 2}
    assert not network.written
    assert same(Does(seen, c=conv()), images()).written
    assert not same(Does(lambda self, x: (y := self.c(x).relu_()) + y[:, :1], c=conv()), images()).written
    assert kinds(same(Does(seen_before, c=conv()), images())).get("relu_") is None


def test_inputs_are_not_written() -> None:
    for function in (writes_its_input, lambda self, x: x.relu_()):
        network = lower(network_of(Does(function), images()))
        x = images()
        before = x.clone()
        interpret(network, x)
        assert torch.equal(x, before)


def test_inputs_and_views_of_them_as_results() -> None:
    network = same(Does(lambda self, x: (x, x, x[:, 1], torch.ones(2))), images())
    x = images()
    first, second, part, _ = interpret(network, x)
    assert first is second is x
    assert part.data_ptr() == x[:, 1].data_ptr()
    copied = same(Does(lambda self, x: x.clone().view(-1)), images())
    assert interpret(copied, x).data_ptr() != x.data_ptr()
    both = same(Does(lambda self, x: ((y := x * 2), y.clone().view(-1))), images())
    one, two = interpret(both, x)
    assert one.data_ptr() != two.data_ptr()


def test_constant_results_are_the_callers_own() -> None:
    model = Does(lambda self, x: (x + 1, torch.ones(2), self.c.bias), c=conv())
    run = interpreter(same(model, images()))
    _, ones, bias = run(images())
    ones += 1
    bias += 1
    assert torch.equal(run(images())[1], torch.ones(2)) and torch.equal(run(images())[2], model.c.bias)


def test_two_inputs_that_are_one_tensor_need_not_stay_one() -> None:
    x, y = images(), images()
    network = lower(network_of(Does(lambda self, a, b: a - 2 * b), (x, x)))
    assert torch.equal(interpret(network, (x, y)), x - 2 * y)


# ---------------------------------------------------------------- chance and state


def test_chance_is_met_anew_in_each_call() -> None:
    model = Does(lambda self, x: x + torch.rand(8) + torch.empty(8).normal_() + functional.dropout(x, training=True))
    same(model, images())
    run, x = interpreter(lower(network_of(model, images()))), images()
    assert not torch.equal(run(x), run(x))
    kept = interpreter(
        lower(network_of(Does(lambda self, x: functional.dropout(x, 0.5, self.training) + torch.zeros(8)), images()))
    )
    assert torch.equal(kept(x), kept(x))


class Stateful(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def counting(self: Any, x: Tensor) -> Tensor:
    self.state += 1
    return x * self.state


def averaging(self: Any, x: Tensor) -> Tensor:
    self.state.mul_(0.9).add_(x.mean((0, 1, 2)))
    return x - self.state


def rescaling(self: Any, x: Tensor) -> Tensor:
    self.scale.div_(2)
    return x * self.scale


def recurrent(self: Any, x: Tensor) -> Tensor:
    self.state = self.state + x[0, 0, 0]
    return x * self.state


@pytest.mark.parametrize("function", [counting, averaging, rescaling, recurrent])
def test_state_between_calls_is_refused(function: Callable[..., Any]) -> None:
    model = Stateful(function)
    before, state = copy.deepcopy(model.state_dict()), model.state
    with pytest.raises(CompileError, match=r"(state|scale)\S* is written by the model.* keeps nothing between calls"):
        network_of(model, images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.state is state


def test_state_that_the_result_does_not_need_is_left_alone() -> None:
    def watching(self: Any, x: Tensor) -> Tensor:
        self.state.add_(x.mean((0, 1, 2)))
        self.seen = x.mean()
        return x * self.scale

    model = Stateful(watching)
    network = lower(network_of(model, images()))
    assert kinds(network) == {"mul": 1}
    interpret(network, images())
    assert not model.state.any() and not hasattr(model, "seen")


def test_statistics_of_the_batch_are_not_written_down() -> None:
    model = Does(lambda self, x: functional.batch_norm(x, self.n.running_mean, self.n.running_var, training=True), n=norm())
    before = copy.deepcopy(model.state_dict())
    network = lower(network_of(model, images()))
    x = images()
    found = interpret(network, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert error(found, answers(model, x)) < 1e-5


# ---------------------------------------------------------------- what cannot be repeated

DECIDES: dict[str, Callable[..., Any]] = {
    "if": lambda self, x: x if x.max() > 0 else -x,
    "item": lambda self, x: x * x.mean().item(),
    "nonzero": lambda self, x: x.flatten()[x.flatten().nonzero()[:, 0]],
    "boolean index": lambda self, x: x[x > 0].sum(),
    "unique": lambda self, x: x.unique(),
    "tolist": lambda self, x: x * torch.tensor(x[0, 0, 0].tolist()),
    "numpy": lambda self, x: x * torch.from_numpy(x[0, 0, 0].numpy() + 1),
    "repeats": lambda self, x: torch.arange(2).repeat_interleave((x[0, 0, 0, :2] * 0 + 2).long()),
    "chance": lambda self, x: x if torch.rand(()) < 2 else -x,
    "equal": lambda self, x: x if torch.equal(x, x + 1) else -x,
    "set_": lambda self, x: (x + 1).resize_(3) * 2,
}


@pytest.mark.parametrize("name", DECIDES)
def test_what_depends_on_numbers_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Identity(), Does(DECIDES[name]))
    with pytest.raises(
        CompileError, match=r"module '1' .* at \S*test_lower.py:\d+, which a compiled model cannot repeat: .*compile"
    ):
        network_of(model, images())


def test_numbers_of_constants_may_decide() -> None:
    def deciding(self: Any, x: Tensor) -> Tensor:
        mask = torch.arange(8) % 3 > 0
        if self.c.bias.abs().sum() > 0:
            x = x[..., mask] * self.c.bias[0].item()
        return x * len(self.c.weight.nonzero().tolist())

    same(Does(deciding, c=conv()), images())


def test_checks_that_are_skipped_while_compiling_do_not_matter() -> None:
    def checking(self: Any, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (x > 1e9).any():
            raise ValueError
        return x * 2

    same(Does(checking), images())
    assert not torch.compiler.is_compiling()


def test_what_is_no_model_of_this_kind_is_refused() -> None:
    with pytest.raises(TaskError, match="the model rejects the example"):
        network_of(nn.Linear(3, 2), torch.zeros(1, 4))
    with pytest.raises(TaskError, match="the model returns NoneType, in which no tensor can be found"):
        network_of(Does(lambda self, x: None), torch.zeros(1, 4))
    with pytest.raises(CompileError, match="weight is on meta, but compiled models run on the CPU"):
        network_of(nn.Linear(3, 2, device="meta"), torch.zeros(1, 3))
    compiled = nn.Linear(3, 2)
    compiled._orig_mod = nn.Linear(3, 2)
    with pytest.raises(CompileError, match="compiled or scripted"):
        network_of(compiled, torch.zeros(1, 3))


# ---------------------------------------------------------------- what goes in and comes out

Point = namedtuple("Point", "x y")


@dataclass
class Answer:
    logits: Tensor
    extra: dict[str, Any]
    length: int = 3


class Cache:
    def __init__(self) -> None:
        self.layers: list[Tensor] = []
        self.owner = self
        self.count = 0


def caching(self: Any, x: Tensor, cache: Any = None) -> tuple[Tensor, Cache]:
    made = Cache()
    made.layers = [*(cache.layers if cache else []), x * 2]
    made.count = len(made.layers)
    return sum(made.layers), made  # type: ignore[return-value]


def test_nests_come_back_as_they_were() -> None:
    run = interpreter(lower(network_of(Does(lambda self, x: Answer(x + 1, {"p": Point(x, [x * 2]), "n": None})), images())))
    x = images()
    answer = run(x)
    assert type(answer) is Answer and answer.length == 3 and torch.equal(answer.logits, x + 1)
    assert type(answer.extra["p"]) is Point and answer.extra["p"].x is x and answer.extra["n"] is None
    assert type(interpreter(lower(network_of(Does(lambda self, x: x.max(3)), x)))(x)) is type(x.max(3))


def test_caches_go_in_and_come_out() -> None:
    x = images()
    first = interpreter(lower(network_of(Does(caching), (x,))))
    _, cache = first((x,))
    assert type(cache) is Cache and cache.owner is cache and cache.count == 1 and torch.equal(cache.layers[0], x * 2)
    second = interpreter(lower(network_of(Does(caching), (x, cache))))
    y = images()
    assert torch.allclose(second((y, cache))[0], 2 * x + 2 * y)
    with pytest.raises(CompileError, match=r"layers\[1\]"):
        second((y, second((y, cache))[1]))


def test_hugging_face_outputs_and_caches() -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 31, (2, 5))
    run = interpreter(lower(network_of(model, {"input_ids": ids, "use_cache": True})))
    others = torch.randint(0, 31, (2, 5))
    found, wanted = run({"input_ids": others, "use_cache": True}), answers(model, {"input_ids": others, "use_cache": True})
    assert type(found) is type(wanted) and found.keys() == wanted.keys()
    assert torch.allclose(found.logits, wanted.logits, atol=1e-5) and found["logits"] is found.logits
    assert type(found.past_key_values) is type(wanted.past_key_values) and found.past_key_values.get_seq_length() == 5
    step = {"input_ids": others[:, :1], "past_key_values": found.past_key_values}
    more = interpreter(lower(network_of(model, step)))
    with torch.no_grad():
        following = model(input_ids=others[:, :1], past_key_values=wanted.past_key_values)
    assert error(more(step).logits, following.logits) < 1e-5
    assert found.past_key_values.get_seq_length() == 5


def test_inputs_that_do_not_fit_are_told() -> None:
    network = lower(network_of(Does(lambda self, x, mask=None, scale=1: x * scale), {"x": images(), "scale": 2}))
    assert fits(network, {"x": images(), "scale": 2})
    for inputs, message in (
        ({"x": images(3, 4, 6, 8), "scale": 2}, r"the input['x'] is (3, 4, 6, 8) torch.float32, not (2, 4, 6, 8) torch.float32"),
        ({"x": images().double(), "scale": 2}, r"the input['x'] is (2, 4, 6, 8) torch.float64, not (2, 4, 6, 8) torch.float32"),
        ({"x": images(), "scale": 3}, r"the input['scale'] is 3, not 2"),
        ({"x": 3, "scale": 2}, r"the input['x'] is int, not a tensor"),
        ({"x": images().to("meta"), "scale": 2}, r"the input['x'] is on meta, not on the CPU"),
        ({"x": images(), "mask": None}, r"the input has [\"['mask']\"] that was not there, and lacks [\"['scale']\"]"),
    ):
        assert difference(network, inputs) == message.replace("\\", "")
        with pytest.raises(CompileError, match="compile again for inputs like this one"):
            interpret(network, inputs)


def test_gradients_are_not_needed() -> None:
    x = images().requires_grad_()
    found = interpret(lower(network_of(nn.Sequential(conv(), nn.ReLU()), x)), x)
    assert not found.requires_grad and x.grad is None


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of n steps holds two tensors, not n."""
    import weakref

    alive: list[Any] = []
    most = 0

    def watch(x: Tensor) -> Tensor:
        nonlocal most
        out = x + 1
        alive.append(weakref.ref(out))
        most = max(most, sum(each() is not None for each in alive))
        return out

    network = network_of(Does(lambda self, x: x.sin().sin().sin().sin().sin().sin()), images())
    network.nodes = [Torch(node.name, watch, node.args, node.kwargs, node.outputs) for node in network.nodes]
    interpret(network, images())
    assert most == 2
