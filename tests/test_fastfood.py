"""Fastfood layers: the transform against the matrix, the layer against its product, and models that have them, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.models import digits_cnn
from secateurs.shrink.fastfood import walsh_hadamard
from secateurs.shrink.remembered import steps_of
from secateurs.shrink.replay import replay_
from secateurs.shrink.step import Step
from secateurs.tasks import digits
from secateurs.types import FileError, SecateursError


@settings(max_examples=10)
@given(st.integers(0, 6), st.integers(1, 3))
def test_the_transform_is_the_product_with_the_matrix(log: int, rows: int) -> None:
    size = 2**log
    matrix = torch.tensor(scipy.linalg.hadamard(size), dtype=torch.float64)
    x = torch.randn(rows, size, dtype=torch.float64)
    torch.testing.assert_close(walsh_hadamard(x), x @ matrix)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(x)), size * x)


def test_the_transform_has_the_right_gradients_and_takes_powers_of_two_alone() -> None:
    torch.autograd.gradcheck(walsh_hadamard, torch.randn(2, 8, dtype=torch.float64, requires_grad=True))
    with pytest.raises(SecateursError, match="the last dimension is 6, but must be a power of two"):
        walsh_hadamard(torch.ones(6))


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 20), st.booleans(), st.integers(0, 5))
def test_a_layer_is_the_product_that_it_says(features: int, outputs: int, bias: bool, seed: int) -> None:
    layer = sc.Fastfood(features, outputs, bias, seed, dtype=torch.float64)
    size = layer.size
    h = torch.tensor(scipy.linalg.hadamard(size), dtype=torch.float64) / size**0.5
    blocks = [
        torch.diag(s) @ h @ torch.diag(g) @ torch.eye(size, dtype=torch.float64)[order] @ h @ torch.diag(b)
        for s, g, b, order in zip(layer.scale, layer.gauss, layer.signs, layer.order, strict=True)
    ]
    weight = torch.cat(blocks)[:outputs, :features]
    x = torch.randn(2, 3, features, dtype=torch.float64)
    expected = x @ weight.T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in layer.parameters()) == 3 * size * -(-outputs // size) + bias * outputs
    assert all(sorted(order.tolist()) == list(range(size)) for order in layer.order)


def test_fresh_rows_are_as_long_as_those_of_a_fresh_linear_layer() -> None:
    torch.manual_seed(0)
    lengths = [
        layer(torch.eye(300)).square().sum(0).mean().item() for layer in (sc.Fastfood(300, 512, False), nn.Linear(300, 512, False))
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


def test_a_fried_model_learns_and_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, task = digits_cnn(), digits()
    found = sc.fastfood_(model, task, keep=0.2)
    assert found.layers == {"fc1": (64 * 512 + 64, 3 * 512 + 64)}
    assert found.parameters == (38282, 38282 - 64 * 512 + 3 * 512) == (38282, sum(p.numel() for p in model.parameters()))
    run = sc.train_(model, task, torch.optim.Adam(model.parameters(), lr=3e-3), 4, show=False)
    assert run.history[-1]["validation"] > 0.8
    sc.save(model, tmp_path / "fried.safetensors")
    loaded = sc.load(tmp_path / "fried.safetensors", digits_cnn)
    assert torch.equal(loaded.eval()(task.example), model.eval()(task.example))
    assert torch.equal(copy.deepcopy(model)(task.example), model(task.example))
    with pytest.raises(FileError, match="belongs to another model"):
        sc.load(tmp_path / "fried.safetensors", lambda: nn.Sequential(nn.Linear(2, 2)))


def test_a_record_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(FileError, match="is damaged"):
        Step.from_document({**Step().to_document(), "fried": {"0": -1}})
    document = Step(fried={"0": 3}).to_document()
    assert Step.from_document(document) == Step(fried={"0": 3})


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(nn.functional.linear(x, self.one.weight))


def test_what_cannot_be_fried_is_refused_and_the_model_as_it_was() -> None:
    model, x = Asks(), torch.randn(2, 32)
    before = model(x)
    with pytest.raises(SecateursError, match=r"does not run with Fastfood in the place of two, one .*skip="):
        sc.fastfood_(model, sc.Task(x))
    assert torch.equal(model(x), before) and not steps_of(model)
    assert list(sc.fastfood_(model, sc.Task(x), skip="one").layers) == ["two"]
    with pytest.raises(SecateursError, match=r"keep=0\.01 .* ask for keep=0\.\d+ or more"):
        sc.fastfood_(nn.Sequential(nn.Linear(32, 32)), sc.Task(x), keep=0.01)
    with pytest.raises(SecateursError, match="would be no smaller"):
        sc.fastfood_(nn.Sequential(nn.Linear(2, 2)), sc.Task(torch.ones(1, 2)))
    with pytest.raises(SecateursError, match=r"keep=2 is not in"):
        sc.fastfood_(model, sc.Task(x), keep=2)


@pytest.mark.parametrize(
    ("fried", "message"),
    [
        ({"nothing": 0}, "with a module 'nothing', but Sequential has none of that name"),
        ({"": 0}, "with a module ''"),
        ({"0": 0}, "0 was made a Fastfood layer in the model of the file, but here it cannot be: it is a Conv1d"),
        ({"2": 0, "2.0": 0}, r"with a module '2\.0', but Sequential has none of that name"),
    ],
)
def test_a_file_that_fries_what_is_none_leaves_the_model_as_it_was(fried: dict[str, int], message: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(8, 8))
    before = list(model)
    with pytest.raises(FileError, match=message):
        replay_(model, [Step(fried=fried)])
    assert all(one is other for one, other in zip(before, model, strict=True)) and not steps_of(model)
