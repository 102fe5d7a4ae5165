"""Whether inputs are like those that a network was recorded with, and where they differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateurs.nested import Value, leaves
from secateurs.run.network.nodes import Network


def difference(network: Network, inputs: Any) -> str | None:
    """How inputs differ from those that a network was recorded for, or None where it can run them.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.run.recording.one_call import network_of
    >>> difference(network_of(nn.Linear(3, 2), torch.zeros(1, 3)), torch.zeros(4, 3))
    'the input is (4, 3) torch.float32, not (1, 3) torch.float32'
    """
    if isinstance(inputs, Tensor) and isinstance(network.example, Value):
        return _unlike("", inputs, network.example)
    given, expected = list(leaves(inputs)), list(leaves(network.example))
    if [path for path, _ in given] != [path for path, _ in expected]:
        here, there = ({path for path, _ in each} for each in (given, expected))
        return (
            f"the input has {sorted(here - there) or 'nothing'} that was not there, and lacks {sorted(there - here) or 'nothing'}"
        )
    found = (_unlike(path, leaf, wanted) for (path, leaf), (_, wanted) in zip(given, expected, strict=True))
    return next(filter(None, found), None)


def fits(network: Network, inputs: Any) -> bool:
    """Whether inputs have the nesting, shapes, dtypes and device that a network was recorded for."""
    return difference(network, inputs) is None


def _unlike(path: str, leaf: Any, wanted: Any) -> str | None:
    if not isinstance(wanted, Value):
        same = type(leaf) is type(wanted) and (leaf is wanted or bool(leaf == wanted))
        return None if same else f"the input{path} is {leaf!r}, not {wanted!r}"
    if not isinstance(leaf, Tensor):
        return f"the input{path} is {type(leaf).__name__}, not a tensor"
    if tuple(leaf.shape) != wanted.shape or leaf.dtype != wanted.dtype:
        return f"the input{path} is {tuple(leaf.shape)} {leaf.dtype}, not {wanted.shape} {wanted.dtype}"
    return None if leaf.device.type == "cpu" else f"the input{path} is on {leaf.device}, not on the CPU"
