"""A plan is tried, and the model is as it was, to the bit."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc

SOLVER = sc.TopK(sc.magnitude())


class Counting(nn.Module):
    """Has buffers of both kinds, one of which each pass replaces, noise, and tied weights."""

    calls: Tensor
    hidden: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.full((2,), torch.nan), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.hidden.add_(1)
        return self.second(nn.functional.dropout(self.norm(self.first(x)), 0.3, self.training))


@pytest.fixture
def work() -> sc.Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 6, generator=generator)
    batches = [(inputs, inputs.flip(1))]
    return sc.Task(inputs[:4], train=batches, validation=batches, loss=nn.functional.mse_loss, metric=nn.functional.mse_loss)


def everything(model: nn.Module) -> dict[str, object]:
    """All that a trial promises to put back, by name; tensors as bytes, so that NaN equals NaN."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, object] = {name: bytes(tensor.detach().numpy().tobytes()) for name, tensor in tensors.items()}
    found |= {f"{name} id": id(tensor) for name, tensor in tensors.items()}
    found |= {f"{name} needs": tensor.requires_grad for name, tensor in tensors.items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {f"{name} grad": None if grad is None else (id(grad), grad.numpy().tobytes()) for name, grad in gradients.items()}
    found |= {f"{name} mode": module.training for name, module in model.named_modules()}
    found["torch"] = torch.get_rng_state().numpy().tobytes()
    found["numpy"], found["python"] = numpy.random.get_state()[1].tobytes(), random.getstate()
    return found


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    before = everything(model)
    yield
    after = everything(model)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def plan_of(model: nn.Module, task: sc.Task, keep: float) -> sc.Plan:
    return sc.uniform(keep=keep)(sc.find_sites(model, sc.Element(), task.example), lambda: iter([]))


def test_a_model_is_as_it_was_after_a_trial_that_trains_it(work: sc.Task) -> None:
    model = Counting()
    model(work.example).sum().backward()
    model.second.bias.grad = None
    model.norm.eval()
    plan = plan_of(model, work, 0.25)
    for _ in range(2):
        with put_back(model), sc.trial(model, sc.Element(), SOLVER, plan, work) as masks:
            assert masks.kept == 9 == int(model.first.weight.count_nonzero())
            sc.train_(model, work, torch.optim.Adam(model.parameters(), lr=0.1), 2, masks=masks, show=False)
            model.first.weight.requires_grad_(False)
            model.norm.bias.requires_grad_(False)
            random.random(), numpy.random.rand(), torch.rand(1)


def test_a_model_is_as_it_was_where_the_block_or_the_plan_fails(work: sc.Task) -> None:
    model = Counting()
    plan = plan_of(model, work, 0.5)

    def fail() -> None:
        with sc.trial(model, sc.Element(), SOLVER, plan, work):
            model(work.example).sum().backward()
            raise KeyError

    with put_back(model), pytest.raises(KeyError):
        fail()
    with put_back(model), pytest.raises(sc.PlanError), sc.trial(model, sc.Element(), SOLVER, sc.Plan({}), work):
        pass


def test_three_plans_are_compared_by_their_losses(work: sc.Task) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    sc.train_(model, work, torch.optim.Adam(model.parameters(), lr=0.02), 60, show=False)
    plans = [plan_of(model, work, keep) for keep in (0.9, 0.5, 0.1)]

    def tried(plan: sc.Plan) -> float:
        with sc.trial(model, sc.Element(), SOLVER, plan, work):
            return sc.evaluate(model, work, work.validation)

    with put_back(model):
        losses = [tried(plan) for plan in plans]
        assert losses == [tried(plan) for plan in plans]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]
    for plan, loss in zip(plans, losses, strict=True):
        pruned = copy.deepcopy(model)
        sc.prune_(pruned, sc.Element(), SOLVER, lambda sites, scores, plan=plan: plan, work)
        assert sc.evaluate(pruned, work, work.validation) == loss


def test_a_copy_may_shrink_and_the_model_itself_may_not(work: sc.Task) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    plan = sc.uniform(keep=0.5)(sc.find_sites(model, sc.Channel(), work.example), lambda: iter([]))
    with put_back(model), sc.trial(model, sc.Channel(), SOLVER, plan, work) as masks:
        small = copy.deepcopy(model)
        sc.shrink_(small, masks.bind(small))
        assert small[0].out_features == 8
    with (
        pytest.raises(sc.SecateursError, match=r"trial: 0.weight was of shape \(16, 6\) and is of \(8, 6\).*shrink a copy"),
        sc.trial(model, sc.Channel(), SOLVER, plan, work) as masks,
    ):
        sc.shrink_(model, masks)
