"""Multiply-accumulates of one forward pass, operation by operation, and the parameters that they read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import run_example, torch_masks
from secateurs.watch import Operations, unfused


@dataclass(frozen=True)
class MacsTrace:
    """MACs of one forward pass of the example: by the parameter that they read, and between activations (attention, say)."""

    by_parameter: dict[str, float]
    between_activations: float

    @property
    def total(self) -> float:
        return sum(self.by_parameter.values()) + self.between_activations


Operation = tuple[tuple[Tensor, ...], float]
"""The operands that may be parameters, and the MACs that each of them takes part in."""


def _matmul(first: int) -> Callable[[Any, Any], list[Operation]]:
    """Rule of ``(…, m, k) @ (…, k, n)``, whose left operand is argument number `first`."""

    def rule(args: Any, out: Any) -> list[Operation]:
        left, right = args[first], args[first + 1]
        return [((left, right), float(left.numel() * (right.shape[-1] if right.ndim > 1 else 1)))]

    return rule


def _convolution(args: Any, out: Any) -> list[Operation]:
    inputs, weight, transposed = args[0], args[1], args[6]
    positions = prod((inputs if transposed else out).shape[2:]) * inputs.shape[0]
    return [((weight,), float(weight.numel() * positions))]


def _attention(args: Any, out: Any) -> list[Operation]:
    query, key, value = args[:3]
    rows = prod(query.shape[:-1])
    return [((), float(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])))]


def _recurrent(args: Any, out: Any) -> list[Operation]:
    steps = prod(args[0].shape[:-1])
    return [((weight,), float(weight.numel() * steps)) for weight in args[1:3]]


def _trilinear(args: Any, out: Any) -> list[Operation]:
    weight = args[1]
    return [((weight,), float(weight.numel() * out.numel() // weight.shape[0]))]


def _weighted_rows(args: Any, out: Any) -> list[Operation]:
    """Sums of rows of a table; where each has a weight of its own, it is multiplied with it."""
    table, indices, weights = args[0], args[1], args[6] if len(args) > 6 else None
    return [] if weights is None else [((table,), float(indices.numel() * table.shape[1]))]


_ATEN = torch.ops.aten
_RULES: dict[Any, Callable[[Any, Any], list[Operation]]] = {
    _ATEN.mm: _matmul(0),
    _ATEN.bmm: _matmul(0),
    _ATEN.mv: _matmul(0),
    _ATEN.dot: _matmul(0),
    _ATEN.addmm: _matmul(1),
    _ATEN.addmv: _matmul(1),
    _ATEN.addbmm: _matmul(1),
    _ATEN.baddbmm: _matmul(1),
    _ATEN.convolution: _convolution,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention: _attention,
    _ATEN._scaled_dot_product_efficient_attention: _attention,
    _ATEN._scaled_dot_product_cudnn_attention: _attention,
    _ATEN._scaled_dot_product_fused_attention_overrideable: _attention,
    _ATEN.mkldnn_rnn_layer: _recurrent,
    _ATEN._trilinear: _trilinear,
    _ATEN._embedding_bag: _weighted_rows,
    _ATEN._embedding_bag_forward_only: _weighted_rows,
}
"""ATen operation → the MACs of one call; what is not here multiplies nothing with a weight."""


FIRST_OPERAND = {
    _ATEN.mm: 0,
    _ATEN.bmm: 0,
    _ATEN.mv: 0,
    _ATEN.addmm: 1,
    _ATEN.addmv: 1,
    _ATEN.addbmm: 1,
    _ATEN.baddbmm: 1,
    _ATEN.convolution: 0,
}
"""ATen operation that multiplies two tensors → the place of the first one; the other one comes next."""


class Owners:
    """Which parameter a tensor is, also where it was only converted, copied or masked (half precision under autocast, say)."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {tensor.untyped_storage()._cdata: name for name, tensor in model.named_parameters()}
        self._masks = {mask.untyped_storage()._cdata for mask in torch_masks(model).values()}
        self._alive: list[Tensor] = []  # keeps storages of converted weights, so that their identities are not reused

    def of(self, tensor: Tensor) -> str | None:
        """The name of the parameter, ``None`` where it is none."""
        return self._names.get(tensor.untyped_storage()._cdata)

    def follow(self, args: Any, out: Any) -> None:
        """An operation was run: what it made of a weight alone, number by number, is still that weight."""
        tensors = [tensor for tensor in args if isinstance(tensor, Tensor)]
        sources = [tensor for tensor in tensors if tensor.untyped_storage()._cdata not in self._masks]
        if len(sources) == 1 and isinstance(out, Tensor) and out.numel() == sources[0].numel():
            name = self.of(sources[0])
            if name and self.of(out) is None:
                self._names[out.untyped_storage()._cdata] = name
                self._alive.append(out)


class _Counter:
    def __init__(self, model: nn.Module) -> None:
        self.owners = Owners(model)
        self.macs: dict[str, float] = defaultdict(float)

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and count it."""
        out = func(*args, **kwargs)
        rule = _RULES.get(func.overloadpacket)
        for operands, macs in rule(args, out) if rule else ():
            names = [name for operand in operands if (name := self.owners.of(operand))]
            self.macs[names[0] if names else ""] += macs
        if rule is None:
            self.owners.follow(args, out)
        return out


def trace_macs(model: nn.Module, example: Any) -> MacsTrace:
    """MACs of one forward pass of the example as it is: give a batch of one to count one sample.

    A convolution's padding counts as if it were data, as is usual; biases, normalisations and look-ups do not count. Every layer
    type counts, functional calls too, because the pass is watched at the level of ATen operations.

    Raises `TaskError` where the model rejects the example.

    >>> trace_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)).total
    21600.0
    """
    counter = _Counter(model)
    with unfused(), Operations(counter.see):
        run_example(model, example)
    activations = counter.macs.pop("", 0.0)
    return MacsTrace(dict(counter.macs), activations)
