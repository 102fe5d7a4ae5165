"""The command line as a person meets it: what it prints, what it leaves, and how it says no."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secateurs as sc
from secateurs import session
from secateurs.cli import commands as cli
from secateurs.models import digits_cnn
from secateurs.report import read_record
from secateurs.tasks import digits

OWN = """
import torch
import secateurs as sc

def net():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def work():
    inputs = torch.randn(64, 8)
    batches = [(inputs, inputs[:, :3].argmax(1))]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()
    loss = torch.nn.functional.cross_entropy
    return sc.Task(inputs[:1], train=batches, validation=batches, test=batches, loss=loss, metric=accuracy, name="own")

def attention():
    return torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), torch.nn.Flatten(), torch.nn.Linear(8, 3))

def sequences():
    task = work()
    batches = [(inputs[:, None], target) for inputs, target in task.train]
    return sc.Task(batches[0][0][:1], train=batches, test=batches, loss=task.loss, metric=task.metric, name="sequences")

def nothing():
    return 3
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_drawings: None
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateurs", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize("command", [(), ("demo",), ("inspect",), ("prune",), ("report",)])
def test_help_names_every_parameter(run, command: tuple[str, ...]) -> None:
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert "Usage: secateurs" in out
    expected = {(): "demo", ("demo",): "--seed", ("inspect",): "--weights", ("prune",): "--epochs-per-round", ("report",): "--out"}
    assert expected[command] in out


def test_inspect_shows_a_row_a_layer_and_why_a_pattern_does_not_fit(run) -> None:
    status, out, _ = run("inspect", "lenet_5", "--input-shape", "1,1,28,28")
    assert status == 0
    assert "431,080 parameters" in out
    row = next(line for line in out.splitlines() if "conv2" in line)
    assert all(part in row for part in ("Conv2d", "50x20x5x5", "25,000", "1,600,000"))
    assert "conv1: NofM(2, 4) needs the input dimension (1) to be a multiple of 4" in out


def test_inspect_counts_the_nonzeros_of_a_weights_file(run, tmp_path: Path) -> None:
    model = digits_cnn()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.75), digits())
    sc.save(model, tmp_path / "sparse.safetensors", masks, sparse=True)
    status, out, _ = run("inspect", "digits_cnn", "--weights", "sparse.safetensors", "--pattern", "2:4", "Vector('inputs', 8)")
    assert status == 0
    assert "8,192" in next(line for line in out.splitlines() if "fc1" in line)
    assert all(part in out for part in ("NofM", "2, 4", "Vector", "'inputs', length=8"))


def test_inspect_shows_what_is_coupled_and_what_is_pinned(run) -> None:
    status, out, _ = run("inspect", "resnet_20", "--channels", "--input-shape", "1,3,32,32")
    assert status == 0
    row = next(line for line in out.splitlines() if line.startswith(" layer1.0.conv1"))
    assert row.split() == ["layer1.0.conv1", "16", "290", "layer1.0.conv1,", "layer1.0.conv2,", "layer1.0.bn1", "exact"]
    assert "14 sites, 14 exact" in out
    assert "linear: the model's output" in out


def test_inspect_shows_attention_heads_alone(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    _, out, _ = run("inspect", "mine:attention", "--heads", "--input-shape", "2,1,8")
    assert "0.self_attn:heads" in out
    assert "linear1" not in out
    _, out, _ = run("inspect", "mine:attention", "--channels", "--input-shape", "2,1,8")
    assert "0.linear1" in out
    assert "2: the model's output" in out


@pytest.mark.parametrize(
    ("amount", "cost"),
    [
        (("--keep-macs", "0.5"), lambda entry: entry.macs),
        (("--keep-params", "0.3", "--allocator", "global"), lambda entry: entry.parameters),
    ],
    ids=["macs", "params"],
)
def test_channels_go_physically_within_the_budget(run, tmp_path: Path, amount: tuple[str, ...], cost: Callable) -> None:
    training = ("--dense-epochs", "1", "--rounds", "2", "--epochs-per-round", "1")
    status, out, err = run("prune", "digits_cnn", "--task", "digits", "--pattern", "channel", *amount, *training)
    assert status == 0, err
    assert "a forward pass in torch" in " ".join(out.split())
    folder = tmp_path / "secateurs-out"
    record = read_record(folder / "record.json")
    dense, planned, masked, pruned, reloaded = record.entries
    assert [entry.name for entry in record.entries] == ["dense", "as planned", "masked", "pruned", "pruned, reloaded"]
    assert 0.8 * float(amount[1]) < cost(pruned) / cost(dense) <= float(amount[1])
    assert (planned.parameters, planned.macs) == (pruned.parameters, pruned.macs)
    assert pruned.bytes <= planned.bytes < pruned.bytes + 10_000
    assert pruned.nonzero == pruned.parameters < masked.parameters == dense.parameters
    assert masked.metric == pruned.metric == reloaded.metric
    assert any("at most" in note for note in record.notes)
    assert dense.latency_ms > 0 < pruned.latency_ms
    assert [layer.new_shape[0] for layer in record.layers][-1] == record.layers[-1].shape[0] == 10
    assert [layer.parameters for layer in record.layers] == [layer.parameters for layer in sc.report.layers(digits_cnn())]
    small = sc.load(folder / "pruned.safetensors", digits_cnn)
    assert sc.params(small) == pruned.parameters
    saved = sc.read_saved(folder / "pruned.safetensors")
    assert (saved.pattern, saved.masks) == ("Channel()", ())
    assert saved.plan is not None and saved.plan.promised


@pytest.mark.parametrize(
    ("pattern", "criterion"),
    [
        ("channel", "taylor(activations=True)"),
        ("Element(within='row')", "synflow() * obd(probes=1)"),
        ("Element(within='row')", "magnitude(p=1) * input_norm()"),
    ],
)
def test_a_criterion_is_written_as_in_python(run, tmp_path: Path, pattern: str, criterion: str) -> None:
    arguments = ("--pattern", pattern, "--criterion", criterion, "--sparsity", "0.5", "--rounds", "1", "--epochs-per-round", "1")
    status, _, err = run("prune", "digits_cnn", "--task", "digits", *arguments)
    assert status == 0, err
    plan = sc.read_saved(tmp_path / "secateurs-out" / "pruned.safetensors").plan
    assert plan is not None and all(abs(share.kept / share.units - 0.5) < 0.1 for share in plan.shares.values())


def test_a_solver_is_written_as_in_python(run, tmp_path: Path) -> None:
    arguments = ("--solver", "LeastSquares(SparseGPT(block=64))", "--sparsity", "0.5", "--rounds", "1", "--epochs-per-round", "1")
    status, _, err = run("prune", "digits_cnn", "--task", "digits", *arguments)
    assert status == 0, err
    plan = sc.read_saved(tmp_path / "secateurs-out" / "pruned.safetensors").plan
    assert plan is not None
    kept, units = (sum(getattr(share, name) for share in plan.shares.values()) for name in ("kept", "units"))
    assert kept == pytest.approx(units / 2, abs=1)


def test_channels_go_in_rounds_down_to_the_sparsity_asked_for(run, tmp_path: Path) -> None:
    arguments = ("--pattern", "channel(round_to=2)", "--sparsity", "0.5", "--rounds", "4", "--epochs-per-round", "1")
    run("prune", "digits_cnn", "--task", "digits", *arguments)
    plan = sc.read_saved(tmp_path / "secateurs-out" / "pruned.safetensors").plan
    assert plan is not None
    assert {share.kept / share.units for share in plan.shares.values()} == {0.5}


def test_heads_go_physically(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    arguments = ("--pattern", "head", "--sparsity", "0.5", "--rounds", "1", "--epochs-per-round", "1", "--same-in-every-block")
    status, _, err = run("prune", "mine:attention", "--task", "mine:sequences", *arguments)
    assert status == 0, err
    sys.path.insert(0, str(tmp_path))
    import mine

    model = sc.load(tmp_path / "secateurs-out" / "pruned.safetensors", mine.attention)
    assert model[0].self_attn.in_proj_weight.shape == (12, 8)


def test_prune_takes_models_and_tasks_of_ones_own_and_leaves_files_that_load(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    arguments = ("--sparsity", "0.75", "--rounds", "2", "--epochs-per-round", "1", "--allocator", "uniform")
    status, out, err = run("prune", "mine:net", "--task", "mine:work", *arguments)
    assert status == 0, err
    folder = tmp_path / "secateurs-out"
    record = read_record(folder / "record.json")
    assert "reloaded" in out and "pruned, reloaded" in [entry.name for entry in record.entries]
    assert record.command == "secateurs prune mine:net --task mine:work " + " ".join(arguments)
    assert record.pruned is not None
    assert record.pruned.bytes == (folder / "pruned.safetensors").stat().st_size
    sys.path.insert(0, str(tmp_path))
    import mine

    model = sc.load(folder / "pruned.safetensors", mine.net)
    assert sc.load_masks(folder / "pruned.safetensors", model).sparsity >= 0.75
    assert sc.nonzero_params(model) == record.pruned.nonzero
    assert "mine:net on own" in (folder / "report.html").read_text()


def test_two_of_four_decides_for_itself_how_much_goes(run, tmp_path: Path) -> None:
    run("prune", "digits_cnn", "--task", "digits", "--pattern", "2:4", "--epochs-per-round", "1")
    masks = sc.load_masks(tmp_path / "secateurs-out" / "pruned.safetensors", digits_cnn())
    assert masks.pattern == "NofM(2, 4)"
    assert all(mask.ndim == 1 or mask.sum() == mask.numel() / 2 for mask in masks.values())


def test_resume_goes_on_from_the_checkpoint(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("prune", "digits_cnn", "--task", "digits", "--rounds", "2", "--epochs-per-round", "2")
    whole = run(*arguments, "--out", "whole")
    assert whole[0] == 0
    epochs: list[int] = []

    def stop_in_the_third(run_: sc.Run) -> None:
        epochs.append(run_.epoch)
        if run_.epoch == 2:
            raise KeyboardInterrupt

    def with_hook(options: dict, hook: sc.Hook) -> dict:
        return {**options, "hooks": [*options["hooks"], hook]}

    original = cli.methods.iterative_magnitude_
    stopping = sc.Hook("stop", epoch=stop_in_the_third)
    with monkeypatch.context() as patched:
        patched.setattr(cli.methods, "iterative_magnitude_", lambda *args, **kw: original(*args, **with_hook(kw, stopping)))
        assert run(*arguments, "--out", "parts")[0] == 130
        going_on = sc.Hook("stop", epoch=lambda run_: epochs.append(run_.epoch))
        patched.setattr(cli.methods, "iterative_magnitude_", lambda *args, **kw: original(*args, **with_hook(kw, going_on)))
        assert run(*arguments, "--out", "parts", "--resume")[0] == 0
    assert epochs == [0, 1, 2, 2, 3]
    one, other = (sc.load(tmp_path / folder / "pruned.safetensors", digits_cnn) for folder in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_report_writes_the_page_of_a_record_again(run, tmp_path: Path) -> None:
    run("prune", "digits_cnn", "--task", "digits", "--rounds", "1", "--epochs-per-round", "1")
    page = tmp_path / "secateurs-out" / "report.html"
    before = page.read_text()
    page.unlink()
    status, out, _ = run("report", "secateurs-out")
    assert status == 0
    assert page.read_text() == before
    assert "nonzero" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "lenet5"), "there is no built-in model 'lenet5'; did you mean lenet_5"),
        (("inspect", "nowhere:net"), "cannot find the model 'nowhere:net'"),
        (("inspect", "torch:zeros"), "torch:zeros cannot be called without arguments"),
        (("inspect", "lenet_5", "--input-shape", "1,x"), "--input-shape '1,x'"),
        (("inspect", "lenet_5", "--input-shape", "1,3,5,5"), "the model rejects the example"),
        (("inspect", "lenet_5", "--pattern", "Block(4)"), "'Block(4)' is no pattern"),
        (("inspect", "lenet_5", "--pattern", "__import__('os')"), "is no pattern"),
        (("inspect", "lenet_5", "--pattern", "4:2"), "n must be below m"),
        (("inspect", "lenet_5", "--weights", "absent.safetensors"), "absent.safetensors"),
        (("prune", "digits_cnn", "--task", "digit"), "there is no built-in task 'digit'; did you mean digits"),
        (("prune", "digits_cnn", "--task", "secateurs.models:digits_cnn"), "not a secateurs Task"),
        (("prune", "digits_cnn", "--task", "digits", "--sparsity", "1.5"), "1.5 is not in [0, 1)"),
        (("prune", "digits_cnn", "--task", "digits", "--skip", "fc9"), "skip=: nothing in Sequential is called 'fc9'"),
        (("inspect", "digits_cnn", "--channels"), "give --task or --input-shape"),
        (
            ("inspect", "digits_cnn", "--task", "digits", "--heads"),
            "Head() finds no site in Sequential; it multiplies no activations",
        ),
        (("inspect", "digits_cnn", "--task", "digits", "--pattern", "channel"), "see secateurs inspect MODEL --channels"),
        (("inspect", "digits_cnn", "--task", "digits", "--channels", "--pattern", "2:4"), "give one of them"),
        (("prune", "digits_cnn", "--task", "digits", "--pattern", "channel"), "not with none of them"),
        (
            ("prune", "digits_cnn", "--task", "digits", "--pattern", "channel", "--keep-macs", "0.5", "--keep-params", "0.5"),
            "not with --keep-macs and --keep-params",
        ),
        (
            ("prune", "digits_cnn", "--task", "digits", "--pattern", "channel", "--keep-macs", "50"),
            "--keep-macs 50.0 is not in (0, 1]",
        ),
        (
            ("prune", "digits_cnn", "--task", "digits", "--pattern", "channel", "--keep-macs", "0.0001"),
            "raise the budget, let more layers take part",
        ),
        (("prune", "digits_cnn", "--task", "digits", "--keep-macs", "0.5"), "--keep-macs is for --pattern channel and head"),
        (
            ("prune", "digits_cnn", "--task", "digits", "--pattern", "head", "--keep-params", "0.5", "--allocator", "erdos-renyi"),
            "densities are for single weights",
        ),
        (
            ("prune", "digits_cnn", "--task", "digits", "--sparsity", "0.5", "--allocator", "owl", "--same-in-every-block"),
            "'owl' is no allocator (its arguments are",
        ),
        (("report", "absent.json"), "absent.json: there is no record; name the folder that prune or demo wrote"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_one_can_put_right_is_one_line_and_no_traceback(run, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 1
    assert err.startswith("error:")
    assert message in err
    assert "Traceback" not in err


def test_the_demo_prunes_saves_and_reports_beside_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.demo, "_EPOCHS", 2)
    result = session.demo_job(tmp_path / "demo", seed=0, sparsity=0.95, command="secateurs demo")
    entries = {entry.name: entry for entry in result.record.entries}
    assert {"dense", "pruned", "pruned, reloaded", "random, same sparsity", "dense, same size"} <= entries.keys()
    assert entries["pruned"].nonzero <= 0.06 * entries["dense"].parameters
    assert entries["pruned"].metric == entries["pruned, reloaded"].metric
    assert entries["pruned"].metric > entries["cut once, not retrained"].metric
    assert entries["pruned"].bytes < entries["dense"].bytes / 5
    assert entries["dense, same size"].parameters <= 0.05 * entries["dense"].parameters
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "secateurs demo" in page
    assert page.count("<svg") >= 3


def test_compare_puts_recipes_side_by_side_goes_on_and_names_what_failed(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    words = (
        "compare",
        "mine:net",
        "--task",
        "mine:work",
        "--pattern",
        "channel",
        "--processes",
        "1",
        "--keep",
        "0.5",
        "--dense-epochs",
        "1",
    )
    status, out, _ = run(*words, "--criterion", "magnitude", "random", "--seeds", "2")
    assert status == 0
    assert all(word in out for word in ("mine:net on mine:work", "magnitude", "random", "50 %", "seeds 0, 1", "report.html"))
    status, out, err = run(*words, "--criterion", "magnitude", "random", "batchnorm_scale", "--epochs", "0", "--seeds", "1")
    assert status == 1
    assert "2 of 3 jobs were done before" in err
    assert "1 of 3 jobs failed: batchnorm_scale, keep 0.5, seed 0: PatternError" in err
    assert "1 of 1" in out and "magnitude" in out
    status, _, err = run(*words, "--criterion", "magnitude", "--epochs", "1")
    assert status == 1
    assert "holds outcomes of other recipes by the same names: 'magnitude' was" in err
    status, _, err = run(*words, "--criterion", "magnitude", "--epochs", "1", "--rerun")
    assert status == 0 and "measured anew: 'magnitude'" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--allocator", "local"), "'local' is no allocator (expected one of these"),
        (
            ("--allocator", "global(keep=0.5)"),
            "its arguments are ceiling, floor, same_in_every_block; how much stays is said apart from it",
        ),
        (("--schedule", "steep"), "--schedule 'steep' is none of geometric, linear, cubic, one_shot"),
        (("--keep-of", "macs"), "--keep-of macs is for --pattern channel and head"),
        (("--keep", "2"), "keep=2.0 is not in (0, 1]"),
        (("--seeds", "0"), "--seeds 0: must be at least 1"),
        (("--lr", "-1"), "--lr -1.0 is no learning rate"),
        (("--criterion", "magnitud"), "did you mean magnitude"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_compare_says_what_is_wrong_before_anything_is_written(run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    status, _, err = run("compare", "digits_cnn", "--task", "digits", *words)
    assert status == 1
    assert said in err
    assert not (tmp_path / "secateurs-compare" / "jobs").exists()


def test_recommend_says_which_pattern_to_use_and_why(run) -> None:
    arguments = ("recommend", "lenet_300_100", "--input-shape", "1,1,28,28")
    status, out, _ = run(*arguments, "--sparsity", "0.8", "--target", "microcontroller", "--flash", "20000")
    assert status == 0
    assert "use Channel()" in out and "does not fit" in out and "layer by layer" in out
    for more, message in (
        (("--target", "gpu", "--flash", "1"), "--flash and --sram are for --target microcontroller, not for gpu"),
        (("--target", "gpu", "--threads", "1"), "--threads is for --target cpu, not for gpu"),
        (("--target", "gpu", "--sparsity", "2"), "sparsity=2.0 is not in (0, 1)"),
    ):
        status, _, err = run(*arguments, *more)
        assert status and message in err
    status, _, err = run("recommend", "lenet_300_100", "--target", "gpu")
    assert status and "give --task or --input-shape" in err
