"""What the command line does to a folder, and what it says to strange words: nothing is lost, nothing ends in a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import secateurs as sc
from secateurs import session
from secateurs.cli import commands as cli
from secateurs.cli import exported
from secateurs.report import read_record
from secateurs.run.clock.timing import Timing
from secateurs.run.explain import Explanation, LayerReport

OWN = """
import torch
import secateurs as sc

def net():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def trained():
    torch.manual_seed(5)
    return net()

def bracketed():
    model = torch.nn.Sequential()
    model.add_module("a[/bold]b", torch.nn.Linear(8, 16))
    model.add_module("[red]", torch.nn.Linear(16, 3))
    return model

def work(width=8):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, width, generator=generator)
    batches = [(inputs, inputs[:, :3].argmax(1))]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()
    loss = torch.nn.functional.cross_entropy
    return sc.Task(inputs[:1], train=batches, validation=batches, test=batches, loss=loss, metric=accuracy, name="own")

def wider():
    return work(9)

def uneven():
    task = work()
    return sc.Task(task.example, train=wider().train, loss=task.loss, name="uneven")

def broken():
    return [][0]
"""
SHORT = ("--rounds", "2", "--epochs-per-round", "1", "--sparsity", "0.5")


def called(*arguments: str) -> tuple[int, str, str]:
    """Runs a command in this process; returns (exit status, stdout, stderr)."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["secateurs", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with a module of models and tasks."""
    (tmp_path / "ours.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(session.job, "write_html", lambda record, path: path.write_text("a page"))  # drawing takes a second
    yield tmp_path
    sys.modules.pop("ours", None)


def prune(*arguments: str) -> tuple[int, str, str]:
    return called("prune", "ours:net", "--task", "ours:work", *SHORT, *arguments)


# ---------------------------------------------------------------- the folder


def test_a_folder_that_holds_a_run_is_neither_written_over_nor_forgotten(place: Path) -> None:
    assert prune("--out", "runs")[0] == 0
    (place / "runs" / "mine.txt").write_text("not of the run")
    before = {path.name: path.read_bytes() for path in (place / "runs").iterdir()}
    status, _, err = prune("--out", "runs", "--seed", "1")
    assert status == 1
    assert all(word in err for word in ("runs holds another run", "--resume", "--force", "--out"))
    assert {path.name: path.read_bytes() for path in (place / "runs").iterdir()} == before

    status, _, err = prune("--out", "runs", "--resume", "--seed", "1", "--lr", "0.5")
    assert status == 1
    assert "other options: --lr was 0.001 and is 0.5; --seed was 0 and is 1. Give those of its run.json" in err
    assert prune("--out", "runs", "--resume", "--force")[2].startswith("error: --force starts anew and --resume goes on")
    assert {path.name: path.read_bytes() for path in (place / "runs").iterdir()} == before

    assert prune("--out", "runs", "--resume")[0] == 0
    assert (place / "runs" / "pruned.safetensors").read_bytes() == before["pruned.safetensors"]
    assert prune("--out", "runs", "--seed", "1", "--force")[0] == 0
    assert json.loads((place / "runs" / "run.json").read_text())["options"]["seed"] == 1
    assert (place / "runs" / "mine.txt").read_text() == "not of the run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs-per-round", "0"), "--epochs-per-round 0: must be at least 1"),
        (("--rounds", "0"), "--rounds 0: must be at least 1"),
        (("--last-epochs", "-1"), "--last-epochs -1: must be at least 0"),
        (("--threads", "0"), "--threads 0: must be from 1 to"),
        (("--seed", "-1"), "--seed -1: must be from 0 to"),
        (("--lr", "nan"), "--lr nan is no learning rate"),
        (("--sparsity", "1.5"), "1.5 is not in [0, 1)"),
        (("--skip", "9"), "skip=: nothing in Sequential is called '9'"),
        (("--pattern", "channel", "--sparsity", "0.5", "--allocator", "erdos-renyi"), "densities are for single weights"),
        (("--pattern", "Kernel()"), "Kernel()"),
        (("--criterion", "magnitude(p=-1)"), "p must be in"),
        (("--criterion", "tailor"), "did you mean taylor"),
        (("--solver", "SparseGTP"), "did you mean SparseGPT"),
        (("--solver", "SparseGPT(block=0)"), "block=0 is no number of columns"),
        (("--solver", "LeastSquares(__import__('os'))"), "is no solver"),
        (("--solver", "SparseGPT", "--criterion", "taylor"), "says itself how it chooses: leave --criterion"),
        (("--solver", "ALPS", "--pattern", "filter"), "ALPS chooses single weights, or whole columns"),
        (("--criterion", "input_norm()"), "a statistic alone scores nothing"),
        (("--criterion", "__import__('os')"), "there is no '__import__'"),
        (("--criterion", "(" * 500), "is no criterion"),
        (("--criterion", "apoz"), "watches the layers that read its units"),
        (("--weights", "absent.safetensors"), "absent.safetensors"),
        (("--task", "ours:wider"), "the model rejects the example"),
        (("--task", "ours:uneven"), "the model rejects a training batch of uneven (tensor (64, 9)"),
        (("--task", "ours:broken"), "ours:broken fails: IndexError: list index out of range"),
        (("--criterion", "[red]"), "is no criterion"),
        (("--out", "ours.py"), "ours.py is a file: name a folder with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_everything_is_checked_before_the_folder_is_touched(place: Path, arguments: tuple[str, ...], message: str) -> None:
    given = dict(zip(SHORT[::2], SHORT[1::2], strict=True)) | {"--task": "ours:work"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    status, out, err = called("prune", "ours:net", *(word for pair in given.items() for word in pair))
    assert status == 1
    assert (out, err[:7]) == ("", "error: ")
    assert message in err
    assert not (place / "secateurs-out").exists()


def test_a_stopped_run_tells_how_to_go_on_and_its_time_counts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(session.job.time, "perf_counter", lambda: clock[0])

    def stop(run: sc.Run) -> None:
        clock[0] += 100
        if run.epoch == 2:
            raise KeyboardInterrupt

    original = cli.methods.iterative_magnitude_

    def with_hook(hook: sc.Hook) -> Callable[..., sc.Run]:
        return lambda *args, **kw: original(*args, **{**kw, "hooks": [*kw["hooks"], hook]})

    arguments = ("--dense-epochs", "1", "--last-epochs", "2", "--out", "my runs")
    with monkeypatch.context() as patched:
        patched.setattr(cli.methods, "iterative_magnitude_", with_hook(sc.Hook("hook", epoch=stop)))
        status, _, err = prune(*arguments, "--force")
    assert status == 130
    again = " ".join(("secateurs prune ours:net --task ours:work", *SHORT, *arguments[:-1]))
    assert err.splitlines()[-1] == f"stopped; go on from the last epoch that was finished with: {again} 'my runs' --resume"
    with monkeypatch.context() as patched:
        patched.setattr(
            cli.methods, "iterative_magnitude_", with_hook(sc.Hook("hook", epoch=lambda run: stop(run) if run.epoch > 2 else None))
        )
        assert prune(*arguments, "--resume")[0] == 0
    pruned = next(entry for entry in read_record(place / "my runs" / "record.json").entries if entry.name == "pruned")
    assert pruned.seconds == 300  # two epochs of the first run, and the last one of the second, whose third is not counted here


def test_the_number_of_threads_is_found_once_and_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "quickest_threads", lambda model, task: 2)
    used: list[int] = []
    monkeypatch.setattr(cli, "torch_threads", lambda number: used.append(number) or contextlib.nullcontext())
    assert prune()[0] == 0
    monkeypatch.setattr(session, "quickest_threads", lambda model, task: 3)
    assert prune("--resume")[0] == 0
    assert prune("--force", "--threads", "1")[0] == 0
    assert used == [2, 2, 1]


def test_what_a_folder_does_not_tell_is_an_error(place: Path) -> None:
    folder = place / "secateurs-out"
    folder.mkdir()
    (folder / "record.json").write_text("{}")
    assert "does not tell how the run in" in prune("--resume")[2]
    for text in (
        "",
        "[]",
        '{"format": "secateurs run", "version": 9, "options": {}}',
        '{"format": "secateurs run", "version": 1}',
        "[" * 9999,
    ):
        (folder / "run.json").write_text(text)
        assert "does not tell how the run in" in prune("--resume")[2]


def test_pruning_a_model_that_nobody_trained_is_said(place: Path) -> None:
    assert "ours:net has new random weights, so what goes is chosen by noise" in prune()[2]
    assert "noise" not in prune("--dense-epochs", "1", "--out", "trained")[2]
    assert "noise" not in called("prune", "ours:trained", "--task", "ours:work", *SHORT, "--out", "own")[2]


def test_what_was_asked_for_and_what_is_gone_of_everything_are_both_told(place: Path) -> None:
    out = prune()[1]
    pruned = read_record(place / "secateurs-out" / "record.json").pruned
    told = re.search(r"([\d.]+) % of the 176 weights that take part are gone, .* leaves ([\d.]+) % of all 195 parameters zero", out)
    assert pruned is not None and told is not None
    assert float(told[1]) >= 50.0
    assert told[2] == f"{100 * (1 - pruned.nonzero / 195):.1f}"
    assert f"{told[2]} % of the parameters removed" in out


# ---------------------------------------------------------------- strange words

NAMES = [
    ":x",
    "x:",
    ":",
    "..foo:bar",
    "ours:",
    "ours:net",
    "ours:bracketed",
    "ours:broken",
    "kernel",
    "--",
    "-",
    "--help",
    "--nope",
]
MARKS = ["a[/bold]b", "[red]", "[/]", "\\[", "\x1b[31m", "\udcff", "a\x00b", "", " ", ".", "/", "/dev/null", "💡:smile:"]
NUMBERS = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "1,8",
    "1,x",
    "1,99999999999999999999",
    "-1,8",
    "１,８",
    "0,8",
    ",",
    "²:4",
    "٣:٤",
    "4:2",
]
PATTERNS = ["2:4", "0:0", "9" * 5000 + ":4", "(" * 500, "block" + "(" * 300 + ")" * 300, "-" * 3000 + "1", "Block(10**9, 2)"]
ARGUMENTS = ["Block(True, [])", "Vector({})", "channel(round_to='a')", "Element(within=7)", "NofM(*[2, 4])", "Block(**{})"]
words = st.sampled_from([*NAMES, *MARKS, *NUMBERS, *PATTERNS, *ARGUMENTS]) | st.text(max_size=8)
OPTIONS = {
    "inspect": "--pattern --input-shape --task --weights --channels --heads --nope",
    "prune": "--pattern --criterion --solver --sparsity --keep-macs --rounds --lr --seed --only --skip --threads --out --resume",
    "report": "--out",
    "bench": "--model --threads --batch --input-shape --seconds",
    "export": "--input-shape --dynamic --opset --sparse --target --flash --sram --kind --name --calibration --samples",
}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(OPTIONS)))
    first = ["ours:net", "--task", "ours:work"] if command == "prune" and draw(st.booleans()) else [draw(words)]
    options = draw(st.lists(st.tuples(st.sampled_from(OPTIONS[command].split()), words), max_size=3))
    return [command, *first, *(word for pair in options for word in pair)]


class Stop(sc.SecateursError):
    """Raised where a command would begin to work."""


@given(st.lists(commands(), min_size=25, max_size=25))
@settings(max_examples=12)
@example([["report", "a[/bold]b"], ["inspect", ":x"], ["inspect", "..foo:bar"]])
@example([["inspect", "ours:net", "--pattern", pattern] for pattern in ("(" * 500, "²:4", "9" * 5000 + ":4", "-" * 3000 + "1")])
def test_no_words_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, several: list[list[str]]) -> None:
    place, stop = tmp_path_factory.mktemp("words"), mock.Mock(side_effect=Stop("it would begin"))
    (place / "ours.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        patched.setattr(sys, "path", [*sys.path])
        for module, name in ((session, "begin"), (cli.bench, "race"), (exported.export, "onnx"), (exported.export, "c")):
            patched.setattr(module, name, stop)
        for arguments in several:
            status, _, err = called(*arguments)
            assert status in (0, 1), arguments
            assert status == 0 or "error: " in err, arguments
            assert "\x1b[31m" not in err


def test_names_that_look_like_markup_are_shown_as_they_are(place: Path) -> None:
    status, out, err = called("inspect", "ours:bracketed", "--input-shape", "1,8")
    assert (status, err) == (0, "")
    assert "a[/bold]b" in out
    assert "[red]" in out
    record = sc.report.Record("a[/bold]b", notes=("[/x]",))
    sc.report.write_record(record, place / "a[/bold]b.json")
    status, out, _ = called("report", "a[/bold]b.json", "--out", "[red].html")
    assert (status, "report: [red].html" in out) == (0, True)
    status, _, err = called("report", "a[/bold]b")
    assert (status, err.startswith("error: a[/bold]b: there is no record")) == (1, True)


def test_a_batch_that_does_not_go_through_is_named() -> None:
    pair = (torch.zeros(4, 2), torch.zeros(4, 3))
    model, task = torch.nn.Linear(2, 1), sc.Task(pair[0], train=[], loss=torch.nn.functional.mse_loss, name="ours")
    with pytest.raises(sc.TaskError, match="ours has not one batch where a training batch is taken from"):
        session.try_out(model, task)
    judged = dataclasses.replace(task, train=None, test=[pair], metric=lambda output, target: output @ target)
    with pytest.raises(sc.TaskError, match=r"Task.metric of ours rejects a test batch \(output tensor \(4, 1\).*RuntimeError: "):
        session.try_out(model, judged)


def test_more_threads_are_taken_only_where_they_are_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"1": (3.0, 3.0, 3.0), "2": (2.9, 2.9, 2.9), "4": (1.0, 1.0, 9.0)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(session.trial, "measure", lambda calls, **how: {name: Timing(seconds[name]) for name in calls})
    task = sc.Task(torch.zeros(1, 2), train=[(torch.zeros(4, 2), torch.zeros(4, 1))], loss=torch.nn.functional.mse_loss)
    model = torch.nn.Linear(2, 1)
    assert session.quickest_threads(model, task) == 4
    seconds["4"] = (2.8, 2.8, 2.8)
    assert session.quickest_threads(model, task) == 1
    assert model.weight.grad is None


def test_a_narrow_terminal_shows_every_column(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = called("inspect", "resnet_18", "--input-shape", "1,3,64,64")
    tables = out.partition("conv1: ")[0].splitlines()
    assert max(map(len, tables)) <= 80
    assert all(word in out for word in ("parameters", "nonzero", "MACs", "Kernel", "Filter", "layer2.0.downsample.0"))
    layer = LayerReport("layer3.0.downsample.0", "3x3/2 256->512 @56x56", 0.9, "spmm 16x1, masked, 32 KiB", 1.234, 0.123, 0.5)
    file = io.StringIO()
    Console(file=file, width=80).print(Explanation("kernels", 1, "avx512", {"torch": 2.0, "kernels": 1.0}, (layer,) * 3, True))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    assert all(number in file.getvalue() for number in ("90.0%", "1.234", "0.123", "50%"))


def test_rooms_that_not_everybody_needs_are_there_when_asked_for() -> None:
    code = (
        "import sys, secateurs as sc; assert 'secateurs.models' not in sys.modules; sc.models.lenet_5, sc.tasks.digits, sc.methods"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"models", "tasks", "methods", "report", "testing"} <= set(dir(sc))
    with pytest.raises(AttributeError, match="No secateurs attribute modles"):
        _ = sc.modles
