"""SpArch (2002.08947): sparse times sparse by outer products, merged as they come."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.given import COUNT, require
from secateurs.types import KindError


@dataclass(frozen=True)
class OuterProducts:
    """Bytes that a product of two sparse matrices moves from and to DRAM.

    A column of the left matrix times the rows of the right one that its entries name is a partial product; all are merged, ``ways`` at a
    time, and what is merged but not the result yet is written to DRAM and read again. ``condensed``: all entries of a row of the left
    matrix move to its beginning, so that there are as few columns as the longest row has entries, and as few partial products. The
    smallest are merged first (a Huffman tree of as many ways). An entry is an index and a value, ``entry_bytes`` together. Rows of the
    right matrix are read for each entry that names them (``reread``: none of them is still on the chip), else each once.

    The result of a merge is counted exactly: what partial products have at the same place is one entry afterwards. SpArch reports DRAM
    accesses 2.8 times fewer than OuterSPACE's, by condensing, the tree and prefetching together.

    >>> sparse = (torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    >>> few, many = (OuterProducts(ways=8, condensed=condensed).dram_bytes(sparse, sparse) for condensed in (True, False))
    >>> few < many
    True
    """

    ways: int = 64
    condensed: bool = True
    entry_bytes: int = 16
    reread: bool = True

    def __post_init__(self) -> None:
        require("OuterProducts", "ways", self.ways, COUNT)
        if self.ways < 2:
            raise KindError(f"OuterProducts: ways={self.ways}, but merging takes two at least")

    def dram_bytes(self, left: Tensor, right: Tensor) -> int:
        """For matrices (rows, inner) and (inner, columns)."""
        held, other = left != 0, right != 0
        named = held.sum(0) if self.reread else held.any(0).long()
        read = int(held.sum()) + int((named * other.sum(1)).sum())
        return self.entry_bytes * (read + self._merged(self._partial(held, other)))

    def partial_products(self, left: Tensor) -> int:
        """How many there are."""
        held = left != 0
        return int(held.sum(1).max() if self.condensed else held.any(0).sum())

    def _partial(self, held: Tensor, other: Tensor) -> list[Tensor]:
        """Where each partial product has entries."""
        if not self.condensed:
            return [held[:, k, None] & other[k] for k in range(held.shape[1]) if held[:, k].any()]
        order = torch.argsort(held.int(), dim=1, descending=True, stable=True)
        longest = int(held.sum(1).max())
        return [held.gather(1, order[:, k : k + 1]) & other[order[:, k]] for k in range(longest)]

    def _merged(self, parts: list[Tensor]) -> int:
        """Entries written and read while merging, the result's included; a first merge of fewer lets all later ones be full."""
        queue = [(int(part.sum()), turn, part) for turn, part in enumerate(parts)]
        heapq.heapify(queue)
        moved, turn = 0, len(queue)
        spare = (len(queue) - 1) % (self.ways - 1)
        take = spare + 1 if spare and len(queue) > self.ways else self.ways
        fresh = {turn for _, turn, _ in queue}
        while queue:
            taken = [heapq.heappop(queue) for _ in range(min(take, len(queue)))]
            moved += sum(
                size for size, name, _ in taken if name not in fresh
            )  # partial products come from the multipliers, not from DRAM
            union = torch.stack([part for *_, part in taken]).any(0)
            moved += int(union.sum())
            take = self.ways
            if queue:
                heapq.heappush(queue, (int(union.sum()), turn, union))
                turn += 1
        return moved
