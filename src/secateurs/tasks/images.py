"""What the image tasks share: the data folder, and a task made of arrays of pixels."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secateurs.tasks.batches import Batches
from secateurs.tasks.metrics import accuracy
from secateurs.types import FileError, SecateursError, Task

CALIBRATION_IMAGES = 1024
"""How many training images statistics are observed on: all of them would cost an epoch, and tell hardly more."""


def data_file(name: str) -> Path:
    """The path of a file in the folder that ``SECATEURS_DATA`` names; raises `SecateursError` where it is not there.

    >>> data_file("mnist.npz")  # doctest: +SKIP
    PosixPath('/data/mnist.npz')
    """
    folder = os.environ.get("SECATEURS_DATA")
    if not folder:
        raise SecateursError(f"SECATEURS_DATA is not set: set it to the folder that holds {name}")
    path = Path(folder) / name
    if not path.is_file():
        raise SecateursError(f"{path} is not there: set SECATEURS_DATA (now {folder!r}) to the folder that holds {name}")
    return path


def read_arrays(path: Path, names: Sequence[str]) -> Mapping[str, np.ndarray[Any, Any]]:
    """The named arrays of an ``.npz`` file; raises `FileError` where the file is broken or lacks one.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.npz"
    >>> np.savez(path, labels=np.arange(3))
    >>> read_arrays(path, ["labels"])["labels"].tolist()
    [0, 1, 2]
    """
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise FileError(f"{path}: expected an .npz file with the arrays {', '.join(names)} ({error})") from error


@dataclass(frozen=True)
class Images:
    """Pixels ``(n, channels, height, width)``, uint8, and their classes ``(n,)``, int64."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Any) -> Images:
        return Images(self.pixels[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Normalise:
    """Maps uint8 pixels ``(n, channels, ...)`` to float32 with the given mean and standard deviation of each channel.

    ``mean`` and ``std`` are of pixels between 0 and 1.

    >>> Normalise(mean=(0.5,), std=(0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist()
    [-2.0, 2.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device).reshape(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).reshape(-1, 1, 1)
        return (pixels / 255 - mean) / std


def image_task(
    name: str,
    train: Images,
    test: Images,
    normalise: Normalise,
    batch_size: int,
    seed: int,
    holdout: int,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Task:
    """A task of classifying images: the seed draws ``holdout`` of the training images, which become the validation images.

    Pixels stay uint8 in memory and are normalised batch by batch. ``augment`` maps the uint8 pixels of the training batches,
    and of no others; calibration walks through the first 1024 training images in a fixed order. Raises `SecateursError` where
    the holdout leaves nothing to train on, or nothing to choose by.

    >>> four = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    >>> task = image_task("four", four, four, Normalise((0.5,), (0.5,)), batch_size=2, seed=0, holdout=1)
    >>> len(task.train), len(task.validation), len(task.test)
    (2, 1, 2)
    """
    if not 1 <= holdout < len(train):
        raise SecateursError(f"{name}(holdout={holdout}): must be from 1 to {len(train) - 1}, of {len(train)} training images")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed), device="cpu")
    validation, train = train[order[:holdout]], train[order[holdout:]]

    def batches(images: Images) -> Batches:
        return Batches(images.pixels, images.labels, batch_size, augment=normalise)

    def prepare(pixels: Tensor) -> Tensor:
        return normalise(augment(pixels) if augment else pixels)

    return Task(
        example=normalise(train.pixels[:1]),
        train=Batches(train.pixels, train.labels, batch_size, shuffle=True, augment=prepare),
        validation=batches(validation),
        test=batches(test),
        calibration=batches(train[:CALIBRATION_IMAGES]),
        loss=functional.cross_entropy,
        metric=accuracy,
        name=name,
    )
