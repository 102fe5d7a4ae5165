"""Patterns of somebody else's: rows of tables, whole layers, experts. Nothing but the protocol is asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.patterns import among, misfit, tiled, with_alive
from secateurs.patterns.canonical import Layout
from secateurs.types import Chosen, Cut, KindError, Member, Pattern, PatternError, Site, Sites, Skipped


@dataclass(frozen=True)
class Row:
    """Rows of embeddings, and of nothing else: words that a vocabulary does not need."""

    within: Any = "layer"
    kept_of_each = None
    removable = False
    tail = "error"
    cut = tiled

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1, shape[2])

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        found, skipped = [], []
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                falls, layout = self.cut((1, *module.weight.shape)), Layout()
                member = Member(f"{name}.weight", module, "weight", layout, falls.view)
                found.append(Site(name, (member,), falls.contests, falls.competitors, prod(falls.elements), self))
            elif isinstance(module, nn.Linear):
                skipped.append(Skipped(name, "no table"))
        sites = among(Sites(tuple(found), tuple(skipped), model, example), chosen)
        return Sites(tuple(with_alive(site, masks) for site in sites), sites.skipped, model, example)


@dataclass(frozen=True)
class AsOne:
    """A whole weight is one unit."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0)


@dataclass(frozen=True)
class As:
    """A tensor as it is."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor


@dataclass(frozen=True)
class Layer:
    """Whole layers of a sequence, which compete over the model: each is a site of one unit, in all its weights."""

    within: Any = "model"
    kept_of_each = None
    removable = False

    def cut(self, shape: Sequence[int]) -> Cut:
        raise PatternError(f"{self} removes whole layers")

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        found = []
        for name, layer in model.named_children():
            parts = dict(layer.named_parameters())
            members = tuple(Member(f"{name}.{key}", layer, key, As(), AsOne()) for key in parts)
            if members:
                size = sum(part.numel() for part in parts.values())
                found.append(with_alive(Site(name, members, (), (1,), size, self), masks))
        return among(Sites(tuple(found), (), model, example), chosen)


@dataclass(frozen=True)
class Stack:
    """The first dimension of a stack of matrices counts its units, as the experts of a mixture, in every weight of the module."""

    within: Any = "layer"
    kept_of_each = None
    removable = False

    def cut(self, shape: Sequence[int]) -> Cut:
        raise PatternError(f"{self} removes whole experts")

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        parts = dict(model.named_parameters())
        members = tuple(Member(name, model, name, As(), As(), stacked=True) for name in parts)
        units = len(members[0].weight)
        size = sum(part.numel() for part in parts.values()) // units
        return Sites((with_alive(Site("experts", members, (), (units,), size, self), masks),), (), model, example)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.other, self.head = nn.Embedding(10, 4), nn.Embedding(6, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens) + self.other(tokens % 6))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 3, 5)), nn.Parameter(torch.randn(4, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eij,ejk->bk", x, self.up, self.down)


TASK = sc.Task(torch.zeros(1, dtype=torch.long))


def test_rows_of_a_table_are_pruned_again_and_chosen_by_name() -> None:
    model = Words()
    largest = model.table.weight.detach().norm(dim=1).topk(5).indices
    masks = sc.prune_(model, Row(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), TASK, only="table")
    assert set(masks) == {"table.weight"}
    assert masks.pattern == "Row(within='layer')"
    kept = model.table.weight.count_nonzero(1) > 0
    assert kept.nonzero().flatten().tolist() == sorted(largest.tolist())
    assert ("other", "not named in only=") in [(item.name, item.reason) for item in masks.skipped]
    again = sc.prune_(model, Row(), sc.TopK(sc.magnitude()), sc.global_threshold(keep=0.25), TASK, masks=masks)
    assert not bool((again["table.weight"] & ~masks["table.weight"]).any())
    assert again.plan is not None and sum(again.plan.values()) == 4
    with pytest.raises(PatternError, match="nothing in Words is called 'tabel'; did you mean table"):
        sc.find_sites(model, Row(), only="tabel")


def test_whole_layers_of_a_sequence_go() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.ReLU())
    with torch.no_grad():
        model[1].weight.mul_(0.01)
        model[3].weight.mul_(0.02)
    least = sc.global_threshold(sparsity=0.5, floor=0)
    masks = sc.prune_(model, Layer(), sc.TopK(sc.magnitude(mean=True)), least, sc.Task(torch.zeros(1, 4)))
    assert dict(masks.plan or {}) == {"0": 1, "1": 0, "2": 1, "3": 0}
    assert {name: bool(mask.any()) for name, mask in masks.items()} == {
        f"{layer}.{part}": layer in (0, 2) for layer in range(4) for part in ("weight", "bias")
    }
    assert not model[1].weight.any() and not model[3].bias.any()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks.attach(optimizer)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert not model[1].weight.any()
    more = sc.prune_(
        model,
        Layer(),
        sc.TopK(sc.magnitude()),
        sc.global_threshold(sparsity=0.75, floor=0),
        sc.Task(torch.zeros(1, 4)),
        masks=masks,
    )
    assert sum((more.plan or {}).values()) == 1 and more["1.weight"].sum() == 0


def test_experts_go_with_both_their_matrices() -> None:
    model = Experts()
    with torch.no_grad():
        model.up[2] *= 0.01
    masks = sc.prune_(model, Stack(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.75), sc.Task(torch.zeros(1, 3)))
    assert [bool(mask[index].any()) for mask in masks.values() for index in range(4)] == [True, True, False, True] * 2
    assert not model.down[2].any()


@pytest.mark.parametrize("pattern", [Row(), Layer(), Stack()], ids=repr)
def test_what_is_asked_of_a_pattern_is_the_protocol(pattern: Pattern) -> None:
    assert isinstance(pattern, Pattern)
    weight = (1, 4, 4)
    assert (misfit(pattern, weight) is None) == isinstance(pattern, Row)


def test_what_finds_nothing_or_lacks_a_part_is_an_error() -> None:
    with pytest.raises(PatternError, match=r"Row\(within='layer'\) finds no site in Sequential; left alone: 0: no table"):
        sc.find_sites(nn.Sequential(nn.Linear(2, 2)), Row())
    with pytest.raises(KindError, match="find_sites: pattern is a AsOne, but must be a pattern, for example Element"):
        sc.find_sites(nn.Linear(2, 2), AsOne())  # type: ignore[arg-type]


def test_masks_of_another_model_are_named() -> None:
    with pytest.raises(PatternError, match=r"table.weight: the earlier mask is of shape \(3, 4\), but the weight of \(10, 4\)"):
        sc.find_sites(Words(), Row(), masks={"table.weight": torch.ones(3, 4, dtype=torch.bool)})
