"""Comparing answers: what counts as a difference, and how large it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from secateurs.answers import alike, difference, differences, in_float64, telling, widened

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("expected", "found", "apart"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 1e-3], 1e-3),
        ([], [], 0.0),
        ([NAN, 2.0], [NAN, 1.0], 0.5),
        ([INF, -INF, 2.0], [INF, -INF, 1.0], 0.5),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([INF, 1.0], [NAN, 1.0], INF),
        ([1.0, 1.0], [NAN, 1.0], INF),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1.0], [INF], INF),
        ([NAN], [NAN], 0.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_by_hand(expected: list[float], found: list[float], apart: float, dtype: torch.dtype) -> None:
    assert difference(torch.tensor(expected, dtype=dtype), torch.tensor(found)) == pytest.approx(apart)


def test_numbers_are_compared_whatever_they_are_made_of() -> None:
    whole, bits = torch.tensor([2**53, 3]), torch.tensor([True, False])
    assert difference(whole, whole) == difference(bits, bits) == 0
    assert difference(bits, ~bits) == 1
    assert difference(torch.tensor([255], dtype=torch.uint8), torch.tensor([0], dtype=torch.uint8)) == 1
    assert difference(torch.tensor([3 + 4j]), torch.tensor([3 - 4j])) == pytest.approx(8 / 5)
    assert difference(torch.tensor([65504.0]).half(), torch.tensor([-65504.0]).half()) == 2


def test_what_is_small_may_be_rounding_alone() -> None:
    assert difference(torch.tensor([1e-9]), torch.tensor([2e-9]), least=1e-6) == pytest.approx(1e-3)


def test_in_nests() -> None:
    @dataclass
    class Answer:
        logits: Tensor
        more: tuple[Tensor, ...]

    one = Answer(torch.tensor([1.0, 2.0]), (torch.ones(1),))
    other = Answer(torch.tensor([1.0, 1.0]), (torch.ones(1),))
    assert differences(one, other) == [0.5, 0.0]
    assert alike(one, other, 0.5) and not alike(one, other, 0.4)
    assert differences(one, [torch.ones(2)]) == [INF, INF]
    assert not alike(one, None, 1e9)


def test_in_float64_everything_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].weight.grad = torch.ones(3, 3)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with in_float64(model):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64, torch.int64}
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert model[0].weight.grad is not None and model[0].weight.grad.dtype == torch.float32


def test_what_tells_nothing_becomes_noise() -> None:
    example = {"x": torch.zeros(2, 2), "ids": torch.zeros(2).long(), "y": torch.tensor([1.0, 2.0])}
    told = telling(example)
    assert told["x"].unique().numel() == 4 and torch.equal(told["ids"], example["ids"]) and torch.equal(told["y"], example["y"])
    assert widened(example)["x"].dtype == torch.float64 and widened(example)["ids"].dtype == torch.int64
