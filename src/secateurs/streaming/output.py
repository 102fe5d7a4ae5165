"""The folder that is written: a copy of the source's files, in a place of its own until every block is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateurs.replacing import replacing
from secateurs.streaming.shards import INDEX, Shards
from secateurs.types import FileError, SecateursError, WriteError

_MARK = "secateurs-partway.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".ckpt")
_SPARE = 1 << 20


@dataclass
class Output:
    """Work on a folder: what is finished of it. Blocks are in order, each with how many weights of its sites stayed."""

    shards: Shards
    out: Path
    about: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    blocks: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def kept(self) -> dict[str, int]:
        return {site: left for sites in self.blocks.values() for site, left in sites.items()}

    @staticmethod
    @contextmanager
    def begun(shards: Shards, out: Path, about: Mapping[str, str]) -> Iterator[Output]:
        """Begin, or go on where other work on the same was stopped; raises `FileError` and `WriteError` before anything is written."""
        out, source = Path(os.path.abspath(out)), shards.folder.resolve()
        if out.resolve() == source or source in out.resolve().parents or out.resolve() in source.parents:
            raise FileError(f"{out} is the folder that is read, or one lies in the other: name another one to write")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileError(f"{out} is there already: remove it, or name another one")
        output = Output(shards, out, about)
        if not output._goes_on():
            output._copy()
        try:
            yield output
        except SecateursError:
            if not output.blocks:
                shutil.rmtree(output.partial, ignore_errors=True)
            raise

    def _goes_on(self) -> bool:
        mark = self.partial / _MARK
        if not mark.exists():
            if self.partial.exists() and any(self.partial.iterdir()) and not (self.partial / f"{_MARK}.copying").exists():
                raise FileError(
                    f"{self.partial} is there already and holds no work of this kind: remove it, or name another folder"
                )
            return False
        try:
            document = json.loads(mark.read_bytes())
            about, self.blocks = document["about"], {str(name): dict(sites) for name, sites in document["blocks"].items()}
            self.left_out = tuple(document["left_out"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{mark} is damaged: remove {self.partial} to begin again") from error
        for key, wanted in self.about.items():
            if about.get(key) != wanted:
                raise FileError(
                    f"{self.partial} belongs to another pruning: its {key} is {str(about.get(key))[:80]}, here it is {wanted[:80]}; "
                    "remove it, or name another folder"
                )
        try:
            Shards.of(self.partial)
        except FileError as error:
            raise FileError(f"{self.partial} is damaged: remove it to begin again ({error})") from error
        return True

    def _copy(self) -> None:
        """The source's files, all but weights that it keeps in other forms."""
        source = self.shards.folder
        weights = {*self.shards.files}
        files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
        taken = [path for path in files if path.name in weights or path.name == INDEX or path.suffix not in _WEIGHTS]
        taken = [path for path in taken if not (path.name.endswith(".index.json") and path.name != INDEX)]
        self.left_out = tuple(sorted({path.name for path in source.iterdir()} - {path.name for path in taken}))
        above = next(folder for folder in self.out.parents if folder.exists())
        needed, free = sum(path.stat().st_size for path in taken) + _SPARE, shutil.disk_usage(above).free
        if self.partial.exists():
            free += sum(path.stat().st_size for path in self.partial.iterdir() if path.is_file())
        if free < needed:
            gigabytes = f"{needed / 1e9:.2f} GB, but {above} has {free / 1e9:.2f} GB left"
            raise WriteError(f"{self.out} needs {gigabytes}: make room, or name a folder on another disk")
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            (self.partial / f"{_MARK}.copying").touch()
            for path in taken:
                shutil.copyfile(path, self.partial / path.name)
        except OSError as error:
            raise WriteError(f"could not write {self.partial}: {error}") from error
        self._sync()
        self._mark()
        (self.partial / f"{_MARK}.copying").unlink()

    def is_done(self, block: str) -> bool:
        return block in self.blocks

    def done(self, block: str, kept: Mapping[str, int]) -> None:
        """Remember that a block is finished, once all of it is on the disk."""
        if block in self.blocks:
            return
        self._sync()
        self.blocks[block] = dict(kept)
        self._mark()

    def _sync(self) -> None:
        for file in self.shards.files:
            with open(self.partial / file, "rb") as opened:
                os.fsync(opened.fileno())

    def _mark(self) -> None:
        document: dict[str, Any] = {"about": dict(self.about), "blocks": self.blocks, "left_out": list(self.left_out)}
        with replacing(self.partial / _MARK) as temporary:
            temporary.write_text(json.dumps(document), encoding="utf-8")

    def finish(self) -> None:
        """Give the folder its name; it is whole by then."""
        Shards.of(self.partial)
        try:
            if self.out.exists():
                self.out.rmdir()  # empty
            os.replace(self.partial, self.out)
            (self.out / _MARK).unlink()
        except OSError as error:
            raise WriteError(f"could not give {self.partial} its name {self.out}: {error}") from error
