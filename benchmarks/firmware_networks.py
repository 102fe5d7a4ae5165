"""The networks of MLPerf Tiny with its weights, and data for them: keywords, images, or noise where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad, relu

import secateurs as sc
from secateurs.integers.build import built
from secateurs.integers.layers import Network
from secateurs.integers.quantise import quantised, to_integers
from secateurs.integers.ranges import calibrated
from secateurs.models import ds_cnn
from secateurs.tasks import accuracy
from secateurs.tasks.cifar10 import decode
from secateurs.tasks.images import data_file

CALIBRATION, CHOICE = 200, 300
"""The first words calibrate and repair, the next ones choose what is small enough; accuracy is reported on those that are left too."""
_EPSILON = 1e-3


def _same(x: Tensor, stride: int) -> Tensor:
    """TensorFlow's padding of a 3 × 3 window on an even image."""
    return pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.stride = stride
        if stride == 2:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(_same(x, self.stride))))))
        return relu(y + (self.shortcut(x) if self.stride == 2 else x))


class ResNet8(nn.Module):
    """Images of 32 × 32, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16, eps=_EPSILON)
        self.stack1, self.stack2, self.stack3 = Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stack3(self.stack2(self.stack1(relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class Separable(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(inputs, inputs, 3, stride, groups=inputs)
        self.dw_bn = nn.BatchNorm2d(inputs, eps=_EPSILON)
        self.pw = nn.Conv2d(inputs, outputs, 1)
        self.pw_bn = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.pw_bn(self.pw(relu(self.dw_bn(self.dw(_same(x, self.stride)))))))


class MobileNet(nn.Module):
    """A quarter of MobileNet v1's width, images of 96 × 96: is there a person?"""

    WIDTHS = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2)
        self.bn1 = nn.BatchNorm2d(8, eps=_EPSILON)
        for number, ((inputs, outputs), stride) in enumerate(zip(pairwise(self.WIDTHS), self.STRIDES, strict=True), 1):
            self.add_module(f"block{number}", Separable(inputs, outputs, stride))
        self.fc = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(_same(x, 2))))
        for number in range(1, 14):
            x = self.get_submodule(f"block{number}")(x)
        return self.fc(x.mean((2, 3)))


class Autoencoder(nn.Module):
    """Ten linear layers on 640 numbers of a sound."""

    WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(pairwise(self.WIDTHS), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
            if number < 10:
                self.add_module(f"bn{number}", nn.BatchNorm1d(outputs, eps=_EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 10):
            x = relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"fc{number}")(x)))
        return self.get_submodule("fc10")(x)


@dataclass(frozen=True)
class Published:
    """A network with its weights; ``task`` has what calibrates, and what is reported where there is data for that."""

    title: str
    model: nn.Module
    task: sc.Task
    data: str

    @property
    def calibration(self) -> list[Tensor]:
        """Inputs alone, in batches."""
        return [inputs for inputs, _ in self.task.calibration]  # type: ignore[union-attr]


def loaded(model: nn.Module, file: str) -> nn.Module:
    """A network with the weights of a file of the data folder."""
    found = model.load_state_dict(load_file(data_file(file)), strict=False)
    wrong = [name for name in (*found.missing_keys, *found.unexpected_keys) if not name.endswith("num_batches_tracked")]
    if wrong:
        raise sc.FileError(f"{file} does not fit: {wrong}")
    return model.eval()


def batches(inputs: Tensor, labels: Tensor, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """Batches in order."""
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def keywords() -> Published:
    """DS-CNN on MLPerf Tiny's 1,000 words."""
    with np.load(data_file("kws_mfcc.npz")) as archive:
        inputs, labels = (torch.from_numpy(archive[name]) for name in ("inputs", "labels"))
    x, y = (inputs[:, None].float() - 83) * 0.5847029, labels.long()
    ends = (0, CALIBRATION, CALIBRATION + CHOICE, len(x))
    few, some, rest = (batches(x[start:end], y[start:end]) for start, end in pairwise(ends))
    task = sc.Task(x[:1], calibration=few, validation=some, test=rest, loss=nn.functional.cross_entropy, metric=accuracy)
    model = loaded(ds_cnn(), "ds_cnn_kws.safetensors")
    return Published("DS-CNN", model, task, f"{CALIBRATION} words calibrate, accuracy of the others")


def images() -> Published:
    """ResNet-8 on CIFAR-10: 200 images of the training set calibrate, the first 2,000 of the test set are reported."""
    parts = []
    for part, count in (("train", CALIBRATION), ("test", 2_000)):
        with np.load(data_file("cifar10_jpeg.npz")) as archive:
            offsets = archive[f"{part}_offsets"][: count + 1]
            pixels, labels = decode(archive[f"{part}_jpeg"], offsets), archive[f"{part}_labels"][:count]
        parts.append(batches(pixels.float(), torch.from_numpy(labels).long()))
    task = sc.Task(parts[0][0][0][:1], calibration=parts[0], test=parts[1], metric=accuracy)
    model = loaded(ResNet8(), "resnet8_cifar10.safetensors")
    return Published("ResNet-8", model, task, "200 training images calibrate, accuracy of 2,000 test images (JPEG, not tuned to)")


def noise(
    title: str, make: Callable[[], nn.Module], file: str, shape: tuple[int, ...], draw: Callable[[Tensor], Tensor]
) -> Published:
    """A network for whose task there is no data here: smooth noise calibrates."""
    x = draw(torch.rand(64, *shape, generator=torch.Generator().manual_seed(0)))
    task = sc.Task(x[:1], calibration=batches(x, torch.zeros(len(x), dtype=torch.long), 16))
    return Published(title, loaded(make(), file), task, "no data here: noise calibrates")


def _smooth(x: Tensor) -> Tensor:
    """Noise of several scales, in [0, 1], as images have it."""
    sizes = (3, 12, 96)
    parts = [nn.functional.interpolate(x[..., :size, :size], size=x.shape[2:], mode="bilinear") for size in sizes]
    return sum(part * 0.5**place for place, part in enumerate(parts)) / sum(0.5**place for place in range(len(sizes)))  # type: ignore


NETWORKS: dict[str, Callable[[], Published]] = {
    "ds_cnn": keywords,
    "resnet_8": images,
    "mobilenet": partial(noise, "MobileNet v1 0.25", MobileNet, "vww_mobilenet.safetensors", (3, 96, 96), _smooth),
    "autoencoder": partial(
        noise, "autoencoder", Autoencoder, "autoencoder_toycar.safetensors", (640,), lambda x: 20 * x.cumsum(1).sin() - 30
    ),
}


def integers_of(about: Published, kind: Any = "int8") -> tuple[Network, list[np.ndarray[Any, Any]]]:
    """A network in integers, calibrated by least and largest number, and the calibration inputs as it takes them."""
    network = built(about.model, about.task.example)
    found = quantised(network, calibrated(network, about.calibration), kind)
    face = found.inputs[0]
    return found, [to_integers(face.packed(each.numpy()), face.array) for each in about.calibration]
