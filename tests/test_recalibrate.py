"""BatchNorm statistics taken anew: those of the model as it is now, of all batches together, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import NonFiniteError, SecateursError, TaskError


def network() -> nn.Sequential:
    """Trained a little, so that its statistics are those of some data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
    )
    model = nn.Sequential(*model, nn.Linear(128, 12), nn.BatchNorm1d(12, momentum=None), nn.GroupNorm(2, 12), nn.Linear(12, 3))
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    return model.eval()


def data(*sizes: int) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 1, 8, 8, generator=generator) * 2 + 1, None) for size in sizes]


def task(*sizes: int, **more: Any) -> sc.Task:
    return sc.Task(torch.randn(2, 1, 8, 8), calibration=data(*sizes or (16, 16)), **more)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(-100, 100))
def test_statistics_are_those_of_all_batches_together(sizes: list[int], offset: float) -> None:
    """Against torch's own over one tensor of all samples, however they lie in batches."""
    batches = [torch.randn(size, 2, 3) + offset for size in sizes]
    model = nn.Sequential(nn.BatchNorm1d(2))
    sc.recalibrate_(model, sc.Task(batches[0], calibration=[(batch, None) for batch in batches]))
    whole = torch.cat(batches).double()
    torch.testing.assert_close(model[0].running_mean, whole.mean((0, 2)).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].running_var, whole.var((0, 2)).float(), rtol=1e-4, atol=1e-5)
    assert model[0].num_batches_tracked == len(sizes)


def test_one_batch_gives_what_torch_makes_of_it() -> None:
    """As a pass in training mode without dropout, with statistics that begin anew, in every layer."""
    model = network()
    naive = copy.deepcopy(model)
    for module in naive.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    naive(data(16)[0][0])
    assert sc.recalibrate_(model, task(16)) == ("1", "5", "9")
    for name, tensor in naive.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_statistics_changes(training: bool) -> None:
    model = network().train(training)
    model[5].eval()
    before, modes, given_task = state(model), [module.training for module in model.modules()], task()
    torch.manual_seed(3)
    follows = torch.rand(1)
    torch.manual_seed(3)
    sc.recalibrate_(model, given_task)
    assert torch.equal(torch.rand(1), follows)  # dropout drew nothing
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer}.{key}" for layer in (1, 5, 9) for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model[9].momentum is None and model[1].momentum == 0.1


def test_a_channel_that_never_varies_keeps_its_variance() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[2] = 0  # it answers its bias
        model[0].bias[2], model[1].eps = 7.3, 1e-12
    before = float(model[1].running_var[2])
    sc.recalibrate_(model, task())
    assert float(model[1].running_var[2]) == before and float(model[1].running_mean[2]) == pytest.approx(7.3)
    assert bool(model(data(4)[0][0]).isfinite().all())
    others = [channel for channel in range(6) if channel != 2]
    assert bool((model[1].running_var[others] != before).all())


def test_layers_without_statistics_and_layers_that_are_not_met_stay() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.plain, self.other = nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3, track_running_stats=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.used(x)) if not self.training else self.unused(x)

    model = Two()
    before = state(model)
    assert sc.recalibrate_(model, sc.Task(torch.randn(2, 3), calibration=[(torch.randn(8, 3), None)])) == ("used",)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"used"} and model.training


def test_batches_limits_the_pass_and_training_batches_serve_where_there_are_no_others() -> None:
    model, twin = network(), network()
    sc.recalibrate_(model, task(8, 8, 8), batches=1)
    sc.recalibrate_(twin, sc.Task(torch.zeros(1, 1, 8, 8), train=data(8)))
    assert same(state(model), state(twin))


def refused(model: nn.Module, match: str, error: type[Exception] = SecateursError, **options: Any) -> None:
    given_task = options.pop("task", None) or task()
    before, modes = state(model), [module.training for module in model.modules()]
    with pytest.raises(error, match=match):
        sc.recalibrate_(model, given_task, **options)
    assert same(state(model), before) and [module.training for module in model.modules()] == modes


def test_bad_input_is_refused_and_nothing_is_changed() -> None:
    refused(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "has no BatchNorm that tracks statistics, so there is nothing to take anew"
    )
    refused(network(), r"give Task\(calibration=...\) or Task\(train=...\)", TaskError, task=sc.Task(None))
    refused(network(), "gave no batch to take statistics on", TaskError, task=replace(task(), calibration=[]))
    refused(network(), "9: a calibration batch shows it 1 value a channel", TaskError, task=task(16, 1))
    refused(
        network(),
        "the model rejects a calibration batch",
        TaskError,
        task=replace(task(), calibration=[*data(4), (torch.ones(4, 2, 8, 8), 0)]),
    )
    nan = replace(task(), calibration=[*data(4), (torch.full((4, 1, 8, 8), torch.nan), None)])
    refused(network(), "1: what it is given has no finite mean and variance", NonFiniteError, task=nan)
    refused(network(), "batches=0 must be at least 1", batches=0)
    refused(network(), "recalibrate_: batches is 0.5", batches=0.5)

    def interrupted() -> Any:
        yield from data(4)
        raise KeyboardInterrupt

    class Loader:
        def __iter__(self) -> Any:
            return interrupted()

    refused(network(), "^$", KeyboardInterrupt, task=replace(task(), calibration=Loader()))


# ---------------------------------------------------------------- as part of a pruning


def prune(model: nn.Module, given_task: sc.Task, **options: Any) -> sc.Masks:
    pattern, allocate = options.pop("pattern", sc.Element()), options.pop("allocate", sc.uniform(sparsity=0.5))
    return sc.prune_(model, pattern, sc.TopK(sc.magnitude()), allocate, given_task, **options)


@pytest.mark.parametrize("pattern", [sc.Element(), sc.Channel()])
def test_pruning_takes_statistics_anew_and_says_so(pattern: Any) -> None:
    model, pure = network(), network()
    masks, before = prune(model, task(), pattern=pattern), state(pure)
    untouched = prune(pure, task(), pattern=pattern, recalibrate=False)
    assert all(torch.equal(masks[name], untouched[name]) for name in masks)
    assert all(torch.equal(tensor, pure.state_dict()[name]) for name, tensor in before.items() if "running" in name)
    assert "statistics of 3 BatchNorms taken anew on the calibration batches" in str(masks) and masks.origin.recalibrated == (
        "1",
        "5",
        "9",
    )
    assert "taken anew" not in str(untouched)
    sc.recalibrate_(pure, task())
    assert same(state(model), state(pure))


def test_nothing_is_taken_anew_where_nothing_was_cut_or_there_are_no_calibration_batches() -> None:
    for given_task, options in (
        (task(), {"allocate": sc.uniform(keep=1.0)}),
        (sc.Task(torch.randn(2, 1, 8, 8), train=data(8)), {}),
    ):
        model, before = network(), state(network())
        masks = prune(model, given_task, **options)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items() if "running" in name)
        assert not masks.origin.recalibrated
    masks = prune(network(), sc.Task(torch.randn(2, 1, 8, 8), train=data(8)), recalibrate=True)
    assert masks.origin.recalibrated == ("1", "5", "9")


def test_what_cannot_be_taken_anew_is_a_warning_unless_it_was_asked_for() -> None:
    model, before = network(), network()
    with pytest.warns(UserWarning, match="stay those of the model before it was pruned: 9: a calibration batch shows it 1 value"):
        masks = prune(model, task(1))
    assert masks.sparsity == 0.5 and not masks.origin.recalibrated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(network(), task(1), recalibrate=False)
    with pytest.raises(TaskError, match="9: a calibration batch shows it 1 value"):
        prune(before, task(1), recalibrate=True)
    assert same(state(before), state(network()))  # weights too
    with pytest.raises(SecateursError, match="has no BatchNorm that tracks statistics"):
        prune(nn.Sequential(nn.Linear(64, 4)), sc.Task(torch.randn(1, 64), calibration=data(2)), recalibrate=True, only="*")
    with pytest.raises(TypeError, match="prune_: recalibrate is 'yes', but must be True, False or None"):
        prune(before, task(), recalibrate="yes")


def test_a_shrunk_model_has_the_statistics_of_the_masked_one() -> None:
    """Cut and then taken anew, or taken anew and then cut."""
    model, other = network(), network()
    sc.shrink_(model, prune(model, task(), pattern=sc.Channel()))
    sc.shrink_(other, prune(other, task(), pattern=sc.Channel(), recalibrate=False))
    sc.recalibrate_(other, task())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-4, atol=1e-5)
