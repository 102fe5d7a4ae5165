"""Which convolutions may write their result over what they read."""

from __future__ import annotations

from dataclasses import replace

from secateurs.firmware.call import Call
from secateurs.firmware.depthwise import is_depthwise, is_turned, planes
from secateurs.firmware.products import whole
from secateurs.integers.layers import Conv


def overwriting(call: Call) -> Call:
    """The call, told that its result may lie where its input does, if its kernel reads all that it needs of a place before it writes there.

    Of a pointwise convolution that is so since a place is widened into scratch before its outputs are written, and these are no more than
    its inputs, so that what is written stays behind what is read; of a depthwise one where the planes of four channels, which are written
    to from then on, are in scratch as a whole.
    """
    layer = call.layer
    if not isinstance(layer, Conv) or layer.x.kind != "int8" or layer.x.shape[:2] != layer.y.shape[:2] or layer.stride != (1, 1):
        return call
    pointwise = layer.kernel == (1, 1) and not any(layer.padding)
    if layer.y.shape[2] > layer.x.shape[2]:
        return call
    if is_depthwise(layer):
        rows = layer.y.shape[1] if is_turned(layer) else layer.y.shape[0]
        return replace(call, in_place="x") if planes(layer, whole(layer))[0] >= rows else call
    return replace(call, in_place="x") if pointwise else call
