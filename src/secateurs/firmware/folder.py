"""The files of a network as C, and a folder that gets all of them or none."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from secateurs.firmware.emulator import Core
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.harness import Vector, main, makefile, vectors
from secateurs.firmware.program import Program
from secateurs.firmware.source import header, source
from secateurs.firmware.text import kernel
from secateurs.replacing import beside
from secateurs.types import WriteError

_SIGN = re.compile(r"written by Secateurs, sum ([0-9a-f]{8})")


def sources_of(program: Program, core: Core, vector: Vector) -> dict[str, str]:
    """All files by their names: header, source, test vector, ``main.c``, a ``Makefile``, and what a bare core needs to start."""
    name = program.name
    plain = {
        f"{name}.h": header(program),
        f"{name}.c": source(program),
        f"{name}_test.h": vectors(program, vector),
        "main.c": main(program),
        "Makefile": makefile(program, core),
        "start.c": kernel("board/start.c"),
        "link.ld": kernel("board/link.ld"),
    }
    return {name: _signed(name, text) for name, text in plain.items()}


def _signed(name: str, text: str) -> str:
    """A text with a line that tells who wrote it, and a sum by which a later change of it is noticed."""
    told = f"written by Secateurs, sum {zlib.crc32(text.encode()):08x}: a file that was changed is not written over"
    return f"# {told}\n{text}" if name == "Makefile" else f"/* {told} */\n{text}"


def write_folder(folder: str | Path, sources: Mapping[str, str]) -> tuple[str, ...]:
    """Write files into a folder, which is made where it is not there; tells the names of those that stayed as they were.

    A file that we wrote before is written anew. Of ``main.c``, ``Makefile``, ``start.c`` and ``link.ld``, one that was changed since stays.

    Raises `FirmwareError` where another file has the name of the network's own, and `WriteError` where the folder cannot be written; then
    nothing has changed.
    """
    target = Path(folder)
    own = [name for name in sources if name not in ("main.c", "Makefile", "start.c", "link.ld")]
    stays = [name for name in sources if (target / name).exists() and not _is_ours(target / name)]
    for name in stays:
        if name in own:
            raise FirmwareError(
                f"{target / name} is there already, and was not written by us or was changed since: give another folder or name="
            )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with beside(target / "firmware") as temporary:
            for name, text in sources.items():
                (temporary / name).write_text(text, encoding="utf-8")
            for name in sources:
                if name not in stays:
                    os.replace(temporary / name, target / name)
    except OSError as error:
        raise WriteError(f"could not write {target}: {error}") from error
    return tuple(stays)


def _is_ours(path: Path) -> bool:
    """Whether a file is as we wrote it."""
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    found = _SIGN.search(first)
    return found is not None and found[1] == f"{zlib.crc32(rest.encode()):08x}"
