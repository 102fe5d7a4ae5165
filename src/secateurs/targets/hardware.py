"""Classes of hardware: which patterns pay there, what memory there is, and what a pass costs (Scalpel, ISCA 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import nn

from secateurs.costs import Bitmap, Dense, Relative, Sum, activation_memory, stored_bytes
from secateurs.costs.accelerators import Scalar, TensorCores
from secateurs.costs.elements import times
from secateurs.costs.formats import Format
from secateurs.firmware.cores import core_of
from secateurs.given import COUNT, NUMBER, require
from secateurs.patterns import Block, Channel, Element, NofM, Vector
from secateurs.run.forecast.latency import latency
from secateurs.run.kernels.machine import instruction_set
from secateurs.types import Budget, Cost, Pattern, Prepared, SecateursError


@runtime_checkable
class Target(Protocol):
    """What a recommendation asks of a class of hardware. One of your own needs no more."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns to be tried there."""

    def cost(self, pattern: Pattern | None) -> Cost:
        """What a pass costs: of the model as it is, or of plans of a pattern."""

    def limits(self, pattern: Pattern | None) -> tuple[Budget, ...]:
        """What the model must fit into."""

    def why(self, pattern: Pattern) -> str:
        """What becomes of the pattern there."""


@dataclass(frozen=True)
class Microcontroller:
    """A small core without caches: ``flash`` and ``sram`` in bytes, weights and activations of ``bits``, ``mhz``.

    ``cpu`` is the core for which `export.c` writes code: cortex-m4, cortex-m0 …

    Little runs side by side, so that skipping single weights already pays where most are gone, and groups of the width of its SIMD
    instructions pay earlier: they share an index, and fill the lanes.
    """

    name: str = "microcontroller"
    flash: int = 1_000_000
    sram: int = 256_000
    bits: int = 8
    mhz: float = 80.0
    core: Scalar = field(default_factory=Scalar)
    cpu: str = "cortex-m4"

    def __post_init__(self) -> None:
        for name in ("flash", "sram", "bits", "mhz"):
            value = getattr(self, name)
            require("targets.microcontroller", name, value, NUMBER)
            if not value > 0:
                raise SecateursError(f"targets.microcontroller: {name}={value!r}, but must be above 0")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return Element(), self.group, Channel()

    @property
    def group(self) -> Vector:
        """Consecutive inputs that fill the lanes."""
        return Vector("inputs", self.core.lanes, tail="keep")

    def cost(self, pattern: Pattern | None) -> Cost:
        """Milliseconds: cycles by instructions, at its clock. Channels leave dense layers."""
        core, each = self.core, 1e3 / (self.mhz * 1e6)
        cycles = core.cycles

        def prepare(model: nn.Module, example: Any) -> Prepared:
            counted = cycles.prepare(model, example)
            assert isinstance(counted, Prepared)
            return _times(counted, each)

        return Cost("milliseconds", "ms", prepare)

    def limits(self, pattern: Pattern | None) -> tuple[Budget, ...]:
        """Weights in flash, as bitmaps or relative indices where they are sparse, and the peak of activations in SRAM."""
        return (
            Budget(stored_bytes(_format(pattern), value_bits=self.bits), limit=float(self.flash)),
            Budget(activation_memory(element_bytes=max(1, self.bits // 8)), limit=float(self.sram)),
        )

    def why(self, pattern: Pattern) -> str:
        if pattern.removable:
            return "narrower layers stay dense: no index, and SRAM for fewer numbers"
        size = self.group.length or 1
        if pattern == self.group:
            return f"{size} weights share an index and fill the {self.core.lanes} lanes"
        return "each weight loads an index of its own and leaves lanes empty"


@dataclass(frozen=True)
class Cpu:
    """This machine's CPU with the kernels of `run.compile`: times are measured here, not reckoned.

    ``lanes`` is how many float32 numbers an instruction takes, and how high blocks are therefore.
    """

    name: str = "cpu"
    lanes: int = 8
    threads: int | None = None
    rows: int = 4

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return Element(), self.block, Channel()

    @property
    def block(self) -> Block:
        """Weights of so many consecutive outputs, of one input."""
        return Block(self.lanes, 1, tail="keep")

    def cost(self, pattern: Pattern | None) -> Cost:
        named = None if pattern is None or pattern.removable or pattern == Element() else pattern
        return latency(named, threads=self.threads)

    def limits(self, pattern: Pattern | None) -> tuple[Budget, ...]:
        return ()

    def why(self, pattern: Pattern) -> str:
        if pattern.removable:
            return "narrower layers stay dense, and any runtime has less to do"
        if pattern == self.block:
            return f"{self.rows} outputs at a time share what is loaded of an input"
        return "each weight loads its input alone"


@dataclass(frozen=True)
class Gpu:
    """A GPU with tensor cores: very much runs side by side, so that only dense shapes pay, narrower ones or 2:4."""

    name: str = "gpu"
    memory: int = 40_000_000_000
    cores: TensorCores = field(default_factory=TensorCores)
    round_to: int = 8

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        return Element(), NofM(2, 4), Channel(round_to=self.round_to)

    def cost(self, pattern: Pattern | None) -> Cost:
        return replace(self.cores, two_of_four=pattern == NofM(2, 4)).milliseconds

    def limits(self, pattern: Pattern | None) -> tuple[Budget, ...]:
        return (Budget(stored_bytes(Dense(), value_bits=16), limit=float(self.memory)),)

    def why(self, pattern: Pattern) -> str:
        if pattern.removable:
            return f"narrower layers stay dense; widths are multiples of {self.round_to}, as tensor cores like them"
        if pattern == NofM(2, 4):
            return "tensor cores skip two of four, where widths allow it and layers are large enough"
        return "tensor cores multiply zeros like any other number"


def microcontroller(
    *,
    flash: int = 1_000_000,
    sram: int = 256_000,
    bits: int = 8,
    mhz: float = 80.0,
    lanes: int = 2,
    name: str = "microcontroller",
    cpu: str = "cortex-m4",
) -> Microcontroller:
    """A microcontroller of the kind of Arm's Cortex-M4: 2 lanes of 16 bits, 1 MB of flash, 256 kB of SRAM.

    ``cpu`` is the core that `export.c` writes for. Raises `SecateursError` for sizes that are none, and cores that nothing is written for.

    >>> microcontroller(lanes=4).group
    Vector('inputs', length=4, tail='keep')
    """
    require("targets.microcontroller", "lanes", lanes, COUNT)
    if lanes < 1:
        raise SecateursError(f"targets.microcontroller: lanes={lanes}, but must be at least 1")
    core_of(cpu)
    return Microcontroller(name, flash, sram, bits, mhz, Scalar(lanes=lanes), cpu)


def cpu(*, threads: int | None = None) -> Cpu:
    """This machine. Raises `SecateursError` where it has no kernels, so that nothing could be measured.

    >>> cpu(threads=1).block.rows in (4, 8, 16)
    True
    """
    found = instruction_set()
    if found is None:
        raise SecateursError(
            "targets.cpu: nothing can be measured of sparse layers on this machine, which has no kernels for them (the compiled extension "
            "is missing, or SECATEURS_ISA=none): use targets.microcontroller() or targets.gpu(), which are reckoned"
        )
    return Cpu(f"this CPU ({found.name}, {found.lanes} lanes)", found.lanes, threads)


def gpu(*, memory: int = 40_000_000_000, cores: TensorCores | None = None) -> Gpu:
    """A GPU like the A100; ``cores`` for another one.

    >>> gpu().patterns
    (Element(), NofM(2, 4), Channel(round_to=8))
    """
    return Gpu(memory=memory, cores=TensorCores() if cores is None else cores)


def _format(pattern: Pattern | None) -> Format:
    if pattern is None or pattern.removable:
        return Dense()
    return Relative(index_bits=4) if pattern == Element() else Bitmap(unit=pattern)  # type: ignore[arg-type]


def _times(prepared: Prepared, factor: float) -> Prepared:
    """A sum in another unit."""
    return Sum(lambda plan: [times(term, factor) for term in prepared.terms(plan)])
