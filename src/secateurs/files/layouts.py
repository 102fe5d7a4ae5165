"""How a parameter and its mask lie in a file: one table of layouts, each with the way there and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from secateurs.masks.masks import INTEGERS
from secateurs.types import FileError, SecateursError

BITS = "::mask"
"""What follows a weight's name in the name of its mask."""

_DIMENSIONS = 64
"""More than a tensor can have in torch."""


@dataclass(frozen=True)
class Lying:
    """What a file has of a parameter with a mask: its tensor, the mask's bits if they are there, and what the document says of it."""

    name: str
    value: Tensor
    bits: Tensor | None
    entry: Any


@dataclass(frozen=True)
class Read:
    """A tensor of a model's state, and its mask if it has one, to be made once they are asked for: a file may claim any size."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: Callable[[], Tensor]
    mask: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Layout:
    """A way to store a parameter with its mask.

    ``fits``: whether it can be used (the values, the mask, whether a sparse file is asked for). ``encode``: the tensors by what follows
    the parameter's name in theirs, and what the document says. ``reads``: whether an entry of a document means this layout; ``decode``
    gives nothing where the tensors are not those of it.
    """

    fits: Callable[[Tensor, Tensor, bool], bool]
    encode: Callable[[str, Tensor, Tensor], tuple[dict[str, Tensor], dict[str, Any]]]
    reads: Callable[[Mapping[str, Any]], bool]
    decode: Callable[[Lying], Read | None]


def encoded(name: str, value: Tensor, mask: Tensor | None, sparse: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that hold one parameter, and what the document says of its mask: nothing where there is none.

    >>> encoded("w", torch.tensor([0.0, 5.0]), torch.tensor([False, True]), sparse=False)
    ({'w': tensor([0., 5.])}, {'in': 'zeros'})
    """
    if mask is None:
        return {name: value}, {}
    layout = next(layout for layout in LAYOUTS.values() if layout.fits(value, mask, sparse))
    parts, entry = layout.encode(name, value, mask)
    return {name + suffix: tensor for suffix, tensor in parts.items()}, entry


def plain(value: Tensor) -> Read:
    """A tensor that has no mask."""
    return Read(tuple(value.shape), value.dtype, lambda: value)


def decoded(lying: Lying) -> Read:
    """The way back. Raises `FileError` where the document says nothing that is known, or the tensors are not as it says."""
    entry = lying.entry if isinstance(lying.entry, Mapping) else {}
    layout = next((layout for layout in LAYOUTS.values() if layout.reads(entry)), None)
    read = None if layout is None else layout.decode(lying)
    if read is None:
        raise FileError(
            f"{lying.name}: its mask is stored in an unknown way, or its bits are missing or of the wrong length; the file is damaged"
        )
    return read


# ---------------------------------------------------------------- only what stays, and a bit for each weight


def entry_of_staying(shape: Sequence[int]) -> dict[str, Any]:
    """What the document says of a parameter of which only the weights lie there that stay."""
    return {"in": "bits", "shape": list(shape)}


def _encode_staying(name: str, value: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    there = _nonzero(value)
    lost = int(torch.count_nonzero((_whole_numbers(value) != 0 if there is None else there) & ~mask))
    if lost:
        raise SecateursError(
            f"{name}: {lost} of its masked weights are not zero, and sparse=True would drop them, so that the loaded model is another "
            "one: call masks.apply_() first, or masks.attach(optimizer), after whose steps they stay zero; sparse=False keeps them"
        )
    staying = _whole_numbers(value)[mask].view(value.dtype)
    return {"": staying, BITS: _to_bits(mask)}, entry_of_staying(value.shape)


def _decode_staying(lying: Lying) -> Read | None:
    shape, value = lying.entry["shape"], lying.value
    if not isinstance(shape, list) or value.ndim != 1 or not _counts(shape, lying.bits):
        return None

    def mask() -> Tensor:
        found = _from_bits(lying, shape)
        if value.numel() != int(found.sum()):
            raise FileError(f"{lying.name}: {value.numel()} values for {int(found.sum())} kept weights; the file is damaged")
        return found

    def whole() -> Tensor:
        """+0.0 where there is nothing."""
        numbers = _whole_numbers(value)
        return torch.zeros(shape, dtype=numbers.dtype).masked_scatter_(mask(), numbers).view(value.dtype)

    return Read(tuple(shape), value.dtype, whole, mask)


# ---------------------------------------------------------------- the whole tensor, whose zeros are the mask


def _encode_zeros(name: str, value: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"": value}, {"in": "zeros"}


def _are_mask(value: Tensor, mask: Tensor) -> bool:
    there = _nonzero(value)
    return there is not None and torch.equal(there, mask)


def _decode_zeros(lying: Lying) -> Read:
    def mask() -> Tensor:
        there = _nonzero(lying.value)
        if there is None:
            raise FileError(f"{lying.name} is {lying.value.dtype}, whose zeros tell no mask; the file is damaged")
        return there

    return replace(plain(lying.value), mask=mask)


# ---------------------------------------------------------------- the whole tensor, and a bit for each weight


def _encode_bits(name: str, value: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"": value, BITS: _to_bits(mask)}, {"in": "bits"}


def _decode_bits(lying: Lying) -> Read | None:
    if not _counts(lying.value.shape, lying.bits):
        return None
    mask = partial(_from_bits, lying, lying.value.shape)

    def whole() -> Tensor:
        mask()  # refuses what is damaged
        return lying.value

    return replace(plain(lying.value), whole=whole, mask=mask)


LAYOUTS: dict[str, Layout] = {
    "staying": Layout(
        lambda value, mask, sparse: sparse,
        _encode_staying,
        lambda entry: entry.get("in") == "bits" and "shape" in entry,
        _decode_staying,
    ),
    "zeros": Layout(
        lambda value, mask, sparse: _are_mask(value, mask),
        _encode_zeros,
        lambda entry: entry.get("in") == "zeros",
        _decode_zeros,
    ),
    "bits": Layout(
        lambda value, mask, sparse: True,
        _encode_bits,
        lambda entry: entry.get("in") == "bits",
        _decode_bits,
    ),
}
"""Layouts of a parameter that has a mask; the first that fits is written, the first that reads an entry is read."""


# ---------------------------------------------------------------- bits and bytes


def _whole_numbers(tensor: Tensor) -> Tensor:
    """The bits of a tensor as whole numbers of the same size: torch cannot choose from, or scatter, every kind of 8-bit floats."""
    return tensor.view(INTEGERS[tensor.element_size()]) if tensor.element_size() in INTEGERS else tensor


def _nonzero(tensor: Tensor) -> Tensor | None:
    """Where a tensor is not zero, or ``None`` where torch cannot tell (4-bit floats)."""
    try:
        return tensor != 0
    except RuntimeError:
        return None


def _to_bits(mask: Tensor) -> Tensor:
    return torch.from_numpy(numpy.packbits(mask.numpy().reshape(-1)))


def _from_bits(lying: Lying, shape: Sequence[int]) -> Tensor:
    assert lying.bits is not None
    count, unpacked = torch.Size(shape).numel(), numpy.unpackbits(lying.bits.numpy())
    if unpacked[count:].any():
        raise FileError(f"{lying.name}: the bits of its mask go on after its end; the file is damaged")
    return torch.from_numpy(unpacked[:count].astype(bool)).view(tuple(shape))


def _counts(shape: Sequence[Any], bits: Tensor | None) -> bool:
    """Whether there are as many bits as a tensor of a shape has numbers; no number of the shape is used before it is bounded."""
    if bits is None or bits.dtype != torch.uint8 or bits.ndim != 1 or len(shape) > _DIMENSIONS:
        return False
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**63 or count * max(size, 1) >= 2**63:
            return False
        count *= max(size, 1)
    return (0 if 0 in shape else count + 7) // 8 == bits.numel()
