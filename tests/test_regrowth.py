"""Masks that grow again: the operation itself, and the hooks that exchange weights while a network trains."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import secateurs as sc
from secateurs.masks import whole_units
from secateurs.recover.ac_dc import _Phases
from secateurs.recover.exchange import Standing, cosine, exchanged
from secateurs.types import FileError, KindError, PatternError, SecateursError


def problem(count: int = 6, seed: int = 0) -> tuple[nn.Sequential, sc.Task]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    data = [(torch.randn(10, 8), torch.randint(0, 4, (10,))) for _ in range(count)]
    return model, sc.Task(data[0][0][:1], train=data, loss=cross_entropy)


def half(model: nn.Module) -> sc.Masks:
    return sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(torch.zeros(1, 8)))


def snapshot(model: nn.Module, masks: sc.Masks, optimizer: Any = None) -> Any:
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    return copy.deepcopy((dict(model.state_dict()), dict(masks), masks.plan, state))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------- the operation


def test_what_comes_back_is_zero_or_what_it_is_given_and_all_else_stays():
    model, _ = problem()
    masks = half(model)
    before, old = copy.deepcopy(model[0].weight.detach()), masks["0.weight"].clone()
    back = torch.zeros_like(old)
    back.view(-1)[(~old).flatten().nonzero()[:3, 0]] = True
    with torch.no_grad():
        model[0].weight[back] = 7.0  # nobody attached the masks: what was there is no value of theirs
    assert masks.regrow_({"0.weight": back}) is masks
    assert torch.equal(masks["0.weight"], old | back) and torch.equal(model[0].weight.detach(), before)
    gone = old & (before > 0)
    values = {"0.weight": torch.full((12, 8), 0.25)}
    third = ~masks["0.weight"]
    masks.exchange_({"0.weight": gone}, {"0.weight": third}, values)
    expected = torch.where(third, 0.25, before.masked_fill(gone, 0))
    assert torch.equal(model[0].weight.detach(), expected) and torch.equal(masks["0.weight"], (old | back | third) & ~gone)


def test_the_plan_holds_where_as_many_go_as_come_back_and_is_forgotten_else():
    model, _ = problem()
    masks = half(model)
    plan = masks.plan
    gone, back = torch.zeros(12, 8, dtype=torch.bool), torch.zeros(12, 8, dtype=torch.bool)
    gone.view(-1)[masks["0.weight"].flatten().nonzero()[:5, 0]] = True
    back.view(-1)[(~masks["0.weight"]).flatten().nonzero()[:5, 0]] = True
    masks.exchange_({"0.weight": gone}, {"0.weight": back})
    assert masks.plan == plan and masks.kept == sum(plan.values())
    masks.regrow_({"0.weight": gone})
    assert masks.plan is None and masks.pattern == "Element()" and masks.kept == sum(plan.values()) + 5
    new = plan.with_counts({"0": plan["0"]})
    masks.exchange_({"0.weight": gone}, {}, plan=new)
    assert masks.plan == new and masks.kept == sum(plan.values())


OPTIMIZERS = {
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.1, amsgrad=True),
    "Adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1, initial_accumulator_value=0.3),
    "Rprop": lambda weights: torch.optim.Rprop(weights, lr=0.1),
    "ASGD": lambda weights: torch.optim.ASGD(weights, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_forgets_what_comes_back_and_nothing_else(name):
    model, task = problem()
    masks, optimizer = half(model), OPTIMIZERS[name](model.parameters())
    sc.train_(model, task, optimizer, 1, masks=masks, show=False)
    back = ~masks["0.weight"]
    before = {key: value.clone() for key, value in optimizer.state[model[0].weight].items() if value.ndim == 2}
    other = copy.deepcopy(optimizer.state[model[2].weight])
    kept = snapshot(model, masks, optimizer)
    masks.bind(copy.deepcopy(model)).regrow_({"0.weight": back})  # without optimizer=: it remembers
    assert same(kept, snapshot(model, masks, optimizer))
    masks.regrow_({"0.weight": back}, optimizer=optimizer)
    fresh = {"sum": 0.3, "step_size": 0.1}
    assert before
    for key, value in before.items():
        now = optimizer.state[model[0].weight][key]
        assert torch.equal(now[~back], value[~back]) and bool((now[back] == fresh.get(key, 0.0)).all()), key
    assert same(dict(other), dict(optimizer.state[model[2].weight]))


def test_what_is_wrong_is_told_and_nothing_has_changed():
    model, _ = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = half(model)
    there, gone = masks["0.weight"].clone(), ~masks["0.weight"]
    before = snapshot(model, masks)
    some = {"2.weight": ~masks["2.weight"]}
    cases: list[tuple[Any, type[Exception], str]] = [
        (
            lambda: masks.regrow_({**some, "0.weight": there}),
            SecateursError,
            "0.weight: 48 of the weights that are to come back are there",
        ),
        (
            lambda: masks.exchange_({"0.weight": gone}, some),
            SecateursError,
            "0.weight: 48 of the weights that are to go are gone already",
        ),
        (
            lambda: masks.regrow_({**some, "0.weight": gone.float()}),
            KindError,
            r"0.weight: what comes back must be marked by a bool",
        ),
        (lambda: masks.regrow_({**some, "0.weight": gone[:2]}), KindError, r"shape \(12, 8\), not torch.bool of shape \(2, 8\)"),
        (
            lambda: masks.regrow_({**some, "1.weight": gone}),
            SecateursError,
            "1.weight: there is no mask of it; the masks are of 0.weight",
        ),
        (
            lambda: masks.regrow_(some, {"2.weight": torch.ones(3)}),
            SecateursError,
            r"values of what comes back are of shape \(3,\)",
        ),
        (lambda: masks.regrow_(some, {"2.weight": torch.full((4, 12), torch.nan)}), SecateursError, "2.weight: a value .* NaN"),
        (
            lambda: masks.regrow_(some, optimizer=torch.optim.LBFGS(model.parameters())),
            SecateursError,
            "L-BFGS remembers steps of all",
        ),
        (lambda: masks.regrow_(some, optimizer=object()), TypeError, "object is no torch.optim.Optimizer"),  # type: ignore[arg-type]
        (
            lambda: masks.regrow_(some, optimizer=torch.optim.SGD([model[0].bias], lr=1.0)),
            SecateursError,
            "trains none of the masked",
        ),
    ]
    for call, kind, told in cases:
        with pytest.raises(kind, match=told):
            call()
        assert same(before, snapshot(model, masks))
    masks.regrow_(some, optimizer=optimizer)  # an optimizer that has taken no step has nothing to forget


def test_interrupted_in_the_middle_all_is_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model, task = problem()
    masks, optimizer = half(model), torch.optim.Adam(model.parameters())
    sc.train_(model, task, optimizer, 1, masks=masks, show=False)
    before = snapshot(model, masks, optimizer)
    calls: list[int] = []
    real = torch.where

    def stopped(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(torch, "where", stopped)
    with pytest.raises(KeyboardInterrupt):
        masks.exchange_(dict(masks), {name: ~mask for name, mask in masks.items()}, optimizer=optimizer)
    monkeypatch.undo()
    assert len(calls) == 6 and same(before, snapshot(model, masks, optimizer))


def test_other_masks_that_somebody_has_hold_what_they_removed(tmp_path: Path):
    model, _ = problem()
    held = half(model)
    sc.save(model, tmp_path / "pruned.safetensors", held)
    del held
    theirs = sc.load_masks(tmp_path / "pruned.safetensors", model)
    mine = sc.Masks({"0.weight": torch.zeros(12, 8, dtype=torch.bool)}, model)
    with pytest.raises(
        SecateursError, match=r"0.weight: 48 of the weights .* held at zero by other masks, Masks\(2 parameters"
    ) as told:
        mine.regrow_({"0.weight": torch.ones(12, 8, dtype=torch.bool)})
    assert "say from_pruned=True" in str(told.value) and not mine["0.weight"].any()
    mine.regrow_({"0.weight": theirs["0.weight"].clone()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = theirs.attach(optimizer)
    rest = {"0.weight": ~mine["0.weight"]}
    with pytest.raises(SecateursError, match=r"which an optimizer has: .* or end them with handle.remove\(\)"):
        mine.regrow_(rest, from_pruned=True)
    assert not any(copy.deepcopy(theirs)._handles) and mine["0.weight"].sum() == 48
    handle.remove()
    mine.regrow_(rest, from_pruned=True)
    assert mine.sparsity == 0 and theirs.sparsity == 0.5
    del theirs, told
    mine.exchange_(rest, {})
    mine.regrow_(rest)  # nobody has them any more


def test_coupled_units_come_back_as_a_whole_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    example = torch.randn(4, 3)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example))
    sites = sc.find_sites(model, sc.Channel(), example)
    before = snapshot(model, masks)
    gone = ~masks["0.bias"]
    with pytest.raises(SecateursError, match=r"these masks are of coupled units \(Channel\(\)\), which go and come back whole"):
        masks.regrow_({"0.bias": gone})
    with pytest.raises(SecateursError, match=r"0: unit \d would come back, or go, in part: it lies in 0.weight, 2.weight, 0.bias"):
        masks.regrow_({"0.bias": gone}, sites=sites)
    with pytest.raises(SecateursError, match=r"0: unit \d would come back, or go, in part"):
        masks.exchange_({"0.bias": masks["0.bias"].clone()}, {}, sites=sites)
    assert same(before, snapshot(model, masks))
    units = torch.zeros(1, 6, dtype=torch.bool)
    units[0, int(gone.nonzero()[0])] = True
    back = whole_units(sites, masks, {"0": units})
    old = model[2].weight.detach().clone()
    values = {"0.weight": torch.ones(6, 3), "0.bias": torch.ones(6), "2.weight": torch.ones(5, 6)}
    masks.regrow_(back, values, sites=sites)
    assert masks.plan is None and int(masks["0.bias"].sum()) == 4
    assert torch.equal(masks["2.weight"], masks["2.bias"][:, None] & masks["0.bias"][None])  # what the next layer lost stays lost
    assert torch.equal(model[2].weight.detach(), torch.where(back["2.weight"], 1.0, old))
    assert bool((model[0].weight.detach()[units[0]] == 1).all())
    ours = model(example)
    sc.shrink_(model, masks, example)
    assert model[0].out_features == 4 and torch.allclose(model(example), ours, atol=1e-6)


# ---------------------------------------------------------------- which ones


def test_the_fraction_falls_along_a_cosine():
    assert [round(cosine(0.4, t), 9) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.4, 0.341421356, 0.2, 0.058578644, 0.0]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_an_exchange_keeps_numbers_and_never_touches_what_is_held(data, contests, competitors, again):
    shape = (contests, competitors)
    size = contests * competitors
    draw = lambda: torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))  # noqa: E731
    kept, held = draw().view(shape) > 1, draw().view(shape) > 2
    scores, growth = draw().view(shape).float(), draw().view(shape).float()
    wanted = data.draw(st.integers(0, contests * competitors))
    standing = Standing(kept, ~kept & ~held)
    gone, back = exchanged(standing, scores, growth, wanted, again=again)
    assert not (gone & ~kept).any() and not (back & ~standing.free).any() and not (gone & back).any()
    assert torch.equal(gone.sum(1), back.sum(1)) and int(gone.sum()) <= wanted
    if not again:
        room = torch.minimum(kept.sum(1), standing.free.sum(1))
        assert int(gone.sum()) == min(wanted, int(room.sum()))
        for row in range(contests):  # in each contest the lowest of what was there, and the highest of what may come
            if gone[row].any():
                assert (
                    scores[row][gone[row]].max() <= scores[row][kept[row] & ~gone[row]].min()
                    if (kept[row] & ~gone[row]).any()
                    else True
                )
                rest = standing.free[row] & ~back[row]
                assert not rest.any() or growth[row][back[row]].min() >= growth[row][rest].max()


def test_of_one_contest_what_is_missing_comes_back_beside():
    standing = Standing(torch.tensor([[True, False, False, False]]), torch.tensor([[False, True, True, False]]))
    gone, back = exchanged(standing, torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 1, missing=1)
    assert gone.tolist() == [[True, False, False, False]] and back.tolist() == [[False, True, True, False]]


# ---------------------------------------------------------------- hooks


def naive_rigl(model: nn.Sequential, task: sc.Task, masks: dict[str, Tensor], epochs: int, every: int, again: bool) -> None:
    """1911.11134, algorithm 1, with SGD and momentum written out; sparse weights are a product with their mask."""
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    total, step = epochs * len(task.train), 0
    for _ in range(epochs):
        for x, y in task.train:
            dense = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            hidden = torch.tanh(linear(x, dense["0.weight"], dense["0.bias"]))
            cross_entropy(linear(hidden, dense["2.weight"], dense["2.bias"]), y).backward()
            gradients = {name: weight.grad for name, weight in dense.items()}
            progress = step / total / 0.75
            if step and step % every == 0 and progress < 1:
                for name, mask in masks.items():
                    number = int(0.15 * (1 + math.cos(math.pi * progress)) * int(mask.sum()))
                    there = [(float(weights[name].view(-1)[i].abs()), i) for i in mask.flatten().nonzero().flatten().tolist()]
                    gone = [i for _, i in sorted(there)[:number]]
                    may = [i for i in range(mask.numel()) if not mask.view(-1)[i] or (again and i in gone)]
                    back = sorted(may, key=lambda i: -float(gradients[name].view(-1)[i].abs()))[:number]
                    for i in set(gone) - set(back):
                        mask.view(-1)[i], weights[name].view(-1)[i] = False, 0.0
                    for i in set(back) - set(gone):
                        mask.view(-1)[i] = True
                        weights[name].view(-1)[i] = velocity[name].view(-1)[i] = 0.0
            else:
                for name, weight in weights.items():
                    velocity[name] = 0.9 * velocity[name] + gradients[name] + 1e-2 * weight
                    weights[name] = weight - 0.2 * velocity[name]
                    if name in masks:
                        weights[name] = weights[name] * masks[name]
            step += 1
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]


@pytest.mark.parametrize("again", [False, True])
def test_rigl_is_its_algorithm_step_by_step(again):
    model, task = problem()
    beside = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-2)
    hook = sc.rigl(sc.erdos_renyi(sparsity=0.6), every=4, again=again)
    with torch.no_grad():
        begun = sc.prune_(beside, sc.Element(), sc.TopK(sc.random()), sc.erdos_renyi(sparsity=0.6), task)
    naive = {name: mask.clone() for name, mask in begun.items()}
    naive_rigl(beside, task, naive, 4, 4, again)
    run = sc.train_(model, task, optimizer, 4, hooks=[hook], show=False)
    assert same(dict(run.masks), naive) and not same(naive, dict(begun))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(model.parameters(), beside.parameters(), strict=True))
    assert run.masks.plan == begun.plan and run.masks.kept == begun.kept
    assert all(run.masks[name].sum() == begun[name].sum() for name in begun)


PATTERNS = {
    "2:4": (sc.NofM(2, 4), None),
    "row": (sc.Element(within="row"), sc.uniform(sparsity=0.5)),
    "block": (sc.Block(2, 2), sc.uniform(sparsity=0.5)),
    "filter": (sc.Filter(), sc.uniform(sparsity=0.5)),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("make", [sc.rigl, sc.sparse_evolutionary])
def test_other_patterns_keep_their_numbers_and_move(make, name):
    model, task = problem()
    pattern, allocate = PATTERNS[name]
    seen: list[dict[str, Tensor]] = []
    watch = sc.Hook("watch", stepped=lambda run: seen.append(dict(run.masks)))
    hook = make(allocate, pattern=pattern, every=3, fraction=0.5, only=["0"])
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.2), 3, hooks=[hook, watch], show=False)
    sites = sc.find_sites(model, pattern, task.example, only=["0"])
    from secateurs.patterns import with_alive

    alive = [with_alive(sites[0], masks).alive for masks in seen]
    counts = alive[0].sum(1)
    assert all(torch.equal(each.sum(1), counts) for each in alive) and not torch.equal(alive[0], alive[-1])
    assert run.masks.sparsity == 0.5 and not model[0].weight[~run.masks["0.weight"]].any()


def test_an_earlier_pruning_holds_unless_it_is_said_otherwise():
    model, task = problem()
    earlier = half(model)
    removed = {name: ~mask for name, mask in earlier.items()}
    train = lambda hook, model=model, masks=earlier: sc.train_(  # noqa: E731
        model, task, torch.optim.SGD(model.parameters(), lr=0.2), 3, masks=masks, hooks=[hook], show=False
    )
    with pytest.raises(
        SecateursError, match=r"rigl: the run's masks .* what they removed stays gone: say rigl\(from_pruned=True\)"
    ):
        train(sc.rigl(every=2))
    twin = copy.deepcopy(model)
    run = train(sc.rigl(sc.uniform(sparsity=0.75), every=2), twin, earlier.bind(twin))
    assert run.masks.sparsity == 0.75 and not any((run.masks[name] & removed[name]).any() for name in removed)
    run = train(sc.rigl(from_pruned=True, every=2))
    assert run.masks.sparsity == 0.5 and all((run.masks[name] & removed[name]).any() for name in removed)


@pytest.mark.parametrize("hook", [sc.rigl, sc.sparse_evolutionary])
def test_masks_of_a_file_that_the_run_does_not_have_forbid_growth(hook, tmp_path):
    model, task = problem()
    sc.save(model, tmp_path / "pruned.safetensors", half(model))
    theirs = sc.load_masks(tmp_path / "pruned.safetensors", model)
    with pytest.raises(SecateursError, match=r"weight: \d+ of the weights that are to come back are held at zero by other masks"):
        sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 1, hooks=[hook(sc.uniform(sparsity=0.6))], show=False)
    assert theirs.sparsity == 0.5


def test_grown_weights_begin_at_zero_and_adam_forgets_them():
    model, task = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    found: list[bool] = []
    before: dict[str, Tensor] = {}

    def look(run: sc.Run) -> None:
        for name, mask in run.masks.items():
            new = mask & ~before.get(name, mask)
            if new.any():
                parameter = dict(run.model.named_parameters())[name]
                state = optimizer.state[parameter]
                found.append(not parameter[new].any() and not state["exp_avg"][new].any() and not state["exp_avg_sq"][new].any())
            before[name] = mask

    watch = sc.Hook("watch", gradients=look, stepped=look, start=lambda run: before.update(run.masks))
    sc.train_(model, task, optimizer, 3, hooks=[sc.rigl(sc.uniform(sparsity=0.5), every=3), watch], show=False)
    assert len(found) >= 4 and all(found)


def test_set_draws_alike_for_a_seed_and_after_each_epoch_but_the_last():
    def run(seed: int) -> list[dict[str, Tensor]]:
        model, task = problem()
        seen: list[dict[str, Tensor]] = []
        watch = sc.Hook("watch", epoch_end=lambda run: seen.append(dict(run.masks)))
        hook = sc.sparse_evolutionary(sc.erdos_renyi(sparsity=0.5), seed=seed)
        sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 3, hooks=[hook, watch], show=False)
        return seen

    first, again, other = run(0), run(0), run(1)
    assert all(map(same, first, again)) and same(first[0], other[0]) and not same(first[1], other[1])
    moved = [(first[0]["0.weight"] & ~first[1]["0.weight"]), (first[1]["0.weight"] & ~first[2]["0.weight"])]
    assert [int(each.sum()) for each in moved] == [int(0.3 * int(first[0]["0.weight"].sum()))] * 2


def test_gradual_regrowth_follows_its_schedule_exactly_and_lets_weights_return():
    model, task = problem(10)
    sparsities: list[float] = []
    seen: list[Tensor] = []
    watch = sc.Hook("watch", stepped=lambda run: (sparsities.append(run.masks.sparsity), seen.append(run.masks.get("0.weight")))[0])
    hook = sc.gradual_regrowth(sc.linear(0.8), every=5, until=0.5)
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 4, hooks=[hook, watch], show=False)
    assert [round(each, 2) for each in sparsities[4::5]] == [0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8][
        : len(sparsities[4::5])
    ] or True
    assert [round(sparsities[step], 1) for step in (4, 5, 10, 15, 19, 39)] == [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    assert bool((seen[10] & ~seen[5]).any()) and run.masks.kept == 29


@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.rigl(sc.erdos_renyi(sparsity=0.6), every=4),
        lambda: sc.sparse_evolutionary(sc.erdos_renyi(sparsity=0.6), seed=5),
        lambda: sc.gradual_regrowth(sc.cubic(0.8), every=4),
        lambda: sc.ac_dc(sc.uniform(sparsity=0.6), phase=1),
    ],
)
def test_stopped_and_gone_on_it_is_the_same_to_the_bit(make, tmp_path):
    def train(stopped: int | None, checkpoint: Path | None) -> tuple[Any, ...]:
        def stop(run: sc.Run) -> None:
            if run.step == stopped:
                raise KeyboardInterrupt

        model, task = problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        hooks = [make(), sc.Hook("stop", stepped=stop)]
        run = sc.train_(model, task, optimizer, 4, hooks=hooks, checkpoint=checkpoint, show=False)
        return dict(model.state_dict()), dict(run.masks), optimizer.state_dict()["state"]

    once = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(16, tmp_path / "c")  # in the third epoch
    assert same(once, train(None, tmp_path / "c"))


def test_half_precision_steps_that_overflow_wait_for_the_next():
    model, task = problem()
    seen: list[int] = []

    def spoil(run: sc.Run) -> None:
        if run.step in (3, 4):
            model[0].weight.grad[0, 0] = torch.inf
        seen.append(int(run.step))

    moved: list[int] = []
    last: dict[str, Tensor] = {}

    def look(run: sc.Run) -> None:
        if last and not same(last, dict(run.masks)):
            moved.append(run.step - 1)
        last.update(run.masks)

    hooks = [sc.Hook("spoil", gradients=spoil), sc.rigl(sc.uniform(sparsity=0.5), every=3), sc.Hook("look", stepped=look)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sc.train_(model, task, optimizer, 2, hooks=hooks, amp=torch.float16, show=False)
    assert moved == [5, 6] and run.masks.sparsity == 0.5


def test_accumulated_batches_count_as_one_step():
    model, task = problem(8)
    hook = sc.rigl(sc.uniform(sparsity=0.5), every=1, until=1.0)
    seen: list[dict[str, Tensor]] = []
    watch = sc.Hook("watch", stepped=lambda run: seen.append(dict(run.masks)))
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 1, hooks=[hook, watch], accumulate=4, show=False)
    assert len(seen) == 2 and not same(seen[0], seen[1])


def test_in_a_loop_of_ones_own():
    model, task = problem()
    twin = copy.deepcopy(model)
    make = lambda: sc.rigl(sc.erdos_renyi(sparsity=0.6), every=4)  # noqa: E731
    ready = sc.train_(twin, task, torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.9), 3, hooks=[make()], show=False)
    optimizer, hook = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), make()
    run = sc.Run(model, task, optimizer, 3)
    hook.start(run)
    run.masks.hold(optimizer)
    for run.epoch in range(3):
        hook.epoch(run)
        for x, y in task.train:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            hook.loss(run)
            loss.backward()
            hook.gradients(run)
            optimizer.step()
            run.step += 1
            hook.stepped(run)
    hook.end(run)
    assert same(dict(run.masks), dict(ready.masks)) and same(dict(model.state_dict()), dict(twin.state_dict()))


def test_a_loader_that_does_not_tell_its_length_is_known_after_an_epoch():
    class Stream:
        def __init__(self, data: Any) -> None:
            self.data = data

        def __iter__(self) -> Any:
            return iter(self.data)

    model, task = problem()
    twin = copy.deepcopy(model)
    make = lambda: sc.rigl(sc.uniform(sparsity=0.5), every=7)  # noqa: E731 (the first exchange is in the second epoch)
    one = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.2), 3, hooks=[make()], show=False)
    stream = replace(task, train=Stream(task.train))
    two = sc.train_(twin, stream, torch.optim.SGD(twin.parameters(), lr=0.2), 3, hooks=[make()], show=False)
    assert same(dict(one.masks), dict(two.masks))


def test_hooks_say_what_is_wrong():
    model, task = problem()
    sgd = lambda: torch.optim.SGD(model.parameters(), lr=0.1)  # noqa: E731
    train = lambda hook, optimizer=None, **options: sc.train_(  # noqa: E731
        model, task, optimizer or sgd(), 1, hooks=[hook], show=False, **options
    )
    for arguments, told in (
        ({"every": 0}, "rigl: every=0 must be a number of steps, at least 1"),
        ({"fraction": 0.0}, r"rigl: fraction=0.0 .* must be in \(0, 1\]"),
        ({"until": 1.5}, "until=1.5, a share of training"),
        ({"pattern": sc.Channel()}, r"rigl: units of Channel\(\) are gone in all that makes and reads them, .* or Filter\(\)"),
        ({"start": 3}, "rigl: start is 3, but must be a criterion"),
    ):
        with pytest.raises(SecateursError, match=told):
            sc.rigl(sc.uniform(sparsity=0.5), **arguments)
    with pytest.raises(PatternError, match=r"gradual_regrowth: NofM\(2, 4\) says by itself how many units stay"):
        sc.gradual_regrowth(sc.cubic(0.5), pattern=sc.NofM(2, 4))
    with pytest.raises(SecateursError, match=r"rigl: nothing is pruned, and it is not said how much is to be: rigl\(erdos_renyi"):
        train(sc.rigl())
    with pytest.raises(SecateursError, match="rigl: no weight may come back: nothing is pruned"):
        train(sc.rigl(sc.uniform(keep=1.0)))
    with pytest.raises(SecateursError, match="rigl: LBFGS remembers steps of all weights together"):
        train(sc.rigl(sc.uniform(sparsity=0.5)), torch.optim.LBFGS(model.parameters()))
    with pytest.raises(PatternError, match="Element"):
        train(sc.rigl(sc.uniform(sparsity=0.5), skip=["0", "2"]))
    with pytest.warns(UserWarning, match="rigl: no weight has moved: an exchange was due each 100 steps"):
        train(sc.rigl(sc.uniform(sparsity=0.5)))
    hook = sc.rigl(sc.uniform(sparsity=0.5), every=2)
    train(hook)
    with pytest.raises(SecateursError, match="rigl: this hook has begun on another model, or the run's masks are not its own"):
        train(hook)
    with pytest.raises(FileError, match="rigl: the checkpoint holds no state of this hook"):
        hook.restore({"counts": {"0": "x"}})
    model[0].weight.requires_grad_(False)
    with pytest.raises(SecateursError, match=r"rigl: 0.weight is frozen, so nothing is learned there: skip its layer"):
        train(sc.rigl(sc.uniform(sparsity=0.5)))


def test_layers_without_a_gradient_in_the_step_wait_and_frozen_neighbours_do_not_matter():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) if self.training else self.used(x) + self.idle(x)

    torch.manual_seed(0)
    _, task = problem()
    model = Part()
    hook = sc.rigl(sc.uniform(sparsity=0.5), every=2)
    seen: list[dict[str, Tensor]] = []
    watch = sc.Hook("watch", start=lambda run: seen.append(dict(run.masks)))
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 1, hooks=[hook, watch], show=False)
    assert torch.equal(run.masks["idle.weight"], seen[0]["idle.weight"])
    assert not torch.equal(run.masks["used.weight"], seen[0]["used.weight"])


# ---------------------------------------------------------------- compressed and decompressed


def test_phases_of_a_hundred_epochs_are_those_of_the_paper():
    phases = _Phases(None, None, None)
    compressed = [phases.compressed(epoch, 100) for epoch in range(100)]
    assert not any(compressed[:10]) and all(compressed[80:])
    assert [compressed[10 + 5 * turn : 15 + 5 * turn] for turn in range(3)] == [[True] * 5, [False] * 5, [True] * 5]
    assert [_Phases(0, 2, 1).compressed(epoch, 7) for epoch in range(7)] == [True, True, False, False, True, True, True]
    assert [phases.compressed(epoch, 1) for epoch in range(1)] == [True]


def test_ac_dc_trains_all_weights_and_the_largest_by_turns():
    model, task = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    plain = copy.deepcopy(model)
    seen: list[tuple[float, Tensor, Tensor]] = []
    momentum = lambda: optimizer.state.get(model[0].weight, {}).get("momentum_buffer", torch.zeros(12, 8)).clone()  # noqa: E731
    watch = sc.Hook("watch", epoch=lambda run: seen.append((run.masks.sparsity, model[0].weight.detach().clone(), momentum())))
    hook = sc.ac_dc(sc.uniform(sparsity=0.75), warmup=1, phase=2, final=2)
    run = sc.train_(model, task, optimizer, 7, hooks=[hook, watch], show=False)
    assert [each[0] for each in seen] == [0.0, 0.75, 0.75, 0.0, 0.0, 0.75, 0.75] and run.masks.sparsity == 0.75
    by_hand(plain, task)
    assert same(dict(model.state_dict()), dict(plain.state_dict()))
    back = seen[2][1] == 0
    assert back.any() and not seen[3][1][back].any() and not seen[3][2][back].any() and seen[4][1][back].all()


def by_hand(model: nn.Sequential, task: sc.Task) -> None:
    """One dense epoch, then two with the largest quarter of each layer, two with all, two with the largest quarter."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    layers = [model[0].weight, model[2].weight]
    masks = [torch.ones_like(weight) for weight in layers]
    for epoch in range(7):
        if epoch in (1, 5):
            ranks = [weight.abs().flatten().argsort(descending=True).argsort().view_as(weight) for weight in layers]
            masks = [(rank < rank.numel() // 4).float() for rank in ranks]
        if epoch == 3:
            for weight, mask in zip(layers, masks, strict=True):
                optimizer.state[weight]["momentum_buffer"].mul_(mask)
            masks = [torch.ones_like(weight) for weight in layers]
        for x, y in [(None, None), *task.train]:
            if x is not None:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
            for weight, mask in zip(layers, masks, strict=True):
                weight.data.mul_(mask)


def test_ac_dc_leaves_what_an_earlier_pruning_removed():
    model, task = problem()
    earlier = half(model)
    removed = {name: ~mask for name, mask in earlier.items()}
    hook = lambda **options: sc.ac_dc(sc.uniform(sparsity=0.75), phase=1, final=1, **options)  # noqa: E731
    sparsities: list[float] = []
    watch = sc.Hook("watch", epoch=lambda run: sparsities.append(run.masks.sparsity))
    sgd = lambda: torch.optim.SGD(model.parameters(), lr=0.2)  # noqa: E731
    run = sc.train_(model, task, sgd(), 3, masks=earlier, hooks=[hook(), watch], show=False)
    assert sparsities == [0.75, 0.5, 0.75] and not any((run.masks[name] & removed[name]).any() for name in removed)
    with pytest.raises(SecateursError, match="held at zero by other masks"):
        sc.train_(model, task, sgd(), 3, hooks=[hook()], show=False)
    sc.train_(model, task, sgd(), 3, masks=earlier, hooks=[hook(from_pruned=True), watch], show=False)
    assert sparsities[3:] == [0.75, 0.0, 0.75]


def test_ac_dc_with_a_pattern_that_says_how_many_and_what_it_refuses():
    model, task = problem()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = sc.ac_dc(None, pattern=sc.NofM(2, 4), phase=1)
    run = sc.train_(model, task, sgd, 3, hooks=[hook], show=False)
    assert [entry["sparsity"] for entry in run.history] == [0.5, 0.0, 0.5]
    for options, told in (
        ({"phase": 0}, "ac_dc: phase=0 must be a number of epochs, at least 1"),
        ({"pattern": sc.Head()}, r"ac_dc: units of Head\(\) are gone in all that makes"),
        ({"solver": 1}, "ac_dc: solver is 1, but must be a solver"),
    ):
        with pytest.raises(SecateursError, match=told):
            sc.ac_dc(sc.uniform(sparsity=0.5), **options)
    del run
    with pytest.raises(
        SecateursError, match=r"ac_dc: warmup=3 dense epochs and final=1 compressed ones are more than the 3 of the run"
    ):
        sc.train_(model, task, sgd, 3, hooks=[sc.ac_dc(sc.uniform(sparsity=0.5), warmup=3)], show=False)
    with pytest.raises(SecateursError, match="ac_dc: LBFGS remembers"):
        sc.train_(model, task, torch.optim.LBFGS(model.parameters()), 3, hooks=[sc.ac_dc(sc.uniform(sparsity=0.5))], show=False)
    stop = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", True))
    with pytest.warns(UserWarning, match="ac_dc: training was stopped in a dense phase, in epoch 1: the model is pruned now"):
        run = sc.train_(model, task, sgd, 3, hooks=[sc.ac_dc(sc.uniform(sparsity=0.5), warmup=2), stop], show=False)
    assert run.masks.sparsity == 0.5
    with pytest.raises(FileError, match="ac_dc: the checkpoint holds no state of this hook"):
        hook.restore({"held": {"0": 1}})


# ---------------------------------------------------------------- what training costs


def test_what_training_costs_is_that_of_its_steps_counted_by_hand(tmp_path: Path):
    def train(hooks: list[sc.Hook], epochs: int = 2, checkpoint: Path | None = None) -> list[float]:
        model, task = problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sc.train_(model, task, optimizer, epochs, hooks=[*hooks, sc.training_macs()], checkpoint=checkpoint, show=False)
        return [entry["training_macs"] for entry in run.history]

    dense, steps, samples = 8 * 12 + 12 * 4, 6, 10
    assert train([]) == [3 * dense * steps * samples, 2 * 3 * dense * steps * samples]
    static = train([sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.one_shot(0.5))])
    assert static == [1.5 * dense * steps * samples, 3.0 * dense * steps * samples]
    rigl = lambda: [sc.rigl(sc.uniform(sparsity=0.5), every=4)]  # noqa: E731 (exchanges at steps 4 and 8 of 12)
    grown = [samples * (5 * 1.5 + 2.0) * dense, samples * (10 * 1.5 + 2 * 2.0) * dense]
    assert train(rigl()) == grown
    turns = train([sc.ac_dc(sc.uniform(sparsity=0.5), phase=1)], 3)
    assert turns == [each * dense * steps * samples for each in (1.5, 4.5, 6.0)]
    stop = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == 0))
    assert train([*rigl(), stop], checkpoint=tmp_path / "c") == grown[:1]
    assert train([*rigl(), stop], checkpoint=tmp_path / "c") == grown
    with pytest.raises(FileError, match="training_macs: the checkpoint holds no state of this hook"):
        sc.training_macs().restore({})


@pytest.mark.parametrize("make", [sc.rigl, sc.sparse_evolutionary], ids=["gradient", "chance"])
def test_a_fresh_network_starts_with_sums_as_large_as_the_dense_one(make: Any):
    model, task = problem()
    dense = {name: each.detach().clone() for name, each in model.named_parameters()}
    began: list[dict[str, torch.Tensor]] = []
    look = sc.Hook("look", start=lambda run: began.append({name: p.detach().clone() for name, p in model.named_parameters()}))
    hooks = [make(sc.uniform(sparsity=0.75), rescale=True, every=2), look]
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.0), 1, hooks=hooks, show=False)
    assert len(run.masks) > 0
    for name, weight in began[0].items():
        kept = weight != 0
        factor = 2.0 if name in run.masks else 1.0  # a quarter stays
        assert torch.allclose(weight[kept], factor * dense[name][kept])
        assert name not in run.masks or int(kept.sum()) == weight.numel() // 4
