"""Levels that are there already: a tensor of few values, or of multiples of a scale, told from its numbers alone and to the bit."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor

from secateurs.coding.bits import BITS_OF, same
from secateurs.coding.levels import Levels

_MOST_VALUES = 1 << 14
"""More values than these in a table are no levels: the table would be most of the file."""

_PER_RUN = 256
_SMALLEST_LEVELS = 8
"""The number closest to zero may be up to so many scales away from it."""

_LARGEST_LEVEL = 1 << 15
_ULPS = 3


def levels_in(tensor: Tensor) -> Levels | None:
    """The levels of a tensor, where it has few enough values for that: whole numbers; a table for all, or for each channel; a scale.

    What is given back has exactly the tensor's bits. ``None`` where there is no such structure, and for NaN and infinities.

    >>> levels_in(torch.tensor([[0.5, 0.0, -1.3], [2.0, 0.5, 0.0]] * 4)).table
    tensor([[-1.3000,  0.0000,  0.5000,  2.0000]])
    >>> levels_in(torch.tensor([0.5, 0.0, -1.5, 0.0])).scale
    tensor([0.5000])
    >>> levels_in(torch.randn(100)) is None
    True
    """
    if not tensor.numel():
        return None
    if not tensor.is_floating_point():
        return _whole_numbers(tensor)
    if tensor.dtype not in BITS_OF or tensor.element_size() > 4 or not bool(torch.isfinite(tensor).all()):
        return None
    values = _few_values(tensor)
    if values is not None and (even := _even(tensor, values)) is not None:
        return even
    if values is None and _by_scale(tensor.reshape(-1)[:4096], 1) is not None and (one := _by_scale(tensor, 1)) is not None:
        return one
    channels = len(tensor) if tensor.ndim > 1 else 1
    found = [] if values is None else [_by_table(tensor, values)]
    if channels > 1 and _may_have_channels(tensor):
        found += [each for each in (_by_scale(tensor, channels), _by_tables(tensor, channels)) if each is not None]
    return min(found, key=_bits, default=None)


def _bits(levels: Levels) -> float:
    """About how many bits levels take, with what they stand for."""
    values = 22 * levels.table.numel() if levels.table is not None else 32 * levels.runs
    return entropy(levels.numbers) + values


def _may_have_channels(tensor: Tensor) -> bool:
    """Whether a few channels are of levels of their own: most tensors are not, which need not be sorted to know it."""
    channels = len(tensor)
    few = tensor[:: max(1, channels // 4)][:4].contiguous()
    return _by_scale(few, len(few)) is not None or _by_tables(few, len(few)) is not None


def _even(tensor: Tensor, values: Tensor) -> Levels | None:
    """Multiples of one scale: shown by the values that come, and true of the tensor then."""
    of_values = _by_scale(values, 1)
    if of_values is None or of_values.scale is None or _minus_zero(values):
        return None
    numbers = (tensor.double() / of_values.scale.double()).round().to(torch.int32)
    return Levels(numbers, scale=of_values.scale, dtype=tensor.dtype)


def _minus_zero(values: Tensor) -> bool:
    return bool(((values == 0) & torch.signbit(values)).any())


def _whole_numbers(tensor: Tensor) -> Levels | None:
    if tensor.dtype.is_complex or tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # for which torch has no arithmetic
        return None
    if int(tensor.min()) < -(1 << 24) or int(tensor.max()) > 1 << 24:
        return None
    return Levels(tensor.to(torch.int32), dtype=tensor.dtype)


def _few_values(tensor: Tensor) -> Tensor | None:
    """The different values, ascending and with minus zero before zero, or nothing where they are too many."""
    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // 65536)]
    if len(sample) > 4096 and len(torch.unique(sample.view(BITS_OF[tensor.dtype]))) > min(_MOST_VALUES, len(sample) // 2):
        return None
    found = torch.unique(flat.view(BITS_OF[tensor.dtype]))
    return _ascending(found.view(tensor.dtype)) if len(found) <= min(_MOST_VALUES, max(2, tensor.numel() // 2)) else None


def _ascending(values: Tensor) -> Tensor:
    return values[torch.argsort(order_of(values))]


def order_of(values: Tensor) -> Tensor:
    """Whole numbers in the order of floats, -0.0 before 0.0, which is 0."""
    bits = values.view(BITS_OF[values.dtype]).long()
    largest = torch.iinfo(BITS_OF[values.dtype]).max
    return torch.where(bits < 0, -(bits & largest) - 1, bits)


def value_of(order: Tensor, dtype: torch.dtype) -> Tensor:
    """The way back from `order_of`."""
    bits = torch.where(order < 0, (-order - 1) | torch.iinfo(BITS_OF[dtype]).min, order)
    return bits.to(BITS_OF[dtype]).view(dtype)


def _by_table(tensor: Tensor, values: Tensor) -> Levels:
    order = order_of(values)
    if not bool((order == 0).any()):
        values, order = _ascending(torch.cat([values, values.new_zeros(1)])), torch.cat([order, order.new_zeros(1)]).sort().values
    below = int((order < 0).sum())
    numbers = torch.searchsorted(order, order_of(tensor.reshape(-1))) - below
    return Levels(numbers.to(torch.int32).reshape(tensor.shape), values[None], -below, dtype=tensor.dtype)


def _by_tables(tensor: Tensor, channels: int) -> Levels | None:
    """A table for each channel, where its values are few beside its numbers."""
    order = order_of(tensor.reshape(channels, -1))
    ranked = order.sort(dim=1).values
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    first &= ranked != 0  # it is in every table
    below, above = (first & (ranked < 0)).sum(1), (first & (ranked > 0)).sum(1)
    most = int(below.max()), int(above.max())
    if sum(most) + 1 > min(_PER_RUN, order.shape[1] // 4):
        return None
    table = order.new_zeros(channels, sum(most) + 1)
    row, column = first.nonzero(as_tuple=True)
    place = first.cumsum(1)[row, column] - 1 - below[row] + (ranked[row, column] > 0).long() + most[0]
    table[row, place] = ranked[row, column]
    # What a row does not use lies outside of what it does, so that the row ascends.
    filled = table.clone()
    filled[:, : most[0]] = torch.where(table[:, : most[0]] == 0, torch.iinfo(torch.int64).min, table[:, : most[0]])
    filled[:, most[0] + 1 :] = torch.where(table[:, most[0] + 1 :] == 0, torch.iinfo(torch.int64).max, table[:, most[0] + 1 :])
    numbers = torch.searchsorted(filled, order.contiguous()) - most[0]
    values = value_of(table, tensor.dtype)
    return Levels(numbers.to(torch.int32).reshape(tensor.shape), values, -most[0], dtype=tensor.dtype)


def _by_scale(tensor: Tensor, runs: int) -> Levels | None:
    """Multiples of a scale for each run, where they are exactly that in float32, rounded to the tensor's dtype."""
    flat = tensor.reshape(runs, -1).double()
    size = flat.abs()
    largest = size.amax(1)
    least = torch.where(size > 0, size, torch.inf).amin(1)
    least = torch.where(largest > 0, least, 1.0)
    scale = torch.zeros(runs, dtype=torch.float32)
    for times in range(1, _SMALLEST_LEVELS + 1):
        open_ = scale == 0
        if not bool(open_.any()):
            break
        scale[open_] = _exact_scale(flat[open_], largest[open_], least[open_] / times, tensor.dtype)
    if bool((scale == 0).any()):
        return None
    numbers = (flat / scale.double()[:, None]).round().to(torch.int32)
    found = Levels(numbers.reshape(tensor.shape), scale=scale, dtype=tensor.dtype)
    return found if same(found.values(), tensor) else None


def _exact_scale(flat: Tensor, largest: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale for each run of which all its numbers are multiples to the bit, or 0: about `step`, which the largest number makes exact."""
    runs = len(flat)
    top = (largest / step).round()
    numbers = (flat / (largest / top)[:, None]).round()
    near = (top <= _LARGEST_LEVEL) & ((flat - numbers * (largest / top)[:, None]).abs().amax(1) <= 0.02 * step)
    found = torch.zeros(runs, dtype=torch.float32)
    if not bool(near.any()):
        return found
    about = (largest / top).float()
    bits = torch.where(about > 0, about, 1.0).view(torch.int32)
    exact = flat[near].to(dtype)
    for ulp in sorted(range(-_ULPS, _ULPS + 1), key=abs):
        scale = (bits + ulp).view(torch.float32)
        values = (numbers[near].float() * scale[near][:, None]).to(dtype)
        fits = torch.zeros(runs, dtype=torch.bool)
        fits[near] = (values == exact).all(1)
        found = torch.where((found == 0) & fits, scale, found)
    return found


def entropy(numbers: Tensor) -> float:
    """Bits that whole numbers need together, each on its own: n times the entropy of how often each comes.

    >>> entropy(torch.tensor([0, 0, 1, 1]))
    4.0
    """
    count = torch.unique(numbers, return_counts=True)[1].double()
    total = float(count.sum())
    return float(total * log2(total) - (count * count.log2()).sum()) if total else 0.0
