"""What holds of weights beside masks, and how a run ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import FileError, KindError, SecateursError


class TwoValues:
    """A weight whose numbers are all one of two, which are the medians of those nearest to each; pruned ones stay zero."""

    name = "two values"

    def __init__(self, weight: nn.Parameter, mask: Tensor | None = None) -> None:
        self.weight, self.mask = weight, torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        self.values = [-1.0, 1.0]

    @torch.no_grad()
    def apply_(self) -> None:
        high = self.weight > sum(self.values) / 2
        self.values = [float(self.weight[self.mask & side].median()) for side in (~high, high)]
        self.weight.copy_(torch.where(high, self.values[1], self.values[0]) * self.mask)

    def state(self) -> dict[str, Any]:
        return {"values": list(self.values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.values = list(state["values"])


def parts(seed: int = 0) -> tuple[nn.Module, sc.Task, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(32, 6)
    task = sc.Task(x[:1], train=[(x, x.sum(1, keepdim=True))] * 3, loss=nn.functional.mse_loss)
    return model, task, torch.optim.Adam(model.parameters(), lr=0.05)


def test_weights_tied_to_two_values_are_so_after_each_step_and_train() -> None:
    model, task, optimizer = parts()
    seen: list[int] = []
    counting = sc.Hook("count", stepped=lambda run: seen.append(len(model[0].weight.unique())))
    run = sc.train_(model, task, optimizer, 6, hooks=[counting], constraints=[TwoValues(model[0].weight)])
    assert seen == [2] * 18 and run.history[-1]["loss"] < 0.7 * run.history[0]["loss"]


def test_masks_are_law_beside_a_constraint() -> None:
    model, task, optimizer = parts()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    mask = masks["0.weight"]
    sc.train_(model, task, optimizer, 2, masks=masks, constraints=[TwoValues(model[0].weight, mask)])
    assert not model[0].weight[~mask].any() and len(model[0].weight[mask].unique()) == 2
    filling = TwoValues(model[0].weight, mask)
    filling.apply_ = lambda: model[0].weight.data.fill_(1.0)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(SecateursError, match=r"the constraint two values fills 24 weights of 0.weight that the masks hold at zero"):
        sc.train_(model, task, optimizer, 1, masks=masks, constraints=[filling])


def test_a_constraint_goes_through_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    found = []
    for epochs in ((4,), (2, 4)):
        model, task, optimizer = parts()
        for until in epochs:
            if until == 4 and len(epochs) == 2:
                model, task, optimizer = parts()
            constraint = TwoValues(model[0].weight)
            path = tmp_path / f"run{len(epochs)}"
            sc.train_(model, task, optimizer, until, checkpoint=path, seed=1, constraints=[constraint])
        found.append((model[0].weight.detach().clone(), constraint.values))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    with pytest.raises(FileError, match=r"was written with the constraints \['two values'\], not \[\]"):
        sc.train_(*parts(), 5, checkpoint=tmp_path / "run1")


def test_a_run_ends_once_also_where_a_hook_stops_it_and_not_where_it_fails() -> None:
    ended: list[int] = []

    def stop(run: sc.Run) -> None:
        run.stop = run.epoch == 1

    end = sc.Hook("end", end=lambda run: ended.append(run.epoch))
    assert len(sc.train_(*parts(), 5, hooks=[end]).history) == 5 and ended == [4]
    assert len(sc.train_(*parts(), 5, hooks=[end, sc.Hook("stop", epoch_end=stop)]).history) == 2 and ended == [4, 1]
    model, task, optimizer = parts()
    with pytest.raises(ZeroDivisionError):
        sc.train_(model, task, optimizer, 5, hooks=[end, sc.Hook("fail", stepped=lambda run: 1 / 0)])
    assert ended == [4, 1]


def test_what_is_no_constraint_is_told() -> None:
    model, task, optimizer = parts()
    with pytest.raises(KindError, match="constraints is a list, but must be a list of constraints"):
        sc.train_(model, task, optimizer, 1, constraints=[0.5])  # type: ignore[list-item]
    two = TwoValues(model[0].weight)
    with pytest.raises(SecateursError, match="constraints' names must differ"):
        sc.train_(model, task, optimizer, 1, constraints=[two, two])
