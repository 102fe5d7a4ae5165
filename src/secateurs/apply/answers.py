"""Whether a smaller model still gives the same answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import setitem
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import nested, run_example, tensors_in
from secateurs.graph import plain, untouched
from secateurs.types import SecateursError

_LARGE = 200_000_000


def telling(example: Any) -> Any:
    """The example with noise in place of floating-point tensors that are the same everywhere, which would tell too little."""
    generator = torch.Generator().manual_seed(0)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return nested(example, change)


def answers(model: nn.Module, inputs: Any, double: bool | None = None) -> tuple[list[Tensor], bool]:
    """The model's outputs, in float64 where the model can do that; and whether it could."""
    with untouched(model), plain():
        if double is not False and sum(parameter.numel() for parameter in model.parameters()) < _LARGE:
            try:
                with _in_double(model):
                    return _floats(run_example(model, nested(inputs, _doubled))), True
            except SecateursError:
                if double:
                    raise
        return _floats(run_example(model, inputs)), False


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _floats(output: Any) -> list[Tensor]:
    """The output's numbers; of a model that answers with whole numbers alone, these."""
    found = [tensor.clone() for tensor in tensors_in(output)]
    return [tensor for tensor in found if tensor.is_floating_point()] or [tensor.double() for tensor in found]


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Every weight and buffer in float64; afterwards the tensors that were there before."""
    back: list[Callable[[], None]] = []
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                back.append(partial(_put_back, parameter, parameter.data, parameter.grad))
                parameter.grad = None
                parameter.data = parameter.data.double()
        for module in model.modules():
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


def require_same(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference, as a part of the largest number; raises `SecateursError` where it is no rounding error."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        raise SecateursError("the smaller model's outputs are of other shapes")
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        if not one.numel():
            continue
        tolerance = {torch.float64: 3e-6, torch.float32: 2e-4}.get(one.dtype, 2e-2)
        same = torch.isfinite(one) == torch.isfinite(other)
        scale = float(torch.where(torch.isfinite(one), one, 0).abs().max()) or 1.0
        difference = float(torch.where(torch.isfinite(one) & torch.isfinite(other), one - other, 0).abs().max()) / scale
        if not bool(same.all()) or not math.isfinite(difference) or difference > tolerance:
            raise SecateursError(f"the smaller model's outputs differ from the masked one's by {difference:.1e} of the largest")
        largest = max(largest, difference)
    return largest
