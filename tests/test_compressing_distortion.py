"""Levels by squared error and bits together, and the price of a bit that meets a number of bytes or a loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.coding import Levels
from secateurs.compressing import (
    Quantiser,
    coded_bytes,
    importance,
    k_means,
    powers_of_two,
    price_within,
    rate_distortion_,
    ternary,
    uniform,
)
from secateurs.compressing.distortion import _ascending


def problem() -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
    data = [(torch.randn(10, 2, 4, 4), torch.randint(0, 3, (10,))) for _ in range(4)]
    return model, sc.Task(data[0][0][:1], train=data, loss=cross_entropy)


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def tables_and_scales() -> list[Quantiser]:
    return [k_means(bits=3), k_means(bits=2, per="channel"), uniform(bits=4), uniform(bits=4, per="channel"), uniform(step=0.05)]


@pytest.mark.parametrize("quantiser", [*tables_and_scales(), ternary(), powers_of_two(bits=3)], ids=repr)
def test_bytes_fall_and_errors_rise_with_the_price_and_zeros_stay(quantiser: Quantiser) -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.3), task)
    before, found = states(model), list[tuple[int, float]]()
    plain = sc.quantise_(copy.deepcopy(model), quantiser)
    for price in (0.0, 2e-3, 2e-2):
        tried = copy.deepcopy(model)
        shared = rate_distortion_(tried, quantiser, price=price, masks=masks.bind(tried))
        error = sum(float((tried.get_parameter(name) - before[name]).detach().square().sum()) for name in shared.levels)
        found.append((sum(map(coded_bytes, shared.levels.values())), error))
        for name, levels in shared.levels.items():
            weight = tried.get_parameter(name)
            assert torch.equal(levels.values(), weight) and not weight[~masks[name]].any()
            assert torch.equal(levels.numbers.sign(), levels.values().sign().int())
            assert float((levels.values() * before[name]).min()) >= 0  # nothing changes its sign
    assert found[0][0] >= found[1][0] > found[2][0] and found[0][1] <= found[1][1] < found[2][1]
    least = sum(float((levels.values() - before[name]).square().sum()) for name, levels in plain.levels.items())
    assert found[0][1] <= least + 1e-9  # nothing to pay: the nearest


@pytest.mark.parametrize("quantiser", tables_and_scales(), ids=repr)
def test_values_are_the_means_of_their_members_by_importance(quantiser: Quantiser) -> None:
    model, task = problem()
    before, weighs = states(model), importance(model, task)
    shared = rate_distortion_(model, quantiser, price=1e-5, importance=weighs, damping=0.5)
    for name, levels in shared.levels.items():
        counts = (weighs[name] + 0.5 * weighs[name].mean()).reshape(levels.runs, -1).double()
        rows, numbers = before[name].reshape(levels.runs, -1).double(), levels.numbers.reshape(levels.runs, -1)
        values = levels.values().reshape(levels.runs, -1).double()
        for run in range(levels.runs):
            if levels.scale is not None:
                along = (counts[run] * rows[run] * numbers[run]).sum() / (counts[run] * numbers[run] ** 2).sum().clamp(min=1e-30)
                assert not numbers[run].any() or along.item() == pytest.approx(levels.scale[run].item(), rel=1e-5)
                continue
            for number in numbers[run][numbers[run] != 0].unique():
                mine = numbers[run] == number
                mean = (counts[run, mine] * rows[run, mine]).sum() / counts[run, mine].sum()
                assert values[run, mine][0].item() == pytest.approx(mean.item(), rel=1e-5)


def test_what_matters_keeps_its_levels() -> None:
    model, _ = problem()
    weighs = {name: torch.zeros_like(model.get_parameter(name)) for name in ("0.weight", "3.weight")}
    weighs["3.weight"][:, :12] = 1.0
    rate_distortion_(model, uniform(bits=6), price=1e-5, importance=weighs, damping=0.0)
    assert not model[0].weight.any() and not model[3].weight[:, 12:].any()
    assert float((model[3].weight[:, :12] != 0).float().mean()) > 0.8


def test_tables_of_rows_with_fewer_values_ascend() -> None:
    numbers = torch.tensor([[1, 0, -1], [2, 1, -2]], dtype=torch.int32)
    levels = Levels(numbers, torch.tensor([[0.0, -1.0, 0.0, 3.0, 0.0], [-2.0, -1.0, 0.0, 1.0, 2.0]]), -2)
    assert _ascending(levels).tolist() == [[-1, -1, 0, 3, 3], [-2, -1, 0, 1, 2]]
    above = Levels(numbers.abs(), torch.tensor([[0.0, 3.0, 0.0], [0.0, 1.0, 2.0]]))
    assert _ascending(above).tolist() == [[0, 3, 3], [0, 1, 2]]


def test_halves_are_quantised_as_they_are() -> None:
    model = problem()[0].half()
    shared = rate_distortion_(model, k_means(bits=3), price=1e-3)
    for name, levels in shared.levels.items():
        assert levels.values().dtype == torch.float16 and torch.equal(levels.values(), model.get_parameter(name))


def test_values_are_trained_afterwards() -> None:
    model, task = problem()
    shared = rate_distortion_(model, uniform(bits=4), price=1e-3)
    zeros = {name: levels.numbers == 0 for name, levels in shared.levels.items()}
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.05), 3, hooks=[shared])
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    for name, levels in shared.levels.items():
        assert torch.equal(levels.values(), model.get_parameter(name)) and torch.equal(levels.numbers == 0, zeros[name])


# ---------------------------------------------------------------- prices


def test_the_price_meets_bytes_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    model, task = problem()
    before = states(model)

    answers = [model(x).detach() for x, _ in task.train]

    def loss(of: nn.Module) -> float:
        return float(sum((of(x).detach() - y).square().mean() for (x, _), y in zip(task.train, answers, strict=True)))

    given: dict[str, Any] = {"importance": importance(model, task), "rounds": 1}
    price = price_within(model, uniform(bits=6), limit=80, **given)
    assert "bytes" in capsys.readouterr().err
    prices = {"at": price, "below": price * 0.9}
    sizes = {}
    for what, each in prices.items():
        tried = copy.deepcopy(model)
        shared = rate_distortion_(tried, uniform(bits=6), price=each, **given)
        sizes[what] = sum(map(coded_bytes, shared.levels.values()))
    assert sizes["at"] <= 80 < sizes["below"] + 5  # bytes go in steps
    most = 0.05
    price = price_within(model, uniform(bits=6), measure=loss, most=most, show=False, **given)
    assert not capsys.readouterr().err and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    losses = []
    for each in (price, 4 * price):
        tried = copy.deepcopy(model)
        rate_distortion_(tried, uniform(bits=6), price=each, **given)
        losses.append(loss(tried))
    assert losses[0] <= most < losses[1]


def test_what_cannot_be_met_or_makes_no_sense_is_told() -> None:
    model, _ = problem()
    before = states(model)
    with pytest.raises(sc.PlanError, match="price_within: no price is enough: the tables alone take more: raise limit="):
        price_within(model, uniform(bits=4), limit=1, show=False)
    with pytest.raises(sc.PlanError, match="no price is enough: it is more without any price: take a quantiser with more bits"):
        price_within(model, uniform(bits=4), measure=lambda of: 1.0, most=0.5, show=False)
    assert price_within(model, uniform(bits=4), limit=10_000, show=False) < 1e-8
    with pytest.raises(sc.KindError, match="price_within: limit is '1 kB', but must be a number"):
        price_within(model, uniform(bits=4), limit="1 kB")  # type: ignore[arg-type]
    with pytest.raises(sc.KindError, match="rate_distortion_: importance is 3, but must be tensors by parameter"):
        rate_distortion_(model, uniform(), price=1, importance=3)  # type: ignore[arg-type]
    with pytest.raises(sc.NonFiniteError, match=r"price_within: measure\(model\) gave NaN"):
        price_within(model, uniform(bits=4), measure=lambda of: torch.tensor(torch.nan), most=1, show=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(sc.KindError, match="price_within: measure is 3, but must be a function of the model"):
        price_within(model, uniform(bits=4), measure=3, most=1)  # type: ignore[arg-type]
    for given in ({}, {"limit": 3, "measure": len, "most": 1}, {"measure": len}, {"limit": 3, "most": 1}):
        with pytest.raises(sc.SecateursError, match=r"price_within: give limit=\.\.\., a number of bytes, or measure="):
            price_within(model, uniform(), **given)
    with pytest.raises(sc.SecateursError, match="rate_distortion_: price=-1, what a bit may cost, must be at least 0"):
        rate_distortion_(model, uniform(), price=-1)
    with pytest.raises(sc.KindError, match="rate_distortion_: quantiser is 3, but must be a quantiser"):
        rate_distortion_(model, 3, price=1)
    with pytest.raises(sc.SecateursError, match=r"rounds=0 must be at least 1, and damping=1\.0 at least 0"):
        rate_distortion_(model, uniform(), price=1, rounds=0)
    for wrong in ({}, {"0.weight": torch.ones(2)}, {"0.weight": -torch.ones(6, 2, 3, 3)}):
        with pytest.raises(
            sc.SecateursError, match=r"importance must tell a number of at least 0 for each of 0\.weight, a tensor of sh"
        ):
            rate_distortion_(model, uniform(), price=1, importance=wrong)
    with pytest.raises(sc.SecateursError, match=r"uniform: step=0 must be above 0, and goes without bits= and clip="):
        uniform(step=0)
    with pytest.raises(sc.SecateursError, match=r"uniform: step=0\.1 must be above 0, and goes without bits="):
        uniform(step=0.1, bits=4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
