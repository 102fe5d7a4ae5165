"""The first layers of a network as one step of C that goes patch by patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from secateurs.firmware.arena import Slot
from secateurs.firmware.call import Call, Constant
from secateurs.firmware.patches import Local, Part, Patched, Stage, fitted, trade_offs
from secateurs.firmware.products import whole
from secateurs.firmware.program import TYPES, Program, identifier
from secateurs.firmware.simple_calls import everywhere
from secateurs.integers.layers import Array, Conv, Network, Pool


@dataclass(frozen=True, eq=False)
class Chain:
    """A stage as a layer: what it reads and what it writes."""

    name: str
    x: Array
    y: Array
    stage: Stage


def in_patches(network: Network, calls: Sequence[Call], name: str, limit: int) -> Program | None:
    """A network whose arena has at most ``limit`` bytes since its first layers go patch by patch, with the fewest extra multiplications;
    None where the layers that would have to have no kernels for parts.

    Raises `FirmwareError` where nothing fits.
    """
    fitted(network, limit, calls)
    found = [each for each in trade_offs(network, calls) if each.arena.bytes <= limit]
    movable = {call.layer.name: _takes_parts(call) for call in calls}
    able = [each for each in found if each.stage is not None and all(movable[layer.name] for layer in each.stage.layers)]
    return _program(network, calls, name, able[0]) if able else None


def _takes_parts(call: Call) -> bool:
    """Whether a call ends with the numbers of all of its arrays, in whose place those of a part can stand."""
    return isinstance(call.layer, (Conv, Pool)) and call.statement.endswith(f"{_whole(call.layer)});")


def _whole(layer: Conv | Pool) -> str:
    return ", ".join(str(each) for each in astuple(whole(layer) if isinstance(layer, Conv) else everywhere(layer)))


def _program(network: Network, calls: Sequence[Call], name: str, patched: Patched) -> Program:
    stage = patched.stage
    assert stage is not None
    inside = {layer.name for layer in stage.layers}
    own = {call.layer.name: call for call in calls}
    chain = _chain_call(stage, [own[layer.name] for layer in stage.layers])
    rest = [call for call in calls if call.layer.name not in inside]
    return Program(identifier(name), network, (chain, *rest), patched.arena, patched.steps)


def _chain_call(stage: Stage, calls: Sequence[Call]) -> Call:
    """A loop over the patches, and in it each layer on its part; where the parts are stands in a table."""
    layers, arena = stage.layers, stage.arena(calls)
    prefix = calls[0].constants[0].name.rpartition("_")[0]
    table = Constant(
        f"{prefix}_parts", "int32_t", np.array([[_numbers(part) for part in parts] for parts in stage.parts], np.int32)
    )
    lines = [f"for (int patch = 0; patch < {stage.rows * stage.columns}; patch++) {{"]
    lines.append(f"        const int32_t *p = {table.name} + patch * {10 * len(layers)};")
    for number, (layer, call) in enumerate(zip(layers, calls, strict=True)):
        lines.append(f"        {_on_part(layer, call, number, len(layers), arena.places, arena.scratch)}")
    lines.append("    }")
    kernels = tuple(dict.fromkeys(kernel for call in calls for kernel in call.kernels))
    constants = (*(constant for call in calls for constant in call.constants), table)
    extra = 1 + stage.extra_macs / max(1, sum(getattr(layer, "macs", 0) for layer in layers))
    return Call(
        Chain(f"{layers[0].name} … {layers[-1].name}", layers[0].x, layers[-1].y, stage),  # type: ignore[arg-type]
        kernels,
        constants,
        "\n".join(lines).replace("{", "{{").replace("}", "}}").replace("<<", "{").replace(">>", "}"),
        arena.bytes,
        instructions=extra * sum(call.instructions for call in calls),
        label=f"{stage.rows} x {stage.columns} patches, " + ", ".join(dict.fromkeys(call.label for call in calls if call.label)),
    )


def _numbers(part: Part) -> list[int]:
    return [*astuple(part.place), part.start, part.begin]


def _on_part(layer: Local, call: Call, number: int, count: int, places: Mapping[str, Slot], scratch: Mapping[str, Slot]) -> str:
    """The call of one layer with the numbers of a part: its arrays are the stage's, or buffers in the stage's scratch."""
    assert isinstance(layer, (Conv, Pool))
    at = 10 * number

    def buffer(array: Array) -> str:
        return f"({TYPES[array.kind]} *)(void *)((uint8_t *)<<scratch>> + {places[array.name].offset})"

    x = f"(<<x>> + p[{at + 8}])" if number == 0 else buffer(layer.x)
    y = f"(<<y>> + p[{at + 9}])" if number == count - 1 else buffer(layer.y)
    own = scratch.get(layer.name)
    room = f"(void *)((uint8_t *)<<scratch>> + {0 if own is None else own.offset})"
    listed = _whole(layer)
    told = ", ".join(f"p[{at + each}]" for each in range(8))
    return f"{call.statement.removesuffix(f'{listed});')}{told});".format(x=x, y=y, scratch=room)
