"""Weights of few values: quantisers against their definitions, and values that are trained in place of weights."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs import methods
from secateurs.coding import Levels
from secateurs.compressing import Quantiser, as_it_is, bits_within, importance, k_means, powers_of_two, ternary, uniform
from secateurs.compressing.means import means_of, nearest
from secateurs.compressing.tied import Fixed
from secateurs.recover import quantised
from secateurs.types import Plan, Run

WEIGHTS = ("0.weight", "2.weight")


def problem(bias: bool = True) -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias), nn.Tanh(), nn.Linear(8, 3, bias))
    data = [(torch.randn(10, 6), torch.randint(0, 3, (10,))) for _ in range(4)]
    return model, sc.Task(data[0][0][:1], train=data, loss=cross_entropy)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- means


def squared_error(values: list[float], means: list[float]) -> float:
    return sum(min((value - mean) ** 2 for mean in means) for value in values)


def least_error(values: list[float], count: int) -> float:
    """By trying all ways to cut the ordered numbers."""
    ordered, least = sorted(values), float("inf")
    for cuts in itertools.combinations(range(1, len(ordered)), min(count, len(ordered)) - 1):
        edges = [0, *cuts, len(ordered)]
        parts = [torch.tensor(ordered[a:b], dtype=torch.float64) for a, b in itertools.pairwise(edges)]
        least = min(least, sum(float((part - part.mean()).square().sum()) for part in parts))
    return least


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=9), st.integers(1, 4), st.sampled_from(["linear", "density", "random"]))
def test_the_best_means_are_the_best_and_those_of_iteration_stay(numbers: list[int], count: int, start: Any) -> None:
    values = [each / 4 for each in numbers]
    row, there = torch.tensor([values], dtype=torch.float64), torch.ones(1, len(values), dtype=torch.bool)
    best = means_of(row, there, count, "optimal")
    assert squared_error(values, best[0].tolist()) == pytest.approx(least_error(values, count), abs=1e-9)
    found = means_of(row, there, count, start)
    assert best.shape == found.shape == (1, count) and bool((found.diff() >= 0).all())
    assert squared_error(values, found[0].tolist()) >= squared_error(values, best[0].tolist()) - 1e-9
    places = nearest(row, found)[0]
    for place in places.unique().tolist():  # a fixed point of Lloyd's algorithm
        assert float(found[0, place]) == pytest.approx(float(row[0][places == place].mean()), abs=1e-9)
    if len(set(values)) <= count:
        assert squared_error(values, found[0].tolist()) < 1e-18


def test_rows_have_means_of_their_own_and_what_does_not_count_does_not() -> None:
    torch.manual_seed(0)
    rows, there = torch.randn(3, 50, dtype=torch.float64), torch.rand(3, 50) > 0.4
    there[2] = False
    for start in ("linear", "density", "random", "optimal"):
        together = means_of(rows, there, 4, start)
        for row in (0, 1):
            alone = means_of(rows[row][there[row]][None], torch.ones(1, int(there[row].sum())).bool(), 4, start)
            if start != "random":
                assert torch.allclose(together[row], alone[0])
        assert not together[2].any()


def test_cells_of_numbers_come_close_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    row, there = torch.randn(1, 3000, dtype=torch.float64) ** 3, torch.ones(1, 3000, dtype=torch.bool)

    def error() -> float:
        means = means_of(row, there, 8, "optimal")
        return float((means.gather(1, nearest(row, means)) - row).square().sum())

    exact = error()
    monkeypatch.setattr("secateurs.compressing.means._EXACT", 8 * 400)
    assert exact <= error() < 1.01 * exact


# ---------------------------------------------------------------- quantisers


def test_each_quantiser_does_what_it_says() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 32)
    rows = weight.abs().amax(1, keepdim=True)
    levels = uniform(bits=5, per="channel")(weight)
    assert torch.allclose(levels.scale, rows[:, 0] / 15) and int(levels.numbers.abs().max()) == 15
    assert bool(((levels.values() - weight).abs() <= rows / 30 + 1e-6).all())
    errors = [float((uniform(bits=3, clip=clip)(weight).values() - weight).square().sum()) for clip in ("mse", "max")]
    assert errors[0] < 0.7 * errors[1]
    found = powers_of_two(bits=4)(weight).values()
    allowed = [0.0] + [sign * 2.0**e for e in range(-4, 3) for sign in (-1, 1)]
    assert torch.equal(found, torch.tensor([[min(allowed, key=lambda a: abs(a - w)) for w in row] for row in weight.tolist()]))
    found, small = ternary()(weight), 0.7 * weight.abs().mean()
    assert torch.allclose(found.values()[weight > small], weight[weight > small].mean())
    assert torch.allclose(found.values()[weight < -small], weight[weight < -small].mean())
    assert not found.values()[weight.abs() <= small].any()
    bits = quantised(weight, torch.tensor(3.0)).detach()
    assert torch.equal(as_it_is()(bits).values(), bits) and as_it_is()(bits).table.shape == (1, 9)  # no zero among the eight
    assert torch.equal(k_means(bits=16)(weight).values(), weight)
    for quantiser in (k_means(bits=2), uniform(bits=4, per="channel"), ternary(), powers_of_two()):
        assert quantiser(torch.empty(0, 3)).values().shape == (0, 3)
        assert not quantiser(torch.zeros(2, 3)).numbers.any()
    assert repr(k_means(bits=3, per=64, start="linear")) == "k_means(bits=3, start='linear', per=64)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: k_means(), r"k_means: give bits=\.\.\., of which 2 \*\* bits values are made, or clusters="),
        (lambda: k_means(bits=2, clusters=3), r"k_means: give bits="),
        (lambda: k_means(bits=17), r"k_means: bits=17 must be from 0 to 16"),
        (lambda: k_means(bits=2.0), r"k_means: bits is 2\.0, but must be a whole number"),
        (lambda: k_means(clusters=0), r"k_means: clusters=0 must be from 1 to 65536"),
        (lambda: k_means(bits=2, start="best"), r"k_means: start='best' is none of 'linear', 'density', 'random', 'optimal'"),
        (lambda: k_means(bits=2, per="row"), r'k_means: per=\'row\' must be "layer", "channel" or a number'),
        (lambda: uniform(bits=1), r"uniform: bits=1 must be from 2 to 16"),
        (lambda: uniform(clip="mean"), r'uniform: clip=\'mean\' is neither "max" nor "mse"'),
        (lambda: powers_of_two(bits=9), r"powers_of_two: bits=9 must be from 2 to 8"),
        (lambda: ternary(threshold=-1), r"ternary: threshold=-1, of='mean': a threshold is at least 0"),
        (lambda: ternary(threshold=1, of="max"), r"ternary: threshold=1, of='max'"),
        (
            lambda: as_it_is(most=2)(torch.randn(9)),
            r"the weight has 9 different values, more than 2, and is not shared: give a quantiser",
        ),
        (lambda: uniform()(torch.ones(2, 2, dtype=torch.int8)), r"uniform\(bits=8\) needs floating-point numbers, not torch\.int8"),
        (lambda: uniform()(torch.ones(2, 2, device="meta")), r"it is on the meta device and has no values"),
        (
            lambda: uniform()(torch.tensor([1.0, torch.nan, torch.inf])),
            r"the weight: uniform\(bits=8\): 2 numbers are NaN or infinite",
        ),
        (lambda: uniform(per=4)(torch.ones(2, 3)), r'6 numbers do not fall into groups of 4; take per="channel"'),
        (
            lambda: uniform()(torch.ones(2), torch.ones(3).bool()),
            r"the mask is torch\.bool of shape \(3,\), but must be torch\.bool of \(2,\)",
        ),
        (
            lambda: Quantiser("mine", lambda rows, there: Levels(torch.zeros(1, dtype=torch.int32)))(torch.ones(2, 2)),
            r"the weight: mine made levels of shape \(1,\) of rows of shape \(1, 4\)",
        ),
    ],
)
def test_what_is_no_quantiser_or_no_weight_is_told(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(sc.SecateursError, match=message):
        make()


def test_what_masks_hold_may_be_anything() -> None:
    weight = torch.tensor([[torch.nan, 1.0, 2.0, torch.inf]])
    assert k_means(bits=1)(weight, torch.tensor([[False, True, True, False]])).values().tolist() == [[0, 1, 2, 0]]


# ---------------------------------------------------------------- a model


def test_a_model_has_few_values_and_its_zeros_stay() -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    before = states(model)
    shared = sc.share_(model, 2, masks=masks)
    for name, levels in shared.levels.items():
        weight = model.get_parameter(name)
        assert torch.equal(levels.values(), weight) and torch.equal(weight != 0, masks[name])
        assert len(weight[masks[name]].unique()) == 4 == shared.sizes[name].values
    assert torch.equal(before["0.bias"], model[0].bias)
    text = str(shared).splitlines()
    assert text[0].split() == ["weight", "numbers", "not", "zero", "values", "bits", "error", "bytes"]
    assert text[1].split()[:4] == ["0.weight", "48", "24", "4"] and text[-1].split()[:3] == ["together", "72", "36"]
    assert shared.bytes == sum(size.bytes for size in shared.sizes.values()) and shared.sizes["0.weight"].index_bits == 2
    assert repr(shared) == "Shared(2 weights)"


def test_which_weights_take_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 9, bias=False))
    tied = copy.deepcopy(model)
    tied[3].weight = tied[0].weight
    shared = sc.share_(model, bits={"1": 1, "3": 2})
    assert (
        list(shared.levels) == ["1.weight", "3.weight"]
        and len(model[1].weight.unique()) == 2
        and len(model[3].weight.unique()) == 4
    )
    assert {item.name for item in shared.skipped} == {"0", "2"} and "left alone: 0: an embedding" in str(shared)
    assert list(sc.share_(tied, 1).levels) == ["1.weight"]
    assert list(sc.share_(tied, 1, only=["3", "1"]).levels) == ["0.weight", "1.weight"]
    assert tied[3].weight is tied[0].weight and len(tied[3].weight.unique()) == 2
    some = sc.quantise_(copy.deepcopy(model), {"3": uniform(bits=4)})
    assert list(some.levels) == ["3.weight"] and "1: not named in what quantise_ is given by layer" in str(some)
    with pytest.raises(sc.SecateursError, match=r"share_: no layer that takes part is called '7'; did you mean 1, 3"):
        sc.share_(model, bits={"7": 2})
    with pytest.raises(sc.PatternError, match="nothing in Sequential is called 'fc'"):
        sc.share_(model, only=["fc"])
    with pytest.raises(sc.SecateursError, match=r"share_: give bits=4 or clusters=3, not both"):
        sc.share_(model, 4, clusters=3)
    with pytest.raises(sc.KindError, match=r"share_: bits of 1 is 2\.5, but must be a whole number"):
        sc.share_(model, {"1": 2.5})
    with pytest.raises(sc.KindError, match=r"quantise_: quantiser is 4, but must be a quantiser"):
        sc.quantise_(model, 4)
    with pytest.raises(sc.SecateursError, match=r'share_: gradient=\'max\' is neither "mean" nor "sum"'):
        sc.share_(model, gradient="max")
    with pytest.raises(sc.SecateursError, match=r"share_: 0\.weight is on the meta device"):
        sc.share_(problem()[0].to("meta"))


def test_a_plan_may_say_the_bits() -> None:
    model, task = problem()
    plan = sc.prune_(copy.deepcopy(model), sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task).plan
    assert plan is not None
    shares = {name: replace(share, bits=1 + int(name == "0")) for name, share in plan.shares.items()}
    shared = sc.share_(model, Plan(shares))
    assert {name: size.values for name, size in shared.sizes.items()} == {"0.weight": 4, "2.weight": 2}
    with pytest.raises(sc.SecateursError, match="share_: this plan says of no number how many bits it takes"):
        sc.share_(model, plan)


def test_after_an_error_the_model_is_as_it_was() -> None:
    model, _ = problem()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    before = states(model)
    with pytest.raises(sc.NonFiniteError, match=r"2\.weight: k_means\(bits=2\): 1 numbers are NaN or infinite"):
        sc.share_(model, 2)
    assert torch.equal(before["0.weight"], model[0].weight)
    with pytest.raises(
        sc.SecateursError, match=r"reassign=True trains the values of ternary\(\), and 0\.weight has uniform\(bits=8\)"
    ):
        sc.quantise_(problem()[0], uniform(), reassign=True)
    with pytest.raises(sc.SecateursError, match=r"reassign=True trains the values of ternary\(\), and train_values=False"):
        sc.quantise_(problem()[0], ternary(), reassign=True, train_values=False)


def test_expanded_weights_are_told_before_any_is_written() -> None:
    model, _ = problem()
    model[2].weight = nn.Parameter(torch.randn(1, 1).expand(model[2].weight.shape))
    before = states(model)
    with pytest.raises(sc.SecateursError, match=r"share_: 2\.weight is expanded, many of its numbers in one place.*clone\(\)"):
        sc.share_(model, 2)
    assert torch.equal(before["0.weight"], model[0].weight)


def test_fewer_values_than_asked_for_are_told() -> None:
    model, _ = problem()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([1.0, -2.0, 3.0])[:, None].expand(3, 8))
    before = states(model)
    with pytest.warns(UserWarning, match=r"these stay as they are: 2\.weight \(3 of 16\)$"):
        shared = sc.share_(model, 4)
    assert torch.equal(model[2].weight, before["2.weight"]) and shared.sizes["2.weight"].values == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.share_(model, 4, per="channel")  # of a row that is no surprise


# ---------------------------------------------------------------- training


def members(levels: Levels) -> list[tuple[int, Tensor]]:
    """Run and mask of each value that is not zero."""
    rows = levels.numbers.reshape(levels.runs, -1)
    return [(run, rows[run] == number) for run in range(levels.runs) for number in rows[run].unique().tolist() if number]


@pytest.mark.parametrize("gradient", ["mean", "sum"])
@pytest.mark.parametrize("per", ["layer", "channel", 4])
def test_a_step_is_that_of_the_means_and_of_the_scales(gradient: Any, per: Any) -> None:
    """Against plain sums: of the gradients of all that share a value, and of those times the levels that share a scale."""
    for quantiser in (k_means(bits=1, per=per), uniform(bits=3, per=per)):
        model, task = problem()
        shared = sc.quantise_(model, quantiser, gradient=gradient)
        before, plain = shared.levels, copy.deepcopy(model)
        cross_entropy(plain(task.train[0][0]), task.train[0][1]).backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        sc.train_(model, sc.Task(task.example, train=task.train[:1], loss=cross_entropy), optimizer, 1, hooks=[shared])
        for name, levels in before.items():
            rows = plain.get_parameter(name).grad.reshape(levels.runs, -1).double()
            expected = levels.values().double().reshape(levels.runs, -1)
            if levels.scale is None:
                for run, mask in members(levels):
                    expected[run, mask] -= 0.5 * (rows[run, mask].mean() if gradient == "mean" else rows[run, mask].sum())
            else:
                numbers = levels.numbers.reshape(levels.runs, -1).double()
                along = (rows * numbers).sum(1) / (numbers.square().sum(1) if gradient == "mean" else 1)
                expected = expected - 0.5 * along[:, None] * numbers
            assert torch.allclose(model.get_parameter(name).double().reshape(levels.runs, -1), expected, atol=1e-6)
            assert torch.equal(shared.levels[name].values(), model.get_parameter(name))


@pytest.mark.parametrize(
    "quantiser", [k_means(bits=2), uniform(bits=4, per="channel"), ternary(), powers_of_two(bits=3), as_it_is()]
)
@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"amp": torch.bfloat16}])
def test_training_keeps_levels_and_masks(quantiser: Quantiser, how: dict[str, Any]) -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    shared = sc.quantise_(model, quantiser, masks=masks)
    before, biases, zeros = shared.levels, model[0].bias.clone(), {name: model.get_parameter(name) == 0 for name in masks}
    run = sc.train_(model, task, sgd(model), 3, masks=masks, hooks=[shared], **how)
    for name, levels in shared.levels.items():
        weight = model.get_parameter(name)
        assert torch.equal(levels.values(), weight) and torch.equal(weight == 0, zeros[name])
        assert torch.equal(levels.numbers.abs(), before[name].numbers.abs()) or levels.scale is None
        groups = before[name].numbers.unique()
        assert all(len(weight[before[name].numbers == group].unique()) == 1 for group in groups) or levels.runs > 1
        assert torch.equal(weight, before[name].values()) == (repr(quantiser) == "powers_of_two(bits=3)")
    assert not torch.equal(model[0].bias, biases) and run.history[-1]["loss"] < run.history[0]["loss"]
    assert run.history[-1]["sparsity"] == 0.5


@pytest.mark.parametrize("make", ["mean", "ternary", "adam"])
def test_an_interrupted_run_goes_on_to_the_bit(make: str, tmp_path: Path) -> None:
    def begun() -> tuple[nn.Module, sc.Task, torch.optim.Optimizer, sc.Shared]:
        model, task = problem()
        shared = sc.quantise_(model, ternary(), reassign=True) if make == "ternary" else sc.share_(model, 2, per="channel")
        return model, task, torch.optim.Adam(model.parameters(), 0.01) if make == "adam" else sgd(model), shared

    class Stop(Exception):
        pass

    def stop(run: Run) -> None:
        if run.epoch == 2:
            raise Stop

    whole, task, optimizer, shared = begun()
    sc.train_(whole, task, optimizer, 4, hooks=[shared])
    model, task, optimizer, stopped = begun()
    with pytest.raises(Stop):
        sc.train_(model, task, optimizer, 4, hooks=[stopped, sc.Hook("stop", epoch=stop)], checkpoint=tmp_path / "c")
    model, task, optimizer, again = begun()
    sc.train_(model, task, optimizer, 4, hooks=[again, sc.Hook("stop")], checkpoint=tmp_path / "c")
    assert same(states(whole), states(model))
    assert all(
        torch.equal(one.numbers, other.numbers) for one, other in zip(shared.levels.values(), again.levels.values(), strict=True)
    )
    other = sc.share_(problem()[0], 2, skip="0")
    with pytest.raises(
        sc.FileError, match=r"shared values of other weights \(0\.weight, 2\.weight\) than those here \(2\.weight\)"
    ):
        other.restore(again.state())
    with pytest.raises(sc.FileError, match="holds other levels"):
        sc.share_(problem()[0], 1, per="channel").restore(sc.quantise_(problem()[0], uniform()).state())


def test_a_loop_of_ones_own_and_a_second_training() -> None:
    model, task = problem()
    own = copy.deepcopy(model)
    shared, mine = sc.share_(model, 2), sc.share_(own, 2)
    for _ in range(2):
        sc.train_(model, task, sgd(model), 2, hooks=[shared])
        optimizer = sgd(own)
        run = Run(own, task, optimizer, 2)
        mine.start(run)
        for run.epoch in range(2):
            for x, y in task.train:
                optimizer.zero_grad()
                cross_entropy(own(x), y).backward()
                optimizer.step()
            mine.epoch_end(run)
        mine.end(run)
    assert same(states(model), states(own)) and len(model[0].weight.unique()) == 4
    cross_entropy(own(task.example), torch.tensor([0])).backward()
    optimizer.step()  # it has let go of the optimizer
    with pytest.raises(
        sc.SecateursError, match=r"0\.weight is not what it was computed to be: something else has changed it since"
    ):
        mine.levels  # noqa: B018


@pytest.mark.parametrize(
    ("quantiser", "reassign"),
    [
        (k_means(bits=2), False),
        (uniform(bits=4, per="channel"), False),
        (ternary(), False),
        (ternary(), True),
        (powers_of_two(), False),
    ],
)
def test_an_earlier_state_may_be_loaded_and_training_that_broke_off_goes_on(quantiser: Quantiser, reassign: bool) -> None:
    model, task = problem()
    shared, kept = sc.quantise_(model, quantiser, reassign=reassign), dict[str, Tensor]()
    best = sc.Hook("best", epoch_end=lambda run: kept.update(states(model)) if run.epoch == 0 else 1 / (run.epoch < 2) and None)
    with pytest.raises(ZeroDivisionError):
        sc.train_(model, task, sgd(model), 3, hooks=[shared, best])
    assert all(torch.equal(levels.values(), model.get_parameter(name)) for name, levels in shared.levels.items())
    model.load_state_dict(kept)
    assert all(torch.equal(levels.values(), kept[name]) for name, levels in shared.levels.items())
    twin = copy.deepcopy(model)
    sc.train_(twin, task, torch.optim.SGD(twin.parameters(), lr=0.0), 1, hooks=[shared])
    assert all(torch.equal(levels.values(), twin.get_parameter(name)) for name, levels in shared.levels.items())
    assert reassign or same(states(twin), kept)


def test_scales_are_found_again_to_the_bit() -> None:
    torch.manual_seed(0)
    levels = uniform(bits=9, per="channel")(torch.randn(400, 2))
    tie = Fixed.of(levels, "mean", held=False)
    tie.closest(2 * levels.values())
    assert tie.adopt(levels.values()) and torch.equal(tie.levels().values(), levels.values())
    assert not tie.adopt(levels.values() + 1e-3)


def test_what_is_removed_while_it_trains_leaves_its_mean() -> None:
    model, task = problem()
    shared = sc.share_(model, 2)
    prune = sc.prune_at(1, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5))
    run = sc.train_(model, task, sgd(model), 3, hooks=[shared, prune])
    for name, levels in shared.levels.items():
        assert torch.equal(levels.values(), model.get_parameter(name)) and not model.get_parameter(name)[~run.masks[name]].any()
        assert int(torch.count_nonzero(levels.numbers)) == int(run.masks[name].sum())
    still, _ = problem()
    hook, idle, before = sc.share_(still, 2), torch.optim.SGD(still.parameters(), lr=0.0), states(still)
    masks = sc.train_(still, task, idle, 3, hooks=[hook, prune]).masks
    assert all(torch.equal(still.get_parameter(name), before[name] * mask) for name, mask in masks.items())
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.75), task, masks=run.masks)
    assert torch.equal(shared.levels["0.weight"].values(), model[0].weight)  # between trainings too
    sc.train_(model, task, sgd(model), 1, masks=masks, hooks=[shared])
    assert all(torch.equal(levels.values(), model.get_parameter(name)) for name, levels in shared.levels.items())


def test_what_is_not_trained_stays_and_tied_weights_are_trained_once() -> None:
    model, task = problem()
    shared = sc.share_(model, 2)
    model[0].weight.requires_grad_(False)
    before = states(model)
    sc.train_(model, task, torch.optim.SGD(model[2].parameters(), lr=0.1), 1, hooks=[shared])
    assert torch.equal(before["0.weight"], model[0].weight) and not torch.equal(before["2.weight"], model[2].weight)
    assert all(torch.equal(levels.values(), model.get_parameter(name)) for name, levels in shared.levels.items())
    only_biases = torch.optim.SGD([model[2].bias], lr=0.1)
    sc.train_(model, task, only_biases, 1, hooks=[shared])
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    tied[2].weight = tied[0].weight
    shared = sc.share_(tied, 2)
    sc.train_(tied, task, sgd(tied), 1, hooks=[shared])
    assert list(shared.levels) == ["0.weight"] and len(tied[2].weight.unique()) == 4 and tied[2].weight is tied[0].weight


def test_a_model_that_is_no_longer_the_same_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = problem()
    shared = sc.share_(model, 2)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(sc.SecateursError, match=r"0\.weight is not what it was computed to be"):
        sc.train_(model, task, sgd(model), 1, hooks=[shared])
    with pytest.raises(sc.SecateursError, match=r"0\.weight is not what it was computed to be"):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.share_(problem()[0], 2)])
    shared = sc.share_(model, 2)
    with monkeypatch.context() as patch:
        patch.setattr("secateurs.compressing.shared.is_sharded", lambda tensor: True)
        with pytest.raises(sc.SecateursError, match=r"0\.weight is sharded over processes \(fully_shard\): train its values"):
            shared.levels  # noqa: B018
    other = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(sc.SecateursError, match=r"0\.weight: it has shape \(8, 6\) in the model that was shared, and this Seq"):
        sc.train_(other, task, sgd(other), 1, hooks=[shared])
    twin = copy.deepcopy(model)
    sc.train_(twin, task, sgd(twin), 1, hooks=[shared])  # a copy is as good
    assert torch.equal(shared.levels["0.weight"].values(), twin[0].weight)


def test_deep_compression_prunes_shares_trains_and_writes(tmp_path: Path) -> None:
    model, task = problem()
    path, how = tmp_path / "small.scz", {"rounds": 2, "epochs_per_round": 1, "epochs": 1, "show": False}
    run, shared = methods.deep_compression_(model, task, sgd(model), sparsity=0.6, bits={"0": 2, "2": 1}, path=path, **how)
    assert 0.6 <= run.masks.sparsity < 0.8 and run.history[-1]["sparsity"] == run.masks.sparsity
    assert {name: size.values for name, size in shared.sizes.items()} == {"0.weight": 4, "2.weight": 2}
    assert same(states(model), states(sc.decompress(path, lambda: problem()[0])))


# ---------------------------------------------------------------- ternary


def test_a_step_of_ternary_training_is_the_papers() -> None:
    """Eqs. 6 to 8 by hand: values by the sum over their members, whole weights by their own gradient times what the value has become."""
    model, task = problem()
    whole = model[0].weight.detach().clone()
    batches = sc.Task(task.example, train=task.train[:1], loss=cross_entropy)
    learn = lambda values: torch.optim.SGD(values, lr=0.2)  # noqa: E731
    shared = sc.quantise_(model, ternary(threshold=0.05, of="max"), reassign=True, learner=learn, only="0")
    first = [float(edge.detach()) for edge in (model[0].weight.min(), model[0].weight.max())]
    parts, w = [1.0, 1.0], model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run = Run(model, batches, optimizer, 1)
    shared.start(run)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(task.train[0][0]), task.train[0][1]).backward()
        gradient, signs = model[0].weight.grad.clone(), w.sign()
        optimizer.step()
        factor = torch.where(signs < 0, parts[0], torch.where(signs > 0, parts[1], 1.0))
        parts = [
            part - 0.2 * value * float(gradient[signs == sign].sum())
            for part, value, sign in zip(parts, first, (-1, 1), strict=True)
        ]
        whole = whole - 0.5 * gradient * factor
        large = whole.abs() > 0.05 * whole.abs().max()
        w = torch.where(large & (whole > 0), first[1] * parts[1], torch.where(large & (whole < 0), first[0] * parts[0], 0.0))
        assert torch.allclose(model[0].weight, w, atol=1e-6) and torch.equal(model[0].weight == 0, w == 0)
    shared.end(run)
    assert torch.equal(shared.levels["0.weight"].values(), model[0].weight)


def test_ternary_weights_change_their_levels_and_learn() -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.25), task)
    shared = sc.quantise_(model, ternary(per="channel"), masks=masks, reassign=True)
    before = shared.levels["0.weight"]
    for _ in range(2):
        run = sc.train_(model, task, sgd(model), 4, masks=masks, hooks=[shared])
    after = shared.levels["0.weight"]
    assert not torch.equal(before.numbers, after.numbers) and not model[0].weight[~masks["0.weight"]].any()
    assert torch.equal(after.values(), model[0].weight) and all(len(row.unique()) <= 3 for row in model[0].weight)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.0), 1, masks=masks, hooks=[shared])
    assert torch.equal(shared.levels["0.weight"].numbers, after.numbers)  # the whole weights are those of before, not the first


# ---------------------------------------------------------------- bits by layer


@pytest.mark.parametrize("by", ["error", "importance", "measure"])
def test_bits_are_the_best_within_the_limit(by: str) -> None:
    """Against all combinations, with what is lost told here anew."""
    model, task = problem()
    before, numbers = states(model), (1, 2, 3)

    def loss(of: nn.Module) -> float:
        return float(sum(cross_entropy(of(x), y).detach() for x, y in task.train))

    weighs = importance(model, task) if by == "importance" else {}
    lost, sizes = {}, {}
    for name, number in itertools.product(WEIGHTS, numbers):
        copied = copy.deepcopy(model)
        sizes[name, number] = sc.share_(copied, number, only=[name]).bytes
        error = (copied.get_parameter(name).detach() - before[name]).double().square()
        lost[name, number] = loss(copied) if by == "measure" else float((error * weighs.get(name, torch.ones(()))).sum())

    def total(of: dict[tuple[str, int], float], choice: tuple[int, ...]) -> float:
        return sum(of[name, number] for name, number in zip(WEIGHTS, choice, strict=True))

    given_ = {"task": task} if by == "importance" else {"measure": loss} if by == "measure" else {}
    for limit in (50, 60, 75, 90):
        fitting = [choice for choice in itertools.product(numbers, repeat=2) if total(sizes, choice) <= limit]
        best = min(fitting, key=lambda choice: total(lost, choice))
        found = bits_within(model, limit, bits=numbers, show=False, **given_)
        assert total(lost, tuple(found.values())) == pytest.approx(total(lost, best)) and same(before, states(model))
        assert total(sizes, tuple(found.values())) <= limit
    assert sc.share_(model, found).bytes <= 90


def test_importance_is_the_mean_squared_gradient_and_bad_limits_are_told() -> None:
    model, task = problem()
    found = importance(model, task)
    squares = []
    for x, y in task.train:
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        squares.append(model[0].weight.grad.square())
    assert torch.allclose(found["0.weight"], torch.stack(squares).mean(0)) and list(found) == list(WEIGHTS)
    with pytest.raises(sc.PlanError, match=r"limit=3 bytes cannot be met: with 1 bits everywhere it is \d\d; raise the limit"):
        bits_within(model, 3, show=False)
    with pytest.raises(sc.SecateursError, match="bits= names no number of bits"):
        bits_within(model, 100, bits=())
    with pytest.raises(sc.NonFiniteError, match=r"bits_within: measure\(model\) gave NaN; have it give a number"):
        bits_within(model, 100, measure=lambda of: float("nan"), show=False)
    with pytest.raises(sc.KindError, match="bits is 3, but must be numbers of bits to choose from"):
        bits_within(model, 100, bits=3)  # type: ignore[arg-type]
    with pytest.raises(sc.KindError, match="limit is '1 kB', but must be a number"):
        bits_within(model, "1 kB")
