"""The training loop: what each epoch does, what hooks may change, and that a killed run goes on to the bit."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import secateurs as sc
from secateurs.files import container, nested_state
from secateurs.forward import run_example
from secateurs.random_state import random_state
from secateurs.recover.checkpoint import read_checkpoint, write_checkpoint
from secateurs.types import FileError, NonFiniteError, Run, SecateursError, TaskError


def sgd(model: nn.Module, lr: float = 0.1, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def regression(batches: int = 4, size: int = 4, dtype: torch.dtype = torch.float32) -> sc.Task:
    inputs = torch.randn(batches, size, 5, dtype=dtype)
    target = inputs @ torch.randn(5, 2, dtype=dtype)
    data = list(zip(inputs, target, strict=True))
    return sc.Task(inputs[0], train=data, validation=data[:2], loss=mse_loss, metric=lambda o, t: -mse_loss(o, t))


def gradual(schedule: Callable[[float], float], **options: Any) -> sc.Hook:
    return sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, schedule, **options)


def spy(name: str, **parts: Callable[[Run], None]) -> sc.Hook:
    return sc.Hook(name, **parts)  # type: ignore[arg-type]


# ---------------------------------------------------------------- epochs


def test_the_loss_falls_and_the_history_tells_it() -> None:
    task, model = regression(), nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    run = sc.train_(model, task, sgd(model, 0.05), epochs=12)
    assert run.history[-1]["loss"] < 0.5 * run.history[0]["loss"]
    assert [entry["epoch"] for entry in run.history] == list(range(12))
    assert {key for entry in run.history for key in entry} == {"epoch", "loss", "lr", "sparsity", "validation"}
    assert run.history[-1]["validation"] == sc.evaluate(model, task, task.validation)
    assert (run.step, run.epoch, run.model) == (48, 11, model)
    assert (run.inputs, run.output, run.target) == (None, None, None)


def test_the_history_holds_the_mean_loss_of_the_epoch() -> None:
    task, model = regression(), nn.Linear(5, 2)
    by_hand = sum(mse_loss(model(inputs), target).item() for inputs, target in task.train) / 4
    run = sc.train_(model, task, sgd(model, lr=0.0), epochs=1)
    assert run.history[0]["loss"] == pytest.approx(by_hand, rel=1e-6)


def test_a_model_in_evaluation_mode_trains_in_training_mode() -> None:
    task, model = regression(), nn.Sequential(nn.Linear(5, 2), nn.Dropout(0.5)).eval()
    modes: list[bool] = []
    sc.train_(model, task, sgd(model), 2, hooks=[spy("look", gradients=lambda run: modes.append(model[1].training))])
    assert modes == [True] * 8


def test_no_epochs_train_nothing() -> None:
    task, model = regression(), nn.Linear(5, 2)
    before = copy.deepcopy(model.state_dict())
    assert sc.train_(model, task, sgd(model), epochs=0).history == []
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_seed_makes_runs_equal_and_another_one_different() -> None:
    ends = []
    for seed in (1, 1, 2):
        task = regression()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        torch.manual_seed(len(ends) + 100)
        sc.train_(model, sc.Task(None, train=[(torch.ones(4, 5), torch.ones(4, 2))], loss=task.loss), sgd(model), 3, seed=seed)
        ends.append(model[0].weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_training_needs_neither_validation_nor_a_metric() -> None:
    task, model = regression(), nn.Linear(5, 2)
    run = sc.train_(model, sc.Task(None, train=task.train, loss=mse_loss), sgd(model), epochs=1)
    assert "validation" not in run.history[0]


def test_masks_hold_in_the_loop_and_are_let_go_after_it(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = sc.prune_(small_cnn, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), cnn_task)
    optimizer = sgd(small_cnn)
    run = sc.train_(small_cnn, cnn_task, optimizer, 2, masks=masks)
    assert run.masks is masks
    assert [entry["sparsity"] for entry in run.history] == [0.5, 0.5]
    assert not any(small_cnn.get_parameter(name)[~mask].any() for name, mask in masks.items())
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_the_masks_are_let_go_when_training_fails() -> None:
    model, task = nn.Linear(5, 2), regression()
    optimizer = sgd(model)

    def fail(run: Run) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sc.train_(model, task, optimizer, 1, hooks=[spy("failing", stepped=fail)])
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_the_sampler_is_told_the_epoch() -> None:
    class Sampler:
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    class Loader(list):  # type: ignore[type-arg]
        sampler = Sampler()

    task, model = regression(), nn.Linear(5, 2)
    sc.train_(model, sc.Task(None, train=Loader(task.train), loss=mse_loss), sgd(model), 3)
    assert Sampler.epochs == [0, 1, 2]


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_mixed_precision_computes_in_low_precision_and_learns(amp: torch.dtype) -> None:
    task, model = regression(), nn.Linear(5, 2)
    dtypes = []
    look = spy("look", gradients=lambda run: dtypes.append((run.output.dtype, model.weight.grad.dtype)))
    run = sc.train_(model, task, sgd(model, 0.05, 0.0), epochs=20, amp=amp, hooks=[look])
    assert set(dtypes) == {(amp, torch.float32)}
    assert run.history[-1]["loss"] < 0.3 * run.history[0]["loss"]


def test_hooks_see_unscaled_gradients_under_float16() -> None:
    task, model = regression(batches=1), nn.Linear(5, 2)
    expected = torch.autograd.grad(mse_loss(model(task.train[0][0]), task.train[0][1]), model.weight)[0]
    seen: list[Tensor] = []
    look = spy("look", gradients=lambda run: seen.append(model.weight.grad.clone()))
    sc.train_(model, task, sgd(model, lr=0.0), epochs=6, amp=torch.float16, hooks=[look])
    assert torch.allclose(seen[-1], expected, rtol=0.02, atol=0.01)  # the first ones overflow, until the scale has come down


# ---------------------------------------------------------------- schedulers


def test_a_scheduler_steps_once_an_epoch() -> None:
    task, model = regression(), nn.Linear(5, 2)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    run = sc.train_(model, task, optimizer, 5, scheduler=scheduler)
    assert [entry["lr"] for entry in run.history] == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_a_scheduler_of_steps_steps_once_an_optimizer_step() -> None:
    task, model = regression(batches=4), nn.Linear(5, 2)
    optimizer = sgd(model, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    sc.train_(model, task, optimizer, 2, accumulate=2, hooks=[sc.per_step(scheduler)])
    assert optimizer.param_groups[0]["lr"] == 1e-3 * 0.5**4


def test_reduce_on_plateau_gets_the_metric_of_validation() -> None:
    task, model = regression(), nn.Linear(5, 2)
    metrics = iter([1.0, 2.0, 2.0, 2.0, 3.0])
    constant = sc.Task(None, train=task.train, validation=task.train[:1], loss=mse_loss, metric=lambda o, t: next(metrics))
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1, factor=0.5)
    run = sc.train_(model, constant, optimizer, 5, scheduler=scheduler)
    assert [entry["lr"] for entry in run.history] == [0.1, 0.1, 0.1, 0.1, 0.05]
    with pytest.raises(TaskError, match=r"ReduceLROnPlateau needs a metric: give Task\(validation="):
        sc.train_(model, sc.Task(None, train=task.train, loss=mse_loss), optimizer, 1, scheduler=scheduler)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(("accumulate", "groups"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (5, [5]), (9, [5])])
def test_accumulated_batches_equal_one_big_batch(accumulate: int, groups: list[int]) -> None:
    """Also the last group, which is shorter."""
    task = regression(batches=5, dtype=torch.float64)
    model = nn.Linear(5, 2, dtype=torch.float64)
    other = copy.deepcopy(model)
    run = sc.train_(model, task, sgd(model), 1, accumulate=accumulate)
    batches = iter(task.train)
    optimizer = sgd(other)
    for group in groups:
        inputs, target = (torch.cat(parts) for parts in zip(*(next(batches) for _ in range(group)), strict=True))
        optimizer.zero_grad()
        mse_loss(other(inputs), target).backward()
        optimizer.step()
    assert run.step == len(groups)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_penalty_adds_its_gradient_and_nothing_else(p: float, dtype: torch.dtype, accumulate: int) -> None:
    """strength · p · |w|^(p−1) · sign(w) for weights, once a step; nothing for biases, nor where a weight is zero."""
    task = regression(dtype=dtype)
    models = [nn.Linear(5, 2, dtype=dtype)]
    models[0].weight.data[0, 0] = 0.0
    models.append(copy.deepcopy(models[0]))
    gradients: list[list[Tensor]] = []
    for model, hooks in zip(models, ([sc.penalty(0.25, p=p)], []), strict=True):
        look = spy("look", gradients=lambda run, model=model: gradients.append([each.grad.clone() for each in model.parameters()]))
        sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=[*hooks, look], accumulate=accumulate)
    weight = models[1].weight.detach()
    expected = 0.25 * p * weight.abs().pow(p - 1) * weight.sign()
    with_penalty, without = gradients[0], gradients[len(gradients) // 2]
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(with_penalty[0] - without[0], expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(with_penalty[1], without[1])
    assert models[0].weight.dtype == dtype


def test_a_penalty_is_part_of_the_loss_that_is_reported() -> None:
    task, model = regression(), nn.Linear(5, 2)
    plain = sc.train_(model, task, sgd(model, lr=0.0), 1).history[0]["loss"]
    penalised = sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=[sc.penalty(0.5)]).history[0]["loss"]
    assert penalised - plain == pytest.approx(0.5 * model.weight.square().sum().item(), rel=1e-4)


@pytest.mark.parametrize(("strength", "p"), [(-1.0, 2), (1.0, 0.5), (1.0, float("inf")), (1.0, float("nan"))])
def test_a_penalty_that_makes_no_sense_is_refused(strength: float, p: float) -> None:
    with pytest.raises(SecateursError, match=r"penalty\(strength="):
        sc.penalty(strength, p=p)


def test_gradients_are_clipped_before_the_step() -> None:
    task, model = regression(), nn.Linear(5, 2)
    before, after = [], []

    def norm(run: Run) -> float:
        return float(sum(p.grad.square().sum() for p in model.parameters()).sqrt())

    hooks = [
        spy("before", gradients=lambda run: before.append(norm(run))),
        sc.clip_gradients(0.1),
        spy("after", gradients=lambda run: after.append(norm(run))),
    ]
    sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=hooks)
    assert min(before) > 0.2
    assert after == pytest.approx([0.1] * 4, rel=1e-4)


def test_hooks_are_called_in_their_order() -> None:
    called: list[str] = []

    def recorder(name: str) -> sc.Hook:
        parts = ("made", "start", "epoch", "loss", "gradients", "stepped", "epoch_end")
        return spy(name, **{part: lambda run, part=part: called.append(f"{name}.{part}") for part in parts})

    task, model = regression(batches=2), nn.Linear(5, 2)
    sc.train_(model, task, sgd(model), 1, accumulate=2, hooks=[recorder("a"), recorder("b")])
    parts = ["made", "start", "epoch", "loss", "loss", "gradients", "stepped", "epoch_end"]
    assert called == [f"{name}.{part}" for part in parts for name in "ab"]


# ---------------------------------------------------------------- dropout


def dropout_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 8), nn.Dropout(0.2), nn.Linear(8, 2))


@pytest.mark.parametrize("fails", ["start", "epoch", "gradients", "end", None])
def test_hooks_are_closed_whatever_ended_the_run(fails: str | None) -> None:
    """Each once, the last one first, also those that never began."""

    def fail(run: Run) -> None:
        raise RuntimeError("stopped here")

    closed: list[str] = []
    model, broken = nn.Linear(5, 2), {fails: fail} if fails else {}
    hooks = [
        spy("first", close=lambda run: closed.append("first"), **broken),
        spy("second", close=lambda run: closed.append("second")),
    ]
    with pytest.raises(RuntimeError, match="stopped here") if fails else nullcontext():
        sc.train_(model, regression(), sgd(model), 1, hooks=hooks)
    assert closed == ["second", "first"]


def test_dropout_follows_equation_2() -> None:
    """D_r = D_o · sqrt(C_r / C_o), with the connections of the layer before."""
    model = dropout_network()
    first = torch.zeros(10, 6, dtype=torch.bool)
    first.view(-1)[:15] = True
    masks = sc.Masks({"0.weight": first}, model).apply_()
    original = sc.dropout_rates(model)
    assert original == {"2": 0.5, "4": 0.2}
    rates = sc.adjust_dropout_(model, masks, torch.zeros(1, 6), original)
    assert rates == pytest.approx({"2": 0.5 * sqrt(15 / 60), "4": 0.2})
    assert (model[2].p, model[4].p) == (rates["2"], rates["4"])
    assert sc.adjust_dropout_(model, masks, torch.zeros(1, 6), original) == rates  # does not pile up


def test_dropout_after_no_prunable_layer_stays() -> None:
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2))
    masks = sc.Masks({"1.weight": torch.zeros(2, 4, dtype=torch.bool)}, model)
    assert sc.adjust_dropout_(model, masks, torch.zeros(1, 4), sc.dropout_rates(model)) == {}
    assert model[0].p == 0.3


def test_gradual_pruning_adjusts_dropout_unless_told_not_to() -> None:
    inputs = torch.randn(8, 6)
    task = sc.Task(inputs[:1], train=[(inputs, torch.randn(8, 2))], loss=mse_loss)
    for dropout, expected in ((True, 0.5 * sqrt(0.25)), (False, 0.5)):
        model = dropout_network()
        hook = gradual(sc.linear(0.75), dropout=dropout, dead=False)
        sc.train_(model, task, sgd(model), 3, hooks=[hook])
        assert model[2].p == pytest.approx(expected)


# ---------------------------------------------------------------- gradual pruning


def wide() -> tuple[nn.Module, sc.Task]:
    """A network of 4,000 weights in two layers, for which sparsities come out exactly."""
    inputs = torch.randn(8, 50)
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 50))
    return model, sc.Task(inputs[:1], train=[(inputs, torch.randn(8, 50))], loss=mse_loss)


SCHEDULES: dict[str, tuple[Callable[[float], float], list[float]]] = {
    "one_shot": (sc.one_shot(0.8), [0.8, 0.8, 0.8, 0.8]),
    "linear": (sc.linear(0.8), [0.2, 0.4, 0.6, 0.8]),
    "linear-initial": (sc.linear(0.8, initial=0.4), [0.5, 0.6, 0.7, 0.8]),
    "cubic": (sc.cubic(0.8), [0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8]),
    "geometric": (sc.geometric(0.84), [1 - 0.16**0.25, 1 - 0.16**0.5, 1 - 0.16**0.75, 0.84]),
    "custom": (lambda progress: 0.0 if progress < 0.5 else 0.75, [0.0, 0.75, 0.75, 0.75]),
    "falling": (lambda progress: 0.75 - 0.5 * progress, [0.625, 0.625, 0.625, 0.625]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradual_pruning_reaches_its_sparsities_at_its_epochs(name: str) -> None:
    """Prunings at epochs 1, 3, 5 and 7; what falls short of what is gone changes nothing."""
    schedule, expected = SCHEDULES[name]
    model, task = wide()
    run = sc.train_(model, task, sgd(model), 10, hooks=[gradual(schedule, begin=1, end=9, every=2, dead=False)])
    reached = [entry["sparsity"] for entry in run.history]
    assert reached[0] == 0.0
    assert reached[1:9:2] == pytest.approx(expected, abs=1 / 2000)
    assert reached[2:9:2] == reached[1:9:2]
    assert reached[9] == reached[7]
    assert reached == sorted(reached)
    assert sum(int(p.count_nonzero()) for n, p in model.named_parameters() if p.ndim > 1) == run.masks.kept


def test_the_last_pruning_reaches_the_sparsity_exactly() -> None:
    for schedule in (sc.one_shot(0.9), sc.linear(0.9), sc.cubic(0.9), sc.geometric(0.9)):
        model, task = wide()
        run = sc.train_(model, task, sgd(model), 3, hooks=[gradual(schedule, dead=False)])
        assert run.masks.kept == 400


def test_what_is_gone_stays_gone() -> None:
    model, task = wide()
    kept: list[dict[str, Tensor]] = []
    look = spy("look", epoch_end=lambda run: kept.append({name: mask.clone() for name, mask in run.masks.items()}))
    sc.train_(model, task, sgd(model), 4, hooks=[gradual(sc.linear(0.8), dead=False), look])
    for earlier, later in pairwise(kept):
        assert all(not (later[name] & ~earlier[name]).any() for name in later)


def test_an_end_after_the_last_epoch_is_the_last_epoch() -> None:
    model, task = wide()
    run = sc.train_(model, task, sgd(model), 3, hooks=[gradual(sc.linear(0.75), end=100, dead=False)])
    assert run.masks.sparsity == 0.75


def test_the_last_pruning_zeroes_dead_neurons_with_their_biases() -> None:
    torch.manual_seed(0)
    model, task = wide()
    with torch.no_grad():
        model[0].weight[:5] *= 1e-6
        model[2].weight[:, 5:9] *= 1e-6
    run = sc.train_(model, task, sgd(model, lr=1e-4), 3, hooks=[gradual(sc.linear(0.5))])
    assert not model[0].bias[:9].any()
    assert not model[0].weight[:9].any()
    assert not model[2].weight[:, :9].any()
    assert model[0].bias[9:].all()
    assert sc.find_dead(model, run.masks, task.example).count == 9


@pytest.mark.parametrize("options", [{"every": 0}, {"begin": -1}, {"begin": 3, "end": 3}, {"begin": 3, "end": 2}])
def test_a_range_without_a_pruning_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(SecateursError, match="there is nothing to prune"):
        gradual(sc.linear(0.5), **options)


def test_rewinding_to_after_the_first_pruning_is_refused() -> None:
    with pytest.raises(SecateursError, match="rewind_to=2 comes after the first pruning, at epoch 1"):
        gradual(sc.linear(0.5), begin=1, rewind="weights", rewind_to=2)


@pytest.mark.parametrize("make", [sc.one_shot, sc.linear, sc.cubic, sc.geometric])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90, float("nan")])
def test_schedules_to_a_sparsity_outside_0_1_are_refused(make: Callable[[float], Any], sparsity: float) -> None:
    with pytest.raises(SecateursError, match=r"is not in \[0, 1\)"):
        make(sparsity)


def test_learning_rate_rewinding_starts_the_scheduler_again_at_each_pruning() -> None:
    model, task = wide()
    optimizer = sgd(model, lr=0.8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    weights: list[Tensor] = []
    hooks = [
        spy("before", epoch=lambda run: weights.append(model[0].weight.detach().clone())),
        gradual(sc.linear(0.75), end=6, every=2, rewind="learning_rate", dead=False),
        spy("after", epoch=lambda run: weights.append(model[0].weight.detach().clone())),
    ]
    run = sc.train_(model, task, optimizer, 8, scheduler=scheduler, hooks=hooks)
    assert [entry["lr"] for entry in run.history] == [0.8, 0.4, 0.8, 0.4, 0.8, 0.4, 0.2, 0.1]
    before, after = weights[8], weights[9]
    assert torch.equal(after, torch.where(run.masks["0.weight"], before, 0.0))  # the weights go on from where they were


def test_rewinding_gives_the_optimizer_the_memory_back_that_it_began_with() -> None:
    """Each time the same: training in between does not write into what is kept of it."""
    model, task = wide()
    optimizer = sgd(model)
    sc.train_(model, task, optimizer, 1)
    beginning = copy.deepcopy(optimizer.state_dict()["state"])
    seen: list[dict[int, Any]] = []
    look = spy("look", epoch=lambda run: seen.append(copy.deepcopy(optimizer.state_dict()["state"])))
    sc.train_(model, task, optimizer, 3, hooks=[gradual(sc.linear(0.75), rewind="learning_rate", dead=False), look])
    assert len(beginning) == 4
    for state in seen:
        assert all(torch.equal(state[i]["momentum_buffer"], beginning[i]["momentum_buffer"]) for i in range(4))


@pytest.mark.parametrize("rewind_to", [0, 1, 2])
def test_weight_rewinding_brings_back_what_the_masks_keep(rewind_to: int) -> None:
    model, task = wide()
    model.append(nn.BatchNorm1d(50))
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    early: dict[str, Tensor] = {}
    pruned: list[int] = []

    def remember(run: Run) -> None:
        if run.epoch == rewind_to:
            early.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    def compare(run: Run) -> None:
        if run.epoch in (2, 4):
            pruned.append(run.masks.kept)
            assert optimizer.state_dict()["state"] == {}
            assert optimizer.param_groups[0]["lr"] == 0.1
            for name, tensor in model.state_dict().items():
                kept = run.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
                assert torch.equal(tensor, torch.where(kept, early[name], torch.zeros_like(tensor)))

    hook = gradual(sc.linear(0.75), begin=2, end=6, every=2, rewind="weights", rewind_to=rewind_to, dead=False)
    sc.train_(
        model,
        task,
        optimizer,
        6,
        scheduler=scheduler,
        hooks=[spy("remember", epoch=remember), hook, spy("compare", epoch=compare)],
    )
    assert len(pruned) == 2
    assert pruned[1] < pruned[0] < 4000


def test_rewind_restores_earlier_weights_where_masks_keep_them() -> None:
    model = nn.Linear(4, 2)
    early = copy.deepcopy(model.state_dict())
    mask = torch.rand(2, 4) < 0.5
    model.weight.data.fill_(9.0)
    sc.rewind_(model, early, sc.Masks({"weight": mask}, model))
    assert torch.equal(model.weight, torch.where(mask, early["weight"], 0.0))
    assert torch.equal(model.bias, early["bias"])


# ---------------------------------------------------------------- resume

_KILLED = '''
"""Trains once without a break, and once killed several times; says in what they differ."""
import copy, os, random, signal, sys
import numpy, torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
import secateurs as sc
from secateurs.tasks import Batches

torch.set_num_threads(1)
variant, folder = sys.argv[1], sys.argv[2]
data = torch.Generator().manual_seed(5)
inputs, target = torch.randn(40, 2, 6, 6, generator=data), torch.randint(3, (40,), generator=data)
pairs = TensorDataset(inputs, target)

def noisy(batch):  # draws from Python's and from NumPy's random numbers
    return batch + 0.1 * random.random() + 0.1 * float(numpy.random.rand())

def fly(kill_at, checkpoint):
    """A run from a fresh start: killed at a batch or at a checkpoint where that is asked for."""
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(16, 3),
    )
    count = [0]

    def loss(output, target):
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(output, target)

    replace, writes = os.replace, [0]

    def replacing(source, target):
        writes[0] += 1
        if kill_at == "write" and writes[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    generator = torch.Generator().manual_seed(9)
    options, hooks, pruning = {}, [], {}
    train = DataLoader(pairs, batch_size=8, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    if variant == "bfloat16":
        options = {"amp": torch.bfloat16, "accumulate": 2}
    if variant == "weights":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5)
        pruning = {"rewind": "weights", "rewind_to": 1}
    if variant == "learning_rate":
        train = DataLoader(pairs, batch_sampler=BatchSampler(RandomSampler(pairs, generator=generator), 8, False))
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)
        pruning = {"rewind": "learning_rate"}
    if variant == "float16":
        train = Batches(inputs, target, 8, shuffle=True, augment=noisy)
        model[0] = model[0].to(memory_format=torch.channels_last)
        scheduler, options = None, {"amp": torch.float16}
        hooks = [sc.per_step(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30)), sc.penalty(1e-3, p=1)]
    prune = sc.gradual(
        sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.cubic(0.95), begin=1, end=5, every=2, **pruning
    )
    task = sc.Task(
        inputs[:1], train=train, validation=[(inputs, target)], loss=loss,
        metric=lambda output, target: (output.argmax(1) == target).float().mean(),
    )
    os.replace = replacing
    run = sc.train_(
        model, task, optimizer, 6, scheduler=scheduler, hooks=[prune, *hooks], checkpoint=checkpoint, seed=4, **options
    )
    os.replace = replace
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "masks": dict(run.masks), "history": run.history,
        "scheduler": scheduler.state_dict() if scheduler else None, "plan": run.masks.plan, "pattern": run.masks.pattern,
        "skipped": run.masks.skipped, "dropout": sc.dropout_rates(model), "step": run.step, "generator": generator.get_state(),
        "random": (random.random(), float(numpy.random.rand()), torch.rand(3)),
    }

def differences(a, b, path=""):
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [path + " keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path + " length"]
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]

statuses, left = [], []
for kill_at in (3, "write", 8):
    child = os.fork()
    if not child:
        fly(kill_at, f"{folder}/run.checkpoint")
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    left.append(len(os.listdir(folder)))
resumed, whole = fly(None, f"{folder}/run.checkpoint"), fly(None, None)
assert whole["masks"] and 0.9 < whole["history"][-1]["sparsity"] < 1 and whole["plan"] is not None
print(statuses, differences(whole, resumed), left, os.listdir(folder))
'''


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "variant", ["weights", *(pytest.param(each, marks=pytest.mark.slow) for each in ("learning_rate", "bfloat16", "float16"))]
)
def test_a_run_that_is_killed_goes_on_to_the_bit(variant: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of epochs 1 and 4, and while a checkpoint takes the old one's place, which leaves a folder."""
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, variant, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[-9, -9, -9] [] [0, 2, 1] ['run.checkpoint']", done.stderr


def checkpointed(path: Path, model: nn.Module | None = None, epochs: int = 2, **options: Any) -> Run:
    model = model if model is not None else nn.Linear(5, 2)
    optimizer = options.pop("optimizer", sgd)(model)
    scheduler = options.pop("scheduler", lambda each: None)(optimizer)
    return sc.train_(model, regression(), optimizer, epochs, checkpoint=path, scheduler=scheduler, **options)


def test_a_run_that_is_complete_is_not_trained_again(tmp_path: Path) -> None:
    first = checkpointed(tmp_path / "run")
    second = checkpointed(tmp_path / "run", nn.Linear(5, 2))
    assert torch.equal(second.model.weight, first.model.weight)
    assert second.history == first.history
    assert checkpointed(tmp_path / "run", epochs=3).history[:2] == first.history


def test_a_checkpoint_keeps_how_the_masks_came_about(tmp_path: Path) -> None:
    """So that a model saved after a resumed run tells its plan as well."""
    first = checkpointed(tmp_path / "run", hooks=[gradual(sc.linear(0.5))])
    second = checkpointed(tmp_path / "run", hooks=[gradual(sc.linear(0.5))])
    assert second.masks.plan == first.masks.plan is not None
    assert (second.masks.pattern, second.masks.skipped) == ("Element()", first.masks.skipped)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 1, 2]),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.2, 2),
    "polynomial": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 5),
    "chained": lambda o: torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_through_a_checkpoint(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = checkpointed(tmp_path / "whole", epochs=4, scheduler=SCHEDULERS[name])
    torch.manual_seed(1)
    checkpointed(tmp_path / "run", epochs=2, scheduler=SCHEDULERS[name])
    resumed = checkpointed(tmp_path / "run", epochs=4, scheduler=SCHEDULERS[name])
    assert [entry["lr"] for entry in resumed.history] == [entry["lr"] for entry in whole.history]
    assert resumed.scheduler.state_dict().keys() == whole.scheduler.state_dict().keys()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": nn.Linear(5, 2, bias=False)}, "belongs to another model: they differ in bias"),
        ({"model": nn.Sequential(nn.Linear(5, 2))}, "belongs to another model: they differ in 0.weight"),
        ({"model": nn.Linear(5, 2).double()}, "belongs to another model: they differ in weight"),
        ({"hooks": [sc.clip_gradients(1.0)]}, r"was written with the hooks \[\], not \['clip_gradients'\]"),
        (
            {"optimizer": lambda m: torch.optim.Adam(m.parameters())},
            "was written with SGD and no scheduler, not Adam and no scheduler",
        ),
        ({"optimizer": lambda m: torch.optim.SGD([m.weight])}, "belongs to another training run"),
        ({"scheduler": SCHEDULERS["lambda"]}, "was written with SGD and no scheduler, not SGD and LambdaLR"),
        ({"amp": torch.float16}, "belongs to another training run"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_the_model_stays(other: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpointed(tmp_path / "run")
    model = other.pop("model", nn.Linear(5, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FileError, match=message):
        checkpointed(tmp_path / "run", model, **other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_file_is_no_checkpoint(tmp_path: Path) -> None:
    sc.save(nn.Linear(5, 2), tmp_path / "model")
    with pytest.raises(FileError, match="is no checkpoint of a training run; give another checkpoint= path"):
        checkpointed(tmp_path / "model")


def test_a_checkpoint_with_another_number_of_generators_is_refused(tmp_path: Path) -> None:
    class Loader(list):  # type: ignore[type-arg]
        generator = torch.Generator()

    model = nn.Linear(5, 2)
    optimizer = sgd(model)
    run = Run(model, sc.Task(None, train=Loader()), optimizer, 1, masks=sc.Masks({}, model))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    write_checkpoint(tmp_path / "run", run, [], scaler, 0)
    assert read_checkpoint(tmp_path / "run", run, [], scaler) == 0
    before = copy.deepcopy(model.state_dict())
    model.weight.data += 1
    run.task = sc.Task(None, train=[])
    with pytest.raises(FileError, match="belongs to another training run"):
        read_checkpoint(tmp_path / "run", run, [], scaler)
    assert not torch.equal(model.weight, before["weight"])


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """Truncated at every seventh, and with bits flipped all over."""
    path = tmp_path / "run"
    checkpointed(path, hooks=[gradual(sc.linear(0.5))])
    content = path.read_bytes()
    damaged = [content[: len(content) * k // 7] for k in range(7)]
    for place in range(0, len(content), len(content) // 100):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        path.write_bytes(each)
        model = nn.Linear(5, 2)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(FileError):
            checkpointed(path, model, epochs=0, hooks=[gradual(sc.linear(0.5))])
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


LOST = object()


def rewritten(path: Path, *edits: tuple[tuple[Any, ...], Any]) -> Path:
    """A checkpoint with other data at some places, and the checksums of that."""
    tensors, document = container.read(path)
    state = nested_state.unpack(tensors, document["checkpoint"])
    for (*places, last), value in edits:
        here = state
        for place in places:
            here = here[place]
        if value is LOST:
            del here[last]
        else:
            here[last] = value
    found, packed = nested_state.pack(state)
    other = path.with_name("hostile")
    container.write(other, found, {"checkpoint": packed})
    return other


OPTIMIZER, GROUP, HOOK = ("optimizer", "state"), ("optimizer", "param_groups", 0), ("hooks", "gradual")
HOSTILE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "no number of epochs": (("epochs_done",), None),
    "fewer epochs than none": (("epochs_done",), -3),
    "more epochs than in the history": (("epochs_done",), 4),
    "a step of text": (("step",), "x"),
    "no history": (("history",), 5),
    "a history of numbers": (("history",), [1, 2]),
    "a loss of text": (("history", 0, "loss"), "x"),
    "a learning rate of text": ((*GROUP, "lr"), "x"),
    "no learning rate": ((*GROUP, "lr"), LOST),
    "betas that are no pair": ((*GROUP, "betas"), 0.9),
    "betas beyond all numbers": ((*GROUP, "betas"), (0.9, 10**400)),
    "a group of other parameters": ((*GROUP, "params"), [0, 1, 1, 0]),
    "a state of another shape": ((*OPTIMIZER, 0, "exp_avg"), torch.zeros(7)),
    "a state of text": ((*OPTIMIZER, 0, "exp_avg"), "x"),
    "a state that lacks a part": ((*OPTIMIZER, 0, "exp_avg"), LOST),
    "a state of nobody": ((*OPTIMIZER, 9), {}),
    "a state that is none": ((*OPTIMIZER, 0), [1]),
    "a step size of text": (("scheduler", "step_size"), "x"),
    "a step size of zero": (("scheduler", "step_size"), 0),
    "a method of the scheduler": (("scheduler", "get_lr"), 1.0),
    "no epoch of the scheduler": (("scheduler", "last_epoch"), LOST),
    "random numbers that never end": (("random", "python"), (3, (float("inf"),) * 625, None)),
    "a normal number of text": (("random", "python"), (3, (1,) * 625, "x")),
    "random numbers beyond the memory": (("random", "numpy", "state", "pos"), 10**6),
    "random numbers cut short": (("random", "torch"), torch.zeros(5, dtype=torch.uint8)),
    "a generator too many": (("generators",), [torch.zeros(5)]),
    "a scaler that is not used": (("scaler",), None),
    "a mask of another shape": (("masks", "0.weight"), torch.ones(3).bool()),
    "a plan that is none": (("pruning", "plan"), "{}"),
    "a weight that is no tensor": (("model", "0.weight"), 5),
    "a kind that is none": (("kinds",), 5),
    "dropout of text": ((*HOOK, "dropout"), {"0": "x"}),
    "weights that are none": ((*HOOK, "weights"), {"0.weight": 5}),
    "a beginning without an optimizer": ((*HOOK, "beginning"), {"optimizer": {}}),
    "a hook without a state": (HOOK, 5),
}


def trainer(**options: Any) -> tuple[dict[str, Any], Callable[[Path], Run]]:
    """All that takes part in a run, and what starts it with a checkpoint."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    hooks, task = [gradual(sc.linear(0.5)), *options.pop("hooks", [])], regression()

    def go(path: Path) -> Run:
        return sc.train_(model, task, optimizer, 3, scheduler=scheduler, hooks=hooks, checkpoint=path, seed=1)

    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "hooks": hooks}, go


def standing(parts: dict[str, Any]) -> str:
    """What a run consists of, written down to the last bit."""
    state = {name: part.state_dict() for name, part in parts.items() if name != "hooks"}
    with torch._tensor_str.printoptions(precision=20, threshold=10**6):  # type: ignore[attr-defined]
        return repr((state, [hook.state() for hook in parts["hooks"]], random_state()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "whole"
    trainer()[1](path)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_is_refused_before_anything_has_changed(checkpoint: Path, name: str) -> None:
    """Whatever stands in it; what torch would notice a step later, too."""
    path = rewritten(checkpoint, HOSTILE[name])
    parts, go = trainer()
    before = standing(parts)
    with pytest.raises(FileError, match="hostile"):
        go(path)
    assert standing(parts) == before


def test_a_hook_that_takes_no_state_leaves_all_as_it_was(tmp_path: Path) -> None:
    """It comes last, when all others have theirs."""

    def refuse(state: Any) -> None:
        if "ours" in state:
            raise RuntimeError("not this one")

    made: list[str] = []
    for _ in range(2):
        parts, go = trainer(hooks=[sc.Hook("own", state=lambda: {"ours": 1} if not made else {}, restore=refuse)])
        if not made:
            go(tmp_path / "run")
        made.append(standing(parts))
    with pytest.raises(FileError, match=r"run belongs to another training run.* \(RuntimeError: not this one\)"):
        go(tmp_path / "run")
    assert standing(parts) == made[1]


OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD", "LBFGS"]
OPTIMIZERS += [name for name in ("Adafactor",) if hasattr(torch.optim, name)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_goes_through_a_checkpoint_and_is_refused_a_foreign_state(name: str, tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(model.parameters(), lr=0.01, **{"momentum": 0.9} if name == "SGD" else {})  # type: ignore[no-any-return]

    checkpointed(tmp_path / "run", optimizer=make)
    assert len(checkpointed(tmp_path / "run", nn.Linear(5, 2), epochs=3, optimizer=make).history) == 3
    foreign = {"SGD": ("momentum_buffer",), "LBFGS": ("prev_flat_grad",)}.get(name, ())
    path = rewritten(
        tmp_path / "run", (("optimizer", "state", 0, *foreign), torch.ones(4) if foreign else {"foreign": torch.ones(4)})
    )
    with pytest.raises(FileError, match="hostile"):
        checkpointed(path, nn.Linear(5, 2), epochs=4, optimizer=make)


def test_a_model_with_an_extra_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"seen": 7}

        def set_extra_state(self, state: Any) -> None:
            self.restored = state

    checkpointed(tmp_path / "run", Counting(5, 2))
    model = Counting(5, 2)
    checkpointed(tmp_path / "run", model)
    assert model.restored == {"seen": 7}


def test_a_full_disk_in_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(sc.WriteError, match="could not write"):
        checkpointed(tmp_path / "missing" / "run")


# ---------------------------------------------------------------- bad input

LINEAR = [(torch.ones(2, 5), torch.ones(2, 2))]


def bad(loss: Any = mse_loss, train: Iterable[Any] | None = LINEAR, **options: Any) -> Run:
    model = nn.Linear(5, 2)
    return sc.train_(model, sc.Task(None, train=train, loss=loss), sgd(model), **({"epochs": 1} | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train": None}, TaskError, r"there is nothing to train on: give Task\(train="),
        ({"train": []}, TaskError, "the training loader is empty: it gave no batch"),
        ({"loss": None}, TaskError, r"there is no loss to train with: give Task\(loss="),
        ({"loss": lambda o, t: o - t}, TaskError, r"but Task\.loss returned a tensor of shape \(2, 2\)"),
        ({"loss": lambda o, t: 0.5}, TaskError, r"but Task\.loss returned 0\.5"),
        ({"loss": lambda o, t: None}, TaskError, r"but Task\.loss returned None"),
        ({"loss": lambda o, t: mse_loss(o, t).detach()}, TaskError, r"do not detach it"),
        ({"loss": lambda o, t: mse_loss(o, t) * float("nan")}, NonFiniteError, "the loss became nan in epoch 1"),
        ({"loss": lambda o, t: mse_loss(o, t) + float("inf")}, NonFiniteError, r"became inf in epoch 1: .*clip_gradients"),
        ({"epochs": -1}, SecateursError, "epochs=-1 must be at least 0"),
        ({"accumulate": 0}, SecateursError, "accumulate=0 at least 1"),
        ({"hooks": [sc.clip_gradients(1), sc.clip_gradients(2)]}, SecateursError, "the hooks' names must differ"),
        ({"train": [(torch.ones(2, 5).double(), torch.ones(2, 2))]}, TaskError, r"a training batch is torch\.float64 but"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bad(**options)


def test_the_epoch_in_which_the_loss_broke_is_named() -> None:
    factors = iter([1.0, 1.0, float("nan")])
    with pytest.raises(NonFiniteError, match="the loss became nan in epoch 3"):
        bad(loss=lambda o, t: mse_loss(o, t) * next(factors), epochs=3)


def test_a_loss_of_one_number_in_a_vector_is_a_loss() -> None:
    assert len(bad(loss=lambda o, t: mse_loss(o, t).view(1)).history) == 1


# ---------------------------------------------------------------- evaluate


def test_evaluation_weights_batches_by_their_size() -> None:
    task = sc.Task(None, metric=lambda output, target: output.mean())
    batches = [(torch.full((3, 1), 1.0), torch.zeros(3)), (torch.full((1, 1), 5.0), torch.zeros(1))]
    assert sc.evaluate(nn.Identity(), task, batches) == 2.0


@pytest.mark.parametrize(
    ("inputs", "target", "size"),
    [
        (torch.zeros(3, 2), torch.zeros(5), 5),
        (torch.zeros(3, 2), None, 3),
        ({"a": torch.zeros(4, 1)}, torch.zeros(()), 4),
        ((torch.zeros(()), torch.zeros(2)), (), 2),
    ],
)
def test_a_batch_is_as_large_as_its_target_or_else_its_inputs(inputs: Any, target: Any, size: int) -> None:
    from secateurs.recover.evaluate import size_of

    assert size_of(inputs, target) == size


class Modes(nn.Module):
    """Some parts train and some do not; may fail."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.frozen, self.free, self.fail = nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)), fail
        self.frozen.eval()
        self.free[0].eval()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not self.free[1].training
        assert not torch.is_grad_enabled()
        if self.fail:
            raise RuntimeError("no")
        return self.free(self.frozen(x))


@pytest.mark.parametrize("fail", [False, True])
def test_evaluation_gives_each_module_its_mode_back(fail: bool) -> None:
    model = Modes(fail)
    modes = {name: module.training for name, module in model.named_modules()}
    task = sc.Task(None, metric=lambda output, target: output.mean())
    try:
        value: float | None = sc.evaluate(model, task, [(torch.ones(2, 2), torch.ones(2))])
    except sc.TaskError:
        value = None
    assert (value is None) == fail
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert modes == {"": True, "frozen": False, "free": True, "free.0": False, "free.1": True}


@pytest.mark.parametrize(
    ("task", "batches", "message"),
    [
        (sc.Task(None), [], r"there is no metric to evaluate: give Task\(metric="),
        (sc.Task(None, metric=lambda o, t: 0.0), None, r"there are no batches to evaluate: give Task\(validation="),
        (sc.Task(None, metric=lambda o, t: 0.0), [], "the loader to evaluate is empty"),
        (sc.Task(None, metric=lambda o, t: 0.0), [(torch.ones(1, 2).half(), None)], r"an evaluation batch is torch\.float16"),
    ],
)
def test_what_cannot_be_evaluated_is_named(task: sc.Task, batches: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        sc.evaluate(nn.Linear(2, 1), task, batches)


def test_running_the_example_leaves_model_and_random_numbers_as_they_were() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + torch.rand(3)

    model = Random()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    run_example(model, torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert model.norm.training


def test_cross_entropy_of_a_network_that_is_trained_in_double_precision_stays_so() -> None:
    model = nn.Linear(3, 2).double()
    inputs, target = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    task = sc.Task(None, train=[(inputs, target)], loss=cross_entropy)
    run = sc.train_(model, task, sgd(model), 2, hooks=[sc.penalty(1e-3)])
    assert model.weight.dtype == torch.float64
    assert isinstance(run.history[0]["loss"], float)
    assert numpy.isfinite(run.history[-1]["loss"])
