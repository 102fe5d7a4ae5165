"""GPUs with tensor cores that skip half of the weights where two of four are zero (2104.08378), like the A100."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch

from secateurs.costs.sums import layerwise
from secateurs.costs.workload import Work
from secateurs.types import Cost


@dataclass(frozen=True)
class TensorCores:
    """A roofline with tiles: a layer takes what its slower side takes, multiplying or moving, and no less than starting a kernel takes.

    Products run in tiles of ``tile`` outputs by positions on ``processors`` multiprocessors, ``teraflops`` together in 16 bits; a last wave
    that does not fill them costs a whole one, and outputs and inputs are filled up to multiples of ``granularity``. Where of each four
    consecutive inputs two are zero, and inputs are a multiple of ``sparse_inputs`` and outputs of ``sparse_outputs``, the rate doubles,
    and of the weights half is moved, with two bits each that tell where they were. Other zeros cost what other numbers cost. Grouped
    convolutions run on the plain cores (``plain_teraflops``). ``bandwidth`` is in GB/s, ``start_us`` in microseconds.

    A plan does not tell its pattern: ``two_of_four`` says that it is that of the layers which it leaves half full or emptier.

    The defaults are the A100's data sheet: 312 TFLOP/s dense, 624 with 2:4, 1555 GB/s, 108 multiprocessors. 2:4 is worth
    up to twice for large products, and little for small ones, where starting and moving count: `speed_up` draws that curve. Kernels
    that do not reach the sheet's rates are not looked at.

    >>> gpu = TensorCores()
    >>> round(gpu.speed_up(4096, 4096, 4096), 2), round(gpu.speed_up(256, 256, 256), 2)
    (1.99, 1.33)
    """

    teraflops: float = 312.0
    plain_teraflops: float = 78.0
    bandwidth: float = 1555.0
    processors: int = 108
    tile: tuple[int, int] = (128, 128)
    granularity: int = 8
    sparse_inputs: int = 32
    sparse_outputs: int = 16
    start_us: float = 3.0
    two_of_four: bool = False

    @property
    def milliseconds(self) -> Cost:
        """The time of a pass, a kernel after the other."""
        return layerwise("gpu_ms", "ms", self.of_layer)

    def of_layer(self, work: Work) -> float:
        """Milliseconds of one product."""
        if not work.macs:
            return 0.0
        inputs, sparse = work.inputs * prod(work.kernel), self.halves(work)
        held = 2.0 * work.weights * (0.5 + 0.5 / 8 if sparse else 1.0)
        moved = held + 2.0 * (work.taken + work.made)
        if work.groups > 1 and work.parameter is not None:
            multiplying = 2.0 * work.macs / (self.plain_teraflops * 1e12)
        else:
            multiplying = work.groups * self._multiplying(work.outputs, inputs, work.positions, sparse)
        return 1e3 * (1e-6 * self.start_us + max(multiplying, moved / (self.bandwidth * 1e9)))

    def halves(self, work: Work) -> bool:
        """Whether the product runs at the double rate."""
        inputs = work.inputs * prod(work.kernel)
        if work.parameter is None or work.groups > 1 or inputs % self.sparse_inputs or work.outputs % self.sparse_outputs:
            return False
        if work.weight is not None:
            return _has_two_of_four(work)
        return self.two_of_four and work.density <= 0.5

    def speed_up(self, outputs: int, inputs: int, positions: int) -> float:
        """How many times as fast a product is with 2:4."""
        dense, sparse = (
            max(
                self._multiplying(outputs, inputs, positions, two),
                2.0 * (outputs * inputs * held + positions * (inputs + outputs)) / (self.bandwidth * 1e9),
            )
            for two, held in ((False, 1.0), (True, 0.5 + 0.5 / 8))
        )
        return (1e-6 * self.start_us + dense) / (1e-6 * self.start_us + sparse)

    def _multiplying(self, outputs: int, inputs: int, positions: int, sparse: bool) -> float:
        filled = (-(-size // self.granularity) * self.granularity for size in (outputs, inputs))
        outputs, inputs = filled
        tiles = ceil(outputs / self.tile[0]) * ceil(positions / self.tile[1])
        waves = ceil(tiles / self.processors)
        each = 2.0 * prod(self.tile) * inputs / (self.teraflops * 1e12 / self.processors)
        return waves * each / (2.0 if sparse else 1.0)


def _has_two_of_four(work: Work) -> bool:
    assert work.weight is not None
    rows = work.weight.movedim(2, -1)  # of (groups, outputs, inputs, *kernel)
    inputs = rows.shape[-1]
    return not inputs % 4 and bool((torch.count_nonzero(rows.unflatten(-1, (inputs // 4, 4)), -1) <= 2).all())
