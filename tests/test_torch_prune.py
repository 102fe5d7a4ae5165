"""Masks of torch.nn.utils.prune: what they hide is as gone as what is zero, whether they were made permanent or not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import secateurs as sc


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 12, 3)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    """A model whose filters torch has pruned, and the same one with the masks made permanent."""
    hidden = Network().double().eval()
    prune.ln_structured(hidden.first, "weight", 0.5, n=2, dim=0)
    prune.l1_unstructured(hidden.last, "bias", 1)
    permanent = Network().double().eval()
    permanent.load_state_dict({**hidden.state_dict(), **_effective(hidden)}, strict=False)
    return hidden, permanent


def _effective(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name[:-5]: tensor * state[name[:-5] + "_mask"] for name, tensor in state.items() if name.endswith("_orig")}


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8).double()


def test_counts_see_them(pair: tuple[nn.Module, nn.Module]) -> None:
    hidden, permanent = pair
    assert sc.nonzero_params(hidden) == sc.nonzero_params(permanent) < sc.params(permanent)
    assert sc.nonzero_macs(hidden, images()[:1]) == sc.nonzero_macs(permanent, images()[:1]) < sc.macs(permanent, images()[:1])
    assert sc.macs(hidden, images()[:1]) == sc.macs(permanent, images()[:1])


def test_what_they_hide_is_removed(pair: tuple[nn.Module, nn.Module]) -> None:
    hidden, permanent = pair
    expected = hidden(images())
    before = hidden.first.weight.clone()
    shrunk, again = sc.shrink_(hidden, example=images()), sc.shrink_(permanent, example=images())
    assert list(shrunk.sites.values()) == list(again.sites.values()) == [(16, 8)]
    assert sc.params(hidden) == sc.params(permanent)
    assert hidden.first.weight.shape == hidden.first.weight_mask.shape == (8, 3, 3, 3) and hidden.first.out_channels == 8
    assert torch.equal(hidden.first.weight, before[before.flatten(1).any(1)])
    other = images()
    torch.testing.assert_close(hidden(other), permanent(other), rtol=1e-9, atol=1e-9)
    assert expected.shape == hidden(other).shape
    prune.remove(hidden.first, "weight")
    torch.testing.assert_close(hidden(other), permanent(other), rtol=1e-9, atol=1e-9)


def test_what_they_hide_is_chosen_first_and_stays_chosen(pair: tuple[nn.Module, nn.Module]) -> None:
    """Not the numbers below the masks, which are as large as any."""
    hidden, _ = pair
    with torch.no_grad():
        hidden.first.weight_orig[hidden.first.weight_mask == 0] = 100.0
    gone = ~hidden.first.weight_mask.flatten(1).any(1)
    task = sc.Task(example=images())
    masks = sc.prune_(hidden, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    assert torch.equal(masks["first.weight_orig"].flatten(1).any(1), ~gone)
    masked = hidden(images()[:1] * 0 + 0.5)
    assert sc.shrink_(hidden, masks).sites["first.weight_orig"] == (16, 8)
    torch.testing.assert_close(hidden(images()[:1] * 0 + 0.5), masked, rtol=1e-9, atol=1e-9)


def test_a_site_that_is_put_back_is_whole_again(pair: tuple[nn.Module, nn.Module]) -> None:
    hidden, _ = pair
    hidden.register_forward_pre_hook(lambda module, inputs: None if module.first.weight_orig.shape[0] == 16 else 1 / 0)
    before = copy.deepcopy(hidden.state_dict())
    assert sc.shrink_(hidden, example=images()).skipped
    assert {name: tensor.shape for name, tensor in hidden.state_dict().items()} == {n: t.shape for n, t in before.items()}
    assert hidden.first.weight.shape == (16, 3, 3, 3)
