"""Recording one forward pass: it works with whatever a model is made of, and leaves nothing behind."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import secateurs as sc
from secateurs import models
from secateurs.forward import buffers_in, modules_in, parameters_in
from secateurs.graph import Snapshot, analyse, trace_of
from secateurs.graph.fake_tensors import Fakes
from secateurs.graph.tagged_sizes import Tagged
from secateurs.nested import tensors_in


class Caching(nn.Module):
    """A module that writes down all that a module can: numbers, tensors, entries of dicts and lists, and a buffer's values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.width, self.calls = 8, 0
        self.store: dict[str, Any] = {}
        self.history: list[Any] = ["begun"]
        self.seen: set[int] = set()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("lazy", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last_width = self.width
        self.seen.add(x.shape[0])
        self.history.append(x)
        self.store["table"] = torch.arange(4)[:, None] * self.first.weight[0, 0]
        self.kept = x.mean()
        self.lazy = x.clone()
        self.count += 1
        return self.last(self.norm(self.first(x).view(-1, self.width)).relu())


def every_value(model: nn.Module) -> Iterator[Any]:
    """Whatever hangs on the modules, in containers too."""
    for module in model.modules():
        waiting = list(module.__dict__.values())
        while waiting:
            value = waiting.pop()
            yield value
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple, set)):
                waiting += value


def check_untouched(model: nn.Module, run: Callable[[], Any]) -> None:
    """After a run every parameter is the same object, and every value what it was."""
    for place, module in enumerate(model.modules()):
        module.train(place % 2 == 0)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    values = {name: tensor.clone() for name, tensor in {**parameters, **buffers}.items()}
    attributes = [
        {key: (type(value), value) for key, value in module.__dict__.items() if isinstance(value, (int, float, str))}
        for module in model.modules()
    ]
    keys = [list(module.__dict__) for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    state = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), state)
    assert [list(module.__dict__) for module in model.modules()] == keys
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks
    now = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    assert all(now[name] is tensor for name, tensor in {**parameters, **buffers}.items())
    assert all(torch.equal(now[name], value) for name, value in values.items())
    for module, before in zip(model.modules(), attributes, strict=True):
        assert {key: (type(module.__dict__[key]), module.__dict__[key]) for key in before} == before
    assert not [value for value in every_value(model) if isinstance(value, (FakeTensor, Tagged))]


@pytest.mark.parametrize("run", [trace_of, analyse], ids=["trace_of", "analyse"])
def test_a_trace_leaves_nothing_behind(run):
    model, example = Caching(), torch.randn(4, 6)
    check_untouched(model, lambda: run(model, example))
    assert model.calls == 0 and model.history == ["begun"] and model.store == {} and model.seen == set()


def test_nothing_is_left_where_the_model_fails():
    class Failing(Caching):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("no more")

    model, example = Failing(), torch.randn(4, 6)

    def run() -> None:
        with pytest.raises(sc.TaskError, match="RuntimeError: no more"):
            trace_of(model, example)

    check_untouched(model, run)


def test_nothing_is_left_of_a_trace_on_real_numbers():
    class Deciding(Caching):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out if float(out.sum()) > 1e9 else -out

    model, example = Deciding(), torch.randn(4, 6)
    trace = None

    def run() -> None:
        nonlocal trace
        trace = trace_of(model, example)

    check_untouched(model, run)
    assert not trace.fake


def test_recurrent_layers_have_their_weights_back():
    model = nn.LSTM(6, 8, num_layers=2, bidirectional=True)
    example = torch.randn(4, 2, 6)
    check_untouched(model, lambda: trace_of(model, example))
    assert all(weight is getattr(model, name) for weight, name in zip(model._flat_weights, model._flat_weights_names, strict=True))
    model(torch.randn(4, 2, 6))[0].sum().backward()
    assert model.weight_ih_l0.grad is not None


@functools.lru_cache
def table_of(length: int) -> Tensor:
    return torch.arange(length).float()


def test_a_functions_cache_holds_no_fake_tensors():
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * table_of(4)

    trace_of(Cached(), torch.randn(2, 4))
    assert not isinstance(table_of(4), FakeTensor)
    assert table_of(4).tolist() == [0, 1, 2, 3]


def test_the_callers_settings_are_as_before():
    settings = (
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mkldnn.is_available,
        torch._C._get_mkldnn_enabled,
        torch.backends.cuda.math_sdp_enabled,
        torch.backends.cuda.flash_sdp_enabled,
        torch.is_grad_enabled,
    )
    before = [setting() for setting in settings]
    trace_of(nn.TransformerEncoderLayer(8, 2, 8), torch.randn(2, 3, 8))
    assert [setting() for setting in settings] == before


def test_no_gradient_comes_of_it():
    model, x = nn.Linear(3, 2), torch.randn(1, 3, requires_grad=True)
    (model(x).sum() * 2).backward()
    gradient = model.weight.grad
    analyse(model, x)
    assert model.weight.grad is gradient and model.weight.requires_grad


# ------------------------------------------------------------------------------------------------ what a model may be


def widths(model: nn.Module, example: Any) -> dict[str, int]:
    return {site.name: site.units for site in sc.find_sites(model, sc.Channel(), example)}


def test_a_branch_that_depends_on_numbers_is_noted():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.small, self.large = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.large(h) if h.abs().max() > 1e6 else self.small(h)

    model, example = Branching(), torch.randn(2, 3)
    sites = sc.find_sites(model, sc.Channel(), example)
    note = {item.name: item.reason for item in sites.skipped}["trace"]
    assert note.startswith("the pass was traced on real numbers (DataDependentOutputException")
    assert note.endswith("only the branch that this example takes was seen")
    assert [site.name for site in sites] == ["first"]
    assert "large.weight" not in {member.parameter for member in sites[0].members}


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    note: str = "text"


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.wrap = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2), wrap

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        h = self.a(x).relu()
        g = self.b(h if scale is None else h * scale)
        return self.wrap(self.c(g), g)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, h: (y, [h]),
        lambda y, h: {"logits": y, "inside": {"hidden": h}},
        lambda y, h: OrderedDict(logits=y, hidden=(h, None)),
        lambda y, h: Output(y, (h,)),
    ],
    ids=["tuple", "dict", "OrderedDict", "dataclass"],
)
def test_all_tensors_of_the_output_are_pinned(wrap):
    model = Wrapped(wrap)
    assert widths(model, torch.randn(2, 3)) == {"a": 8}
    reasons = {item.name: item.reason for item in sc.find_sites(model, sc.Channel(), torch.randn(2, 3)).skipped}
    assert reasons == {"b": "the model's output", "c": "the model's output"}


@pytest.mark.parametrize(
    "example",
    [(torch.randn(2, 3),), [torch.randn(2, 3), torch.randn(2, 1)], {"x": torch.randn(2, 3), "scale": torch.ones(2, 1)}],
    ids=["tuple", "list", "mapping"],
)
def test_examples_of_every_kind(example):
    assert widths(Wrapped(lambda y, h: y), example) == {"a": 8, "b": 6}


def test_an_input_that_meets_an_axis_pins_it():
    with pytest.raises(sc.PatternError, match="a: the model's input"):
        sc.find_sites(Wrapped(lambda y, h: y), sc.Channel(), {"x": torch.randn(2, 3), "scale": torch.ones(2, 8)}, only="a")


def test_outputs_of_transformers_and_their_caches():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=11)
    model = transformers.GPT2LMHeadModel(config)
    ids = torch.arange(6).view(2, 3)
    assert {"transformer.h.0.mlp.c_fc", "transformer.h.0.attn:heads"} <= widths(model, {"input_ids": ids}).keys()
    check_untouched(model, lambda: trace_of(model, {"input_ids": ids, "use_cache": True}))


def test_a_module_that_is_shared_or_called_twice_is_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inside, self.leave = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.alias = nn.ModuleList([self.inside])

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.leave(self.alias[0](self.inside(h).relu()).relu())

    model, example = Twice().double(), torch.randn(2, 3).double()
    [site] = sc.find_sites(model, sc.Channel(), example)
    assert (site.name, site.units) == ("enter", 8)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.random()), sc.uniform(sparsity=0.5), sc.Task(example=example))
    expected = model(example)
    sc.shrink_(model, masks)
    assert model.inside is model.alias[0] and model.inside.weight.shape == (4, 4)
    torch.testing.assert_close(model(example), expected, rtol=1e-9, atol=1e-9)


def test_bare_parameters_and_functions_are_seen():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8, 2))])

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weights[0]).relu() @ self.weights[1]

    assert widths(Bare(), torch.randn(2, 3)) == {"weights.0": 8}


def test_a_model_without_memory_is_analysed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 1 << 16), nn.ReLU(), nn.Linear(1 << 16, 2))
    example = torch.randn(2, 3, device="meta")
    assert widths(model, example) == {"0": 1 << 16}
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_name_and_a_line_for_every_operation():
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    trace = trace_of(nn.Sequential(nn.Linear(3, 4), nn.Sequential(Inner())), torch.randn(1, 3))
    [relu] = [op for op in trace.ops if op.name == "relu"]
    line = Inner.forward.__code__.co_firstlineno + 1
    assert (relu.module, relu.where) == ("1.0", f"tests/test_trace.py:{line}")


# ------------------------------------------------------------------------------------------------ what is looked up

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "elementwise": lambda x, y: x + y,
    "whole number": lambda x, y: x * 2,
    "floating number": lambda x, y: x * 2.0,
    "view": lambda x, y: x.transpose(0, 1),
    "offset": lambda x, y: x[1:, 1:],
    "offset of the offset": lambda x, y: x[1:][1:].as_strided((2,), (1,), 2),
    "pieces": lambda x, y: x.split(1),
    "pieces of pieces": lambda x, y: x.split(1)[1][:, 1:],
    "several results": lambda x, y: x.max(1),
    "in place": lambda x, y: x.clone().relu_(),
    "in place, other shape": lambda x, y: x.clone().unsqueeze_(0),
    "in place, seen by a view": lambda x, y: x.clone().t_()[0],
    "strides": lambda x, y: x.t().clone(),
    "list": lambda x, y: torch.cat([x, y]),
    "new": lambda x, y: torch.zeros(2, 3, dtype=torch.int64),
    "like": lambda x, y: x.new_ones(4),
    "index": lambda x, y: x[torch.tensor([0, 1])],
    "dtype": lambda x, y: x.to(torch.float64),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_is_looked_up_is_what_the_operation_would_make(operation):
    operands = [
        (torch.randn(3, 4), torch.randn(3, 4)),
        (torch.randn(3, 4).double(), torch.randn(3, 4).double()),
        (torch.randn(4, 3).t(), torch.randn(3, 4)),
        (torch.ones(3, 4, dtype=torch.int64), torch.randn(3, 4)),
        (torch.randn(4, 5)[1:, 1:], torch.randn(3, 4)),
    ]
    fakes = Fakes()

    def shapes(value: Any) -> Any:
        return [(tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset()) for tensor in tensors_in(value)]

    for _ in range(3):
        for x, y in operands:
            with torch.no_grad(), fakes.running():
                found = operation(fakes.of(x), fakes.of(y))
            assert all(type(tensor) is FakeTensor and tensor.device.type == "cpu" for tensor in tensors_in(found))
            with torch.no_grad():
                assert shapes(found) == shapes(operation(x, y))


def test_the_default_dtype_counts():
    x, fakes = torch.ones(3, dtype=torch.int64), Fakes()
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            with torch.no_grad(), fakes.running():
                assert (fakes.of(x) / 2).dtype == dtype
        finally:
            torch.set_default_dtype(torch.float32)


def test_numbers_that_are_known_stay_known():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            _ = y.shape[0] + x.long().sum() + 1
            for length in (2, 3):
                y = y[:, : int(torch.tensor(length) + 1)]
            return y

    for _ in range(2):
        assert trace_of(Table(), torch.randn(2, 4)).outputs[0].shape == (2, 3)
        assert trace_of(Table(), torch.randn(2, 4)).fake


def test_a_second_trace_is_the_first_one():
    model, example = models.mobilenet_v2(), torch.randn(1, 3, 32, 32)
    first, second = (trace_of(model, example) for _ in range(2))
    told = [
        [(op.name, op.module, op.where, [value.shape for value in op.outputs]) for op in trace.ops] for trace in (first, second)
    ]
    assert told[0] == told[1]
    assert len({value for op in second.ops for value in op.outputs}) == sum(len(op.outputs) for op in second.ops)


def test_calls_of_modules_are_as_before():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    before = nn.Module.__call__
    trace_of(nn.Linear(3, 2), torch.randn(1, 3))
    assert nn.Module.__call__ is before
    with pytest.raises(sc.TaskError):
        trace_of(Failing(), torch.randn(1, 3))
    assert nn.Module.__call__ is before


# ------------------------------------------------------------------------------------------------ what is kept


class Simple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.rows, self.names = nn.Linear(3, 8), nn.Linear(8, 2), 4, {"of": ["rows"]}
        self.settings = SimpleNamespace(wide=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


CHANGES: dict[str, Callable[[Simple], Any]] = {
    "an attribute": lambda model: setattr(model, "rows", 2),
    "another attribute": lambda model: setattr(model, "more", 2),
    "a container": lambda model: model.names["of"].append("columns"),
    "settings": lambda model: setattr(model.settings, "wide", False),
    "a module": lambda model: setattr(model, "first", nn.Linear(3, 8)),
    "a module's class": lambda model: setattr(model.first, "__class__", nn.modules.linear.NonDynamicallyQuantizableLinear),
    "a hook": lambda model: model.first.register_forward_hook(lambda *_: None),
    "a forward": lambda model: setattr(model.first, "forward", lambda x: x),
    "a parameter": lambda model: setattr(model.first, "weight", nn.Parameter(torch.ones(8, 3))),
    "a shape": lambda model: setattr(model.first.weight, "data", torch.ones(9, 3)),
    "a dtype": lambda model: model.double(),
    "a buffer": lambda model: model.register_buffer("table", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_structure_holds_until_more_than_numbers_change(change):
    model, example = Simple(), torch.randn(2, 3)
    before = Snapshot(model, example)
    with torch.no_grad():
        model.first.weight.zero_()
        model.last.weight.data = torch.ones(2, 8)
    model(example).sum().backward()
    assert before.holds(model, example)
    assert (
        not before.holds(model, torch.randn(2, 3))
        and not before.holds(model, {"x": example})
        and not before.holds(Simple(), example)
    )
    change(model)
    assert not before.holds(model, example)


def test_attributes_that_contain_themselves_are_no_trouble():
    model, example = Simple(), torch.randn(2, 3)
    model.names["itself"] = model.names
    assert Snapshot(model, example).holds(model, example)


# ------------------------------------------------------------------------------------------------ refused


def refused(model: Any, message: str, error: type[Exception] = sc.SecateursError) -> None:
    for act in (
        lambda: sc.find_sites(model, sc.Channel(), torch.randn(1, 3)),
        lambda: sc.shrink_(model, example=torch.randn(1, 3)),
    ):
        with pytest.raises(error, match=message):
            act()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    refused(
        torch.jit.script(nn.Linear(3, 2)), "is a scripted model, whose code cannot be traced: prune the nn.Module, then script it"
    )
    refused(torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)), "is a scripted model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_are_refused():
    refused(torch.compile(nn.Linear(3, 2)), r"the model is compiled: prune model\._orig_mod, then compile again")


def test_wrapped_models_are_refused():
    refused(nn.DataParallel(nn.Linear(3, 2)), r"wrapped in DataParallel: prune model\.module, then wrap again")


def test_an_example_is_needed_and_must_fit():
    for act in (lambda: sc.find_sites(nn.Linear(3, 2), sc.Channel()), lambda: sc.shrink_(nn.Linear(3, 2))):
        with pytest.raises(sc.TaskError, match="there is no example input"):
            act()
    with pytest.raises(sc.TaskError, match=r"the model rejects the example \(tensor \(1, 4\)"):
        sc.find_sites(nn.Linear(3, 2), sc.Channel(), torch.randn(1, 4))
    with pytest.raises(sc.TaskError, match="float64 but the model's weights are"):
        sc.find_sites(nn.Linear(3, 2), sc.Channel(), torch.randn(1, 3).double())


def test_what_a_model_consists_of_is_told_as_torch_tells_it():
    shared, tied = nn.Sequential(nn.BatchNorm1d(4)), nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Sequential(tied, shared), "b": shared, "c": nn.Linear(4, 4), "none": nn.Module()})
    model["c"].weight, model["none"].gone = tied.weight, None
    model["none"].register_module("nothing", None)
    for again in (False, True):
        assert list(modules_in(model, again).items()) == list(model.named_modules(remove_duplicate=not again))
        for ours, theirs in ((parameters_in, model.named_parameters), (buffers_in, model.named_buffers)):
            expected = list(theirs(remove_duplicate=not again))
            assert [(name, id(tensor)) for name, tensor in ours(model, again).items()] == [(n, id(t)) for n, t in expected]
