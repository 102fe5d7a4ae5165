"""Layers that move numbers of any kind: put together, cut out, padded, in another order."""

from __future__ import annotations

from math import prod

import numpy as np

from secateurs.firmware.call import Call
from secateurs.firmware.constants import bytes_of, constant, small
from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Concat, Cut, Pad, Reorder

_LOOPS = 8
"""As many loops as the kernel can count."""


def cut_call(layer: Cut, prefix: str) -> Call:
    """A box out of an array; ``y`` may begin where ``x`` does."""
    size = bytes_of(layer.x.kind)
    _, width, channels = layer.x.shape
    steps = [step * by * size for step, by in zip(layer.step, (width * channels, channels, 1), strict=True)]
    start = (layer.start[0] * width + layer.start[1]) * channels + layer.start[2]
    return _move(layer, prefix, f"{{x}} + {start}" if start else "{x}", list(zip(layer.y.shape, steps, strict=True)), "x")


def reorder_call(layer: Reorder, prefix: str) -> Call:
    """The same numbers in another order."""
    size = bytes_of(layer.x.kind)
    steps = [prod(layer.sizes[dim + 1 :]) * size for dim in range(len(layer.sizes))]
    return _move(layer, prefix, "{x}", [(layer.sizes[dim], steps[dim]) for dim in layer.order], None)


def _move(layer: Cut | Reorder, prefix: str, x: str, loops: list[tuple[int, int]], in_place: str | None) -> Call:
    """Loops of ``(how often, bytes further)``, of which those that only go on become one, and the innermost ones one run of bytes."""
    run = bytes_of(layer.x.kind)
    found: list[tuple[int, int]] = []
    for count, step in reversed(loops):
        if count == 1:
            continue
        if not found and step == run:
            run *= count
        elif found and step == found[-1][0] * found[-1][1]:
            found[-1] = (found[-1][0] * count, found[-1][1])
        else:
            found.append((count, step))
    found = found[::-1] or [(1, run)]
    if len(found) > _LOOPS:
        raise FirmwareError(
            f"{layer.name}: {len(found)} loops over sizes {loops}, where the kernel has {_LOOPS}; reorder in two steps"
        )
    numbers = constant(prefix, "loops", "int32_t", np.array(found).ravel())
    statement = f"sec_move({x}, {{y}}, {run}, {len(found)}, {numbers.name});"
    runs = prod(count for count, _ in found)
    return Call(
        layer, ("move.c",), (numbers,), statement, in_place=in_place, instructions=40 + runs * (6 if run < 5 else 20 + run / 2)
    )


def pad_call(layer: Pad, prefix: str) -> Call:
    """An array in a larger one that is filled before."""
    size, (_, width, channels) = bytes_of(layer.x.kind), layer.y.shape
    top, _, left, _ = layer.padding
    ctype = {"int8": "int8_t", "int16": "int16_t", "float32": "float"}[layer.x.kind]
    value = constant(prefix, "value", ctype, np.array([layer.value]))
    row, begin = channels * size, (top * width + left) * channels + layer.channels[0]
    statement = (
        f"sec_repeat({{y}}, {value.name}, {layer.y.size}, {size});\n"
        f"sec_inner({{x}}, {{y}} + {begin}, {layer.x.shape[0]}, {layer.x.shape[1]}, {layer.x.shape[2] * size}, {row}, {width * row});"
    )
    cost = 60 + layer.y.size * (0.5 if size == 1 else 5) + layer.x.shape[0] * layer.x.shape[1] * (20 + layer.x.shape[2] * size / 2)
    return Call(layer, ("fill.c", "pad.c"), (value,), statement, instructions=cost)


def concat_call(layer: Concat, prefix: str) -> Call:
    """Arrays side by side in each place; those on another scale are rescaled."""
    channels, places = layer.y.shape[2], layer.y.shape[0] * layer.y.shape[1]
    kind, constants, statements, begin, cost = layer.y.kind, [], [], 0, 0.0
    kernels: list[str] = []
    for place, (part, by) in enumerate(zip(layer.parts, layer.rescales or (None,) * len(layer.parts), strict=True)):
        wide = part.shape[2]
        to = f"{{parts_{place}}}, {{y}} + {begin}, {places}"
        if by is None:
            kernels.append("rows.c")
            statements.append(f"sec_rows({to}, {wide * bytes_of(kind)}, {channels * bytes_of(kind)});")
            cost += 30 + places * (20 + wide * bytes_of(kind) / 2)
        else:
            kernels += ["arithmetic.c", "rescale.c", "scaled_rows.c" if kind == "int8" else "wide_scaled_rows.c"]
            numbers = [part.zero, *small(by, kind, 255 if kind == "int8" else 32768, layer.name), layer.y.zero]
            constants.append(constant(prefix, f"part_{place}", "int32_t", numbers))
            function = "sec_scaled_rows" if kind == "int8" else "sec_wide_scaled_rows"
            statements.append(f"{function}({to}, {wide}, {channels}, {constants[-1].name});")
            cost += 30 + places * (10 + wide * 18)
        begin += wide
    return Call(layer, tuple(dict.fromkeys(kernels)), tuple(constants), "\n".join(statements), instructions=cost)
