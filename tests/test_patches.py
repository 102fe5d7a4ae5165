"""Stages that run patch by patch: each number is that of the whole, and the buffers are as large as said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secateurs.firmware.arena import arena_of
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.patches import chains, fitted, staged, trade_offs
from secateurs.integers.layers import Add, Array, Conv, Face, Mean, Network, Pad, Pool, Table
from secateurs.integers.reference import values_of


def one(part, read, write):
    """A layer on a part of its arrays, as the kernels do it: number by number, told only what the part says."""
    layer, place = part.layer, part.place
    channels, outputs = layer.x.shape[2], layer.y.shape[2]

    def x(row, column, channel):
        there = 0 <= row < place.in_h and 0 <= column < place.in_w
        return read[part.start + row * place.in_row + column * channels + channel] if there else None

    def taps(row, column, kernel, stride, dilation, channel):
        return [
            (i, j, x(row * stride[0] - place.top + i * dilation[0], column * stride[1] - place.left + j * dilation[1], channel))
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]

    def number(row, column, output):
        if isinstance(layer, Conv):
            each = channels // layer.groups
            group = output // (outputs // layer.groups)
            found = [
                layer.weight[output, i, j, channel] * value
                for channel in range(each)
                for i, j, value in taps(row, column, layer.kernel, layer.stride, layer.dilation, group * each + channel)
                if value is not None
            ]
            return min(max(sum(found) + layer.bias[output], layer.low), layer.high)
        if isinstance(layer, Pool):
            seen = [each[2] for each in taps(row, column, layer.window, layer.stride, layer.dilation, output)]
            found = [value for value in seen if value is not None]
            return sum(found) / (len(seen) if layer.counts_padding else len(found)) if layer.average else max(found)
        value = x(row - place.top, column - place.left, output)
        return layer.value if value is None else max(value, 0) if isinstance(layer, Table) else value

    for row in range(place.out_h):
        for column in range(place.out_w):
            for output in range(outputs):
                write[part.begin + row * place.out_row + column * outputs + output] = number(row, column, output)


def in_patches(stage, x, whole):
    """The last array of a stage, from buffers of the sizes that it says and no larger."""
    result = np.full(whole.size, np.nan)
    for patch in stage.parts:
        memories = [x.ravel(), *(np.full(stage.buffers[layer.y.name] // 4, np.nan) for layer in stage.layers[:-1]), result]
        for part, (read, write) in zip(patch, pairwise(memories), strict=True):
            one(part, read, write)
    return result.reshape(whole.shape)


def conv(name, x, outputs, kernel, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, high=np.inf):
    random = np.random.default_rng(len(name) + outputs)
    weight = random.integers(-2, 3, (outputs, *kernel, x.shape[2] // groups)).astype(np.float32)
    bias = random.integers(-2, 3, outputs).astype(np.float32)
    y = Array(f"{name}.y", (*size(x, kernel, stride, padding, dilation), outputs))
    return Conv(name, x, y, weight, bias, stride, padding, dilation, groups, high=high)


def pool(name, x, window, stride, padding=(0, 0, 0, 0), average=False, counts=False):
    y = Array(f"{name}.y", (*size(x, window, stride, padding, (1, 1)), x.shape[2]))
    return Pool(name, x, y, average, window, stride, padding, counts_padding=counts)


def size(x, kernel, stride, padding, dilation):
    return tuple(
        (x.shape[axis] + sum(padding[2 * axis : 2 * axis + 2]) - (kernel[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1
        for axis in (0, 1)
    )


def network(layers):
    faces = (Face(array.name, array, array.shape, (0, 1, 2), True) for array in (layers[0].x, layers[-1].y))
    return Network(*((face,) for face in faces), tuple(layers))


def answer(net, x):
    return values_of(net, [x[None].astype(np.float32)])[net.outputs[0].array.name][0]


def numbers(shape):
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float64)


@st.composite
def local_chains(draw):
    pair, few = st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(0, 2)
    x = Array("x", (draw(st.integers(6, 14)), draw(st.integers(6, 14)), 2))
    layers = []
    for number in range(draw(st.integers(1, 5))):
        kind, name = draw(st.sampled_from(["conv", "depthwise", "maximum", "average", "counting", "table", "pad"])), f"{number}"
        kernel, stride = draw(pair), draw(pair)
        padding = tuple(min(draw(few), kernel[axis // 2] - 1) for axis in range(4))
        if kind in ("conv", "depthwise"):
            outputs, groups = (2 * x.shape[2], x.shape[2]) if kind == "depthwise" else (draw(st.integers(1, 3)), 1)
            layer = conv(name, x, min(outputs, 6) if groups == 1 else outputs, kernel, stride, padding, draw(pair), groups, 9)
        elif kind == "table":
            layer = Table(name, x, Array(f"{name}.y", x.shape), "clamp 0 inf")
        elif kind == "pad":
            grown = (x.shape[0] + padding[0] + padding[1], x.shape[1] + padding[2] + padding[3], x.shape[2])
            layer = Pad(name, x, Array(f"{name}.y", grown), padding, 1)
        else:
            layer = pool(name, x, kernel, stride, padding, kind != "maximum", kind == "counting")
        assume(min(layer.y.shape) > 0 and layer.y.shape[2] <= 8)
        layers.append(layer)
        x = layer.y
    return layers


@settings(max_examples=60, deadline=None)
@given(local_chains(), st.integers(1, 4), st.integers(1, 4))
def test_patches_make_what_the_whole_makes(layers, rows, columns):
    x, net = numbers(layers[0].x.shape), network(layers)
    try:
        stage = staged(layers, min(rows, layers[-1].y.shape[0]), min(columns, layers[-1].y.shape[1]))
    except FirmwareError:  # a patch of nothing but padding
        assume(False)
    found = in_patches(stage, x, layers[-1].y)
    np.testing.assert_allclose(found, answer(net, x), rtol=1e-5, atol=1e-4)
    sizes = dict.fromkeys(stage.buffers, 0)
    done = 0
    for patch in stage.parts:
        for part in patch:
            made = part.place.out_h * part.place.out_w
            done += made * part.layer.weight.size if isinstance(part.layer, Conv) else 0
            if part.layer is not layers[-1]:
                sizes[part.layer.y.name] = max(sizes[part.layer.y.name], 4 * made * part.layer.y.shape[2])
    assert done - sum(layer.macs for layer in layers if isinstance(layer, Conv)) == stage.extra_macs
    assert sizes == stage.buffers


def small_mobilenet():
    """Large arrays first, small ones later, and a mean at the end."""
    x = Array("x", (48, 48, 1))
    layers = [conv("first", x, 8, (3, 3), (2, 2), (0, 1, 0, 1))]
    for name, outputs, stride in (("one", 16, 1), ("two", 32, 2), ("three", 32, 1), ("four", 64, 2)):
        before = layers[-1].y
        padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        layers.append(conv(f"{name}.dw", before, before.shape[2], (3, 3), (stride, stride), padding, groups=before.shape[2]))
        layers.append(conv(f"{name}.pw", layers[-1].y, outputs, (1, 1)))
    layers.append(Mean("mean", layers[-1].y, Array("mean.y", (1, 1, 64))))
    return network(layers)


def test_less_memory_is_bought_with_more_multiplications():
    net = small_mobilenet()
    found = trade_offs(net)
    assert found[0].stage is None
    assert found[0].arena == arena_of(net)
    assert found[0].extra_macs == 0
    assert len(found) > 3
    for before, after in pairwise(found):
        assert after.arena.bytes < before.arena.bytes
        assert after.extra_macs > before.extra_macs
    assert found[-1].arena.bytes < 0.5 * found[0].arena.bytes
    for each in found[1:]:
        stage = each.stage
        assert each.arena.bytes >= stage.arena().bytes + stage.layers[0].x.bytes + stage.layers[-1].y.bytes
        assert not set(stage.buffers) & set(each.arena.places)
        assert [step.name for step in each.steps][1:] == [layer.name for layer in net.layers[len(stage.layers) :]]


def test_the_plan_that_fits_is_the_one_with_the_fewest_multiplications():
    net = small_mobilenet()
    found = trade_offs(net)
    for each in found:
        assert fitted(net, each.arena.bytes).extra_macs == each.extra_macs
    between = (found[1].arena.bytes + found[2].arena.bytes) // 2
    assert fitted(net, between).arena.bytes == found[2].arena.bytes
    least = found[-1].arena.bytes
    with pytest.raises(FirmwareError) as caught:
        fitted(net, least - 1)
    said = str(caught.value)
    grid = f"{found[-1].stage.rows} × {found[-1].stage.columns} patches"
    for part in (f"the {least - 1:,} of the SRAM", f"takes {least:,}, with {grid}", "'one.pw.y' with 36,864 bytes", "24 × 24 × 16"):
        assert part in said


def test_a_stage_counts_what_its_layers_need_and_may_overwrite():
    x = Array("x", (8, 8, 1), "int8")
    first = conv("first", x, 4, (1, 1))
    first = replace(first, y=replace(first.y, kind="int8"))
    table = Table("table", first.y, Array("t", first.y.shape, "int8"), "clamp 0 inf")
    last = replace(conv("last", table.y, 1, (1, 1)), y=Array("y", (8, 8, 1), "int8"))
    stage = staged([first, table, last], 2, 1)
    assert stage.buffers == {"first.y": 128, "t": 128}
    assert stage.arena().bytes == 256
    calls = [Call(first, (), (), "", 20), Call(table, (), (), "", 0, "x"), Call(last, (), (), "", 60)]
    assert stage.arena(calls).bytes == 128 + 60
    assert stage.step(calls).scratch == 188
    assert stage.extra_macs == 0


def test_a_stage_ends_where_an_array_is_wanted_twice_or_leaves():
    x = Array("x", (8, 8, 2))
    a, b, c = (conv(name, x, 2, (1, 1)) for name in "abc")
    b, c = replace(b, x=a.y), replace(c, x=b.y)
    add = Add("add", a.y, c.y, Array("y", (8, 8, 2)))
    net = network([a, b, c, add])
    assert chains(net) == [(a,)]
    assert [each.stage for each in trade_offs(net)] == [None]
    plain = network([a, b, c])
    assert chains(plain) == [(a, b, c)]
    leaves = Network(plain.inputs, (*plain.outputs, Face("b", b.y, b.y.shape, (0, 1, 2), True)), plain.layers)
    assert chains(leaves) == [(a, b)]
    mean = network([Mean("mean", x, Array("m", (1, 1, 2)))])
    assert chains(mean) == []


def test_grids_that_cannot_be_are_said():
    layer = conv("conv", Array("x", (8, 8, 1)), 1, (3, 3), (2, 2))
    with pytest.raises(FirmwareError, match="conv: rows=4, but what it writes has 3; cut it into 1 to 3"):
        staged([layer], 4, 1)
    with pytest.raises(FirmwareError, match="conv: columns=0, but what it writes has 3; cut it into 1 to 3"):
        staged([layer], 1, 0)
    pad = Pad("pad", Array("x", (2, 2, 1)), Array("y", (6, 2, 1)), (2, 2, 0, 0))
    with pytest.raises(FirmwareError, match="pad: a patch would read nothing but padding; cut into fewer rows"):
        staged([pad], 3, 1)
