"""Other inputs than the example: fresh numbers of its kind, another batch size, another size of the images or sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import changed, tensors_in


def other_inputs(example: Any) -> list[list[Any]]:
    """Other ways to call a model, the most telling first: one that it accepts of the first list will do, else one of each other list.

    Numbers are drawn anew, in the range of the example's. The first list has another batch size and another size of whatever seems to be an
    image or a sequence; then come such sizes alone, and another batch alone (or, failing that, other numbers alone).

    >>> [[tuple(each.shape) for each in way] for way in other_inputs(torch.randn(1, 3, 8, 8))]
    [[(2, 3, 4, 4), (2, 3, 6, 6), (2, 3, 16, 16), (2, 3, 9, 9)], [(1, 3, 4, 4), ...], [(2, 3, 8, 8), (1, 3, 8, 8)]]
    """
    generator = torch.Generator().manual_seed(1)
    sizes = list(_other_sizes(example))
    return [
        [_drawn(example, generator, each, batch=True) for each in sizes],
        [_drawn(example, generator, each) for each in sizes],
        [_drawn(example, generator, batch=True), _drawn(example, generator)],
    ]


def _drawn(example: Any, generator: torch.Generator, sizes: dict[tuple[int, int], int] | None = None, batch: bool = False) -> Any:
    """The example with fresh numbers: ``sizes`` replaces sizes of dimensions counted from 1 on, by the tensor's number of dimensions."""
    first = next((tensor.shape[0] for tensor in tensors_in(example) if tensor.ndim), 0)

    def change(tensor: Tensor) -> Tensor:
        shape = [
            (sizes or {}).get((tensor.ndim, size), size) if dim and _may_change(tensor, dim) else size
            for dim, size in enumerate(tensor.shape)
        ]
        if batch and shape and shape[0] == first:
            shape[0] += 1
        return _numbers(tensor, shape, generator)

    return changed(example, change)


def _numbers(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Numbers of the kind that a tensor has: whole ones and those of unlike size are picked from it, others are drawn from its range."""
    if not tensor.numel():
        return tensor.new_zeros(shape)
    values = tensor.detach().flatten()
    picked = values[torch.randint(len(values), shape, generator=generator).to(values.device)] if shape else tensor
    if not tensor.is_floating_point() or not bool(values.isfinite().all()):
        return picked
    numbers = values.double()
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return torch.randn(shape, generator=generator).to(tensor)
    spread = float(numbers.std()) if len(values) > 1 else 1.0
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * spread + float(numbers.mean())
    return drawn.clamp(low, high).to(tensor)


def _may_change(tensor: Tensor, dim: int) -> bool:
    """Whether a dimension may be of space or time: not the channels of an image."""
    return tensor.ndim < 4 or dim > 1 or not tensor.is_floating_point()


def _other_sizes(example: Any) -> Iterator[dict[tuple[int, int], int]]:
    """Maps from (number of dimensions, size) to another size."""
    for sizes in _lengths(list(tensors_in(example))):
        for way in range(4):
            new = {(ndim, size): (size // 2, size - size // 4, 2 * size, size + 1)[way] for ndim, size in sizes}
            if any(size != now for (_, size), now in new.items()) and all(now > 0 for now in new.values()):
                yield new


def _lengths(tensors: list[Tensor]) -> Iterator[set[tuple[int, int]]]:
    """Sets of sizes that may be of space or time, the likeliest first."""
    images = [tensor for tensor in tensors if tensor.ndim > 3 and tensor.is_floating_point()]
    if images:
        yield {(tensor.ndim, size) for tensor in images for size in tensor.shape[2:]}
    words = [tensor for tensor in tensors if tensor.ndim > 1 and not tensor.is_floating_point()]
    series = [tensor for tensor in tensors if tensor.ndim == 3 and tensor.is_floating_point()]
    for dim in (1, 2):
        lengths = {tensor.shape[dim] for tensor in words + series if tensor.ndim > dim}
        if lengths:
            yield {(tensor.ndim, size) for tensor in tensors for size in tensor.shape[1:] if size in lengths}
