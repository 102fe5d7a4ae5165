"""The tensors of a Hugging Face folder, read one by one from its shards, and written into shards that are laid out the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateurs.types import FileError, WriteError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes of a file; ``dtype`` is the name that safetensors has for it."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shards:
    """The tensors of a folder by name. Another folder with the same files holds its tensors at the same places."""

    folder: Path
    entries: Mapping[str, Entry]

    @staticmethod
    def of(folder: Path) -> Shards:
        """Raises `FileError` where there are none, one is missing, truncated or damaged, or holds not what the index says."""
        index = folder / INDEX
        if index.exists():
            listed = _json(index.read_bytes(), index).get("weight_map")
            if not isinstance(listed, dict) or not all(
                isinstance(file, str) and Path(file).name == file for file in listed.values()
            ):
                raise FileError(f"{index} does not say which tensor is in which file of its folder: load the whole folder again")
            files = sorted(set(listed.values()))
        elif (folder / SINGLE).exists():
            listed, files = {}, [SINGLE]
        else:
            raise FileError(f"{folder} holds neither {SINGLE} nor {INDEX}: give a Hugging Face folder with safetensors")
        entries = {name: entry for file in files for name, entry in _entries(folder / file)}
        for name, file in listed.items():
            if name not in entries or entries[name].file != file:
                raise FileError(f"{folder / file} does not hold {name}, as {INDEX} says: load the whole folder again")
        return Shards(folder, entries)

    @property
    def files(self) -> list[str]:
        return sorted({entry.file for entry in self.entries.values()})

    def read(self, name: str, folder: Path | None = None) -> Tensor:
        """A tensor of this folder, or of another one with the same files; raises `FileError` where it cannot be read."""
        entry, path = self.entries[name], (folder or self.folder) / self.entries[name].file
        try:
            with open(path, "rb") as file:
                file.seek(entry.start)
                content = bytearray(file.read(entry.stop - entry.start))
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error}") from error
        if len(content) < entry.stop - entry.start:
            raise FileError(f"{path} ends within {name}: it is truncated; load the whole folder again")
        return torch.frombuffer(content, dtype=FLOATS[entry.dtype]).view(entry.shape)

    def write(self, name: str, tensor: Tensor, folder: Path) -> None:
        """Write a tensor, in the dtype that it has here, into another folder with the same files. Raises `WriteError`."""
        entry = self.entries[name]
        content = tensor.detach().cpu().to(FLOATS[entry.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        try:
            with open(folder / entry.file, "r+b") as file:
                file.seek(entry.start)
                file.write(content)
        except OSError as error:
            raise WriteError(f"could not write {folder / entry.file}: {error}") from error


def _entries(path: Path) -> Iterator[tuple[str, Entry]]:
    """What the header of a safetensors file says, held against the size of the file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise FileError(f"{path} is no safetensors file, or truncated: load the whole folder again")
            header = _json(file.read(length), path)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing, though the folder's index names it: load the whole folder again") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    for name, said in header.items():
        if name == "__metadata__":
            continue
        try:
            start, stop = said["data_offsets"]
            entry = Entry(path.name, str(said["dtype"]), tuple(map(int, said["shape"])), 8 + length + start, 8 + length + stop)
        except (TypeError, KeyError, ValueError) as error:
            raise FileError(f"{path}: its header is damaged at {name}: load the whole folder again") from error
        if not 8 + length <= entry.start <= entry.stop <= size:
            raise FileError(f"{path} ends before {name} does: it is truncated; load the whole folder again")
        if entry.dtype in FLOATS and entry.stop - entry.start != prod(entry.shape) * FLOATS[entry.dtype].itemsize:
            raise FileError(f"{path}: the size of {name} is not that of {entry.dtype} {entry.shape}: load the whole folder again")
        yield name, entry


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {str(error)[:100]}; load the whole folder again") from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged: it holds no JSON object; load the whole folder again")
    return found
