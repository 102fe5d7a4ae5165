"""Distillation: the loss against its definition, the teacher untouched, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.types import SecateursError


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def classes(*shape: int, dtype: torch.dtype = torch.float32, batches: int = 3) -> sc.Task:
    """Batches of 4 random inputs of a shape, and random classes out of three."""
    inputs, target = torch.randn(batches, 4, *shape, dtype=dtype), torch.randint(3, (batches, 4, *shape[1:]))
    return sc.Task(inputs[0], train=list(zip(inputs, target, strict=True)), loss=cross_entropy)


def unlabelled(output: Tensor, target: Tensor) -> Tensor:
    """No loss but the hooks'."""
    return 0 * output.sum()


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (4.0, 0.5), (20.0, 3.0), (2.0, 0.0)])
def test_the_loss_is_its_definition(temperature: float, weight: float) -> None:
    """weight · T² · Σ p log(p / q), mean over the samples."""
    task, teacher, model = classes(5, dtype=torch.float64, batches=1), nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    ((inputs, target),) = task.train  # type: ignore[union-attr]
    p, q = (torch.softmax(each(inputs) / temperature, 1) for each in (teacher, model))
    expected = cross_entropy(model(inputs), target) + weight * temperature**2 * (p * (p / q).log()).sum(1).mean()
    run = sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=[sc.distill(teacher, temperature=temperature, weight=weight)])
    assert run.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


class Constant(nn.Module):
    """Answers the same logits, its parameters, to everything."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits - logits.mean(1, keepdim=True))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits


def test_hot_gradients_are_those_of_matching_the_logits() -> None:
    """At a high temperature the gradient tends to (z − v) / classes, for logits z and v of mean zero (1503.02531, eq. 4)."""
    teacher, model = Constant(torch.randn(4, 3, dtype=torch.float64)), Constant(torch.randn(4, 3, dtype=torch.float64))
    gradients: list[Tensor] = []
    look = sc.Hook("look", gradients=lambda run: gradients.append(model.logits.grad.clone()) or None)  # type: ignore
    nothing = torch.zeros(4, dtype=torch.float64)
    task = sc.Task(nothing, train=[(nothing, nothing)], loss=unlabelled)
    sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=[sc.distill(teacher, temperature=1e4), look])
    torch.testing.assert_close(gradients[0], (model.logits - teacher.logits).detach() / 3 / 4, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_model_learns_what_its_teacher_knows_without_a_label(amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    task, teacher, model = classes(5, batches=8), nn.Linear(5, 3), nn.Linear(5, 3)
    task = replace(task, loss=unlabelled)
    run = sc.train_(model, task, sgd(model), 60, hooks=[sc.distill(teacher)], amp=amp)
    assert run.history[-1]["loss"] < (1e-4 if amp is None else 1e-2) * run.history[0]["loss"]


@pytest.mark.parametrize(("dim", "shape"), [(1, (5, 6)), (-1, (6, 3))])
def test_classes_may_be_in_any_dimension(dim: int, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(4, *shape)
    teacher, model = (nn.Conv1d(5, 3, 1), nn.Conv1d(5, 3, 1)) if dim == 1 else (nn.Linear(3, 7), nn.Linear(3, 7))
    p, q = (torch.softmax(each(inputs), dim) for each in (teacher, model))
    task = sc.Task(inputs, train=[(inputs, torch.zeros(4))], loss=unlabelled)
    run = sc.train_(model, task, sgd(model, lr=0.0), 1, hooks=[sc.distill(teacher, temperature=1, dim=dim)])
    assert run.history[0]["loss"] == pytest.approx((p * (p / q).log()).sum(dim).mean().item(), rel=1e-4)


def test_the_teacher_answers_in_evaluation_mode_and_stays_as_it_is() -> None:
    task, model = classes(5), nn.Linear(5, 3)
    teacher = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    teacher[1].eval()
    before, modes, modes_in_forward = copy.deepcopy(teacher.state_dict()), [m.training for m in teacher.modules()], []
    teacher[2].register_forward_hook(lambda module, inputs, output: modes_in_forward.append(module.training))
    sc.train_(model, task, sgd(model), 2, hooks=[sc.distill(teacher)])
    assert modes_in_forward == [False] * 6
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(teacher.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_pruned_model_learns_from_what_it_was_and_its_masks_hold(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    teacher = copy.deepcopy(small_cnn)
    masks = sc.prune_(small_cnn, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.8), cnn_task)
    run = sc.train_(small_cnn, cnn_task, sgd(small_cnn, 0.02), 3, masks=masks, hooks=[sc.distill(teacher), sc.clip_gradients(1.0)])
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    state = small_cnn.state_dict()
    assert all(not state[name][~mask].any() for name, mask in masks.items())


def test_a_run_with_a_teacher_goes_on_to_the_bit(tmp_path: Path) -> None:
    def learner() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    task, teacher, states = classes(5), nn.Linear(5, 3), []
    for epochs in ((4,), (2, 4)):
        for until in epochs:
            model = learner()
            path = tmp_path / f"{len(epochs)}.safetensors"
            sc.train_(model, task, sgd(model), until, hooks=[sc.distill(teacher)], checkpoint=path, seed=5)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


class Named(nn.Module):
    """Answers with a dict that has no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"features": self.inner(inputs)}


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"weight": -1.0}, {"weight": float("inf")}]
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SecateursError, match=r"distill\(temperature=.*, weight=.*\): temperature must be above 0"):
        sc.distill(nn.Linear(1, 1), **options)


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (nn.Linear(5, 4), {}, r"distill\(dim=1\): .* the teacher returned \(4, 4\) and the model \(4, 3\)"),
        (
            nn.Linear(5, 3),
            {"dim": 2},
            r"distill\(dim=2\): .* the teacher returned \(4, 3\) and the model \(4, 3\); .* another dim=",
        ),
        (Named(), {}, r"the teacher returned dict and the model \(4, 3\); wrap one"),
    ],
)
def test_logits_that_do_not_fit_are_refused(teacher: nn.Module, options: dict[str, Any], message: str) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(SecateursError, match=message):
        sc.train_(model, classes(5), sgd(model), 1, hooks=[sc.distill(teacher, **options)])


def test_a_model_is_not_its_own_teacher() -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(SecateursError, match=r"shares parameters .*teacher = secateurs.teacher_of\(model\)"):
        sc.train_(model, classes(5), sgd(model), 1, hooks=[sc.distill(model)])
    assert all(parameter.grad is None for parameter in model.parameters())
