"""Lottery tickets: their controls, the line between two networks, where to rewind to, and tickets drawn early."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.methods import early_bird_, random_ticket_
from secateurs.recover import Line
from secateurs.tasks import Batches, accuracy
from secateurs.types import FileError, KindError, PatternError, SecateursError, TaskError


def problem(norm: bool = False, seed: int = 0) -> tuple[nn.Sequential, sc.Task]:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(12)] if norm else []
    model = nn.Sequential(nn.Linear(6, 12), *middle, nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(40, 6)
    data = Batches(x, x[:, :3].argmax(1), batch_size=10, shuffle=True)
    still = Batches(x, x[:, :3].argmax(1), batch_size=20)
    return model, sc.Task(x[:2], train=data, validation=still, calibration=still, loss=cross_entropy, metric=accuracy)


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- the line between two networks


def test_the_line_is_that_of_mixed_weights_with_statistics_taken_anew():
    (first, task), (second, _) = problem(norm=True, seed=0), problem(norm=True, seed=1)
    for model in (first, second):
        sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.3), 2, show=False)
    before, chance = [copy.deepcopy(model.state_dict()) for model in (first, second)], torch.get_rng_state()
    line = sc.line_between(first, second, task, points=5)
    assert (
        torch.equal(chance, torch.get_rng_state()) and same(before[0], first.state_dict()) and same(before[1], second.state_dict())
    )
    x, y = task.validation.inputs, task.validation.targets
    for step, found in enumerate(line.metrics):
        share, mixed = step / 4, copy.deepcopy(first)
        for one, other in zip(mixed.parameters(), second.parameters(), strict=True):
            one.data = (1 - share) * one.data + share * other.data
        hidden = mixed[0](x)
        if step in (0, 4):
            norm = (first, second)[step // 4][1]
            mean, variance = norm.running_mean, norm.running_var
        else:
            mean, variance = hidden.mean(0), hidden.var(0)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt() * mixed[1].weight + mixed[1].bias
        assert found == pytest.approx(float((mixed[3](torch.relu(hidden)).argmax(1) == y).float().mean()))
    assert line.barrier == pytest.approx((line.metrics[0] + line.metrics[-1]) / 2 - min(line.metrics))


def test_the_same_network_has_no_barrier_and_one_with_permuted_neurons_has():
    model, task = problem()
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.5), 6, show=False)
    assert sc.line_between(model, model, task, points=3).barrier == 0
    permuted, order = copy.deepcopy(model), torch.arange(12).roll(5)
    with torch.no_grad():
        for layer, part in ((permuted[0].weight, order), (permuted[0].bias, order), (permuted[2].weight, (slice(None), order))):
            layer.copy_(layer[part].clone())
    assert torch.allclose(permuted(task.example), model(task.example), atol=1e-5)
    assert sc.line_between(model, permuted, task, points=5).barrier > 0.05
    assert Line((2.0, 3.0, 1.0), higher_is_better=False).barrier == 1.5


def test_two_runs_from_one_point_differ_by_their_seeds_alone():
    model, task = problem()
    before, seen = copy.deepcopy(model.state_dict()), {}

    def train(copy_: nn.Module, seed: int) -> None:
        sc.train_(copy_, task, torch.optim.SGD(copy_.parameters(), lr=0.2), 1, seed=seed, show=False)
        seen[seed] = copy.deepcopy(copy_.state_dict())

    line = sc.instability(model, train, task, points=3, seeds=(3, 4))
    assert same(before, model.state_dict()) and seen.keys() == {3, 4} and not same(seen[3], seen[4])
    ends = [copy.deepcopy(model) for _ in seen]
    for end, seed in zip(ends, seen, strict=True):
        end.load_state_dict(seen[seed])
    assert line == sc.line_between(*ends, task, points=3)
    with pytest.warns(UserWarning, match="both trainings, with seeds 5 and 5, end in the same network"):
        sc.instability(model, train, task, points=3, seeds=(5, 5))


def test_the_rewinding_point_is_the_first_stable_epoch(recwarn: pytest.WarningsRecorder):
    model, task = problem()
    calls: list[Any] = []
    masks = sc.Masks({"0.weight": torch.rand(12, 6) > 0.5}, model)

    def train(copy_: nn.Module, *, seed: int, begin: int, end: int | None, masks: sc.Masks | None) -> None:
        calls.append(
            (seed, begin, end, None if masks is None else (masks["0.weight"].sum() == held, not copy_[0].weight[~kept].any()))
        )
        if end is not None:
            copy_[0].bias.data += end - begin
        elif begin < 2:  # each seed goes a way of its own
            copy_[2].weight.data = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))

    kept, held, start = masks["0.weight"], masks.kept, model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match="end in the same network"):  # from epoch 2 on
        found = sc.rewinding_point(model, train, task, epochs=(0, 1, 2, 3), threshold=0.05, masks=masks, points=3)
    assert found.epoch == 2 and list(found.lines) == [0, 1, 2] and found.lines[1].barrier > 0.05
    both = lambda begin: [(0, begin, None, (True, True)), (1, begin, None, (True, True))]  # noqa: E731
    assert calls == [*both(0), (0, 0, 1, None), *both(1), (0, 1, 2, None), *both(2)]
    assert torch.equal(model[0].weight.detach(), start)  # a copy is what is trained, and masked
    with pytest.warns(
        UserWarning, match=r"no epoch is stable: barriers are .* from epoch 0, .* from epoch 1, above 0; try later"
    ) as told:
        assert sc.rewinding_point(model, train, task, epochs=(0, 1), threshold=0.0, points=3).epoch is None
    assert len(told) == 1


def test_lines_say_what_is_wrong():
    model, task = problem()
    other = nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 3))
    for call, kind, told in (
        (
            lambda: sc.line_between(model, other, task),
            SecateursError,
            "the networks differ in 0.weight, so there is no line between",
        ),
        (lambda: sc.line_between(model, model, task, points=2), SecateursError, "points=2 must be at least 3"),
        (lambda: sc.line_between(model, 3, task), KindError, "line_between: second is 3, but must be a torch.nn.Module"),
        (
            lambda: sc.line_between(model, model, sc.Task(task.example)),
            TaskError,
            r"line_between: give Task\(validation=..., metric=",
        ),
        (lambda: sc.rewinding_point(model, print, task, epochs=(2, 1)), SecateursError, r"epochs=\(2, 1\) must be rising numbers"),
        (lambda: sc.rewinding_point(model, print, task, threshold=-1.0), SecateursError, "threshold=-1.0 not negative"),
    ):
        with pytest.raises(kind, match=told):
            call()
    normed, _ = problem(norm=True)
    blind = sc.Task(task.example, validation=task.validation, metric=accuracy)
    with pytest.raises(TaskError, match="statistics are taken on data"):
        sc.line_between(normed, normed, blind)


# ---------------------------------------------------------------- controls


def test_shuffled_masks_keep_as_many_in_each_weight_elsewhere():
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.7), task)
    before = copy.deepcopy(model.state_dict())
    one, again, other = (sc.shuffled(masks, model, seed=seed) for seed in (1, 1, 2))
    assert same(one, again) and all(one[name].sum() == masks[name].sum() for name in masks) and one.plan is None
    assert not same(one, other) and not same(one, masks) and one.pattern == "Element(), shuffled"
    assert same(before, model.state_dict())
    channels = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    with pytest.raises(SecateursError, match=r"shuffled: these masks are of coupled units \(Channel\(\)\)"):
        sc.shuffled(channels, model)


def test_each_control_changes_one_thing():
    model, task = problem()
    original, other = copy.deepcopy(model.state_dict()), problem(seed=7)[0].state_dict()
    ticket = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    kept = {name: mask.clone() for name, mask in ticket.items()}

    def control(which: Any, weights: Any, epochs: int = 0) -> sc.Masks:
        run = random_ticket_(
            model,
            task,
            torch.optim.SGD(model.parameters(), lr=0.1),
            epochs,
            ticket=ticket,
            weights=weights,
            control=which,
            show=False,
        )
        if not epochs:
            expected = {name: value * run.masks[name] if name in run.masks else value for name, value in weights.items()}
            assert same(expected, model.state_dict())
        return run.masks

    assert same(control("reinitialised", other), kept)
    for which in ("shuffled", "random"):
        masks = control(which, original)
        assert not same(masks, kept) and all(masks[name].sum() == kept[name].sum() for name in kept)
    control("random", original, epochs=1)
    with pytest.raises(SecateursError, match="control='best' must be"):
        control("best", original)
    ticket = sc.Masks(kept, model)
    with pytest.raises(SecateursError, match="the ticket has no plan that says how many units stay"):
        control("random", original)


# ---------------------------------------------------------------- drawn early


def scales(model: nn.Sequential) -> Tensor:
    return model[1].weight.data


def test_an_early_bird_is_drawn_once_the_choice_has_settled():
    model, task = problem(norm=True)
    model[1].weight.requires_grad_(False)
    values = [torch.arange(1.0, 13.0).roll(turn) for turn in (6, 3, 2, 2, 1, 1, 1, 1)]  # half of them go
    largest = [set(each.argsort()[6:].tolist()) for each in values]

    def set_(run: sc.Run) -> None:
        scales(model).copy_(values[run.epoch] * (scales(model) != 0))

    seen: list[float] = []
    watch = sc.Hook("watch", epoch=lambda run: seen.append(float(run.masks.sparsity)))
    hook = sc.early_bird(sc.uniform(sparsity=0.5), window=3, threshold=0.2)
    run = sc.train_(
        model, task, torch.optim.SGD(model.parameters(), lr=0.1), 8, hooks=[hook, sc.Hook("set", epoch=set_), watch], show=False
    )
    expected = [max(len(largest[epoch] ^ largest[epoch - back]) / 12 for back in (1, 2)) for epoch in range(2, 8)]
    first = next(epoch for epoch, distance in enumerate(expected, 2) if distance <= 0.2)
    distances = [entry["mask_distance"] for entry in run.history if "mask_distance" in entry]
    assert distances == pytest.approx(expected[: first - 1]) and 2 < first < 7
    assert [sparsity > 0 for sparsity in seen] == [epoch > first for epoch in range(8)]
    assert set(run.masks["1.weight"].nonzero().flatten().tolist()) == largest[first]
    sc.shrink_(model, run.masks, task.example)
    assert model[0].out_features == 6


def test_a_choice_that_never_settles_is_told_or_cut_at_the_end():
    model, task = problem(norm=True)
    model[1].weight.requires_grad_(False)

    def flip(run: sc.Run) -> None:
        scales(model).copy_(torch.arange(12.0).flip(0) if run.epoch % 2 else torch.arange(12.0))

    train = lambda hook, epochs=3: sc.train_(  # noqa: E731
        model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs, hooks=[sc.Hook("flip", epoch=flip), hook], show=False
    )
    with pytest.warns(
        UserWarning, match=r"has not settled within 3 epochs, so nothing is pruned: the least distance was 1, above 0.1"
    ):
        assert not train(sc.early_bird(sc.uniform(sparsity=0.5), window=2)).masks
    with pytest.warns(UserWarning, match="it takes 5 epochs"):
        train(sc.early_bird(sc.uniform(sparsity=0.5)))
    assert train(sc.early_bird(sc.uniform(sparsity=0.5), window=2, strict=True)).masks["1.weight"].sum() == 6


def test_an_early_bird_goes_on_after_a_stop_to_the_bit(tmp_path: Path):
    def train(stopped: int | None, checkpoint: Path | None) -> Any:
        def stop(run: sc.Run) -> None:
            if run.step == stopped:
                raise KeyboardInterrupt

        model, task = problem(norm=True)
        hooks = [sc.early_bird(sc.global_threshold(sparsity=0.5), window=3, threshold=0.3), sc.Hook("stop", stepped=stop)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        run = sc.train_(model, task, optimizer, 5, hooks=hooks, checkpoint=checkpoint, seed=0, show=False)
        return {**model.state_dict(), **{f"mask {name}": mask for name, mask in run.masks.items()}}

    once = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(10, tmp_path / "c")
    gone_on = train(None, tmp_path / "c")
    assert same(once, gone_on) and "mask 1.weight" in once


def test_early_birds_say_what_is_wrong():
    model, task = problem()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SecateursError, match=r"early_bird: window=1 must be a number of epochs, at least 2, and threshold=0.1"):
        sc.early_bird(sc.uniform(sparsity=0.5), window=1)
    with pytest.raises(KindError, match=r"early_bird: allocate is 0.5, but must be an allocator"):
        sc.early_bird(0.5)
    with pytest.raises(PatternError, match="0: no normalisation with a scale lies on its units"):
        sc.train_(model, task, sgd, 1, hooks=[sc.early_bird(sc.uniform(sparsity=0.5))], show=False)
    with pytest.raises(SecateursError, match="has no normalisation with a scale"):
        early_bird_(model, task, sgd, 1, sparsity=0.5, show=False)
    with pytest.raises(FileError, match="early_bird: the checkpoint holds no state of this hook"):
        sc.early_bird(sc.uniform(sparsity=0.5)).restore({"chosen": [1]})
