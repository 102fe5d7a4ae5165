"""A tensor of few values: whole numbers that are small where the values are, and what each of them stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.types import SecateursError


@dataclass(frozen=True)
class Levels:
    """A tensor as whole numbers, and the value of each; what `secateurs.coding` writes and what quantisers make.

    ``numbers``: int32, in the tensor's shape; 0 stands for 0.0, the sign is that of the value, and of one sign the larger stands for
    what is further from zero. Equally long runs of numbers in row-major order, as many as there are rows of ``table`` or ``scale``,
    share one: one run is the whole tensor, as many as the first dimension has are its channels. Exactly one of three gives the values,
    which have the tensor's dtype: ``table`` (runs, levels), in which ``table[run, number - lowest]`` is the value; ``scale`` (runs,),
    float32, by which the number is multiplied in float32 before it is rounded to ``dtype``; or neither, where the numbers are the
    tensor itself (of whole numbers).

    Raises `SecateursError` where the parts do not fit each other.

    >>> Levels(torch.tensor([[0, -1], [2, 1]], dtype=torch.int32), table=torch.tensor([[-3.0, 0.0, 0.5, 4.0]]), lowest=-1).values()
    tensor([[ 0.0000, -3.0000],
            [ 4.0000,  0.5000]])
    >>> Levels(torch.tensor([[1, -1], [2, 1]], dtype=torch.int32), scale=torch.tensor([0.5, 10.0])).values()
    tensor([[ 0.5000, -0.5000],
            [20.0000, 10.0000]])
    """

    numbers: Tensor
    table: Tensor | None = None
    lowest: int = 0
    scale: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.numbers.dtype != torch.int32:
            raise SecateursError(f"levels are int32 numbers, not {self.numbers.dtype}")
        if self.table is not None and self.scale is not None:
            raise SecateursError("levels have a table or a scale, not both")
        given = self.table if self.table is not None else self.scale
        if given is None:
            return
        if given.ndim != (2 if self.table is not None else 1) or not len(given):
            raise SecateursError("a table of levels is of (runs, levels), a scale of (runs,), with at least one run")
        if self.numbers.numel() % len(given):
            raise SecateursError(f"{self.numbers.numel()} numbers are not {len(given)} equally long runs")

    @property
    def runs(self) -> int:
        """How many parts of the tensor have values of their own."""
        given = self.table if self.table is not None else self.scale
        return 1 if given is None else len(given)

    def values(self) -> Tensor:
        """The tensor; raises `SecateursError` where a number has no place in the table."""
        flat = self.numbers.reshape(self.runs, -1)
        if self.table is not None:
            least, largest = map(int, flat.aminmax()) if flat.numel() else (self.lowest, self.lowest)
            if not self.lowest <= least <= largest < self.lowest + self.table.shape[1]:
                raise SecateursError(
                    f"levels go from {least} to {largest}, and their table from {self.lowest} to "
                    f"{self.lowest + self.table.shape[1] - 1}: give a value to each"
                )
            found = self.table.gather(1, (flat - self.lowest).long())
        elif self.scale is not None:
            found = (flat.float() * self.scale.float()[:, None]).to(self.dtype)
        else:
            found = flat.to(self.dtype)
        return found.reshape(self.numbers.shape)
