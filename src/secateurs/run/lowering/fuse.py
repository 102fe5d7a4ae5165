"""Steps that one kernel can do together: what follows a convolution or linear layer goes into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from secateurs.nested import Value
from secateurs.run.lowering.draft import Draft, Fused, constant_along, is_reshape, reshape
from secateurs.run.lowering.spelled import respelled
from secateurs.run.network.nodes import (
    Activate,
    Add,
    Affine,
    Concat,
    Conv,
    Linear,
    Node,
    Torch,
)

aten = torch.ops.aten


def fuse(draft: Draft, node: Node) -> Fused | None:
    """What takes the place of a step and of steps that it needs; nothing where it cannot be fused with them."""
    if isinstance(node, Affine):
        return _through(draft, node, _normalised)
    if isinstance(node, Add):
        return _residual(draft, node)
    if isinstance(node, Activate):
        return _through(draft, node, _into_maker) or _into_parts(draft, node)
    if isinstance(node, Torch):
        return respelled(draft, node) or _scaled(draft, node)
    return None


def _is_bare_layer(node: Node | None) -> TypeGuard[Conv | Linear]:
    return isinstance(node, (Conv, Linear)) and node.residual is None and node.activation is None


def _through(draft: Draft, node: Any, into: Callable[[Draft, Any, Node | None], Node | None]) -> Fused | None:
    """Fused with the step before, or where only a reshape is between, with the one before that."""
    maker = draft.lone(node.x)
    if not is_reshape(maker):
        found = into(draft, node, maker)
        return None if found is None or maker is None else ([maker], [found])
    below = draft.lone(maker.args[0], besides=1)
    out = Value(maker.args[0].shape)
    found = into(draft, replace(node, out=out), below)
    return None if found is None or below is None else ([maker, below], [found, reshape(node.name, out, node.out)])


def _normalised(draft: Draft, node: Affine, maker: Node | None) -> Node | None:
    """A normalisation into the convolution, linear layer or other normalisation before it."""
    if isinstance(maker, Affine) and maker.activation is None and maker.out.shape[:2] == node.x.shape[:2]:
        shift = torch.addcmul(node.shift, maker.shift, node.scale)
        return replace(maker, out=node.out, scale=maker.scale * node.scale, shift=shift, activation=node.activation)
    if not _is_bare_layer(maker):
        return None
    shape = maker.out.shape
    channels_stay = shape[:2] == node.x.shape[:2] if isinstance(maker, Conv) else shape[-1:] == node.x.shape[1:]
    return replace(_times(maker, node.scale, node.shift), out=node.out, activation=node.activation) if channels_stay else None


def _times(layer: Conv | Linear, scale: Tensor | None, shift: Tensor | None) -> Conv | Linear:
    weight, bias = layer.weight, layer.bias
    if scale is not None:
        weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
        bias = None if bias is None else bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    return replace(layer, weight=weight.detach(), bias=None if bias is None else bias.detach())


def _into_maker(draft: Draft, node: Activate, maker: Node | None) -> Node | None:
    """An activation into the step before it."""
    if isinstance(maker, (Conv, Linear, Add, Affine)) and maker.activation is None:
        return replace(maker, out=node.out, activation=node.activation)
    return None


def _into_parts(draft: Draft, node: Activate) -> Fused | None:
    """An activation of concatenated results of layers into these layers."""
    concat = draft.lone(node.x)
    makers = [draft.lone(part, besides=1) for part in concat.parts] if isinstance(concat, Concat) else []
    if not isinstance(concat, Concat) or not makers:
        return None
    outs = tuple(Value(part.shape) for part in concat.parts)
    taken = [
        _into_maker(draft, replace(node, x=part, out=out), maker)
        for part, out, maker in zip(concat.parts, outs, makers, strict=True)
    ]
    used = [maker for maker in makers if maker is not None]
    made = [each for each in taken if each is not None]
    return ([concat, *used], [*made, replace(concat, parts=outs, out=node.out)]) if len(made) == len(outs) else None


def _residual(draft: Draft, node: Add) -> Fused | None:
    """A sum into the layer that made one of its terms, the last one if both are made so."""
    found: list[tuple[int, Fused]] = []
    for term, other in ((node.x, node.y), (node.y, node.x)):
        maker = draft.lone(term)
        if other is term or other in draft.constants or maker is None:
            continue
        if _is_bare_layer(maker):
            found.append((draft.time(maker), ([maker], [replace(maker, residual=other, out=node.out, activation=node.activation)])))
        elif is_reshape(maker):
            below, flat = draft.lone(maker.args[0], besides=1), maker.args[0]
            beside = draft.behind(other)
            if _is_bare_layer(below) and beside.shape == flat.shape and beside is not flat and beside not in draft.constants:
                out = Value(flat.shape)
                layer = replace(below, residual=beside, out=out, activation=node.activation)
                found.append((draft.time(below), ([maker, below], [layer, reshape(node.name, out, node.out)])))
    return max(found, key=lambda each: each[0])[1] if found else None


def _scaled(draft: Draft, node: Torch) -> Fused | None:
    """A product with, or a sum of, constants for each output of a layer, into that layer."""
    if node.function not in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return None
    x, constant = node.args[:2]
    if node.function in (aten.mul.Tensor, aten.add.Tensor) and (x in draft.constants or not isinstance(x, Value)):
        x, constant = constant, x
    layer = draft.lone(x)
    if not _is_bare_layer(layer) or layer.out.shape != node.outputs[0].shape or node.outputs[0].dtype != torch.float32:
        return None
    adds = node.function in (aten.add.Tensor, aten.sub.Tensor)
    if isinstance(constant, Value):
        numbers = draft.constants.get(constant)
        along = None if numbers is None else constant_along(numbers, layer.out.shape, 1 if isinstance(layer, Conv) else -1)
    else:
        along = None if adds else torch.full((layer.weight.shape[0],), float(constant))
    if along is None or along.dtype != torch.float32:
        return None
    if node.function is aten.div.Tensor:
        along = 1 / along
    if node.function is aten.sub.Tensor:
        along = -along
    taken = _times(layer, None, along) if adds else _times(layer, along, None)
    return [layer], [replace(taken, out=node.outputs[0])]
