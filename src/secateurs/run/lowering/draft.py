"""A network while it is being rewritten: its nodes, who makes what and who reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from secateurs.nested import Value, changed, leaves
from secateurs.run.network.nodes import (
    AnyNode,
    Linear,
    Mean,
    Network,
    Node,
    Torch,
    inputs_of,
    needed,
    outputs_of,
    with_values,
)

aten = torch.ops.aten


def reshape(name: str, x: Value, out: Value) -> Torch:
    """The same numbers in the same order, in another shape."""
    return Torch(name, aten.reshape.default, (x, out.shape), {}, (out,))


def constant_along(constant: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """A constant that broadcasts to a shape as one number for each index of an axis, where it is that.

    >>> constant_along(torch.ones(3, 1, 1), (2, 3, 4, 4), 1)
    tensor([1., 1., 1.])
    """
    if len(constant.shape) > len(shape):
        return None
    sizes = (1,) * (len(shape) - len(constant.shape)) + tuple(constant.shape)
    axis %= len(shape)
    if any(size != 1 for place, size in enumerate(sizes) if place != axis):
        return None
    return constant.reshape(-1).expand(shape[axis]).contiguous()


class Draft:
    """A network that is being written: each step that is appended may take in the steps that made its operands."""

    def __init__(self, network: Network, fuse: Callable[[Draft, Node], Fused | None]) -> None:
        self._fuse = fuse
        self._network = network
        self.constants = network.constants
        self._written = network.written
        self._times: dict[Node, int] = {}
        self._nodes: dict[Node, None] = {}
        self._makers: dict[Value, Node] = {}
        self._now: dict[Value, Value] = {}
        self.readers: Counter[Value] = Counter(value for node in network.nodes for value in inputs_of(node))
        self._results = {value for _, value in leaves(network.result) if isinstance(value, Value)}
        self.readers.update(self._results)

    # What is there

    def current(self, node: AnyNode) -> AnyNode:
        """A node with the values that stand for its operands now."""
        if self._now.keys().isdisjoint(inputs_of(node)):
            return node
        return with_values(node, lambda value: self._now.get(value, value))

    def maker(self, value: Any) -> Node | None:
        """The step that makes a value."""
        return self._makers.get(value) if isinstance(value, Value) else None

    def lone(self, value: Any, besides: int = 0) -> Node | None:
        """The step that makes a value, where nothing else needs it than the step that is being appended (and ``besides`` others)."""
        return self.maker(value) if isinstance(value, Value) and self.readers[value] == besides else None

    def time(self, node: Node) -> int:
        """When a step was appended."""
        return self._times[node]

    def behind(self, value: Value, copied: bool = False) -> Value:
        """What a value is a mere reshape or copy of.

        A copy of what the caller has too stays one, as either may be written into, unless the reader makes new numbers (``copied``).
        """
        maker = self.maker(value)
        while isinstance(maker, Torch) and maker.function in (aten.reshape.default, aten.clone.default):
            source = maker.args[0]
            shown = not copied and (source in self._results or self._views_input(source))
            if maker.function is aten.clone.default and (source in self._written or shown):
                break
            value = source
            maker = self.maker(value)
        return value

    def touched(self, node: Node) -> bool:
        """Whether a step works on memory that something writes into."""
        return not self._written.isdisjoint((*inputs_of(node), *outputs_of(node)))

    def _views_input(self, value: Value) -> bool:
        while (maker := self.maker(value)) is not None:
            if not isinstance(maker, Torch) or not getattr(maker.function, "is_view", True):
                return False
            value = maker.args[0]
        return True

    # What changes

    def forget(self, node: Node) -> None:
        """A recorded step is about to be replaced: it does not count as a reader any more."""
        self._count(self._renamed(inputs_of(node)), -1)

    def rename(self, value: Value, to: Value) -> None:
        """Whatever reads a value reads another one from now on."""
        self._now[value] = to
        self.readers[to] += self.readers.pop(value, 0)

    def append(self, node: Node) -> None:
        """Add a step, in place of those that it can be fused with."""
        node = self.current(node)
        if is_reshape(node) and not self.touched(node):
            self._append_reshape(node)
            return
        fused = None if self.touched(node) else self._fuse(self, node)
        if fused is None:
            self._put(node)
            return
        used, made = fused
        for each in used:
            self._remove(each)
        for each in made:
            self.append(each)

    def source(self, value: Value, copied: bool = False) -> Value:
        """What is behind a value; reshapes and copies on the way that nothing else reads are dropped."""
        end = self.behind(value, copied)
        while value is not end:
            maker = self._makers[value]
            if self.readers[value] == 0:
                self._remove(maker)
            value = inputs_of(maker)[0]
        return end

    def _append_reshape(self, node: Torch) -> None:
        out = node.outputs[0]
        x = self.source(node.args[0])
        maker = self.lone(x)
        if x.shape == out.shape:
            self.rename(out, x)
        elif isinstance(maker, Mean) and out.shape in (maker.x.shape[:2], (*maker.x.shape[:2], 1, 1)):
            self._remove(maker)
            self._put(replace(maker, out=out))
        elif isinstance(maker, Linear) and maker.residual is None and out.shape[-1:] == x.shape[-1:] and self._is_reshaped(maker.x):
            # rows and columns were only for the matrix product
            before = Value((*out.shape[:-1], maker.x.shape[-1]))
            self._remove(maker)
            self.append(reshape(maker.name, maker.x, before))
            self.append(replace(maker, x=before, out=out))
        else:
            self._put(reshape(node.name, x, out))

    def _is_reshaped(self, value: Value) -> bool:
        return is_reshape(self.lone(value, besides=1))

    def _put(self, node: Node) -> None:
        self._nodes[node] = None
        self._times[node] = len(self._times)
        self._makers.update(dict.fromkeys(outputs_of(node), node))
        self._count(inputs_of(node), 1)

    def _remove(self, node: Node) -> None:
        del self._nodes[node]
        for value in outputs_of(node):
            del self._makers[value]
        self._count(inputs_of(node), -1)

    def _renamed(self, nest: Any) -> Any:
        return changed(nest, lambda value: self._now.get(value, value), objects=True) if self._now else nest

    def _count(self, values: Iterable[Value], by: int) -> None:
        for value in values:
            self.readers[value] += by

    def network(self) -> Network:
        """What was written, without the steps that the result does not need."""
        result = self._renamed(self._network.result)
        return needed(replace(self._network, nodes=list(self._nodes), result=result, constants=self.constants))


def is_reshape(node: Node | None) -> TypeGuard[Torch]:
    """Whether a step only looks at a tensor in another shape."""
    return isinstance(node, Torch) and node.function is aten.reshape.default


Fused = tuple[list[Node], list[Node]]
"""The steps that are taken in, and those that take their place."""
