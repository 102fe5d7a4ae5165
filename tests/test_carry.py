"""Masks go on with their weights through a shrink: all that anybody still has, and none that it does not concern."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.shrink.same_answers import require_same
from secateurs.types import KindError, SecateursError


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


def test_masked_weights_that_have_moved_are_told_by_shrink() -> None:
    """Once for all parameters; the answers that stay are those under the masks. Nothing is said where all is zero, -0.0 too."""
    model = network()
    masks = prune(model, sc.Channel())
    model[0].weight.data[~masks["0.weight"]] = -0.0
    for name in ("0.bias", "2.bias"):
        model.get_parameter(name).data[~masks[name]] = 1
    quiet, small, inputs = copy.deepcopy(model), copy.deepcopy(model), torch.randn(5, 4)
    bound = masks.bind(small)
    wanted = masks.bind(quiet).apply_(quiet) and quiet(inputs)
    with pytest.warns(UserWarning, match=r"0\.bias: 6 masked weights were not zero \(and others in 1 param.*masks\.attach") as told:
        sc.shrink_(small, bound)
    assert len(told) == 1
    assert torch.allclose(small(inputs), wanted, atol=1e-6)
    sc.shrink_(quiet, masks.bind(quiet))


def test_moved_weights_are_counted_in_tensors_that_are_looked_at_in_pieces() -> None:
    model = nn.Sequential(nn.Linear(700, 600, dtype=torch.float64), nn.Linear(600, 1, dtype=torch.float64))
    mask = torch.ones(600, 700, dtype=torch.bool)
    mask[3::5] = False
    masks, moved = sc.Masks({"0.weight": mask}, model).apply_(), {}
    model[0].weight.data[3, :2], model[0].weight.data[598, 1], model[0].weight.data[0, 0] = 1, torch.nan, torch.nan
    for _, parts in masks.applied_(moved):
        assert sum(part.shape[0] for part in parts) == 600
    assert moved == {"0.weight": 3}
    assert not pruned(masks, model).any() and model[0].weight[0, 0].isnan()


def test_masks_that_a_shrink_has_changed_do_not_bind_to_the_larger_model() -> None:
    model = network()
    masks, big = prune(model, sc.Channel()), copy.deepcopy(model)
    sc.shrink_(model, masks)
    for act in (masks.bind, masks.apply_, masks.bind(copy.deepcopy(model)).bind):
        with pytest.raises(
            SecateursError,
            match=r"0\.weight: since shrink_ these masks follow.* of shape \(6, 4\) there.* \(12, 4\).*before shrinking",
        ):
            act(big)
    with pytest.raises(SecateursError, match=r"none of the masked parameters \(.*masks\.bind"):
        sc.shrink_(big, masks)
    assert not masks.bind(copy.deepcopy(model))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(x))


def test_masks_of_a_layer_that_was_taken_out_do_not_bind_to_a_model_that_has_it() -> None:
    model = Branch()
    big = copy.deepcopy(model)
    masks = sc.Masks({"branch.weight": torch.zeros(4, 4, dtype=torch.bool)}, model).apply_()
    assert sc.shrink_(model, masks, torch.randn(2, 4)).layers == ("branch",)
    with pytest.raises(SecateursError, match=r"branch\.weight: since shrink_ these masks follow.*it is not there any more"):
        masks.bind(big)
    masks.bind(copy.deepcopy(model))


def test_what_is_no_optimizer_of_the_model_is_refused_by_shrink() -> None:
    model = network()
    masks, before = prune(model, sc.Channel()), sc.params(model)
    with pytest.raises(KindError, match="shrink_: optimizer is 'sgd', but must be a torch optimizer"):
        sc.shrink_(model, masks, optimizer="sgd")  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"the optimizer trains none of the parameters of this Sequential.*another copy"):
        sc.shrink_(model, masks, optimizer=torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))
    assert sc.params(model) == before
    assert sc.shrink_(model, masks, optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1)).sites


def test_answers_without_a_number_are_no_proof() -> None:
    model = network()
    masks = prune(model, sc.Channel())
    model[4].bias.data.fill_(torch.nan)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SecateursError, match="could not be compared: the model's outputs have no finite numbers, only NaN and inf"):
        sc.shrink_(model, masks)
    assert all(torch.equal(now.nan_to_num(9), before[name].nan_to_num(9)) for name, now in model.state_dict().items())
    assert masks["0.weight"].shape == (12, 4)
    for answers, found in (([torch.zeros(0, 2)], "none at all"), ([], "none at all"), ([torch.tensor([torch.inf])], "only NaN")):
        with pytest.raises(SecateursError, match=f"could not be compared.*{found}"):
            require_same(answers, answers)
    assert require_same([torch.tensor([torch.nan]), torch.ones(1)], [torch.tensor([torch.nan]), torch.ones(1)]) == 0
