"""From a pattern and the shape of a canonical view to the views whose leading dimensions are units. Nothing is ever copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from secateurs.types import PatternError, Tiling

_AXES = ("output", "input", "kernel depth", "kernel height", "kernel width")


@dataclass(frozen=True)
class Cut:
    """How one weight falls into units: ``view(tensor)`` is ``(*contests, *competitors, *elements)``, and writes through."""

    view: Callable[[Tensor], Tensor]
    contests: tuple[int, ...]
    competitors: tuple[int, ...]
    elements: tuple[int, ...]


def cut(pattern: Tiling, shape: Sequence[int]) -> Cut:
    """The cut of a weight whose canonical view has the shape ``(groups, outputs, inputs, *kernel)``.

    Raises `PatternError` where the pattern does not fit, with the reason.

    >>> import torch
    >>> from secateurs.patterns import NofM
    >>> two_of_four = cut(NofM(2, 4), (1, 6, 8))
    >>> two_of_four.view(torch.zeros(1, 6, 8)).shape, two_of_four.contests, two_of_four.competitors
    (torch.Size([1, 6, 2, 4]), (1, 6, 2), (4,))
    """
    sizes = (1, *pattern.tile(shape))
    covered = _covered(pattern, shape, sizes)
    grid = [length // size for length, size in zip(covered, sizes, strict=True)]
    elements = [2 * dim + 1 for dim, size in enumerate(sizes) if size > 1]
    whole = [2 * dim + 1 for dim, size in enumerate(sizes) if size == 1]
    consecutive = pattern.within if isinstance(pattern.within, int) else 1
    contest_dims = {"model": 0, "isomorphic": 0, "layer": 0, "row": 2}.get(str(pattern.within), len(shape))
    ones = tuple(range(len(shape), len(shape) + len(whole)))
    leading = (*grid[:2], grid[2] // consecutive, *grid[3:])

    def view(tensor: Tensor) -> Tensor:
        for dim in reversed(range(len(shape))):
            tensor = tensor.narrow(dim, 0, covered[dim]).unflatten(dim, (grid[dim], sizes[dim]))
        tensor = tensor.permute(*range(0, 2 * len(shape), 2), *whole, *elements).squeeze(ones)
        if consecutive > 1:
            tensor = tensor.unflatten(2, (leading[2], consecutive)).movedim(3, len(shape))
        return tensor

    competitors = (consecutive,) if consecutive > 1 else leading[contest_dims:]
    return Cut(view, leading[:contest_dims], competitors, tuple(sizes[dim // 2] for dim in elements))


def _covered(pattern: Tiling, shape: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """How far along each dimension whole units (and whole contests) reach; a rest is an error unless the pattern keeps it."""
    covered = []
    kernel_axes = _AXES[2:][-(len(shape) - 3) :] if len(shape) > 3 else ()
    for dim, (length, size, axis) in enumerate(zip(shape, sizes, ("group", *_AXES[:2], *kernel_axes), strict=True)):
        step = size * pattern.within if dim == 2 and isinstance(pattern.within, int) else size
        rest = length % step
        if rest and (pattern.tail == "error" or length < step):
            remedy = "use Element()" if length < step else 'use tail="keep" to leave the rest dense, or Element()'
            raise PatternError(f"{pattern} needs the {axis} dimension ({length}) to be a multiple of {step}; {remedy}")
        covered.append(length - rest)
    if prod(covered) == 0:
        raise PatternError(f"{pattern} finds no unit in a weight of shape {tuple(shape)}")
    return covered


def misfit(pattern: Tiling, shape: Sequence[int]) -> str | None:
    """Why a pattern does not fit a canonical shape, or ``None`` where it does.

    >>> from secateurs.patterns import NofM
    >>> misfit(NofM(2, 4), (1, 64, 27))
    'NofM(2, 4) needs the input dimension (27) to be a multiple of 4; ...'
    """
    try:
        cut(pattern, shape)
    except PatternError as error:
        return str(error)
    return None
