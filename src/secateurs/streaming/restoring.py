"""Blocks reconstructed as soon as they are pruned: the dense model's stream beside the pruned one's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from torch import nn

from secateurs.blockwise import Passage
from secateurs.graph import Half, Trace, halves_of
from secateurs.recover import BlockTraining


class Restoring:
    """What each block is to give again, and how it learns that: the parts of each block, trained one after the other.

    `begin` is told of each block while it holds its dense weights, in order; `restore_` trains it; `advance` leads on to the next.
    """

    def __init__(self, passage: Passage, trace: Trace, steps: int, lr: float) -> None:
        self._ours, self._dense = passage, copy.copy(passage)
        self._dense.streams, self._dense.blocks = list(passage.streams), list(passage.blocks)
        self._parts: dict[str, list[Half]] = {name: halves_of(trace, name) for name in passage.names}
        self._steps, self._lr = steps, lr

    def begin(self, name: str, block: nn.Module) -> None:
        """Keep a block as it is."""
        self._dense.blocks[self._dense.names.index(name)] = copy.deepcopy(block)

    def restore_(self, name: str, pruned: Iterable[str], parameters: Mapping[str, nn.Parameter]) -> None:
        """Train a block's parts; of the parameters that were pruned what is zero stays so."""
        masks = {each: parameters[each].detach() != 0 for each in pruned}
        (ours, calls), (dense, theirs) = self._ours.at(name), self._dense.at(name)
        for half in self._parts[name]:
            training = BlockTraining(ours.block, dense.block, name, half, [call for call, _ in calls], [call for call, _ in theirs])
            training.part_(masks, self._steps, self._lr, seed=0)

    def advance(self, name: str) -> None:
        """Run the dense block, which is then no more."""
        self._dense.advance()
        self._dense.blocks[self._dense.names.index(name)] = nn.Identity()
