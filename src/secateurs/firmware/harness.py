"""A program around a network: it runs test vectors, compares each number, and tells how many instructions each step took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.firmware.call import Constant
from secateurs.firmware.emulator import CLOCK, TOOLS, Core
from secateurs.firmware.program import TYPES, Program
from secateurs.firmware.source import filled, names_of
from secateurs.firmware.text import declared
from secateurs.integers.layers import Numbers

TOLERANCE = 1e-3
"""What float32 may differ, as a part of the largest number of the output: sums in another order."""


@dataclass(frozen=True, eq=False)
class Vector:
    """Test inputs and what must come of them, each (samples, height, width, channels), in the order of the network's faces."""

    inputs: Sequence[Numbers]
    outputs: Sequence[Numbers]

    @property
    def samples(self) -> int:
        return len(self.inputs[0])

    @property
    def bytes(self) -> int:
        """What all of them take in flash."""
        return sum(each.nbytes for each in (*self.inputs, *self.outputs))


def vectors(program: Program, vector: Vector) -> str:
    """The test vector as a header."""
    name, upper = program.name, program.name.upper()
    parts = [
        f"/* Inputs of {name}, and what must come of them{'' if program.network.kind == 'float32' else ', to the bit'}. */",
        f"#ifndef {upper}_TEST_H\n#define {upper}_TEST_H\n\n#include <stdint.h>\n\n#define {upper}_TESTS {vector.samples}",
    ]
    for faces, numbers, what in ((program.network.inputs, vector.inputs, "in"), (program.network.outputs, vector.outputs, "out")):
        for face, each in zip(faces, numbers, strict=True):
            flat = np.ascontiguousarray(each).reshape(-1)
            parts.append(declared(Constant(f"{name}_test_{what}_{names_of(face)}", TYPES[face.array.kind], flat)))
    return "\n\n".join(parts) + "\n\n#endif\n"


def main(program: Program) -> str:
    """The program's ``main.c``, for a host and for a bare core."""
    name, upper = program.name, program.name.upper()
    copies = [
        f"    memcpy({name}_{part}(memory), {name}_test_in_{part} + test * {upper}_{part.upper()}_SIZE, "
        f"{upper}_{part.upper()}_SIZE * sizeof *{name}_test_in_{part});"
        for part in map(names_of, program.network.inputs)
    ]
    checks = [
        f"    wrong += differ_{TYPES[face.array.kind]}({name}_{names_of(face)}(memory), {name}_test_out_{names_of(face)} + "
        f"test * {upper}_{names_of(face).upper()}_SIZE, {upper}_{names_of(face).upper()}_SIZE);"
        for face in program.network.outputs
    ]
    kinds = sorted({TYPES[face.array.kind] for face in program.network.outputs})
    compare = "\n\n".join(
        _FLOATS.replace("TOLERANCE", f"{TOLERANCE!r}f") if kind == "float" else _WHOLE.replace("KIND", kind) for kind in kinds
    )
    parts = {"COMPARE": compare, "COPIES": "\n".join(copies), "CHECKS": "\n".join(checks), "CLOCK": CLOCK.strip("\n")}
    return filled(_MAIN, {**parts, "NAME": name, "UPPER": upper})


_WHOLE = """static unsigned long differ_KIND(const KIND *found, const KIND *wanted, long count) {
    unsigned long wrong = 0;
    for (long each = 0; each < count; each++) {
        wrong += found[each] != wanted[each];
    }
    return wrong;
}"""

_FLOATS = """static unsigned long differ_float(const float *found, const float *wanted, long count) {
    unsigned long wrong = 0;
    float most = 0.0f;
    for (long each = 0; each < count; each++) {
        const float size = wanted[each] < 0.0f ? -wanted[each] : wanted[each];
        most = size > most ? size : most;
    }
    for (long each = 0; each < count; each++) {
        const float apart = found[each] - wanted[each];
        wrong += !((apart < 0.0f ? -apart : apart) <= TOLERANCE * most);
    }
    return wrong;
}"""

_MAIN = """/* Runs the test vectors of NAME: prints how many numbers are wrong, and on an emulated core what instructions each step took. */
#include <stdint.h>
#include <string.h>

#include "NAME.h"
#include "NAME_test.h"

#ifdef SEC_BOARD
void sec_write(const char *text);

/* Ticks of the core's own timer, 24 bits. Under an emulator that counts instructions a tick is SEC_BOARD of a thousandth of them. */
static uint32_t ticks(void) {
CLOCK
}
#else
#include <stdio.h>

static void sec_write(const char *text) {
    fputs(text, stdout);
}

static uint32_t ticks(void) {
    return 0;
}
#endif

static void say(const char *before, unsigned long number, const char *after) {
    char text[24];
    int at = 23;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    sec_write(before);
    sec_write(text + at);
    sec_write(after);
}

static uint64_t memory[(UPPER_ARENA_BYTES + 7) / 8 + 1];
static uint64_t instructions[UPPER_STEPS + 1];

COMPARE

static unsigned long run(long test) {
    unsigned long wrong = 0;
COPIES
    for (int step = 0; step < UPPER_STEPS; step++) {
        const uint32_t before = ticks();
        NAME_step(memory, step);
#ifdef SEC_BOARD
        instructions[step] += (uint64_t)((ticks() - before) & 0xFFFFFFu) * SEC_BOARD / 1000u;
#else
        (void)before;
#endif
    }
CHECKS
    return wrong;
}

int main(void) {
    unsigned long wrong = 0, all = 0;
    for (long test = 0; test < UPPER_TESTS; test++) {
        wrong += run(test);
    }
    say("NAME: ", UPPER_TESTS, " test vectors, ");
    say("", wrong, wrong == 0 ? " wrong numbers: all is as it must be\\n" : " WRONG NUMBERS\\n");
    for (int step = 0; step < UPPER_STEPS; step++) {
        if (instructions[step]) {
            say("step ", (unsigned long)step, ": ");
            say("", (unsigned long)(instructions[step] / UPPER_TESTS), " instructions\\n");
            all += (unsigned long)(instructions[step] / UPPER_TESTS);
        }
    }
    if (all) {
        say("a run: ", all, " instructions\\n");
    }
    return wrong != 0;
}
"""


def makefile(program: Program, core: Core) -> str:
    """How to build and run it: on the host, in the emulator, and as an object for a project of one's own."""
    chip = {
        "CORE": core.name,
        "FLAGS": " ".join((*core.flags, "-mthumb")),
        "MACHINE": core.machine,
        "MEMORY": str(core.memory),
        "ROOM": str(core.flash),
    }
    rest = {"NAME": program.name, "PACKAGES": " ".join(TOOLS.values()), "TICK": str(round(core.tick * 1000))}
    return filled(_MAKEFILE, {**chip, **rest})


_MAKEFILE = """# make: build for this machine and run the test vectors. make run: the same on an emulated CORE.
# make NAME.o: the network alone, for a project of your own: add NAME.h and NAME.o, or NAME.c, to it.
CC ?= cc
CROSS ?= arm-none-eabi-
STRICT = -std=c99 -Wall -Wextra -Werror -O2
CHIP = FLAGS -ffunction-sections -fdata-sections

check: NAME_host
\t./NAME_host

NAME_host: main.c NAME.c NAME.h NAME_test.h
\t$(CC) $(STRICT) -o $@ main.c NAME.c -lm

run: NAME.elf
\tqemu-system-arm -M MACHINE -display none -monitor none -serial none -icount shift=0 \\
\t  -semihosting-config enable=on,target=native -kernel NAME.elf

NAME.elf: main.c NAME.c start.c link.ld NAME.h NAME_test.h
\t@command -v $(CROSS)gcc > /dev/null || { echo "on Debian: apt-get install PACKAGES"; exit 1; }
\t$(CROSS)gcc $(CHIP) $(STRICT) -DSEC_BOARD=TICKul -nostartfiles -nostdlib main.c NAME.c start.c -T link.ld \\
\t  -Wl,--gc-sections -Wl,--defsym=_data_at=0x20000000 -Wl,--defsym=_data_size=MEMORY -Wl,--defsym=_code_size=ROOM -lm -lc -lgcc -o $@

NAME.o: NAME.c NAME.h
\t$(CROSS)gcc $(CHIP) $(STRICT) -c -o $@ NAME.c

size: NAME.o
\t$(CROSS)size NAME.o

clean:
\trm -f NAME_host NAME.elf NAME.o

.PHONY: check run size clean
"""
