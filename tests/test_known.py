"""What zeros make certain: proven for every input, and never more than is so."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph import Structure, Value, analyse, interpret
from secateurs.shrink.same_answers import Check

sys.path.insert(0, str(Path(__file__).parent))

from random_networks import network
from random_pruning import outcome

# ---------------------------------------------------------------- the law, on random networks


def computed(structure: Structure, model: nn.Module, *inputs: Tensor) -> dict[Value, Tensor]:
    """Every tensor of a trace for other numbers: a trace writes each value once, so that it can be run."""
    trace = structure.trace
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    known = {value: tensors[name].detach() for held in (trace.parameters, trace.buffers) for name, value in held.items()}
    known.update(zip(trace.inputs, inputs, strict=True))

    def real(nest: Any) -> Any:
        if isinstance(nest, Value):
            return known[nest]
        return type(nest)(real(item) for item in nest) if isinstance(nest, (tuple, list)) else nest

    for op in trace.ops:
        if any(value not in known for value in op.inputs):
            continue  # begins with a constant of the code's own
        run = torch.ops.aten.reshape.default if op.name == "view" else op.func  # strides may be others than in the fake pass
        made = run(*real(op.args), **{key: real(item) for key, item in op.kwargs.items()})
        for value, tensor in zip(op.outputs, made if isinstance(made, (tuple, list)) else [made], strict=False):
            known[value] = tensor
    return known


@torch.no_grad()
@pytest.mark.parametrize("first", range(0, 20, 10))
def test_whatever_is_said_to_be_known_is_so_for_other_numbers(first: int) -> None:
    numbers, zeros, sames, positives = 0, 0, 0, 0
    for seed in range(first, first + 10):
        model, example = network(seed, literals=False)
        model, example = model.double(), example.double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim:
                rows = torch.rand(len(parameter), generator=generator) < 0.4
                parameter[rows] = 0
        structure = analyse(model, example)
        knowing = interpret(model, structure)
        assert not knowing.failed
        real = computed(structure, model, 3 * torch.randn(example.shape, generator=generator, dtype=torch.float64))
        for value, tensor in real.items():
            told = knowing.of(value)
            known = told.known.expand(tensor.shape)
            expected = told.number.double().expand(tensor.shape)
            torch.testing.assert_close(tensor.double()[known], expected[known], rtol=1e-6, atol=1e-9)
            zeros += int((known & (expected == 0)).sum())
            numbers += int((known & (expected != 0)).sum())
            if told.same is not None:
                sames += 1
                assert torch.equal(tensor, real[told.same])
            if told.positive:
                positives += 1
                assert bool((tensor >= 0).all())
    assert numbers > 1000 and zeros > 1000 and sames and positives


def test_shrunk_networks_answer_as_the_masked_ones_at_other_inputs_and_sizes() -> None:
    """A few of what `benchmarks/equality.py` does with many thousands."""
    folded, asked = 0, 0
    for seed in range(20_000, 20_020):
        found = outcome(seed)
        assert not found.wrong, f"seed {seed} ({found.pattern}): off by {found.worst:.1e}"
        folded, asked = folded + found.folded, asked + found.asked
    assert folded > 3 and asked > 30


# ---------------------------------------------------------------- rule by rule


class Unit(nn.Module):
    """Channel 0 of ``first`` is 1 for every input; ``code`` does something with it, and then ``last`` reads it."""

    def __init__(self, code: Any, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.code, self.last = nn.Conv2d(3, 4, 1), code, last or nn.Conv2d(4, 2, 1)
        self.extra, self.deep = nn.Conv2d(3, 1, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.table = nn.Parameter(torch.randn(1, 4, 20, 20))
        with torch.no_grad():
            self.first.weight[0], self.first.bias[0] = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, self.first(x), x))


STAYS = {
    "relu": lambda m, h, x: h.relu(),
    "gelu": lambda m, h, x: F.gelu(h),
    "scaled": lambda m, h, x: 3 * h + 1,
    "max pool with padding": lambda m, h, x: F.max_pool2d(h, 3, 1, 1),
    "mean pool": lambda m, h, x: F.avg_pool2d(h, 2),
    "adaptive pool": lambda m, h, x: F.adaptive_avg_pool2d(h, 2),
    "nearest": lambda m, h, x: F.interpolate(h, scale_factor=2),
    "bilinear": lambda m, h, x: F.interpolate(h, scale_factor=2, mode="bilinear"),
    "reflected": lambda m, h, x: F.pad(h, (1, 1, 1, 1), mode="reflect"),
    "padded with the same": lambda m, h, x: F.pad(h, (1, 1, 1, 1), value=1.0),
    "in place": lambda m, h, x: F.relu_(h.clone()).mul_(2),
    "there and back": lambda m, h, x: h.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, x.shape[2:]),
    "with itself": lambda m, h, x: h * h.sigmoid(),
    "a choice that agrees": lambda m, h, x: torch.where(x[:, :1] > 0, h, h.clone()),
}
GOES = {
    "times a map": lambda m, h, x: h * m.extra(x).sigmoid(),
    "times one number a sample": lambda m, h, x: h * x.mean((1, 2, 3), keepdim=True),
    "plus the input": lambda m, h, x: h + x[:, :1],
    "convolved with padding": lambda m, h, x: m.deep(h),
    "padded with zeros": lambda m, h, x: F.pad(h, (1, 1, 1, 1)),
    "mean pool with padding": lambda m, h, x: F.avg_pool2d(h, 3, 1, 1),
    "ceiling mean pool": lambda m, h, x: F.avg_pool2d(h, 3, 2, ceil_mode=True),
    "bicubic": lambda m, h, x: F.interpolate(h, scale_factor=2, mode="bicubic"),
    "sum over places": lambda m, h, x: h.sum((2, 3), keepdim=True),
    "normalised over places": lambda m, h, x: F.instance_norm(h + x[:, :1]),
    "softmax over places": lambda m, h, x: h.flatten(2).softmax(-1).unflatten(2, x.shape[2:]),
    "times the number of places": lambda m, h, x: h * x.shape[2],
    "padded by the size": lambda m, h, x: F.avg_pool2d(h, 2, padding=x.shape[2] % 2),
    "a table of places": lambda m, h, x: h * m.table[:, :, : x.shape[2], : x.shape[3]],
    "a choice": lambda m, h, x: torch.where(x[:, :1] > 0, h, 0 * h),
    "dropout that stays on": lambda m, h, x: F.dropout(h, 0.5, training=True),
    "written in part": lambda m, h, x: torch.cat([h[:, :, :1] * 0, h[:, :, 1:]], 2),
}


def shrunk(model: nn.Module, example: Tensor) -> tuple[nn.Module, Any]:
    masked = copy.deepcopy(model)
    return masked, sc.shrink_(model, example=example)


def same_everywhere(masked: nn.Module, small: nn.Module, sizes: tuple[int, ...] = (6, 8, 13)) -> None:
    for size in sizes:
        x = 2 * torch.randn(3, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", STAYS)
def test_a_constant_stays_one(name: str) -> None:
    model = Unit(STAYS[name]).double().eval()
    masked, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert done.folded == 1 and model.first.out_channels == 3 and not done.skipped
    same_everywhere(masked, model)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compares answers afterwards: what is proven has to be right by itself."""
    monkeypatch.setattr(Check, "same_after", lambda self, change, undo: (change(), 0.0))


@pytest.mark.parametrize("name", GOES)
def test_what_depends_on_the_input_or_its_size_is_no_constant(name: str, unchecked: None) -> None:
    """One sample of one size would show one number for some of these."""
    model = Unit(GOES[name]).double().eval()
    masked, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert done.folded == 0 and model.first.out_channels == 4
    if name != "dropout that stays on":
        same_everywhere(masked, model)


@pytest.mark.parametrize(("padding", "folds"), [(0, True), (1, False)])
def test_zeros_around_an_image_are_another_number(padding: int, folds: bool, unchecked: None) -> None:
    model = Unit(lambda m, h, x: h, nn.Conv2d(4, 2, 3, padding=padding)).double().eval()
    masked, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert (done.folded, model.first.out_channels) == ((1, 3) if folds else (0, 4))
    same_everywhere(masked, model)
    if not folds:
        [left] = done.skipped
        assert left.name == "first" and "1 constant unit cannot be folded: last pads with zeros" in left.reason


@pytest.mark.parametrize("shift", [0.0, -0.5, 0.7])
@pytest.mark.parametrize("padding", [0, 1])
def test_channels_that_a_batch_norm_scales_by_zero_go_where_nothing_is_lost(shift: float, padding: int, unchecked: None) -> None:
    """Network slimming (1708.06519) leaves them: what they shift by goes on through ReLU, and to the borders."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=padding)
    )
    model = model.double().eval()
    with torch.no_grad():
        model[1].weight[:3], model[1].bias[:3] = 0, shift
        model[1].running_mean.normal_()
    masked, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    goes = shift <= 0 or not padding
    assert model[0].out_channels == (5 if goes else 8)
    assert goes or "3 constant units cannot be folded: 3 pads with zeros" in done.skipped[0].reason
    same_everywhere(masked, model)


def test_a_bias_that_two_layers_share_is_not_shifted_for_one_of_them() -> None:
    model = Unit(lambda m, h, x: h).double().eval()
    model.other = nn.Conv2d(3, 2, 1).double()
    model.other.bias = model.last.bias
    before = model.forward
    model.forward = lambda x: before(x) + model.other(x)  # type: ignore[method-assign]
    _, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert done.folded == 0 and "reads them, and there is no bias of its own" in done.skipped[0].reason


def test_one_weight_that_reads_two_constants_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
            with torch.no_grad():
                self.first.weight[0], self.first.bias[0] = 0, 1

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.first(x)
            return self.last(h), self.last(2 * h)

    model = Twice().eval()
    assert sc.shrink_(model, example=torch.randn(1, 3)).folded == 0


def test_what_is_added_up_must_be_zero_there() -> None:
    """A channel without weights is 0 behind its layer, but one half behind a sigmoid."""
    for activation, left in ((nn.Sigmoid(), 6), (nn.ReLU(), 3)):
        first = nn.Conv2d(3, 6, 1)
        with torch.no_grad():
            first.weight[:3], first.bias[:3] = 0, 0

        class Sum(nn.Module):
            def __init__(self, first: nn.Module, activation: nn.Module) -> None:
                super().__init__()
                self.first, self.activation = first, activation

            def forward(self, x: Tensor) -> Tensor:
                return self.activation(self.first(x)).sum(1)

        model = Sum(first, activation).double().eval()
        masked, done = shrunk(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
        assert first.out_channels == left
        assert (left == 3) == (not done.skipped)
        assert left == 3 or "3 units without weights may be other than zero where units are added up" in done.skipped[0].reason
        same_everywhere(masked, model)


# ---------------------------------------------------------------- whole modules


class Block(nn.Module):
    """A branch that is gone beside one that is silent for most inputs."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.rare, self.gone, self.inplace = nn.Linear(8, 8), nn.Linear(8, 8), inplace
        with torch.no_grad():
            self.gone.weight.zero_(), self.gone.bias.zero_()
            self.rare.bias.fill_(-20.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.rare(x)) + self.gone(x)


def test_a_branch_that_is_silent_on_the_example_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 2)).eval()
    masked, done = shrunk(model, torch.randn(1, 4))
    assert done.layers == ("1.gone",)
    x = 100 * torch.randn(64, 4)
    assert bool((masked[1](masked[0](x)) != masked[0](x)).any())
    torch.testing.assert_close(model(x), masked(x))


def test_a_residual_block_whose_branch_is_gone_is_taken_out() -> None:
    """Behind a ReLU its own ReLU does nothing either; before it, it does."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            nn.init.zeros_(self.conv.weight), nn.init.zeros_(self.norm.weight), nn.init.zeros_(self.norm.bias)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            y += x
            return F.relu(y, inplace=True)

    for before, taken in ((nn.ReLU(), ("2",)), (nn.Tanh(), ())):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), before, Residual(), nn.Conv2d(4, 2, 1)).eval()
        done = sc.shrink_(model, example=torch.randn(1, 3, 8, 8))
        assert tuple(name for name in done.layers if "." not in name) == taken


def test_a_block_whose_input_is_written_to_later_stays() -> None:
    """It gave a copy: with the input itself in its place, both would change."""

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.block, self.leave = nn.Linear(4, 8), Residue(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            y = self.block(h)
            h.mul_(2)
            return self.leave(h + y)

    class Residue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gone = nn.Linear(8, 8, bias=False)
            nn.init.zeros_(self.gone.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gone(x)

    model = Later().eval()
    masked, done = shrunk(model, torch.randn(1, 4))
    assert "block" not in done.layers
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x), masked(x))


def test_zeros_that_have_the_inputs_shape_at_one_size_only_stay() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)
            nn.init.zeros_(self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(self.conv(x), 8)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.pooled, self.leave = nn.Conv2d(3, 4, 1), Pooled(), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(F.adaptive_avg_pool2d(self.enter(x), 8) + self.pooled(self.enter(x)))

    model = Net().eval()
    masked, done = shrunk(model, torch.randn(1, 3, 8, 8))
    assert done.layers == ("pooled.conv",)
    x = torch.randn(2, 3, 11, 11)
    torch.testing.assert_close(model(x), masked(x))


# ---------------------------------------------------------------- the second wall


def test_filters_over_which_a_mean_runs_are_not_taken_for_channels_that_were_asked_for() -> None:
    """The plan of filters names their layers as a plan of channels would."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).mean(-1))

    model, example = Mean().eval(), torch.randn(2, 5, 3)
    masks = sc.prune_(
        model, sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=example), skip=["last"]
    )
    masked = copy.deepcopy(model)
    sc.shrink_(model, masks)
    assert model.first.out_features == 8
    torch.testing.assert_close(model(example), masked(example))


def test_a_difference_that_shows_at_another_size_only_is_seen() -> None:
    """The code names a number of channels where the example's size does not show it."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(h) if x.shape[-1] == 8 else self.last(h) * (h.shape[1] == 8)

    model, example = Sized().eval(), torch.randn(1, 3, 8, 8)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=example))
    masked = copy.deepcopy(model)
    done = sc.shrink_(model, masks)
    assert done.skipped and not done.sites
    x = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(model(x), masked(x))


@pytest.mark.parametrize("style", ["sliced", "merged"])
def test_a_size_that_happens_to_be_a_number_in_the_code_is_left_alone(style: str) -> None:
    """16 is half of the channels where the code writes it down, and the length of the sequence where a size gives it."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 32), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            h = self.enter(x)
            if style == "sliced":
                h = h.transpose(1, 2)
                h = (h[:, :16] * h[:, 16:].sigmoid()).transpose(1, 2)
                return self.leave(h)[:, :t].mean(1)
            h = h.reshape(n, t, 2, 16)
            h = h[:, :, 0] * h[:, :, 1].sigmoid()
            return self.leave(h.reshape(n * t, 16)).reshape(n, t, 2).mean(1)

    model = Gated().double().eval()
    example = torch.randn(1, 10, 4).double()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=example))
    masked = copy.deepcopy(model)
    assert sc.shrink_(model, masks).sites
    for shape in ((2, 16, 4), (1, 16, 4), (16, 3, 4), (2, 8, 4), (4, 4, 4)):
        x = torch.randn(shape).double()
        torch.testing.assert_close(model(x), masked(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", ["norm", "scale"])
def test_a_block_that_is_scaled_by_zero_is_taken_out(what: str) -> None:
    """As residual networks begin, and as some end."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.scale = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 1))
            with torch.no_grad():
                (self.norm.weight if what == "norm" else self.scale).zero_()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.scale * self.norm(self.conv(x)))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Scaled(), nn.Conv2d(4, 2, 1)).eval()
    assert "2" in sc.shrink_(model, example=torch.randn(1, 3, 8, 8)).layers
