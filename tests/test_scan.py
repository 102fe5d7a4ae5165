"""What each site can spare, on the command line: a table, a page and a plan, and the same command goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import secateurs as sc
from secateurs.cli import commands
from secateurs.search.bench import Bench


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["secateurs", *words])
    monkeypatch.setenv("COLUMNS", "140")
    status = 0
    try:
        commands.main()
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_scan_shows_what_each_site_can_spare_and_the_plan_and_goes_on(tmp_path: Path, monkeypatch, capsys):
    words = (
        "scan",
        "digits_cnn",
        "--task",
        "digits",
        "--keep",
        "0.5",
        "0.25",
        "--keep-macs",
        "0.5",
        "--out",
        str(tmp_path / "scan"),
    )
    status, out, _ = run(monkeypatch, capsys, *words)
    assert status == 0 and "conv1" in out and "8: " in out and "4: " in out
    plan = sc.Plan.from_json((tmp_path / "scan" / "plan.json").read_text())
    assert list(plan) == ["conv1", "conv2", "fc1"] and plan.promised["macs"] <= 337_536 / 2
    page = (tmp_path / "scan" / "scan.html").read_text("utf-8")
    assert "<title>conv2</title>" in page and "digits_cnn on digits" in page
    monkeypatch.setattr(Bench, "judged", lambda *_: pytest.fail("all of it is there"))
    assert run(monkeypatch, capsys, *words)[1] == out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "1.5"), "keeps=[1.5] must be fractions in [0, 1)"),
        (("--processes", "0"), "--processes 0: must be at least 1"),
        (("--keep-macs", "2"), "Budget(macs, keep=2.0): the fraction kept must be in (0, 1]"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, monkeypatch, capsys, words, said):
    status, _, err = run(monkeypatch, capsys, "scan", "digits_cnn", "--task", "digits", "--out", str(tmp_path / "scan"), *words)
    assert status == 1 and said in err and not (tmp_path / "scan").exists()
