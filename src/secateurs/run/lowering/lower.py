"""From torch's operations to the steps that kernels exist for: one table, operation → what it is called here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import Value, among
from secateurs.run.lowering.draft import Draft, constant_along, reshape
from secateurs.run.lowering.fuse import fuse
from secateurs.run.lowering.tokens import of_tokens
from secateurs.run.network.nodes import (
    Activate,
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Linear,
    Lstm,
    Mean,
    Network,
    Node,
    Pool,
    Scale,
    Torch,
)

aten = torch.ops.aten

Rule = Callable[["Call"], "Iterator[Node] | Node | Value | None"]


class Call:
    """An operation of torch that is looked at, with its arguments by name."""

    def __init__(self, node: Torch, draft: Draft) -> None:
        self.node, self.draft, self.name, self.out = node, draft, node.name, node.outputs[0]
        declared = node.function._schema.arguments
        self._places = {argument.name: (place, argument) for place, argument in enumerate(declared)}

    def __getattr__(self, name: str) -> Any:
        place, declared = self._places[name]
        if place < len(self.node.args):
            return self.node.args[place]
        return self.node.kwargs.get(name, declared.default_value)

    def get(self, name: str, default: Any) -> Any:
        """An argument that not every variant of the operation has."""
        return getattr(self, name) if name in self._places else default

    def number(self, value: Any) -> Tensor | None:
        """The numbers of a value that is constant."""
        return self.draft.constants.get(value) if isinstance(value, Value) else None

    def read(self, *outputs: int) -> bool:
        """Whether anything needs one of these outputs."""
        return any(self.draft.readers[self.node.outputs[place]] for place in outputs if place < len(self.node.outputs))


def lower(network: Network) -> Network:
    """The same network in steps that kernels exist for, as far as they do: float32 and memory that nothing writes into.

    What can be done in one step with the step before is fused (see `secateurs.run.lowering.fuse`).

    >>> from secateurs.run.recording.one_call import network_of
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> [type(node).__name__ for node in lower(network_of(model, torch.zeros(1, 3, 8, 8))).nodes]
    ['Conv']
    """
    draft = Draft(network, fuse)
    for node in network.nodes:
        draft.forget(node)
        for piece in _lowered(node, draft):
            draft.append(piece)
    return of_tokens(draft.network())


def _lowered(node: Node, draft: Draft) -> Iterator[Node]:
    if not isinstance(node, Torch):
        yield node
        return
    node = draft.current(node)
    rule = RULES.get(getattr(node.function, "overloadpacket", None))
    if rule is None or draft.touched(node):
        yield node
        return
    if rule not in _ANY_DTYPE and any(value.dtype != torch.float32 for value in (*among(node.args, Value), node.outputs[0])):
        yield node
        return
    found = rule(Call(node, draft))
    if found is None:
        yield node
    elif isinstance(found, Value):
        draft.rename(node.outputs[0], found)
    elif isinstance(found, Iterator):
        yield from found
    else:
        yield found


# ---------------------------------------------------------------- views and copies


def _reshaped(call: Call) -> Node | Value:
    return reshape(call.name, call.node.args[0], call.out)


def _same(call: Call) -> Value:
    return call.node.args[0]


def _expand(call: Call) -> Value | None:
    return call.node.args[0] if call.node.args[0].shape == call.out.shape else None


def _slice(call: Call) -> Value | None:
    return call.node.args[0] if call.node.args[0].shape == call.out.shape and call.step == 1 else None


def _roll(call: Call) -> Value | None:
    return None if any(call.shifts) else call.node.args[0]


def _selected(call: Call) -> Iterator[Node] | Node | None:
    """One of what was stacked, or the only one."""
    x = call.node.args[0]
    axis = call.dim % len(x.shape)
    if x.shape[axis] == 1:
        return reshape(call.name, x, call.out)
    maker = call.draft.maker(x)
    if not isinstance(maker, Torch) or maker.function is not aten.stack.default:
        return None
    stack = Call(maker, call.draft)
    if stack.dim % len(x.shape) != axis:
        return None
    part = stack.tensors[call.index]
    return _copied(call, part) if part.dtype == x.dtype else None


def _stack(call: Call) -> Iterator[Node] | None:
    return _copied(call, call.tensors[0]) if len(call.tensors) == 1 else None


def _copied(call: Call, x: Value) -> Iterator[Node]:
    """A copy in the shape of the result; only the shape changes where nobody can tell."""
    copy = Value(x.shape, x.dtype)
    yield Torch(call.name, aten.clone.default, (x,), {}, (copy,))
    yield reshape(call.name, copy, call.out)


def _permuted(call: Call) -> Node | Value | None:
    x, places = call.node.args[0], list(range(len(call.out.shape)))
    if call.node.function is aten.permute.default:
        places = [place % len(places) for place in call.dims]
    elif call.node.function is aten.transpose.int:
        one, other = call.dim0 % len(places), call.dim1 % len(places)
        places[one], places[other] = other, one
    else:
        return None
    maker = call.draft.maker(x)
    if isinstance(maker, Torch) and maker.function is aten.permute.default:
        x, places = maker.args[0], [maker.args[1][place] for place in places]
    long = [place for place in places if x.shape[place] != 1]
    if long == sorted(long):  # no number moves
        return reshape(call.name, x, call.out)
    return Torch(call.name, aten.permute.default, (x, places), {}, (call.out,))


# ---------------------------------------------------------------- layers


def _convolution(call: Call) -> Iterator[Node] | None:
    weight, bias = call.number(call.weight), call.number(call.bias)
    if weight is None or (call.bias is not None and bias is None) or call.transposed:
        return None
    stride, padding, dilation = _pair(call.stride), _pair(call.padding), _pair(call.dilation)
    if len(call.out.shape) == 4:
        return iter([Conv(call.name, call.input, call.out, weight, bias, stride, padding, dilation, call.groups)])
    return _convolution_1d(call, weight, bias, stride[1], padding[1], dilation[1]) if len(call.out.shape) == 3 else None


def _convolution_1d(call: Call, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> Iterator[Node]:
    """One of height 1 in two dimensions."""
    x, out = (Value((*value.shape[:2], 1, value.shape[2])) for value in (call.input, call.out))
    yield reshape(call.name, call.input, x)
    yield Conv(call.name, x, out, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation), call.groups)
    yield reshape(call.name, out, call.out)


def _pair(sizes: Any) -> tuple[int, int]:
    first, second = (sizes[0], sizes[-1]) if isinstance(sizes, (tuple, list)) else (sizes, sizes)
    return int(first), int(second)


def _addmm(call: Call) -> Iterator[Node] | None:
    weight, bias = call.number(call.mat2), call.number(call.node.args[0])
    if weight is None or bias is None or bias.shape != weight.shape[1:] or call.beta != 1 or call.alpha != 1:
        return None
    return _linear(call, call.mat1, weight.t(), bias)


def _mm(call: Call) -> Iterator[Node] | None:
    weight = call.number(call.mat2)
    return (
        None if weight is None or call.number(call.node.args[0]) is not None else _linear(call, call.node.args[0], weight.t(), None)
    )


def _bmm(call: Call) -> Iterator[Node] | None:
    weight = call.number(call.mat2)
    if weight is None or not (weight.shape[0] == 1 or weight.stride(0) == 0):
        return None
    return _linear(call, call.node.args[0], weight[0].t(), None)


def _linear_layer(call: Call) -> Iterator[Node] | None:
    weight, bias = call.number(call.weight), call.number(call.bias)
    if weight is None or (call.bias is not None and bias is None):
        return None
    return _linear(call, call.input, weight, bias)


def _linear(call: Call, x: Value, weight: Tensor, bias: Tensor | None) -> Iterator[Node]:
    """A matrix product; where its input is a flattened one, of that itself."""
    if call.draft.behind(x, copied=True).shape[-1:] == weight.shape[1:]:
        x = call.draft.source(x, copied=True)
    out = Value((*x.shape[:-1], weight.shape[0]))
    if out.shape == call.out.shape:
        out = call.out
    yield Linear(call.name, x, out, weight, bias)
    if out is not call.out:
        yield reshape(call.name, out, call.out)


def _lstm(call: Call) -> Iterator[Node] | None:
    weight, recurrent = call.number(call.weight0), call.number(call.weight1)
    if call.mode != _LSTM or call.batch_sizes or weight is None or recurrent is None:
        return None
    bias = None
    if call.has_biases:
        one, other = call.number(call.weight2), call.number(call.weight3)
        if one is None or other is None:
            return None
        bias = one + other
    return _recurrent(call, weight, recurrent, bias)


def _recurrent(call: Call, weight: Tensor, recurrent: Tensor, bias: Tensor | None) -> Iterator[Node]:
    x = Value(call.input.shape)
    yield reshape(call.name, call.draft.source(call.input, copied=True), x)
    out, hidden, cell = call.node.outputs[:3]
    yield Lstm(call.name, x, call.hx_, call.cx_, out, hidden, cell, weight, recurrent, bias, call.reverse)


def _batch_norm(call: Call) -> Node | None:
    mean, variance = call.number(call.get("running_mean", None)), call.number(call.get("running_var", None))
    if mean is None or variance is None or call.read(1, 2) or call.get("training", False):
        return None
    gain, shift = call.number(call.weight), call.number(call.bias)
    if (call.weight is not None and gain is None) or (call.bias is not None and shift is None):
        return None
    scale = (variance.double() + call.eps).rsqrt()
    scale = scale if gain is None else scale * gain
    shift = -mean * scale if shift is None else shift - mean * scale
    return Affine(call.name, call.input, call.out, scale.float(), shift.float())


# ---------------------------------------------------------------- pointwise


def _activation(activation: Activation) -> Rule:
    return lambda call: Activate(call.name, call.node.args[0], call.out, activation)


def _clamp(call: Call) -> Node | None:
    if call.node.function is aten.hardtanh.default:
        low, high = call.min_val, call.max_val
    else:
        low, high = call.get("min", None), call.get("max", None)
    if any(isinstance(bound, Value) for bound in (low, high)):
        return None
    low, high = float("-inf") if low is None else float(low), float("inf") if high is None else float(high)
    return Activate(call.name, call.node.args[0], call.out, Activation("clamp", low, high))


def _gelu(call: Call) -> Node:
    kind = "gelu_tanh" if call.approximate == "tanh" else "gelu"
    return Activate(call.name, call.node.args[0], call.out, Activation(kind))


def _add(call: Call) -> Node | None:
    x, y = call.node.args[:2]
    if call.alpha != 1 or not isinstance(x, Value) or not isinstance(y, Value):
        return None
    for one, other in ((x, y), (y, x)):
        shift = call.number(other)
        found = None if shift is None else _affine(call, one, None, shift)
        if found is not None:
            return found
    return Add(call.name, x, y, call.out) if x.shape == y.shape == call.out.shape else None


def _mul(call: Call) -> Node | None:
    x, y = call.node.args[:2]
    if not isinstance(x, Value) or not isinstance(y, Value):
        return None
    for one, other in ((x, y), (y, x)):
        factor = call.number(other)
        if factor is not None:
            return _affine(call, one, factor, None)
        excites = len(one.shape) == 4 and one.shape[2:] != (1, 1) and other.shape == (*one.shape[:2], 1, 1)
        if excites and call.number(one) is None:
            return Scale(call.name, one, other, call.out)
    return None


def _affine(call: Call, x: Value, scale: Tensor | None, shift: Tensor | None) -> Node | None:
    """A product with, or a sum of, constants for each channel."""
    if x.shape != call.out.shape or len(x.shape) != 4:
        return None
    along = [None if each is None else constant_along(each, x.shape, 1) for each in (scale, shift)]
    if all(each is None for each in along):
        return None
    ones, zeros = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    return Affine(call.name, x, call.out, ones if along[0] is None else along[0], zeros if along[1] is None else along[1])


# ---------------------------------------------------------------- across places


def _max_pool(call: Call) -> Node | None:
    x = call.node.args[0]
    if len(x.shape) != 4 or call.read(1):
        return None
    window = _pair(call.kernel_size)
    return _pool(call, "max", window, _pair(call.stride or window), _pair(call.padding), _pair(call.dilation))


def _average_pool(call: Call) -> Node | None:
    if len(call.out.shape) != 4:
        return None
    window = _pair(call.kernel_size)
    found = _pool(call, "average", window, _pair(call.stride or window), _pair(call.padding), (1, 1))
    return found and replace(found, counts_padding=call.count_include_pad, divisor=call.divisor_override)


def _pool(
    call: Call, kind: str, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Pool | None:
    x = call.node.args[0]
    fit = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    if call.out.shape[2:] != tuple(fit):  # windows that stick out, as ceil_mode=True has them
        return None
    return Pool(call.name, x, call.out, kind, window, stride, padding, dilation)


def _adaptive(kind: str) -> Rule:
    def rule(call: Call) -> Node | Value | None:
        x, out = call.node.args[0], call.out
        if x.shape == out.shape and not call.read(1):
            return x
        if len(x.shape) != 4 or call.read(1) or any(size % parts for size, parts in zip(x.shape[2:], out.shape[2:], strict=True)):
            return None
        if kind == "average" and out.shape[2:] == (1, 1):
            return Mean(call.name, x, out)
        window = _pair([size // parts for size, parts in zip(x.shape[2:], out.shape[2:], strict=True)])
        return Pool(call.name, x, out, kind, window, window)

    return rule


def _mean(call: Call) -> Node | None:
    x = call.node.args[0]
    if call.node.function is not aten.mean.dim or len(x.shape) != 4 or call.dim is None or call.dtype is not None:
        return None
    return Mean(call.name, x, call.out) if {axis % 4 for axis in call.dim} == {2, 3} else None


def _cat(call: Call) -> Node | None:
    parts = tuple(call.tensors)
    if call.dim % 4 != 1 or len(call.out.shape) != 4 or any(len(part.shape) != 4 for part in parts):
        return None
    return Concat(call.name, parts, call.out)


_ANY_DTYPE: tuple[Rule, ...] = (_reshaped, _same, _expand, _slice, _selected, _stack, _roll, _permuted)

_LSTM = 2  # what torch calls it in `mkldnn_rnn_layer`

RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze), _reshaped),
    **dict.fromkeys((aten.detach, aten.alias, aten.lift_fresh), _same),
    aten.expand: _expand,
    aten.slice: _slice,
    aten.select: _selected,
    aten.stack: _stack,
    aten.roll: _roll,
    **dict.fromkeys((aten.permute, aten.transpose), _permuted),
    aten.convolution: _convolution,
    aten.addmm: _addmm,
    aten.mm: _mm,
    aten.bmm: _bmm,
    aten.linear: _linear_layer,
    aten.mkldnn_rnn_layer: _lstm,
    **dict.fromkeys(
        (aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training), _batch_norm
    ),
    aten.relu: _activation(Activation("clamp")),
    aten.relu6: _activation(Activation("clamp", 0.0, 6.0)),
    **dict.fromkeys((aten.hardtanh, aten.clamp, aten.clamp_min, aten.clamp_max), _clamp),
    aten.hardswish: _activation(Activation("hard_swish")),
    aten.hardsigmoid: _activation(Activation("hard_sigmoid")),
    aten.silu: _activation(Activation("silu")),
    aten.sigmoid: _activation(Activation("sigmoid")),
    aten.tanh: _activation(Activation("tanh")),
    aten.gelu: _gelu,
    aten.add: _add,
    aten.mul: _mul,
    aten.max_pool2d_with_indices: _max_pool,
    aten.avg_pool2d: _average_pool,
    aten._adaptive_avg_pool2d: _adaptive("average"),
    aten.adaptive_max_pool2d: _adaptive("max"),
    aten.mean: _mean,
    aten.cat: _cat,
}
