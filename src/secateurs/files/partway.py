"""A pruning that goes from part to part, kept on disk after each, so that it goes on where it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateurs.files import container
from secateurs.ranks import by_first, whole
from secateurs.types import FileError, WriteError

_MASK = "::mask"


@dataclass(frozen=True)
class Kept:
    """What a part came to: the values of all weights that it touched, and the masks of those that have one."""

    weights: dict[str, Tensor]
    masks: dict[str, Tensor]


@dataclass(frozen=True)
class Partway:
    """A folder with a file for each part of a pruning that is done; ``about`` says to what pruning it belongs."""

    folder: Path
    about: Mapping[str, str]

    def kept(self, number: int, sites: Iterable[str]) -> Kept | None:
        """What a part came to, or ``None`` where it is not done yet.

        Raises `FileError` where the file is damaged, or belongs to another pruning: the first difference is named.
        """
        path = self._path(number)
        if not path.exists():
            return None
        tensors, document = container.read(path)
        about = document.get("partway")
        if not isinstance(about, dict):
            raise FileError(f"{path} is no part of a pruning; name another folder")
        for key, wanted in {**self.about, "sites": ", ".join(sites)}.items():
            if about.get(key) != wanted:
                raise FileError(
                    f"{self.folder} belongs to another pruning: its {key} is {str(about.get(key))[:80]}, here it is {wanted[:80]}; name "
                    "another folder, or remove this one"
                )
        masks = {name.removesuffix(_MASK): tensor for name, tensor in tensors.items() if name.endswith(_MASK)}
        return Kept({name: tensor for name, tensor in tensors.items() if not name.endswith(_MASK)}, masks)

    def keep(self, number: int, sites: Iterable[str], kept: Kept) -> None:
        """Write down what a part came to; the file is there whole or not at all. Raises `WriteError` where it cannot be written."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in kept.weights.items()}
        tensors |= {name + _MASK: mask.cpu().contiguous() for name, mask in kept.masks.items()}
        document = {"partway": {**self.about, "sites": ", ".join(sites)}}

        def write() -> None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError(f"could not write {self.folder}: {error}") from error
            container.write(self._path(number), tensors, document)

        by_first(write)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"


def digest(tensors: Mapping[Any, Any]) -> str:
    """The same for the same tensors under the same names, to the bit, and for no others.

    >>> from torch import nn
    >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> digest(one.state_dict()) == digest(one.state_dict()), digest(one.state_dict()) == digest(other.state_dict())
    (True, False)
    """
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(str(name).encode())
        if isinstance(tensor, Tensor):
            values = whole(tensor.detach()).cpu().contiguous()
            found.update(f"{values.dtype}{tuple(values.shape)}".encode())
            found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
