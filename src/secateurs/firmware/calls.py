"""Each layer as a call of a C kernel."""

from __future__ import annotations

from collections.abc import Callable

from secateurs.firmware import floats, wide
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.formats import conv_call
from secateurs.firmware.moves import concat_call, cut_call, pad_call, reorder_call
from secateurs.firmware.overwriting import overwriting
from secateurs.firmware.products import Place
from secateurs.firmware.program import view_call
from secateurs.firmware.recurrent_calls import float_recurrent_call, recurrent_call
from secateurs.firmware.simple_calls import add_call, mean_call, multiply_call, pool_call, softmax_call, table_call
from secateurs.integers.layers import (
    Add,
    Concat,
    Conv,
    Cut,
    Layer,
    Mean,
    Multiply,
    Pad,
    Pool,
    Recurrent,
    Reorder,
    Softmax,
    Table,
    View,
)

Rule = Callable[..., Call]
_ANY: dict[type, Rule] = {Concat: concat_call, Cut: cut_call, Pad: pad_call, Reorder: reorder_call}
_INT8: dict[type, Rule] = {
    Conv: conv_call,
    Recurrent: recurrent_call,
    Pool: pool_call,
    Mean: mean_call,
    Add: add_call,
    Multiply: multiply_call,
    Table: table_call,
    Softmax: softmax_call,
}
_FLOAT32: dict[type, Rule] = {
    Conv: floats.conv_call,
    Recurrent: float_recurrent_call,
    Pool: floats.pool_call,
    Mean: floats.mean_call,
    Add: floats.add_call,
    Multiply: floats.multiply_call,
    Table: floats.table_call,
    Softmax: floats.softmax_call,
}
_INT16: dict[type, Rule] = {
    Conv: wide.conv_call,
    Recurrent: recurrent_call,
    Pool: wide.pool_call,
    Mean: wide.mean_call,
    Add: wide.add_call,
    Multiply: wide.multiply_call,
    Table: wide.table_call,
    Softmax: wide.softmax_call,
}
_RULES: dict[str, dict[type, Rule]] = {
    "int8": _INT8 | _ANY,
    "int16": _INT16 | _ANY,
    "float32": _FLOAT32 | _ANY,
}


def call_of(layer: Layer, prefix: str, place: Place | None = None) -> Call:
    """A layer as C; the names of its constants begin with ``prefix``. ``place``: a part of a convolution or a pool, not all of it.

    A `View` is no call: its array is the same memory. Raises `FirmwareError` where there is no kernel for the layer, or numbers in it
    do not fit the kernel.

    >>> from secateurs.integers.layers import Array
    >>> x, y = Array("x", (4, 4, 8), "int8", 0.1), Array("y", (2, 2, 8), "int8", 0.1)
    >>> call_of(Pool("pool", x, y, average=False, window=(2, 2), stride=(2, 2)), "pool").statement
    'sec_maximum({x}, {y}, pool_shape, 4, 4, 32, 2, 2, 16, 0, 0);'
    """
    if isinstance(layer, View):
        return view_call(layer)
    rule = _RULES.get(layer.x.kind if not isinstance(layer, Concat) else layer.y.kind, {}).get(type(layer))
    if rule is None:
        raise FirmwareError(f"{layer.name}: there is no kernel for {type(layer).__name__} in {layer.y.kind}")
    return rule(layer, prefix, place) if place is not None else overwriting(rule(layer, prefix))
