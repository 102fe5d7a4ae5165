"""Two processes, one model: they decide alike, wait for nobody who is gone, and may hold the model in shards.

All of it runs in one pair of processes (ranks_worker.py), because processes start slowly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.ranks import count, gathered, is_sharded, of_first, shard_of, sharded_as, together, whole
from secateurs.recover import checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of each check, of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ranks_worker.py"))]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for rank in (0, 1)
    ]
    complaints = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], complaints
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def both(found: Found, name: str) -> Any:
    """What both processes found, which must be the same."""
    assert found[0][name] == found[1][name]
    return found[0][name]


def test_masks_are_chosen_by_what_all_processes_have_seen(found: Found) -> None:
    for rank in (0, 1):
        as_all, as_own = found[rank]["masks_are_those_of_all_data"]
        assert as_all and not as_own
    assert both(found, "a_unit_that_one_process_never_sees") is True


def test_second_derivatives_are_summed_over_processes_and_surgery_is_for_one(found: Found) -> None:
    as_all, as_own, told = both(found, "second_derivatives_are_those_of_all_data")
    assert as_all == [True] * 3 and as_own == [False, True, False]  # what flows needs no data
    assert told.startswith("SecateursError: obs_ is for one process, and here are 2: where each process has a model of its own")


def test_what_fails_in_one_process_fails_in_all(found: Found) -> None:
    (first, unchanged), (second, also_unchanged) = (each["what_fails_in_one_fails_in_all"] for each in found)
    assert unchanged and also_unchanged
    assert second == "TaskError: the calibration loader is empty: it gave no batch to observe"
    assert first == f"SecateursError: process 1 of 2 failed: {second}"


def test_masks_that_differ_are_refused_and_nothing_is_changed(found: Found) -> None:
    told, unchanged = both(found, "other_weights")
    assert unchanged
    assert told.startswith("SecateursError: 0.weight: what is to stay of process 1 differs from that of process 0")
    assert "wrap in DistributedDataParallel first" in told and "with secateurs.alone()" in told


def test_the_plan_of_the_first_process_is_followed(found: Found) -> None:
    assert both(found, "a_plan_that_was_measured") == 0.25


def test_gates_and_thresholds_are_those_of_all_processes(found: Found) -> None:
    (parallel, one), (in_shards, other), thresholds = both(found, "gates_of_channels")
    assert one == other == 1 and thresholds
    assert in_shards == pytest.approx(parallel, rel=1e-5) and parallel[1] < parallel[0]


def test_a_statistic_that_cannot_be_added_up_is_refused(found: Found) -> None:
    told = both(found, "a_statistic_that_is_no_sum")
    assert "last cannot be added up over 2 processes: the class of its accumulator must name its sums" in told


def test_masks_hold_under_distributed_data_parallel(found: Found) -> None:
    """The same weights, losses, metrics and learning rates in both, and zeros stay."""
    told, alike, zeros, losses = both(found, "data_parallel_training")
    assert "the mask of process 1 differs from that of process 0: give all the same masks" in told
    assert alike and zeros == [0.5, 0.5] and len(set(losses)) == 3


def test_a_run_that_was_stopped_goes_on_with_the_random_numbers_of_each_process(found: Found) -> None:
    assert both(found, "stopped_and_gone_on") == [True, 2]


def test_statistics_of_normalisations_are_those_of_all_data(found: Found) -> None:
    (*first, told, unchanged, numbers), (*second, also_told, also_unchanged, same_numbers) = (
        each["statistics_taken_anew"] for each in found
    )
    assert first == second == [[True] * 3, True, False] and numbers == same_numbers and unchanged and also_unchanged
    assert told == f"SecateursError: process 1 of 2 failed: {also_told}" and "gave no batch to take statistics on" in told


def test_masks_made_before_sharding_are_bound_to_the_shards(found: Found) -> None:
    (told, zeros, here, shown, sparsity), (*_, there, _, _) = (each["masks_made_before_sharding"] for each in found)
    assert "was the model sharded since (fully_shard)?" in told and "masks.bind(copy).attach(optimizer)" in told
    assert zeros == [0.5, 0.5] and shown == "Masks(2 parameters, sparsity 0.5000)" and sparsity == 0.5
    assert here != there and here + there == 12 * 33 + 33 * 4


def test_shards_are_pruned_as_the_whole_is(found: Found) -> None:
    alike, stay, further, two_of_four, channels, shrunk = both(found, "pruned_in_shards")
    assert alike and stay
    assert further == pytest.approx(0.8, abs=2e-3) and two_of_four == 0.5
    for told in (channels, shrunk):
        assert "the model is sharded (fully_shard)" in told and "prune whole channels and shrink_ first, then shard it" in told


def test_gradual_pruning_of_shards_is_that_of_data_parallel_training(found: Found) -> None:
    numbers = both(found, "gradually_in_shards")
    assert numbers[:2] == [pytest.approx(each, rel=1e-5) for each in numbers[2:]]
    assert numbers[1][1] >= 0.6


def test_penalties_on_shards_are_those_of_data_parallel_training(found: Found) -> None:
    shards, parallel, alike = both(found, "penalties_in_shards")
    assert shards == [pytest.approx(each, rel=1e-5) for each in parallel] and alike
    assert max(shards) > 0.2


def test_sparsity_that_is_learned_is_the_same_in_all_processes_and_in_shards(found: Found) -> None:
    learned, told = both(found, "sparsity_that_is_learned")
    for same, close, sparsity, _ in learned:
        assert same and close and sparsity < 1, learned
    assert sum(sparsity > 0 for _, _, sparsity, _ in learned) == 4, learned  # the gates of filters are open, each as far as it is
    assert "learned_n_of_m: the model is sharded (fully_shard)" in told


def test_bits_that_are_learned_are_the_same_in_all_processes_and_in_shards(found: Found) -> None:
    for parallel, in_shards, close in both(found, "bits_that_are_learned"):
        assert parallel == pytest.approx(in_shards, abs=1e-4) and abs(parallel - 2.5) > 1e-3 and close > 0.95


def test_shards_are_saved_as_one_file_and_read_back(found: Found) -> None:
    (alike, sizes, nowhere, kept), (also, same_sizes, told, _) = (each["files_of_shards"] for each in found)
    assert alike and also and sizes == same_sizes and sizes[1] < sizes[0]
    assert nowhere.startswith("WriteError: could not write") and told == f"SecateursError: process 0 of 2 failed: {nowhere}"
    assert "train_: checkpoint= writes whole models, and this one is sharded" in kept


def test_masks_that_grow_again_do_so_alike(found: Found) -> None:
    grown, told, unchanged = both(found, "masks_that_grow_again")
    assert grown[::2] == [[True, 264, 264]] * 3
    assert grown[1::2] == [1, 1, 1]
    assert "0.weight: the mask after the exchange of process 1 differs from that of process 0" in told and unchanged == 0.5


def test_tickets_are_the_same_in_all_processes(found: Found) -> None:
    assert both(found, "tickets") == [True, 1, True]


def test_a_checkpoint_of_more_processes_warns_that_random_numbers_will_be_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, batch = nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1))
    task = sc.Task(batch[0], train=[batch], loss=nn.functional.mse_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(checkpoint, "gathered", lambda value: [value, value])
    sc.train_(model, task, optimizer, 1, checkpoint=tmp_path / "c", show=False)
    with pytest.warns(UserWarning, match="was written by 2 processes, but 1 go on: their random numbers will be others"):
        assert len(sc.train_(model, task, optimizer, 2, checkpoint=tmp_path / "c", show=False).history) == 2


def test_one_process_alone_talks_to_nobody() -> None:
    with together():
        assert (count(), gathered(3), of_first(3)) == (1, [3], 3)
    tensor = torch.ones(2)
    assert whole(tensor) is shard_of(tensor) is sharded_as(tensor, tensor) is tensor and not is_sharded(tensor)


def test_a_model_in_several_processes_is_taught_alike(found: Found) -> None:
    own, in_shards, maps, told = both(found, "taught_by_what_it_was")
    assert own == pytest.approx(in_shards, rel=1e-5)
    assert len(maps) == 9 and len(maps[0]) == 33
    assert "is sharded (fully_shard), and a model in shards cannot be copied: copy it before sharding" in told


def test_when_a_process_dies_all_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    """torchrun starts both anew; what comes of it is to the bit what would have come without a death."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    worker = [str(Path(__file__).with_name("ranks_dying.py")), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run([*command, *address, *worker], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and one.pop("started again") == 1 and len(one) >= 3
    assert all(same and epochs == 4 and 0.4 < sparsity < 0.8 for same, epochs, sparsity in one.values())


def test_several_processes_threshold_and_begin_anew_alike(found: Found) -> None:
    parallel, in_shards, weights = both(found, "thresholded_and_begun_anew")
    assert parallel == in_shards and parallel[1] == pytest.approx(0.6, abs=2e-3)
    assert len(weights) == 4
