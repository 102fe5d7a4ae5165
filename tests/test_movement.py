"""What is learned in training and read as scores: movement, and attention gates on a frozen network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss

import secateurs as sc
from secateurs.criteria import movement, pcas
from secateurs.patterns import find_sites
from secateurs.recover import channel_attention
from secateurs.solve import scores_of
from secateurs.types import SecateursError, TaskError


def problem(seed: int = 0, count: int = 4) -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(0, 3, (10,))) for _ in range(count)]
    return model, sc.Task(data[0][0][:1], train=data, validation=data, loss=cross_entropy)


# ---------------------------------------------------------------- recorded


def test_movement_is_the_sum_over_steps_of_minus_gradient_times_weight():
    model, task = problem()
    plain, expected = copy.deepcopy(model), torch.zeros(8, 6)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3)
    for _ in range(3):
        for x, y in task.train:
            optimizer.zero_grad()
            cross_entropy(plain(x), y).backward()
            expected -= plain[0].weight.grad * plain[0].weight.detach()
            optimizer.step()
    moved = sc.Movement()
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.3), 3, hooks=[moved.hook()], show=False)
    assert torch.allclose(moved.numbers["0.weight"], expected, rtol=1e-4, atol=1e-7)
    masks = sc.prune_(model, sc.Element(), sc.TopK(movement(moved.numbers)), sc.uniform(sparsity=0.75), task)
    assert torch.equal(masks["0.weight"].flatten(), torch.zeros(48).scatter(0, expected.flatten().topk(12).indices, 1).bool())
    site = find_sites(model, sc.Channel(), task.example)[0]
    channels = scores_of(
        site,
        movement(moved.numbers),
        sc.observe(model, find_sites(model, sc.Channel(), task.example), movement(moved.numbers).needs, task),
    )
    assert torch.allclose(channels, expected.sum(1)[None], rtol=1e-4)


def test_movement_goes_through_a_checkpoint(tmp_path: Path):
    whole, task = problem()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    moved = sc.Movement()
    sc.train_(whole, task, torch.optim.SGD(whole.parameters(), lr=0.1), 4, hooks=[moved.hook()], show=False)
    sc.train_(
        first,
        task,
        torch.optim.SGD(first.parameters(), lr=0.1),
        2,
        hooks=[sc.Movement().hook()],
        checkpoint=tmp_path / "c",
        show=False,
    )
    again = sc.Movement()
    sc.train_(
        second, task, torch.optim.SGD(second.parameters(), lr=0.1), 4, hooks=[again.hook()], checkpoint=tmp_path / "c", show=False
    )
    assert moved.numbers.keys() == again.numbers.keys()
    assert all(torch.equal(moved.numbers[name], again.numbers[name]) for name in moved.numbers)


# ---------------------------------------------------------------- pruned by movement


class Straight(torch.autograd.Function):
    """The mask of the k highest scores, whose gradient passes to the scores as if it were they."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> Tensor:
        mask = torch.zeros_like(scores).flatten()
        mask[scores.flatten().sort(descending=True, stable=True).indices[:k]] = 1
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_movement_pruning_is_straight_through_scores_written_out(momentum):
    model, task = problem()
    weights = [model[0].weight.detach().clone().requires_grad_(), model[2].weight.detach().clone().requires_grad_()]
    biases = [model[0].bias.detach().clone().requires_grad_(), model[2].bias.detach().clone().requires_grad_()]
    scores = [torch.zeros_like(weight).requires_grad_() for weight in weights]
    optimizer = torch.optim.SGD([{"params": [*weights, *biases], "lr": 0.1, "momentum": momentum}, {"params": scores, "lr": 1.0}])
    left = [[24, 12], [12, 6]]  # sparsity 0.5, then 0.75
    for kept in left:
        for x, y in task.train:
            masked = [weight * Straight.apply(score, k) for weight, score, k in zip(weights, scores, kept, strict=True)]
            optimizer.zero_grad()
            cross_entropy(linear(torch.tanh(linear(x, masked[0], biases[0])), masked[1], biases[1]), y).backward()
            optimizer.step()
    expected = [Straight.apply(score, k).bool() for score, k in zip(scores, left[-1], strict=True)]
    hook = sc.movement_pruning(sc.linear(0.75, initial=0.25), end=2)
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum), 2, hooks=[hook], show=False)
    for layer, mask, weight in zip((0, 2), expected, weights, strict=True):
        assert torch.equal(run.masks[f"{layer}.weight"], mask)
        assert torch.allclose(model[layer].weight, weight.detach() * mask, atol=1e-6)


@pytest.mark.parametrize("pattern", [sc.Element(within="row"), sc.Filter(), sc.Channel()], ids=repr)
def test_movement_pruning_with_other_patterns_and_momentum(pattern):
    model, task = problem()
    hook = sc.movement_pruning(sc.cubic(0.5), pattern=pattern, end=3)
    run = sc.train_(model, task, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1), 4, hooks=[hook], show=False)
    assert run.masks and int(run.masks["0.weight"].sum()) == 24
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in run.masks.items())
    assert [entry["sparsity"] > 0 for entry in run.history] == [False, False, False, True]


def test_movement_pruning_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path):
    whole, task = problem()
    parts = copy.deepcopy(whole)
    made = lambda: sc.movement_pruning(sc.cubic(0.6), end=3)  # noqa: E731
    adam = lambda model: torch.optim.Adam(model.parameters(), lr=0.05)  # noqa: E731
    straight = sc.train_(whole, task, adam(whole), 4, hooks=[made()], show=False)
    stop = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == 1))
    copied = copy.deepcopy(parts)
    sc.train_(copied, task, adam(copied), 4, hooks=[made(), stop], checkpoint=tmp_path / "c", show=False)
    resumed = sc.train_(parts, task, adam(parts), 4, hooks=[made(), sc.Hook("stop")], checkpoint=tmp_path / "c", show=False)
    assert all(torch.equal(straight.masks[name], mask) for name, mask in resumed.masks.items()) and len(resumed.masks) == 2
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


# ---------------------------------------------------------------- gates


def test_gates_leave_the_network_as_it_is_and_learn_what_matters():
    """Only the first two of six channels reach the answer with any strength: their gates stay open, and the others need not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 1)).train()
    with torch.no_grad():
        model[4].weight.view(6, 16)[2:] *= 0
        model[4].weight.view(6, 16)[2:] -= 0.5  # harmful
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x = torch.randn(64, 1, 6, 6)
    with torch.no_grad():
        hidden = model.eval()[:3](x)
        y = nn.functional.linear(hidden[:, :2].flatten(1), model[4].weight[:, :32], model[4].bias)
    model.train()
    model[1].bias.requires_grad_(False)
    task = sc.Task(x[:1], train=list(zip(x.split(16), y.split(16), strict=True)), loss=mse_loss)
    before, sites = copy.deepcopy(model.state_dict()), find_sites(model, sc.Channel(), x[:1])
    numbers = channel_attention(model, task, sites, epochs=40, lr=0.05, show=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and bool((model[0].weight.grad == 1).all())
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["1.bias"]
    assert not any(module._forward_pre_hooks for module in model.modules())
    gates = numbers["0"]
    assert float(gates[:2].min()) > float(gates[2:].max()) and bool(((gates > 0) & (gates < 1)).all())
    masks = sc.prune_(model, sc.Channel(), sc.TopK(pcas(numbers)), sc.uniform(sparsity=4 / 6), task)
    assert masks["0.bias"].tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("kind", ["sequence", "recurrent", "images", "behind flatten"])
def test_gates_are_put_on_the_inputs_of_every_kind_of_reader(kind):
    """A gate that is one everywhere changes nothing; one that is zero on a unit is as if it were pruned."""
    torch.manual_seed(0)
    if kind == "sequence":
        model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 5, 4)
    elif kind == "recurrent":
        model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LSTM(6, 2)), torch.randn(5, 3, 4)
    elif kind == "images":
        model, x = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)), torch.randn(3, 1, 8, 8)
    else:
        model, x = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), torch.randn(3, 1, 4, 4)
    from secateurs.recover.gates import _Gate

    class Fixed(nn.Module):
        def forward(self, squeezed: Tensor) -> Tensor:
            assert squeezed.shape == (3, 6)
            return torch.tensor([1.0, 0, 1, 1, 0, 1]).expand(3, 6)

    (site,) = [site for site in find_sites(model, sc.Channel(), x) if site.name == "0"]
    gate = _Gate(site, Fixed())
    handles = list(gate.hooks())
    gated = model(x)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
        model[0].bias[[1, 4]] = 0
    pruned = model(x)
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    assert torch.allclose(first(gated), first(pruned), atol=1e-6)


def test_bad_input_is_told(tmp_path: Path):
    model, task = problem()
    with pytest.raises(SecateursError, match=r"movement\(\) needs what was recorded in training: moved = Movement\(\)"):
        movement()
    with pytest.raises(SecateursError, match=r"pcas\(\) needs gates that were trained: pcas\(channel_attention"):
        pcas()
    with pytest.raises(SecateursError, match="movement_pruning: end=0 must be an epoch, at least 1"):
        sc.movement_pruning(sc.cubic(0.5), end=0)
    masks = sc.prune_(copy.deepcopy(model), sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    bound = sc.Masks(dict(masks), model)
    with pytest.raises(SecateursError, match="movement_pruning: the run has masks already"):
        sc.train_(
            model, task, torch.optim.SGD(model.parameters(), lr=0.1), 2, masks=bound, hooks=[sc.movement_pruning(sc.cubic(0.5))]
        )
    sites = find_sites(model, sc.Channel(), task.example)
    with pytest.raises(SecateursError, match=r"channel_attention: reduction=0 must be at least 1"):
        channel_attention(model, task, sites, epochs=1, reduction=0)
    with pytest.raises(SecateursError, match=r"^0: a gate is put before the layers that read its units, and none can be watched"):
        channel_attention(model, task, find_sites(model, sc.Filter(), only="0"), epochs=1)
    with pytest.raises(TaskError, match="there is no loss to train with"):
        channel_attention(model, sc.Task(task.example, train=task.train), sites, epochs=1)
    assert all(each.requires_grad for each in model.parameters()) and not any(
        module._forward_pre_hooks for module in model.modules()
    )
    with pytest.raises(SecateursError, match=r"^0: nothing was recorded of it for pcas"):
        sc.prune_(model, sc.Channel(), sc.TopK(pcas({})), sc.uniform(sparsity=0.5), task)
    with pytest.raises(SecateursError, match=r"^0: a tensor of \(3,\), not of \(8,\), was recorded of it for pcas"):
        sc.prune_(model, sc.Channel(), sc.TopK(pcas({"0": torch.ones(3)})), sc.uniform(sparsity=0.5), task)


def test_the_command_line_says_that_training_must_record_it():
    from secateurs.cli.parts import parsed_criterion

    with pytest.raises(SecateursError, match=r"movement\(\) needs what was recorded in training"):
        parsed_criterion("movement", 0, False)
    for name in ("obd('exact')", "grasp", "synflow", "head_importance(normalise=False)", "hessian_trace(probes=2) * magnitude()"):
        assert parsed_criterion(name, 0, False).name
