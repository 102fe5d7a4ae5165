"""The progress display: there for who watches, silent for who does not, gone when something fails."""

from __future__ import annotations

import io
import sys
import time
from contextlib import closing

import pytest
import torch

from secateurs import progress
from secateurs.progress import tell, track, waiting
from secateurs.recover import train_


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Puts a terminal in place of stderr; called in the test itself, because pytest sets stderr anew after the fixtures."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def test_items_pass_unchanged_and_nothing_is_drawn_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter([3, 1, 2]), "counting")) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_and_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    for _ in track([10, 20], "outer"):
        for _ in track([1, 2, 3], "inner"):
            time.sleep(0.1)
    drawn = terminal.getvalue()
    assert "outer" in drawn
    assert "inner" in drawn
    assert "1/2" in drawn
    assert progress._current == []


def test_show_false_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    assert list(track([1], "hidden", show=False)) == [1]
    assert terminal.getvalue() == ""


def test_an_error_in_the_loop_takes_the_display_away(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)

    def fail() -> None:
        with closing(track([1, 2], "failing")) as steps:
            for _ in steps:
                raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert progress._current == []


def test_a_generator_that_is_never_finished_does_not_block_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    watched(monkeypatch)
    outer = track([1, 2], "outer")
    inner = track([1, 2], "inner")
    assert (next(outer), next(inner)) == (1, 1)
    outer.close()
    assert list(inner) == [2]
    assert progress._current == []
    assert list(track([5], "next")) == [5]


def test_the_bar_tells_the_status_and_takes_no_text_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    for _ in track([1, 2], "a[/bold]b", status=lambda: "accuracy 0.9"):
        pass
    assert "a[/bold]b accuracy 0.9" in terminal.getvalue()


def test_what_takes_long_is_a_line_in_a_log_and_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with waiting("measuring"):
        tell("epoch 1/2")
    with waiting("hidden", show=False):
        tell("hidden", show=False)
    assert capsys.readouterr() == ("", "measuring …\nepoch 1/2\n")
    terminal = watched(monkeypatch)
    with waiting("measuring"):
        tell("epoch 1/2")
    assert "measuring" in terminal.getvalue()
    assert "epoch" not in terminal.getvalue()
    assert progress._current == []


def test_training_writes_a_line_an_epoch_where_nobody_watches(cnn_task, small_cnn, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = torch.optim.SGD(small_cnn.parameters(), lr=0.1)
    run = train_(small_cnn, cnn_task, optimizer, epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert lines[1].endswith(
        f"loss {run.history[1]['loss']:.4g}, validation accuracy {run.history[1]['validation']:.4g}, sparsity 0.0 %"
    )
    train_(small_cnn, cnn_task, optimizer, epochs=1, show=False)
    assert capsys.readouterr().err == ""


def test_training_shows_the_metric_and_the_sparsity_in_the_bar(cnn_task, small_cnn, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    train_(small_cnn, cnn_task, torch.optim.SGD(small_cnn.parameters(), lr=0.1), epochs=1)
    assert "validation accuracy" in terminal.getvalue()
    assert "sparsity 0.0 %" in terminal.getvalue()
