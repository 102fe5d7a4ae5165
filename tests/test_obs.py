"""Optimal brain surgery: against inverses and least squares written out, and on the two small problems of the paper."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import secateurs as sc
from secateurs.evidence import gauss_newton_rows, mean_loss
from secateurs.methods import obs_
from secateurs.solve import Surgeon, inverse_of
from secateurs.types import NonFiniteError, PatternError, SecateursError, TaskError


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the inverse


@pytest.mark.parametrize("counts", [(1,), (3, 200, 70), (64, 64)])
def test_the_recursion_gives_the_inverse(counts):
    rows = [numbers(count, 30, seed=count).double() for count in counts]
    whole = torch.cat(rows)
    expected = torch.linalg.inv(whole.T @ whole + 1e-3 * torch.eye(30, dtype=torch.float64))
    assert torch.allclose(inverse_of(rows, 30, damping=1e-3), expected, rtol=1e-6, atol=1e-9)


def test_few_rows_and_little_damping_are_exact_still():
    """The recursion never inverts what is singular but for the damping."""
    rows, damping = numbers(4, 101).double(), 1e-8
    inverse = inverse_of([rows], 101, damping)
    matrix = rows.T @ rows + damping * torch.eye(101, dtype=torch.float64)
    assert torch.allclose(matrix @ inverse, torch.eye(101, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("batches", [1, 3])
def test_rows_make_the_second_derivatives_without_those_of_the_network(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).train()
    x, y = numbers(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    data = list(zip(x.tensor_split(batches), y.tensor_split(batches), strict=True))
    task = sc.Task(x[:1], calibration=data, loss=cross_entropy)
    weights, before = list(model.parameters()), copy.deepcopy(model.state_dict())
    rows = torch.cat(list(gauss_newton_rows(model, task, weights)))
    double = copy.deepcopy(model).double()
    names, expected = [name for name, _ in model.named_parameters()], torch.zeros(31, 31, dtype=torch.float64)
    for sample in x.double():
        of = lambda values, sample=sample: torch.func.functional_call(double, values, (sample,))  # noqa: E731
        found = torch.func.jacrev(of)(dict(double.named_parameters()))
        jacobian = torch.cat([found[name].flatten(1) for name in names], dim=1).detach()
        chances = double(sample).detach().softmax(0)
        expected += jacobian.T @ (chances.diag() - chances[:, None] * chances[None]) @ jacobian / 7
    assert torch.allclose(rows.T @ rows, expected, rtol=1e-6, atol=1e-9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model.training


# ---------------------------------------------------------------- one weight less


def regression() -> tuple[nn.Linear, sc.Task, Tensor, Tensor]:
    """A linear layer at the minimum of its loss, where all is quadratic."""
    x, y = numbers(40, 6).double() @ numbers(6, 6, seed=1).double(), numbers(40, 1, seed=2).double()
    layer = nn.Linear(6, 1, bias=False).double()
    layer.weight.data = torch.linalg.lstsq(x, y).solution.T
    return layer, sc.Task(x[:1], calibration=[(x, y)], loss=mse_loss), x, y


def test_each_removal_is_the_best_one_and_leaves_the_least_squares_solution():
    layer, task, x, y = regression()
    surgeon = Surgeon.of([layer.weight], torch.ones(6, dtype=torch.bool), gauss_newton_rows(layer, task, [layer.weight]), 1e-8)

    def best(places: list[int]) -> tuple[float, Tensor]:
        found = torch.linalg.lstsq(x[:, places], y).solution[:, 0]
        return float(mse_loss(x[:, places] @ found[:, None], y)), found

    left, before = list(range(6)), best(list(range(6)))[0]
    while len(left) > 1:
        costs = {place: best([each for each in left if each != place])[0] - before for place in left}
        told = surgeon.saliencies()
        assert all(float(told[place]) == pytest.approx(cost, rel=1e-4) for place, cost in costs.items())
        gone = surgeon.remove()
        assert gone == min(costs, key=costs.get)
        left.remove(gone)
        before, expected = best(left)
        assert torch.allclose(surgeon.values[left], expected, rtol=1e-4) and surgeon.alive.nonzero()[:, 0].tolist() == left
        assert float(surgeon.values.abs().sum()) == pytest.approx(float(expected.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("every", [1, 2, 100])
def test_the_second_derivatives_of_a_quadratic_need_not_be_made_anew(every):
    layer, task, x, y = regression()
    masks = obs_(layer, task, keep=0.5, damping=1e-10, every=every)
    (places,) = (masks["weight"][0].nonzero()[:, 0],)
    assert len(places) == 3
    assert torch.allclose(layer.weight[0, places], torch.linalg.lstsq(x[:, places], y).solution[:, 0], rtol=1e-4)


def test_it_ends_before_the_loss_is_too_large_and_leaves_the_last_good_network():
    layer, task, *_ = regression()
    losses, kept, dense = [], [], mean_loss(layer, task)
    for bound in (dense + 1e-9, dense + 0.05, 1e9):
        model = copy.deepcopy(layer)
        masks = obs_(model, task, max_loss=bound)
        losses.append(mean_loss(model, task))
        kept.append(int(masks["weight"].sum()))
        assert losses[-1] <= bound and bool((model.weight[~masks["weight"]] == 0).all())
    assert kept[0] == 6 >= kept[1] > kept[2] == 0
    assert int(obs_(copy.deepcopy(layer), task, max_loss=1e9, sparsity=0.5)["weight"].sum()) == 3


def test_biases_go_too_and_layers_can_be_left_alone(small_cnn, cnn_task):
    small = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 4, 6), nn.ReLU(), nn.Linear(6, 4))
    masks = obs_(small, cnn_task, keep=0.5, every=20, skip="1.weight")
    assert set(masks) == {"1.bias", "3.weight", "3.bias"} and sum(int(mask.sum()) for mask in masks.values()) == 17
    assert not bool(masks["1.bias"].all()) or not bool(masks["3.bias"].all())


# ---------------------------------------------------------------- the problems of the paper


def lbfgs(model: nn.Module, steps: int) -> torch.optim.Optimizer:
    exact = {"tolerance_grad": 1e-12, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    return torch.optim.LBFGS(model.parameters(), max_iter=steps, **exact)


def decay(strength: float) -> sc.Hook:
    return sc.Hook("decay", loss=lambda run: strength * sum(each.square().sum() for each in run.model.parameters()))


def right(output: Tensor, target: Tensor) -> Tensor:
    return ((output > 0.5) == (target > 0.5)).float().mean()


def sigmoidal(inputs: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, 1), nn.Sigmoid())


def largest_(model: nn.Module, number: int) -> None:
    """Only the largest weights stay."""
    sizes = torch.cat([parameter.detach().abs().flatten() for parameter in model.parameters()])
    threshold = sizes.sort(descending=True).values[number - 1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < threshold] = 0


def test_xor_with_a_tenth_of_the_weights_where_magnitude_fails():
    torch.manual_seed(0)
    x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    model, task = sigmoidal(2, 25), sc.Task(x[:1], train=[(x, y)], loss=mse_loss, metric=right)
    assert sum(parameter.numel() for parameter in model.parameters()) == 101
    sc.train_(model, task, lbfgs(model, 300), 1, hooks=[decay(1e-4)], show=False)
    by_size = copy.deepcopy(model)
    masks = obs_(model, task, max_loss=0.1, optimizer=lbfgs(model, 5), hooks=[decay(1e-4)])
    left = sum(int(mask.sum()) for mask in masks.values())
    assert left == sum(int(parameter.count_nonzero()) for parameter in model.parameters()) <= 10
    assert sc.evaluate(model, task, task.train, show=False) == 1
    assert sc.evaluate(by_size, task, task.train, show=False) == 1
    largest_(by_size, left)
    assert sc.evaluate(by_size, task, task.train, show=False) < 1


def monk(name: str) -> tuple[Tensor, Tensor]:
    if "SECATEURS_DATA" not in os.environ:
        pytest.skip("SECATEURS_DATA is not set")
    rows = numpy.loadtxt(Path(os.environ["SECATEURS_DATA"]) / f"monk1_{name}.txt", dtype=int, usecols=range(7))
    parts = [numpy.eye(values)[rows[:, 1 + place] - 1] for place, values in enumerate((3, 3, 2, 3, 4, 2))]
    return torch.tensor(numpy.concatenate(parts, 1)).float(), torch.tensor(rows[:, :1]).float()


def test_monk_1_with_at_most_14_of_58_weights_is_right_on_both_splits():
    """One of three seeds must do, because training depends on the machine's rounding. Of seeds 0 to 7 three do here, none needs over 15."""
    train, test = monk("train"), monk("test")
    task = sc.Task(train[0][:1], train=[train], test=[test], loss=mse_loss, metric=right)
    found = []
    for seed in (4, 3, 1):
        torch.manual_seed(seed)
        model = sigmoidal(17, 3)
        sc.train_(model, task, lbfgs(model, 500), 1, hooks=[decay(3e-4)], show=False)
        masks = obs_(model, task, max_loss=0.02, damping=1e-3, optimizer=lbfgs(model, 30), hooks=[decay(1e-4)])
        kept = sum(int(mask.sum()) for mask in masks.values())
        found.append((kept, *(sc.evaluate(model, task, [split], show=False) for split in (train, test))))
        if found[-1][0] <= 14 and found[-1][1:] == (1, 1):
            return
    raise AssertionError(found)


# ---------------------------------------------------------------- what cannot be


def refused(match: str, kind: type[Exception] = SecateursError, model: Any = None, **arguments: Any) -> None:
    layer, task, *_ = regression()
    layer = layer if model is None else model
    task = arguments.pop("task", task)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(kind, match=match):
        obs_(layer, task, **arguments)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_bad_input_is_told_and_changes_nothing():
    *_, x, y = regression()
    refused("obs_: say when to end: keep= or sparsity=")
    refused(r"obs_: give either sparsity= \(the fraction removed\) or keep=", keep=0.5, sparsity=0.5)
    refused(r"damping=0 must be above 0", keep=0.5, damping=0)
    refused("every=0 must be a number of removals, at least 1", keep=0.5, every=0)
    refused(
        r"second derivatives must be observed on data: give Task\(calibration", TaskError, task=sc.Task(x, loss=mse_loss), keep=0.5
    )
    refused("the calibration loader is empty", TaskError, task=sc.Task(x, calibration=[], loss=mse_loss), keep=0.5)
    refused("there is no loss: give Task", TaskError, task=sc.Task(x, calibration=[(x, y)]), keep=0.5)
    refused(r"obs_: the loss is 0.6\d* before anything is removed, above max_loss=0.1: allow more, or train first", max_loss=0.1)
    nan = sc.Task(x, calibration=[(x * torch.nan, y)], loss=mse_loss)
    refused("gradients of what the model answers are NaN or infinite", NonFiniteError, task=nan, keep=0.5)
    refused("has no parameter left to choose from: all are frozen", PatternError, nn.Linear(6, 1).requires_grad_(False), keep=0.5)
    refused("only=: nothing in Linear is called 'wieght'; did you mean weight", PatternError, keep=0.5, only="wieght")
    wide = nn.Linear(6, 2000).double()
    many = sc.Task(
        x[:1], calibration=[(x[:1], torch.zeros(1, 2000).double())], loss=lambda output, target: output[:, 0].mean() ** 2
    )
    refused("inverse of the second derivatives by 14,000 weights is too large", model=wide, task=many, keep=0.5)
