"""Masks go on with their weights through a shrink: all that anybody still has, and none that it does not concern."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import SecateursError


class Uneven(nn.Module):
    """Its weight is spread over all channels before it is used, so that fewer of them are another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.enter.weight.shape[0] != 8:
            raise ValueError("eight channels are needed")
        return self.leave(self.enter(x).relu())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


def prune(model: nn.Module, pattern: object, sparsity: float = 0.5, masks: sc.Masks | None = None) -> sc.Masks:
    task = sc.Task(example=torch.randn(2, 4))
    return sc.prune_(model, pattern, sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), task, masks=masks)  # type: ignore[arg-type]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.randn(16, 4)) - 1).square().sum().backward()
    optimizer.step()


def pruned(masks: sc.Masks, model: nn.Module) -> Tensor:
    return torch.cat([model.get_parameter(name).detach()[~mask] for name, mask in masks.items()])


def test_masks_stay_where_every_site_is_put_back() -> None:
    model = Uneven()
    model.enter.weight.data[:4] = 0
    masks = prune(model, sc.Element())
    before = {name: mask.clone() for name, mask in masks.items()}
    shrunk = sc.shrink_(model, masks)
    assert shrunk.skipped and not shrunk.sites
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert f"of the whole model {removed / sc.params(model):.4f}" in str(masks)
    assert masks.keys() == before.keys() and all(torch.equal(masks[name], mask) for name, mask in before.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(optimizer)
    step(model, optimizer)
    assert pruned(masks, model).numel() == 24 and not pruned(masks, model).any()


@pytest.mark.parametrize("given", [True, False])
def test_masks_of_an_earlier_pruning_follow(given: bool) -> None:
    """They are attached still, and what they hold within the smaller weights stays zero."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    earlier = prune(model, sc.Element())
    earlier.attach(optimizer)
    later = prune(model, sc.Channel(), masks=earlier)
    later.attach(optimizer)
    copied = copy.deepcopy((model, earlier))[1]
    sc.shrink_(model, later if given else None, torch.randn(2, 4), optimizer=optimizer)
    assert {name: mask.shape for name, mask in earlier.items()} == {name: model.get_parameter(name).shape for name in earlier}
    assert model[0].weight.shape[0] < 12 and copied["0.weight"].shape == (12, 4)
    for _ in range(3):
        step(model, optimizer)
    assert pruned(earlier, model).numel() and not pruned(earlier, model).any()


def test_masks_made_on_a_wrapped_model_follow() -> None:
    model = network()
    wrapped = nn.ModuleDict({"module": model})
    masks = sc.Masks({f"module.{name}": mask for name, mask in prune(model, sc.Element(), 0.8).items()}, wrapped)
    gone = int(sum((~mask).sum() for mask in masks.values()))
    sc.shrink_(model, masks, torch.randn(2, 4))
    assert masks["module.0.weight"].shape == model[0].weight.shape != (12, 4)
    left = int(sum((~mask).sum() for mask in masks.values()))
    assert 0 < left < gone and f"of the whole model {left / sc.params(model):.4f}" in str(masks)


def test_masks_of_another_copy_are_refused() -> None:
    model = network()
    masks = prune(model, sc.Channel())
    other = copy.deepcopy(model)
    before = [parameter.clone() for parameter in (*model.parameters(), *other.parameters())]
    with pytest.raises(
        SecateursError, match=r"none of the masked parameters \(0\.weight, …\) is one of this Sequential's.*masks\.bind"
    ):
        sc.shrink_(other, masks)
    assert all(map(torch.equal, before, (*model.parameters(), *other.parameters())))
    assert sc.shrink_(other, masks.bind(other)).sites == {"0": (12, 6), "2": (8, 4)}
    assert masks["0.weight"].shape == (12, 4) == model[0].weight.shape


def test_masks_of_weights_that_are_gone_go() -> None:
    """A head that was replaced since, a block that is taken out: masks hold what is there."""
    model = network()
    masks, joint = prune(model, sc.Element()), nn.ModuleList([model, nn.Linear(2, 2)])
    of_both = sc.Masks({"0.2.weight": masks["2.weight"], "1.weight": torch.eye(2).bool()}, joint)
    model[4] = nn.Linear(8, 2)
    sc.shrink_(model, masks)
    assert set(masks) == {"0.weight", "2.weight"}
    assert set(of_both) == {"0.2.weight", "1.weight"}  # the latter is no business of this model


def test_a_weight_that_something_else_has_resized_is_named() -> None:
    layer = nn.Linear(3, 2)
    masks = sc.Masks({"weight": torch.eye(2, 3).bool()}, layer)
    layer.weight.data = torch.ones(1, 3)
    with pytest.raises(SecateursError, match=r"weight: its mask is of shape \(2, 3\), but the parameter is of \(1, 3\) by now"):
        masks.apply_()
