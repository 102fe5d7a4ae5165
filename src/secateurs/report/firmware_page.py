"""What a network takes on a microcontroller as one HTML page that stands alone."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from secateurs.firmware.drawing import arena_svg
from secateurs.firmware.firmware import Firmware
from secateurs.report.files import replace_text
from secateurs.report.page import rendered
from secateurs.report.words import percent


def firmware_html(firmware: Firmware) -> str:
    """The page as text: what it takes in sentences, the memory step by step as a picture, and a table of the steps."""
    from markupsafe import Markup

    program = firmware.program

    def drawing(width: float) -> Any:
        room = firmware.room[1] if firmware.room[1] < 4 * program.arena.bytes else None
        return Markup(arena_svg(program.arena, program.moments, limit=room, width=width))

    most = max((step.instructions for step in firmware.steps), default=1.0) or 1.0
    return rendered(
        resources.files("secateurs.report").joinpath("firmware.html.jinja").read_text(encoding="utf-8"),
        title=f"{program.name}: {program.network.kind} on a {firmware.core}",
        verdict=f"{firmware.flash:,} bytes of flash, {firmware.sram:,} of SRAM, {firmware.instructions:,.0f} instructions a run.",
        lines=list(firmware.lines()),
        pictures=[drawing(8.0), drawing(4.4)],
        rows=[
            [
                step.name,
                step.what,
                step.format,
                "" if step.sparsity is None else percent(step.sparsity),
                f"{step.flash:,}",
                f"{step.alive:,}",
                f"{step.instructions:,.0f}",
                f"{100 * step.instructions / most:.0f}",
            ]
            for step in firmware.steps
        ],
    )


def write_firmware_html(firmware: Firmware, path: str | os.PathLike[str]) -> Path:
    """Write the page of what `secateurs.export.c` made in one step and return the path; on failure the old file, if any, survives.

    Raises `OSError` where the file cannot be written.
    """
    return replace_text(path, firmware_html(firmware))
