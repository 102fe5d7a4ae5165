"""What is known of a tensor for every input that a model accepts: number by number zero, a number of the parameters' alone, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from secateurs.nested import Value


class Free:
    """A size that may be another one for another input; ``size`` is what it was in the trace."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


Size = tuple["int | Free", ...]
"""The size of a dimension as a product of factors; of no factors it is 1. Two that are equal are so for every input."""


def size_of(size: Size) -> int:
    """What a size was in the trace."""
    return prod([factor if isinstance(factor, int) else factor.size for factor in size])


def fixed(size: int) -> Size:
    """A size that no input changes."""
    return () if size == 1 else (size,)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of one tensor.

    ``known`` says where a number is the same for every input, ``number`` which; both have 1 where the tensor has n along dimensions
    that are ``uniform``: what holds at one index holds at all, however many there are. Along the others, indices count one by one.
    ``sizes`` are those of the dimensions; ``same`` is an earlier tensor that this one equals; ``positive``: no number is below zero.
    Numbers that are not finite are left out of account: zero times infinity counts as zero.

    >>> weight = Known.of(torch.tensor([[0.0, 2.0]]))
    >>> weight.zero
    tensor([[ True, False]])
    """

    number: Tensor
    known: Tensor
    uniform: tuple[bool, ...]
    sizes: tuple[Size, ...]
    same: Value | None = None
    positive: bool = False

    @staticmethod
    def of(tensor: Tensor) -> Known:
        """A parameter: all of it is known."""
        return Known(
            tensor,
            torch.ones([1] * tensor.ndim, dtype=torch.bool),
            tuple([size == 1 for size in tensor.shape]),
            tuple([fixed(size) for size in tensor.shape]),
        )

    @staticmethod
    def nothing(sizes: Sequence[Size]) -> Known:
        """A tensor of which only the sizes are known."""
        ones = [1] * len(sizes)
        return Known(torch.zeros(ones), torch.zeros(ones, dtype=torch.bool), (True,) * len(sizes), tuple(sizes))

    @staticmethod
    def everywhere(number: float, sizes: Sequence[Size]) -> Known:
        """One number everywhere."""
        ones = [1] * len(sizes)
        full = torch.full(ones, number, dtype=torch.float64)
        return Known(full, torch.ones(ones, dtype=torch.bool), (True,) * len(sizes), tuple(sizes), positive=number >= 0)

    @property
    def zero(self) -> Tensor:
        """Where a number is zero for every input."""
        return self.known & (self.number == 0)

    @property
    def all_zero(self) -> bool:
        return bool(self.zero.all())

    @property
    def none(self) -> bool:
        """Whether nothing is known."""
        return not bool(self.known.any())

    def but(self, known: Tensor, number: Tensor | None = None, uniform: tuple[bool, ...] | None = None) -> Known:
        """The same tensor with something else known of it."""
        return replace(
            self,
            known=known,
            number=self.number if number is None else number,
            uniform=self.uniform if uniform is None else uniform,
            same=None,
            positive=False,
        )

    def zeros_only(self) -> Known:
        """Where it is zero; other numbers are forgotten."""
        return replace(self, known=self.zero, number=torch.zeros([1] * self.number.ndim))

    def collapsed(self, dims: Iterable[int]) -> Known:
        """Along these dimensions, known is only what is zero at every index; uniform ones stay as they are."""
        chosen = [dim % len(self.uniform) for dim in dims]
        chosen = [dim for dim in chosen if not self.uniform[dim]]
        if not chosen:
            return self
        zero = self.zero.expand(self.shape).amin(tuple(chosen), keepdim=True)
        return self.but(zero, torch.zeros([1] * zero.ndim), tuple(u or dim in chosen for dim, u in enumerate(self.uniform)))

    def without(self, dims: Iterable[int]) -> Known:
        """The same without these dimensions, of which the first index stands for all.

        >>> Known.everywhere(2.0, [(3,), (4,)]).without([0]).sizes
        ((4,),)
        """
        gone = sorted(dims, reverse=True)
        stay = [dim for dim in range(len(self.sizes)) if dim not in gone]

        def taken(tensor: Tensor) -> Tensor:
            for dim in gone:
                tensor = tensor.select(dim, 0)
            return tensor

        return replace(
            self,
            number=taken(self.number),
            known=taken(self.known),
            uniform=tuple(self.uniform[dim] for dim in stay),
            sizes=tuple(self.sizes[dim] for dim in stay),
            same=None,
        )

    def spread(self, dims: Iterable[int]) -> Known:
        """The same with the indices of these dimensions counted one by one."""
        chosen = {dim % len(self.uniform) for dim in dims}
        shape = [size_of(self.sizes[dim]) if dim in chosen else size for dim, size in enumerate(self.shape)]
        return replace(
            self,
            known=self.known.expand(shape),
            number=self.number.expand(shape),
            uniform=tuple(u and dim not in chosen for dim, u in enumerate(self.uniform)),
        )

    def along(self, dim: int, zeros: bool = False) -> Tensor:
        """For each index of a dimension, whether all that has it is known: zero, or one number at every other index too."""
        dim %= len(self.uniform)
        spread = self.spread([dim])
        zero = spread.zero.expand(spread.shape).movedim(dim, 0).reshape(spread.shape[dim], -1).all(1)
        if zeros or not all(u for other, u in enumerate(self.uniform) if other != dim):
            return zero
        return spread.known.expand(spread.shape).movedim(dim, 0).flatten()

    def numbers(self, dim: int) -> Tensor:
        """The numbers of each index of a dimension, where `along` says that there is one; else 0."""
        spread = self.spread([dim])
        first = spread.number.expand(spread.shape).movedim(dim, 0).reshape(spread.shape[dim], -1)[:, 0].double()
        return torch.where(self.along(dim).to(first.device), first, 0.0)

    @property
    def shape(self) -> torch.Size:
        """How many indices count one by one along each dimension."""
        return torch.Size([b if a == 1 else a for a, b in zip(self.known.shape, self.number.shape, strict=True)])
