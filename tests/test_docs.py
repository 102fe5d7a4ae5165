"""README, CONTRIBUTING and docs/: each Python block runs, and so does each command of ours."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from secateurs.cli.commands import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

OTHERS = {
    "dynamic.md": ("transformers",),
    "language-models.md": ("transformers", "tokenizers"),
    "trainers.md": ("transformers", "accelerate", "lightning"),
}
"""Pages that run other libraries, which may be missing, and whose warnings are theirs."""


ON_DATA = {"keyword_spotter.md"}
"""Pages that begin with files of the folder that SECATEURS_DATA names."""

TRAINED = {"learned.md", "penalties.md", "regrowth.md"}
"""Pages whose examples must come to something by training; the others are as well off with a fifth of the images."""


@pytest.fixture
def few_digits(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = import_module("secateurs.tasks.digits")
    pixels, labels = task._load()
    if page.name not in TRAINED:
        monkeypatch.setattr(task, "_load", lambda: (pixels[::5], labels[::5]))
        monkeypatch.setattr(task, "_HELD_OUT", 60)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def with_blocks(language: str, containing: str = "") -> list[Path]:
    return [page for page in PAGES if any(containing in block for block in blocks(page, language))]


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in OTHERS.get(page.name, ()):
        pytest.importorskip(library)
        warnings.simplefilter("ignore")
    if page.name in ON_DATA and not os.environ.get("SECATEURS_DATA"):
        pytest.skip("SECATEURS_DATA names no folder with the page's data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    assert len(names) > 1


@pytest.mark.usefixtures("few_digits", "no_drawings")
@pytest.mark.parametrize("page", with_blocks("sh", "secateurs "), ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a new one for each command would spend its time on imports. `test_cli` starts real ones."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("secateurs ")]
    assert lines
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")  # others' warnings end no command
    for line in lines:
        _, *arguments = shlex.split(line.replace("--seconds 3", "--seconds 0.1"), comments=True)
        with pytest.raises(SystemExit) as end:
            app(arguments, exit_on_error=False, print_error=False)
        assert not end.value.code, line


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_picture_of_the_house_names_what_is_there() -> None:
    """Rooms and files in code marks, and rooms in the drawing."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (drawing,) = blocks(ROOT / "docs" / "architecture.md", "text")
    named = re.findall(r"`([\w/]+/|[\w/]+\.py)`", page) + re.findall(r"\w+(?:/|\.py)", drawing)
    assert len(named) > 50
    missing = {path for path in named if not any((place / path).exists() for place in (ROOT, ROOT / "src" / "secateurs"))}
    assert not missing
    widths = {len(line) for line in drawing.splitlines() if line}
    assert len(widths) == 1, "a crooked picture"
