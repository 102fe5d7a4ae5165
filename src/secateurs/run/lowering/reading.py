"""What is known of a network while its nodes are read one after the other, and what lies behind heads that come before tokens."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import Value, leaves
from secateurs.run.network.nodes import Network, Node, Torch, inputs_of, with_values

aten = torch.ops.aten


class Reading:
    """What is known while nodes are read one after the other: who makes what, and which value stands for which now."""

    def __init__(self, network: Network) -> None:
        self.makers: dict[Value, Node] = {}
        self.now: dict[Value, Value] = {}
        self.added: dict[Value, Tensor] = {}
        self.written = network.written
        self._constants = network.constants
        self._angles: dict[tuple[Value, tuple[int, ...]], Value] = {}
        self._readers: dict[Value, list[Node | None]] = defaultdict(list)
        for node in network.nodes:
            for value in inputs_of(node):
                self._readers[value].append(node)
        for _, value in leaves(network.result):
            if isinstance(value, Value):
                self._readers[value].append(None)

    def current(self, node: Node) -> Node:
        """A node with the values that stand for its operands now."""
        if self.now.keys().isdisjoint(inputs_of(node)):
            return node
        return with_values(node, lambda value: self.now.get(value, value))

    def maker(self, value: Any) -> Node | None:
        """The node that makes a value."""
        return self.makers.get(value) if isinstance(value, Value) else None

    def torchs(self, value: Any, *functions: Any) -> Torch | None:
        """The operation of torch that makes a value, where it is one of these, on memory that nothing writes into."""
        node = self.maker(value)
        return node if isinstance(node, Torch) and node.function in functions and self.written.isdisjoint(inputs_of(node)) else None

    def number(self, value: Any) -> Tensor | None:
        """The numbers of a constant in float32."""
        found = self._constants.get(value) if isinstance(value, Value) else None
        return found if found is not None and found.dtype == torch.float32 else None

    def is_read(self, value: Value) -> bool:
        """Whether anything reads a value."""
        return value in self._readers

    def readers(self, value: Value) -> list[Node | None]:
        """What reads a value as it was recorded; None stands for the caller."""
        return self._readers.get(value, [])

    def angles(self, value: Value, flat: tuple[int, ...], width: int, heads_first: bool) -> Value | None:
        """Cosines or sines as (batch, tokens, width), where that is what they are: the same for all heads of a batch."""
        numbers, (batch, tokens) = self.number(value), flat[:2]
        wanted = (1, 1, tokens, width) if heads_first else (1, tokens, 1, width)
        if numbers is None or (1,) * (4 - len(value.shape)) + value.shape != wanted:
            return None
        key = (value, flat[:2])
        if key not in self._angles:
            self._angles[key] = made = Value((batch, tokens, width))
            self.added[made] = numbers.reshape(1, tokens, width).expand(batch, tokens, width).contiguous()
        return self._angles[key]

    def tokens_of(self, value: Any, shared: bool = False) -> tuple[Value, int] | None:
        """Behind (batch, heads, tokens, size): the (batch, tokens, heads * size) that it is a view of, and the number of heads.

        There may be fewer of them where several heads are one that was repeated, if they may be ``shared``.
        """
        given, value = value, self._original(value)
        if value is None or len(value.shape) != 4 or not (shared or value.shape == given.shape):
            return None
        turned = self.torchs(value, aten.permute.default)
        if turned is None and value.shape[1] == 1:
            return self._only_head(value)
        if turned is None or [axis % 4 for axis in turned.args[1]] != [0, 2, 1, 3]:
            return None
        return self._flat(turned.args[0])

    def _only_head(self, value: Value) -> tuple[Value, int] | None:
        """Behind (batch, 1, tokens, size): one head comes first by a mere reshape."""
        batch, _, tokens, size = value.shape
        view = self.torchs(value, aten.reshape.default)
        source = None if view is None else view.args[0]
        if source is None or source.shape == (batch, tokens, size):
            return None if source is None else (source, 1)
        return self._flat(source) if source.shape == (batch, tokens, 1, size) else None

    def flat(self, value: Value) -> tuple[Value, int] | None:
        """Behind (batch, tokens, heads, size): (batch, tokens, heads * size), and the number of heads."""
        return self._flat(value) if len(value.shape) == 4 else None

    def _flat(self, value: Value) -> tuple[Value, int] | None:
        batch, tokens, heads, size = value.shape
        view = self.torchs(value, aten.reshape.default)
        if view is None:
            return None
        source = view.args[0]
        return (source, heads) if source.shape == (batch, tokens, heads * size) else None

    def _original(self, value: Any) -> Value | None:
        """What a copy, a concatenation with nothing or one made for each of several heads is of."""
        while isinstance(value, Value):
            node = self.torchs(value, aten.clone.default, aten.cat.default, aten.reshape.default, aten.expand.default)
            if node is None:
                break
            if node.function is aten.clone.default:
                value = node.args[0]
                continue
            found = self._joined(node) if node.function is aten.cat.default else self._repeated(node)
            if found is None:
                break
            value = found
        return value if isinstance(value, Value) else None

    def _joined(self, node: Torch) -> Value | None:
        """The only part of a concatenation that is not empty."""
        parts = [part for part in node.args[0] if 0 not in part.shape]
        return parts[0] if len(parts) == 1 and parts[0].shape == node.outputs[0].shape else None

    def _repeated(self, node: Torch) -> Value | None:
        """Keys that are there once for several heads: (batch, heads, tokens, size), expanded to (batch, heads, many, tokens, size)."""
        if node.function is not aten.reshape.default or len(node.outputs[0].shape) != 4:
            return None
        wide = self.torchs(node.args[0], aten.expand.default, aten.clone.default)
        if wide is not None and wide.function is aten.clone.default:
            wide = self.torchs(wide.args[0], aten.expand.default)
        view = None if wide is None else self.torchs(wide.args[0], aten.reshape.default)
        if wide is None or view is None or len(wide.outputs[0].shape) != 5:
            return None
        batch, heads, many, tokens, size = wide.outputs[0].shape
        alike = wide.args[0].shape == (batch, heads, 1, tokens, size) and view.args[0].shape == (batch, heads, tokens, size)
        return view.args[0] if alike and node.outputs[0].shape == (batch, heads * many, tokens, size) else None
