"""A folder of trials: a file for each that is finished, and one that says what all share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateurs.progress import tell
from secateurs.replacing import replacing
from secateurs.search.trial import Study, Trial
from secateurs.types import FileError, Plan, PlanError, WriteError

SHARED, FORMAT, VERSION = "trials.json", "secateurs trials", 1


def key_of(plan: Plan) -> str:
    """What tells plans of the same sites apart: how many units each keeps, in whatever order.

    >>> from secateurs.types import Share
    >>> key_of(Plan({"fc": Share(8, 3, {})})) == key_of(Plan({"fc": Share(8, 4, {})}))
    False
    """
    return hashlib.sha256(json.dumps(dict(plan), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrialFiles:
    """The files of trials that share what ``about`` says; ``whole`` is the plan that keeps everything."""

    folder: Path
    about: Mapping[str, str]
    whole: Plan
    higher_is_better: bool

    def begin(self) -> None:
        """Write down what all trials share, or hold it against what is there; raises `FileError`, naming what differs."""
        path = self.folder / SHARED
        if path.exists():
            document = _document(path)
            differing = [name for name, value in self.about.items() if document["about"].get(name) != value]
            if differing:
                name = differing[0]
                raise FileError(
                    f"{self.folder} holds trials of something else: its {name} was {str(document['about'].get(name))[:80]} and is "
                    f"{self.about[name][:80]}; name another folder with checkpoint=, or remove this one"
                )
            return
        shared = {"about": dict(self.about), "whole": self.whole.to_json(), "higher_is_better": self.higher_is_better}
        _write(path, json.dumps({"format": FORMAT, "version": VERSION, **shared}, indent=1, ensure_ascii=False) + "\n")

    def read(self) -> dict[str, Trial]:
        """The trials that came to something, by what tells their plans apart; what failed, or is damaged, is to be tried again."""
        return {key_of(trial.plan): trial for trial in _trials(self.folder, self.whole) if not trial.failed}

    def write(self, trial: Trial) -> None:
        """Keep a trial; its file is there whole or not at all. Raises `WriteError` where it cannot be written."""
        _write(self.folder / f"trial-{key_of(trial.plan)}.json", trial.to_json())


def read_trials(folder: str | Path) -> Study:
    """All that was tried with ``checkpoint=folder``, by one search or by several; raises `FileError` where there are no trials.

    >>> read_trials("nowhere")
    Traceback (most recent call last):
    secateurs.types.FileError: nowhere: there are no trials; name the folder that a search was given as checkpoint=
    """
    path = Path(folder) / SHARED
    if not path.is_file():
        raise FileError(f"{folder}: there are no trials; name the folder that a search was given as checkpoint=")
    document = _document(path)
    found = sorted(_trials(Path(folder), Plan.from_json(document["whole"])), key=lambda trial: trial.number)
    trials = tuple(replace(trial, number=number) for number, trial in enumerate(found))  # several searches count each for itself
    return Study(trials, document["higher_is_better"], document["about"].get("value", "value"))


def _trials(folder: Path, whole: Plan) -> list[Trial]:
    found = []
    for path in sorted(folder.glob("trial-*.json")):
        try:
            found.append(Trial.from_json(path.read_bytes().decode("utf-8"), whole))
        except (FileError, UnicodeDecodeError, OSError) as error:
            tell(f"{path} is damaged, and tried again: {error}")
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION or type(document["higher_is_better"]) is not bool:
            raise ValueError(f'expected "format": "{FORMAT}" of version {VERSION}')
        if not isinstance(document["about"], dict):
            raise ValueError("it does not say what was tried")
        Plan.from_json(document["whole"])
        return document
    except (ValueError, TypeError, KeyError, PlanError, RecursionError, OSError) as error:
        raise FileError(f"{path} does not tell what was tried there ({error}): name another folder with checkpoint=") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"could not write {path}: {error}") from error
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
