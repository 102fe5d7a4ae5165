"""A small share of the attacks that `benchmarks/attack.py` makes a million of: none finds a fault."""

from __future__ import annotations

import os

import pytest
import torch
from attacks import KINDS, kill, mutants, sequence

COUNTS = {"checkpoint": 40, "measurements": 0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if COUNTS.get(kind, 1)])
def test_mutants_are_refused_or_read(kind: str) -> None:
    verdict = mutants(kind, COUNTS.get(kind, 150), "test")
    assert verdict.faults == []
    assert verdict.counts["damaged, refused"] > 0
    assert verdict.counts["changed, refused"] > 0


@pytest.mark.filterwarnings("ignore")
def test_sequences_move_no_pruned_weight() -> None:
    for seed in range(4):
        assert sequence(f"test {seed}").faults == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_while_it_writes_goes_on_and_leaves_nothing() -> None:
    torch.set_num_threads(1)
    assert kill("test").counts["runs resumed to the same bits"] == 1
