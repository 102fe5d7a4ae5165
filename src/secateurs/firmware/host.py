"""C built and run on this machine, and what it takes on a chip."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from secateurs.firmware.emulator import Core
from secateurs.firmware.error import FirmwareError

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


def compiler() -> str | None:
    """The C compiler of this machine, if it has one; ``CC`` names another."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")


def on_host(sources: Mapping[str, str], flags: Sequence[str] = ("-O2",), seconds: float = 600.0) -> str:
    """Builds files of C (by name; those in ``.h`` are only included), runs the program, and gives back what it printed.

    Raises `FirmwareError` where there is no compiler, the C does not compile, or the program does not end with 0 in time.
    """
    tool = compiler()
    if tool is None:
        raise FirmwareError("there is no C compiler on this machine: apt-get install gcc, or name one with CC=")
    with TemporaryDirectory() as folder:
        _written(folder, sources)
        names = [name for name in sources if name.endswith(".c")]
        _require_built([tool, *STRICT, *flags, "-o", "program", *names, "-lm"], folder, tool)
        try:
            done = subprocess.run([f"{folder}/program"], capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise FirmwareError(f"the program did not end within {seconds:g} seconds") from error
    if done.returncode:
        raise FirmwareError(f"the program ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def has_compiler() -> bool:
    """Whether there is a compiler for Cortex-M here."""
    return shutil.which("arm-none-eabi-gcc") is not None and shutil.which("arm-none-eabi-size") is not None


def flash_of(sources: Mapping[str, str], core: Core, flags: Sequence[str] = ("-O2",)) -> int:
    """Bytes that files of C take in flash, code and constants, built for a core; what they call of the C library is not in it.

    Raises `FirmwareError` where arm-none-eabi-gcc is not installed or the C does not compile.
    """
    if not has_compiler():
        raise FirmwareError("sizes on a chip need its compiler: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    with TemporaryDirectory() as folder:
        _written(folder, sources)
        names = [name for name in sources if name.endswith(".c")]
        command = ["arm-none-eabi-gcc", *core.flags, "-mthumb", *STRICT, *flags, "-ffunction-sections", "-fdata-sections", "-c"]
        _require_built([*command, *names], folder, core.name)
        objects = [str(Path(name).with_suffix(".o")) for name in names]
        done = subprocess.run(["arm-none-eabi-size", *objects], cwd=folder, capture_output=True, text=True, check=True)
    return sum(int(text) + int(data) for text, data, *_ in (line.split() for line in done.stdout.splitlines()[1:]))


def _written(folder: str, sources: Mapping[str, str]) -> None:
    for name, text in sources.items():
        Path(folder, name).write_text(text, encoding="utf-8")


def _require_built(command: Sequence[str], folder: str, where: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise FirmwareError(f"the C does not build for {where}:\n{done.stderr.strip()[-4000:]}")
