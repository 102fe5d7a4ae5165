"""Numbers that were recorded elsewhere, as in training, seen as a statistic of the weights that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateurs.types import Counted, Member, SecateursError, Seen, Statistic


def recorded(name: str, numbers: Mapping[str, Tensor], members: Counted = "producers") -> Statistic:
    """Numbers by parameter, each tensor of the parameter's shape, that need no more data: what `observe` gives is what was recorded.

    Raises `SecateursError`, when it is used, for a weight of which nothing was recorded, or in another shape.

    >>> import torch
    >>> recorded("movement", {"weight": torch.ones(2, 3)}).needs_data
    False
    """
    return Statistic(name, _Start(name, numbers), "record", members=members)


@dataclass(frozen=True)
class _Start:
    name: str
    numbers: Mapping[str, Tensor]

    def __call__(self, member: Member) -> _Recorded:
        found, shape = self.numbers.get(member.parameter), tuple(member.weight.shape)
        if found is None or tuple(found.shape) != shape:
            what = "nothing" if found is None else f"a tensor of {tuple(found.shape)}, not of {shape},"
            raise SecateursError(
                f"{member.parameter}: {what} was recorded of it for {self.name}: record it with the same model, or skip it with "
                "skip=[...]"
            )
        return _Recorded(member.canonical(found.to(member.weight.device)).float())


@dataclass
class _Recorded:
    numbers: Tensor
    sums: ClassVar = ()

    def add(self, seen: Seen) -> None:
        """Nothing is added any more."""

    def result(self) -> Tensor:
        return self.numbers
