"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secateurs.progress import tell, track
from secateurs.tasks.images import Images, Normalise, data_file, image_task, read_arrays
from secateurs.types import FileError, SecateursError, Task

NORMALISE = Normalise(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""ImageNet's statistics, because the published CIFAR networks were trained with them."""

_SIDE = 32
_MARGIN = 4


def cifar10(batch_size: int = 128, seed: int = 0, holdout: int = 5000, augment: bool = True) -> Task:
    """Classifies photographs: 50,000 images of which ``holdout`` are for validation, and 10,000 to report on.

    Inputs ``(n, 3, 32, 32)``, float32, normalised with ImageNet's mean and standard deviation; targets ``(n,)``, the class,
    from airplane (0) to truck (9). The seed draws the validation images. ``augment`` shifts the training images by up to 4
    pixels and mirrors half of them (He et al. 2015, arXiv:1512.03385, section 4.2), drawing from torch's global generator.
    Calibration walks through 1024 training images as they are, in a fixed order. Reads ``cifar10_jpeg.npz`` from the folder
    that ``SECATEURS_DATA`` names, and keeps the decoded pixels in memory (184 MB) for the next call. Raises `SecateursError`
    where the file is not there, or Pillow is not installed.

    Krizhevsky 2009, "Learning multiple layers of features from tiny images". The file holds JPEG images, which lose a little.

    >>> task = cifar10()  # doctest: +SKIP
    >>> tuple(task.example.shape)  # doctest: +SKIP
    (1, 3, 32, 32)
    """
    train, test = _images(data_file("cifar10_jpeg.npz"))
    return image_task("cifar10", train, test, NORMALISE, batch_size, seed, holdout, shift_and_mirror if augment else None)


def shift_and_mirror(pixels: Tensor) -> Tensor:
    """Shifts each image of ``(n, channels, h, w)`` by up to 4 pixels each way, black moving in, and mirrors half of them.

    >>> shift_and_mirror(torch.ones(2, 3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """
    count, channels, height, width = pixels.shape
    image, channel, row, column = (torch.arange(size, device=pixels.device) for size in (count, channels, height, width))
    top, left = torch.randint(2 * _MARGIN + 1, (2, count, 1), device=pixels.device)
    mirrored = torch.rand(count, 1, device=pixels.device) < 0.5
    rows = top + row
    columns = left + torch.where(mirrored, column.flip(0), column)
    padded = functional.pad(pixels, (_MARGIN,) * 4)
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


@lru_cache(maxsize=1)
def _images(path: Path) -> tuple[Images, Images]:
    """The decoded training and test images."""
    names = [f"{part}_{array}" for part in ("train", "test") for array in ("jpeg", "offsets", "labels")]
    arrays = read_arrays(path, names)
    train, test = (
        Images(
            decode(arrays[f"{part}_jpeg"], arrays[f"{part}_offsets"]),
            torch.from_numpy(arrays[f"{part}_labels"]).long(),
        )
        for part in ("train", "test")
    )
    return train, test


def decode(jpeg: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> Tensor:
    """The pixels ``(n, 3, 32, 32)``, uint8, of n JPEG files that lie end to end; file i is ``jpeg[offsets[i]:offsets[i + 1]]``.

    Raises `SecateursError` without Pillow, `FileError` where something is not a JPEG image of 32x32 pixels.

    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (32, 32), "white").save(file, "jpeg")
    >>> jpeg = np.frombuffer(file.getvalue(), np.uint8)
    >>> decode(jpeg, np.array([0, len(jpeg)])).float().mean((2, 3))
    tensor([[255., 255., 255.]])
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise SecateursError('cifar10() needs Pillow to decode its images: pip install "secateurs[images]"') from error
    pixels = torch.empty(len(offsets) - 1, _SIDE, _SIDE, 3, dtype=torch.uint8, device="cpu")
    tell(f"decoding {len(pixels):,} images …")
    for i, (start, end) in enumerate(track(pairwise(offsets), "decoding images", total=len(pixels))):
        try:
            with Image.open(io.BytesIO(jpeg[start:end].tobytes()), formats=["JPEG"]) as image:
                pixels.numpy()[i] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise FileError(f"image {i} is not a JPEG image of {_SIDE}x{_SIDE} pixels ({error})") from error
    return pixels.permute(0, 3, 1, 2).contiguous()
