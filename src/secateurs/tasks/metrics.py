"""What a task counts as success."""

from __future__ import annotations

from torch import Tensor

from secateurs.types import TaskError


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The fraction of predictions that are right, between 0 and 1, as a scalar tensor.

    ``output`` holds one score a class in its last dimension, ``(..., classes)``; ``target`` the right classes, ``(...)``.
    Raises `TaskError` where the shapes do not fit each other.

    >>> import torch
    >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    tensor(0.5000)
    """
    if output.shape[:-1] != target.shape:
        given = f"output {tuple(output.shape)}, target {tuple(target.shape)}"
        raise TaskError(f"accuracy: {given}: the output needs the target's dimensions and one more at the end, the classes")
    return (output.argmax(-1) == target).float().mean()
