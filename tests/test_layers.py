"""Imports only go up the list of the design, and neighbours on one line never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "secateurs"

# A line may import the lines above it.
ORDER = [
    {"types"},
    {"forward", "select", "progress", "products", "ranks", "given"},
    {"batch"},
    {"graph"},
    {"patterns", "costs"},
    {"observe", "criteria", "allocate", "solve"},
    {"apply"},
    {"prune"},
    {"recover", "compress"},
    {"export", "run"},
    {"report"},
    {"methods"},
    {"tasks", "models"},
    {"session"},
    {"cli"},
    {"testing"},
]
LINE = {room: number for number, line in enumerate(ORDER) for room in line}
ALONE = {"tasks", "models"}  # they need the words and the progress display, and nothing else


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it enters"
            names |= {f"{node.module}.{alias.name}" if node.module == "secateurs" else str(node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("secateurs.")} - {"__version__"}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_go_up(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    others = imports(path) - {room}
    assert room in LINE, f"{room} has no place in the order"
    assert others <= LINE.keys(), f"{room} imports {others - LINE.keys()}, which have no place in the order"
    wrong = {other for other in others if LINE[other] >= LINE[room] or (room in ALONE and other not in ("types", "progress"))}
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def test_deployment_needs_nothing_of_recovery():
    deployment = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("run", "export")]
    assert not {room for path in deployment for room in imports(path)} & {"recover", "compress", "tasks", "models"}
    # The rooms that deployment stands on do not reach recovery either: that is what the order above means.
    assert max(LINE[room] for room in ("types", "forward", "patterns", "apply")) < LINE["recover"] < LINE["run"]
