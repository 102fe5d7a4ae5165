"""The classic networks have the parameters of their papers, give the right shapes, and fit weights that others trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateurs import models
from secateurs.models.resnet import PaddedShortcut
from secateurs.tasks import Batches, accuracy, digits
from secateurs.tasks.cifar10 import NORMALISE, decode

Factory = Callable[..., nn.Module]

needs_data = pytest.mark.skipif(
    "SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the folder with the published weights"
)


def data(name: str) -> Path:
    return Path(os.environ["SECATEURS_DATA"]) / name


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel * kernel + outputs * bias


def norm(channels: int) -> int:
    return 2 * channels


def cifar_resnet(blocks: int) -> int:
    total = conv(3, 16, 3, bias=False) + norm(16) + linear(64, 10)
    before = 16
    for width in (16, 32, 64):
        first = conv(before, width, 3, bias=False) + conv(width, width, 3, bias=False)
        total += first + (blocks - 1) * 2 * conv(width, width, 3, bias=False) + blocks * 2 * norm(width)
        before = width
    return total


LENET_300_100 = 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
LENET_5 = (1 * 25 * 20 + 20) + (20 * 25 * 50 + 50) + (50 * 4 * 4 * 500 + 500) + (500 * 10 + 10)
ALEXNET = (
    conv(3, 64, 11) + conv(64, 192, 5) + conv(192, 384, 3) + conv(384, 256, 3) + conv(256, 256, 3)
    + linear(9216, 4096) + linear(4096, 4096) + linear(4096, 1000)
)  # fmt: skip
VGG_16 = (
    conv(3, 64, 3) + conv(64, 64, 3) + conv(64, 128, 3) + conv(128, 128, 3)
    + conv(128, 256, 3) + 2 * conv(256, 256, 3) + conv(256, 512, 3) + 5 * conv(512, 512, 3)
    + linear(25088, 4096) + linear(4096, 4096) + linear(4096, 1000)
)  # fmt: skip
DS_CNN = 64 * 10 * 4 + 64 + 4 * (64 * 9 + 64 + conv(64, 64, 1)) + 9 * norm(64) + linear(64, 12)
DIGITS_CNN = conv(1, 16, 3) + conv(16, 32, 3) + linear(512, 64) + linear(64, 10)

NETWORKS = [
    pytest.param(models.lenet_300_100, LENET_300_100, 266_610, (1, 28, 28), 10, id="lenet_300_100"),
    pytest.param(models.lenet_5, LENET_5, 431_080, (1, 28, 28), 10, id="lenet_5"),
    pytest.param(models.alexnet, ALEXNET, 61_100_840, (3, 224, 224), 1000, id="alexnet"),
    pytest.param(models.vgg_16, VGG_16, 138_357_544, (3, 224, 224), 1000, id="vgg_16"),
    pytest.param(models.resnet_50, None, 25_557_032, (3, 224, 224), 1000, id="resnet_50"),
    pytest.param(models.resnet_20, cifar_resnet(3), 269_722, (3, 32, 32), 10, id="resnet_20"),
    pytest.param(models.resnet_56, cifar_resnet(9), 853_018, (3, 32, 32), 10, id="resnet_56"),
    pytest.param(models.squeezenet_1_0, None, 1_248_424, (3, 227, 227), 1000, id="squeezenet_1_0"),
    pytest.param(models.digits_cnn, DIGITS_CNN, 38_282, (1, 8, 8), 10, id="digits_cnn"),
    pytest.param(models.ds_cnn, DS_CNN, 23_756, (1, 49, 10), 12, id="ds_cnn"),
]


@pytest.mark.parametrize(("factory", "by_hand", "published", "shape", "classes"), NETWORKS)
def test_parameters_and_output_shape(
    factory: Factory, by_hand: int | None, published: int, shape: tuple[int, ...], classes: int
) -> None:
    with torch.device("meta"):
        model = factory()
        output = model(torch.zeros(2, *shape))
    assert sum(p.numel() for p in model.parameters()) == published
    assert by_hand in (None, published)
    assert output.shape == (2, classes)


@pytest.mark.parametrize(("factory", "by_hand", "published", "shape", "classes"), NETWORKS)
def test_number_of_classes(factory: Factory, by_hand: int | None, published: int, shape: tuple[int, ...], classes: int) -> None:
    with torch.device("meta"):
        assert factory(classes=7)(torch.zeros(1, *shape)).shape == (1, 7)


def test_every_network_is_tested() -> None:
    assert {param.id for param in NETWORKS} <= set(models.__all__)


@pytest.mark.parametrize(
    ("factory", "side", "macs"),
    [
        pytest.param(models.alexnet, 224, 714_188_480, id="alexnet"),
        pytest.param(models.vgg_16, 224, 15_470_264_320, id="vgg_16"),
        pytest.param(models.resnet_50, 224, 4_089_184_256, id="resnet_50"),
    ],
)
def test_multiply_accumulates(factory: Factory, side: int, macs: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        factory()(torch.zeros(1, 3, side, side))
    assert counter.get_total_flops() == 2 * macs


def test_squeezenet_sizes_are_those_of_the_paper() -> None:
    sides = {}
    with torch.device("meta"):
        model = models.squeezenet_1_0()
        for name, layer in model.named_children():
            layer.register_forward_hook(lambda _layer, _inputs, output, name=name: sides.update({name: output.shape[-1]}))
        model(torch.zeros(1, 3, 227, 227))
    assert [sides[name] for name in ("conv1", "pool1", "pool4", "pool8", "conv10")] == [111, 55, 27, 13, 15]


def test_layer_names_are_those_of_the_papers() -> None:
    def weighted(model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]

    with torch.device("meta"):
        assert weighted(models.lenet_300_100()) == ["fc1", "fc2", "fc3"]
        assert weighted(models.lenet_5()) == ["conv1", "conv2", "fc1", "fc2"]
        assert weighted(models.alexnet()) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
        assert weighted(models.vgg_16())[-4:] == ["conv5_3", "fc6", "fc7", "fc8"]


def test_relus_do_not_write_into_their_inputs() -> None:
    """In-place ones would falsify what hooks observe."""
    with torch.device("meta"):
        networks = [getattr(models, name)() for name in models.__all__]
    relus = [module for model in networks for module in model.modules() if isinstance(module, nn.ReLU)]
    assert relus and not any(relu.inplace for relu in relus)


@pytest.mark.parametrize("factory", [models.resnet_20, models.squeezenet_1_0])
def test_he_initialisation(factory: Factory) -> None:
    torch.manual_seed(0)
    weight = max((p for name, p in factory().named_parameters() if "conv10" not in name), key=Tensor.numel)
    fan_in = weight[0].numel()
    assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_padded_shortcut_is_parameter_free_and_centred() -> None:
    x = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    y = PaddedShortcut(stride=2, added=2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert not y[:, [0, 3]].any()
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])


def test_digits_cnn_learns() -> None:
    torch.manual_seed(0)
    task, model, epochs = digits(), models.digits_cnn(), 40
    train, test = task.train, task.test
    assert isinstance(train, Batches) and isinstance(test, Batches) and task.loss is not None
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    for _ in range(epochs):
        for inputs, target in train:
            optimizer.zero_grad()
            task.loss(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        assert accuracy(model(test.inputs), test.targets) >= 0.975


@needs_data
@pytest.mark.parametrize(
    ("factory", "file"),
    [
        pytest.param(models.resnet_20, "resnet20_cifar10.safetensors", id="resnet_20"),
        pytest.param(models.resnet_56, "resnet56_cifar10.safetensors", id="resnet_56"),
        pytest.param(models.squeezenet_1_0, "squeezenet_v1_0_pruned.safetensors", id="squeezenet_1_0"),
        pytest.param(models.ds_cnn, "ds_cnn_kws.safetensors", id="ds_cnn"),
    ],
)
def test_published_weights_fit(factory: Factory, file: str) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    weights = load_file(data(file))
    model = factory()
    model.load_state_dict(weights, strict=True)
    own = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(weights)


@needs_data
def test_published_resnet_20_recognises_jpeg_images() -> None:
    """81.0 % of all test images; a wrong placement of the shortcut's zeros gives 14 or 18 %."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = models.resnet_20().eval()
    model.load_state_dict(load_file(data("resnet20_cifar10.safetensors")))
    with np.load(data("cifar10_jpeg.npz")) as archive:
        jpeg, offsets, labels = (archive[f"test_{name}"] for name in ("jpeg", "offsets", "labels"))
    inputs = NORMALISE(decode(jpeg, offsets[:1001]))
    with torch.no_grad():
        output = torch.cat([model(part) for part in inputs.chunk(4)])
    assert 0.78 < accuracy(output, torch.from_numpy(labels[:1000]).long()) < 0.84


@needs_data
def test_published_ds_cnn_recognises_words() -> None:
    """91.3 %; with symmetric padding of the first convolution, or another epsilon, it is less."""
    load_file = pytest.importorskip("safetensors.torch").load_file
    model = models.ds_cnn().eval()
    model.load_state_dict(load_file(data("ds_cnn_kws.safetensors")))
    with np.load(data("kws_mfcc.npz")) as archive:
        inputs, labels = (torch.from_numpy(archive[name]) for name in ("inputs", "labels"))
    with torch.no_grad():
        output = model((inputs[:, None].float() - 83) * 0.5847029)
    assert accuracy(output, labels.long()) == pytest.approx(0.913, abs=5e-4)
