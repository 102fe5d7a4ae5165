"""Imports only go up the list of the design, and neighbours on one line never import each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "secateurs"

HOUSE, RUNTIME = re.findall(
    r"```\n(types/.*?|network/.*?)```", (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL
)
ALONE = {"tasks", "models"}  # they need the words and the progress display, and nothing else


def lines_of(order: str) -> dict[str, int]:
    """Room → the line on which it stands; a line may import the lines above it."""
    rooms = [re.match(r"(?:\w+(?:/|\.py)\s+)+", line).group() for line in order.splitlines()]
    return {name: number for number, line in enumerate(rooms) for name in re.findall(r"\w+(?=/|\.py)", line)}


LINE, LINE_OF_RUN = lines_of(HOUSE), lines_of(RUNTIME)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, and names that it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it enters"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("secateurs.") for name in names if name.startswith("secateurs.")} - {"__version__"}


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent not in (PACKAGE, PACKAGE / "run")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_go_up(path):
    here, *inside = (part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts)
    names = imported(path)
    require_up(here, {name.split(".")[0] for name in names} - {here}, LINE)
    if here == "run":
        require_up(inside[0], {name.split(".")[1] for name in names if name.startswith("run.")} - {inside[0]}, LINE_OF_RUN)
    if here in ALONE:
        assert {name.split(".")[0] for name in names} <= {here, "types", "progress"}


def require_up(room, others, line):
    assert {room, *others} <= line.keys(), f"{({room, *others}) - line.keys()} have no place in the order of CONTRIBUTING.md"
    wrong = {other for other in others if line[other] >= line[room]}
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def test_all_rooms_are_there():
    def rooms(folder):
        inside = (path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
        return {path.stem for path in inside} - {"__init__", "__pycache__"}

    assert rooms(PACKAGE) == LINE.keys()
    assert rooms(PACKAGE / "run") == LINE_OF_RUN.keys()


def test_names_are_imported_when_they_are_asked_for():
    script = """
        import sys, secateurs
        rooms = lambda: sorted(name for name in sys.modules if name.startswith("secateurs."))
        assert rooms() == [] and "torch" not in sys.modules, rooms()
        secateurs.run.compile
        loaded = {name.split(".")[1] for name in rooms()}
        assert "run" in loaded and not loaded & {"recover", "report", "methods", "prune", "criteria", "allocate", "session"}, loaded
        assert not {"matplotlib", "jinja2", "sklearn", "transformers", "onnx"} & sys.modules.keys()
        for package in (secateurs, secateurs.run):
            for name in package.__all__:
                assert getattr(package, name) is not None and name in dir(package), name
        assert callable(secateurs.observe) and callable(secateurs.run.compile)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_public_name_is_that_of_a_module():
    """Importing the module would put it where the name is looked for."""
    for package in (PACKAGE, PACKAGE / "run"):
        modules = {path.stem for path in package.iterdir()}
        names = set(re.findall(r"from \.[\w.]+ import \w+ as (\w+)", (package / "__init__.pyi").read_text("utf-8")))
        assert names and not names & modules
