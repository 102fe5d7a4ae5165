"""What an optimizer holds beside averages of a parameter's shape: cut where its shape tells how, else begun anew and said so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc


class Preconditioned(torch.optim.Optimizer):
    """Holds a matrix for each row of a weight: nobody can tell from its shape what belongs to what."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            if not self.state[parameter]:
                self.state[parameter] = {"steps": 0, "factors": [torch.eye(parameter.shape[0])]}
            self.state[parameter]["steps"] += 1
            parameter.data -= 0.01 * (self.state[parameter]["factors"][0] @ parameter.grad)
        return loss


def build(make: Callable[..., torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """A model and an optimizer that have trained, and how to train on."""
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer, inputs = make(model), torch.randn(16, 5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().mean()
        loss.backward()
        return loss.detach()

    def train() -> None:
        for _ in range(2):
            optimizer.step(closure)

    train()
    return model, optimizer, train


def prune(model: nn.Module) -> sc.Masks:
    solver, task = sc.TopK(sc.magnitude()), sc.Task(example=torch.randn(2, 5))
    return sc.prune_(model, sc.Channel(), solver, sc.uniform(sparsity=0.5), task)


MAKERS: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], int]] = {
    "adafactor": (lambda model: torch.optim.Adafactor(model.parameters(), lr=0.01), 0),
    "lbfgs": (lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2), 6),
    "muon": (lambda model: torch.optim.Muon([p for p in model.parameters() if p.ndim == 2]), 0),
    "preconditioned": (lambda model: Preconditioned([model[2].weight]), 1),
}


@pytest.mark.parametrize(("make", "anew"), MAKERS.values(), ids=MAKERS.keys())
def test_training_goes_on_after_a_shrink(make: Callable[[nn.Module], torch.optim.Optimizer], anew: int) -> None:
    model, optimizer, train = build(make)
    masks = prune(model)
    kept = {name: mask.any(1) if mask.ndim > 1 else mask for name, mask in masks.items()}
    before = copy.deepcopy({name: optimizer.state.get(p, {}) for name, p in model.named_parameters()})
    shrunk = sc.shrink_(model, masks, optimizer=optimizer)
    assert shrunk.sites == {"0": (12, 6), "2": (6, 3)} and len(shrunk.anew) == anew
    assert ("the optimizer begins anew with " in str(shrunk)) == bool(anew)
    for name, parameter in model.named_parameters():
        if name in shrunk.anew:
            assert not optimizer.state.get(parameter)
    if "adafactor" in str(type(optimizer)).lower():
        rows = optimizer.state[model[0].weight]["row_var"]
        assert torch.equal(rows, before["0.weight"]["row_var"][kept["0.weight"]]) and rows.shape == (6, 1)
        assert optimizer.state[model[2].weight]["col_var"].shape == (1, 6)
    masks.attach(optimizer)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    train()
    assert not all(map(torch.equal, weights, model.parameters())) and all(bool(w.isfinite().all()) for w in model.parameters())


@pytest.mark.parametrize("make", [make for make, _ in MAKERS.values()], ids=MAKERS.keys())
def test_what_is_put_back_has_its_state_as_before(make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    """An attempt that fails, once everything has been cut."""
    model, optimizer, train = build(make)
    example, masks = torch.randn(2, 5), prune(model)
    model.register_forward_pre_hook(lambda module, inputs: None if module[2].weight.shape == (6, 12) else 1 / 0)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    shrunk = sc.shrink_(model, masks, example, optimizer=optimizer)
    assert not shrunk.sites and len(shrunk.skipped) == 2 and not shrunk.anew
    after = optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    train()
