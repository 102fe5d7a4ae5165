"""Norms of what flows into a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.patterns import layout_of
from secateurs.types import Member, SecateursError, Seen, Statistic


@dataclass
class _InputNorm:
    """Running Σ|x|ᵖ of each input feature."""

    member: Member
    p: float
    total: Tensor | None = None

    sums: ClassVar = ("total",)

    def add(self, seen: Seen) -> None:
        # An attention's one weight reads three inputs: query, key and value, its three groups.
        inputs, needed = seen.inputs, 3 if isinstance(self.member.module, nn.MultiheadAttention) else 1
        sources = inputs[:needed]
        if len(sources) < needed:
            raise SecateursError(
                f"{self.member.parameter}: its layer is called with keyword arguments, so its inputs cannot be told apart; "
                "pass them by position, or skip it with skip=[...]"
            )
        powers = torch.cat([self._powers(source.detach().float()) for source in sources])
        self.total = powers if self.total is None else self.total + powers

    def _powers(self, values: Tensor) -> Tensor:
        """Σ|x|ᵖ of each input feature over all else."""
        features = -1
        if isinstance(self.member.module, _ConvNd):
            features = 1 if values.ndim == len(self.member.weight.shape) else 0  # 0: without a batch dimension
        by_feature = values.movedim(features, -1)
        return by_feature.reshape(-1, by_feature.shape[-1]).abs().pow(self.p).sum(0)

    def result(self) -> Tensor:
        """Shape ``(groups or 1, 1, inputs, 1, …)``, so that it broadcasts against the canonical view."""
        if self.total is None:
            raise SecateursError(
                f"{self.member.parameter}: no calibration batch passed this layer, so its inputs are unknown; "
                "skip it with skip=[...]"
            )
        shape = self.member.shape
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
    return Statistic(f"input_norm(p={p})", _Start(p))


@dataclass(frozen=True)
class _Start:
    """What begins to watch the inputs of a weight, where they can be seen."""

    p: float

    def __call__(self, member: Member) -> _InputNorm:
        require_shows_inputs(member)
        return _InputNorm(member, self.p)


def require_shows_inputs(member: Member) -> None:
    """Raise `SecateursError` where what a weight multiplies cannot be seen from outside its module."""
    module, attribute = member.module, member.attribute
    opaque = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "hh" in attribute or attribute.endswith(("_hr_l0",))
    deep = isinstance(module, nn.RNNBase) and not attribute.startswith("weight_ih_l0")
    opaque = opaque or (layout_of(module, attribute) is None and not member.stacked)  # a bare parameter of a module
    if opaque or deep or (isinstance(module, nn.MultiheadAttention) and attribute != "in_proj_weight"):
        raise SecateursError(f"{member.parameter}: the inputs of this weight cannot be observed; skip it with skip=[...]")
