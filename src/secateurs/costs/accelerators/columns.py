"""Accelerators that walk the nonzeros of one column after the other, with rows shared out among processing elements: EIE (1602.01528)
and ESE (1612.00694)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from secateurs.costs.sums import layerwise
from secateurs.costs.workload import Work
from secateurs.given import COUNT, require
from secateurs.types import Cost, SecateursError

_SAMPLED = 512
"""Columns of a weight that chance draws where only its density is known: they tell the balance of all."""


@dataclass(frozen=True)
class Columns:
    """``elements`` processing elements; element k has rows k, k + elements, … of a weight, and of each column its nonzeros in order.

    Each is written with the number of zeros before it in ``index_bits``; where more zeros come than that can say, a zero is written
    among the weights, and worked with. Activations that are not zero are broadcast one a cycle, unless the queue (``depth``) of some
    element is full, where what it works on counts; an element works off one entry a cycle, and a column of which it has none takes it no
    cycle. ``busy`` is the fraction of activations that is not zero (0.35 is about what EIE's fully connected layers see). ``megahertz`` is
    the clock.

    EIE: 64 elements, 4 index bits, a queue of 8, 800 MHz. ESE (`ese`): 32 elements a channel, activations that are all there.
    What EIE's figures show comes out in shape (`benchmarks/accelerators.py`): with a queue of 1 about half of all cycles are idle, and
    more than 8 helps little; the more elements, the fewer zeros are filled in, and the worse the balance. Assumed: columns come in order,
    nothing but queues holds an element up, and rows that do not share out evenly leave the last elements idle.

    >>> Columns(elements=4, index_bits=2).padding(torch.tensor([[1.0]] + [[0.0]] * 31 + [[1.0]]))
    0.3333333333333333
    """

    elements: int = 64
    index_bits: int = 4
    depth: int = 8
    megahertz: float = 800.0
    busy: float = 0.35

    def __post_init__(self) -> None:
        for name in ("elements", "index_bits", "depth"):
            require("Columns", name, getattr(self, name), COUNT)
            if getattr(self, name) < 1:
                raise SecateursError(f"Columns: {name}={getattr(self, name)}, but must be at least 1")
        if not 0 < self.busy <= 1:
            raise SecateursError(f"Columns: busy={self.busy}, but the fraction of activations that is not zero is in (0, 1]")

    @property
    def cycles(self) -> Cost:
        """The cycles of a pass, one position (sample, pixel, step) after the other; products of activations are left out, as in EIE."""
        return layerwise("cycles", "cycles", self.of_layer)

    def of_layer(self, work: Work) -> float:
        """Cycles of one layer: of its own weight where it is there, else of one with as many nonzeros by chance."""
        if work.parameter is None or not work.nonzeros:
            return 0.0
        if work.weight is not None:
            weight, scale = work.weight.flatten(0, 1).flatten(1), 1.0
        else:
            rows, columns = max(1, work.groups * work.outputs), max(1, work.weights // max(1, work.groups * work.outputs))
            drawn = min(columns, _SAMPLED)
            weight, scale = _by_chance(rows, drawn, round(work.density, 3)), columns / drawn
        return self.simulated(weight) * scale * work.positions

    def entries(self, weight: Tensor) -> Tensor:
        """(elements, columns): how many entries each element has of each column, zeros that are filled in among them."""
        return self._nonzeros(weight) + self._filled(weight)

    def padding(self, weight: Tensor) -> float:
        """The fraction of all entries that is filled in."""
        filled = int(self._filled(weight).sum())
        return filled / max(1, filled + int(torch.count_nonzero(weight)))

    def simulated(self, weight: Tensor) -> float:
        """Cycles of a product with one vector, of whose numbers a fraction ``busy`` (by chance, the same each time) is not zero."""
        entries = self._taken(self.entries(weight))
        return float(self._run(entries))

    def balance(self, weight: Tensor) -> float:
        """The fraction of the elements' cycles in which they work: EIE's load balance efficiency."""
        entries = self._taken(self.entries(weight))
        cycles = self._run(entries)
        return float(entries.sum()) / (self.elements * cycles) if cycles else 1.0

    def _run(self, entries: Tensor) -> int:
        """A column is broadcast the cycle after the one before it, and after every element is done with what was queued ``depth`` before:
        what an element works on stays first in its queue. It begins a column when that is there and the one before it is done."""
        sent, free = 0, torch.ones(self.elements, dtype=torch.long)
        done: list[int] = []
        for column in entries.unbind(1):
            sent = 1 + max(sent, done[-self.depth] if len(done) >= self.depth else 0)
            start = free.clamp(min=sent)
            free = start + column
            done.append(int((start + column.clamp(min=1)).max()) - 1)
        return max(int(free.max()) - 1, sent)

    def _taken(self, entries: Tensor) -> Tensor:
        if self.busy == 1:
            return entries
        chance = torch.rand(entries.shape[1], generator=torch.Generator().manual_seed(0))
        return entries[:, chance < self.busy]

    def _shared(self, weight: Tensor) -> Tensor:
        """(rows of an element, elements, columns): whether there is a nonzero."""
        there = weight.flatten(1) != 0
        missing = -len(there) % self.elements
        there = torch.cat([there, there.new_zeros(missing, there.shape[1])])
        return there.unflatten(0, (-1, self.elements))

    def _nonzeros(self, weight: Tensor) -> Tensor:
        return self._shared(weight).sum(0)

    def _filled(self, weight: Tensor) -> Tensor:
        """Zeros before a nonzero, counted from the one before it in the element's part of the column; what comes after the last is left."""
        there, most = self._shared(weight), 2**self.index_bits
        place = torch.arange(1, len(there) + 1)[:, None, None].expand_as(there)
        last = torch.where(there, place, 0).cummax(0).values
        before = torch.cat([torch.zeros_like(last[:1]), last[:-1]])
        gaps = torch.where(there, place - before - 1, 0)
        return (gaps // most).sum(0)


def eie() -> Columns:
    """EIE as published (1602.01528)."""
    return Columns()


def ese(elements: int = 32) -> Columns:
    """One channel of ESE (1612.00694): 12 bits of weight beside 4 of index, 200 MHz, activations of LSTMs, which are not sparse.

    Its load-balance-aware pruning lets each element keep the same number: the pattern ``Element(within="row")``, whose rows all keep the
    same, does so for any number of elements that divides the rows; ``Element(within=M)`` lets each M consecutive inputs of a row keep the
    same (bank-balanced).

    >>> from secateurs import Element, TopK, Task, magnitude, prune_, uniform
    >>> speeds = []
    >>> for within in ("layer", "row"):
    ...     layer = torch.nn.Linear(256, 256)
    ...     _ = torch.nn.init.normal_(layer.weight.data, generator=torch.Generator().manual_seed(0))
    ...     layer.weight.data *= 1 + 0.5 * (torch.arange(256) % 32 == 0)[:, None]  # the rows of one element are larger
    ...     _ = prune_(layer, Element(within=within), TopK(magnitude()), uniform(sparsity=0.9), Task(torch.zeros(1, 256)), only="*")
    ...     speeds.append(ese().balance(layer.weight))
    >>> speeds[1] > 1.3 * speeds[0]
    True
    """
    return Columns(elements=elements, megahertz=200.0, busy=1.0)


@lru_cache(maxsize=256)
def _by_chance(rows: int, columns: int, density: float) -> Tensor:
    """A weight with so many nonzeros in all, anywhere."""
    generator, numbers = torch.Generator().manual_seed(0), rows * columns
    found = torch.zeros(numbers)
    found[torch.randperm(numbers, generator=generator)[: max(1, round(density * numbers))]] = 1
    return found.view(rows, columns)
