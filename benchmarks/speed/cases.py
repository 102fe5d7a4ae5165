"""The layers and networks that runtime.py measures, pruned; the same in every process, because everything is drawn from seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from secateurs import models
from secateurs.run.forecast.bench import removed_at_random
from secateurs.tasks.images import data_file

Chosen = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Variant:
    """How a case is pruned: a fraction of its weights one by one, or of its blocks of ``rows`` outputs by one input."""

    sparsity: float
    rows: int = 1

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g} %" + (f" {self.rows}x1" if self.rows > 1 else "")


@dataclass(frozen=True)
class Case:
    """A model and an example input, and how it is pruned.

    The first variant is the main one: dense runtimes run its weights, and other sparse ones too. ``prunes`` tells which layers are
    pruned; without it, the weights come pruned from ``make``. ``peers`` tells whether those take part that are no plain float32
    runtimes of this process: int8, deepsparse, and ours with fewer instructions.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    variants: tuple[Variant, ...]
    prunes: Chosen | None = lambda name, module: True
    cold: bool = False
    peers: bool = True

    @property
    def main(self) -> Variant:
        return self.variants[0]

    def inputs(self) -> Any:
        """The example, the same at each call."""
        torch.manual_seed(1)
        return self.example()

    def dense(self) -> nn.Module:
        """The model before it is pruned."""
        torch.manual_seed(0)
        return _calibrated(self.make(), self.inputs())

    def pruned(self, variant: Variant) -> nn.Module:
        """The pruned model. What stays of a layer grows so that the layer's outputs keep their variance."""
        torch.manual_seed(0)
        model = self.make()
        if self.prunes is not None:
            pattern = sc.Block(variant.rows, 1) if variant.rows > 1 else sc.Element()
            model = removed_at_random(model, self.inputs(), variant.sparsity, pattern, only=self.prunes)
            with torch.no_grad():
                for parameter in model.parameters():
                    kept = float(parameter.count_nonzero()) / parameter.numel()
                    if parameter.ndim > 1 and kept:
                        parameter.div_(kept**0.5)
        return _calibrated(model, self.inputs())


def _calibrated(model: nn.Module, inputs: Any) -> nn.Module:
    """Batch normalisation with the statistics of one batch, so that folding it changes the weights as it does in real networks."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.requires_grad_(False).eval()
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
        with torch.no_grad():
            model(inputs)
        model.eval()
    return model


# ---------------------------------------------------------------- layers

UNSTRUCTURED = tuple(Variant(sparsity) for sparsity in (0.9, 0.5, 0.7, 0.8, 0.95, 0.98))
BLOCKS = tuple(Variant(sparsity, rows) for rows in (4, 16) for sparsity in (0.5, 0.9))


def _layer(layer: Callable[[], nn.Module]) -> nn.Module:
    model = nn.Sequential(layer())
    nn.init.kaiming_normal_(model.get_parameter("0.weight"), nonlinearity="relu")
    return model


def _convolution(inputs: int, outputs: int, kernel: int, size: int) -> Case:
    return Case(
        f"conv{kernel}x{kernel}-{inputs}-{outputs}-{size}",
        f"{kernel}×{kernel}, {inputs}→{outputs} @{size}",
        partial(_layer, partial(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2)),
        partial(torch.randn, 1, inputs, size, size),
        (*UNSTRUCTURED, *BLOCKS),
    )


def _linear(inputs: int, outputs: int, batch: int, cold: bool = False) -> Case:
    return Case(
        f"linear-{inputs}-{outputs}-{batch}" + "-cold" * cold,
        f"linear, {inputs}→{outputs}, batch {batch}" + ", cold" * cold,
        partial(_layer, partial(nn.Linear, inputs, outputs)),
        partial(torch.randn, batch, inputs),
        (*UNSTRUCTURED, *BLOCKS),
        cold=cold,
    )


CONVOLUTIONS = (
    _convolution(256, 512, 3, 28),
    _convolution(64, 64, 3, 56),
    _convolution(128, 128, 3, 28),
    _convolution(256, 64, 1, 56),
    _convolution(64, 256, 1, 56),
    _convolution(512, 2048, 1, 7),
)

LINEARS = (
    _linear(4096, 4096, 1, cold=True),
    _linear(4096, 4096, 1),
    _linear(4096, 4096, 8),
    _linear(4096, 4096, 128),
    _linear(768, 3072, 1, cold=True),
    _linear(768, 3072, 1),
    _linear(768, 3072, 128),
)


# ---------------------------------------------------------------- networks

MAIN = (Variant(0.9),)
IMAGE = partial(torch.randn, 1, 3, 224, 224)


def bert() -> nn.Module:
    """An encoder of the size of BERT base."""
    from transformers import BertConfig, BertModel

    make: Any = BertModel  # annotated in some versions only
    return make(BertConfig())


def tokens() -> dict[str, Tensor]:
    """A sequence of 128 tokens."""
    return {"input_ids": torch.randint(1000, 20_000, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.long)}


def squeezenet() -> nn.Module:
    """SqueezeNet as the authors of Deep Compression pruned it."""
    model = models.squeezenet_1_0()
    model.load_state_dict(load_file(data_file("squeezenet_v1_0_pruned.safetensors")))
    return model


def _no_stem(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels > 3


NETWORKS = (
    Case("resnet_50", "ResNet-50, all convolutions but the stem", models.resnet_50, IMAGE, MAIN, _no_stem),
    Case(
        "bert",
        "BERT base, 128 tokens, all linear layers",
        bert,
        tokens,
        MAIN,
        lambda name, module: isinstance(module, nn.Linear),
    ),
    Case(
        "mobilenet_v2",
        "MobileNetV2, 1×1 convolutions",
        models.mobilenet_v2,
        IMAGE,
        (Variant(0.85),),
        lambda name, module: isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1),
    ),
    Case(
        "squeezenet",
        "SqueezeNet 1.0, as its authors pruned it",
        squeezenet,
        lambda: 60 * torch.randn(1, 3, 227, 227),
        (Variant(0.67),),
        None,
    ),
    Case(
        "vgg_16",
        "VGG-16, all layers but the first",
        models.vgg_16,
        IMAGE,
        MAIN,
        lambda name, module: not isinstance(module, nn.Conv2d) or module.in_channels > 3,
    ),
    Case(
        "lstm",
        "LSTM, 1024 units, 32 steps",
        partial(nn.LSTM, 1024, 1024, batch_first=True),
        partial(torch.randn, 1, 32, 1024),
        MAIN,
    ),
)


# ---------------------------------------------------------------- small networks

TOUGH = tuple(Variant(sparsity) for sparsity in (0.9, 0.0, 0.5, 0.8, 0.95))


def _small(name: str, title: str, make: Callable[[], nn.Module], *shape: int) -> Case:
    return Case(name, title, make, partial(torch.randn, 1, *shape), TOUGH, peers=False)


SMALL = (
    _small("digits_cnn", "digits_cnn", models.digits_cnn, 1, 8, 8),
    _small("lenet_5", "LeNet-5", models.lenet_5, 1, 28, 28),
    _small("lenet_300_100", "LeNet-300-100", models.lenet_300_100, 1, 28, 28),
    _small("mlp", "MLP, 784-128-10", lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)), 784),
    _small("ds_cnn", "DS-CNN", models.ds_cnn, 1, 49, 10),
)
"""Networks of microseconds, where what lies around the arithmetic counts."""

CASES = {case.name: case for case in (*CONVOLUTIONS, *LINEARS, *NETWORKS, *SMALL)}

"""Name of its files → case."""
