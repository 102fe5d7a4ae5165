"""What an optimizer remembers of its parameters is cut with them, or begins anew where nothing tells how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.nested import changed

Cut = Callable[[Tensor, tuple[int, ...]], Tensor]
"""A tensor and the dimensions that are to be cut → what stays of it."""


class _Unknown(Exception):
    """A tensor of which nothing tells which numbers belong to which weights."""


def cut_state_(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, dims: tuple[int, ...], cut: Cut
) -> tuple[bool, Callable[[], Any]]:
    """Cut the state of a parameter along these of its dimensions, before it is cut itself; whether that went, and the way back.

    A tensor is cut where it has the parameter's size (Adam's averages, and Adafactor's, which have one row or one column). Numbers
    stay. Where anything else is among it, the whole state is dropped, and the optimizer begins anew with that parameter.

    >>> parameter = nn.Parameter(torch.zeros(4, 2))
    >>> optimizer = torch.optim.Adafactor([parameter])
    >>> optimizer.state[parameter] = {"step": 3, "row_var": torch.zeros(4, 1), "col_var": torch.zeros(1, 2)}
    >>> known, back = cut_state_(optimizer, parameter, (0,), lambda tensor, dims: tensor[:3])
    >>> known, optimizer.state[parameter]["row_var"].shape, optimizer.state[parameter]["col_var"].shape
    (True, torch.Size([3, 1]), torch.Size([1, 2]))
    """
    state = optimizer.state.get(parameter)
    if not state:
        return True, lambda: None
    shape = parameter.shape

    def smaller(tensor: Tensor) -> Tensor:
        if tensor.numel() == 1:
            return tensor
        if tensor.ndim != len(shape) or any(size not in (1, whole) for size, whole in zip(tensor.shape, shape, strict=True)):
            raise _Unknown
        return cut(tensor, tuple(dim for dim in dims if tensor.shape[dim] == shape[dim]))

    back = partial(optimizer.state.__setitem__, parameter, state)
    try:
        optimizer.state[parameter] = changed(state, smaller)
        return True, back
    except _Unknown:
        del optimizer.state[parameter]
        return False, back


def forget_shared_(optimizer: torch.optim.Optimizer) -> tuple[list[nn.Parameter], Callable[[], Any]]:
    """L-BFGS keeps its history of all parameters as one vector: it begins anew. Of which parameters, and the way back; others none."""
    if not isinstance(optimizer, torch.optim.LBFGS) or not optimizer.state:
        return [], lambda: None
    state, count = dict(optimizer.state), optimizer._numel_cache
    optimizer.state.clear()
    optimizer._numel_cache = None

    def back() -> None:
        optimizer.state.update(state)
        optimizer._numel_cache = count

    return optimizer.param_groups[0]["params"], back
