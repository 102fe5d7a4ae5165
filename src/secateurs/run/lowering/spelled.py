"""Activations that a model spells out in several operations, as one."""

from __future__ import annotations

from math import isclose, pi, sqrt
from typing import Any

import torch

from secateurs.nested import Value
from secateurs.run.lowering.draft import Draft, Fused
from secateurs.run.network.nodes import (
    Activate,
    Activation,
    Add,
    Node,
    Torch,
)

aten = torch.ops.aten


# ---------------------------------------------------------------- activations that are spelled out


def respelled(draft: Draft, node: Torch) -> Fused | None:
    """An activation that is written as several operations."""
    if node.outputs[:1] == () or node.outputs[0].dtype != torch.float32:
        return None
    for spelling in (_gated, _hard, _gelu):
        found = spelling(draft, node)
        if found is not None:
            x, kind, used = found
            return used, [Activate(node.name, x, node.outputs[0], Activation(kind))]
    return None


Spelled = tuple[Value, str, list[Node]]


_GATES = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}


def _gated(draft: Draft, node: Torch) -> Spelled | None:
    """``x * sigmoid(x)`` and ``x * hardsigmoid(x)``."""
    for x, gate in _factors(node):
        maker = draft.lone(gate)
        if isinstance(maker, Activate) and maker.x is x and maker.activation.kind in _GATES:
            return x, _GATES[maker.activation.kind], [maker]
    return None


def _hard(draft: Draft, node: Torch) -> Spelled | None:
    """``relu6(x + 3) / 6`` and ``x * relu6(x + 3) / 6``."""
    sixth = _by(node, aten.div, 6) or _by(node, aten.mul, 1 / 6)
    top = draft.lone(sixth)
    found = _relu6(draft, top)
    if found is not None:
        return found[0], "hard_sigmoid", found[1]
    if isinstance(top, Torch):
        for x, gate in _factors(top):
            found = _relu6(draft, draft.lone(gate, besides=1))
            if found is not None and found[0] is x:
                return x, "hard_swish", [top, *found[1]]
    return None


def _relu6(draft: Draft, node: Node | None) -> tuple[Value, list[Node]] | None:
    if not isinstance(node, Activate) or node.activation != Activation("clamp", 0.0, 6.0):
        return None
    plus = draft.lone(node.x, besides=1)
    x = _by(plus, aten.add, 3)
    return None if plus is None or x is None else (x, [node, plus])


def _gelu(draft: Draft, node: Torch) -> Spelled | None:
    """``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``."""
    for half, bend in _factors(node):
        first, plus = draft.lone(half), draft.lone(bend)
        x, tanh = _by(first, aten.mul, 0.5), draft.lone(_by(plus, aten.add, 1), besides=1)
        if x is None or not isinstance(tanh, Activate) or tanh.activation.kind != "tanh":
            continue
        root = draft.lone(tanh.x, besides=1)
        total = draft.lone(_by(root, aten.mul, sqrt(2 / pi)), besides=1)
        if not isinstance(total, Add) or total.x is not x:
            continue
        part = draft.lone(total.y, besides=1)
        cube = draft.lone(_by(part, aten.mul, 0.044715), besides=1)
        if _by(cube, aten.pow, 3) is x:
            used = [first, plus, tanh, root, total, part, cube]
            return x, "gelu_tanh", [each for each in used if each is not None]
    return None


def _by(node: Node | None, packet: Any, number: float) -> Value | None:
    """The operand of an operation with this number."""
    if not isinstance(node, Torch) or getattr(node.function, "overloadpacket", None) is not packet or len(node.args) != 2:
        return None
    x, other = node.args
    return x if isinstance(x, Value) and isinstance(other, (int, float)) and isclose(other, number, rel_tol=1e-6) else None


def _factors(node: Torch) -> tuple[tuple[Value, Value], ...]:
    if node.function is not aten.mul.Tensor:
        return ()
    x, y = node.args
    return ((x, y), (y, x)) if isinstance(x, Value) and isinstance(y, Value) and x.shape == y.shape else ()
