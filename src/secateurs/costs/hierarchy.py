"""The energy of a pass on a machine that is told by what it costs to fetch a number from each of its memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from secateurs.costs.dataflow import Accesses, Dataflow, Levels, RowStationary, shape_of
from secateurs.costs.sums import layerwise
from secateurs.costs.workload import Work
from secateurs.given import COUNT, Kind, require
from secateurs.types import Cost, SecateursError


def _check_positive(given: object) -> None:
    for each in fields(given):  # type: ignore[arg-type]
        value = getattr(given, each.name)
        if isinstance(value, (int, float)) and not value > 0:
            raise SecateursError(f"{type(given).__name__}: {each.name}={value}, but must be above 0")


@dataclass(frozen=True)
class Hierarchy:
    """What a number of ``bits`` costs from each level, and a multiply-accumulate of two of them, in ``unit``.

    Measured in MACs as of Eyeriss in 65 nm (ISCA 2016), with 16 bits. Fetching takes in proportion to the bits, a multiplication to those
    of both sides.
    """

    dram: float = 200.0
    buffer: float = 6.0
    array: float = 2.0
    registers: float = 1.0
    mac: float = 1.0
    bits: int = 16
    unit: str = "MACs"

    def __post_init__(self) -> None:
        _check_positive(self)

    def of(self, levels: Levels) -> float:
        """What is fetched from all levels together."""
        return self.dram * levels.dram + self.buffer * levels.buffer + self.array * levels.array + self.registers * levels.registers


@dataclass(frozen=True)
class Technology:
    """Picojoules of single operations on numbers of 32 bits (Horowitz, ISSCC 2014: 45 nm, 0.9 V).

    >>> horowitz = Technology()
    >>> horowitz.hierarchy(integer=True).mac, horowitz.hierarchy(bits=8, integer=True).mac
    (3.2, 0.21875)
    >>> horowitz.at(22.5).sram, horowitz.at(22.5).dram
    (2.5, 640.0)
    """

    integer_add: float = 0.1
    float_add: float = 0.9
    registers: float = 1.0
    integer_multiply: float = 3.1
    float_multiply: float = 3.7
    sram: float = 5.0
    dram: float = 640.0
    nanometres: float = 45.0

    def __post_init__(self) -> None:
        _check_positive(self)

    def at(self, nanometres: float) -> Technology:
        """The same at another node: what is on the chip in proportion to its length (capacitance, at one voltage), DRAM as it is."""
        if not nanometres > 0:
            raise SecateursError(f"Technology.at: nanometres={nanometres}, but must be above 0")
        factor = nanometres / self.nanometres
        on_chip = {each.name: getattr(self, each.name) * factor for each in fields(self) if each.name not in ("dram", "nanometres")}
        return replace(self, **on_chip, nanometres=nanometres)

    def hierarchy(self, bits: int = 32, integer: bool = False) -> Hierarchy:
        """What numbers of so many bits cost: additions and fetching in proportion to them, multiplications to their square.

        The buffer is SRAM; a number that passes from one element to the next is read from one register file and written to another.
        """
        require("Technology.hierarchy", "bits", bits, COUNT)
        if bits < 1:
            raise SecateursError(f"Technology.hierarchy: bits={bits}, but must be at least 1")
        part = bits / 32
        multiply, add = (self.integer_multiply, self.integer_add) if integer else (self.float_multiply, self.float_add)
        on_chip = (self.sram * part, 2 * self.registers * part, self.registers * part)
        return Hierarchy(self.dram * part, *on_chip, multiply * part**2 + add * part, bits, "pJ")


_ROW_STATIONARY = RowStationary()


@dataclass(frozen=True)
class Accelerator:
    """A machine: what it costs to fetch and to multiply, in what order it works, and how large its buffer is.

    ``skips_zeros``, as Eyeriss does it: in DRAM, of weights and activations only what is not zero lies, each with ``run_bits`` for the
    zeros before it, where that is less; weights stay so until they are in registers. Activations pass through buffer and array zeros and
    all. Where the weight or the activation is zero, nothing is multiplied, and only the activation was fetched from its register. Sums are
    never skipped between their additions. What a layer writes is taken to be as sparse as what it takes.
    """

    costs: Hierarchy = Hierarchy()
    dataflow: Dataflow = _ROW_STATIONARY
    buffer_bytes: int = 108 * 1024
    skips_zeros: bool = True
    run_bits: int = 5

    def __post_init__(self) -> None:
        require("Accelerator", "costs", self.costs, Kind("a Hierarchy", lambda value: isinstance(value, Hierarchy)))
        has_accesses = Kind("a dataflow, for example RowStationary()", lambda value: callable(getattr(value, "accesses", None)))
        require("Accelerator", "dataflow", self.dataflow, has_accesses)
        for name, value, least in (("buffer_bytes", self.buffer_bytes, 1), ("run_bits", self.run_bits, 0)):
            require("Accelerator", name, value, COUNT)
            if value < least:
                raise SecateursError(f"Accelerator: {name}={value}, but must be at least {least}")

    def fetched(self, work: Work, batch: int = 1) -> Accesses:
        """What a dense layer fetches for ``batch`` times the example, all of its groups together."""
        words = 8 * self.buffer_bytes // self.costs.bits
        one = self.dataflow.accesses(shape_of(work, batch), words, (self.costs.dram, self.costs.buffer, self.costs.array))
        return Accesses(*(_times(each, work.groups) for each in (one.weights, one.inputs, one.sums)))


def _times(levels: Levels, factor: float) -> Levels:
    return Levels(*(getattr(levels, each.name) * factor for each in fields(levels)))


EYERISS = Accelerator()
"""168 elements, a buffer of 108 kB, energies in MACs: what 1611.05128 compares networks on."""


def energy_on(
    machine: Accelerator = EYERISS,
    *,
    batch: int = 1,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    activations: Mapping[str, float] | None = None,
) -> Cost:
    """The energy of one pass of the example on a machine: for weights, inputs and sums what each memory costs, and the MACs (1611.05128).

    ``batch``: that many passes go together, which share what weights take from DRAM; the cost is that of one of them. Bits are those of the
    machine, of a plan, or as given. ``activations`` (`activation_density`) tells which fraction of what a layer takes is not zero. Layers
    alone are counted; pooling, normalisation and the like are not.

    >>> import torch
    >>> from torch import nn
    >>> layer, x = nn.Linear(100, 10, bias=False), torch.zeros(1, 100)
    >>> energy_on().by_layer(layer, x)
    {'weight': 236080.0}
    """
    require("energy_on", "machine", machine, Kind("an Accelerator", lambda value: isinstance(value, Accelerator)))
    for name, value in (("batch", batch), ("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if value is not None:
            require("energy_on", name, value, COUNT)
            if value < 1:
                raise SecateursError(f"energy_on: {name}={value}, but must be at least 1")

    def price(work: Work) -> float:
        if not work.weights or not work.positions:
            return 0.0
        bits = machine.costs.bits
        widths = ((weight_bits or work.bits or bits) / bits, (activation_bits or bits) / bits)
        return energy_of(work, machine, batch, *widths) / batch

    return layerwise("energy", machine.costs.unit, price, activations)


def energy_of(work: Work, machine: Accelerator, batch: int, weight: float, activation: float) -> float:
    """All that a layer takes; ``weight`` and ``activation``: how wide these are, in the widths of the machine."""
    costs, found = machine.costs, machine.fetched(work, batch)
    dense, busy = (work.density, work.busy) if machine.skips_zeros else (1.0, 1.0)
    met, of_weights, of_inputs = dense * busy, _packed(dense, weight, machine), _packed(busy, activation, machine)
    weights, inputs, sums = found.weights, found.inputs, found.sums
    fetched = (
        Levels(
            weights.dram * of_weights, weights.buffer * of_weights, weights.array * dense * weight, weights.registers * met * weight
        ),
        Levels(inputs.dram * of_inputs, *(count * activation for count in (inputs.buffer, inputs.array, inputs.registers * dense))),
        Levels(sums.dram * of_inputs, *(count * activation for count in (sums.buffer, sums.array, sums.registers * met))),
    )
    multiplied = costs.mac * work.macs * batch * met * weight * activation
    return sum(costs.of(each) for each in fetched) + multiplied


def _packed(share: float, width: float, machine: Accelerator) -> float:
    """What lies in memory of numbers of which a share is not zero, in the widths of the machine: as runs of zeros, or all of them."""
    return min(width, share * (width + machine.run_bits / machine.costs.bits)) if machine.skips_zeros else width


energy = energy_on()
"""The energy of one pass of the example on an accelerator like Eyeriss, in MACs of 16 bits; zero weights are skipped."""
