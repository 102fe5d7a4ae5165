"""What a compiled model does with each layer, and how near that is to what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateurs.run.choosing.limits import Limits
from secateurs.run.choosing.ready import Ready
from secateurs.run.choosing.tune import Tuned
from secateurs.run.kernels.machine import InstructionSet
from secateurs.run.network.nodes import Conv, Linear, Lstm
from secateurs.run.planning.layers import Layer, positions_of, weights_of


@dataclass(frozen=True)
class LayerReport:
    """One layer: milliseconds of torch's dense kernel and of ours, and which share of the machine's limit ours reaches.

    ``rounded`` names the numbers that its weights were rounded to; None where they are used as they are.
    """

    name: str
    shape: str
    sparsity: float
    kernel: str
    dense_ms: float
    sparse_ms: float
    of_limit: float
    rounded: str | None = None


@dataclass(frozen=True)
class Explanation:
    """What runs (the kernels, or a dense runtime that was faster), what the race came to, and a line for each layer.

    ``between``: which operations torch runs between the kernels, and how often each.
    """

    chosen: str
    threads: int
    isa: str
    race_ms: Mapping[str, float]
    layers: tuple[LayerReport, ...]
    measured: bool
    asked: str = "float32"
    between: Mapping[str, int] = field(default_factory=dict)

    def __rich__(self) -> Table:
        race = ", ".join(f"{name} {seconds:.2f} ms" for name, seconds in sorted(self.race_ms.items(), key=lambda pair: pair[1]))
        title = f"runs: {self.chosen} ({self.isa}, {self.threads} thread{'s' * (self.threads > 1)})" + (f"; {race}" if race else "")
        how = "measured" if self.measured else "reckoned"
        table = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", padding=(0, 0, 0, 1))
        for heading in ("layer", "shape", "sparsity", "kernel", f"dense ms,\n{how}", f"sparse ms,\n{how}", "of\nlimit"):
            is_text = heading in ("layer", "shape", "kernel")  # may be folded where the terminal is narrow
            table.add_column(heading, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for each in self.layers:
            numbers = f"{each.dense_ms:.3f}", f"{each.sparse_ms:.3f}", f"{each.of_limit:.0%}"
            table.add_row(Text(each.name), each.shape, f"{each.sparsity:.1%}", each.kernel, *numbers)
        told = [self._told_rounding()] if self.asked != "float32" else []
        if self.between and self.chosen == "kernels":
            often = sorted(self.between.items(), key=lambda pair: (-pair[1], pair[0]))
            told.append(f"torch runs between the kernels: {', '.join(f'{name} ({count})' for name, count in often)}")
        if told:
            table.caption, table.caption_justify = Text("\n".join(told)), "left"
        return table

    def _told_rounding(self) -> str:
        rounded = [each.name for each in self.layers if each.rounded] if self.chosen == "kernels" else []
        if not rounded:
            return f"no weights were rounded to {self.asked}: {self._why_none()}"
        return f"weights rounded to {self.asked}: {', '.join(rounded)}; those of all other layers are float32"

    def _why_none(self) -> str:
        return f"{self.chosen} runs" if self.chosen != "kernels" else "only linear layers that read one to four vectors are"

    def __str__(self) -> str:
        console = Console(width=150, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def explain(ready: Ready, threads: int, isa: InstructionSet | None, limit: Limits | None, asked: str) -> Explanation:
    """Put what is known of a compiled model into a report."""
    layers = tuple(
        _layer(node, tuned, threads, limit)
        for node, tuned in ready.tuned.items()
        if isinstance(node, (Conv, Linear, Lstm)) and limit is not None
    )
    race = {name: timing.median * 1e3 for name, timing in ready.race.items()}
    measured = all(each.measured for each in ready.tuned.values())
    return Explanation(
        ready.chosen, threads, "no kernels" if isa is None else isa.name, race, layers, measured, asked, ready.between
    )


def _layer(node: Layer, tuned: Tuned, threads: int, limit: Limits) -> LayerReport:
    weights = weights_of(node)
    nonzeros = int((weights != 0).sum())
    multiplications = nonzeros * positions_of(node)
    moved = 4 * (nonzeros + _count(node.x.shape) + _count(node.out.shape))
    least = limit.seconds(multiplications, moved if positions_of(node) == 1 else 0, threads)
    outputs, inputs = weights.shape
    shape = _conv_shape(node) if isinstance(node, Conv) else f"{outputs} x {inputs}"
    return LayerReport(
        name=node.name,
        shape=shape,
        sparsity=1 - nonzeros / weights.numel(),
        kernel=kernel_name(tuned),
        dense_ms=tuned.dense_seconds * 1e3,
        sparse_ms=tuned.seconds * 1e3,
        of_limit=least / tuned.seconds,
        rounded=None if tuned.choice.dense or tuned.choice.values == "float32" else tuned.choice.values,
    )


def _conv_shape(node: Conv) -> str:
    channels, height, width = node.x.shape[1:]
    size = "x".join(map(str, node.weight.shape[2:]))
    more = (f"/{node.stride[1]}" if node.stride != (1, 1) else "") + (f" in {node.groups} groups" if node.groups > 1 else "")
    return f"{size}{more} {channels}->{node.weight.shape[0]} @{height}x{width}"


def kernel_name(tuned: Tuned) -> str:
    """What a layer got, for people."""
    choice = tuned.choice
    if choice.dense:
        return "torch, dense"
    if choice.format is not None:
        return f"vector, {choice.format}"
    return f"spmm {choice.height}x1, {'masked, ' * choice.masked}{choice.block // 1024} KiB"


def _count(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
