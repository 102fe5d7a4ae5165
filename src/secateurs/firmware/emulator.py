"""C on an emulated microcontroller: built with arm-none-eabi-gcc, run by qemu, which counts instructions (not cycles)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from secateurs.firmware.error import FirmwareError

TOOLS = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"}
"""What runs firmware here, and the Debian packages that have it."""

CLOCK = """
    static int runs = 0;
    if (!runs) {
        *(volatile uint32_t *)0xE000E014u = 0xFFFFFFu;
        *(volatile uint32_t *)0xE000E018u = 0u;
        *(volatile uint32_t *)0xE000E010u = 5u;
        while (*(volatile uint32_t *)0xE000E018u == 0u) {
        }
        runs = 1;
    }
    return 0xFFFFFFu - *(volatile uint32_t *)0xE000E018u;
"""
"""The body of a C function: ticks of the core's own timer, which has 24 bits; a difference is right modulo 2^24."""


@dataclass(frozen=True)
class Core:
    """A Cortex-M that the emulator has: board, compiler flags, bytes of its memory, instructions in a tick of its timer, bytes of flash."""

    name: str
    machine: str
    flags: tuple[str, ...]
    memory: int
    tick: float
    flash: int = 4 << 20


M0 = Core("cortex-m0", "microbit", ("-mcpu=cortex-m0",), 16 << 10, 62.5, 256 << 10)
M3 = Core("cortex-m3", "mps2-an385", ("-mcpu=cortex-m3",), 4 << 20, 40.0)
M4 = Core("cortex-m4", "mps2-an386", ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), 4 << 20, 40.0)
M7 = Core("cortex-m7", "mps2-an500", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), 4 << 20, 40.0)
M55 = Core("cortex-m55", "mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), 512 << 10, 31.25, 512 << 10)
CORES = (M0, M3, M4, M7, M55)
"""All of them."""


def missing() -> str:
    """The Debian packages that are not installed here, one after another; nothing where all are."""
    return " ".join(package for tool, package in TOOLS.items() if shutil.which(tool) is None)


def emulated(sources: Mapping[str, str], core: Core = M4, flags: tuple[str, ...] = ("-O2",), seconds: float = 120.0) -> str:
    """Builds files of C (by name; those in ``.h`` are only included) for a core, runs ``main``, and gives back what it printed.

    The program prints with ``void sec_write(const char *)``, which comes with the board. Raises `FirmwareError` where a tool is not
    installed (naming its package), the C does not compile, or the program does not end with 0 in time.
    """
    if packages := missing():
        raise FirmwareError(f"running firmware here takes packages that are not installed: apt-get install {packages}")
    with TemporaryDirectory() as folder:
        for name, text in sources.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        built = _built(Path(folder), [name for name in sources if name.endswith(".c")], core, flags)
        return _run(built, core, seconds)


def _built(folder: Path, names: list[str], core: Core, flags: tuple[str, ...]) -> Path:
    """The program as an ELF file in the folder of its sources."""
    to = folder / "firmware.elf"
    with as_file(files("secateurs.firmware") / "c" / "board") as board:
        command = [
            "arm-none-eabi-gcc",
            *core.flags,
            "-mthumb",
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Werror",
            *flags,
            "-ffunction-sections",
        ]
        command += ["-nostartfiles", "-nostdlib", *names, str(board / "start.c"), "-T", str(board / "link.ld"), "-Wl,--gc-sections"]
        command += [
            "-Wl,--defsym=_data_at=0x20000000",
            f"-Wl,--defsym=_data_size={core.memory}",
            f"-Wl,--defsym=_code_size={core.flash}",
            "-lm",
            "-lc",
            "-lgcc",
            "-o",
            str(to),
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise FirmwareError(f"the C does not build for {core.name}:\n{done.stderr.strip()}")
    return to


def _run(program: Path, core: Core, seconds: float) -> str:
    """What a program prints on the emulated board."""
    command = [
        "qemu-system-arm",
        "-M",
        core.machine,
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "none",
        "-icount",
        "shift=0",
    ]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise FirmwareError(f"the program did not end on {core.machine} within {seconds:g} seconds") from error
    if done.returncode:
        what = "a fault" if done.returncode == 86 else f"{done.returncode}"
        raise FirmwareError(f"the program ended on {core.machine} with {what}: {(done.stdout + done.stderr).strip()[-500:]}")
    return done.stderr + done.stdout
