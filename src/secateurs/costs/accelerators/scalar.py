"""Small in-order processors without caches that matter, as in microcontrollers: cycles by instructions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from secateurs.costs.sums import layerwise
from secateurs.costs.workload import Work
from secateurs.types import Cost


@dataclass(frozen=True)
class Scalar:
    """A core that issues one instruction a cycle, as Arm's Cortex-M4 does, with ``lanes`` multiplications at once.

    (SMLAD multiplies two pairs of 16-bit numbers that lie side by side.)

    Dense rows take, for each ``lanes`` weights, ``load`` cycles for them, ``load`` for their inputs and ``multiply`` for the product.
    Where zeros are skipped there is one index for each group of weights that goes together (`Work.unit`), to be loaded and added to an
    address (``load`` + ``address``); a group that does not fill the lanes leaves some empty. Each output costs ``output`` cycles more: a
    loop begun, a bias, rounding to the width of activations. Layers take the lesser of both ways, as a compiler would.

    Scalpel (ISCA 2017, doi 10.1145/3079856.3080215) found on such a core 1.90 times for single weights and 3.54 for groups of the width
    of its lanes, at the sparsities that each bears without loss of accuracy.

    >>> core = Scalar()
    >>> [round(core.sparse_cycles(density=0.3, unit=unit) / core.dense_cycles(), 2) for unit in (1, 2)]
    [1.0, 0.5]
    """

    lanes: int = 2
    load: float = 1.0
    multiply: float = 1.0
    address: float = 1.0
    output: float = 8.0

    @property
    def cycles(self) -> Cost:
        """The cycles of a pass."""
        return layerwise("cycles", "cycles", self.of_layer)

    def dense_cycles(self) -> float:
        """Cycles a weight and position, where none is skipped."""
        return (2 * self.load + self.multiply) / self.lanes

    def sparse_cycles(self, density: float, unit: int) -> float:
        """Cycles a weight and position, where a fraction is kept in groups of so many."""
        steps = ceil(unit / self.lanes)
        return density * (self.load + self.address + steps * (2 * self.load + self.multiply)) / unit

    def of_layer(self, work: Work) -> float:
        """Cycles of one product."""
        each = self.dense_cycles()
        if work.parameter is not None and work.density < 1:
            each = min(each, self.sparse_cycles(work.density, work.unit))
        row = work.inputs * prod(work.kernel)
        filled = ceil(row / self.lanes) * self.lanes / row if row and each == self.dense_cycles() else 1.0
        return work.macs * each * filled + work.groups * work.outputs * work.positions * self.output
