"""A library of what each block may become: measured once, and the best model for any budgets, as trying them all finds it."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.types import FileError, PlanError, SecateursError

ALTERNATIVES = [sc.Narrower(0.5), sc.Narrower(0.25), sc.LowerRank(0.5), sc.Gone()]


class Branch(nn.Module):
    """What a residual block adds, through two layers."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, inner), nn.Linear(inner, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.tanh(self.first(x)))


@pytest.fixture(scope="module")
def work():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), *(Branch(12) for _ in range(3)), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[2].second.weight *= 1e-2
        model[3].first.weight *= 0.3
    x = torch.randn(64, 8)
    batches = [(x, model(x).detach())]
    return model, sc.Task(x[:1], validation=batches, calibration=batches, loss=nn.functional.mse_loss)


@pytest.fixture(scope="module")
def found(work):
    model, task = work
    before = copy.deepcopy(model.state_dict())
    library = sc.library(model, task, ALTERNATIVES, costs=[sc.macs, sc.params])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return library


def test_an_entry_is_the_model_with_that_block_changed_alone(work, found):
    _, task = work
    assert [(entry.block, entry.alternative) for entry in found.entries] == [
        (str(n), each.name) for n in (1, 2, 3) for each in ALTERNATIVES
    ]
    assert not found.skipped and found.dense.value < 1e-6 and found.dense.costs == {"macs": 3 * 192 + 96, "params": 3 * 212 + 108}
    for entry in found.entries:
        built = found.built({entry.block: entry.alternative})
        assert sc.macs(built, task.example) == entry.costs["macs"] and sc.params(built) == entry.costs["params"]
        loss = float(nn.functional.mse_loss(built(task.validation[0][0]), task.validation[0][1]).detach())
        assert loss == pytest.approx(entry.value, abs=1e-7)
    assert {e.costs["macs"] for e in found.entries if e.alternative == "gone"} == {2 * 192 + 96}
    assert {e.costs["macs"] for e in found.entries if "0.25" in e.alternative} == {2 * 192 + 48 + 96}


@pytest.mark.parametrize(("keep", "both"), [(0.8, False), (0.55, True), (0.4, False)])
def test_the_choice_is_the_best_of_all_and_meets_the_budgets_when_it_is_built(work, found, keep, both):
    model, task = work
    budgets = [sc.Budget(sc.macs, keep=keep), *([sc.Budget(sc.params, keep=0.6)] if both else [])]
    choice = found.choice(budgets)
    small = found.built(choice)
    assert all(b.cost(small, task.example) <= b.limit_for(model, task.example) for b in budgets)
    rows = {str(n): [found.dense, *(e for e in found.entries if e.block == str(n))] for n in (1, 2, 3)}

    def lost(entries):
        return sum(max(0.0, entry.value - found.dense.value) for entry in entries)

    def costs(entries, name):
        return found.dense.costs[name] + sum(entry.costs[name] - found.dense.costs[name] for entry in entries)

    limits = {b.cost.name: b.limit_for(model, task.example) for b in budgets}
    best = min(lost(each) for each in product(*rows.values()) if all(costs(each, name) <= limit for name, limit in limits.items()))
    mine = [next(e for e in rows[block] if e.alternative == name) for block, name in choice.items()]
    assert lost(mine) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_blocks_that_go_go_together_and_small_models_answer(work, found):
    small = found.built({"1": "gone", "2": "low rank keeps 0.5", "3": "gone"})
    assert sc.macs(small, torch.zeros(1, 8)) == 96 + 2 * 2 * 20 and small(torch.randn(5, 8)).shape == (5, 4)
    least = found.small(sc.Budget(sc.macs, limit=96))
    assert sc.macs(least, torch.zeros(1, 8)) == 96


def test_a_library_that_is_killed_goes_on(work, tmp_path, monkeypatch):
    model, task = work
    tried, calls = sc.library.__globals__["_tried"], []

    def killed(*args):
        calls.append(args[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tried(*args)

    monkeypatch.setitem(sc.library.__globals__, "_tried", killed)
    asked = {"costs": [sc.macs], "checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        sc.library(model, task, ALTERNATIVES[:3], **asked)
    again = sc.library(model, task, ALTERNATIVES[:3], **asked)
    assert len(calls) == 4 + 9 - 3 and len(again.entries) == 9
    assert sc.library(model, task, ALTERNATIVES[:3], **asked).entries == again.entries and len(calls) == 10
    with pytest.raises(FileError, match="belongs to another library: its costs is another one"):
        sc.library(model, task, ALTERNATIVES[:3], costs=[sc.params], checkpoint=tmp_path)
    next(tmp_path.glob("alternative-*")).write_text("{")
    with pytest.raises(FileError, match=r"alternative-.* does not tell what was tried"):
        sc.library(model, task, ALTERNATIVES[:3], **asked)


def test_what_cannot_be_made_is_listed_with_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 2))
    x = torch.randn(8, 6)
    task = sc.Task(x[:1], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    found = sc.library(model, task, [sc.Narrower(0.5), sc.Gone()], costs=[sc.macs], blocks=["0"])
    assert [(entry.block, entry.alternative) for entry in found.entries] == [("0", "Channel() keeps 0.5")]
    assert [item.name for item in found.skipped] == ["0, gone"] and found.skipped[0].reason
    with pytest.raises(SecateursError, match="library: nothing could be made of any block: 0, gone: "):
        sc.library(model, task, [sc.Gone()], costs=[sc.macs], blocks=["0"])
    with pytest.raises(SecateursError, match="there is no module 'nowhere'"):
        sc.library(model, task, [sc.Gone()], costs=[sc.macs], blocks=["nowhere"])
    with pytest.raises(SecateursError, match=r"0\.0 lies in 0, so that they cannot be changed apart"):
        sc.library(model, task, [sc.Gone()], costs=[sc.macs], blocks=["0", "0.0"])
    with pytest.raises(SecateursError, match=r"two alternatives are called 'gone'"):
        sc.library(model, task, [sc.Gone(), sc.Gone()], costs=[sc.macs])
    with pytest.raises(SecateursError, match=r"library: give alternatives, .*, and the costs="):
        sc.library(model, task, [sc.Gone()], costs=[])


def test_budgets_that_no_choice_meets_are_an_error_that_says_the_least(found):
    with pytest.raises(
        PlanError, match=r"macs can fall to about 96 MACs at the least, but the budget is 20: raise the budget, or give more"
    ):
        found.choice(sc.Budget(sc.macs, limit=20))
    with pytest.raises(SecateursError, match=r"the library was not asked what its entries cost in bytes: make it with costs="):
        found.choice(sc.Budget(sc.bytes_, keep=0.5))
    with pytest.raises(SecateursError, match="there is no alternative 'wider'; there are as it is, Channel"):
        found.built({"1": "wider"})
