"""Layers in C against what the reference answers: many of them in one program, each with memory of exactly its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.emulator import CLOCK, Core, emulated
from secateurs.firmware.host import SANITIZED, on_host
from secateurs.firmware.program import TYPES, arrays_of
from secateurs.firmware.text import KERNELS, declared, kernel
from secateurs.integers.layers import Array, Numbers, Softmax, read, written
from secateurs.integers.reference import answers

_COMPARE = """
static long differ_KIND(const KIND *found, const KIND *wanted, long count) {
    long wrong = 0;
    for (long each = 0; each < count; each++) wrong += found[each] != wanted[each];
    return wrong;
}"""
_FLOATS = """
static long differ_float(const float *found, const float *wanted, long count) {
    long wrong = 0;
    float most = 0.05f;
    for (long each = 0; each < count; each++) most = fabsf(wanted[each]) > most ? fabsf(wanted[each]) : most;
    for (long each = 0; each < count; each++) wrong += !(fabsf(found[each] - wanted[each]) <= 1e-5f * most || found[each] == wanted[each]);
    return wrong;
}"""
_SAY = """
#ifdef SEC_BOARD
void sec_write(const char *text);
static uint32_t ticks(void) {
CLOCK
}
#else
#include <stdio.h>
static void sec_write(const char *text) { fputs(text, stdout); }
static uint32_t ticks(void) { return 0; }
#endif
static void say(long number, const char *after) {
    char text[24];
    int at = 23;
    text[at] = 0;
    do { text[--at] = (char)('0' + number % 10); number /= 10; } while (number);
    sec_write(text + at);
    sec_write(after);
}"""


@dataclass(frozen=True, eq=False)
class Trial:
    """A call, what its arrays hold before by their names, and what they hold after. ``shared``: a field whose memory ``y`` takes."""

    call: Call
    given: dict[str, Numbers]
    wanted: dict[str, Numbers]
    shared: str | None = None


def drawn(array: Array, random: np.random.Generator) -> Numbers:
    """Random numbers of an array, (1, *shape); the extremes among them."""
    if array.kind == "float32":
        return random.normal(size=(1, *array.shape)).astype(np.float32)
    least, most = (-128, 128) if array.kind == "int8" else (-32768, 32768)
    found = random.integers(least, most, (1, *array.shape)).astype(array.kind)
    if random.random() < 0.2:
        found[random.random(found.shape) < 0.5] = random.choice([least, most - 1])
    return found


def trial(call: Call, random: np.random.Generator, shared: bool = False) -> Trial:
    """A call on random numbers, and what the reference makes of them."""
    given = {array.name: drawn(array, random) for array in read(call.layer)}
    if isinstance(call.layer, Softmax) and call.layer.x.kind == "float32":
        given[call.layer.x.name] *= random.choice([1, 100])
    made = answers(call.layer, given)
    wanted = {array.name: numbers for array, numbers in zip(written(call.layer), made, strict=True)}
    return Trial(call, given, wanted, call.in_place if shared else None)


def program(trials: Sequence[Trial]) -> str:
    """A C program that prints a line for each trial: its number, how many numbers are wrong, how far the clock moved."""
    used = {name for each in trials for name in each.call.kernels}
    assert used <= set(KERNELS), used - set(KERNELS)
    parts = ["#include <math.h>\n#include <stdint.h>\n#include <string.h>", _SAY.replace("CLOCK", CLOCK)]
    kinds = {TYPES[array.kind] for each in trials for array in written(each.call.layer)}
    parts += [_FLOATS if kind == "float" else _COMPARE.replace("KIND", kind) for kind in sorted(kinds)]
    parts += [kernel(name) for name in KERNELS if name in used]
    for place, each in enumerate(trials):
        parts += [_memory(place, each), _function(place, each)]
    calls = "\n".join(f"    try_{place}();" for place in range(len(trials)))
    return "\n".join(parts) + f"\nint main(void) {{\n{calls}\n    return 0;\n}}\n"


def _memory(place: int, each: Trial) -> str:
    parts = [declared(constant) for constant in each.call.constants]
    arrays = {array.name: array for array in (*read(each.call.layer), *written(each.call.layer))}
    for number, (name, array) in enumerate(arrays.items()):
        kind = TYPES[array.kind]
        if not (each.shared and name == each.call.layer.y.name):
            parts.append(f"static {kind} memory_{place}_{number}[{array.size}] __attribute__((aligned(4)));")
        for what, numbers in (("given", each.given), ("wanted", each.wanted)):
            if name in numbers:
                parts.append(declared(Constant(f"{what}_{place}_{number}", kind, numbers[name].ravel())))
    if each.call.scratch:
        parts.append(f"static uint8_t scratch_{place}[{each.call.scratch}] __attribute__((aligned(4)));")
    return "\n".join(parts)


def _function(place: int, each: Trial) -> str:
    layer = each.call.layer
    arrays = {array.name: number for number, array in enumerate({a.name: a for a in (*read(layer), *written(layer))}.values())}
    names: dict[str, str] = {"scratch": f"(void *)scratch_{place}"}
    for name, array in arrays_of(layer):
        names[name] = "0" if array is None else f"memory_{place}_{arrays[array.name]}"
    if each.shared:
        names["y"] = names[each.shared]
    lines = [
        f"memcpy(memory_{place}_{arrays[name]}, given_{place}_{arrays[name]}, sizeof given_{place}_{arrays[name]});"
        for name in each.given
    ]
    lines += [
        "const uint32_t before = ticks();",
        each.call.statement.format(**names),
        "const uint32_t after = ticks();",
        "long wrong = 0;",
    ]
    for array in written(layer):
        number = arrays[array.name]
        where = names["y"] if array is layer.y else f"memory_{place}_{number}"
        lines.append(f"wrong += differ_{TYPES[array.kind]}({where}, wanted_{place}_{number}, {array.size});")
    lines += [f'say({place}, " "); say(wrong, " "); say((long)(after - before), "\\n");']
    return f"static void try_{place}(void) {{\n    " + "\n    ".join(lines) + "\n}"


def wrong_on_host(trials: Sequence[Trial], flags: Sequence[str] = ("-O1", *SANITIZED)) -> list[str]:
    """The layers of which C and reference differ, under sanitizers."""
    return _wrong(trials, on_host({"main.c": program(trials)}, flags))


def counted(trials: Sequence[Trial], core: Core) -> tuple[list[str], list[float]]:
    """The layers of which they differ on an emulated core, and the instructions that each took."""
    told = emulated({"main.c": program(trials)}, core, ("-O2", "-DSEC_BOARD=1"))
    return _wrong(trials, told), [int(line.split()[2]) * core.tick for line in told.splitlines()]


def _wrong(trials: Sequence[Trial], told: str) -> list[str]:
    lines = told.splitlines()
    assert len(lines) == len(trials), told[-500:]
    found = []
    for line, each in zip(lines, trials, strict=True):
        if line.split()[1] != "0":
            found.append(f"{line}: {each.call.layer} {each.call.statement}")
    return found
