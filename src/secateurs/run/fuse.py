"""Steps that one kernel can do together: what follows a convolution or linear layer goes into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import isclose, pi, sqrt
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from secateurs.run.interpret import inputs_of, outputs_of
from secateurs.run.nest import changed, leaves
from secateurs.run.nodes import Activate, Activation, Add, Affine, Concat, Conv, Linear, Mean, Network, Node, Torch, Value

aten = torch.ops.aten

AnyNode = TypeVar("AnyNode", bound=Node)


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

    def __init__(self, network: Network) -> None:
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
        parts = ("args", "kwargs", "x", "y", "residual", "factors", "parts", "hidden", "cell")
        return replace(node, **{name: self._renamed(getattr(node, name)) for name in parts if hasattr(node, name)})

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
        if _is_reshape(node) and not self.touched(node):
            self._append_reshape(node)
            return
        fused = None if self.touched(node) else fuse(self, node)
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
        return _is_reshape(self.lone(value, besides=1))

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
        return changed(nest, lambda value: self._now.get(value, value)) if self._now else nest

    def _count(self, values: Iterable[Value], by: int) -> None:
        for value in values:
            self.readers[value] += by

    def network(self) -> Network:
        """What was written, without the steps that the result does not need."""
        result = self._renamed(self._network.result)
        live = {value for _, value in leaves(result) if isinstance(value, Value)}
        nodes: list[Node] = []
        for node in reversed(self._nodes):
            if not outputs_of(node) or not live.isdisjoint(outputs_of(node)):
                live.update(inputs_of(node))
                nodes.append(node)
        constants = {value: tensor for value, tensor in self.constants.items() if value in live}
        return replace(self._network, nodes=nodes[::-1], result=result, constants=constants)


def _is_reshape(node: Node | None) -> TypeGuard[Torch]:
    return isinstance(node, Torch) and node.function is aten.reshape.default


Fused = tuple[list[Node], list[Node]]
"""The steps that are taken in, and those that take their place."""


def fuse(draft: Draft, node: Node) -> Fused | None:
    """What takes the place of a step and of steps that it needs; nothing where it cannot be fused with them."""
    if isinstance(node, Affine):
        return _through(draft, node, _normalised)
    if isinstance(node, Add):
        return _residual(draft, node)
    if isinstance(node, Activate):
        return _through(draft, node, _into_maker) or _into_parts(draft, node)
    if isinstance(node, Torch):
        return _respelled(draft, node) or _scaled(draft, node)
    return None


def _is_bare_layer(node: Node | None) -> TypeGuard[Conv | Linear]:
    return isinstance(node, (Conv, Linear)) and node.residual is None and node.activation is None


def _through(draft: Draft, node: Any, into: Callable[[Draft, Any, Node | None], Node | None]) -> Fused | None:
    """Fused with the step before, or where only a reshape is between, with the one before that."""
    maker = draft.lone(node.x)
    if not _is_reshape(maker):
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
        elif _is_reshape(maker):
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


# ---------------------------------------------------------------- activations that are spelled out


def _respelled(draft: Draft, node: Torch) -> Fused | None:
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
