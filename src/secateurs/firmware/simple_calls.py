"""Layers in int8 that are no products, as calls of C kernels: they answer as `integers.reference` does, to the bit."""

from __future__ import annotations

from dataclasses import astuple

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.constants import constant, factors, small
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.products import Place
from secateurs.integers.layers import Add, Array, Conv, Mean, Multiply, Pool, Softmax, Table

_HALF = 1 << 30
"""The multiplier of a half."""
_RESCALE = ("arithmetic.c", "rescale.c")


def period(layer: Multiply) -> int:
    """After how many numbers ``other`` begins anew."""
    return layer.other.size


def everywhere(layer: Pool) -> Place:
    """All of both arrays of a pool."""
    (in_h, in_w, channels), (out_h, out_w, _) = layer.x.shape, layer.y.shape
    return Place(in_h, in_w, in_w * channels, out_h, out_w, out_w * channels, layer.padding[0], layer.padding[2])


def pool_shape(layer: Pool, prefix: str) -> Constant:
    """What of a pool does not change from part to part, in the order of ``window.c``."""
    sizes = (*layer.window, *layer.stride, *layer.dilation, layer.x.shape[2], layer.x.zero, int(layer.counts_padding))
    if max(sizes) > 32767:
        raise FirmwareError(f"{layer.name}: sizes above 32767 do not fit the kernel's table: {sizes}; split the layer")
    return constant(prefix, "shape", "int16_t", sizes)


def conv_sizes(layer: Conv, prefix: str) -> Constant:
    """What of a convolution does not change from part to part, in the order of ``arithmetic.c``."""
    outputs, height, width, inputs = layer.weight.shape
    sizes = (height, width, *layer.stride, *layer.dilation, inputs, outputs // layer.groups, layer.groups)
    if max(sizes) > 32767:
        raise FirmwareError(f"{layer.name}: sizes above 32767 do not fit the kernel's table: {sizes}; split the layer")
    return constant(prefix, "shape", "int16_t", sizes)


def pool_call(layer: Pool, prefix: str, place: Place | None = None) -> Call:
    """A maximum or an average over windows, of all of the arrays or of a part."""
    shape, place = pool_shape(layer, prefix), place or everywhere(layer)
    numbers = ", ".join(str(each) for each in astuple(place))
    window, channels = layer.window[0] * layer.window[1], layer.x.shape[2]
    fours = -(-channels // 4)
    if layer.average:
        each = 60 + fours * (100 + 6.5 * window)
        kernels: tuple[str, ...] = ("arithmetic.c", "window.c", "sums.c", "average.c")
    else:
        each = 60 + window * (20 + 6.2 * fours)
        kernels = ("arithmetic.c", "window.c", "maximum.c")
    function = "sec_average" if layer.average else "sec_maximum"
    statement = f"{function}({{x}}, {{y}}, {shape.name}, {numbers});"
    return Call(layer, kernels, (shape,), statement, instructions=30 + place.out_h * place.out_w * each)


def mean_call(layer: Mean, prefix: str) -> Call:
    """The mean of each channel over all places."""
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    require_sums(layer.name, places, layer.x)
    by = constant(prefix, "by", "int32_t", [places * layer.x.zero, *factors(layer.rescale), layer.y.zero])
    statement = f"sec_mean({{x}}, {{y}}, {places}, {channels}, {by.name});"
    cost = 30 + -(-channels // 4) * (150 + places * 7.5)
    return Call(layer, (*_RESCALE, "sums.c", "mean.c"), (by,), statement, instructions=cost)


def require_sums(name: str, places: int, x: Array) -> None:
    """Raise `FirmwareError` where the sum over so many places could leave 32 bits."""
    most = 255 if x.kind == "int8" else 32768
    if places * most >= 1 << 31:
        raise FirmwareError(
            f"{name}: the sum over {places} places can reach {places * most}, which does not fit 32 bits; average in two steps"
        )


def add_by(layer: Add, prefix: str, left: int) -> Constant:
    """Factors and bounds of a sum, in the order of ``terms.c``; terms are shifted by ``left`` and doubled before they are rescaled."""
    terms = []
    for array, by in ((layer.x, layer.of_x), (layer.other, layer.of_other)):
        multiplier, shift = factors(by)
        if shift > 0 or (shift == 0 and multiplier > _HALF):
            raise FirmwareError(f"{layer.name}: a term is more than half of what its sums are in; give it the ranges anew")
        terms += [2 << left, -array.zero * (2 << left), multiplier, -shift]
    low, high = _bounds(layer)
    return constant(prefix, "by", "int32_t", [*terms, *factors(layer.rescale), layer.y.zero, low, high, layer.sign])


def _bounds(layer: Add) -> tuple[int, int]:
    least, most = (-128, 127) if layer.y.kind == "int8" else (-32768, 32767)
    return int(max(layer.low, least)), int(min(layer.high, most))


def _quick_by(layer: Add) -> tuple[bool, list[int]] | None:
    """Whether ``other`` is the term that comes first, and the numbers of ``add.c``; nothing where factors are not what they mostly are.

    The term of the larger scale is multiplied by a half exactly: its number shifted by 19.
    """
    terms = [(layer.x, factors(layer.of_x), 1), (layer.other, factors(layer.of_other), layer.sign)]
    turned = terms[0][1] != (_HALF, 0)
    (one, exact, sign), (two, (multiplier, shift), sign_two) = terms[::-1] if turned else terms
    out, shift_out = factors(layer.rescale)
    if exact != (_HALF, 0) or shift > 0 or shift_out > -1 or out == 0 or abs(layer.y.zero) << -shift_out >= 1 << 29:
        return None
    doubled = int(shift == 0)  # a half too: twice the number, shifted by one more
    left, shift = 1 << (21 + doubled), max(doubled - shift, 1)
    ends = [out, -shift_out, (1 << (-shift_out - 1)) + (layer.y.zero << -shift_out), *_bounds(layer)]
    first = [sign << 19, -(sign << 19) * one.zero]
    return turned, [*first, left, -left * two.zero, multiplier, shift, 1 << (shift - 1), sign_two, *ends]


def add_call(layer: Add, prefix: str) -> Call:
    """The sum or difference of two arrays, which may take the place of the first."""
    quick = _quick_by(layer)
    if quick is None:
        by = add_by(layer, prefix, 20)
        statement = f"sec_add_any({{x}}, {{other}}, {{y}}, {layer.y.size}, {by.name});"
        kernels = (*_RESCALE, "terms.c", "add_any.c")
        return Call(layer, kernels, (by,), statement, in_place="x", instructions=40 + 60 * layer.y.size)
    turned, numbers = quick
    by = constant(prefix, "by", "int32_t", numbers)
    names = "{other}, {x}" if turned else "{x}, {other}"
    statement, clamps = f"sec_add({names}, {{y}}, {layer.y.size}, {by.name});", _bounds(layer) != (-128, 127)
    cost = 50 + (28 + 9 * clamps) * layer.y.size
    return Call(layer, (*_RESCALE, "add.c"), (by,), statement, in_place="x", instructions=cost)


def multiply_call(layer: Multiply, prefix: str) -> Call:
    """The product of two arrays, or of one with a number for each channel; it may take the place of the first."""
    by = constant(
        prefix,
        "by",
        "int32_t",
        [layer.x.zero, layer.other.zero, *small(layer.rescale, "int8", 255 * 255, layer.name), layer.y.zero],
    )
    statement = f"sec_times({{x}}, {{other}}, {{y}}, {layer.y.size}, {period(layer)}, {by.name});"
    return Call(layer, (*_RESCALE, "multiply.c"), (by,), statement, in_place="x", instructions=40 + 28 * layer.y.size)


def table_call(layer: Table, prefix: str) -> Call:
    """A function of single numbers out of a table of 256; the result may take the place of what it is of."""
    assert layer.table is not None
    table = constant(prefix, "table", "int8_t", layer.table)
    statement = f"sec_table({{x}}, {{y}}, {layer.y.size}, {table.name});"
    return Call(layer, ("table.c",), (table,), statement, in_place="x", instructions=20 + 5.25 * layer.y.size)


def softmax_call(layer: Softmax, prefix: str) -> Call:
    """exp(x - largest) / sum over the channels; the result may take the place of what it is of."""
    assert layer.table is not None
    places, channels = layer.x.shape[0] * layer.x.shape[1], layer.x.shape[2]
    require_exponentials(layer)
    table = constant(prefix, "table", "uint32_t", layer.table)
    statement = f"sec_softmax({{x}}, {{y}}, {places}, {channels}, {table.name});"
    return Call(layer, ("softmax.c",), (table,), statement, in_place="x", instructions=20 + places * (15 + 27 * channels))


def require_exponentials(layer: Softmax) -> None:
    """Raise `FirmwareError` where the sum of exponentials could leave 32 bits."""
    if layer.x.shape[2] >= 1 << 15:
        raise FirmwareError(f"{layer.name}: softmax over {layer.x.shape[2]} channels, where sums fit 32 bits up to 32767; split it")
