"""Comparing what two models answer: one mechanism, to which each caller brings its tolerance; and a model in float64, to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import setitem
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, parameters_in
from secateurs.nested import changed, tensors_in

# ---------------------------------------------------------------- comparing


def difference(expected: Tensor, found: Tensor, least: float = 0.0) -> float:
    """The largest difference of two tensors, as a part of the largest finite number that was expected; computed in float64.

    Infinite where the shapes differ, and where one has NaN or an infinity and the other not the same there. Numbers are compared, of
    whatever dtypes. Where all that was expected is zero, or there is nothing finite, the difference is told as it is. ``least`` is a
    number below which the largest is not taken for one: what is so small may be rounding alone.

    >>> difference(torch.tensor([4.0, torch.inf]), torch.tensor([3.0, torch.inf]))
    0.25
    >>> difference(torch.tensor([4.0, torch.nan]), torch.tensor([4.0, 1.0]))
    inf
    """
    if expected.shape != found.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    one, other = _wide(expected), _wide(found)
    finite = one.isfinite() & other.isfinite()
    if not bool((finite | (one == other) | (one.isnan() & other.isnan())).all()):
        return math.inf
    largest = float(torch.where(finite, one, 0).abs().max())
    apart = float(torch.where(finite, one - other, 0).abs().max())
    return apart / (max(largest, least) or 1.0)


def differences(expected: Any, found: Any, least: float = 0.0) -> list[float]:
    """The `difference` of each tensor, in nested tuples, lists, mappings and dataclasses; infinite ones where there are not as many.

    >>> differences({"a": torch.ones(2), "b": (torch.zeros(3),)}, [torch.ones(2), torch.zeros(3)])
    [0.0, 0.0]
    """
    ours, theirs = list(tensors_in(expected)), list(tensors_in(found))
    if len(ours) != len(theirs):
        return [math.inf] * max(len(ours), len(theirs))
    return [difference(one, other, least) for one, other in zip(ours, theirs, strict=True)]


def alike(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether all tensors differ by at most a part of their largest number.

    >>> alike(torch.tensor([1.0, 100.0]), torch.tensor([1.1, 100.0]), tolerance=1e-2)
    True
    """
    return all(apart <= tolerance for apart in differences(expected, found))


def _wide(tensor: Tensor) -> Tensor:
    """In double precision, and where the device has none, or for the bits of a quantised tensor, as numbers on the CPU."""
    plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    return plain.cpu().to(torch.complex128 if plain.is_complex() else torch.float64)


def telling(example: Any) -> Any:
    """The example with noise in place of floating-point tensors that are the same everywhere, which would tell too little.

    >>> telling(torch.zeros(3)).unique().numel(), telling(torch.tensor([1.0, 2.0]))
    (3, tensor([1., 2.]))
    """
    generator = torch.Generator().manual_seed(0)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return changed(example, change)


# ---------------------------------------------------------------- in float64


def widened(value: Any) -> Any:
    """The same nesting with floating-point tensors in float64.

    >>> widened((torch.ones(1), torch.tensor([3])))
    (tensor([1.], dtype=torch.float64), tensor([3]))
    """
    return changed(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Every weight and buffer in float64; afterwards the tensors, with their gradients, that were there before.

    >>> model = nn.Linear(3, 2)
    >>> with in_float64(model):
    ...     model(torch.ones(1, 3).double()).dtype
    torch.float64
    >>> model.weight.dtype
    torch.float32
    """
    back: list[Callable[[], None]] = []
    try:
        for parameter in parameters_in(model).values():
            if parameter.is_floating_point():
                back.append(partial(_put_back, parameter, parameter.data, parameter.grad))
                parameter.grad = None
                parameter.data = parameter.data.double()
        for module in modules_in(model).values():
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    back.append(partial(setitem, module._buffers, key, buffer))
                    module._buffers[key] = buffer.double()
        yield
    finally:
        for restore in back:
            restore()


def _put_back(parameter: nn.Parameter, data: Tensor, gradient: Tensor | None) -> None:
    parameter.data = data
    parameter.grad = gradient
