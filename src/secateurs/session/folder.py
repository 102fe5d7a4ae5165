"""The folder of a run: how it was made stands in it, another run is not written over it, and only what fits goes on in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateurs.report.files import replace_text
from secateurs.types import FileError, SecateursError

RUN = "run.json"
DENSE_CHECKPOINT, CHECKPOINT = "dense-checkpoint.safetensors", "checkpoint.safetensors"
DENSE, PRUNED, COMPRESSED = "dense.safetensors", "pruned.safetensors", "compressed.scz"
RECORD, PAGE = "record.json", "report.html"
FILES = (RUN, DENSE_CHECKPOINT, CHECKPOINT, DENSE, PRUNED, COMPRESSED, RECORD, PAGE)
"""All that a run writes into its folder; nothing else in it is ever touched."""

FORMAT = "secateurs run"


def require_free(folder: Path, options: Mapping[str, Any], *, force: bool = False, resume: bool = False) -> dict[str, Any]:
    """What the folder tells of the run that goes on in it, nothing for a new one; nothing is written.

    ``options`` are those of the run that is to be made there, as plain values of JSON. Raises `SecateursError` where the folder
    holds another run and neither ``force`` nor ``resume`` is given, and, naming them, where options differ from those of the
    run that is to go on; `FileError` where the folder is a file, or does not tell how its run was made.
    """
    if force and resume:
        raise SecateursError("--force starts anew and --resume goes on: give one of them")
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        raise FileError(f"{place} is a file: name a folder with --out")
    held = [name for name in FILES if (folder / name).exists()]
    if force or not held:
        return {}
    if not resume:
        raise SecateursError(
            f"{folder} holds another run ({', '.join(held)}): go on with it with --resume, replace it with --force, "
            "or name another folder with --out"
        )
    begun = read(folder)
    differing = [name for name in {**begun["options"], **options} if begun["options"].get(name) != options.get(name)]
    if differing:
        told = "; ".join(
            f"{_option(name)} was {_shown(begun['options'].get(name))} and is {_shown(options.get(name))}" for name in differing
        )
        raise SecateursError(
            f"{folder} holds a run with other options: {told}. Give those of its run.json to go on, start anew with --force, "
            "or name another folder with --out"
        )
    return begun


def begin(folder: Path, command: str, options: Mapping[str, Any], **found: Any) -> None:
    """Make the folder, take away what an earlier run left in it, and write down how this one is made.

    ``found`` is what was settled by measuring, such as the number of threads. Raises `WriteError` where that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    document = {"format": FORMAT, "version": 1, "command": command, "options": dict(options), **found}
    replace_text(folder / RUN, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What `begin` wrote; raises `FileError` where it is not there or damaged."""
    path = folder / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} does not tell how the run in {folder} was made ({error}): start anew with --force") from error
    if (
        not isinstance(document, dict)
        or (document.get("format"), document.get("version")) != (FORMAT, 1)
        or not isinstance(document.get("options"), dict)
    ):
        raise FileError(f"{path} does not tell how the run in {folder} was made: start anew with --force")
    return document


def _option(name: str) -> str:
    return name if name in ("model", "command") else f"--{name.replace('_', '-')}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    return "not given" if value is None or value is False else str(value)
