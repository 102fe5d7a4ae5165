"""The formats that weights can have in flash: which of them a layer's zeros allow, and the layer as a call in each."""

from __future__ import annotations

from secateurs.firmware.call import Call
from secateurs.firmware.coded import coded_call
from secateurs.firmware.dense import dense_call
from secateurs.firmware.depthwise import depthwise_call, is_depthwise
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.instructions import counted
from secateurs.firmware.products import Place
from secateurs.firmware.sparse import blocks_call, of_four_call, scattered_call
from secateurs.integers.layers import Conv

FORMATS = ("dense", "depthwise", "blocks of 4", "blocks of 2 x 4", "blocks of 4 x 4", "1 of 4", "2 of 4", "CSR", "Huffman")
"""All formats of int8 weights. A block is four taps of as many rows of outputs; Huffman is dense, decoded each time the layer runs."""

_TALL = {"blocks of 4": 1, "blocks of 2 x 4": 2, "blocks of 4 x 4": 4}


def conv_call(layer: Conv, name: str, place: Place | None = None, format: str | None = None) -> Call:
    """A convolution or linear layer of int8 as C; ``name`` begins the names of its constants.

    ``place`` is the part of its arrays that it works on, all of them if left out; ``format`` one of `FORMATS`, without it all weights
    are kept. The answers do not depend on the format. ``instructions`` of the call are those of a Cortex-M4: `counted` tells of others.
    Raises `FirmwareError` where the layer cannot have the format.
    """
    return counted(uncounted_call(layer, name, place, format), place)


def uncounted_call(layer: Conv, name: str, place: Place | None = None, format: str | None = None) -> Call:
    """The same call, of which no instructions are known: what they are fitted to."""
    if is_depthwise(layer):
        if format not in (None, "depthwise"):
            raise FirmwareError(f"{layer.name}: weights of depthwise convolutions have one format, and that is not {format!r}")
        return depthwise_call(layer, name, place)
    if format in (None, "dense"):
        return dense_call(layer, name, place)
    if format == "Huffman":
        return coded_call(layer, name, place)
    if format == "CSR":
        return scattered_call(layer, name, place)
    if format in ("1 of 4", "2 of 4"):
        return of_four_call(layer, name, place, int(format[0]))
    if format in _TALL:
        return blocks_call(layer, name, place, _TALL[format])
    raise FirmwareError(f"{layer.name}: there is no format {format!r} for its weights; there are {', '.join(FORMATS)}")


def choices(layer: Conv, name: str, place: Place | None = None, scratch: int | None = None) -> list[Call]:
    """The layer in all formats that it can have and that need at most ``scratch`` bytes beside its arrays; dense first, whatever it needs.

    Raises `FirmwareError` where it can have none.
    """
    if is_depthwise(layer):
        return [conv_call(layer, name, place)]
    found = [conv_call(layer, name, place, "dense")]
    for format in FORMATS[2:]:
        try:
            call = conv_call(layer, name, place, format)
        except FirmwareError:
            continue
        if scratch is None or call.scratch <= scratch:
            found.append(call)
    return found
