"""What is written in place is recorded as if nothing were: the recorded operations, computed one after the other, give the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from secateurs.graph import Trace, Value, trace_of
from secateurs.graph.memory import writes
from secateurs.graph.tracer import Tracer


class Of(nn.Module):
    """A function of an input, with a parameter and a buffer at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("state", torch.randn(4, 6))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def computed(trace: Trace, known: dict[Value, Tensor]) -> list[Tensor]:
    """The outputs of a trace, operation by operation; each value is made once, and there before it is read."""

    def real(nest: Any) -> Any:
        if isinstance(nest, Value):
            return known[nest]
        return [real(item) for item in nest] if isinstance(nest, tuple) else nest

    for op in trace.ops:
        assert not op.func._schema.is_mutable, op.func
        made = op.func(*map(real, op.args), **{name: real(item) for name, item in op.kwargs.items()})
        for value, tensor in zip(op.outputs, [made] if isinstance(made, Tensor) else made, strict=True):
            assert value not in known
            assert tensor.shape == value.shape
            known[value] = tensor.clone()
    return [known[value] for value in trace.outputs]


def check(function: Callable[[Any, Tensor], Any]) -> Trace:
    """A trace on fake tensors gives the model's own answers."""
    model, x = Of(function), torch.randn(4, 6)
    constants: dict[Value, Tensor] = {}
    find = Tracer._find

    def found_out(self: Tracer, tensor: Tensor) -> Any:
        known = find(self, tensor)
        if not isinstance(tensor, FakeTensor):
            constants.setdefault(known.value, tensor)
        return known

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracer, "_find", found_out)
        trace = trace_of(model, x)
    assert trace.fake, trace.notes
    known = constants | dict(
        zip(
            (*trace.parameters.values(), *trace.buffers.values(), *trace.inputs),
            (model.weight.detach().clone(), model.state.clone(), x.clone()),
            strict=True,
        )
    )
    with torch.no_grad():
        found = computed(trace, known)
        expected = model(x)
    for mine, theirs in zip(found, [expected] if isinstance(expected, Tensor) else expected, strict=True):
        assert torch.equal(mine, theirs)
    for name, value in trace.written.items():
        assert torch.equal(known[value], getattr(model, name))
    return trace


def both(first: Any, *more: Any) -> tuple[Any, ...]:
    return first, *more


def view_then(
    write: Callable[[Tensor], Any], view: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor] = lambda y: y[1:]
) -> Any:
    """Writes into a view; another view of the same tensor, taken before, is read after it."""

    def function(s: Any, x: Tensor) -> Any:
        y = x * 2
        before, part = other(y), view(y)
        write(part)
        return y + 1, before * 3, part - 1

    return function


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "a slice": lambda y: y[:, :4],
    "every second": lambda y: y[::2],
    "a row": lambda y: y[2],
    "a view": lambda y: y.view(2, 12),
    "two sizes": lambda y: y.unflatten(1, (2, 3)),
    "transposed": lambda y: y.t(),
    "two dimensions changed": lambda y: y.transpose(0, 1),
    "permuted": lambda y: y.view(2, 2, 6).permute(2, 0, 1),
    "one more dimension": lambda y: y[:, None],
    "one less": lambda y: y[:1].squeeze(0),
    "a diagonal": lambda y: y.diagonal(),
    "a part of a diagonal": lambda y: y.diagonal(1)[1:],
    "a piece": lambda y: y.split(2, dim=1)[1],
    "an uneven piece": lambda y: y.split([1, 2, 3], dim=-1)[2],
    "a chunk": lambda y: y.chunk(2)[0],
    "one of all": lambda y: y.unbind(1)[3],
    "detached": lambda y: y.detach(),
    "data": lambda y: y.data,
    "expanded by nothing": lambda y: y.expand(4, -1),
    "windows": lambda y: y.unfold(1, 3, 3)[:, 1],
    "a slice of a view of a slice": lambda y: y[1:3].view(12)[3:7],
    "moved": lambda y: y.view(2, 2, 6).movedim(0, -1)[..., 1],
    "real parts": lambda y: torch.view_as_complex(y.view(4, 3, 2)).real,
    "a complex view": lambda y: torch.view_as_complex(y.view(4, 3, 2))[1:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_written_through_a_view_is_in_its_base_and_in_other_views(view):
    check(view_then(lambda part: part.mul_(3), VIEWS[view]))


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_follows_what_is_written_into_its_base_and_into_other_views(view):
    def function(s: Any, x: Tensor) -> Any:
        y = x * 2
        part, corner = VIEWS[view](y), y[2:, 1:]
        inner = part[:1]
        y.add_(1)
        corner.neg_()
        return part + 1, inner * 2

    check(function)


def setting(y: Tensor) -> Tensor:
    y[1:3, 2] = 7.0
    y[:, ::2] *= 3
    y[y > 1] = 0.5
    y[[0, 2]] = y[[1, 3]]
    return y


def of_other_layout(y: Tensor) -> Tensor:
    part = y[:, 1:]
    y.transpose_(0, 1).mul_(2)
    y.unsqueeze_(0).add_(part.sum(1))
    part.t_()
    return y.squeeze_() + part.sum(0)


def kept_elsewhere(s: Any, x: Tensor) -> Any:
    y = x.exp()
    z = torch.empty(0)
    z.data = y
    z += 1
    return y * z


def buffer(s: Any, x: Tensor) -> Tensor:
    s.state[1:] = x[1:] * 2
    s.state += 1
    return x + s.state


def data(s: Any, x: Tensor) -> Tensor:
    s.weight.data = s.weight.data.clamp(-0.5, 0.5)
    return x * s.weight


def into(s: Any, x: Tensor) -> Any:
    whole = torch.zeros(4, 6)
    part = whole[:2]
    torch.add(x[:2], 1, out=part)
    torch.mul(x, 2, out=whole[:])
    least, places = torch.empty(4), torch.empty(4, dtype=torch.long)
    torch.min(x, 1, out=(least, places))
    grown = torch.empty(0)
    torch.cat([x, x], out=grown)
    ones = torch.ones(2, 3, out=torch.empty(2, 3))
    return whole + 1, part, least, places, grown * 2, ones


WRITING: dict[str, Callable[[Any, Tensor], Any]] = {
    "activations": lambda s, x: nn.functional.hardswish(nn.functional.relu(x * 2, inplace=True), inplace=True),
    "a chain": lambda s, x: x.clone().mul_(2).add_(x).clamp_(-1, 1).tanh_().pow_(2).sub_(s.weight).masked_fill_(x > 0, 0.1),
    "every way to set items": lambda s, x: setting(x * 2),
    "the layout": lambda s, x: of_other_layout(x * 2),
    "another data": kept_elsewhere,
    "out=": into,
    "integers and logic": lambda s, x: both((x > 0).logical_and_(x < 1), (x * 9).long().bitwise_and_(6).floor_divide_(2)),
    "with operators": lambda s, x: both(*_operators(x * 9)),
    "by index": lambda s, x: (x * 1).index_add_(0, torch.tensor([0, 2]), x[:2]).scatter_(1, torch.tensor([[1], [0]]), 3.0),
    "a copy": lambda s, x: torch.empty(4, 6).copy_(x[0]),
    "filled": lambda s, x: torch.empty_like(x).fill_(2).addcmul_(x, x, value=0.5).lerp_(x, 0.3),
    "zeroed": lambda s, x: both(x * 1, (x * 2)[1:].zero_()),
    "the input": lambda s, x: x.mul_(2) + x[0],
    "a triangle": lambda s, x: (x * 1).tril_(),
    "sorted into": lambda s, x: torch.sort(x, out=(torch.empty(4, 6), torch.empty(4, 6, dtype=torch.long))),
    "sums of products": lambda s, x: torch.zeros(4, 4).addmm_(x, s.weight.t()),
}


def _operators(y: Tensor) -> tuple[Tensor, ...]:
    n = y.long()
    m = n & 7
    n &= 5
    n |= 2
    n ^= 3
    m <<= 1
    m >>= 2
    y //= 2
    y %= 3
    y /= 4
    y **= 2
    return n, m, y


@pytest.mark.parametrize("writing", WRITING)
def test_what_writes_is_recorded_as_what_does_not(writing):
    check(WRITING[writing])


@pytest.mark.parametrize(("function", "name"), [(buffer, "state"), (data, "weight")])
def test_parameters_and_buffers_that_the_pass_writes_are_told(function, name):
    trace = check(function)
    assert list(trace.written) == [name]
    assert trace_of(Of(lambda s, x: x + s.state * s.weight), torch.zeros(4, 6)).written == {}


def test_tensors_of_one_storage_follow_each_other():
    """Parameters that are parts of one vector, and an input that is also a buffer."""
    model = Of(lambda s, x: (s.state.mul_(2), x + 1)[1])
    trace = trace_of(model, model.state.t()[:2])
    assert [op.name for op in trace.ops] == ["mul", "as_strided", "add"]
    assert trace.ops[1].inputs == trace.ops[0].outputs


@pytest.mark.parametrize("write", [Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.random_])
def test_noise_that_is_written_is_noise(write):
    trace = trace_of(Of(lambda s, x: write(x * 1)), torch.zeros(4, 6))
    assert trace.ops[-1].outputs == tuple(trace.outputs)
    assert not trace.ops[-1].func._schema.is_mutable


COMPOSED = {"dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_"}
"""Torch takes these apart before anything is recorded."""

UNTOLD = {"fill_diagonal_", "polygamma_", "set_", "requires_grad_"}
"""These are told as they are, and what they touch is pinned."""


def test_every_operation_that_writes_has_a_like_that_does_not():
    """``relu_`` is told as ``relu``: by its name and arguments, not by a list."""
    without = set()
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default") if name.startswith("aten::") else None
        if func is None or torch.Tag.inplace not in func.tags:
            continue
        wrote = writes(func)
        if wrote is not None and wrote.functional is None:
            without.add(packet)
    assert {name for name in without if not name.startswith("_")} <= COMPOSED | UNTOLD
    assert writes(torch.ops.aten.hardswish_.default).functional is torch.ops.aten.hardswish.default
    assert writes(torch.ops.aten.zeros.out).functional is torch.ops.aten.zeros.default
