"""Numbers that were recorded elsewhere, as in training, seen as a statistic of the weights that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from secateurs.types import Counted, SecateursError, Seen, Site, Statistic


def recorded(
    name: str, numbers: Mapping[str, Tensor], members: Counted = "producers", of: Literal["weights", "units"] = "weights"
) -> Statistic:
    """Numbers by parameter, each tensor of the parameter's shape, or by site, one a unit, that need no more data: what `observe` gives is
    what was recorded.

    Raises `SecateursError`, when it is used, for a weight or site of which nothing was recorded, or in another shape.

    >>> import torch
    >>> recorded("movement", {"weight": torch.ones(2, 3)}).needs_data
    False
    """
    return Statistic(name, _Start(name, numbers), "record", of, members)


@dataclass(frozen=True)
class _Start:
    name: str
    numbers: Mapping[str, Tensor]

    def __call__(self, watched: Any) -> _Recorded:
        site = isinstance(watched, Site)
        name = watched.name if site else watched.parameter
        found, shape = self.numbers.get(name), (watched.units,) if site else tuple(watched.weight.shape)
        if found is None or tuple(found.shape) != shape:
            what = "nothing" if found is None else f"a tensor of {tuple(found.shape)}, not of {shape},"
            raise SecateursError(
                f"{name}: {what} was recorded of it for {self.name}: record it with the same model, or skip it with skip=[...]"
            )
        found = found.to((watched.members[0] if site else watched).weight.device)
        return _Recorded(found.float().reshape(watched.contest_count, -1) if site else watched.canonical(found).float())


@dataclass
class _Recorded:
    numbers: Tensor
    sums: ClassVar = ()

    def add(self, seen: Seen) -> None:
        """Nothing is added any more."""

    def result(self) -> Tensor:
        return self.numbers
