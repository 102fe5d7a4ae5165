"""What a block is called with: kept once for all batches where it is the same, with the stream apart from the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.nested import Value, changed, leaves, tensors_in
from secateurs.types import SecateursError

_STREAM = Value(())
_SIMPLE = (
    Tensor,
    Value,
    nn.Module,
    torch.Generator,
    str,
    bytes,
    bool,
    int,
    float,
    complex,
    type(None),
    type,
    torch.dtype,
    torch.device,
)
_REMEMBERED = 8


class Store:
    """Tensors that blocks are given beside the stream; those that are equal, as masks of windows of one length, are kept once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """The same tensor, or one that is equal to it and kept already."""
        tensor = tensor.detach()
        alike = self._kept.setdefault((tensor.shape, tensor.dtype, tensor.device), [])
        found = next((each for each in alike if torch.equal(each, tensor)), None)
        if found is None:
            found = tensor.clone()
            alike.append(found)
            del alike[:-_REMEMBERED]
        return found


class Arguments:
    """The arguments of one block for one batch, without the stream.

    What is no tensor, number or module (a cache, say) is copied anew for each call, so that every call finds it as the first one did.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], stream: Tensor, store: Store, copies: dict[int, Any]
    ) -> None:
        self._nest = _copied((args, dict(kwargs)), copies)
        self._nest = changed(self._nest, lambda tensor: _STREAM if tensor is stream else store(tensor))
        self._opaque = any(not isinstance(leaf, _SIMPLE) and not callable(leaf) for _, leaf in leaves(self._nest, objects=False))

    def with_stream(self, stream: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for one call, which may write into all of them."""
        nest = _copied(self._nest, {}) if self._opaque else self._nest
        mine = stream.clone()
        args, kwargs = changed(nest, lambda tensor: mine if tensor is _STREAM else tensor.clone())
        return args, kwargs


def _copied(nest: Any, copies: dict[int, Any]) -> Any:
    """The same tensors and modules in copies of all that holds them; the same ``copies`` for the same objects."""
    for _, leaf in leaves(nest, objects=False):
        if isinstance(leaf, (Tensor, Value, nn.Module, torch.Generator)):
            copies[id(leaf)] = leaf
    try:
        return copy.deepcopy(nest, copies)
    except Exception as error:
        kinds = sorted({type(leaf).__name__ for _, leaf in leaves(nest, objects=False) if not isinstance(leaf, _SIMPLE)})
        raise SecateursError(
            f"a block is called with {', '.join(kinds)}, which cannot be copied ({type(error).__name__}: {error}), so that it cannot be "
            "run by itself; prune without blocks (walk=in_order())"
        ) from error


class BlockCall:
    """One batch of a block: its arguments, and the stream as it is now."""

    def __init__(self, arguments: Arguments, stream: Tensor) -> None:
        self.arguments, self.stream = arguments, stream


class OneBlock(nn.Module):
    """A block as a model of its own, whose inputs are `BlockCall`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, call: BlockCall) -> Any:
        args, kwargs = call.arguments.with_stream(call.stream)
        return self.block(*args, **kwargs)


def stream_in(answer: Any) -> Tensor:
    """The stream that a block gives: the first tensor."""
    return next(tensors_in(answer))
