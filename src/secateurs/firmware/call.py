"""One layer as C: what stands in flash for it, the call, and what it needs while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from secateurs.integers.layers import Layer, Numbers


@dataclass(frozen=True, eq=False)
class Constant:
    """An array in flash, ``static const`` of a C type (``int8_t`` …), aligned to four bytes."""

    name: str
    ctype: str
    numbers: Numbers

    @property
    def bytes(self) -> int:
        return int(self.numbers.nbytes)


@dataclass(frozen=True, eq=False)
class Call:
    """A layer as C.

    ``kernels`` are the files of ``firmware/c/`` that it needs (each is put into the source once, in the order of `KERNELS`); ``statement``
    is C in which the names in braces stand for what the planner places: ``{x}``, ``{y}``, ``{other}``, ``{scratch}`` …, pointers to the
    arrays of the layer by the names of its fields. ``scratch`` bytes of the arena are its own while it runs, aligned to four bytes.
    ``in_place``: the field whose memory ``y`` may take (the kernel reads each number before it writes there), if any. ``instructions``:
    predicted for a pass on a target. ``label``: the format of the weights, for reports.
    """

    layer: Layer
    kernels: tuple[str, ...]
    constants: tuple[Constant, ...]
    statement: str
    scratch: int = 0
    in_place: str | None = None
    instructions: float = 0.0
    label: str = ""

    @property
    def flash(self) -> int:
        """Bytes of constants; the kernels' code is counted once for all layers."""
        return sum(constant.bytes for constant in self.constants)
