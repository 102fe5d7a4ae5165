"""What this machine can do at best: the yardstick for kernels, and what choices rest on where nothing may be measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from secateurs.run.clock.memory import Memory
from secateurs.run.kernels.machine import InstructionSet, native_module


@dataclass(frozen=True)
class Limits:
    """Of one core: floating-point operations a second, and bytes a second from memory."""

    flops: float
    bandwidth: float

    def seconds(self, multiplications: float, bytes_read: float, threads: int = 1) -> float:
        """The least time for so many multiplications (each with its addition) and bytes.

        >>> Limits(flops=100e9, bandwidth=20e9).seconds(multiplications=50e6, bytes_read=0)
        0.001
        """
        return max(2 * multiplications / (self.flops * threads), bytes_read / self.bandwidth)


def limits(isa: InstructionSet, memory: Memory | None = None) -> Limits:
    """The limits of this machine, measured once (about a second) and then remembered."""
    memory = memory or Memory()
    return memory.recall(f"limits {isa.name}", _read, lambda: Limits(native_module().peak(isa.name), _bandwidth()), asdict)


def _read(value: Any) -> Limits:
    found = Limits(**value)
    if not all(isinstance(each, float) and 1e6 < each < 1e18 for each in (found.flops, found.bandwidth)):
        raise ValueError(f"{value!r} are no limits of a machine")
    return found


def _bandwidth() -> float:
    buffer = np.ones(2**25)  # 256 MB: far more than the caches hold
    seconds = []
    for _ in range(4):
        start = perf_counter()
        buffer.sum()
        seconds.append(perf_counter() - start)
    return buffer.nbytes / min(seconds)
