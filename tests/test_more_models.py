"""The newer networks have the parameters of their papers, can be built small, train, and attend to what they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateurs import models
from secateurs.models.stochastic_depth import StochasticDepth
from secateurs.models.swin import SwinBlock, WindowAttention
from secateurs.models.vit import Attention

Factory = Callable[..., nn.Module]

# tested in test_models.py
OLDER = {
    "alexnet", "digits_cnn", "ds_cnn", "lenet_300_100", "lenet_5", "resnet_20", "resnet_50", "resnet_56", "squeezenet_1_0", "vgg_16",
}  # fmt: skip
# factory, published parameters, input of the paper, arguments of a tiny one, input of the tiny one; shapes without the batch
NETWORKS = [
    pytest.param(models.resnet_18, 11_689_512, (3, 224, 224), {"width": 0.125}, (3, 32, 32), id="resnet_18"),
    pytest.param(models.resnet_34, 21_797_672, (3, 224, 224), {"width": 0.125}, (3, 32, 32), id="resnet_34"),
    pytest.param(models.resnet_50, 25_557_032, (3, 224, 224), {"width": 0.125}, (3, 32, 32), id="resnet_50"),
    pytest.param(models.resnext_50, 25_028_904, (3, 224, 224), {"width": 0.125, "groups": 4}, (3, 32, 32), id="resnext_50"),
    pytest.param(models.vgg_16_bn, 138_365_992, (3, 224, 224), {"width": 0.0625}, (3, 32, 32), id="vgg_16_bn"),
    pytest.param(models.googlenet, 6_624_904, (3, 224, 224), {"width": 0.125}, (3, 32, 32), id="googlenet"),
    pytest.param(
        models.densenet_121, 7_978_856, (3, 224, 224), {"growth": 4, "blocks": (2, 3, 2)}, (3, 32, 32), id="densenet_121"
    ),
    pytest.param(models.mobilenet_v2, 3_504_872, (3, 224, 224), {"width": 0.25}, (3, 32, 32), id="mobilenet_v2"),
    pytest.param(models.mobilenet_v3_small, 2_542_856, (3, 224, 224), {"width": 0.25}, (3, 32, 32), id="mobilenet_v3_small"),
    pytest.param(models.mobilenet_v3_large, 5_483_032, (3, 224, 224), {"width": 0.25}, (3, 32, 32), id="mobilenet_v3_large"),
    pytest.param(
        models.shufflenet_v2, 2_278_604, (3, 224, 224), {"widths": (4, 8, 16, 32), "blocks": (2, 2)}, (3, 32, 32),
        id="shufflenet_v2",
    ),
    pytest.param(models.efficientnet_b0, 5_288_548, (3, 224, 224), {"width": 0.25}, (3, 32, 32), id="efficientnet_b0"),
    pytest.param(
        models.vit, 86_567_656, (3, 224, 224), {"width": 16, "depth": 2, "heads": 4, "patch": 4, "image": 16}, (3, 16, 16),
        id="vit",
    ),
    pytest.param(
        models.swin_t, 28_288_354, (3, 224, 224), {"width": 8, "blocks": (2, 2), "heads": (2, 4), "window": 4}, (3, 64, 64),
        id="swin_t",
    ),
    pytest.param(models.convnext_t, 28_589_128, (3, 224, 224), {"width": 8, "blocks": (1, 2)}, (3, 32, 32), id="convnext_t"),
    pytest.param(models.unet, 31_030_658, (1, 64, 64), {"width": 8, "depth": 2}, (1, 16, 16), id="unet"),
    pytest.param(
        models.lstm_language_model, 19_780_400, (5,), {"classes": 20, "width": 16, "drop": 0.0}, (5,), id="lstm_language_model"
    ),
]  # fmt: skip


def example(shape: tuple[int, ...], n: int = 2) -> Tensor:
    """Random pixels, or for the one network of one dimension the first words of its vocabulary."""
    return torch.randn(n, *shape) if len(shape) > 1 else torch.arange(n * shape[0]).reshape(n, *shape)


def expected(name: str, n: int, classes: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    shapes = {"unet": (n, classes, *shape[1:]), "lstm_language_model": (n, *shape, classes)}
    return shapes.get(name, (n, classes))


@pytest.mark.parametrize(("factory", "published", "shape", "tiny", "tiny_shape"), NETWORKS)
def test_parameters_and_output_shape(
    factory: Factory, published: int, shape: tuple[int, ...], tiny: dict[str, Any], tiny_shape: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        model = factory()
        output = model(example(shape))
    assert sum(p.numel() for p in model.parameters()) == published
    classes = {"unet": 2, "lstm_language_model": 10_000}.get(factory.__name__, 1000)
    assert output.shape == expected(factory.__name__, 2, classes, shape)


def test_every_network_is_tested() -> None:
    assert {param.id for param in NETWORKS} | OLDER == set(models.__all__)


@pytest.mark.parametrize(("factory", "published", "shape", "tiny", "tiny_shape"), NETWORKS)
def test_tiny_ones_learn(
    factory: Factory, published: int, shape: tuple[int, ...], tiny: dict[str, Any], tiny_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, inputs = factory(**tiny | {"classes": 20}), example(tiny_shape, n=4)
    assert sum(p.numel() for p in model.parameters()) < published / 10
    target = torch.randn(expected(factory.__name__, 4, 20, tiny_shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(inputs) - target).square().mean()
        loss.backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        optimizer.step()
        first = first or loss.item()
        if loss.item() < 0.7 * first:
            return
    pytest.fail(f"the loss fell from {first:.3f} to no less than {loss.item():.3f}")


@pytest.mark.parametrize(("factory", "published", "shape", "tiny", "tiny_shape"), NETWORKS)
def test_evaluation_is_deterministic_and_treats_examples_alone(
    factory: Factory, published: int, shape: tuple[int, ...], tiny: dict[str, Any], tiny_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, inputs = factory(**tiny).eval().double(), example(tiny_shape, n=3)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        together, again, alone = model(inputs), model(inputs), torch.cat([model(x[None]) for x in inputs])
    assert torch.equal(together, again)
    assert together.std(0).max() > 0
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(("factory", "published", "shape", "tiny", "tiny_shape"), NETWORKS)
def test_state_fits_another_instance(
    factory: Factory, published: int, shape: tuple[int, ...], tiny: dict[str, Any], tiny_shape: tuple[int, ...]
) -> None:
    one, other, inputs = factory(**tiny).eval(), factory(**tiny).eval(), example(tiny_shape)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one(inputs), other(inputs))


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(
    ("factory", "published", "shape", "tiny", "tiny_shape"), [param for param in NETWORKS if param.id != "lstm_language_model"]
)
def test_number_of_input_channels(
    factory: Factory, published: int, shape: tuple[int, ...], tiny: dict[str, Any], tiny_shape: tuple[int, ...], channels: int
) -> None:
    with torch.device("meta"):
        factory(**tiny, in_channels=channels)(torch.zeros(2, channels, *tiny_shape[1:]))


@pytest.mark.parametrize(
    ("factory", "macs"),
    [
        # as in torchvision's table of models, in units of 10^9 there
        pytest.param(models.resnet_18, 1.81, id="resnet_18"),
        pytest.param(models.resnet_34, 3.66, id="resnet_34"),
        pytest.param(models.resnext_50, 4.23, id="resnext_50"),
        pytest.param(models.vgg_16_bn, 15.47, id="vgg_16_bn"),
        pytest.param(models.googlenet, 1.50, id="googlenet"),
        pytest.param(models.densenet_121, 2.83, id="densenet_121"),
        pytest.param(models.mobilenet_v2, 0.30, id="mobilenet_v2"),
        pytest.param(models.mobilenet_v3_small, 0.06, id="mobilenet_v3_small"),
        pytest.param(models.mobilenet_v3_large, 0.22, id="mobilenet_v3_large"),
        pytest.param(models.shufflenet_v2, 0.14, id="shufflenet_v2"),
        pytest.param(models.efficientnet_b0, 0.39, id="efficientnet_b0"),
        pytest.param(models.vit, 17.56, id="vit"),
        pytest.param(models.swin_t, 4.49, id="swin_t"),
        pytest.param(models.convnext_t, 4.46, id="convnext_t"),
    ],
)
def test_multiply_accumulates(factory: Factory, macs: float) -> None:
    """Right parameters with a wrong stride would show here."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        factory().eval()(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.01)


@pytest.mark.parametrize(
    ("factory", "arguments", "published"),
    [
        pytest.param(models.densenet_121, {"blocks": (6, 12, 32, 32)}, 14_149_480, id="densenet_169"),
        pytest.param(models.efficientnet_b0, {"depth": 1.1}, 7_794_184, id="efficientnet_b1"),
        pytest.param(models.efficientnet_b0, {"width": 1.1, "depth": 1.2}, 9_109_994, id="efficientnet_b2"),
        pytest.param(models.shufflenet_v2, {"widths": (24, 48, 96, 192, 1024)}, 1_366_792, id="shufflenet_v2_x0_5"),
        pytest.param(models.vit, {"patch": 32}, 88_224_232, id="vit_b_32"),
        pytest.param(models.vit, {"width": 1024, "depth": 24, "heads": 16}, 304_326_632, id="vit_l_16"),
        pytest.param(models.swin_t, {"blocks": (2, 2, 18, 2)}, 49_606_258, id="swin_s"),
        pytest.param(models.convnext_t, {"blocks": (3, 3, 27, 3)}, 50_223_688, id="convnext_s"),
        pytest.param(models.lstm_language_model, {"tied": True}, 13_280_400, id="tied"),
    ],
)
def test_arguments_give_the_published_siblings(factory: Factory, arguments: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in factory(**arguments).parameters()) == published


@pytest.mark.parametrize("width", [0.1, 0.3, 0.75, 1.4])
@pytest.mark.parametrize(
    "factory",
    [
        models.resnet_18,
        models.resnet_50,
        models.vgg_16_bn,
        models.googlenet,
        models.mobilenet_v2,
        models.mobilenet_v3_small,
        models.mobilenet_v3_large,
        models.efficientnet_b0,
    ],
)
def test_every_width_fits_together(factory: Factory, width: float) -> None:
    with torch.device("meta"):
        assert factory(classes=7, width=width)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.resnext_50(groups=5), "resnext_50: .* first stage have 128 channels, .* 5 groups"),
        (lambda: models.shufflenet_v2(widths=(4, 8, 16)), r"widths \(4, 8, 16\) and blocks \(4, 8, 4\): expected"),
        (lambda: models.shufflenet_v2(widths=(4, 7, 16), blocks=(1,)), "an even one for each"),
        (lambda: models.vit(image=30), "image of 30 pixels does not fall into patches of 16"),
        (lambda: models.vit(width=10, heads=3), "width 10 is not a multiple of heads 3"),
        (lambda: models.swin_t(width=10), "width 10 is not a multiple of heads 3"),
        (lambda: models.swin_t(blocks=(2, 2)), r"blocks \(2, 2\) and heads \(3, 6, 12, 24\)"),
        (lambda: models.unet(width=4)(torch.zeros(1, 1, 40, 32)), "input is 40x32; its sides must be multiples of 16"),
    ],
)
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def attention_by_definition(x: Tensor, layer: Attention | WindowAttention, bias: Tensor) -> Tensor:
    """One head after the other, in ``(tokens, width)``; ``bias`` ``(heads, tokens, tokens)``."""
    query, key, value = (x @ w.T + b for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True))
    heads = []
    for i in range(layer.num_heads):
        part = slice(i * layer.head_dim, (i + 1) * layer.head_dim)
        scores = query[:, part] @ key[:, part].T / layer.head_dim**0.5 + bias[i]
        heads.append(scores.softmax(-1) @ value[:, part])
    return layer.out(torch.cat(heads, -1))


def test_attention_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    layer, x = Attention(12, heads=3), torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x), torch.stack([attention_by_definition(each, layer, torch.zeros(3, 5, 5)) for each in x]))


def test_window_attention_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    window, layer, x = 3, WindowAttention(12, heads=2, window=3), torch.randn(1, 1, 9, 12)
    nn.init.normal_(layer.bias)
    bias = torch.zeros(2, 9, 9)
    for i in range(9):
        for j in range(9):
            down, right = i // window - j // window, i % window - j % window
            bias[:, i, j] = layer.bias[(down + window - 1) * (2 * window - 1) + right + window - 1]
    together = torch.zeros(1, 9, 9, dtype=torch.bool)
    torch.testing.assert_close(layer(x, together)[0, 0], attention_by_definition(x[0, 0], layer, bias))


@pytest.mark.parametrize(("h", "w"), [(8, 8), (8, 12), (12, 4), (4, 8), (7, 10)])
@pytest.mark.parametrize("shift", [0, 2])
def test_swin_pixels_see_their_window_and_nothing_around_the_edge(h: int, w: int, shift: int) -> None:
    torch.manual_seed(0)
    window = 4
    block = SwinBlock(6, heads=2, window=window, shift=shift, drop=0.0)
    x = torch.randn(1, h, w, 6, requires_grad=True)
    output = block(x)

    def cell(position: int, side: int) -> int:
        moved = shift if side > window else 0
        return (position - moved) // window  # -1 before the first whole window

    for row in range(h):
        for column in range(w):
            (gradient,) = torch.autograd.grad(output[0, row, column].square().sum(), x, retain_graph=True)
            seen = {(int(i), int(j)) for i, j in gradient[0].abs().sum(-1).nonzero()}
            same = {(i, j) for i in range(h) for j in range(w) if cell(i, h) == cell(row, h) and cell(j, w) == cell(column, w)}
            assert seen == same


def test_stochastic_depth_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = StochasticDepth(0.2)(torch.ones(20_000, 3, 1))
    assert torch.equal(y, y[:, :1].expand(-1, 3, -1))  # an example is dropped as a whole
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert (y == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_stochastic_depth_grows_with_depth() -> None:
    for model, most in ((models.swin_t(width=8, heads=(1, 2, 4, 8)), 0.2), (models.convnext_t(width=4), 0.1)):
        drops = [module.probability for module in model.modules() if isinstance(module, StochasticDepth)]
        assert drops[0] == 0 and drops == sorted(drops) and drops[-1] == pytest.approx(most)


def test_language_model_does_not_see_the_future() -> None:
    torch.manual_seed(0)
    model, words = models.lstm_language_model(classes=20, width=8).eval(), torch.arange(10).reshape(1, 10)
    other = words.clone()
    other[0, 6] = 19
    before, after = model(words), model(other)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.isclose(before[:, 6:], after[:, 6:]).all(-1).any()


def test_tied_language_model_has_one_matrix() -> None:
    model = models.lstm_language_model(classes=20, width=8, tied=True)
    assert model.get_parameter("output.weight") is model.get_parameter("embedding.weight")
    assert "output.weight" not in dict(model.named_parameters())


def test_unet_puts_the_skipped_half_before_the_upsampled_one() -> None:
    torch.manual_seed(0)
    model, inputs, seen = models.unet(width=4, depth=1), torch.randn(1, 1, 8, 8), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, args, output, name=name: seen.update({name: (args[0], output)}))
    model(inputs)
    assert torch.equal(seen["merge.0"][0], torch.cat([seen["down.0"][1], seen["up.0"][1]], 1))
