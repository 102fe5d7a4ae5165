"""Shrinking: tensors, gradients, optimizer state, attributes and the sizes in the code get smaller together, or not at all."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

import secateurs as sc
from secateurs.costs import tensor_bytes
from secateurs.graph import analyse
from secateurs.shrink import same_answers, shrink
from secateurs.shrink.needed_units import Nonzero
from secateurs.shrink.surgery import cut_, kept_of
from secateurs.shrink.undo import Undo

EXACT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def prune(model: nn.Module, example: Any, pattern: Any = None, sparsity: float = 0.5, **which: Any) -> sc.Masks:
    solver = sc.TopK(sc.random(seed=1))
    return sc.prune_(model, pattern or sc.Channel(), solver, sc.uniform(sparsity=sparsity), sc.Task(example=example), **which)


def by_hand(numbers: dict[str, int]) -> Callable[..., sc.Plan]:
    """A plan that keeps so many units of the sites named, and all of the others."""
    return lambda sites, scores: sc.allocate.allocators.plan_of(
        sites, {site.name: numbers.get(site.name, site.units) for site in sites}
    )


class Network(nn.Module):
    """Convolutions, one depthwise, norms, and linear layers; its widths stand in its code as numbers too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.GroupNorm(4, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.hidden, self.leave = nn.Linear(6 * 25, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.enter(x)).relu()
        h = self.grouped(self.depthwise(h))
        return self.leave(self.hidden(self.up(h).relu().view(-1, 150)).tanh())


def settled(model: nn.Module, example: Tensor) -> nn.Module:
    """The model with running statistics of its own, in evaluation mode."""
    model.train()
    with torch.no_grad():
        model(example)
    return model.eval()


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 4)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def attributes(model: nn.Module) -> dict[str, Any]:
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if not key.startswith("_") and isinstance(value, (int, float, str, tuple, list))
    }


# ------------------------------------------------------------------------------------------------ what follows


def test_layers_tell_their_new_sizes():
    model, example = settled(Network(), image()).double(), image().double()
    masks = prune(model, example)
    shrunk = sc.shrink_(model, masks)
    assert shrunk.sites == {"enter:4": (4, 2), "up": (6, 3), "hidden": (10, 5)} or shrunk.sites.keys() == {
        "enter:4",
        "up",
        "hidden",
    }
    width, up, hidden = 2 * shrunk.sites["enter:4"][1], shrunk.sites["up"][1], shrunk.sites["hidden"][1]
    assert (model.enter.in_channels, model.enter.out_channels) == (3, width)
    assert model.norm.num_features == len(model.norm.running_mean) == width
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (width, width, width)
    assert (model.grouped.num_groups, model.grouped.num_channels) == (width // 2, width)
    assert (model.up.in_channels, model.up.out_channels) == (width, up)
    assert (model.hidden.in_features, model.hidden.out_features, model.leave.in_features) == (25 * up, hidden, hidden)
    assert shrunk.parameters[1] == sum(parameter.numel() for parameter in model.parameters()) < shrunk.parameters[0]


def test_a_summary_says_what_was_done():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    shrunk = sc.shrink_(model, prune(model, torch.randn(1, 3)))
    assert str(shrunk).splitlines()[0].startswith("50 -> 26 parameters; outputs differ from the masked model's by at most ")
    assert str(shrunk).splitlines()[1:] == ["  0: 8 -> 4"]
    assert repr(model[2]) == "Linear(in_features=4, out_features=2, bias=True)"


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (lambda: [nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 2)], torch.arange(3)[None], {"1.normalized_shape": (4,)}),
        (lambda: [nn.Conv1d(3, 8, 1), nn.PReLU(8), nn.Conv1d(8, 2, 1)], torch.randn(1, 3, 4), {"1.num_parameters": 4, "2.in_channels": 4}),
        (lambda: [nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8, affine=True), nn.Conv1d(8, 2, 1)], torch.randn(1, 3, 4), {"1.num_features": 4}),
    ],
    ids=["layer norm", "prelu", "instance norm"],
)  # fmt: skip
def test_other_layers_tell_theirs(model, example, expected):
    model = nn.Sequential(*model())
    sc.shrink_(model, prune(model, example, sc.Channel(approximate=True)))
    assert {name: attributes(model)[name] for name in expected} == expected


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_tell_theirs_and_train(kind, gates):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.recurrent, self.head = nn.Embedding(11, 6), kind(6, 8, batch_first=True), nn.Linear(8, 11)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.recurrent(self.table(ids))[0])

    model, ids = Reader().double(), torch.arange(10).view(2, 5)
    masks = prune(model, ids)
    expected = model(ids)
    sc.shrink_(model, masks)
    assert (model.recurrent.input_size, model.recurrent.hidden_size) == (3, 4)
    assert model.recurrent.weight_hh_l0.shape == (4 * gates, 4)
    torch.testing.assert_close(model.train()(ids), expected, **EXACT)
    model(ids).sum().backward()
    assert model.recurrent.weight_hh_l0.grad.shape == (4 * gates, 4)


def test_parameters_stay_the_same_objects():
    model, example = settled(Network(), image()), image()
    before = dict(model.named_parameters())
    sc.shrink_(model, prune(model, example))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(1100, 1000), (300, 500, 3, 3)])
def test_a_large_tensor_is_cut_a_few_rows_at_a_time_to_the_same(shape):
    tensor, rows, columns = torch.randn(shape), list(range(1, shape[0], 2)), list(range(0, shape[1], 3))
    assert torch.equal(kept_of(tensor, {1: columns, 0: rows}), tensor[rows][:, columns])


def test_zeros_are_found_while_masks_are_applied():
    model = nn.Sequential(nn.Linear(700, 600), nn.Linear(600, 1))
    mask = torch.ones(600, 700, dtype=torch.bool)
    mask[3::5], mask[:, 1::7] = False, False
    found, plainly = Nonzero.under(sc.Masks({"0.weight": mask}, model), model), Nonzero.of(model)
    assert torch.equal(model[0].weight != 0, mask)
    assert all(torch.equal(found.along(name, 0), plainly.along(name, 0)) for name in plainly.weights)
    assert torch.equal(found.along("0.weight", 1), mask.any(0))


def test_a_buffer_that_modules_share_is_cut_and_put_back_in_all_of_them():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    whole = model[1].running_mean = model[0].running_mean
    undo = Undo()
    cut_(model, {"0.running_mean": {0: [1, 2]}}, undo)
    assert model[1].running_mean is model[0].running_mean and len(model[0].running_mean) == 2
    undo()
    assert model[0].running_mean is whole and model[1].running_mean is whole


def test_gradients_shrink_with_their_parameters():
    model, example = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 3)
    masks = prune(model, example)
    model(example).square().sum().backward()
    kept = masks["0.weight"].any(1)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    sc.shrink_(model, masks)
    assert torch.equal(model[0].weight.grad, before["0.weight"][kept])
    assert torch.equal(model[0].bias.grad, before["0.bias"][kept])
    assert torch.equal(model[2].weight.grad, before["2.weight"][:, kept])
    assert torch.equal(model[2].bias.grad, before["2.bias"])


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    **{
        kind.__name__.lower(): partial(kind, lr=0.01)
        for kind in (
            torch.optim.Adadelta,
            torch.optim.Adagrad,
            torch.optim.Adamax,
            torch.optim.ASGD,
            torch.optim.NAdam,
            torch.optim.RAdam,
            torch.optim.RMSprop,
            torch.optim.Rprop,
        )
    },
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_the_model_had_only_been_masked(kind):
    """Three steps, shrink, five more: the losses are those of a model that is held masked all along."""
    inputs = torch.randn(16, 3, 4, 4).double()
    targets = torch.randint(4, (16,))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    small = settled(Network(), image()).double()
    optimizer = OPTIMIZERS[kind](small.parameters())
    masks = prune(small, inputs[:2])
    handle = masks.attach(optimizer)
    for _ in range(3):
        step(small, optimizer)
    handle.remove()
    masked = copy.deepcopy(small)
    beside = OPTIMIZERS[kind](masked.parameters())
    beside.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks.bind(masked).attach(beside)
    sc.shrink_(small, masks, optimizer=optimizer)
    for parameter in small.parameters():
        shapes = {value.shape for value in optimizer.state[parameter].values() if isinstance(value, Tensor) and value.ndim}
        assert shapes == {parameter.shape}
    losses = [(step(small, optimizer), step(masked, beside)) for _ in range(5)]
    assert len({loss for loss, _ in losses}) == 5
    torch.testing.assert_close(torch.tensor(losses)[:, 0], torch.tensor(losses)[:, 1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype):
    model, example = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype), torch.randn(4, 3, dtype=dtype)
    masks = prune(model, example)
    expected = model(example)
    assert sc.shrink_(model, masks).sites == {"0": (8, 4)}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    torch.testing.assert_close(model(example), expected, rtol=1e-2, atol=1e-2)


def test_channels_last_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).to(memory_format=torch.channels_last)
    sc.shrink_(model, prune(model, torch.randn(1, 3, 8, 8)))
    assert model[2].weight.shape == (2, 4, 3, 3) and model[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_frozen_weights_shrink_and_stay_frozen():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    assert sc.shrink_(model, prune(model, torch.randn(1, 3))).sites == {"0": (8, 4)}
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]


def test_training_flags_stay():
    model, example = settled(Network(), image()), image()
    model.norm.train()
    before = [module.training for module in model.modules()]
    sc.shrink_(model, prune(model, example))
    assert [module.training for module in model.modules()] == before


# ------------------------------------------------------------------------------------------------ sizes in the code


class Coded(nn.Module):
    """A layer that makes 8 channels, code with numbers in it, and a layer that reads what comes of it."""

    def __init__(self, code: Callable[[Coded, Tensor], Tensor], width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.first, self.last, self.code, self.heads, self.width = nn.Linear(6, width), nn.Linear(out, 3), code, 2, width

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, self.first(x)))


def flat_view(m: Coded, h: Tensor) -> Tensor:
    return h.transpose(1, 2).reshape(-1, 8, 4).contiguous().view(-1, 32).view(-1, 8, 4).transpose(1, 2)


def divided(m: Coded, h: Tensor) -> Tensor:
    q = h.view(h.shape[0], 4, m.heads, m.width // m.heads)
    return (q * q.sigmoid()).reshape(h.shape[0], 4, m.width)


def halves(m: Coded, h: Tensor) -> Tensor:
    a, b = h.chunk(2, dim=-1)
    return torch.cat([b.sigmoid() * a, a], -1)


def uneven(m: Coded, h: Tensor) -> Tensor:
    a, b = torch.split(h, [3, 5], dim=-1)
    return torch.cat([b.relu(), a], -1)


def sliced(m: Coded, h: Tensor) -> Tensor:
    return torch.cat([h[..., 2:] * 2, h[..., :2].relu()], -1)


def filled(m: Coded, h: Tensor) -> Tensor:
    out = torch.zeros(h.shape[0], 4, 8, dtype=h.dtype)
    out[:, :, :8] = h
    return out + h.new_ones(4, 8)


def widened(m: Coded, h: Tensor) -> Tensor:
    return h[:, None].expand(h.shape[0], 2, 4, 8).sum(1)


def standardised(m: Coded, h: Tensor) -> Tensor:
    return functional.group_norm(h.transpose(1, 2), 4).transpose(1, 2)


CODES = [flat_view, divided, halves, uneven, sliced, filled, widened, standardised]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.__name__)
def test_numbers_in_the_code_are_rewritten(code):
    """And stay so in a copy, after pickling, in training mode, and for another batch."""
    model, example = Coded(code).double(), torch.randn(2, 4, 6).double()
    masks = prune(model, example)
    masked = copy.deepcopy(model)
    shrunk = sc.shrink_(model, masks)
    assert shrunk.sites and not shrunk.skipped
    other = torch.randn(5, 4, 6).double()
    expected = masked(other)
    through_pickle = pickle.loads(pickle.dumps(model))
    for each in (model, copy.deepcopy(model), through_pickle, copy.deepcopy(through_pickle).train()):
        torch.testing.assert_close(each(other), expected, **EXACT)
    assert sum(parameter.numel() for parameter in through_pickle.parameters()) == shrunk.parameters[1]


def test_a_rewritten_forward_has_the_signature_that_its_class_gives_it():
    """Whoever looks at it (torch.export, trainers of transformers) finds the names of the arguments."""
    model, example = Coded(flat_view), torch.randn(2, 4, 6)
    expected = inspect.signature(model.forward)
    sc.shrink_(model, prune(model, example))
    assert "forward" in vars(model) and inspect.signature(model.forward) == expected


def test_a_copy_uses_its_own_weights():
    model, example = Coded(flat_view), torch.randn(2, 4, 6)
    sc.shrink_(model, prune(model, example))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.last.bias += 1
    torch.testing.assert_close(other(example), model(example) + 1)


def test_every_number_in_the_code_matters_to_the_test():
    """Without rewriting, the code with numbers fails on the smaller model: otherwise the tests above would show nothing."""
    for code in (flat_view, uneven, filled, widened):
        model, example = Coded(code), torch.randn(2, 4, 6)
        sc.shrink_(model, prune(model, example))
        with pytest.raises(RuntimeError):
            type(model).forward(model, example)


# ------------------------------------------------------------------------------------------------ what cannot be done


class Stubborn(nn.Module):
    """Its second branch checks a width that stands in its code, where no call can be rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.easy, self.hard = nn.Linear(6, 8), nn.Linear(6, 8)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hard(x)
        if h.shape[-1] != 8:
            raise ValueError("the hard layer must have 8 features")
        return self.left(self.easy(x).relu()) + self.right(h.relu())


def test_a_site_that_cannot_be_done_is_put_back_whole_and_listed():
    model, example = Stubborn().double(), torch.randn(2, 6).double()
    masks = prune(model, example)
    expected, before = model(example), state(model)
    shrunk = sc.shrink_(model, masks)
    assert shrunk.sites == {"easy": (8, 4)}
    [left] = shrunk.skipped
    assert left.name == "hard"
    assert left.reason.startswith("ValueError: the hard layer must have 8 features (in Stubborn, at tests/test_shrink.py:")
    assert "  left as it was: hard: ValueError: the hard layer must have 8 features" in str(shrunk)
    assert (model.easy.out_features, model.left.in_features) == (4, 4)
    assert (model.hard.out_features, model.right.in_features) == (8, 8)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name.startswith(("hard", "right")))
    torch.testing.assert_close(model(example), expected, **EXACT)


@pytest.mark.parametrize("function", ["cut_", "implied", "set_attributes_", "rewrite_", "remember_"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError], ids=lambda error: error.__name__)
def test_an_interruption_leaves_everything_as_it_was(monkeypatch, function, error):
    model, example = settled(Network(), image()).double(), image().double()
    masks = prune(model, example)
    optimizer = torch.optim.Adam(model.parameters())
    model(example).sum().backward()
    optimizer.step()
    masks.apply_()
    original = getattr(shrink, function)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise error

    before, sizes, forward = state(model), attributes(model), model(example)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    moments = copy.deepcopy(optimizer.state_dict())
    monkeypatch.setattr(shrink, function, interrupted)
    with pytest.raises(error):
        sc.shrink_(model, masks, optimizer=optimizer)
    monkeypatch.undo()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert attributes(model) == sizes
    for place, held in optimizer.state_dict()["state"].items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(moments["state"][place][key])) for key, value in held.items()
        )
    assert torch.equal(model(example), forward)
    assert sc.shrink_(model, masks, optimizer=optimizer).sites, "it works once nothing interrupts"


def test_a_model_that_answers_by_chance_is_left_as_it_was():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.calls = nn.Linear(3, 8), nn.Linear(8, 2), [0]

        def forward(self, x: Tensor) -> Tensor:
            self.calls[0] += 1
            return self.last(self.first(x).relu()) * self.calls[0]

    torch.manual_seed(0)
    model, example = Noisy(), torch.randn(2, 3)
    masks = prune(model, example)
    before = state(model)
    shrunk = sc.shrink_(model, masks)
    if shrunk.sites:  # the counter is taken back after each pass, so that each gives the same
        assert shrunk.largest_difference < 1e-6
    else:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_constant_example_still_tells(monkeypatch):
    """With zeros for an example, any two bias-free models agree; noise in their place shows the difference."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    example = torch.zeros(2, 6).double()
    masks = prune(model, example)
    original = shrink.cut_

    def wrong(model: nn.Module, cuts: Any, *rest: Any) -> None:
        moved = {name: {dim: [(i + 1) % 8 for i in kept] for dim, kept in by_dim.items()} for name, by_dim in cuts.items()}
        original(model, moved, *rest)

    monkeypatch.setattr(shrink, "cut_", wrong)
    shrunk = sc.shrink_(model, masks)
    assert not shrunk.sites
    assert [item.name for item in shrunk.skipped] == ["0"]
    assert "the smaller model's outputs differ from the masked one's by" in shrunk.skipped[0].reason


def test_an_axis_of_size_one_is_no_site():
    model = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
    assert sc.shrink_(model, prune(model, torch.randn(2, 3))).sites == {"2": (8, 4)}


# ------------------------------------------------------------------------------------------------ the dead


def test_an_unstructured_pruned_model_shrinks_by_what_is_dead():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        model[0].weight[2:5], model[0].bias[2:5] = 0, 0  # nothing makes them
        model[2].weight[:, 7:9] = 0  # nobody reads them
        model[4].weight[:, 3] = 0
    example = torch.randn(4, 6).double()
    expected = model(example)
    shrunk = sc.shrink_(model, example=example)
    assert shrunk.sites == {"0": (16, 11), "2": (16, 15)}
    torch.testing.assert_close(model(torch.cat([example, example]))[:4], expected, **EXACT)


def test_death_spreads():
    """What only dead units read is dead too, layer after layer."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[4].weight[:, 3:] = 0
        model[2].weight[:3, :2] = 0
    example = torch.randn(3, 4).double()
    expected = model(example)
    assert sc.shrink_(model, example=example).sites == {"0": (6, 4), "2": (6, 3)}
    torch.testing.assert_close(model(example), expected, **EXACT)


def test_a_model_without_zeros_stays_as_it_is():
    model, example = settled(Network(), image()), image()
    before = state(model)
    shrunk = sc.shrink_(model, example=example)
    assert shrunk.sites == {} and shrunk.parameters[0] == shrunk.parameters[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_site_keeps_a_unit_where_the_plan_would_empty_it():
    model, example = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double(), torch.randn(2, 3).double()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.random()), by_hand({"0": 0}), sc.Task(example=example))
    expected = model(example)
    assert int(model[0].weight.count_nonzero()) == 0
    assert sc.shrink_(model, masks).sites == {"0": (8, 1)}
    torch.testing.assert_close(model(example), expected, **EXACT)


# ------------------------------------------------------------------------------------------------ which sites


class Normed(nn.Module):
    """A residual stream of 8 with a norm over it, and a branch of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.up, self.down, self.leave = (
            nn.Linear(3, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(self.norm(h + self.down(self.up(self.norm(h)).relu())))


def test_approximate_axes_only_when_they_are_asked_for():
    model, example = Normed(), torch.randn(4, 3)
    sites = sc.find_sites(model, sc.Channel(), example)
    assert [(site.name, site.note) for site in sites] == [("up", "exact")]
    assert {item.name: item.reason for item in sites.skipped}["enter"].startswith(
        "approximate: native_layer_norm at tests/test_shrink"
    )
    asked = sc.find_sites(model, sc.Channel(approximate=True), example)
    assert [site.name for site in asked] == ["enter", "up"] and asked[0].note.startswith("approximate: native_layer_norm")
    masks = prune(model, example, sc.Channel(approximate=True))
    masks.origin = replace(masks.origin, pattern="mine")  # the plan tells what was asked for
    assert sc.shrink_(model, masks).sites == {"enter": (8, 4), "up": (12, 6)}
    assert model.norm.normalized_shape == (4,) and model(example).shape == (4, 2)


def test_zeros_along_an_approximate_axis_are_left_alone():
    """Nobody asked for it, so it stays, although all its weights are zero."""
    model, example = Normed(), torch.randn(4, 3)
    with torch.no_grad():
        for weight in (
            model.enter.weight,
            model.enter.bias,
            model.norm.weight,
            model.norm.bias,
            model.down.weight,
            model.down.bias,
        ):
            weight[2] = 0
        model.up.weight[:, 2], model.leave.weight[:, 2] = 0, 0
    assert "enter" not in sc.shrink_(model, example=example).sites
    assert model.enter.out_features == 8


@pytest.mark.parametrize(("round_to", "sparsity"), [(4, 0.5), (4, 0.9), (8, 0.3), (3, 0.5)])
def test_widths_are_multiples_of_what_the_hardware_likes(round_to, sparsity):
    model = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 2))
    sc.shrink_(model, prune(model, torch.randn(1, 3), sc.Channel(round_to=round_to), sparsity))
    widths = (model[0].out_features, model[2].out_features)
    assert all(width % round_to == 0 and width > 0 for width in widths), widths
    assert sum(widths) <= max(round(72 * (1 - sparsity)), 2 * round_to)


def test_rounding_counts_the_width_of_heads():
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 32), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).view(-1, 8, 4).relu().flatten(1))

    model, example = Headed(), torch.randn(2, 3)
    [site] = sc.find_sites(model, sc.Channel(round_to=8), example)
    assert (site.units, site.step) == (8, 2)
    sc.shrink_(model, prune(model, example, sc.Channel(round_to=8), 0.6))
    assert model.first.out_features % 8 == 0 and model.first.out_features < 32


def test_a_site_smaller_than_the_multiple_stays_whole():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    sc.shrink_(model, prune(model, torch.randn(1, 3), sc.Channel(round_to=8), 0.5))
    assert model[0].out_features == 6 and model[2].out_features % 8 == 0


def test_all_sites_or_those_of_one_kind_compete():
    example = torch.randn(2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight *= 100
    task, solver = sc.Task(example=example), sc.TopK(sc.magnitude())
    masks = sc.prune_(model, sc.Channel(within="model"), solver, sc.uniform(sparsity=0.5), task)
    assert masks.plan["0"] > 6 and masks.plan["2"] < 2


def test_sites_of_other_kinds_do_not_compete():
    model = nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))  # fmt: skip # noqa: E501
    with torch.no_grad():
        model[0].weight *= 100
        model[5].weight *= 1000
    example = torch.randn(2, 8, 1)
    kinds = {site.name: site.kind for site in sc.find_sites(model, sc.Channel(), example)}
    assert len(kinds) == 4 and len(set(kinds.values())) < 4
    task, solver = sc.Task(example=example), sc.TopK(sc.magnitude())
    plan = sc.prune_(model, sc.Channel(within="isomorphic"), solver, sc.uniform(sparsity=0.5), task).plan
    for kind in set(kinds.values()):
        alike = [name for name in kinds if kinds[name] == kind]
        assert sum(plan[name] for name in alike) == 4 * len(alike), f"{alike} keep half of what they have together"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"only": "up"}, {"up"}),
        ({"only": ["blocks.0"]}, {"blocks.0.0"}),
        ({"only": "blocks.*"}, {"blocks.0.0", "blocks.1.0"}),
        ({"only": "blocks.1.0.weight"}, {"blocks.1.0"}),
        ({"skip": ["blocks"]}, {"up"}),
        ({"skip": "up", "only": ["up", "blocks.1"]}, {"blocks.1.0"}),
        ({"only": lambda name, module: module.out_features == 12}, {"up"}),
    ],
)
def test_sites_are_chosen_by_name_layer_container_glob_or_function(choice, expected):
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)])
            self.up, self.down = nn.Linear(3, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.down(self.up(x))

    model, example = Blocks(), torch.randn(2, 3)
    sites = sc.find_sites(model, sc.Channel(), example, **choice)
    assert {site.name for site in sites} == expected
    left = {item.name: item.reason for item in sites.skipped}
    assert all(left[name] in ("not named in only=", "named in skip=") for name in {"up", "blocks.0.0", "blocks.1.0"} - expected)
    assert sc.shrink_(model, prune(model, example, **choice)).sites.keys() == expected


def test_an_unknown_name_is_an_error_that_suggests():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    for choice in ("only", "skip"):
        with pytest.raises(sc.PatternError, match=r"nothing in Sequential is called '00'; did you mean 0"):
            sc.find_sites(model, sc.Channel(), torch.randn(1, 3), **{choice: "00"})


def test_heads_alone():
    model, example = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True).eval(), torch.randn(2, 3, 8)
    model = nn.Sequential(model, nn.Linear(8, 2)).double()
    masks = prune(model, example.double(), sc.Head())
    expected = model(example.double())
    assert sc.shrink_(model, masks).sites == {"0.self_attn:heads": (4, 2)}
    assert (model[0].linear1.out_features, model[0].self_attn.out_proj.in_features) == (12, 4)
    torch.testing.assert_close(model(example.double()), expected, **EXACT)
    with pytest.raises(sc.PatternError, match=r"Head\(\) finds no site in Sequential"):
        sc.find_sites(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), sc.Head(), torch.randn(1, 3))


@pytest.mark.parametrize("pattern", [sc.Channel, sc.Head])
@pytest.mark.parametrize("within", ["row", 4, "everywhere"])
def test_whole_channels_compete_in_layers_or_the_model(pattern, within):
    with pytest.raises(sc.PatternError):
        pattern(within=within)


@pytest.mark.parametrize("round_to", [0, -8, 1.5])
def test_a_multiple_is_a_positive_number(round_to):
    with pytest.raises((sc.PatternError, TypeError), match="round_to"):
        sc.Channel(round_to=round_to)


# ------------------------------------------------------------------------------------------------ again


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.__name__)
def test_what_was_shrunk_can_be_shrunk_again(code):
    model, example = Coded(code).double(), torch.randn(2, 4, 6).double()
    first = sc.shrink_(model, prune(model, example, sparsity=0.3))
    masks = prune(model, example, sparsity=0.4)
    expected = model(example)
    second = sc.shrink_(model, masks)
    assert first.sites and second.sites and not second.skipped
    assert second.parameters[0] == first.parameters[1] > second.parameters[1]
    torch.testing.assert_close(model(example), expected, **EXACT)
    torch.testing.assert_close(copy.deepcopy(model)(example), expected, **EXACT)


def test_attention_is_shrunk_twice():
    model, example = (
        nn.Sequential(nn.TransformerEncoderLayer(16, 8, 12), nn.Linear(16, 2)).double().eval(),
        torch.randn(3, 2, 16).double(),
    )
    for heads in (4, 2):
        masks = prune(model, example, sc.Head())
        expected = model(example)
        assert sc.shrink_(model, masks).sites == {"0.self_attn:heads": (2 * heads, heads)}
        assert model[0].self_attn.num_heads == heads and model[0].self_attn.head_dim == 2
        torch.testing.assert_close(model(example), expected, **EXACT)


# ------------------------------------------------------------------------------------------------ the promise


def convolutional() -> tuple[nn.Module, Tensor]:
    return settled(Network(), image()), image()


def encoder() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 3)).eval(), torch.randn(2, 5, 16)


def grouped() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


def recurrent() -> tuple[nn.Module, Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.LSTM(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0])

    return Model(), torch.randn(4, 2, 6)


def coded() -> tuple[nn.Module, Tensor]:
    return Coded(uneven), torch.randn(2, 4, 6)


@pytest.mark.parametrize("make", [convolutional, encoder, grouped, recurrent, coded], ids=lambda make: make.__name__)
@pytest.mark.parametrize("cost", [sc.params, sc.macs, tensor_bytes], ids=lambda cost: cost.name)
def test_a_plan_costs_what_it_promised(make, cost):
    model, example = make()
    before = cost(model, example)
    masks = prune(model, example)
    promised = cost(model, example, masks.plan)
    assert not sc.shrink_(model, masks).skipped
    assert cost(model, example) == promised < before


def test_a_budget_is_met_by_the_model_that_is_left():
    model, example = convolutional()
    before = sc.macs(model, example)
    allocate = sc.within_budget(sc.Budget(sc.macs, keep=0.4), sc.uniform)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), allocate, sc.Task(example=example))
    sc.shrink_(model, masks)
    assert 0.2 * before < sc.macs(model, example) == masks.plan.promised["macs"] <= 0.4 * before


@pytest.mark.parametrize("choice", [{"only": ["0"]}, {"skip": ["0"]}])
def test_what_is_promised_is_what_is_left_where_only_some_sites_take_part(choice: dict[str, list[str]]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    example = torch.randn(1, 4)
    half = sc.within_budget(sc.Budget(sc.macs, keep=0.8), sc.uniform)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), half, sc.Task(example=example), **choice)
    assert masks.plan is not None
    assert len(masks.plan) == 1
    sc.shrink_(model, masks)
    assert sc.macs(model, example) == masks.plan.promised["macs"] < 4 * 8 + 8 * 6 + 6 * 2


# ------------------------------------------------------------------------------------------------ what is not done twice


@pytest.fixture
def calls(monkeypatch):
    """How often the slow parts of shrinking run: traces, and searches for sizes in the code."""
    counted = {"analyse": 0, "rewrites_for": 0}
    for name in counted:
        original = getattr(shrink, name)

        def counting(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(shrink, name, counting)
    return counted


def test_what_pruning_found_out_serves_shrinking(calls):
    model, example = settled(Network(), image()).double(), image().double()
    masks = prune(model, example)
    expected = model(example)
    sc.shrink_(model, masks)
    assert calls["analyse"] == 0
    torch.testing.assert_close(model(example), expected, **EXACT)
    sc.shrink_(model, masks)
    assert calls["analyse"] == 1, "what was found out of the whole model says nothing of the smaller one"


def test_weights_and_masks_may_change_in_between(calls):
    model, example = settled(Network(), image()).double(), image().double()
    masks = prune(model, example, skip="hidden")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
        model.hidden.weight[3:], model.hidden.bias[3:] = 0, 0
    masks["enter.weight"][:] = True
    masks.apply_()
    expected = model(example)
    shrunk = sc.shrink_(model, masks)
    assert calls["analyse"] == 0 and shrunk.sites["hidden"] == (10, 3)
    torch.testing.assert_close(model(example), expected, **EXACT)


@pytest.mark.parametrize("change", ["module", "attribute", "example"])
def test_another_model_or_example_is_looked_at_anew(calls, change):
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave, self.straight = nn.Linear(3, 8), nn.Linear(8, 8), True

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.leave(h.relu()) if self.straight else self.leave(h.relu()) + h

    model, example = Choosing().double(), torch.randn(2, 3).double()
    masks = prune(model, example)
    if change == "attribute":
        model.straight = False
    elif change == "module":
        model.leave = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 2)).double()
    else:
        example = torch.randn(5, 3).double()
    masks.apply_()
    expected = model(example)
    shrunk = sc.shrink_(model, masks, example)
    assert calls["analyse"] == 1 and not shrunk.skipped
    assert shrunk.sites == ({} if change == "attribute" else {"enter": (8, 4)})
    torch.testing.assert_close(model(example), expected, **EXACT)


def test_what_was_seen_on_real_numbers_is_looked_at_again(calls):
    class Deciding(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    model, example = Deciding(nn.Linear(3, 8), nn.Linear(8, 2)).double(), torch.randn(2, 3).double()
    sc.shrink_(model, prune(model, example))
    assert calls["analyse"] == 1


def test_masks_are_copied_and_pickled_without_the_model():
    model, example = settled(Network(), image()), image()
    masks = prune(model, example)
    for copied in (copy.deepcopy(masks), pickle.loads(pickle.dumps(masks))):
        assert copied.origin.structure_of(model, example) is None
        assert all(torch.equal(copied[name], mask) for name, mask in masks.items())
    assert masks.origin.structure_of(model, example) is not None


def test_sizes_are_looked_for_only_where_some_must_change(calls):
    class Plain(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x)
            return h.view(h.shape[0], h.shape[1], -1).mean(-1)

    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model, example = Plain(*layers).double(), image().double()
    sc.shrink_(model, prune(model, example))
    assert calls["rewrites_for"] == 0 and layers[1].groups == 4
    model, example = settled(Network(), image()).double(), image().double()
    sc.shrink_(model, prune(model, example))
    assert calls["rewrites_for"] == 1


def test_sizes_are_looked_for_once_the_check_fails(calls, monkeypatch):
    monkeypatch.setattr(shrink, "sizes_stay", lambda *_: True)
    model, example = settled(Network(), image()).double(), image().double()
    masks = prune(model, example)
    expected = model(example)
    assert not sc.shrink_(model, masks).skipped and calls["rewrites_for"] == 1
    torch.testing.assert_close(model(example), expected, **EXACT)


class Watched(nn.Module):
    """Notes the dtype of each pass, of which there are two each time: with the example and with another batch.

    ``off`` is added to the answers of a smaller model in float32, and ``wrong`` to all of them.
    """

    def __init__(self, off: float = 0.0, wrong: float = 0.0) -> None:
        super().__init__()
        self.enter, self.leave, self.off, self.wrong = nn.Linear(3, 8), nn.Linear(8, 2), off, wrong

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, FakeTensor):
            PASSES.append(x.dtype)
        y = self.leave(self.enter(x).relu())
        smaller = self.enter.weight.shape[0] < 8
        return y + (smaller * (self.wrong + (x.dtype == torch.float32) * self.off)) * y.detach().abs().max()


PASSES: list[torch.dtype] = []


@pytest.mark.parametrize(
    ("large", "off", "wrong", "passes", "done"),
    [
        (False, 0.0, 0.0, [torch.float64] * 4, True),
        (True, 0.0, 0.0, [torch.float32] * 4, True),
        (True, 1e-4, 0.0, [torch.float32] * 4 + [torch.float64] * 4, True),
        (True, 0.0, 1e-5, None, False),
        (False, 0.0, 1e-5, None, False),
        (True, 0.0, 1e-4, None, False),
    ],
)
def test_large_models_answer_in_float32_first_and_float64_decides(monkeypatch, large, off, wrong, passes, done):
    monkeypatch.setattr(same_answers, "_SMALL", 1 if large else 1000)
    model, example = Watched(off, wrong), torch.randn(4, 3)
    masks = prune(model, example)
    before = state(model)
    PASSES.clear()
    shrunk = sc.shrink_(model, masks)
    assert passes is None or passes == PASSES
    assert bool(shrunk.sites) is done and bool(shrunk.skipped) is not done
    if not done:
        assert "differ from the masked one's by" in shrunk.skipped[0].reason
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_what_is_no_float32_is_compared_as_before(monkeypatch):
    monkeypatch.setattr(same_answers, "_SMALL", 1)
    model, example = Watched().bfloat16(), torch.randn(4, 3).bfloat16()
    masks = prune(model, example)
    PASSES.clear()
    assert sc.shrink_(model, masks).sites
    assert len(PASSES) == 4 and set(PASSES) == {torch.float64}


@pytest.mark.parametrize("shape", [(5,), (6, 4), (700, 900), (8, 6, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int8, torch.bool], ids=str)
def test_where_anything_is_not_zero_is_found_along_each_dimension(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 5 * (torch.rand(shape) > 1 - 2 / sum(shape))).to(dtype)
    if dtype.is_floating_point:
        weight.view(-1)[:3] = torch.tensor([torch.nan, -0.0, 1e-38])
    there = Nonzero({"w": weight})
    for dim in range(len(shape)):
        assert torch.equal(there.along("w", dim), (weight != 0).movedim(dim, 0).reshape(shape[dim], -1).any(1))
    assert there.anything("w") == bool((weight != 0).any())
    assert not Nonzero({"w": torch.zeros_like(weight)}).anything("w")


class Tied(nn.Module):
    """A stream of which only the classifier reads some units, whose weight is the embedding's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.classify = nn.Linear(6, 11, bias=False)
        self.classify.weight = self.embed.weight

    def forward(self, x):
        stream = self.embed(x)
        return self.classify(stream + self.down(self.up(stream).relu()))


def test_what_only_a_tied_classifier_reads_is_read():
    torch.manual_seed(0)
    model = Tied().double()
    with torch.no_grad():
        model.up.weight[:, 4], model.down.weight[4], model.down.bias[4] = 0, 0, 0
        model.up.weight[3], model.up.bias[3] = 0, 0
    masked, example = copy.deepcopy(model), torch.randint(0, 11, (2, 7))
    done = sc.shrink_(model, example=example)
    assert done.sites == {"up": (5, 4)} and not done.skipped
    assert torch.equal(masked(example), model(example))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_that_other_gates_read_are_read(kind):
    """Unit 2 reaches the answer through unit 0 alone, and that through unit 1: by the weights from hidden to hidden."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0])

    torch.manual_seed(0)
    model = Recurrent().double()
    with torch.no_grad():
        for name, weight in model.cell.named_parameters():
            weight[:] = torch.randn(weight.shape, dtype=weight.dtype) if "weight_ih_l0" in name else torch.zeros_like(weight)
        for layer in ("l0", "l1"):
            hidden = getattr(model.cell, f"weight_hh_{layer}")
            hidden[-3, 0] = hidden[-4, 2] = 1.0
        model.cell.weight_ih_l1[:] = torch.eye(4, dtype=torch.float64).repeat(len(model.cell.weight_ih_l1) // 4, 1)
        model.cell.weight_ih_l0[3::4], model.cell.weight_ih_l1[3::4], model.head.weight[:] = 0, 0, 0
        model.head.weight[:, 1] = 1
    masked, example = copy.deepcopy(model), torch.randn(2, 5, 3).double()
    done = sc.shrink_(model, example=example)
    assert [kept for _, kept in done.sites.values()] == [3] and not done.skipped
    other = torch.randn(3, 7, 3).double()
    with torch.no_grad():
        assert float((masked(other) - model(other)).abs().max()) < 1e-15
    roles = {
        place.role
        for places in analyse(masked, example).places.values()
        for place in places
        if "hh" in place.parameter and place.dim
    }
    assert roles == {"consumer"}
