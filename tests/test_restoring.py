"""Folders whose blocks are reconstructed as soon as they are pruned: nearer to the dense model, the same zeros, resumable to the bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from test_streaming import Stop, Stopping, dense, pruned, task, told

import secateurs as sc
from secateurs.blockwise import Passage, Stacks
from secateurs.graph import halves_of, trace_of
from secateurs.recover import BlockTraining
from secateurs.recover.reconstruct import relative_error
from secateurs.types import KindError, SecateursError


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_answers_come_nearer_and_what_is_pruned_stays_so(tmp_path: Path, dtype: torch.dtype) -> None:
    source = dense(tmp_path / "dense", dtype=dtype)
    plain, trained = (pruned(source, tmp_path / f"after {steps}", reconstruct=steps) for steps in (0, 10))
    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(2))
    stream = lambda folder: loaded(folder).model(tokens).last_hidden_state.detach()  # noqa: E731
    wanted = stream(source)
    assert relative_error(stream(trained.folder), wanted) < 0.9 * relative_error(stream(plain.folder), wanted)
    assert trained.plan == plain.plan and trained.sparsity == 0.5
    assert all(
        weight.dtype == dtype
        for weight in transformers.AutoModelForCausalLM.from_pretrained(trained.folder, dtype="auto").parameters()
    )


def test_each_block_learns_as_soon_as_it_is_pruned(tmp_path: Path) -> None:
    """As with the pieces by hand: one block is pruned and trained, and only then the next one."""
    source, work = dense(tmp_path / "dense"), task()
    found, model, goal = loaded(pruned(source, tmp_path / "pruned", reconstruct=3).folder), loaded(source), loaded(source)
    names = tuple(f"model.layers.{number}" for number in range(3))
    trace = trace_of(model, work.example)
    for name in names:
        sc.prune_(model, sc.Element(), sc.SparseGPT(), sc.uniform(sparsity=0.5), work, only=[name], walk=sc.in_blocks())
        masks = {each: weight != 0 for each, weight in model.named_parameters() if each.startswith(name) and weight.ndim > 1}
        passages = [Passage(Stacks(each, names, {}, frozenset()), work) for each in (model, goal)]
        (ours, calls), (theirs, aims) = (passage.at(name) for passage in passages)
        for half in halves_of(trace, name):
            training = BlockTraining(ours.block, theirs.block, name, half, [call for call, _ in calls], [call for call, _ in aims])
            training.part_(masks, 3, 1e-3, 0)
    for name, weight in found.state_dict().items():
        assert torch.allclose(weight, model.state_dict()[name], atol=1e-6), name


@pytest.mark.parametrize("after", [9])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, after: int) -> None:
    source = dense(tmp_path / "dense", dtype=torch.bfloat16)
    pruned(source, tmp_path / "expected", reconstruct=3)
    with pytest.raises(Stop):
        pruned(source, tmp_path / "pruned", Stopping(after, []), reconstruct=3)
    with pytest.raises(SecateursError, match="belongs to another pruning: its reconstruction is"):
        pruned(source, tmp_path / "pruned", reconstruct=4)
    pruned(source, tmp_path / "pruned", Stopping(1000, []), reconstruct=3)
    assert told(tmp_path / "pruned") == told(tmp_path / "expected")


def test_numbers_of_steps_that_cannot_be(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    with pytest.raises(SecateursError, match=r"reconstruct=-1, lr=0\.001: give no step or some"):
        pruned(source, tmp_path / "pruned", reconstruct=-1)
    with pytest.raises(KindError, match="reconstruct is"):
        pruned(source, tmp_path / "pruned", reconstruct=1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
