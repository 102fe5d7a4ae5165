"""From a model to a folder of C, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateurs.firmware.call import Call
from secateurs.firmware.calls import call_of
from secateurs.firmware.choose import chosen
from secateurs.firmware.cores import STACK, Chip, core_of
from secateurs.firmware.costs import CODE
from secateurs.firmware.emulator import Core, emulated, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.firmware import Firmware, step_reports
from secateurs.firmware.folder import sources_of, write_folder
from secateurs.firmware.formats import choices
from secateurs.firmware.harness import Vector
from secateurs.firmware.host import compiler, flash_of, has_compiler, on_host
from secateurs.firmware.instructions import counted
from secateurs.firmware.overwriting import overwriting
from secateurs.firmware.program import Program, identifier, planned
from secateurs.firmware.source import header, source
from secateurs.firmware.staged import in_patches
from secateurs.given import COUNT, MODEL, PATH, TASK, require
from secateurs.given import Kind as Given
from secateurs.integers.best import best
from secateurs.integers.build import built, require_finite
from secateurs.integers.layers import LIMITS, Conv, Kind, Layer, Network, Numbers
from secateurs.integers.module import IntegerModel
from secateurs.integers.quantise import from_integers, quantised, to_integers
from secateurs.integers.ranges import Packed, calibrated, packed_batches
from secateurs.integers.reference import run
from secateurs.recover import evaluate
from secateurs.types import NonFiniteError, Task

CHIP = Given("a chip, for example targets.microcontroller(flash=256_000, sram=64_000)", lambda value: isinstance(value, Chip))
_FEW = 16
"""So few samples leave none to compare ways to quantise by: ranges are taken as they were seen."""
_REST = 8192
"""Bytes of the emulated board's flash, and of its memory, that the program around a network may take."""
_MOST = 1024
"""So many calibration samples are looked at."""
_UNLIKE, _TRIES = 0.5, 3
_PICOJOULES = 12.0
"""What an instruction of a Cortex-M4 takes, in picojoules: about 12 µW/MHz in 40 nm low power (Arm's figure for the core alone)."""


def c(
    model: nn.Module,
    example: Any,
    folder: str | Path,
    *,
    calibration: Iterable[Any] | None,
    target: Chip,
    kind: Kind = "int8",
    name: str = "network",
    task: Task | None = None,
    tests: int = 4,
    search: bool = True,
    check: bool = True,
    show: bool = True,
) -> Firmware:
    """Write a model as C for a microcontroller, run that against the integer reference, and tell what it takes there.

    The folder gets ``NAME.h``, ``NAME.c``, a test vector, and a ``main.c`` and ``Makefile`` for this machine and for a bare core: ``make``
    runs the test vector here, ``make run`` on an emulated core. C99, one arena that the caller gives, no allocation, no recursion.

    ``example`` is what the model is called with; of several samples the first is taken. ``calibration`` are batches on which the ranges of
    activations are seen. ``kind`` is int8, int16 (activations; weights have 8 bits) or float32. Zeros of the weights are used: each
    layer gets the format that is fastest there, as far as all fit into flash. With a ``task`` its metric is told on its test data.
    ``tests`` samples of the calibration become the test vector. ``search=False`` takes ranges as they were seen, where else those,
    equalisation, rounding and biases are tried and what answers most like the model is kept. ``check=False`` runs no compiler and no
    emulator. ``show``: a bar tells how far it is.

    Raises `UnsupportedError` for layers without kernels; `FirmwareError` where it does not fit the target, or a name is none of C's;
    `TaskError` and `NonFiniteError` for calibration inputs that do not fit or on which the model is not sound; `WriteError`. Nothing is
    written then.

    >>> import tempfile, torch
    >>> from secateurs.targets import microcontroller
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     inputs, chip = torch.randn(32, 8), microcontroller(flash=64_000, sram=16_000)
    ...     made = c(nn.Linear(8, 3), inputs, folder, calibration=[inputs], target=chip, check=False, show=False)
    >>> made.program.network.kind, made.arena.bytes < 200, made.steps[0].what
    ('int8', True, 'linear -> 3')
    """
    _require(model, folder, target, kind, name, task, tests)
    network = built(model, example)
    require_finite(network)
    samples = _samples(network, calibration, example, kind)
    integers, how = _integers(network, samples, kind, search, show)
    core = core_of(target.cpu)
    program = _fitted(integers, name, target, core if check and has_compiler() else None)
    answers = run(integers, [to_integers(each, face.array) for each, face in zip(samples, integers.inputs, strict=True)])
    _require_sound(integers, answers)
    vector = _vector(integers, samples, answers, tests)
    sources = sources_of(program, core, vector)
    proof = _proof(program, sources, core, vector.bytes) if check else _Proof((), None, {})
    _require_room(program, target, proof.flash)
    difference, agreement = _beside(network, integers, samples, answers)
    _warn_of(difference)
    accuracy = None if task is None else _accuracy(model, integers, task)
    stayed = write_folder(folder, sources)
    steps = step_reports(program, proof.instructions)
    return Firmware(
        Path(folder),
        program,
        core.name,
        proof.flash if proof.flash is not None else program.constants + CODE,
        proof.flash is not None,
        program.arena.bytes + STACK,
        sum(step.instructions for step in steps),
        bool(proof.instructions),
        sum(step.instructions for step in steps) * _PICOJOULES * 1e-12,
        difference,
        agreement,
        accuracy,
        steps,
        proof.where,
        (target.flash, target.sram),
        (*how, *proof.notes, *(f"{each} was changed since it was written, and stays as it is" for each in stayed)),
    )


def _require(model: nn.Module, folder: Any, target: Any, kind: Any, name: Any, task: Any, tests: Any) -> None:
    require("export.c", "model", model, MODEL)
    require("export.c", "target", target, CHIP)
    require("export.c", "folder", folder, PATH)
    require("export.c", "tests", tests, COUNT)
    if task is not None:
        require("export.c", "task", task, TASK)
    if tests < 1:
        raise FirmwareError(f"export.c: tests={tests}, but at least one sample is the test vector")
    if not isinstance(name, str):
        raise FirmwareError(f"export.c: name={name!r}, but must be a text, for example 'network'")
    if kind not in (*LIMITS, "float32"):
        raise FirmwareError(f"export.c: kind={kind!r}, but must be 'int8', 'int16' or 'float32'")
    identifier(name)
    core_of(target.cpu)


def _require_sound(network: Network, answers: list[Numbers]) -> None:
    """Raise `NonFiniteError` where outputs for calibration inputs, which are the test vector, are not numbers to compare."""
    for face, each in zip(network.outputs, answers, strict=True):
        if wrong := each.size - int(np.isfinite(each).sum()):
            raise NonFiniteError(
                f"{face.name}: {wrong} of {each.size} numbers are NaN or infinite for the calibration inputs; give inputs with which the "
                "model is sound"
            )


def _samples(network: Network, calibration: Iterable[Any] | None, example: Any, kind: Kind) -> list[Numbers]:
    """The calibration inputs as the network takes them, the first 1,024."""
    if calibration is None:
        if kind != "float32":
            raise FirmwareError(
                f"export.c: the ranges of {kind} numbers come from calibration inputs: give calibration=, some hundred samples in batches"
            )
        calibration = [example]
    parts: list[list[Numbers]] = []
    for batch in packed_batches(network, calibration):
        parts.append(batch)
        if sum(len(each[0]) for each in parts) >= _MOST:
            break
    if not parts:
        raise FirmwareError("export.c: the calibration has no batches; give some hundred samples")
    return [np.concatenate(each)[:_MOST] for each in zip(*parts, strict=True)]


def _warn_of(difference: float) -> None:
    """Warn where the integers answer unlike the model, which an export that succeeds would hide."""
    if difference > _UNLIKE:
        warnings.warn(
            f"the integers answer unlike the model: outputs differ by up to {difference:.0%} of the largest one on the calibration inputs; "
            "calibrate on inputs like those that will come, look for layers with very large or small weights, or give kind='int16'",
            stacklevel=3,
        )


def _integers(network: Network, samples: list[Numbers], kind: Kind, search: bool, show: bool) -> tuple[Network, tuple[str, ...]]:
    """The network in integers, and how they were chosen."""
    if kind == "float32":
        return network, ()
    batch = Packed(tuple(samples))
    if not search or len(samples[0]) < _FEW:
        return quantised(network, calibrated(network, [batch], kind=kind), kind), ()
    found = best(network, [batch], kind, show)
    kept = found.kept
    told = f"ranges by {kept.ranges}, equalised: {kept.equalised}, corrected: {kept.corrected}; {kept.decibels:.1f} dB of signal to noise"
    return found.network, (told,)


def fitting(network: Network, name: str, target: Chip) -> Program:
    """A network as calls in an arena, in the formats that are fastest of those that fit the chip; its first layers go patch by patch
    where its arrays do not fit otherwise. 9,000 bytes are reckoned for code.

    Raises `FirmwareError` where nothing fits.
    """
    program = _planned(network, name, target, CODE)
    _require_room(program, target)
    return program


def _fitted(network: Network, name: str, target: Chip, core: Core | None) -> Program:
    """The same, with the code as large as a compiler for the core makes it, where there is one.

    Code depends on which formats are taken: those that would be fastest are tried first, then what their code leaves room for.
    """
    if core is None:
        return fitting(network, name, target)
    code = 0
    for _ in range(_TRIES):
        program = _planned(network, name, target, code)
        measured = flash_of({f"{name}.h": header(program), f"{name}.c": source(program)}, core)
        if measured <= target.flash:
            break
        code = max(code, measured - program.constants)
    _require_room(program, target, measured)
    return program


def _planned(network: Network, name: str, target: Chip, code: int) -> Program:
    calls = _calls(network, name, target, code)
    program = planned(network, calls, name)
    if program.arena.bytes + STACK > target.sram:
        program = in_patches(network, calls, name, target.sram - STACK) or program
    return program


def _calls(network: Network, name: str, target: Chip, code: int) -> list[Call]:
    """A call for each layer, in the format that is fastest of those that fit beside the code; the smallest ones where nothing fits."""
    options = [_options(layer, f"{name}_{number}", target.cpu) for number, layer in enumerate(network.layers)]
    least = sum(min(call.flash for call in each) for each in options)
    return chosen(options, max(least, target.flash - code))


def _options(layer: Layer, name: str, cpu: str) -> list[Call]:
    if isinstance(layer, Conv) and layer.x.kind == "int8":
        return [counted(overwriting(call), core=cpu) for call in choices(layer, name)]
    return [call_of(layer, name)]


def _accuracy(model: nn.Module, integers: Network, task: Task) -> tuple[float, float]:
    """The metric of the float model and of the integers on the test data."""
    return evaluate(model, task, task.test, show=False), evaluate(IntegerModel(integers), task, task.test, show=False)


def _vector(network: Network, samples: list[Numbers], answers: list[Numbers], tests: int) -> Vector:
    """Some samples, spread over all, and what must come of them."""
    count = len(samples[0])
    places = np.unique(np.linspace(0, count - 1, max(1, min(tests, count))).astype(int))
    inputs = [to_integers(each[places], face.array) for each, face in zip(samples, network.inputs, strict=True)]
    return Vector(inputs, [each[places] for each in answers])


def _require_room(program: Program, target: Chip, measured: int | None = None) -> None:
    """Raise `FirmwareError` where weights and code (as they were measured, if they were) or the arena are larger than what the chip has."""
    flash, sram = program.constants + CODE if measured is None else measured, program.arena.bytes + STACK
    if flash > target.flash:
        large = max(program.calls, key=lambda call: call.flash)
        code, about = flash - program.constants, "about " if measured is None else ""
        keep = max(0.0, (target.flash - code) / max(1, program.constants))
        if target.flash <= code:
            raise FirmwareError(
                f"{program.name}: the kernels' code alone takes {about}{code:,} bytes of flash, and "
                f"{target.name} has {target.flash:,}: give a chip with more, or a network of fewer kinds of layers"
            )
        raise FirmwareError(
            f"{program.name} needs {about}{flash:,} bytes of flash, {flash - target.flash:,} more than the {target.flash:,} of "
            f"{target.name}: its largest weight is that of {large.layer.name} ({large.flash:,} bytes); with {keep:.0%} of the weights it "
            "would fit: prune with sc.Budget(sc.flash_bytes(), limit=...), or search with sc.smallest"
        )
    if sram > target.sram:
        large_array = max(program.network.arrays.values(), key=lambda array: array.bytes)
        keep = max(0.0, (target.sram - STACK) / max(1, program.arena.bytes))
        raise FirmwareError(
            f"{program.name} needs {sram:,} bytes of SRAM, {sram - target.sram:,} more than the {target.sram:,} of {target.name}: its "
            f"largest array is {large_array.name} ({' x '.join(map(str, large_array.shape))}, {large_array.bytes:,} bytes); with "
            f"{keep:.0%} of the channels, or a smaller input, it would fit: prune with sc.Budget(sc.sram_bytes(), limit=...)"
        )


@dataclass(frozen=True)
class _Proof:
    """Where the C has run and was right, what it takes in flash, and what each of its steps took in the emulator."""

    where: tuple[str, ...]
    flash: int | None
    instructions: dict[int, float]
    notes: tuple[str, ...] = ()


def _proof(program: Program, sources: dict[str, str], core: Core, inputs: int) -> _Proof:
    """Build and run the C, here and on the emulated core, as far as there are tools for it; ``inputs`` are the bytes of test vectors."""
    code = {name: text for name, text in sources.items() if name.endswith((".c", ".h")) and name != "start.c"}
    where, flash, counted, notes = [], None, {}, []
    if compiler() is not None:
        on_host(code)
        where.append("this machine")
    if not missing():
        network = {name: text for name, text in code.items() if name in (f"{program.name}.c", f"{program.name}.h")}
        flash = flash_of(network, core)
        if program.arena.bytes > core.memory - _REST or flash + inputs > core.flash - _REST:
            notes.append(
                f"it was not run in the emulator: its {core.name} has {core.flash:,} bytes of flash and {core.memory:,} of memory"
            )
        else:
            said = emulated(code, core, ("-O2", f"-DSEC_BOARD={round(core.tick * 1000)}ul"))
            counted = dict(_counted(said))
            where.append(f"an emulated {core.name}")
    return _Proof(tuple(where), flash, counted, tuple(notes))


def _counted(said: str) -> Iterator[tuple[int, float]]:
    for line in said.splitlines():
        if line.startswith("step "):
            step, _, rest = line.removeprefix("step ").partition(": ")
            yield int(step), float(rest.split()[0])


def _beside(network: Network, integers: Network, samples: list[Numbers], answers: list[Numbers]) -> tuple[float, float]:
    """The largest difference of the outputs from the float model's, and on how many samples the largest output is the same."""
    floats = run(network, samples)
    apart, same = 0.0, []
    for face, meant, found in zip(integers.outputs, floats, answers, strict=True):
        numbers = from_integers(found, face.array)
        apart = max(apart, float(np.abs(numbers - meant).max()) / (float(np.abs(meant).max()) or 1.0))
        flat = numbers.reshape(len(numbers), -1), meant.reshape(len(meant), -1)
        same.append(float((flat[0].argmax(1) == flat[1].argmax(1)).mean()))
    return apart, min(same)
