"""Weights that are partly zeros, in all formats that C has for them: each answers what dense weights do, to the bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.firmware.call import Call
from secateurs.firmware.coded import coded
from secateurs.firmware.emulator import M3, M4, M55, Core, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.formats import FORMATS, choices, conv_call
from secateurs.firmware.host import compiler
from secateurs.firmware.sparse import gaps_of
from secateurs.integers.layers import Conv

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials
from products_in_c import any_conv, apart, conv, of_four, pruned

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


def _calls(random: np.random.Generator) -> list[Call]:
    """Layers of several shapes and sparsities in each of their formats."""
    shapes = [
        conv(random, (5, 5, 16), 12, largest=100),
        conv(random, (1, 1, 144), 10, largest=100),
        conv(random, (6, 5, 4), 7, (3, 3), padding=(1, 1, 1, 1), low=-100.0, high=90.0, zero=3),
        conv(random, (7, 6, 3), 5, (3, 2), padding=(0, 1, 1, 0), stride=(2, 1), dilation=(1, 2)),
        conv(random, (1, 1, 2300), 3, largest=20),
        conv(random, (3, 3, 5), 3, (2, 2), factor=1.3),
    ]
    calls = []
    for layer in shapes:
        for keep in (0.0, 0.08, 0.5):
            calls += [
                call for tall in (1, 2, 4) for call in _formats(pruned(layer, random, keep, tall, 4), f"blocks of {tall} x 4")
            ]
            calls += _formats(pruned(layer, random, keep, 1, 1), "CSR")
        calls += _formats(pruned(layer, random, 0.3, 1, 1), "Huffman")
        calls += _formats(of_four(layer, random, 1), "1 of 4") + _formats(of_four(layer, random, 2), "2 of 4")
    return apart(calls)


def _formats(layer: Conv, format: str) -> list[Call]:
    return [conv_call(layer, "c", format=format.replace("1 x ", ""))]


@needs_compiler
def test_random_zeros_in_all_formats_equal_the_reference() -> None:
    random = np.random.default_rng(0)
    layers = [each for each in (any_conv(random) for _ in range(60)) if each.groups == 1 and not each.is_depthwise]
    more = apart([call for layer in layers[:12] for call in choices(pruned(layer, random, 0.3, 1, 1), "c")])
    more = [replace(call, statement=call.statement.replace(" c", " d")) for call in more]
    more = [replace(call, constants=tuple(replace(each, name=f"d{each.name[1:]}") for each in call.constants)) for call in more]
    calls = _calls(random) + more
    assert {call.label for call in calls} >= set(FORMATS) - {"depthwise"}
    assert not trials.wrong_on_host([trials.trial(call, random) for call in calls])


@needs_emulator
@pytest.mark.parametrize("core", [M3, M4, M55], ids=lambda core: core.name)
def test_cores_answer_the_same(core: Core) -> None:
    random = np.random.default_rng(1)
    wrong, _ = trials.counted([trials.trial(call, random) for call in _calls(random)], core)
    assert not wrong


@needs_emulator
def test_zeros_help_where_they_follow_the_width_of_the_arithmetic() -> None:
    """Scalpel's finding (ISCA 2017) on a Cortex-M4: at half the weights, blocks win and single weights lose."""
    random = np.random.default_rng(2)
    layer = conv(random, (1, 1, 800), 120, largest=60)
    half = pruned(layer, random, 0.5, 1, 1), pruned(layer, random, 0.5, 4, 4), pruned(layer, random, 0.1, 1, 1)
    formats = zip((half[0], half[0], half[1], half[2], half[2]), ("dense", "CSR", "blocks of 4 x 4", "dense", "CSR"), strict=True)
    calls = apart([conv_call(each, "c", format=format) for each, format in formats])
    wrong, (dense, single, blocks, same, few) = trials.counted([trials.trial(call, random) for call in calls], M4)
    assert not wrong
    assert single > 2.5 * dense
    assert blocks < 0.75 * dense
    assert few < same


@given(st.lists(st.lists(st.integers(0, 700), max_size=6), min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_gaps_lead_to_what_is_kept(rows: list[list[int]], data: st.DataObject) -> None:
    """Walking along the gaps meets all that is kept, in order, and nothing but zeros besides."""
    kept = np.zeros((len(rows), 701), bool)
    for row, some in enumerate(rows):
        kept[row, some] = True
    places, gaps, counts = gaps_of(kept)
    assert len(counts) == len(rows)
    start = 0
    for row, count in enumerate(counts.tolist()):
        at, met = 0, []
        for gap in gaps[start : start + count].tolist():
            met.append(at + gap)
            at += gap + 1
        assert met == places[start : start + count].tolist()
        assert set(np.flatnonzero(kept[row]).tolist()) <= set(met)
        assert count <= kept[row].sum() + 701 // 256
        start += count


def test_what_is_left_out_takes_no_flash() -> None:
    """Bytes of weights and of what says where they are."""
    random = np.random.default_rng(3)
    layer = conv(random, (1, 1, 64), 32, largest=60)
    rest = conv_call(layer, "c").flash - 64 * 32

    def taken(layer: Conv, format: str) -> int:
        return conv_call(layer, "c", format=format).flash - rest

    quarter = pruned(layer, random, 0.25, 4, 4)
    blocks = int((quarter.weight.reshape(8, 4, 16, 4) != 0).any((1, 3)).sum())
    assert taken(quarter, "blocks of 4 x 4") == 17 * blocks + 2 * 8
    single = pruned(layer, random, 0.25, 1, 1)
    assert taken(single, "CSR") == 2 * np.count_nonzero(single.weight) + 2 * 32
    assert taken(of_four(layer, random, 1), "1 of 4") == 16 * 32 * 5 // 4 + 2 * 32
    assert taken(replace(single, weight=np.sign(single.weight)), "Huffman") < 64 * 32 * 1.5 / 8 + 20


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=300) | st.lists(st.sampled_from([0, 0, 0, 1, -1, 77]), min_size=1))
@settings(max_examples=60, deadline=None)
def test_words_lead_back_to_their_numbers(numbers: list[int]) -> None:
    """Read bit by bit; in the mean no word takes a bit more than the entropy."""
    bits, code, symbols = coded(np.array(numbers, np.int8))
    shortest, longest = code[:2].tolist()
    last, offset = code[2 : 3 + longest - shortest].tolist(), code[3 + longest - shortest :].tolist()
    stream, at, found = np.unpackbits(bits), 0, []
    for _ in numbers:
        word = int("".join(map(str, stream[at : at + 16])), 2)
        length = next(each for each in range(shortest, longest + 1) if word <= last[each - shortest])
        found.append(int(symbols[((word >> (16 - length)) + offset[length - shortest]) % (1 << 16)]))
        at += length
    assert found == numbers
    assert len(bits) == -(-at // 8) + 3
    counts = np.unique(numbers, return_counts=True)[1] / len(numbers)
    assert at <= len(numbers) * (1 - float(counts @ np.log2(counts)))


def test_choices_are_what_the_zeros_allow() -> None:
    random = np.random.default_rng(4)
    layer = conv(random, (1, 1, 32), 8, largest=60)
    assert [call.label for call in choices(layer, "c")] == [
        "dense",
        "blocks of 4",
        "blocks of 2 x 4",
        "blocks of 4 x 4",
        "CSR",
        "Huffman",
    ]
    assert "2 of 4" in [call.label for call in choices(of_four(layer, random, 2), "c")]
    assert "1 of 4" in [call.label for call in choices(of_four(layer, random, 1), "c")]
    assert [call.label for call in choices(conv(random, (3, 3, 6), 6, groups=2), "c")] == ["dense", "Huffman"]
    assert [call.label for call in choices(conv(random, (3, 3, 6), 6, groups=6), "c")] == ["depthwise"]
    assert [call.label for call in choices(layer, "c", scratch=5 * 32)] == ["dense", "blocks of 2 x 4", "blocks of 4 x 4"]


def test_groups_have_one_format() -> None:
    layer = conv(np.random.default_rng(0), (3, 3, 6), 6, groups=2)
    with pytest.raises(FirmwareError, match="conv: weights of 2 groups cannot be left out; its format must be dense"):
        conv_call(layer, "c", format="CSR")


def test_fours_that_hold_more_are_refused() -> None:
    layer = replace(conv(np.random.default_rng(0), (1, 1, 4), 1), weight=np.array([1, 2, 0, 3], np.int8).reshape(1, 1, 1, 4))
    with pytest.raises(FirmwareError, match="conv: four taps in a row hold up to 3 weights, not 2; its format must be another"):
        conv_call(layer, "c", format="2 of 4")


def test_sums_of_two_rows_that_fit_no_word_are_refused() -> None:
    layer = conv(np.random.default_rng(0), (1, 1, 1000), 2)
    layer = replace(layer, weight=np.full_like(layer.weight, 100))
    with pytest.raises(
        FirmwareError, match="conv: the sums of two rows do not fit one word; its format must be dense or blocks of 4"
    ):
        conv_call(layer, "c", format="blocks of 2 x 4")
