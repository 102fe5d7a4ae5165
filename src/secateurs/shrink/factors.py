"""A layer in two: through a narrow middle, with a sparse layer beside it where one is wished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.forward import modules_in
from secateurs.shrink.remembered import remember_
from secateurs.shrink.same_answers import Check
from secateurs.shrink.step import Factors, Step
from secateurs.shrink.surgery import no_module, replace_module_
from secateurs.shrink.undo import Undo
from secateurs.types import FileError, SecateursError

_OF_FEW_BITS = 5e-2  # what two weights of 8 bits differ by from their product in 8 bits, through some layers
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SparsePlusLowRank(nn.Module):
    """A layer as the sum of a sparse one, which has the bias, and of two with a narrow middle (2409.13652).

    >>> layer = SparsePlusLowRank(nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2, bias=False)))
    >>> layer(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, sparse: nn.Module, low_rank: nn.Sequential) -> None:
        super().__init__()
        self.sparse, self.low_rank = sparse, low_rank

    def forward(self, inputs: Tensor) -> Tensor:
        """Both layers' answers, added."""
        return self.sparse(inputs) + self.low_rank(inputs)


def reason_against(module: nn.Module) -> str:
    """Why a layer cannot be cut in two; empty where it can.

    >>> reason_against(nn.Linear(2, 2)), reason_against(nn.Conv2d(4, 4, 3, groups=2))
    ('', 'its groups never mix, so that no narrow middle can be common to them')
    """
    if type(module) not in _KINDS:
        return f"it is a {type(module).__name__}; only Linear, Conv1d, Conv2d and Conv3d themselves become two layers"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return "its groups never mix, so that no narrow middle can be common to them"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost"
    return ""


def most_of_rank(module: Any) -> int:
    """The largest rank with which two layers have fewer weights than the one."""
    outputs, features = module.weight.shape[0], module.weight[0].numel()
    return (outputs * features - 1) // (outputs + features)


def in_two(module: Any, rank: int, bias: bool) -> nn.Sequential:
    """Two layers that do as one, with a narrow middle: of a convolution one with its kernel, then one of single pixels.

    >>> in_two(nn.Conv2d(8, 16, 3, padding=1), 2, bias=True)
    Sequential(
      (0): Conv2d(8, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (1): Conv2d(2, 16, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    weight = module.weight
    where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.Linear):
        first: nn.Module = nn.Linear(module.in_features, rank, bias=False, **where)
        last: nn.Module = nn.Linear(rank, module.out_features, bias=bias, **where)
    else:
        shape: dict[str, Any] = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "padding_mode")}
        first = type(module)(module.in_channels, rank, module.kernel_size, bias=False, **shape, **where)
        last = type(module)(rank, module.out_channels, 1, bias=bias, **where)
    return nn.Sequential(first, last).train(module.training).requires_grad_(weight.requires_grad)


def factor_(model: nn.Module, factors: Mapping[str, Factors], undo: Undo) -> None:
    """Put two layers, or two and a sparse one, in the place of each; what they compute is whatever their fresh weights say.

    Raises `FileError` where a layer is not there, cannot be cut in two, or would be no smaller by it.
    """
    modules = modules_in(model)
    for name, each in factors.items():
        if not name or name not in modules:
            raise no_module(model, name)
        module: Any = modules[name]
        if reason := reason_against(module):
            raise FileError(f"{name} was made of two layers in the model of the file, but here it cannot be: {reason}")
        if not 1 <= each.rank <= min(module.weight.shape[0], module.weight[0].numel()):
            raise FileError(f"{name}: a middle of width {each.rank} is none for a weight of {tuple(module.weight.shape)}")
        bias = isinstance(module.bias, Tensor)
        with torch.random.fork_rng():
            pair = in_two(module, each.rank, bias=bias and not each.sparse)
        replace_module_(model, name, SparsePlusLowRank(module, pair) if each.sparse else pair, undo)


# ---------------------------------------------------------------- with their values, and checked


@dataclass(frozen=True)
class Parts:
    """What a layer becomes: ``last @ first`` through a narrow middle, a bias where it has one, and a sparse weight beside them.

    ``first`` is ``(rank, features)``, ``last`` ``(outputs, rank)``, ``sparse`` ``(outputs, features)``, all float64.
    """

    first: Tensor
    last: Tensor
    bias: Tensor | None
    sparse: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """The weight that they stand for, ``(outputs, features)``."""
        product = self.last @ self.first
        return product if self.sparse is None else product + self.sparse

    @property
    def factors(self) -> Factors:
        """As a step tells of it."""
        return Factors(len(self.first), self.sparse is not None)


def put_in_place_(model: nn.Module, parts: Mapping[str, Parts], inputs: Any, undo: Undo) -> dict[str, str]:
    """Put two layers (and a sparse one) in the place of each of those named, and remember it on the model; returns why others stay.

    The model must answer as it does with the weights that they stand for in the layers as they were; where it does not (code that
    asks a layer for its weight), the layer keeps the weight that it had.
    """
    modules, refused, own = modules_in(model), dict[str, str](), {name: Undo() for name in parts}
    for back in own.values():
        undo.add(back)
    shapes = {name: list(modules[name].weight.shape) for name in parts}  # type: ignore[arg-type]
    for name, each in parts.items():
        _write_whole_(modules[name], each, own[name])
    few_bits = any(parameter.dtype.itemsize < 4 for name in parts for parameter in modules[name].parameters())
    check, swap = Check(model, inputs, tolerance=_OF_FEW_BITS if few_bits else None), partial(_swap_, model, parts)
    check.ask()
    try:
        check.same_after(lambda: [swap(name, own[name]) for name in parts], lambda: None)
    except SecateursError:
        for name in parts:
            own[name].back_to(1)
        for name in parts:
            try:
                check.same_after(partial(swap, name, own[name]), lambda: None)
            except SecateursError as problem:
                own[name].back_to(1)
                refused[name] = f"the model does not answer the same with two layers in its place: {str(problem).splitlines()[0]}"
    for name in refused:
        own[name]()
    done = {name: each.factors for name, each in parts.items() if name not in refused}
    if done:
        remember_(model, Step(shapes={f"{name}.weight": shapes[name] for name in done}, factors=done), undo)
    return refused


@torch.no_grad()
def _write_whole_(module: Any, parts: Parts, undo: Undo) -> None:
    tensors = [
        (module.weight, parts.whole.view(module.weight.shape)),
        *([(module.bias, parts.bias)] if parts.bias is not None else []),
    ]
    before = [(tensor, tensor.detach().clone()) for tensor, _ in tensors]
    undo.add(lambda: [tensor.data.copy_(value) for tensor, value in before])
    for tensor, value in tensors:
        tensor.copy_(value)


@torch.no_grad()
def _swap_(model: nn.Module, parts: Mapping[str, Parts], name: str, undo: Undo) -> None:
    """Two layers in the place of one, with weights of the same size on both sides of the middle, which training likes best."""
    each, old = parts[name], model.get_submodule(name)
    factor_(model, {name: each.factors}, undo)
    new: Any = model.get_submodule(name)
    pair = new.low_rank if each.sparse is not None else new
    sizes = each.first.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    pair[0].weight.copy_((each.first / sizes[:, None]).view(pair[0].weight.shape))
    pair[1].weight.copy_((each.last * sizes).view(pair[1].weight.shape))
    if each.sparse is not None:
        weight: Any = old.weight
        whole = weight.detach().clone()
        undo.add(lambda: weight.data.copy_(whole))
        weight.copy_(each.sparse.view(weight.shape))
    elif each.bias is not None:
        pair[1].bias.copy_(each.bias)
