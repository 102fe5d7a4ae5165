"""Means of answers set back to the dense model's by the biases: exactly, in order, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import NonFiniteError, SecateursError, TaskError


class Network(nn.Module):
    """Layers with a bias, without one before a BatchNorm, without any, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.twice = nn.Conv2d(6, 4, 3), nn.Linear(4, 4)
        self.lone, self.unused = nn.Linear(4, 4, bias=False), nn.Linear(2, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.last(torch.relu(self.lone(x)))


def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def task(sizes: tuple[int, ...] = (5, 16), **more: Any) -> sc.Task:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(size, 1, 6, 6, generator=generator) + 1, None) for size in sizes]
    return sc.Task(batches[0][0][:1], calibration=batches, **more)


def pruned(pattern: Any = None, sparsity: float = 0.6, **options: Any) -> tuple[Network, Network, sc.Masks]:
    model = network()
    solver, dense = sc.TopK(sc.magnitude()), copy.deepcopy(model)
    options = {"recalibrate": False, "skip": ["unused"], **options}
    return model, dense, sc.prune_(model, pattern or sc.Element(), solver, sc.uniform(sparsity=sparsity), task(), **options)


def means(model: nn.Module, given: sc.Task) -> dict[str, Tensor]:
    """The mean of all that each layer answers to all batches, written out."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: found.setdefault(name, []).append(output))
        for name, module in model.named_children()
    ]
    with torch.no_grad():
        for batch, _ in given.calibration or ():
            model(batch)
    for hook in hooks:
        hook.remove()
    rows = {
        name: torch.cat([each.movedim(1, -1).reshape(-1, each.shape[1]) for each in outputs]) for name, outputs in found.items()
    }
    return {name: each.double().mean(0) for name, each in rows.items()}


def test_all_means_are_those_of_the_dense_model_afterwards() -> None:
    model, dense, masks = pruned()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = sc.correct_biases_(model, dense, task(), masks)
    now, wanted = means(model, task()), means(dense, task())
    for name in ("norm", "second", "last"):
        torch.testing.assert_close(now[name], wanted[name], rtol=1e-5, atol=1e-6)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.bias" for name in ("norm", "second", "twice", "last")} == {f"{name}.bias" for name in done.layers}
    assert {item.name: item.reason for item in done.skipped} == {
        "lone": "it has no bias, and is not read by corrected layers alone",
        "unused": "the calibration batches do not call it as a module",
    }
    assert list(done.layers) == ["norm", "second", "twice", "last"] and all(off > 0 for off in done.layers.values())
    assert "4 layers corrected" in str(done) and "left as it was: lone: it has no bias" in str(done)


def test_a_layer_that_is_all_gone_answers_the_mean_and_masked_biases_stay_zero() -> None:
    model, dense, masks = pruned(sc.Channel(), 0.5, only=["first"])
    with torch.no_grad():
        model.second.weight.zero_()
        model.norm.running_mean.add_(1)
    sc.correct_biases_(model, dense, task(), masks)
    torch.testing.assert_close(model.second.bias.double(), means(dense, task())["second"], rtol=1e-5, atol=1e-6)
    gone = ~masks["norm.bias"]
    assert bool(gone.any()) and not model.norm.bias[gone].any() and bool(model.norm.bias[~gone].any())


def test_where_nothing_was_pruned_nothing_changes() -> None:
    model, dense, masks = pruned(sparsity=0.0)
    sc.correct_biases_(model, dense, task(), masks)
    for name, tensor in dense.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_bad_input_is_refused_and_nothing_is_changed() -> None:
    model, dense, masks = pruned()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def refused(match: str, error: type[Exception] = SecateursError, **options: Any) -> None:
        given = {"model": model, "dense": dense, "task": task(), "masks": masks, **options}
        with pytest.raises(error, match=match):
            sc.correct_biases_(**given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert not any(module._forward_hooks for module in [*model.modules(), *dense.modules()])

    refused("the dense model shares first.weight with the pruned one", dense=model)
    refused(
        "has no parameter 0.weight of the pruned one's shape|has no parameter first.weight", dense=nn.Sequential(nn.Linear(1, 1))
    )
    refused(r"give Task\(calibration=...\) or Task\(train=...\)", TaskError, task=sc.Task(task().example))
    refused("the calibration loader is empty", TaskError, task=sc.Task(task().example, calibration=[]))
    refused("the model rejects a calibration batch", TaskError, task=sc.Task(task().example, calibration=[torch.ones(2, 2, 6, 6)]))
    infinite = [torch.full((2, 1, 6, 6), torch.inf)]
    refused("norm: what it answers .* has no finite mean", NonFiniteError, task=sc.Task(task().example, calibration=infinite))
    refused("correct_biases_: masks is 0.5, but must be the Masks", TypeError, masks=0.5)
