"""The progress display: there for who watches, silent for who does not, gone when something fails."""

from __future__ import annotations

import io
import sys
import time
from contextlib import closing

import pytest

from secateurs import progress
from secateurs.progress import track


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
