"""A pruning from part to part that is stopped goes on where it was, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import FileError, Scores, Site, Solution, Stats


class Stop(Exception):
    pass


@dataclass(frozen=True)
class Stopping:
    """A solver that stops after so many sites, and otherwise does as the one within."""

    within: Any
    after: int = 1 << 30
    solved: list[str] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        return repr(self.within)

    @property
    def needs(self):
        return self.within.needs

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        return self.within.scores(sites, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        if len(self.solved) == self.after:
            raise Stop
        self.solved.append(site.name)
        return self.within(site, kept, stats)


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 12) for _ in range(4)]
    return nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())), nn.Linear(12, 3))


def task() -> sc.Task:
    data = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        12, 12, generator=torch.Generator().manual_seed(2)
    )
    return sc.Task(data[:1], calibration=[(data, None)])


CASES = [
    (sc.Element(), sc.LeastSquares(sc.TopK(sc.magnitude()))),
    (sc.Element(within="row"), sc.SparseGPT()),
    (sc.Channel(), sc.ZipLM()),
]


def pruned(model: nn.Module, pattern: Any, solver: Any, folder: Path | None = None) -> sc.Masks:
    return sc.prune_(model, pattern, solver, sc.uniform(sparsity=0.5), task(), walk=sc.in_order(), checkpoint=folder)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(("pattern", "solver"), CASES, ids=repr)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_was_stopped_goes_on_to_the_bit(tmp_path, pattern, solver, after):
    expected, model = made(), made()
    masks = pruned(expected, pattern, solver)
    stopping = Stopping(solver, after)
    with pytest.raises(Stop):
        pruned(model, pattern, stopping, tmp_path / "run")
    assert same(model, made())  # it was left as it was
    going_on = Stopping(solver)
    found = pruned(model, pattern, going_on, tmp_path / "run")
    assert len(going_on.solved) == len(found.plan) - after
    assert not set(going_on.solved) & set(stopping.solved)
    assert same(model, expected)
    assert {name: mask.tolist() for name, mask in found.items()} == {name: mask.tolist() for name, mask in masks.items()}
    again = Stopping(solver)
    fresh = made()
    pruned(fresh, pattern, again, tmp_path / "run")
    assert not again.solved
    assert same(fresh, expected)


@pytest.mark.parametrize("other", ["model", "solver", "pattern", "plan"])
def test_a_checkpoint_of_another_pruning_is_refused_and_names_the_difference(tmp_path, other):
    pattern, solver = CASES[0]
    with pytest.raises(Stop):
        pruned(made(), pattern, Stopping(solver, 2), tmp_path)
    model = made(1 if other == "model" else 0)
    before = copy.deepcopy(model)
    allocate = sc.uniform(sparsity=0.25 if other == "plan" else 0.5)
    solver = sc.LeastSquares(sc.TopK(sc.magnitude()), damping=0.1) if other == "solver" else solver
    pattern = sc.Element(within="row") if other == "pattern" else pattern
    with pytest.raises(FileError, match=f"belongs to another pruning: its {'weights' if other == 'model' else other} is"):
        sc.prune_(model, pattern, solver, allocate, task(), walk=sc.in_order(), checkpoint=tmp_path)
    assert same(model, before)


def test_a_damaged_part_is_refused(tmp_path):
    pattern, solver = CASES[0]
    with pytest.raises(Stop):
        pruned(made(), pattern, Stopping(solver, 2), tmp_path)
    path = sorted(tmp_path.glob("part-*"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    model = made()
    with pytest.raises(FileError):
        pruned(model, pattern, solver, tmp_path)
    assert same(model, made())


def test_a_file_of_something_else_and_a_path_that_is_none_are_refused(tmp_path):
    sc.save(made(), tmp_path / "part-00000.safetensors")
    with pytest.raises(FileError, match="is no part of a pruning"):
        pruned(made(), *CASES[0], tmp_path)
    with pytest.raises(sc.SecateursError, match="checkpoint"):
        pruned(made(), *CASES[0], 3)  # type: ignore[arg-type]


def test_units_in_weights_of_two_sites_come_back_from_both_parts(tmp_path):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.out = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.down(self.up(x).relu()).relu())

    torch.manual_seed(0)
    model = Residual()
    expected, going_on = copy.deepcopy(model), copy.deepcopy(model)
    masks = pruned(expected, sc.Channel(), CASES[2][1])
    with pytest.raises(Stop):
        pruned(going_on, sc.Channel(), Stopping(CASES[2][1], 1), tmp_path)
    found = pruned(going_on, sc.Channel(), CASES[2][1], tmp_path)
    assert same(going_on, expected)
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_other_calibration_batches_are_another_pruning(tmp_path):
    pattern, solver = CASES[0]
    with pytest.raises(Stop):
        pruned(made(), pattern, Stopping(solver, 2), tmp_path)
    data = torch.randn(64, 12)
    with pytest.raises(FileError, match="its calibration batches is"):
        sc.prune_(
            made(),
            pattern,
            solver,
            sc.uniform(sparsity=0.5),
            sc.Task(data[:1], calibration=[(data, None)]),
            walk=sc.in_order(),
            checkpoint=tmp_path,
        )
