"""The folder of a comparison: a file a job, what all jobs share, and at the end the table, the record and the page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.comparing.comparison import Outcome
from secateurs.comparing.job import Job
from secateurs.described import names
from secateurs.progress import tell
from secateurs.report.files import replace_text
from secateurs.types import FileError, SecateursError

SHARED, JOBS = "compare.json", "jobs"
RECORD, TABLE, CSV, PLOT, PAGE = "comparison.json", "comparison.md", "outcomes.csv", "comparison.svg", "report.html"
FORMAT = "secateurs compare"


def begin(folder: Path, shared: Mapping[str, Any]) -> None:
    """Write down what all jobs of a folder share, or hold it against what is there.

    Raises `SecateursError`, naming what differs, where the folder's jobs were of another model, task or training, `FileError` where it
    does not tell.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        raise FileError(f"{place} is a file: name a folder with out=")
    path = folder / SHARED
    document = {"format": FORMAT, "version": 1, **shared}
    if not path.exists():
        replace_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("expected what compare wrote")
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} does not tell what was compared in {folder} ({error}): name another folder with out=") from error
    differing = [name for name in document if found.get(name) != document[name]]
    if differing:
        told = "; ".join(f"{name} was {found.get(name)} and is {document[name]}" for name in differing)
        raise SecateursError(
            f"{folder} holds a comparison of something else: {told}. Outcomes of both in one table would not compare: name another "
            "folder with out=, or remove this one"
        )


def path_of(folder: Path, job: Job) -> Path:
    """The file of a job: its name as far as a file system takes it, and a number that tells names apart."""
    plain = re.sub(r"[^A-Za-z0-9.=]+", "-", job.name).strip("-")[:80]
    return folder / JOBS / f"{plain}-{hashlib.sha256(job.name.encode()).hexdigest()[:8]}.json"


def found_in(folder: Path, jobs: Sequence[Job], rerun: bool) -> dict[str, Outcome]:
    """The outcomes of jobs that are done, by the jobs' names; what failed, or is damaged, is done again.

    Raises `SecateursError` where a recipe is another one than that which made an outcome, without ``rerun``.
    """
    found, changed = {}, {}
    for job in jobs:
        outcome, blank = _read(path_of(folder, job)), job.blank()
        if outcome is None or outcome.error:
            continue
        if outcome.recipe_digest == blank.recipe_digest:
            found[job.name] = outcome
        else:
            changed[job.recipe.name] = _difference(outcome.recipe_text, blank.recipe_text)
    if changed and not rerun:
        told = "; ".join(f"{name!r} {how}" for name, how in changed.items())
        raise SecateursError(
            f"{folder} holds outcomes of other recipes by the same names: {told}. Give the recipe a name of its own, or measure it anew "
            "with rerun=True"
        )
    if changed:
        tell(f"changed since it was measured, and measured anew: {names(changed)}")
    return found


def _difference(was: str, now: str) -> str:
    return f"was {was} and is {now}" if was != now else "looks as before, but its code or what it encloses is another"


def _read(path: Path) -> Outcome | None:
    try:
        return Outcome.from_json(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, FileError) as error:
        tell(f"{path} is damaged and measured anew: {error}")
        return None


def keep(folder: Path, job: Job, outcome: Outcome) -> None:
    """Write an outcome down, whole or not at all."""
    replace_text(path_of(folder, job), outcome.to_json())
