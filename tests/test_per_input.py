"""What one input does not need is left out for it: channels, tokens, heads, small activations, layers after an exit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

import secateurs as sc
from secateurs import SecateursError, Task, TaskError
from secateurs.costs import trace_macs
from secateurs.models.resnet import CifarResNet
from secateurs.per_input import (
    PerInput,
    activation_sparsity,
    boost_,
    exit_early_,
    exit_losses,
    left_at,
    saliencies,
    saliency_penalty,
    skip_small_,
    small_inputs,
    small_inputs_by_block,
    work_per_input,
)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3),
    ).eval()  # fmt: skip
    for norm in (model[1], model[6]):
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.2, 1.0)
    return model


X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1])


def image_task() -> Task:
    return Task(X[:1], train=[(X[:3], Y[:3]), (X[3:], Y[3:])], loss=cross_entropy)


@torch.no_grad()
def one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(row) for row in x.split(1)])


# ---------------------------------------------------------------- channels


@torch.no_grad()
def test_boosted_channels_are_those_of_the_paper_written_out() -> None:
    """relu(mean |x| W' + b), the k largest, times what comes out of the normalisation."""
    model = net()
    model[1].running_mean.normal_()
    expected = copy.deepcopy(model)
    attached = boost_(model, X[:1], keep=0.5, spread=1.0)
    assert list(attached.parts) == ["0", "3", "5"]

    def gated(name: str, x: Tensor, y: Tensor) -> Tensor:
        gate = attached.parts[name]
        saliency = linear(x.abs().mean((2, 3)), gate.weight, gate.bias).clamp_min(0)
        k = -(-saliency.shape[1] // 2)
        least = saliency.sort(1, descending=True).values[:, k - 1 : k]
        return y * torch.where(saliency >= least, saliency, 0)[..., None, None]

    norms = [(norm.running_mean, norm.running_var, norm.weight, norm.bias) for norm in (expected[1], expected[6])]
    first = gated("0", X, batch_norm(conv2d(X, expected[0].weight, padding=1), *norms[0])).relu()
    second = gated("3", first, conv2d(first, expected[3].weight, expected[3].bias, padding=1)).relu()
    third = gated("5", second, batch_norm(conv2d(second, expected[5].weight, expected[5].bias), *norms[1]))
    assert torch.allclose(model(X), expected[8](third.flatten(1)), atol=1e-5)


@settings(max_examples=5)
@given(keep=st.floats(0.05, 1), spread=st.floats(0, 2), seed=st.integers(0, 50))
def test_channels_that_are_not_computed_do_not_change_an_answer(keep: float, spread: float, seed: int) -> None:
    """One by one, where they are skipped, in a batch, where they are multiplied by zero, in any order."""
    model = net(seed)
    attached = boost_(model, X[:1], keep=keep, spread=spread, seed=seed)
    with torch.no_grad():
        together, order = model(X), torch.tensor([3, 0, 4, 1, 2])
        assert torch.allclose(one_by_one(model, X), together, atol=1e-5)
        assert torch.allclose(model(X[order]), together[order], atol=1e-5)
    work = work_per_input(attached, [X])
    assert max(work.fractions) <= 1 + 0.2 and work.dense[0] == trace_macs(attached.remove(), X[:1]).total


@torch.no_grad()
def test_gates_that_keep_all_are_the_model_to_the_bit_and_skipping_is_real() -> None:
    model = net()
    model[1].bias.fill_(9.0)  # so that no channel is zero by itself
    model[3].bias.fill_(9.0)
    before, state = model(X), copy.deepcopy(model.state_dict())
    attached = boost_(model, X[:1], keep=1.0, spread=0.0)
    assert torch.equal(model(X), before)
    for gate in attached.parts.values():
        gate.keep = 0.5
    gates = 6 * 3 + 8 * 6 + 4 * 8
    # 3 of 6 channels, of which the next convolution reads no other, 4 of 8, 2 of 4; the last layer is as it was
    kept = 16 * (3 * 3 * 9 + 3 * 4 * 9 + 4 * 2) + 64 * 3
    assert work_per_input(attached, [X[:1].abs() + 1]).macs == (kept + gates,)
    with attached.off():
        assert torch.equal(model(X), before)
    attached.remove()
    assert torch.equal(model(X), before) and state.keys() == model.state_dict().keys()
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())


def test_a_residual_network_has_gates_everywhere_and_other_convolutions_are_told() -> None:
    attached = boost_(CifarResNet(1, 4).eval(), torch.randn(1, 3, 8, 8), keep=0.5)
    assert len(attached.parts) == 7 and not attached.skipped
    depthwise = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 6, 1)).eval()
    attached = boost_(depthwise, X[:1], keep=0.5)
    assert list(attached.parts) == ["0"]
    assert {each.name: each.reason for each in attached.skipped} == {
        "1": "its 6 groups have inputs of their own",
        "2": "it is no convolution layer that can be run with fewer outputs",
    }
    shared = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.ReLU(), shared)
    assert boost_(twice, X[:1], keep=0.5).skipped[0].reason == "it is called more than once"
    assert list(boost_(net(), X[:1], keep=0.5, skip=["3"], only=["0", "3"]).parts) == ["0"]


def train_gated(epochs: int, checkpoint: Path | None = None, stop: int | None = None, **options: Any) -> tuple[nn.Module, Any]:
    model = net()
    boost_(model, X[:1], keep=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ends = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == stop))
    hooks = [saliency_penalty(1e-3), ends]
    return model, sc.train_(model, image_task(), optimizer, epochs, hooks=hooks, checkpoint=checkpoint, show=False, **options)


def test_gates_train_with_the_loop_go_on_to_the_bit_and_lie_in_files(tmp_path: Path) -> None:
    straight, run = train_gated(4)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert not any(gate._forward_hooks for gate in straight.modules())
    train_gated(4, tmp_path / "c", stop=1)
    resumed, _ = train_gated(4, tmp_path / "c")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())
    sc.save(straight, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", lambda: boost_(net(5), X[:1], keep=0.5).model).eval()
    with torch.no_grad():
        assert torch.equal(loaded(X), straight.eval()(X)) and "0.gate.weight" in loaded.state_dict()
    copied = copy.deepcopy(loaded)
    copied[0].gate.weight.data.zero_()
    with torch.no_grad():
        assert torch.equal(loaded(X), straight(X)) and not torch.equal(copied(X), loaded(X))


def test_the_penalty_is_the_mean_of_the_saliencies_also_in_a_loop_of_ones_own() -> None:
    model = net()
    boost_(model, X[:1], keep=0.5)
    with saliencies(model) as seen:
        model(X)
        total = sum(each.mean(0).sum() for each in seen.values())
    hook, run = saliency_penalty(0.5), sc.Run(model, image_task(), torch.optim.SGD(model.parameters(), lr=0.1), 1)
    hook.start(run)
    model(X)
    added = hook.loss(run)
    hook.close(run)
    assert added is not None and torch.allclose(added, 0.5 * total) and set(seen) == {"0", "3", "5"}
    (added).backward()
    assert all(float(model[place].gate.bias.grad.abs().sum()) > 0 for place in (0, 3, 5))


def test_half_precision_and_accumulated_batches_train_gates_too() -> None:
    _, run = train_gated(2, amp=torch.bfloat16, accumulate=2)
    assert run.step == 2


def test_bad_input_of_gates_is_told() -> None:
    model = net()
    for keep in (0, 1.5, float("nan"), True):
        with pytest.raises(SecateursError, match=r"boost_: keep=.* must be a fraction in"):
            boost_(model, X[:1], keep=keep)
    with pytest.raises(SecateursError, match="spread=-1 must be at least 0"):
        boost_(model, X[:1], keep=0.5, spread=-1)
    with pytest.raises(SecateursError, match="no convolution of Linear can have a gate"):
        boost_(nn.Linear(3, 2), torch.zeros(1, 3), keep=0.5)
    attached = boost_(model, X[:1], keep=0.5)
    with pytest.raises(SecateursError, match=r"Sequential has gates already: take them off first, with remove\(\)"):
        boost_(model, X[:1], keep=0.5)
    assert "forward" in model[0].__dict__ and set(attached.parts) == {"0", "3", "5"}
    with pytest.raises(SecateursError, match=r"a gate takes a batch of inputs, not one of shape \(3, 4, 4\)"):
        model(X[0])
    with pytest.raises(SecateursError, match="strength=-1 must be at least 0"):
        saliency_penalty(-1)
    run = sc.Run(net(), image_task(), torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(SecateursError, match="Sequential has no gates: call boost_"):
        saliency_penalty(1.0).start(run)
    later = skip_small_(model, {"8": 0.0})
    over = exit_early_(model, X[:1], ["0"], confidence=1.0)
    with pytest.raises(SecateursError, match=r"Conv2d of Sequential has something else attached since: remove\(\) that first"):
        attached.remove()
    assert over.remove() is later.remove() is attached.remove() is model


@torch.no_grad()
def test_gates_that_all_close_are_told_in_training_and_give_zeros_for_an_input() -> None:
    model = net()
    attached = boost_(model, X[:1], keep=0.5)
    attached.parts["3"].bias.fill_(-100)
    assert torch.allclose(one_by_one(model, X), model(X), atol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        torch.enable_grad(),
        pytest.raises(
            SecateursError, match=r"all gates of 3 are closed for a whole batch of 3, and nothing opens them again: lower"
        ),
    ):
        sc.train_(model, image_task(), optimizer, 1, hooks=[saliency_penalty(1e-3)], show=False)
    assert not any(gate._forward_hooks for gate in attached.parts.values())


# ---------------------------------------------------------------- small activations


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


V = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))


def vector_task() -> Task:
    return Task(V[:1], calibration=[(V[:32], None), (V[32:], None)])


@settings(max_examples=5)
@given(sparsity=st.floats(0, 0.9), seed=st.integers(0, 20))
@torch.no_grad()
def test_small_inputs_are_zeros_and_their_columns_are_not_read(sparsity: float, seed: int) -> None:
    model = mlp()
    expected = copy.deepcopy(model)
    found = small_inputs(model, vector_task(), sparsity=sparsity)
    attached = skip_small_(model, found)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(seed))
    hidden = expected[0](torch.where(x.abs() > found["0"], x, 0)).relu()
    kept = torch.where(hidden.abs() > found["2"], hidden, 0)
    answer = expected[2](kept)
    assert torch.allclose(model(x), answer, atol=1e-5) and torch.allclose(one_by_one(model, x), answer, atol=1e-5)
    exact = [16 * float((row.abs() > found["0"]).sum()) for row in x]
    rest = [5 * float(row.count_nonzero()) for row in kept]
    assert work_per_input(attached, [x]).macs == pytest.approx([one + other for one, other in zip(exact, rest, strict=True)])


@torch.no_grad()
def test_thresholds_meet_the_sparsity_and_zero_is_the_model_to_the_bit(tmp_path: Path) -> None:
    model = mlp()
    before = model(V)
    attached = skip_small_(model, dict.fromkeys(["0", "2"], 0.0))
    assert torch.allclose(model(V), before, atol=1e-6) and model[0].weight.t().is_contiguous()
    attached.remove()
    assert (
        torch.equal(model(V), before) and model[0].weight.is_contiguous() and list(model.state_dict()) == list(mlp().state_dict())
    )
    found = small_inputs(model, vector_task(), sparsity=0.4, only=["0"])
    attached = skip_small_(model, found)
    assert list(found) == ["0"] and activation_sparsity(attached, vector_task())["0"] == pytest.approx(0.4, abs=1e-2)
    assert found == small_inputs(attached.remove(), vector_task(), sparsity=0.4, only=["0"])
    skip_small_(model, found)
    sc.save(model, tmp_path / "m.safetensors")
    loaded = sc.load(tmp_path / "m.safetensors", lambda: skip_small_(mlp(), {"0": 0.0}).model)
    assert torch.equal(loaded(V), model(V)) and not torch.equal(loaded(V), before)


def test_many_magnitudes_are_sampled_evenly_and_gradients_pass() -> None:
    layer, x = nn.Linear(1000, 1), torch.linspace(0, 1, 400_000).view(400, 1000)
    batches = [(part, None) for part in x.split(50)]
    found = small_inputs(layer, Task(x[:1], calibration=batches), sparsity=0.3)
    assert found[""] == pytest.approx(0.3, abs=0.02)
    skip_small_(layer, found)
    y = layer(x[:1].requires_grad_())
    y.sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_a_block_shares_its_zeros_out_to_where_they_hurt_least() -> None:
    """Half of the inputs of each second layer are as good as zero: they go first, and the first layers keep all of theirs."""
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))  # noqa: E731
    model, x = nn.Sequential(block(), block()).eval(), torch.randn(256, 8)
    for each in model:
        each[0].weight[4:] *= 1e-4
    task = Task(x[:1], calibration=[(x[:128], None), (x[128:], None)])
    state, seen = copy.deepcopy(model.state_dict()), []
    found = small_inputs_by_block(model, task, sparsity=0.25, step=0.05)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert found["0.0"] == found["1.0"] == 0 and found["0.1"] > 0 and found["1.1"] > 0
    for thresholds in (found, small_inputs(model, task, sparsity=0.25)):
        expected = model(x)
        attached = skip_small_(model, thresholds)
        seen.append(float((model(x) - expected).norm()))
        lost = activation_sparsity(attached, task)
        assert sum(lost.values()) / 4 == pytest.approx(0.25, abs=0.01)
        attached.remove()
    assert seen[0] < 0.1 * seen[1]
    with pytest.raises(SecateursError, match=r"step=0 must be a fraction"):
        small_inputs_by_block(model, task, sparsity=0.5, step=0)
    with pytest.raises(SecateursError, match=r"sparsity=0.99 must be a fraction"):
        small_inputs_by_block(model, task, sparsity=0.99)


def test_bad_input_of_thresholds_is_told() -> None:
    model, task = mlp(), vector_task()
    for sparsity in (-0.1, 1, True):
        with pytest.raises(SecateursError, match=r"small_inputs: sparsity=.* must be a fraction in"):
            small_inputs(model, task, sparsity=sparsity)
    with pytest.raises(SecateursError, match="ReLU has no linear layer to take part"):
        small_inputs(nn.ReLU(), task, sparsity=0.5)
    with pytest.raises(TaskError, match="thresholds are found on data"):
        small_inputs(model, Task(V[:1]), sparsity=0.5)
    with pytest.raises(TaskError, match="the calibration loader is empty"):
        small_inputs(model, Task(V[:1], calibration=[]), sparsity=0.5)
    unused = nn.ModuleDict({"a": nn.Linear(12, 2), "b": nn.Linear(2, 2)})
    unused.forward = lambda x: unused["a"](x)
    with pytest.raises(TaskError, match=r'no calibration batch passed b: give such batches, or skip=\["b"\]|skip=\[\'b\'\]'):
        small_inputs(unused, task, sparsity=0.5)
    with pytest.raises(SecateursError, match=r"'1' is a ReLU in Sequential, but must be an nn.Linear"):
        skip_small_(model, {"0": 0.1, "1": 0.1})
    assert not hasattr(model[0], "small") and model[0].weight.is_contiguous()
    with pytest.raises(SecateursError, match="the threshold of 0 is -1, but must be at least 0"):
        skip_small_(model, {"0": -1})
    skip_small_(model, {"0": 0.1})
    with pytest.raises(SecateursError, match="a Linear of Sequential has something called 'small' already"):
        skip_small_(model, {"0": 0.1})
    with pytest.raises(SecateursError, match="thresholds is empty"):
        skip_small_(model, {})


def test_layers_within_torchs_own_transformer_are_reached() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(x)
        attached = skip_small_(layer, {"linear1": 1e9})
        assert not torch.allclose(layer(x), before)
        attached.remove()
        assert torch.equal(layer(x), before)


# ---------------------------------------------------------------- exits of whole inputs


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ).eval()  # fmt: skip


@settings(max_examples=5)
@given(confidence=st.floats(0.34, 1), seed=st.integers(0, 20))
def test_inputs_leave_at_the_first_exit_that_is_sure(confidence: float, seed: int) -> None:
    model = classifier()
    whole = copy.deepcopy(model)
    attached = exit_early_(model, X[:1], ["0", "2"], confidence=confidence, seed=seed)
    exits = [part.classifier for part in attached.parts.values()]
    with torch.no_grad():
        for part in exits:
            part.weight.mul_(4)
        first = whole[0](X)
        second = whole[2](whole[1](first))
        logits = [exits[0](first), exits[1](second), whole(X)]
        sure = [each.softmax(1).amax(1) > confidence for each in logits[:2]]
        at = torch.where(sure[0], 0, torch.where(sure[1], 1, 2))
        expected = torch.stack(logits)[at, torch.arange(5)]
        assert torch.allclose(model(X), expected, atol=1e-6) and torch.equal(left_at(attached), at)
        assert torch.allclose(one_by_one(model, X), expected, atol=1e-5)
    work = work_per_input(attached, [X])
    assert all(done < dense for done, dense, place in zip(work.macs, work.dense, at.tolist(), strict=True) if place < 2)
    if confidence == 1:
        assert not int((at < 2).sum())


def test_exits_learn_resume_and_lie_in_files(tmp_path: Path) -> None:
    def train(epochs: int, checkpoint: Path | None = None, stop: int | None = None) -> nn.Module:
        model = classifier()
        exit_early_(model, X[:1], ["0", "2"], confidence=0.9)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        ends = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == stop))
        task = image_task()
        hooks = [exit_losses(), ends]
        run = sc.train_(model, task, optimizer, epochs, hooks=hooks, checkpoint=checkpoint, show=False)
        assert len(run.history) < 3 or run.history[-1]["loss"] < run.history[0]["loss"]
        return model

    straight = train(4)
    assert "0.1.exit.weight" in straight.state_dict()  # of a Sequential its last module
    train(4, tmp_path / "c", stop=1)
    resumed = train(4, tmp_path / "c")
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())
    sc.save(straight, tmp_path / "m.safetensors")
    make = lambda: exit_early_(classifier(), X[:1], ["0", "2"], confidence=0.9).model  # noqa: E731
    loaded = sc.load(tmp_path / "m.safetensors", make).eval()
    with torch.no_grad():
        assert torch.equal(loaded(X), straight.eval()(X))


def test_bad_input_of_exits_is_told() -> None:
    model = classifier()
    with pytest.raises(SecateursError, match="exit_early_: confidence=0 must be a fraction"):
        exit_early_(model, X[:1], ["0"], confidence=0)
    for after in ("0", ["nowhere"], [], [""]):
        with pytest.raises(SecateursError, match=r"after is .*: give names of modules within Sequential"):
            exit_early_(model, X[:1], after, confidence=0.5)
    with pytest.raises(SecateursError, match=r"Sequential answers with \(1, 6, 4, 4\), but must give logits"):
        exit_early_(model[:3], X[:1], ["0"], confidence=0.5)
    unused = nn.ModuleDict({"a": nn.Linear(12, 2), "b": nn.Linear(2, 2)})
    unused.forward = lambda x: unused["a"](x)
    with pytest.raises(SecateursError, match="b is called 0 times with the example"):
        exit_early_(unused, V[:1], ["b"], confidence=0.5)
    assert not hasattr(model[0][1], "exit")
    with pytest.raises(SecateursError, match="exit_losses: weight=0 must be above 0"):
        exit_losses(0)
    run = sc.Run(model, image_task(), torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(SecateursError, match="Sequential has no exits"):
        exit_losses().start(run)
    attached = exit_early_(model, X[:1], ["0"], confidence=0.5)
    with pytest.raises(SecateursError, match="left_at: no pass was made"):
        left_at(attached)
    with pytest.raises(TaskError, match="exits are trained with the task's loss"):
        exit_losses().start(sc.Run(model, Task(X[:1]), run.optimizer, 1))


# ---------------------------------------------------------------- work


def test_work_is_of_inputs_of_one_model() -> None:
    attached = skip_small_(mlp(), {"0": 0.1})
    with pytest.raises(TaskError, match="there is no input"):
        work_per_input(attached, [])
    with pytest.raises(SecateursError, match="all of one model"):
        work_per_input([attached, skip_small_(mlp(), {"0": 0.1})], [V])
    with pytest.raises(SecateursError, match="all of one model"):
        work_per_input([], [V])
    with pytest.raises(TaskError, match="whose first dimensions are not all the number of inputs"):
        work_per_input(attached, [((V, V[:3]), None)])
    both = [attached, exit_early_(attached.model, V[:1], ["1"], confidence=1.0)]
    assert work_per_input(both, [V[:2]]).dense == (12 * 16 + 16 * 5,) * 2
    assert isinstance(both[0], PerInput) and work_per_input(both, [V[:2]]).quantile(1.0) <= 1.3


# ---------------------------------------------------------------- published methods, and pictures


def test_methods_are_short_compositions() -> None:
    from secateurs.methods import fbs_, spatten_, teal_
    from secateurs.methods.spatten import fractions

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with pytest.raises(SecateursError, match="train_: epochs=-1"):
        fbs_(model, image_task(), optimizer, -1, keep=0.5)
    assert list(model.state_dict()) == list(net().state_dict()) and len(optimizer.param_groups[0]["params"]) == 11
    gates, run = fbs_(model, image_task(), optimizer, 3, keep=0.5, strength=1e-4, hooks=[sc.clip_gradients(1.0)], show=False)
    assert (
        len(gates.parts) == 3
        and run.history[-1]["loss"] < run.history[0]["loss"]
        and len(optimizer.param_groups[0]["params"]) == 17
    )
    for keep in (0.2, 0.5, 0.9):
        line = fractions(12, keep, 0.3)
        assert (
            line[:4] == [1] * 4
            and sum(line[4:]) / 8 == pytest.approx(keep)
            and min(line) > 0
            and sorted(line, reverse=True) == line
        )
    with pytest.raises(SecateursError, match="spatten_: keep=0 must be a fraction"):
        spatten_(mlp(), V[:1], keep=0)
    block = lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))  # noqa: E731
    stack, task = nn.Sequential(block(), block()).eval(), vector_task()
    for by_block in (True, False):
        attached = teal_(stack, task, sparsity=0.5, by_block=by_block, step=0.1)
        assert 0.45 < 1 - work_per_input(attached, [V[:16]]).keep < 0.75  # more than asked for: ReLU has given zeros already
        attached.remove()


def test_pictures_of_work() -> None:
    from secateurs.per_input import WorkPerInput
    from secateurs.report import work_curves, work_histogram

    drawn = work_histogram({"tokens <b>": WorkPerInput((1.0, 2.0, 2.0), (4.0, 4.0, 4.0)), "none": WorkPerInput((), ())}, width=3.6)
    assert "tokens &lt;b&gt;: 42 %" in drawn and drawn.count("inputs</text>") == 1 and work_histogram({}) == ""
    drawn = work_curves({"tokens": [(1.0, 0.8), (0.5, float("nan")), (0.6, 0.79)]}, "Spearman")
    assert "Spearman" in drawn and "tokens" in drawn and work_curves({"tokens": [(0.5, float("nan"))]}, "Spearman") == ""
