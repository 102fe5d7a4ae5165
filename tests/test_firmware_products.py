"""Dense and depthwise convolutions and linear layers of int8 in C: to the bit what the reference answers."""

from __future__ import annotations

import sys
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from secateurs.firmware.call import Call
from secateurs.firmware.dense import chunk_of, dense_call, packed
from secateurs.firmware.depthwise import ROOM, depthwise_call, is_turned, planes
from secateurs.firmware.emulator import M0, M3, M4, M55, Core, emulated, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.formats import conv_call
from secateurs.firmware.host import compiler
from secateurs.firmware.products import Place, rows_of, whole
from secateurs.integers.layers import Array, Conv

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials
from products_in_c import any_conv, apart, conv

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")
SAME = (1, 1, 1, 1)


def _known(random: np.random.Generator) -> list[Conv]:
    """Each way through the kernels at least once."""
    return [
        conv(random, (25, 5, 64), 64),
        conv(random, (49, 10, 1), 24, (10, 4), stride=(2, 2), padding=(4, 5, 1, 1)),
        conv(random, (1, 1, 64), 12),
        conv(random, (6, 7, 10), 4, (3, 4), padding=(1, 1, 1, 2)),
        conv(random, (6, 7, 5), 4, (2, 4)),
        conv(random, (4, 4, 8), 6, padding=(0, 1, 0, 1), stride=(2, 2)),
        conv(random, (1, 1, 3000), 5),
        conv(random, (1, 2, 1400), 9),
        conv(random, (7, 6, 3), 7, (3, 3), padding=SAME, low=-100.0, high=90.0, zero=3),
        conv(random, (7, 6, 12), 9, (3, 2), padding=(1, 0, 2, 1), groups=3, stride=(2, 1), dilation=(1, 2)),
        conv(random, (5, 5, 4), 5, (1, 3), factor=1.7),
        conv(random, (8, 8, 16), 16, (3, 3), padding=SAME),
        conv(random, (25, 5, 16), 16, (3, 3), padding=SAME, groups=16),
        conv(random, (12, 12, 5), 5, (3, 3), padding=(0, 1, 0, 1), stride=(2, 2), groups=5),
        conv(random, (14, 15, 4), 8, (3, 3), padding=SAME, stride=(2, 2), groups=4, low=-50.0, high=60.0),
        conv(random, (6, 5, 3), 6, (2, 5), padding=(1, 0, 2, 1), stride=(2, 1), groups=3),
        conv(random, (9, 9, 5), 5, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=5, zero=4),
        conv(random, (1, 20, 8), 8, (1, 9), padding=(0, 0, 4, 4), groups=8),
        conv(random, (9, 9, 5), 5, (3, 3), padding=SAME, groups=5, factor=1.3),
    ]


def _calls(layers: list[Conv]) -> list[Call]:
    return apart([conv_call(layer, "c") for layer in layers])


@needs_compiler
def test_random_layers_in_c_equal_the_reference() -> None:
    """Under sanitizers, with memory of exactly the arrays; a hundred and more layers in one program."""
    random = np.random.default_rng(0)
    layers = _known(random) + [any_conv(random) for _ in range(110)]
    assert not trials.wrong_on_host([trials.trial(call, random) for call in _calls(layers)])


@needs_emulator
@pytest.mark.parametrize("core", [M3, M4, M55], ids=lambda core: core.name)
def test_cores_with_and_without_their_own_arithmetic_answer_the_same(core: Core) -> None:
    random = np.random.default_rng(1)
    layers = _known(random) + [any_conv(random) for _ in range(40)]
    wrong, _ = trials.counted([trials.trial(call, random) for call in _calls(layers)], core)
    assert not wrong


@needs_emulator
def test_a_core_that_reads_no_words_from_anywhere_answers_the_same() -> None:
    """A Cortex-M0 with its 16 kB: unaligned words would be faults."""
    random = np.random.default_rng(2)
    layers = [each for each in (any_conv(random) for _ in range(60)) if each.x.size + each.y.size < 500][:12]
    assert len(layers) >= 6
    wrong, _ = trials.counted([trials.trial(call, random) for call in _calls(layers)], M0)
    assert not wrong


@needs_emulator
@pytest.mark.parametrize("flags", ["-O0", "-Os", "-O3"])
def test_any_level_of_optimisation_answers_the_same(flags: str) -> None:
    """The assembly takes all registers: what the compiler keeps in one at some level must not stand in its way."""
    random = np.random.default_rng(5)
    some = [trials.trial(call, random) for call in _calls(_known(random))]
    lines = emulated({"main.c": trials.program(some)}, M4, (*flags.split(), "-DSEC_BOARD=1")).splitlines()
    assert [line.split()[1] for line in lines] == ["0"] * len(some)


@needs_emulator
def test_vectors_of_a_cortex_m55_halve_the_instructions() -> None:
    random = np.random.default_rng(6)
    some = [trials.trial(call, random) for call in _calls([conv(random, (25, 5, 64), 64, largest=80)])]
    (_, (scalar,)), (_, (vectors,)) = trials.counted(some, M4), trials.counted(some, M55)
    assert vectors < 0.52 * scalar


@needs_emulator
def test_a_pointwise_layer_takes_about_one_instruction_a_product() -> None:
    """What the layers of DS-CNN take on a Cortex-M4; the same to the instruction each time."""
    random = np.random.default_rng(3)
    layers = [
        conv(random, (25, 5, 64), 64, largest=80),
        conv(random, (25, 5, 64), 64, (3, 3), padding=SAME, groups=64),
        conv(random, (1, 1, 640), 128, largest=80),
    ]
    some = [trials.trial(call, random) for call in _calls(layers)]
    (wrong, counts), (_, again) = trials.counted(some, M4), trials.counted(some, M4)
    assert not wrong
    assert counts == again
    assert [count / layer.macs for count, layer in zip(counts, layers, strict=True)] <= [1.05, 2.8, 1.0]


@needs_compiler
@pytest.mark.parametrize("turned", [False, True])
def test_parts_of_arrays_give_what_the_whole_does(turned: bool) -> None:
    """A layer patch by patch, each told its part of the whole arrays and what is left of the padding."""
    random = np.random.default_rng(4)
    size = (13, 6) if turned else (6, 13)
    layers = [
        conv(random, (*size, 8), 6, (3, 3), padding=SAME),
        conv(random, (*size, 3), 6, (3, 4), padding=(2, 1, 1, 2), stride=(2, 1)),
        conv(random, (*size, 8), 8, (3, 3), padding=SAME, groups=8),
        conv(random, (*size, 8), 8, (3, 3), padding=(0, 1, 0, 1), stride=(2, 2), groups=8),
        conv(random, (*size, 4), 5, stride=(1, 2)),
    ]
    calls = apart([_in_parts(conv_call(layer, "c"), layer) for layer in layers])
    assert not trials.wrong_on_host([trials.trial(call, random) for call in calls])


def _in_parts(call: Call, layer: Conv) -> Call:
    """The same call for each of two by three parts of the result, reading no more than it needs."""
    one = ", ".join(map(str, astuple(whole(layer))))
    (in_h, in_w, inputs), (out_h, out_w, outputs) = layer.x.shape, layer.y.shape
    rows, columns = np.linspace(0, out_h, 3).astype(int), np.linspace(0, out_w, 4).astype(int)
    statements, scratch = [], call.scratch
    for y0, y1 in pairwise(rows):
        for x0, x1 in pairwise(columns):
            spans = []
            for first, end, axis, size in ((y0, y1, 0, in_h), (x0, x1, 1, in_w)):
                begin = first * layer.stride[axis] - layer.padding[2 * axis]
                stop = (
                    (end - 1) * layer.stride[axis] - layer.padding[2 * axis] + (layer.kernel[axis] - 1) * layer.dilation[axis] + 1
                )
                spans.append((max(begin, 0), min(stop, size), max(-begin, 0)))
            (top, bottom, above), (left, right, before) = spans
            place = Place(bottom - top, right - left, in_w * inputs, y1 - y0, x1 - x0, out_w * outputs, above, before)
            told = call.statement.replace(one, ", ".join(str(int(each)) for each in astuple(place)))
            told = told.replace("{x}", f"{{x}} + {(top * in_w + left) * inputs}")
            statements.append(told.replace("{y}", f"{{y}} + {(y0 * out_w + x0) * outputs}"))
            scratch = max(scratch, conv_call(layer, "c", place).scratch)
    return replace(call, statement=" ".join(statements), scratch=scratch)


def test_two_rows_share_a_word() -> None:
    """256 times the odd row plus the even one; taps 0, 2, 1, 3; zeros fill up."""
    layer = replace(conv(np.random.default_rng(0), (1, 1, 3), 3), weight=np.arange(1, 10, dtype=np.int8).reshape(3, 1, 1, 3))
    assert packed(layer).tolist() == [*(4 * 256 + 1, 6 * 256 + 3, 7, 9), *(5 * 256 + 2, 0, 8, 0)]


def test_a_sum_over_two_rows_holds_what_the_weights_can_make() -> None:
    """The other factor is -128 at worst, and 256 times the sum must stay below 2^31."""
    random = np.random.default_rng(0)
    layer = conv(random, (1, 1, 1024), 2)
    assert chunk_of(replace(layer, weight=np.full_like(layer.weight, 63))) == 512
    assert chunk_of(replace(layer, weight=np.full_like(layer.weight, 64))) == 256


def test_the_longer_side_is_worked_along_where_fours_fit_it_better() -> None:
    random = np.random.default_rng(0)
    tall, wide = (conv(random, size, 4, (3, 3), padding=SAME, groups=4) for size in ((25, 5, 4), (5, 25, 4)))
    assert (is_turned(tall), is_turned(wide)) == (True, False)


def test_planes_of_large_layers_hold_few_rows() -> None:
    """Four channels of 96 x 96 in int16 would take 77 kB."""
    layer = conv(np.random.default_rng(0), (96, 96, 8), 8, (3, 3), padding=SAME, groups=8)
    band, taken = planes(layer, whole(layer))
    assert 1 <= band < 96
    assert taken <= ROOM == depthwise_call(layer, "c").scratch + (ROOM - taken)


def test_weights_of_minus_128_are_refused() -> None:
    layer = conv(np.random.default_rng(0), (1, 1, 4), 2)
    layer = replace(layer, weight=np.full_like(layer.weight, -128))
    with pytest.raises(FirmwareError, match=r"conv: weights of -128 do not fit the kernels; round them to -127 … 127"):
        dense_call(layer, "c")


def test_other_kinds_are_refused() -> None:
    layer = conv(np.random.default_rng(0), (1, 1, 4), 2)
    with pytest.raises(FirmwareError, match="conv: these kernels are for int8, and this layer reads int16 and writes int8"):
        conv_call(replace(layer, x=Array("x", (1, 1, 4), "int16")), "c")


def test_sums_that_leave_32_bits_are_refused() -> None:
    layer = conv(np.random.default_rng(0), (1, 1, 4), 2)
    with pytest.raises(FirmwareError, match=r"conv: sums of up to 21474.* do not fit 32 bits; scale its inputs or its bias down"):
        rows_of(replace(layer, bias=np.array([2**31 - 1, 0], np.int32)))


def test_sizes_beyond_the_tables_are_refused() -> None:
    layer = conv(np.random.default_rng(0), (1, 1, 33000), 1, largest=1)
    with pytest.raises(FirmwareError, match=r"conv: sizes above 32767 do not fit the kernels' tables: .*33000.*; split the layer"):
        conv_call(layer, "c")


def test_formats_that_are_not_there_are_refused() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(FirmwareError, match=r"conv: there is no format 'COO' for its weights; there are dense, .*CSR"):
        conv_call(conv(random, (1, 1, 4), 2), "c", format="COO")
    with pytest.raises(FirmwareError, match="conv: weights of depthwise convolutions have one format, and that is not 'CSR'"):
        conv_call(conv(random, (3, 3, 4), 4, groups=4), "c", format="CSR")
