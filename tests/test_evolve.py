"""Plans found by evolution: what was planted is found, totals stay, and a search that was stopped goes on to the bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.search import fitness
from secateurs.solve import TopK
from secateurs.types import FileError, KindError, NonFiniteError, PatternError, PlanError, SecateursError, TaskError

CHOICE = TopK(sc.magnitude())


def planted(seed: int = 0, width: int = 16) -> tuple[nn.Sequential, sc.Task]:
    """Six layers, of which the odd ones hold three quarters of zeros; what they answer, and batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())))
    with torch.no_grad():
        for place in (2, 6, 10):
            weight = model[place].weight
            weight *= torch.rand_like(weight).flatten().argsort().argsort().view_as(weight) < width * width // 4
    data = [(torch.randn(8, width), None) for _ in range(4)]
    return model, sc.Task(example=data[0][0][:1], calibration=data, loss=lambda output, target: output.square().mean())


def search(model, task, start=None, **named):
    named = {
        "pattern": sc.Element(),
        "solver": CHOICE,
        "step": 0.125,
        "reach": 2,
        "offspring": 6,
        "rounds": [(1, 3), (4, 1)],
        **named,
    }
    return sc.evolve(model, named.pop("pattern"), named.pop("solver"), start or sc.uniform(sparsity=0.5), task, **named)


def test_the_planted_optimum_is_found_and_the_total_stays():
    model, task = planted()
    before = copy.deepcopy(model.state_dict())
    found = search(model, task, generations=40, offspring=8)
    assert dict(found.plan) == {name: 64 if int(name) % 4 == 2 else 192 for name in ("0", "2", "4", "6", "8", "10")}
    assert found.losses[0] > 10 * found.losses[-1] and all(one >= other for one, other in pairwise(found.losses))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks = sc.prune_(model, sc.Element(), CHOICE, found.plan, task)
    assert masks.kept == 6 * 128


@pytest.mark.parametrize("pattern", [sc.Element(within="row"), sc.Element(within=8), sc.Vector("outputs"), sc.Filter()], ids=repr)
def test_every_generation_keeps_as_many_units_as_the_start(pattern):
    model, task = planted()
    found = search(model, task, pattern=pattern, generations=3, only="*.weight")
    start = sc.planned(model, pattern, CHOICE, sc.uniform(sparsity=0.5), task, only="*.weight")
    assert sum(found.plan.values()) == sum(start.values()) and dict(found.plan) != dict(start)
    sc.prune_(model, pattern, CHOICE, found.plan, task, only="*.weight")


def test_a_search_that_was_stopped_goes_on_to_the_same_result(tmp_path, monkeypatch):
    model, task = planted()
    whole = search(model, task, generations=5)
    search(model, task, generations=2, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("generation-*")) == ["generation-00000.json", "generation-00001.json"]
    monkeypatch.setattr("secateurs.search.database.observe", lambda *_: pytest.fail("all levels are on disk"))
    assert search(model, task, generations=5, checkpoint=tmp_path) == whole
    monkeypatch.undo()
    other = search(model, task, generations=5, seed=1)
    assert other.losses != whole.losses and other.losses[0] == whole.losses[0]
    with pytest.raises(FileError, match="belongs to another pruning: its search is"):
        search(model, task, generations=5, checkpoint=tmp_path, seed=1)
    last = tmp_path / "generation-00004.json"
    last.write_text(json.dumps({**json.loads(last.read_text()), "levels": [0]}))
    with pytest.raises(FileError, match=r"generation-00004.json cannot be gone on from \(it belongs to another search\)"):
        search(model, task, generations=6, checkpoint=tmp_path)


def test_solved_weights_are_put_together_and_the_model_comes_back_after_an_error(monkeypatch):
    model, task = planted()
    before = copy.deepcopy(model.state_dict())
    found = search(model, task, solver=sc.SparseGPT(), generations=2, walk=sc.in_order())
    pruned = copy.deepcopy(model)
    sc.prune_(pruned, sc.Element(), sc.SparseGPT(), found.plan, task)  # observed on the dense model, as the levels were
    measured = fitness.Fitness(model, task, "divergence", [4])
    measured._model = pruned
    assert abs(measured([0, 1, 2, 3]) - found.losses[-1]) < 1e-6
    calls = iter(range(3))
    monkeypatch.setattr(fitness.Fitness, "__call__", lambda *_: 1.0 / (1 + next(calls)))
    with pytest.raises(StopIteration):
        search(model, task, generations=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_exchange_levels_as_a_whole():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))  # noqa: E731
    model = nn.Sequential(nn.Sequential(block(), block(), block()), nn.Linear(8, 4))
    data = torch.randn(16, 8)
    task = sc.Task(example=data[:1], calibration=[(data, None)])
    found = search(model, task, exchange="blocks", generations=4, rounds=[(1, 1)], skip="1")
    kept = {name: share.kept for name, share in found.plan.shares.items()}
    assert all(kept[f"0.{number}.0"] == kept[f"0.{number}.2"] for number in range(3)) and sum(kept.values()) == 6 * 64
    assert len(set(kept.values())) > 1
    assert search(model, task, exchange="blocks", generations=2, rounds=[(1, 1)], skip="1", blocks="0").losses == found.losses[:3]


class Branch(nn.Module):
    """What a residual block adds, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.tanh(self.first(x)))


def test_which_blocks_go_is_searched_too():
    torch.manual_seed(0)
    model, data = nn.Sequential(*(Branch() for _ in range(6)), nn.Linear(8, 4)), torch.randn(32, 8)
    with torch.no_grad():
        for idle in (1, 4):
            model[idle].second.weight *= 1e-3
            model[idle].second.bias *= 1e-3
    task = sc.Task(example=data[:1], calibration=[(data, None)])
    start, solver = sc.uniform(keep=4 / 6), TopK(sc.random(seed=1))
    found = search(model, task, start, pattern=sc.Depth(), solver=solver, generations=10, rounds=[(1, 1)])
    assert dict(found.plan) == {str(place): int(place not in (1, 4)) for place in range(6)}
    assert found.losses[-1] < 1e-4 * found.losses[0]


def test_the_tasks_loss_is_another_measure_and_what_is_not_finite_is_said():
    model, task = planted()
    by_loss = search(model, task, by="loss", generations=1)
    pruned = copy.deepcopy(model)
    sc.prune_(pruned, sc.Element(), CHOICE, sc.uniform(sparsity=0.5), task)
    with torch.no_grad():
        assert abs(by_loss.losses[0] - sum(float(pruned(batch).square().mean()) for batch, _ in task.calibration) / 4) < 1e-6
    broken = sc.Task(example=task.example, calibration=task.calibration, loss=lambda output, target: output.sum() * torch.nan)
    with pytest.raises(NonFiniteError, match="pruned as the start says measures inf"):
        search(model, broken, by="loss")
    images = torch.randn(2, 3, 4, 4)
    expected = torch.nn.functional.kl_div(images.log_softmax(1), images.flip(1).softmax(1), reduction="sum") / 32
    assert abs(fitness.divergence(images.flip(1), images) - float(expected)) < 1e-5


@pytest.mark.parametrize(
    ("named", "error", "said"),
    [
        ({"pattern": sc.NofM(2, 4), "start": sc.as_pattern()}, PlanError, r"NofM\(2, 4\) decides by itself.*Element\(within=4\)"),
        ({"start": sc.uniform(sparsity=0.99), "step": 0.5}, PlanError, r"none of 6 sites can give another of the same size 0\.5"),
        ({"pattern": sc.Channel()}, PatternError, r"lies in .* and in .*, which cannot be pruned apart"),
        ({"rounds": [(5, 1)]}, TaskError, r"rounds= ask for 5 calibration batches, but there are 4"),
        ({"rounds": [(4, 1), (1, 1)]}, SecateursError, "with more batches from round to round"),
        ({"rounds": []}, SecateursError, "must be pairs"),
        ({"step": 1.0}, SecateursError, r"step=1\.0 is not in \(0, 1\)"),
        ({"offspring": 0}, SecateursError, "offspring=0 must be at least 1"),
        ({"generations": 1.5}, KindError, r"generations is .*1\.5"),
        ({"by": "size"}, SecateursError, "by='size' is none of"),
        ({"exchange": "blocks", "blocks": "layers"}, SecateursError, "the model has no module of this name"),
        ({"exchange": "heads"}, SecateursError, "exchange='heads' is none of"),
    ],
)
def test_what_cannot_be_searched_is_said(named, error, said):
    model, task = planted()
    with pytest.raises(error, match=said):
        search(model, task, **{"generations": 1, **named})


def test_answers_without_classes_need_a_loss_and_groups_must_be_alike():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Flatten(0))
    data = torch.randn(8, 4)
    with pytest.raises(TaskError, match=r'gives no logits.*take by="loss"'):
        search(model, sc.Task(example=data[:1], calibration=[(data, None)]), rounds=[(1, 1)])
    model, task = planted()
    masks = sc.prune_(copy.deepcopy(model), sc.Element(), CHOICE, sc.uniform(sparsity=0.3), task)
    sites = sc.find_sites(model, sc.Element(within="row"), task.example, masks=masks)
    with pytest.raises(PlanError, match="an earlier pruning left its 16 groups unlike"):
        sc.search.genes.genes_of(sites, sc.uniform(sparsity=0.5)(sites, None), None, 0.1, 1)


def test_levels_of_other_data_and_of_another_model_are_refused(tmp_path):
    model, task = planted()
    search(model, task, generations=1, checkpoint=tmp_path)
    squared = copy.deepcopy(model)
    squared[1] = nn.GELU()
    other = replace(task, calibration=[(torch.zeros_like(x), y) for x, y in task.calibration])
    with pytest.raises(FileError, match="belongs to another pruning: its data is"):
        search(model, other, generations=1, checkpoint=tmp_path)
    with pytest.raises(FileError, match="belongs to another pruning: its model is"):
        search(squared, task, generations=1, checkpoint=tmp_path)
