"""Programs on emulated cores: what they print, what they take, and what is said where they fail."""

from __future__ import annotations

import shutil

import pytest

from secateurs.firmware.emulator import CLOCK, CORES, M0, M4, Core, emulated, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.trying import told

needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")

_COUNT = """
#include <stdint.h>
void sec_write(const char *text);
static uint32_t ticks(void) {{ {clock} }}
static int given = 5, twice[2];
int main(void) {{
    const uint32_t before = ticks();
    uint32_t turns = {times};
    __asm__ volatile(".syntax unified\\n1: subs %0, #1\\n\\tbne 1b" : "+l"(turns) : : "cc");
    uint32_t number = (ticks() - before) & 0xFFFFFFu;
    char text[12], *at = text + 11;
    *at = 0;
    do *--at = (char)('0' + number % 10); while (number /= 10);
    sec_write("0 0 ");
    sec_write(at);
    sec_write(given == 5 && !twice[0] && !twice[1] ? "\\n" : " memory\\n");
    return 0;
}}
"""


@needs_emulator
@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_a_program_runs_and_is_counted(core: Core) -> None:
    """A loop of two instructions takes two a turn, give or take a tick; the same each time."""
    counts = []
    for times in (1000, 1000, 3000):
        ((_, count),) = told(emulated({"main.c": _COUNT.format(clock=CLOCK, times=times)}, core), core.tick)
        counts.append(count)
    assert counts[0] == counts[1]
    assert abs(counts[2] - counts[0] - 4000) <= core.tick


@needs_emulator
def test_headers_and_several_files_build_together() -> None:
    sources = {
        "say.h": "void say(void);\n",
        "say.c": '#include "say.h"\nvoid sec_write(const char *text);\nvoid say(void) { sec_write("hello\\n"); }\n',
        "main.c": '#include "say.h"\nint main(void) { say(); return 0; }\n',
    }
    assert emulated(sources) == "hello\n"


@needs_emulator
def test_c_that_does_not_compile_is_told() -> None:
    with pytest.raises(FirmwareError, match=r"(?s)the C does not build for cortex-m4:.*unused"):
        emulated({"main.c": "int main(void) { int unused; return 0; }"})


@needs_emulator
def test_data_beyond_the_memory_of_a_board_is_told() -> None:
    with pytest.raises(FirmwareError, match=r"(?s)does not build for cortex-m0:.*do not fit the memory of the board"):
        emulated({"main.c": "static volatile char large[16384]; int main(void) { return large[5]; }"}, M0)


@needs_emulator
def test_a_program_that_ends_badly_is_told() -> None:
    with pytest.raises(FirmwareError, match="the program ended on mps2-an386 with 3"):
        emulated({"main.c": "int main(void) { return 3; }"})


@needs_emulator
def test_a_fault_is_told() -> None:
    with pytest.raises(FirmwareError, match="the program ended on mps2-an386 with a fault"):
        emulated({"main.c": "int main(void) { return *(volatile int *)0xF0000000u; }"}, M4)


@needs_emulator
def test_a_program_that_does_not_end_is_told() -> None:
    with pytest.raises(FirmwareError, match=r"the program did not end on mps2-an386 within 0\.5 seconds"):
        emulated({"main.c": 'int main(void) { for (;;) { __asm__ volatile("nop"); } }'}, seconds=0.5)


def test_tools_that_are_missing_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert missing() == "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
    with pytest.raises(FirmwareError, match="apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"):
        emulated({"main.c": "int main(void) { return 0; }"})
