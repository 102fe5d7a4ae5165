"""A program that runs calls on given numbers and tells how many answers differ from what they should be: for a host or an emulated core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.text import KERNELS, declared, kernel
from secateurs.integers.layers import Numbers

_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t", "float32": "float"}
_SAY = """
#ifdef __arm__
void sec_write(const char *text);
#else
#include <stdio.h>
static void sec_write(const char *text) { fputs(text, stdout); }
#endif
static void say(uint32_t number, char end) {
    char text[12], *at = text + 11;
    *at = 0;
    *--at = end;
    do {
        *--at = (char)('0' + number % 10);
    } while (number /= 10);
    sec_write(at);
}
"""


@dataclass(frozen=True, eq=False)
class Trial:
    """A call, what it reads (by the names in the braces), and what it should write."""

    call: Call
    x: Numbers
    y: Numbers


def program(trials: Sequence[Trial], clock: str = "return 0;") -> str:
    """A C program that prints a line for each trial: its number, how many numbers differ, and by how much a clock moved, which ``clock``
    (the body of a C function) reads."""
    names = {name for trial in trials for name in trial.call.kernels}
    parts = ["#include <stdint.h>", "#include <string.h>", _SAY, f"static uint32_t sec_clock(void) {{ {clock} }}"]
    parts += [kernel(name) for name in KERNELS if name in names]
    for place, trial in enumerate(trials):
        parts += [declared(constant) for constant in trial.call.constants]
        x, y = trial.x.ravel(), trial.y.ravel()
        parts.append(declared(Constant(f"x_{place}", _TYPES[str(x.dtype)], x)))
        parts.append(declared(Constant(f"y_{place}", _TYPES[str(y.dtype)], y)))
    scratch = max(trial.call.scratch for trial in trials)
    most = max(trial.y.nbytes for trial in trials), max(trial.x.nbytes for trial in trials)
    parts.append(f"static uint32_t scratch[{scratch // 4 + 1}], answer[{most[0] // 4 + 1}], given[{most[1] // 4 + 1}];")
    for place, trial in enumerate(trials):
        parts.append(_function(place, trial))
    calls = "\n".join(f"    try_{place}();" for place in range(len(trials)))
    return "\n".join(parts) + f"\nint main(void) {{\n{calls}\n    return 0;\n}}\n"


def _function(place: int, trial: Trial) -> str:
    """One trial: inputs from flash to memory, the call between two looks at the clock, and the comparison."""
    kind = _TYPES[str(trial.y.dtype)]
    read = f"(const {_TYPES[str(trial.x.dtype)]} *)given"
    call = trial.call.statement.format(x=read, y=f"({kind} *)answer", scratch="scratch")
    return (
        f"static void try_{place}(void) {{\n    memcpy(given, x_{place}, sizeof x_{place});\n    memset(answer, 85, sizeof answer);\n"
        f"    const uint32_t before = sec_clock();\n    {call}\n    const uint32_t after = sec_clock();\n"
        f"    const {kind} *found = (const {kind} *)answer;\n    uint32_t wrong = 0;\n"
        f"    for (long each = 0; each < {trial.y.size}; each++) wrong += found[each] != y_{place}[each];\n"
        f"    say({place}u, ' ');\n    say(wrong, ' ');\n    say(after - before, '\\n');\n}}"
    )


def told(output: str, tick: float = 0.0) -> list[tuple[int, float]]:
    """For each trial how many numbers were wrong, and instructions, out of what the program printed.

    >>> told("0 0 10\\n1 3 16777220\\n", 40.0)
    [(0, 400.0), (3, 160.0)]
    """
    lines = [line.split() for line in output.split("\n") if line]
    return [(int(wrong), (int(ticks) % (1 << 24)) * tick) for _, wrong, ticks in lines]
