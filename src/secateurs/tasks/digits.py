"""The smallest real task: 1,797 handwritten digits of 8x8 pixels, from scikit-learn, with nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from secateurs.tasks.batches import Batches
from secateurs.tasks.metrics import accuracy
from secateurs.types import SecateursError, Task

_HELD_OUT = 300


def digits(seed: int = 0, batch_size: int = 64) -> Task:
    """Classifies handwritten digits: 1197 images to train on, 300 to choose by, 300 to report on.

    Inputs ``(n, 1, 8, 8)``, float32 from 0 to 1; targets ``(n,)``, the digit. All three parts have the same mixture of classes.
    The test images are the same whatever the seed, so that no run trains on what another is tested on; the seed draws the
    validation images from the rest. Calibration walks through the training images in a fixed order. Raises `SecateursError`
    without scikit-learn.

    Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.

    >>> task = digits()
    >>> inputs, target = next(iter(task.train))
    >>> tuple(inputs.shape), tuple(target.shape), tuple(task.example.shape)
    ((64, 1, 8, 8), (64,), (1, 1, 8, 8))
    """
    images, labels = _load()
    rest, test = _stratified(torch.arange(len(labels)), labels, seed=0)
    train, validation = _stratified(rest, labels, seed)
    return Task(
        example=images[train[:1]],
        train=Batches(images[train], labels[train], batch_size, shuffle=True),
        validation=Batches(images[validation], labels[validation], batch_size),
        test=Batches(images[test], labels[test], batch_size),
        calibration=Batches(images[train], labels[train], batch_size),
        loss=functional.cross_entropy,
        metric=accuracy,
        name="digits",
    )


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SecateursError("digits() needs scikit-learn: pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    brightest = 16
    return torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / brightest, torch.from_numpy(labels).long()


def _stratified(indices: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off 300 of the indices, with the same mixture of classes."""
    from sklearn.model_selection import train_test_split

    rest, held_out = train_test_split(indices.numpy(), test_size=_HELD_OUT, random_state=seed, stratify=labels[indices].numpy())
    return torch.from_numpy(rest), torch.from_numpy(held_out)
