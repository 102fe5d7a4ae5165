"""secateurs smallest: a model above an accuracy, with its files; the same command goes on."""

from __future__ import annotations

import pytest

import secateurs as sc
from secateurs.report import read_record
from secateurs.search import read_trials

from .test_cli import run  # noqa: F401 (a fixture)

OWN = """
import torch
import secateurs as sc

def net():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[6:] *= 1e-3
        model[0].bias[6:] *= 1e-3
    return model

def work():
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    batches = [(inputs, net()(inputs).argmax(1))]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()
    loss = torch.nn.functional.cross_entropy
    return sc.Task(inputs[:1], train=batches, validation=batches, test=batches, loss=loss, metric=accuracy, name="own")
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_smallest.py").write_text(OWN)


def test_the_smallest_model_is_written_with_its_report_and_the_command_goes_on(own, run, tmp_path):  # noqa: F811
    command = [
        "smallest",
        "own_smallest:net",
        "--task",
        "own_smallest:work",
        "--within",
        "0.05",
        "--cost",
        "params",
        "--epochs",
        "2",
    ]
    status, out, err = run(*command)
    assert status == 0 and "params 51 of 195" in out and "smallest: params 51, trial" in err
    folder = tmp_path / "secateurs-smallest"
    record = read_record(folder / "record.json")
    pruned = next(entry for entry in record.entries if entry.name.startswith("pruned"))
    assert pruned.parameters == 51 and pruned.metric >= 0.95
    from own_smallest import net

    assert sc.params(sc.load(folder / "pruned.safetensors", net)) == 51
    files = {path.name: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}
    status, out, _ = run(*command)
    assert status == 0 and "params 51 of 195" in out
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()} == files
    assert all(not trial.failed for trial in read_trials(folder / "trials").trials)
    status, _, err = run(*command[:-2])
    assert status == 1 and "holds a run with other options: --epochs was 2 and is 0" in err


def test_what_cannot_be_is_one_line(own, run):  # noqa: F811
    command = ["smallest", "own_smallest:net", "--task", "own_smallest:work", "--out", "other"]
    for more, said in (
        (["--reach", "1.5"], "even the plan that keeps everything has accuracy 1"),
        (["--within", "0.1", "--reach", "0.9", "--force"], "give either within="),
        (["--epochs", "-1"], "--epochs -1: must be at least 0"),
        (["--lr", "0"], "--lr 0.0 is no learning rate"),
        (["--allocator", "erdos-renyi", "--force"], "Erdős–Rényi densities are for single weights"),
    ):
        status, _, err = run(*command, *more)
        assert status == 1 and said in " ".join(err.split()), err
