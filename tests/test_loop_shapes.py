"""Optimizers that evaluate the loss themselves, and batches of different sizes that make one step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateurs as sc


def test_l_bfgs_trains_and_pruned_weights_stay_zero() -> None:
    inputs = torch.randn(64, 6)
    batches = [(inputs, inputs[:, :2] * 2)]
    task = sc.Task(inputs[:1], train=batches, loss=nn.functional.mse_loss)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    run = sc.train_(model, task, torch.optim.LBFGS(model.parameters(), max_iter=10), 5, masks=masks)
    assert run.history[-1]["loss"] < 0.9 * run.history[0]["loss"]
    assert not model[0].weight[~masks["0.weight"]].any()
    with pytest.raises(sc.SecateursError, match="LBFGS cannot scale gradients"):
        sc.train_(model, task, torch.optim.LBFGS(model.parameters()), 1, amp=torch.float16)


def test_accumulated_batches_of_different_sizes_give_the_gradient_of_all_samples_together() -> None:
    inputs, target = torch.randn(10, 4), torch.randn(10, 1)
    together = nn.Linear(4, 1)
    apart = nn.Linear(4, 1)
    apart.load_state_dict(together.state_dict())
    for model, sizes, accumulate in ((together, [10], 1), (apart, [7, 2, 1], 3)):
        batches = list(zip(inputs.split(sizes), target.split(sizes), strict=True))
        task = sc.Task(inputs[:1], train=batches, loss=nn.functional.mse_loss)
        run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 1, accumulate=accumulate)
        assert run.step == 1
    assert torch.allclose(together.weight, apart.weight, atol=1e-6)
    assert torch.allclose(together.bias, apart.bias, atol=1e-6)
