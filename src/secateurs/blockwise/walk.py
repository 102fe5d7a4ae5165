"""The walk that goes through a model's blocks: the evidence of each comes from the block alone, run on its own inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateurs.blockwise.passage import Passage
from secateurs.blockwise.stack import Stacks
from secateurs.evidence import observe
from secateurs.graph import Blocks, Trace, blocks_in, trace_of
from secateurs.types import PatternError, SecateursError, Site, Sites, Statistic, Stats, Task

Walk = Callable[[Sites], Sequence[Sites]]


@dataclass(frozen=True)
class _InBlocks:
    blocks: str | tuple[str, ...] | None
    each_layer: bool
    otherwise: Walk | None

    def __call__(self, sites: Sites) -> Sequence[Sites]:
        trace = trace_of(sites.model, sites.example) if sites.structure is None else sites.structure.trace
        try:
            blocks = blocks_in(sites.model, trace, self.blocks)
        except SecateursError:
            if self.otherwise is None or self.blocks is not None:
                raise
            return self.otherwise(sites)
        try:
            return self._parts(sites, trace, blocks)
        except SecateursError as error:
            if self.otherwise is None:
                raise
            warnings.warn(f"the whole model runs for each part, as it cannot be run block by block: {error}", stacklevel=4)
            return self.otherwise(sites)

    def _parts(self, sites: Sites, trace: Trace, blocks: Blocks) -> Sequence[Sites]:
        parts: dict[str, list[int]] = {}
        owners: dict[str, str | None] = {}
        for index, site in enumerate(sites):
            block = _block_of(site, blocks)
            key = site.name if block is None or self.each_layer else f"{block}."  # no site is called so
            parts.setdefault(key, []).append(index)
            owners[key] = block
        found = [replace(sites, found=tuple(sites[index] for index in part)) for part in parts.values()]
        return _Parts(sites, found, list(owners.values()), _stacks(sites, trace, blocks, found, list(owners.values())))


def in_blocks(blocks: str | Iterable[str] | None = None, *, each_layer: bool = False, otherwise: Walk | None = None) -> _InBlocks:
    """One block of a stack after the other, each observed on its own inputs, which those before it, pruned already, have made.

    Every block runs twice in all: to observe it, and once it is pruned to make the inputs of the next, which take their place; so in
    memory are the inputs of one block and its statistics, and no pass of the whole model is needed but for the first block's inputs. The
    masks are those of ``in_order(blocks)``. Sites outside the stacks are observed with the whole model. ``each_layer=True`` observes
    each site of a block with those before it in the block pruned already: one more pass of the block for each. ``blocks`` is as in
    `blocks_of`.

    Raises, when it is used, `SecateursError` where there is no stack, or where what a block is given depends on more of the blocks
    before it than the stream; `PatternError` where units lie in several blocks. In both cases ``otherwise``, another walk, is taken where
    it is given, with a warning unless there simply are no blocks.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> sites = find_sites(nn.Sequential(block(), block()), Element(), torch.zeros(1, 2), only="*")
    >>> [[site.name for site in part] for part in in_blocks()(sites)]
    [['0.0', '0.2'], ['1.0', '1.2']]
    """
    return _InBlocks(blocks if blocks is None or isinstance(blocks, str) else tuple(blocks), each_layer, otherwise)


class _Parts(Sequence[Sites]):
    """The sites block by block, and how they are observed."""

    def __init__(self, sites: Sites, parts: list[Sites], blocks: list[str | None], stacks: Mapping[str, Stacks]) -> None:
        self.sites, self.parts, self.blocks, self.stacks = sites, parts, blocks, stacks

    def __getitem__(self, index: Any) -> Any:
        return self.parts[index]

    def __len__(self) -> int:
        return len(self.parts)

    def observing(self, needs: Sequence[Statistic], task: Task) -> Callable[[int], Stats]:
        """What observes the part of a number, in order."""
        require_in_blocks(needs)
        passage: Passage | None = None

        def observed(number: int) -> Stats:
            nonlocal passage
            block, part = self.blocks[number], self.parts[number]
            if block is None or not needs:
                return observe(self.sites.model, part, needs, task)
            if passage is None or passage.names is not self.stacks[block].names:
                passage = None  # its memory is free before the next one is filled
                passage = Passage(self.stacks[block], task)
            alone, batches = passage.at(block)
            return observe(alone, part, needs, Task(batches[0][0], calibration=batches))

        return observed


def require_in_blocks(needs: Sequence[Statistic]) -> None:
    """Raise `SecateursError` for what is not observed of a block that runs by itself."""
    whole = {"flow": "what flows through", "removals": "the loss of", "stream": "the streams of", "routing": "the routers of"}
    for need in needs:
        if need.needs_loss or need.watches in whole:
            what = "the gradient of the loss" if need.needs_loss else f"{whole[need.watches]} the whole network"
            raise SecateursError(f"{need.name} needs {what}, which no block has by itself: prune without blocks (walk=in_order())")


def _block_of(site: Site, blocks: Blocks) -> str | None:
    """The block in which all of a site lies, or ``None`` where nothing of it does."""
    found = {member.parameter: blocks.of(member.parameter) for member in site.members}
    if len(set(found.values())) > 1:
        (one, here), (other, there) = list({block: (name, block) for name, block in found.items()}.values())[:2]
        raise PatternError(
            f"{site.name}: its units lie in {one} of {here or 'no block'} and in {other} of {there or 'no block'}, so no block can be "
            f"pruned by itself: prune at once (without walk=), or skip it with skip=[{site.name!r}]"
        )
    return next(iter(found.values()))


def _stacks(sites: Sites, trace: Trace, blocks: Blocks, parts: Sequence[Sites], owners: Sequence[str | None]) -> dict[str, Stacks]:
    """Block → its stack, of those stacks in which something is pruned; up to the last block where it is."""
    found: dict[str, Stacks] = {}
    for names in blocks.stacks:
        here = [number for number, owner in enumerate(owners) if owner in names]
        if here:
            last = max(names.index(owner) for owner in owners if owner in names)
            pruned = {name: owners[number] or "" for number in here for name in _changed(parts[number])}
            from_here = frozenset(name for part in parts[here[0] :] for name in _changed(part))
            stacks = Stacks(sites.model, names[: last + 1], pruned, from_here)
            stacks.of(sites.example, trace)
            found |= dict.fromkeys(names, stacks)
    return found


def _changed(part: Sites) -> list[str]:
    """The parameters that a solver may write."""
    names = [member.parameter for site in part for member in site.members]
    biases = [name.removesuffix("weight") + "bias" for name in names if name.endswith("weight")]
    return [*names, *biases]
