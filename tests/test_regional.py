"""Gradients of a region: of the norm of what a block answers, or the whole model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.evidence import observe, regional_gradient
from secateurs.patterns import find_sites
from secateurs.solve.scoring import scores_of
from secateurs.types import SecateursError


def network() -> tuple[nn.Sequential, sc.Task]:
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))  # noqa: E731
    data = torch.randn(5, 1, 4, 6)
    return nn.Sequential(block(), block()), sc.Task(example=data[0], calibration=[(batch, None) for batch in data])


def plainly(region: nn.Module, layer: nn.Linear, batches: list[Tensor], alpha: float) -> Tensor:
    """The score as it is published, of batches of one sample."""
    squares, inputs = torch.zeros_like(layer.weight), []
    hook = layer.register_forward_hook(lambda module, given, _: inputs.append(given[0].detach()))
    for batch in batches:
        (gradient,) = torch.autograd.grad(region(batch).norm(), layer.weight)
        squares += gradient.square() / len(batches)
    hook.remove()
    norm = (torch.stack(inputs).square().flatten(0, -2).sum(0) / len(batches)).sqrt()
    return layer.weight.detach().abs() * (alpha * squares.sqrt() + norm)


def test_scores_of_the_whole_model_are_the_papers_up_to_a_factor():
    model, task = network()
    site = find_sites(model, sc.Element(), task.example)[0]
    found = scores_of(site, sc.regional(alpha=7), observe(model, [site], sc.regional(alpha=7).needs, task)).view(8, 6)
    expected = plainly(model, model[0][0], [batch for batch, _ in task.calibration], 7)
    assert torch.allclose(found, expected * 5**0.5, rtol=1e-4)
    assert not torch.allclose(found, plainly(model, model[0][0], [batch for batch, _ in task.calibration], 0) * 5**0.5, rtol=1e-2)


def test_block_by_block_the_region_is_the_block_on_the_inputs_that_the_pruned_ones_make():
    model, task = network()
    plain = copy.deepcopy(model)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.regional()), sc.uniform(sparsity=0.5), task, only="*", walk=sc.in_blocks())
    batches = [batch for batch, _ in task.calibration]
    for number, block in enumerate(plain):
        scores = {place: plainly(block, block[place], batches, 100) for place in (0, 2)}
        for place, score in scores.items():
            kept = score >= score.flatten().kthvalue(25).values
            assert torch.equal(masks[f"{number}.{place}.weight"], kept)
            with torch.no_grad():
                block[place].weight *= kept
        with torch.no_grad():
            for name in ("0.bias", "2.bias"):
                block.get_parameter(name).copy_(model[number].get_parameter(name))
            batches = [block(batch) for batch in batches]


def test_what_has_no_region_is_said():
    model, task = network()
    sites = find_sites(model, sc.Element(), task.example)
    labelled = sc.Task(task.example, calibration=[(batch, batch) for batch, _ in task.calibration], loss=nn.functional.mse_loss)
    both = [regional_gradient(), *sc.fisher().needs]
    with pytest.raises(
        SecateursError, match="regional_gradient is of the model's answers, and squared_gradient of the task's loss"
    ):
        observe(model, sites, both, labelled)
    with pytest.raises(SecateursError, match=r"alpha=-1\): alpha is the weight of the gradients"):
        sc.regional(alpha=-1)
    with pytest.raises(SecateursError, match="squared_gradient needs the gradient of the loss, which no block has"):
        sc.prune_(model, sc.Element(), sc.TopK(sc.fisher()), sc.uniform(sparsity=0.5), labelled, walk=sc.in_blocks())
    whole = nn.Sequential(nn.Linear(6, 4), type("Largest", (nn.Module,), {"forward": lambda self, x: x.argmax(-1)})())
    with pytest.raises(SecateursError, match="no floating-point numbers that depend on the weights"):
        observe(whole, find_sites(whole, sc.Element(), task.example), [regional_gradient()], task)
