"""Running a network with torch alone: the reference, what runs without a compiler, and what runs between native steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateurs.nested import Value, among, changed, leaves, tensors_in
from secateurs.run.network.error import CompileError
from secateurs.run.network.fits import difference
from secateurs.run.network.nodes import (
    Activate,
    Activation,
    Add,
    Affine,
    Attention,
    Concat,
    Conv,
    Linear,
    Lstm,
    Mean,
    Multiply,
    Network,
    Node,
    Norm,
    Pool,
    Rotary,
    Scale,
    Torch,
    inputs_of,
    outputs_of,
)


def interpret(network: Network, inputs: Any) -> Any:
    """What the model that a network was recorded from returns for these inputs.

    >>> from secateurs.run.recording.one_call import network_of
    >>> interpret(network_of(torch.nn.Flatten(), torch.zeros(1, 2, 3)), torch.ones(1, 2, 3)).shape
    torch.Size([1, 6])
    """
    return interpreter(network)(inputs)


def interpreter(network: Network) -> Callable[[Any], Any]:
    """The function that a network is, prepared once for many calls."""
    gives = _results(network)
    run = program(network.nodes, network.inputs, gives, network.constants)
    alone = isinstance(network.result, Value)

    def call(inputs: Any) -> Any:
        unlike = difference(network, inputs)
        if unlike is not None:
            raise CompileError(f"{unlike}: compile again for inputs like this one")
        with torch.no_grad():
            found = run(*(leaf for _, leaf in leaves(inputs) if isinstance(leaf, Tensor)))
        return found[0] if alone else changed(network.result, dict(zip(gives, found, strict=True)).__getitem__, objects=True)

    return call


def bare(network: Network) -> Callable[[Tensor], Tensor]:
    """`interpreter` for a network from one tensor to one tensor, and inputs that are known to fit."""
    run = torch.no_grad()(program(network.nodes, network.inputs, _results(network), network.constants))
    return lambda x: run(x)[0]


def _results(network: Network) -> list[Value]:
    return list(dict.fromkeys(value for _, value in leaves(network.result) if isinstance(value, Value)))


def program(
    nodes: Iterable[Node], takes: Sequence[Value], gives: Sequence[Value], constants: Mapping[Value, Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """A function that runs nodes: tensors of ``takes`` in, a tuple of those of ``gives`` out. What is not needed any more is freed.

    It is written as Python source and then compiled, as nothing else costs so little for each step; all that is in the source are
    names made here. The gradient mode is the caller's to choose.

    >>> x, y = Value((2,)), Value((2,))
    >>> program([Activate("", x, y, Activation("clamp"))], [x], [y], {})(torch.tensor([-1.0, 1.0]))
    (tensor([0., 1.]),)
    """
    nodes = list(nodes)
    last = {value: time for time, node in enumerate(nodes) for value in inputs_of(node)}
    numbers = count()
    names: dict[Value, str] = {}
    space: dict[str, Any] = {}

    def named(thing: Any) -> str:
        if isinstance(thing, Value) and thing in names:
            return names[thing]
        if isinstance(thing, Value) and thing in constants:
            names[thing] = name = f"c{next(numbers)}"
            space[name] = constants[thing]
            return name
        if isinstance(thing, (tuple, list)) and any(True for _ in among(thing, Value)):
            return f"[{', '.join(map(named, thing))}]"
        if thing is None or type(thing) in (bool, int):
            return repr(thing)
        space[name := f"k{next(numbers)}"] = thing
        return name

    names.update((value, f"v{next(numbers)}") for value in takes)
    lines = [f"def run({', '.join(names[value] for value in takes)}):"]
    for time, node in enumerate(nodes):
        function, args, kwargs = step(node)
        outputs = outputs_of(node)
        call = f"({', '.join([*map(named, args), *(f'{key}={named(item)}' for key, item in kwargs.items())])})"
        names.update((value, f"v{next(numbers)}") for value in outputs)
        to = "".join(f"{names[value]}, " for value in outputs)
        to = f"{to} = " if len(outputs) > 1 or _many(node) else f"{to.removesuffix(', ')} = "
        lines.append(f"    {to if outputs else ''}{named(function)}{call}")
        dead = [value for value in dict.fromkeys((*inputs_of(node), *outputs)) if last.get(value, time) == time]
        dead = [value for value in dead if value not in constants and value not in gives]
        if dead:
            lines.append(f"    del {', '.join(names[value] for value in dead)}")
    lines.append(f"    return {''.join(f'{named(value)}, ' for value in gives) or '()'}")
    exec(compile("\n".join(lines), "<network>", "exec"), space)
    return space["run"]


def step(node: Node) -> tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    """A node as a function of torch with its arguments, values in place of tensors."""
    if isinstance(node, Torch):
        many = _many(node)
        return (_flat(node.function) if many else node.function), node.args, node.kwargs
    function: Callable[..., Any] = _STEPS[type(node)](node)
    activation = getattr(node, "activation", None)
    if activation is not None and not isinstance(node, Activate):
        function = _after(function, activated(activation))
    return function, inputs_of(node), {}


def _many(node: Node) -> bool:
    """Whether a node's function returns a sequence of tensors."""
    if not isinstance(node, Torch) or not isinstance(node.function, torch._ops.OpOverload):
        return False
    returns = node.function._schema.returns
    return len(returns) != 1 or not isinstance(returns[0].type, torch._C.TensorType)


def _flat(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: tensors_in(function(*args, **kwargs))


def _after(function: Callable[..., Tensor], then: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *args: then(function(*args))


def activated(activation: Activation) -> Callable[[Tensor], Tensor]:
    """An activation as a function of torch.

    >>> activated(Activation("clamp", 0, 6))(torch.tensor([-1.0, 7.0]))
    tensor([0., 6.])
    """
    if activation.kind == "clamp":
        return lambda x: x.clamp(activation.low, activation.high)
    return _ACTIVATIONS[activation.kind]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard_swish": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _conv(node: Conv) -> Callable[..., Tensor]:
    def conv(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = functional.conv2d(x, node.weight, node.bias, node.stride, node.padding, node.dilation, node.groups)
        return y if residual is None else y.add_(residual)

    return conv


def _linear(node: Linear) -> Callable[..., Tensor]:
    def linear(x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = functional.linear(x, node.weight, node.bias)
        return y if residual is None else y.add_(residual)

    return linear


def _pool(node: Pool) -> Callable[[Tensor], Tensor]:
    if node.kind == "max":
        return lambda x: functional.max_pool2d(x, node.window, node.stride, node.padding, node.dilation)
    return lambda x: functional.avg_pool2d(
        x, node.window, node.stride, node.padding, count_include_pad=node.counts_padding, divisor_override=node.divisor
    )


def _affine(node: Affine) -> Callable[[Tensor], Tensor]:
    shape = (-1, *(1 for _ in node.x.shape[2:]))
    scale, shift = node.scale.view(shape), node.shift.view(shape)
    return lambda x: torch.addcmul(shift, x, scale)


def _lstm(node: Lstm) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    biases = [] if node.bias is None else [node.bias, torch.zeros_like(node.bias)]
    weights = [node.weight, node.recurrent, *biases]

    def lstm(x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.flip(0) if node.backwards else x
        out, last, memory = torch.lstm(x, (hidden[None], cell[None]), weights, bool(biases), 1, 0.0, False, False, False)
        return out.flip(0) if node.backwards else out, last[0], memory[0]

    return lstm


def _norm(node: Norm) -> Callable[[Tensor], Tensor]:
    size = node.weight.shape[0]

    def norm(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (node.groups, size))
        if node.centred:
            return functional.layer_norm(parts, (size,), node.weight, node.bias, node.eps).flatten(-2)
        found = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + node.eps) * node.weight
        return (found if node.bias is None else found + node.bias).flatten(-2)

    return norm


def _rotary(node: Rotary) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    width = node.cos.shape[-1]

    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.unflatten(-1, (node.heads, -1))
        first, second = heads[..., : width // 2], heads[..., width // 2 : width]
        turned = torch.cat([-second, first], -1)
        found = heads[..., :width] * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)
        return torch.cat([found, heads[..., width:]], -1).flatten(-2)

    return rotary


def _attention(node: Attention) -> Callable[..., Tensor]:
    def attention(x: Tensor, keys: Tensor, values: Tensor, *past: Tensor) -> Tensor:
        many, mask = node.heads // node.of_keys, None
        if past:
            count, before = x.shape[1], int(past[0])
            for held, new in zip(past[1:], (keys, values), strict=True):
                held[before : before + count] = new[0]
            keys, values = (held[None, : before + count] for held in past[1:])
            mask = torch.ones(count, before + count, dtype=torch.bool).tril(before)
        query, key, value = (
            each.unflatten(-1, (heads, -1)).transpose(1, 2)
            for each, heads in ((x, node.heads), (keys, node.of_keys), (values, node.of_keys))
        )
        key, value = (each.repeat_interleave(many, 1) for each in (key, value))
        causal = node.causal and mask is None
        found = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=node.scale)
        return found.transpose(1, 2).flatten(-2)

    return attention


_STEPS: dict[type, Callable[[Any], Callable[..., Any]]] = {
    Conv: _conv,
    Linear: _linear,
    Pool: _pool,
    Mean: lambda node: lambda x: x.mean((2, 3), keepdim=len(node.out.shape) == 4),
    Add: lambda node: torch.add,
    Scale: lambda node: torch.mul,
    Affine: _affine,
    Activate: lambda node: activated(node.activation),
    Concat: lambda node: lambda *parts: torch.cat(parts, 1),
    Lstm: _lstm,
    Norm: _norm,
    Multiply: lambda node: torch.mul,
    Rotary: _rotary,
    Attention: _attention,
}
