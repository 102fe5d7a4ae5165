"""One model with an example of its input, and the helpers that the lists are written with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateurs.forward import call
from secateurs.nested import changed, tensors_in


@dataclass(frozen=True)
class Subject:
    """A small model in evaluation mode, float32, the same at each `make`, and what to call it with.

    `example` gives a tensor, a tuple of positional arguments or a dict of keyword arguments.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    family: str


def subject(name: str, family: str, build: Callable[[], nn.Module], example: Callable[[], Any]) -> Subject:
    """A subject whose model `build` constructs, with a fixed seed; it is then randomised and put into evaluation mode."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return calibrated(randomised(build()).eval(), example())

    return Subject(name, make, example, family)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Gives every parameter and every running statistic a value that matters, in place, and returns the model.

    Zero biases, unit scales and a layer scale of 1e-6 would make wrong models equal to right ones. Matrices and kernels are
    drawn so that a signal keeps its size; vectors that were positive are drawn from 0.5 to 1.5, others around 0. Buffers other
    than running statistics and biases mean something (positions, frequencies, masks), and are left alone.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_floating_point():
                continue
            if parameter.numel() > max(parameter.shape, default=1):
                fan_in = parameter[0].numel() / 2 if isinstance(module, _ConvNd) else parameter.shape[-1]
                parameter.normal_(0, fan_in**-0.5)
            elif parameter.min() > 0:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.3)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.normal_(0, 0.3)
            if name == "running_var":
                buffer.uniform_(0.5, 1.5)
            if name.endswith("bias") and not buffer.any():
                buffer.normal_(0, 0.3)
    return model


@torch.no_grad()
def calibrated(model: nn.Module, example: Any) -> nn.Module:
    """Gives each batch normalisation running statistics near those of the example, in place, and returns the model.

    Otherwise signals would grow or fade in deep networks, until most layers have no influence on the output.
    """

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and variance is not None:
            rows = inputs[0].transpose(0, 1).flatten(1)
            seen = rows.var(1, correction=0)
            seen = seen.clamp(min=0.1 * seen.mean().item() + 1e-6)
            mean.copy_(rows.mean(1) + 0.3 * seen.sqrt() * torch.randn_like(seen))
            variance.copy_(seen * torch.empty_like(seen).uniform_(0.5, 1.5))

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    hooks = [module.register_forward_pre_hook(observe) for module in norms]
    if norms:
        call(model, example)
    for hook in hooks:
        hook.remove()
    return model.train().eval()  # some models cache things while they evaluate: LeViT its biases


def channels_last(subject: Subject) -> Subject | None:
    """A convolutional network with images that lie pixel by pixel in memory; nothing where there are no images, or no convolution."""

    def arranged() -> Any:
        return changed(
            subject.example(), lambda each: each.contiguous(memory_format=torch.channels_last) if _is_images(each) else each
        )

    convolves = any(isinstance(module, _ConvNd) for module in subject.make().modules())
    images = any(_is_images(tensor) for tensor in tensors_in(subject.example()))
    return replace(subject, example=arranged) if convolves and images else None


def _is_images(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def floats(*shape: int, seed: int = 1) -> Callable[[], Tensor]:
    """An example: normal numbers."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, vocabulary: int = 97, seed: int = 2) -> Callable[[], Tensor]:
    """An example: token numbers, none of the first four, which stand for padding and the like."""
    return lambda: torch.randint(4, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def positional(*parts: Callable[[], Any]) -> Callable[[], tuple[Any, ...]]:
    """An example: positional arguments."""
    return lambda: tuple(part() for part in parts)


def keywords(**parts: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """An example: keyword arguments."""
    return lambda: {name: part() for name, part in parts.items()}
