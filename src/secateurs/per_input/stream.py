"""The tokens of one pass: which are still there, what those that went were last, and what a block is given of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.types import SecateursError

MASKED = -9999.0
"""What is added to the scores of places that do not count is below this."""


class Stream:
    """The tokens ``(n, places, width)`` of a pass through a stack of blocks.

    ``real`` ``(n, places)`` are those that are no padding, ``left`` those that no block has taken out yet; ``at`` ``(n, here)`` is
    where the tokens that are in work were in the beginning, ``None`` while all are, and ``counts`` ``(n, here)`` which of these are
    no padding. ``received`` and ``heads`` add up what attentions have given to tokens in work, and what came out of heads.
    """

    def __init__(self, hidden: Tensor, mask: Tensor | None) -> None:
        n, places = hidden.shape[:2]
        self.n, self.places = n, places
        self.real = hidden.new_ones((n, places), dtype=torch.bool) if mask is None else real_in(mask, n, places)
        self.counts, self.lengths = self.real, self.real.sum(1)
        self.at: Tensor | None = None
        self.last: Tensor | None = None
        self.received = torch.zeros(n, places, dtype=torch.float32, device=hidden.device)
        self.heads: Tensor | None = None

    @property
    def left(self) -> Tensor:
        """Which tokens are still in work ``(n, places)``."""
        return self.counts if self.at is None else torch.zeros_like(self.real).scatter(1, self.at, self.counts)

    def held(self, positions: tuple[int, ...]) -> Tensor:
        """Of the tokens in work, those at some positions of their sequence, counted from its first token or (−1) its last."""
        number = self.real.cumsum(1)
        wanted = torch.zeros_like(self.real)
        for each in positions:
            place = each + 1 if each >= 0 else self.lengths[:, None] + each + 1
            wanted |= self.real & (number == place)
        return wanted if self.at is None else wanted.gather(1, self.at)

    def keep(self, hidden: Tensor, stays: Tensor) -> Tensor:
        """Gather the tokens that stay; the others' numbers are kept for the end.

        Where sequences keep different numbers, the shorter ones are filled up with what does not count.
        """
        stays = stays & self.counts
        if torch.equal(stays, self.counts):
            return hidden
        here = max(1, int(stays.sum(1).max()))
        order = stays.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :here]
        at = torch.arange(self.places, device=hidden.device).expand(self.n, -1) if self.at is None else self.at
        self.last = self._merged(hidden)
        self.at, self.counts, self.received = at.gather(1, order), stays.gather(1, order), self.received.gather(1, order)
        return hidden.gather(1, _wide(order, hidden))

    def _merged(self, hidden: Tensor) -> Tensor:
        """All places: those in work as they are now, the others as they were last."""
        if self.last is None or self.at is None:
            return hidden
        at = _wide(self.at, hidden)
        return self.last.scatter(1, at, torch.where(self.counts[..., None], hidden, self.last.gather(1, at)))

    def whole(self, hidden: Tensor, gone: str) -> Tensor:
        """All places again: those that went as they were last, or zero."""
        hidden = self._merged(hidden)
        return hidden.masked_fill((self.real & ~self.left)[..., None], 0) if gone == "zero" else hidden

    def given(self, name: str, value: Any, like: Tensor) -> Any:
        """An argument of a block, for the tokens in work alone; raises `SecateursError` for one that cannot follow them."""
        if name == "past_key_values" and value is not None:
            raise SecateursError(
                "dropping tokens: the model keeps keys and values for later tokens (past_key_values), and of dropped ones there are "
                "none: call it with use_cache=False, for a whole text at once"
            )
        if name == "attention_mask":
            return value if self.at is None else self._mask(value, like)
        if name in ("position_embeddings", "position_ids", "cache_position"):
            return value if self.at is None else self._by_place(name, value)
        if isinstance(value, Tensor) and any(size == self.places > 1 for size in value.shape[1:]) and self.at is not None:
            raise SecateursError(
                f"dropping tokens: a block is given {name}, a tensor of shape {tuple(value.shape)}, of which it is not known what belongs "
                "to which token; only attention_mask, position_ids and position_embeddings can follow tokens that are dropped"
            )
        return value

    def _mask(self, mask: Any, like: Tensor) -> Any:
        """Keys, and queries where the mask tells them apart, without what fills up."""
        at, counts = self.at, self.counts
        assert at is not None
        if mask is None:
            if bool(counts.all()):
                return None
            return torch.zeros_like(counts, dtype=like.dtype).masked_fill(~counts, torch.finfo(like.dtype).min)[:, None, None]
        none = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
        if mask.ndim == 2:
            return mask.expand(self.n, -1).gather(1, at).masked_fill(~counts, none)
        mask = mask.expand(self.n, *mask.shape[1:])
        if mask.shape[2] == self.places:
            mask = mask.gather(2, at[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        mask = mask.gather(3, at[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
        return mask.masked_fill(~counts[:, None, None], none)

    def _by_place(self, name: str, value: Any) -> Any:
        assert self.at is not None
        if isinstance(value, (tuple, list)):
            return tuple(self._by_place(name, each) for each in value)
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 1:
            raise SecateursError(
                f"dropping tokens: {name} is one for all sequences, which keep other tokens: give it for each, (n, places)"
            )
        value = value.expand(self.n, *value.shape[1:])
        return value.gather(1, self.at if value.ndim == 2 else self.at[..., None].expand(-1, -1, *value.shape[2:]))


def real_in(mask: Tensor, n: int, places: int) -> Tensor:
    """Which tokens ``(n, places)`` a mask of attention leaves: those that may look at themselves.

    Raises `SecateursError` where its shape is none of ``(n, places)``, ``(n, 1, 1 or places, places)``.

    >>> real_in(torch.tensor([[1, 1, 0]]), 1, 3), real_in(torch.tensor([0.0, -1e30]).view(1, 1, 1, 2), 1, 2)
    (tensor([[ True,  True, False]]), tensor([[ True, False]]))
    """
    if mask.ndim == 2 and mask.shape[1] == places:
        return (mask != 0).expand(n, -1) if not mask.is_floating_point() else (mask > MASKED).expand(n, -1)
    if mask.ndim != 4 or mask.shape[3] != places or mask.shape[2] not in (1, places):
        raise SecateursError(
            f"dropping tokens: attention_mask is {tuple(mask.shape)} within the model, but must be ({n}, 1, 1, {places}) or "
            f"({n}, 1, {places}, {places}) for {n} sequences of {places} tokens"
        )
    own = mask[:, 0].diagonal(dim1=1, dim2=2) if mask.shape[2] == places else mask[:, 0, 0]
    return (own if mask.dtype == torch.bool else own > MASKED).expand(n, -1)


def _wide(at: Tensor, hidden: Tensor) -> Tensor:
    return at[..., None].expand(-1, -1, hidden.shape[-1])


def for_block(stream: Stream, hidden: Tensor, arguments: Mapping[str, Any], others: str | None) -> dict[str, Any]:
    """The arguments of a block by name, those in its ``**kwargs`` (called ``others``) as well."""
    found = {
        name: value if value is hidden else stream.given(name, value, hidden) for name, value in arguments.items() if name != others
    }
    if others is not None and others in arguments:
        found[others] = {name: stream.given(name, value, hidden) for name, value in arguments[others].items()}
    return found
