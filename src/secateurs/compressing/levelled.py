"""From any numbering of values to levels: zero at 0, signs as those of the values, and further from zero where these are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateurs.coding import Levels


def levelled(places: Tensor, values: Tensor, shape: Sequence[int], zero: int | None = None) -> Levels:
    """The levels of numbers whose places among the values of their rows are known: ``(rows, numbers)`` and ``(rows, values)``.

    Values that no number has are left out, equal ones are one level, and a value of 0.0 is level 0. ``zero`` is the place that stands for
    zero whatever its value.

    >>> levelled(torch.tensor([[0, 1, 2, 0]]), torch.tensor([[4.0, -1.0, 4.0, 7.0]]), (2, 2)).numbers
    tensor([[ 1, -1],
            [ 1,  1]], dtype=torch.int32)
    """
    places = places.long()
    used = torch.zeros_like(values, dtype=torch.bool).scatter_(1, places, True)
    if zero is not None:
        values = values.clone()
        values[:, zero] = 0
    used &= values != 0
    ascending, order = torch.where(used, values, torch.inf).sort(1)
    there = used.gather(1, order)
    first = there.clone()
    first[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    negative = first & (ascending < 0)
    below = negative.sum(1, keepdim=True)
    rank = first.cumsum(1) - 1 - below  # from −below to −1, and then from 0
    level = torch.where(there, rank + (ascending > 0).long(), 0)
    level_of = torch.zeros_like(level).scatter_(1, order, level)
    lowest, highest = int(level.min()) if level.numel() else 0, int(level.max()) if level.numel() else 0
    table = values.new_zeros(len(values), highest - lowest + 1)
    row, column = first.nonzero(as_tuple=True)
    table[row, level[row, column] - lowest] = ascending[row, column]
    numbers = level_of.gather(1, places).to(torch.int32).reshape(tuple(shape))
    return Levels(numbers, table, lowest, dtype=values.dtype)
