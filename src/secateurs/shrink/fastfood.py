"""Fastfood: a layer of some thousands of numbers in the place of a linear one of millions."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.forward import modules_in
from secateurs.shrink.factors import reason_against
from secateurs.shrink.surgery import no_module, replace_module_
from secateurs.shrink.undo import Undo
from secateurs.types import FileError, SecateursError


def walsh_hadamard(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform along the last dimension, not scaled: n log n additions in the place of a product with n² signs.

    Raises `SecateursError` where that dimension is no power of two.

    >>> walsh_hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([10., -2., -4.,  0.])
    """
    size = x.shape[-1]
    if size < 1 or size & (size - 1):
        raise SecateursError(f"walsh_hadamard: the last dimension is {size}, but must be a power of two: pad it with zeros")
    half, now = 1, x
    while half < size:
        pairs = now.reshape(*x.shape[:-1], size // (2 * half), 2, half)
        one, other = pairs.unbind(-2)
        now = torch.stack((one + other, one - other), dim=-2)
        half *= 2
    return now.reshape(x.shape)


class Fastfood(nn.Module):
    """A linear layer whose weight is S·H·G·Π·H·B, as many such blocks as its outputs take (adaptive Fastfood, 1412.7149).

    S, G and B are diagonal and learned, Π is a permutation that `seed` draws, H is the Walsh-Hadamard matrix, orthonormal. Inputs are
    padded with zeros to a power of two d: 3·d numbers a block of d outputs, and the bias. Fresh blocks are as Fastfood's for a Gaussian
    kernel: B of signs, G of normal numbers, and S so that rows are as long as those of a fresh `nn.Linear`.

    >>> layer = Fastfood(100, 300)
    >>> layer(torch.zeros(2, 100)).shape, sum(p.numel() for p in layer.parameters()), 3 * 3 * 128 + 300
    (torch.Size([2, 300]), 1452, 1452)
    """

    order: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, seed: int = 0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.seed = in_features, out_features, seed
        self.size, self.blocks = sizes_of(in_features, out_features)
        shape, where = (self.blocks, self.size), {"device": device, "dtype": dtype}
        self.signs, self.gauss, self.scale = (nn.Parameter(torch.empty(shape, **where)) for _ in "BGS")
        self.bias = nn.Parameter(torch.empty(out_features, **where)) if bias else None
        drawn = torch.tensor([_order(f"{seed} {block}", self.size) for block in range(self.blocks)], device=device)
        self.register_buffer("order", drawn, persistent=False)  # the seed tells it, so no file can hold another
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the numbers anew."""
        nn.init.normal_(self.gauss)
        self.signs.copy_(torch.randint_like(self.signs, 2) * 2 - 1)
        length = torch.randn(self.blocks, self.size, min(self.size, 64)).square().mean(2).sqrt()  # about 1
        rows = self.gauss.norm(dim=1, keepdim=True) / self.size**0.5
        self.scale.copy_(length.to(self.scale) / rows * (self.size / (3 * self.in_features)) ** 0.5)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(self.in_features**-0.5), self.in_features**-0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(*, in_features)`` to ``(*, out_features)``."""
        padded = functional.pad(inputs, (0, self.size - self.in_features))[..., None, :]
        mixed = walsh_hadamard(padded * self.signs)
        shuffled = mixed.gather(-1, self.order.expand(mixed.shape)) * self.gauss
        out = (walsh_hadamard(shuffled) * (self.scale / self.size)).flatten(-2)[..., : self.out_features]
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        """As `nn.Linear` tells it."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, seed={self.seed}"


def sizes_of(in_features: int, out_features: int) -> tuple[int, int]:
    """The power of two to which inputs are padded, and how many blocks the outputs take.

    >>> sizes_of(800, 500), sizes_of(4, 9)
    ((1024, 1), (4, 3))
    """
    size = 1 << max(0, in_features - 1).bit_length()
    return size, -(-out_features // size)


def _order(key: str, size: int) -> list[int]:
    """A permutation that is the same on every machine and in every version."""
    return sorted(range(size), key=lambda index: blake2b(f"{key} {index}".encode(), digest_size=8).digest())


def reason_against_frying(module: nn.Module) -> str:
    """Why no Fastfood layer can take the place of a module; empty where one can.

    >>> reason_against_frying(nn.Linear(2, 2)), reason_against_frying(nn.Conv1d(2, 2, 1))
    ('', 'it is a Conv1d; only Linear itself becomes a Fastfood layer')
    """
    kind = type(module)
    return reason_against(module) if kind is nn.Linear else f"it is a {kind.__name__}; only Linear itself becomes a Fastfood layer"


def fry_(model: nn.Module, fried: Mapping[str, int], undo: Undo) -> None:
    """Put Fastfood layers of these seeds in the place of linear ones, with fresh numbers.

    Raises `FileError` where a layer is not there, or is no linear one.
    """
    modules = modules_in(model)
    for name, seed in fried.items():
        if not name or name not in modules:
            raise no_module(model, name)
        module: Any = modules[name]
        if reason := reason_against_frying(module):
            raise FileError(f"{name} was made a Fastfood layer in the model of the file, but here it cannot be: {reason}")
        where = {"device": module.weight.device, "dtype": module.weight.dtype}
        with torch.random.fork_rng(devices=[]):
            new = Fastfood(module.in_features, module.out_features, module.bias is not None, seed, **where)
        replace_module_(model, name, new.train(module.training), undo)
