"""MNIST: 70,000 handwritten digits of 28x28 pixels."""

from __future__ import annotations

import torch

from secateurs.tasks.images import Images, Normalise, data_file, image_task, read_arrays
from secateurs.types import Task


def mnist(batch_size: int = 128, seed: int = 0, holdout: int = 5000) -> Task:
    """Classifies handwritten digits: 60,000 images of which ``holdout`` are for validation, and 10,000 to report on.

    Inputs ``(n, 1, 28, 28)``, float32 with mean 0 and standard deviation 1 over the training images; targets ``(n,)``, the
    digit. The seed draws the validation images. Calibration walks through 1024 training images in a fixed order. Reads
    ``mnist.npz`` from the folder that ``SECATEURS_DATA`` names; raises `SecateursError` where it is not there.

    LeCun et al. 1998, "Gradient-based learning applied to document recognition".

    >>> task = mnist()  # doctest: +SKIP
    >>> tuple(task.example.shape)  # doctest: +SKIP
    (1, 1, 28, 28)
    """
    arrays = read_arrays(data_file("mnist.npz"), ["train_images", "train_labels", "test_images", "test_labels"])
    train, test = (
        Images(torch.from_numpy(arrays[f"{part}_images"]).unsqueeze(1), torch.from_numpy(arrays[f"{part}_labels"]).long())
        for part in ("train", "test")
    )
    return image_task("mnist", train, test, Normalise((0.1307,), (0.3081,)), batch_size, seed, holdout)
