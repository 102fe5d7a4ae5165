"""How what lies between the linear layers of a transformer is planned: in panels of tokens, or, for a few of them, in rows as torch has
them."""

from __future__ import annotations

from math import prod

from secateurs.nested import Value
from secateurs.run.kernels.machine import narrower, native
from secateurs.run.network.nodes import Add, Attention, Multiply, Norm, Rotary
from secateurs.run.planning import steps
from secateurs.run.planning.buffers import Home
from secateurs.run.planning.homes import Homes, count
from secateurs.run.planning.layers import SINGLE
from secateurs.run.planning.layout import tokens_for

_ENDLESS = 2**40
"""Rows that follow each other have no tiles."""


def plan_of_tokens(homes: Homes, node: Norm | Multiply | Add | Rotary | Attention) -> bool:
    """Plan a node where it stands among layers whose kernels leave tokens in panels or rows; else it is torch's."""
    if not hasattr(getattr(native, "Program", None), "attention") or len(node.x.shape) < 2:
        return False
    if not isinstance(node, Norm) and not _is_near(homes, node.x):
        return False
    lie = _Lie(homes, prod(node.x.shape[:-1]))
    if isinstance(node, Norm):
        _norm(homes, lie, node)
    elif isinstance(node, Rotary):
        _rotary(homes, lie, node)
    elif isinstance(node, Attention):
        _attention(homes, lie, node)
    else:
        _combine(homes, lie, node)
    return True


def _is_near(homes: Homes, value: Value) -> bool:
    """Whether kernels have made the value, so that torch would have to be given it."""
    return homes.is_packed(value) or homes.is_row(value)


class _Lie:
    """How tokens lie: in panels of so many columns, or in rows, where ``columns`` is 0."""

    def __init__(self, homes: Homes, positions: int) -> None:
        few = positions <= SINGLE
        self.isa = homes.isa if few else narrower(homes.isa, positions)
        self.grid = None if few else tokens_for(positions, self.isa.lanes)
        self.positions = positions
        self.columns = 0 if self.grid is None else self.grid.columns
        self.many = positions if self.grid is None else self.grid.panels
        self.floats_of_channel = max(1, self.columns * self.isa.lanes)
        self._homes = homes

    def found(self, value: Value) -> Home:
        """Where a value lies, or is brought."""
        return self._homes.plain(value) if self.grid is None else self._homes.packed(value, self.grid)

    def made(self, value: Value) -> Home:
        """Where a value that a step makes will lie."""
        return self._homes.new_rows(value) if self.grid is None else self._homes.new_packed(value, self.grid)


def _norm(homes: Homes, lie: _Lie, node: Norm) -> None:
    x, y = lie.found(node.x), lie.made(node.out)
    homes.task(node.name, [x, y], steps.norm(lie.isa, lie.columns, lie.many, x, y, node))


def _combine(homes: Homes, lie: _Lie, node: Multiply | Add) -> None:
    x, z = lie.found(node.x), lie.found(node.y)
    y = lie.made(node.out)
    activation = node.activation if isinstance(node, Add) else None
    floats = count(node.x) // lie.positions * lie.many * lie.floats_of_channel
    homes.task(node.name, [x, z, y], steps.combine(lie.isa, floats, isinstance(node, Multiply), activation, x, z, y))


def _rotary(homes: Homes, lie: _Lie, node: Rotary) -> None:
    x, cos, sin = (lie.found(value) for value in (node.x, node.cos, node.sin))
    y, size = lie.made(node.out), node.x.shape[-1] // node.heads
    homes.task(node.name, [x, cos, sin, y], steps.rotary(lie.isa, lie.columns, lie.many, size, x, cos, sin, y, node))


def _attention(homes: Homes, lie: _Lie, node: Attention) -> None:
    """Keys and values are read where they are; with a past they first join it."""
    x, keys, values = (lie.found(value) for value in (node.x, node.keys, node.values))
    channels, tokens = node.keys.shape[-1], node.x.shape[1]
    stride, position = lie.floats_of_channel, None
    seen = min(lie.positions, 2 * (tokens + lie.isa.lanes))
    told = (stride, channels * stride, 1, stride) if lie.columns else (_ENDLESS, 0, channels, 1)
    if node.past is not None:
        position, told, seen = homes.plain(node.past.position), (_ENDLESS, 0, channels, 1), node.past.keys.shape[0]
        kept = []
        for new, held in ((keys, node.past.keys), (values, node.past.values)):
            past = homes.plain(held)
            homes.task(node.name, [new, past], steps.keep(lie.isa, lie.columns, lie.positions, channels, new, past, position))
            kept.append(past)
        keys, values = kept
    room = -(-seen * (2 * lie.isa.lanes if lie.columns else 1) // 64) * 64
    y, scores = lie.made(node.out), homes.new_plain(room * homes.threads)
    task = steps.attention(lie.isa, lie.columns, node, told, room, x, keys, values, y, scores, position)
    homes.task(node.name, [x, keys, values, y, scores], task)
