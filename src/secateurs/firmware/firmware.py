"""A model as a folder of C: quantised, planned, checked against the integer reference, and told."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateurs.firmware.arena import Arena
from secateurs.firmware.call import Call
from secateurs.firmware.program import Program
from secateurs.integers.layers import Conv, Layer


@dataclass(frozen=True)
class StepReport:
    """One step: what it is, the format of its weights and the fraction of them that is 0, bytes in flash, bytes alive while it runs, and
    instructions."""

    name: str
    what: str
    format: str
    sparsity: float | None
    flash: int
    alive: int
    instructions: float


@dataclass(frozen=True)
class Firmware:
    """What `secateurs.export.c` wrote: printed, it is a table of what the network takes on a chip.

    ``flash`` counts weights and code in bytes, ``sram`` the arena and the stack. ``instructions`` of a run are predicted, or
    ``counted`` by an emulator; they are no cycles. ``difference`` is the largest of the outputs from the float model's, as a part of the
    largest number there, over the calibration inputs; ``agreement`` the fraction of these on which both have the same largest output.
    ``accuracy`` is the float model's and the firmware's on the task's test data, where a task was given. ``checked`` says where the C
    itself has run and was right. ``room`` is the flash and the SRAM of the chip.
    """

    folder: Path
    program: Program
    core: str
    flash: int
    flash_is_measured: bool
    sram: int
    instructions: float
    counted: bool
    energy: float
    difference: float
    agreement: float
    accuracy: tuple[float, float] | None
    steps: tuple[StepReport, ...]
    checked: tuple[str, ...]
    room: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def arena(self) -> Arena:
        """The plan of the memory."""
        return self.program.arena

    def __rich__(self) -> Table:
        kind = self.program.network.kind
        table = Table(
            title=Text(f"{self.folder}: {kind} for {self.core}"), box=SIMPLE_HEAD, title_justify="left", padding=(0, 0, 0, 1)
        )
        for heading in ("step", "layer", "weights", "sparsity", "flash,\nbytes", "SRAM alive,\nbytes", "instructions"):
            is_text = heading in ("step", "layer", "weights")
            table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for each in self.steps:
            sparsity = "" if each.sparsity is None else f"{each.sparsity:.0%}"
            numbers = f"{each.flash:,}", f"{each.alive:,}", f"{each.instructions:,.0f}"
            table.add_row(Text(each.name), each.what, each.format, sparsity, *numbers)
        table.caption, table.caption_justify = Text("\n".join(self.lines())), "left"
        return table

    def lines(self) -> Iterable[str]:
        """What it takes and how right it is, a sentence each."""
        weights = sum(each.flash for each in self.steps)
        how = "measured" if self.flash_is_measured else "estimated"
        yield f"flash {self.flash:,} of {self.room[0]:,} bytes ({weights:,} of weights; {how})"
        yield f"SRAM {self.sram:,} of {self.room[1]:,} bytes ({self.arena.bytes:,} of arena)"
        how = "counted in the emulator" if self.counted else "predicted"
        yield f"a run: {self.instructions:,.0f} instructions ({how}; no cycles), {self.energy * 1e6:,.1f} µJ (predicted)"
        yield f"largest difference from the float model {self.difference:.1%} of its largest output, on the calibration inputs"
        yield f"the same largest output as the float model on {self.agreement:.1%} of them"
        if self.accuracy is not None:
            yield f"accuracy {self.accuracy[1]:.2%}, {self.accuracy[0]:.2%} in float32"
        yield (
            f"the C ran and was right: {', '.join(self.checked)}"
            if self.checked
            else "the C was not run: check=False, or there is no compiler here"
        )
        yield from self.notes

    def __str__(self) -> str:
        console = Console(width=132, record=True, file=io.StringIO())
        console.print(self)
        return console.export_text()


def step_reports(program: Program, counted: Mapping[int, float]) -> tuple[StepReport, ...]:
    """A line for each step; of those that an emulator has counted, its number of instructions."""
    moments = list(program.arena.order)
    found = []
    for place, call in enumerate(program.steps):
        moment = next(at for at, number in enumerate(moments) if program.calls[number] is call)
        found.append(_step(call, program.arena.alive(moment), counted.get(place, call.instructions)))
    return tuple(found)


def _step(call: Call, alive: int, instructions: float) -> StepReport:
    layer, sparsity = call.layer, None
    if isinstance(layer, Conv):
        sparsity = float((layer.weight == 0).mean()) if layer.weight.size else 0.0
    return StepReport(layer.name, told(layer), call.label, sparsity, call.flash, alive, instructions)


def told(layer: Layer) -> str:
    """A layer in a few words."""
    shape: Sequence[int] = layer.y.shape
    sizes = " x ".join(map(str, [size for size in shape if size != 1] or [1]))
    if isinstance(layer, Conv):
        kernel = layer.kernel
        kind = "linear" if kernel == (1, 1) and layer.x.shape[0] == 1 else "depthwise" if layer.is_depthwise else "conv"
        return f"{kind} {'x'.join(map(str, kernel))} -> {sizes}" if kind != "linear" else f"linear -> {sizes}"
    return f"{type(layer).__name__.lower()} -> {sizes}"
