"""Norms of what flows into a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.types import Member, SecateursError, Statistic


@dataclass
class _InputNorm:
    """Running Σ|x|ᵖ of each input feature."""

    member: Member
    p: float
    total: Tensor | None = None

    def add(self, inputs: tuple[Any, ...], output: Any) -> None:
        values = inputs[0].detach().float()
        features = 1 if isinstance(self.member.module, _ConvNd) and values.ndim == len(self.member.weight.shape) else -1
        if isinstance(self.member.module, _ConvNd) and features == -1:
            features = 0  # a convolution without a batch dimension
        powers = values.abs().pow(self.p).movedim(features, -1).flatten(0, -2).sum(0)
        self.total = powers if self.total is None else self.total + powers

    def result(self) -> Tensor:
        """Shape ``(groups or 1, 1, inputs, 1, …)``, so that it broadcasts against the canonical view."""
        if self.total is None:
            raise SecateursError(f"{self.member.parameter}: no calibration batch passed this layer, so its inputs are unknown")
        shape = self.member.canonical(self.member.weight).shape
        norms = self.total.pow(1 / self.p)
        groups = shape[0] if norms.numel() == shape[0] * shape[2] else 1
        return norms.view(groups, 1, shape[2], *(1,) * (len(shape) - 3))


def input_norm(p: float = 2) -> Statistic:
    """The p-norm of each input feature (each input channel of a convolution) over the calibration batches.

    Multiplied with a magnitude it is Wanda's criterion, |w|·‖x‖₂ (2306.11695). Layers whose inputs cannot be seen from outside
    (embeddings, the hidden-to-hidden weights of recurrent layers) raise `SecateursError`.

    >>> input_norm()
    Statistic(name='input_norm(p=2)')
    """

    def start(member: Member) -> _InputNorm:
        module, attribute = member.module, member.attribute
        opaque = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "hh" in attribute or attribute.endswith(("_hr_l0",))
        deep = isinstance(module, nn.RNNBase) and not attribute.startswith("weight_ih_l0")
        if opaque or deep or isinstance(module, nn.MultiheadAttention) and attribute != "in_proj_weight":
            raise SecateursError(f"{member.parameter}: the inputs of this weight cannot be observed; skip it with skip=[...]")
        return _InputNorm(member, p)

    return Statistic(f"input_norm(p={p})", start)
