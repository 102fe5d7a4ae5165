"""From a pattern and the shape of a canonical view to the views whose leading dimensions are units. Nothing is ever copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from secateurs.types import Cut, Pattern, PatternError, Tiling

_AXES = ("output", "input", "kernel depth", "kernel height", "kernel width")


@dataclass(frozen=True)
class Boxes:
    """A canonical view as units: boxes of ``sizes`` from its corner on, as far as they reach, of which ``consecutive`` may compete.

    Data and no closure, so that what is cut goes to other processes.
    """

    covered: tuple[int, ...]
    sizes: tuple[int, ...]
    consecutive: int = 1

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(*contests, *competitors, *elements)``; what is written to it is written to the tensor."""
        dims = len(self.covered)
        for dim in reversed(range(dims)):
            size = self.sizes[dim]
            tensor = tensor.narrow(dim, 0, self.covered[dim]).unflatten(dim, (self.covered[dim] // size, size))
        single, long = ([2 * dim + 1 for dim, size in enumerate(self.sizes) if (size > 1) == is_long] for is_long in (False, True))
        tensor = tensor.permute(*range(0, 2 * dims, 2), *single, *long).squeeze(tuple(range(dims, dims + len(single))))
        if self.consecutive > 1:
            tensor = tensor.unflatten(2, (tensor.shape[2] // self.consecutive, self.consecutive)).movedim(3, dims)
        return tensor


def tiled(pattern: Tiling, shape: Sequence[int]) -> Cut:
    """The cut of a pattern that tiles: of a weight whose canonical view has the shape ``(groups, outputs, inputs, *kernel)``.

    Raises `PatternError` where the pattern does not fit, with the reason.

    >>> import torch
    >>> from secateurs.patterns import NofM
    >>> two_of_four = tiled(NofM(2, 4), (1, 6, 8))
    >>> two_of_four.view(torch.zeros(1, 6, 8)).shape, two_of_four.contests, two_of_four.competitors
    (torch.Size([1, 6, 2, 4]), (1, 6, 2), (4,))
    """
    sizes = (1, *pattern.tile(shape))
    covered = _covered(pattern, shape, sizes)
    grid = [length // size for length, size in zip(covered, sizes, strict=True)]
    consecutive = pattern.within if isinstance(pattern.within, int) else 1
    contest_dims = {"model": 0, "isomorphic": 0, "layer": 0, "row": 2}.get(str(pattern.within), len(shape))
    leading = (*grid[:2], grid[2] // consecutive, *grid[3:])
    competitors = (consecutive,) if consecutive > 1 else leading[contest_dims:]
    elements = tuple(size for size in sizes if size > 1)
    return Cut(Boxes(covered, sizes, consecutive), leading[:contest_dims], competitors, elements)


def _covered(pattern: Tiling, shape: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
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
    return tuple(covered)


def misfit(pattern: Pattern, shape: Sequence[int]) -> str | None:
    """Why a pattern does not fit a canonical shape, or ``None`` where it does.

    >>> from secateurs.patterns import NofM
    >>> misfit(NofM(2, 4), (1, 64, 27))
    'NofM(2, 4) needs the input dimension (27) to be a multiple of 4; ...'
    """
    try:
        pattern.cut(shape)
    except PatternError as error:
        return str(error)
    return None
