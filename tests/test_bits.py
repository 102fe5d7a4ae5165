"""Bits that are learned beside the weights: levels, gradients, training as the paper says it, targets, checkpoints, masks."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs import methods
from secateurs.costs import Dense, stored_bytes
from secateurs.patterns import Element, find_sites
from secateurs.recover import quantised
from secateurs.recover.bits import _Groups
from secateurs.types import Hook, Run, SecateursError

WEIGHTS = ("0.weight", "2.weight")


def problem() -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(0, 3, (10,))) for _ in range(4)]
    return model, sc.Task(data[0][0][:1], train=data, loss=cross_entropy)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def plain(lr: float) -> Any:
    return lambda values: torch.optim.SGD(values, lr=lr)


def adam(lr: float) -> Any:
    return lambda values: torch.optim.Adam(values, lr=lr)


def learning(hook: Hook) -> Any:
    return hook.close.__self__  # type: ignore[attr-defined]


def on_few_levels(model: nn.Module, bits: dict[str, Tensor]) -> bool:
    """Whether each weight, or each of its rows, has 2^n different numbers at most."""
    groups = [(model.get_parameter(name).detach(), n) for name, n in bits.items()]
    rows = [(row, int(n)) for weight, each in groups for row, n in zip(weight if len(each) > 1 else [weight], each, strict=True)]
    return all(len(row.unique()) <= 2**n for row, n in rows)


# ---------------------------------------------------------------- levels and gradients


def levels_of(numbers: list[float], bits: int) -> list[float]:
    low, high = min(numbers), max(numbers)
    apart = (high - low) / (2**bits - 1)
    if not apart:
        return [low]
    if 0.0 not in numbers:
        return [low + k * apart for k in range(2**bits)]
    return [(k - round(-low / apart)) * apart for k in range(2**bits)]


@example([-1.0, -0.6, 0.6, 1.0], 2, True)  # both ends lie half between two levels
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12),
    st.integers(1, 6),
    st.booleans(),
)
def test_each_number_is_the_nearest_of_the_levels_and_zero_stays(numbers: list[float], bits: int, zero: bool) -> None:
    numbers = [0.0 if abs(each) < 1e-6 else each for each in numbers] + [0.0] * zero
    levels = levels_of(numbers, bits)
    found = quantised(torch.tensor([numbers], dtype=torch.float64), torch.tensor(float(bits)))[0]
    assert len(found.unique()) <= 2**bits
    for given_, level in zip(numbers, found.tolist(), strict=True):
        nearest = min(abs(given_ - each) for each in levels)
        assert min(abs(level - each) for each in levels) < 1e-9 and abs(abs(given_ - level) - nearest) < 1e-9
        assert level == 0.0 if given_ == 0.0 else True
    assert not (torch.tensor(numbers)[found != 0] == 0).any()


def test_between_two_numbers_of_bits_lies_what_lies_between_and_so_does_the_gradient() -> None:
    torch.manual_seed(0)
    v, g = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    fewer, more = (quantised(v, torch.tensor(float(n))) for n in (3, 4))
    assert torch.allclose(quantised(v, torch.tensor(3.25)), 0.75 * fewer + 0.25 * more)
    for bits in (torch.tensor([3.3]), torch.tensor([1.2, 2.5, 5.7, 8.4])):
        assert torch.autograd.gradcheck(partial(quantised, v), bits.double().requires_grad_())  # finite differences
        followed = v.clone().requires_grad_()
        quantised(followed, bits).backward(g)
        assert torch.equal(followed.grad, g)
    n = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    quantised(v, n).backward(g)
    assert torch.allclose(n.grad, (g * (more - fewer)).sum())
    assert torch.equal(quantised(torch.empty(0, 3), torch.tensor(2.0)), torch.empty(0, 3))
    with pytest.raises(SecateursError, match=r"quantised: bits are of shape \(3,\), but must be one number, or 4, one a row"):
        quantised(v, torch.ones(3))


@pytest.mark.parametrize(
    "layer", [nn.Linear(5, 4), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ConvTranspose1d(3, 5, 2)]
)
def test_each_output_channel_has_levels_of_its_own(layer: nn.Module) -> None:
    (site,) = find_sites(layer, Element(), only="*")
    (member,) = site.members
    groups, weight = _Groups.of(member, channels=True), layer.weight.detach().double()
    bits = torch.linspace(1.2, 4.9, groups.count, dtype=torch.float64)
    found = member.canonical(groups.quantised(weight, bits, layer.weight)).flatten(0, 1)
    rows = member.canonical(weight).flatten(0, 1)
    for row, n, one in zip(rows, bits, found, strict=True):
        assert torch.equal(one, quantised(row[None], n)[0])
    assert torch.equal(groups.sizes(layer.weight), torch.full((groups.count,), rows[0].numel(), dtype=torch.float64))


# ---------------------------------------------------------------- whole training, written out


@pytest.mark.parametrize("weigh", ["weights", "macs"])
def test_training_is_that_of_the_paper_written_out(weigh: Any) -> None:
    model, task = problem()
    theirs, total = copy.deepcopy(model), 48 + 24
    whole = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    n = {name: torch.tensor([4.0], requires_grad=True) for name in WEIGHTS}
    trained, learner = torch.optim.SGD(list(whole.values()), 0.1, 0.9, weight_decay=1e-3), torch.optim.SGD(list(n.values()), 0.5)
    for step in range(16):
        bits = n if step < 12 else {name: each.detach().ceil() for name, each in n.items()}
        weights = {**whole, **{name: quantised(whole[name], bits[name]) for name in WEIGHTS}}
        x, y = task.train[step % 4]
        trained.zero_grad(), learner.zero_grad()
        penalty = sum(whole[name].numel() / total * n[name].sum() for name in WEIGHTS)
        (cross_entropy(functional_call(model, weights, x), y) + 0.4 * penalty).backward()
        trained.step()
        if step < 12:
            learner.step()
            [each.data.clamp_(min=1) for each in n.values()]
    found: dict[str, Tensor] = {}
    hook = sc.learned_bits(strength=0.4, start=4.0, end=3, learner=plain(0.5), weigh=weigh, bits=found)
    run = sc.train_(theirs, task, sgd(theirs), 4, hooks=[hook], show=False)
    final = {name: n[name].detach().ceil() for name in WEIGHTS}
    assert all(torch.equal(found[name], final[name].long()) for name in WEIGHTS) and 1 < final["0.weight"] < 4
    for name, weight in theirs.named_parameters():
        expected = quantised(whole[name], final[name]) if name in final else whole[name]
        assert torch.allclose(weight, expected, atol=1e-5), name
    assert on_few_levels(theirs, found) and not run.masks and run.history[-1]["sparsity"] == 0
    assert run.history[-1]["bits"] == pytest.approx(
        sum(float(n) * size / total for n, size in zip(final.values(), (48, 24), strict=True))
    )


def test_macs_weigh_what_is_multiplied_often() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 2), nn.Linear(2, 2))
    hook = sc.learned_bits(strength=1.0, weigh="macs", per="channel", skip=["3"])
    hook.start(run := Run(model, sc.Task(torch.zeros(1, 1, 6, 6)), sgd(model), 1, masks=sc.Masks({}, model)))
    shares = learning(hook).beside.penalty.__self__.shares
    assert torch.allclose(shares["0.weight"], torch.full((2,), 144 / 352)) and torch.allclose(
        shares["2.weight"], torch.full((2,), 32 / 352)
    )
    hook.close(run)
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    idle = sc.learned_bits(strength=1.0, weigh="macs", only=["2"])
    with pytest.raises(SecateursError, match="learned_bits: no weight that takes part has MACs in the pass of the example: take"):
        idle.start(run)


# ---------------------------------------------------------------- through a checkpoint, and in a loop of one's own


@pytest.mark.parametrize(("stop_after", "per"), [(1, "channel"), (4, "layer")])
def test_it_goes_on_from_a_checkpoint_to_the_bit(stop_after: int, per: Any, tmp_path: Path) -> None:
    """In the midst of learning, and when bits are whole already."""
    whole, task = problem()
    parts, copied = copy.deepcopy(whole), copy.deepcopy(whole)
    stop = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == stop_after))

    def train(model: nn.Module, last: Hook, checkpoint: Path | None) -> tuple[Run, dict[str, Tensor]]:
        bits: dict[str, Tensor] = {}
        adamw = torch.optim.AdamW(model.parameters(), lr=0.03)
        hook = sc.learned_bits(target=3.5, per=per, end=4, bits=bits, strict=True, learner=adam(0.3))
        return sc.train_(model, task, adamw, 6, hooks=[hook, last], checkpoint=checkpoint, seed=1, show=False), bits

    straight, bits = train(whole, sc.Hook("stop"), None)
    train(copied, stop, tmp_path / "c")
    resumed, again = train(parts, sc.Hook("stop"), tmp_path / "c")
    assert straight.history == resumed.history and straight.history[-1]["bits"] <= 3.5 + 1e-5
    assert all(torch.equal(bits[name], again[name]) for name in WEIGHTS) and on_few_levels(parts, bits)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_a_loop_of_ones_own_comes_to_the_same() -> None:
    theirs, task = problem()
    model, bits = copy.deepcopy(theirs), {}
    sc.train_(theirs, task, sgd(theirs), 3, hooks=[sc.learned_bits(strength=0.1, learner=adam(0.3))], show=False)
    optimizer, hook = sgd(model), sc.learned_bits(strength=0.1, learner=adam(0.3), bits=bits)
    run = Run(model, task, optimizer, 3, masks=sc.Masks({}, model))
    hook.start(run)
    for run.epoch in range(3):
        for x, y in task.train:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        hook.epoch_end(run)
    hook.end(run)
    assert all(torch.equal(one, other) for one, other in zip(theirs.parameters(), model.parameters(), strict=True))
    assert on_few_levels(model, bits) and not optimizer._optimizer_step_pre_hooks


# ---------------------------------------------------------------- beside masks


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_masks_hold_those_of_before_and_those_that_grow(per: Any) -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.3), task)
    before, bits, seen = {name: mask.clone() for name, mask in masks.items()}, {}, []

    def look(run: Run) -> None:
        seen.append(all(not model.get_parameter(name)[~mask].any() for name, mask in run.masks.items()))

    grown = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.one_shot(0.6), begin=3, end=4, dead=False)
    hooks = [sc.learned_bits(strength=0.05, per=per, end=2, bits=bits, learner=adam(0.3)), grown, sc.Hook("look", stepped=look)]
    run = sc.train_(model, task, sgd(model), 5, masks=masks, hooks=hooks, show=False)
    assert all(seen) and len(seen) == 20 and run.masks.sparsity == pytest.approx(0.6, abs=0.02)
    for name, mask in run.masks.items():
        assert not (mask & ~before[name]).any() and not model.get_parameter(name)[~mask].any()
    assert on_few_levels(model, bits)


def test_masks_that_are_laid_at_the_very_end_move_the_levels_too() -> None:
    model, task = problem()

    def lay(run: Run) -> None:
        found = {name: torch.rand_like(model.get_parameter(name)) > 0.3 for name in WEIGHTS}
        run.masks.replace_(sc.Masks(found, model))

    bits: dict[str, Tensor] = {}
    hook = sc.learned_bits(strength=0.0, start=2.0, bits=bits, learner=plain(0.0))
    run = sc.train_(model, task, sgd(model), 1, hooks=[hook, sc.Hook("lay", epoch_end=lay)], show=False)
    assert on_few_levels(model, bits) and all(not model.get_parameter(name)[~mask].any() for name, mask in run.masks.items())


def test_half_precision_trains_and_nothing_is_left_after_an_error() -> None:
    model, task = problem()
    sc.train_(model, task, sgd(model), 1, amp=torch.float16, hooks=[sc.learned_bits(strength=0.1, per="channel")], show=False)
    hook = sc.learned_bits(strength=0.1)
    fail = sc.Hook("fail", gradients=lambda run: 1 / (2 - run.step) and None)
    with pytest.raises(ZeroDivisionError):
        sc.train_(model, task, optimizer := sgd(model), 1, hooks=[hook, fail], show=False)
    state = learning(hook)
    assert all(torch.equal(model.get_parameter(name), state._compute(name, state.whole[name])) for name in WEIGHTS)
    assert not optimizer._optimizer_step_pre_hooks
    model.bfloat16()
    task = sc.Task(task.example.bfloat16(), train=[(x.bfloat16(), y) for x, y in task.train], loss=cross_entropy)
    bits: dict[str, Tensor] = {}
    sc.train_(model, task, sgd(model), 1, hooks=[sc.learned_bits(strength=0.1, start=3.0, bits=bits)], show=False)
    assert on_few_levels(model, bits)


# ---------------------------------------------------------------- the target


def test_a_target_is_reached_told_or_cut() -> None:
    model, task = problem()
    with pytest.warns(UserWarning, match=r"learned_bits: the target of 3 bits was not reached, but 8, rounded up to whole bits"):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.learned_bits(target=3.0, learner=plain(1e-9))], show=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in ({"target": 3.0}, {"target_bytes": 72 * 3 / 8}):
            bits: dict[str, Tensor] = {}
            hook = sc.learned_bits(**asked, learner=plain(1e-9), strict=True, per="channel", bits=bits)
            sc.train_(model, task, sgd(model), 1, hooks=[hook], show=False)
            assert stored_bytes(Dense(), value_bits=bits)(model, task.example) == 72 * 3 / 8 + 4 * 11
        run = sc.train_(model, task, sgd(model), 20, hooks=[sc.learned_bits(target=4.0, learner=adam(0.1))], show=False)
    assert 3 < run.history[-1]["bits"] <= 4


def test_bits_stay_from_1_to_16_and_find_back() -> None:
    model, task = problem()
    hook = sc.learned_bits(strength=100.0, learner=plain(0.1))

    def turn(run: Run) -> None:
        values = learning(hook).beside.values
        assert all(value.tolist() == [1.0 if run.epoch == 0 else 16.0] for value in values.values())
        learning(hook).strength.now = -1000.0

    sc.train_(model, task, sgd(model), 2, hooks=[hook, sc.Hook("turn", epoch_end=turn)], show=False)


def test_those_lose_a_bit_that_are_nearest_to_it() -> None:
    model, _ = problem()
    hook = sc.learned_bits(target=3.0, strict=True)
    hook.start(run := Run(model, problem()[1], sgd(model), 1, masks=sc.Masks({}, model)))
    values, lengths = learning(hook).beside.values, learning(hook).beside.penalty.__self__
    hook.close(run)
    values["0.weight"].data.fill_(3.2), values["2.weight"].data.fill_(3.1)  # 4 and 4 rounded up, on average 4
    lengths.strength.target = 1 - 3.7 / 8
    with torch.no_grad():
        learning(hook).beside.final(values)
    assert [int(values[name]) for name in WEIGHTS] == [4, 3]
    values["0.weight"].data.fill_(3.9), values["2.weight"].data.fill_(1.0)
    lengths.strength.target = 1 - 1.4 / 8  # 1 bit is the least: all others come from the first
    with torch.no_grad():
        learning(hook).beside.final(values)
    assert [int(values[name]) for name in WEIGHTS] == [1, 1]


def test_the_method_is_the_hook_with_a_last_quarter_at_whole_bits() -> None:
    model, task = problem()
    run, bits = methods.bit_pruning_(model, task, sgd(model), 4, mean_bits=3, show=False)
    assert run.history[-1]["bits"] <= 3 and on_few_levels(model, bits) and set(bits) == set(WEIGHTS)


def test_bad_input_is_told() -> None:
    model, task = problem()
    for wrong, match in (
        ({}, "learned_bits: give strength=..., how strongly few bits are pressed for, target=..., the mean number"),
        ({"target": 8.0}, "learned_bits: target=8.0 is a mean of 8 bits a number, which must be from 1 to below start=8.0"),
        ({"target": 0.5}, "learned_bits: target=0.5 is a mean of 0.5 bits"),
        ({"target": 4, "target_bytes": 9}, "learned_bits: target_bytes= goes with neither target= nor weigh="),
        ({"target_bytes": 9, "weigh": "macs"}, "learned_bits: target_bytes= goes with neither target= nor weigh="),
        ({"target": 4, "start": 17}, "learned_bits: start=17, the bits at first, must be above 1, and 16 at most"),
        ({"target": 4, "per": "row"}, 'learned_bits: per=\'row\' is "layer" or "channel"'),
        ({"strength": -1.0}, "learned_bits: strength=-1.0 must be at least 0"),
        ({"target": 4, "reach": 0.0}, "learned_bits: reach=0.0"),
    ):
        with pytest.raises(SecateursError, match=match):
            sc.learned_bits(**wrong)
    with pytest.raises(SecateursError, match=r"learned_bits: target_bytes=100 for 72 numbers is a mean of 11.11 bits a number"):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.learned_bits(target_bytes=100)], show=False)
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(SecateursError, match=r"learned_bits: LBFGS computes several gradients in one step"):
        sc.train_(model, task, lbfgs, 1, hooks=[sc.learned_bits(target=4)], show=False)
