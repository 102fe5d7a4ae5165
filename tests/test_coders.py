"""The entropy coders: the compiled ones write what their plain text in Python writes, and nothing that is read does harm."""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.coding.coders import by_mixing, by_neighbours, fixed_width, numeral_system, payload, prefix_code, tokens
from secateurs.coding.coders import native as native_module
from secateurs.coding.coders.native import native
from secateurs.coding.coders.payload import Malformed, Shape, least_bytes, most_numbers
from secateurs.coding.coders.ranges import RangeEncoder
from secateurs.types import FileError, SecateursError

CODERS = (fixed_width, prefix_code, numeral_system, by_neighbours, by_mixing)
each_coder = pytest.mark.parametrize("coder", CODERS, ids=lambda module: module.__name__.split(".")[-1])
compiled = pytest.mark.skipif(native is None, reason="the coders were not compiled")


real_data = pytest.mark.skipif(
    "SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the folder with the published weights"
)


@st.composite
def tensors(draw) -> np.ndarray:
    """Tensors of few numbers: kernels of all sorts, of all densities and magnitudes, the largest magnitudes too."""
    inner = draw(st.sampled_from((1, 1, 2, 3, 4, 9, 25, 260)))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, max(1, 30 // inner))), inner) if inner < 260 else (1, 2, inner)
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    density, octaves = draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))), draw(st.integers(0, 31))
    sizes = np.minimum(2 ** (source.random(shape) * octaves), 2**31 - 1).astype(np.int64) * source.choice((-1, 1), shape)
    numbers = np.where(source.random(shape) < density, sizes, 0)
    if draw(st.booleans()) and octaves == 31:
        numbers.flat[0] = -(2**31)
    return numbers.astype(np.int32)


def structured(rows: int, columns: int, inner: int) -> np.ndarray:
    """Numbers that look like pruned weights, made without a library whose random numbers might change."""
    at = np.arange(rows * columns * inner, dtype=np.uint64)
    noise = ((at * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) >> np.uint64(33)) % np.uint64(1000)
    sizes = noise.astype(np.int64).reshape(rows, columns, inner) - 500
    scale = 1 + np.arange(columns)[:, None] % 7 + 2 * (np.arange(rows) % 3)[:, None, None]
    return np.where(abs(sizes) < 330, 0, sizes * scale // 200).astype(np.int32)


@compiled
@settings(max_examples=10)
@given(tensors())
def test_compiled_and_plain_write_the_same_and_read_it_back(levels):
    for coder in CODERS:
        data = coder.encode(levels)
        assert data == coder.encode_plain(levels, Shape(*levels.shape))
        assert np.array_equal(coder.decode(data, *levels.shape), levels)
        assert np.array_equal(np.asarray(coder.decode_plain(data, Shape(*levels.shape))).reshape(levels.shape), levels)


GOLDEN = {
    fixed_width: (1301, "e713f3bbcb8bea37"),
    prefix_code: (641, "54e46a4bb9f49392"),
    numeral_system: (667, "21660708f8cbc16b"),
    by_neighbours: (540, "fe9e0afaada2cf1a"),
    by_mixing: (480, "6b1f462132622afd"),
}


@each_coder
def test_formats_do_not_change(coder):
    data = coder.encode(structured(16, 12, 9))
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == GOLDEN[coder]


@each_coder
def test_other_shapes_and_kinds(coder):
    for levels in (structured(3, 30, 1), structured(1, 1, 300), structured(40, 1, 1), np.full((2, 3, 4), -5, np.int32)):
        assert np.array_equal(coder.decode(coder.encode(levels), *levels.shape), levels)
    for shape in ((0, 3, 1), (2, 0, 9), (0, 0, 0)):
        assert coder.encode(np.zeros(shape, np.int32)) == b"" and coder.decode(b"", *shape).shape == shape
    data = coder.encode(structured(3, 4, 1))
    for kind in (bytearray, memoryview):
        assert np.array_equal(coder.decode(kind(data), 3, 4, 1), structured(3, 4, 1))


@each_coder
def test_what_is_no_array_of_levels_is_told(coder):
    for wrong in (np.zeros((2, 3, 1)), np.zeros((2, 3), np.int32), np.zeros((4, 3, 2), np.int32).transpose(2, 1, 0), [[[1]]]):
        with pytest.raises(SecateursError, match="a coder takes int32 levels"):
            coder.encode(wrong)


@each_coder
def test_truncated_and_mutated_payloads_do_no_harm(coder):
    levels = structured(4, 9, 9)
    data, chance = coder.encode(levels), random.Random(0)
    wrong = [data[:size] for size in range(0, len(data), 3)] + [data + b"\1", data + bytes(9), b"\xff" * 50]
    for _ in range(150):
        bytes_ = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            bytes_[chance.randrange(min(len(data), chance.choice((8, 40, 10**6))))] = chance.randrange(256)
        wrong.append(bytes(bytes_))
    told, start = 0, time.process_time()
    for each in wrong:
        try:
            found = coder.decode(each, *levels.shape)
            assert found.shape == levels.shape and found.dtype == np.int32
        except FileError as error:
            told += "damaged: " in str(error)
    assert told > len(data) // 3 * 0.8
    assert time.process_time() - start < 10 or native is None


@compiled
@each_coder
def test_plain_decoders_refuse_what_compiled_ones_refuse(coder):
    levels = structured(1, 9, 4)
    data, chance = coder.encode(levels), random.Random(1)
    for _ in range(25):
        bytes_ = bytearray(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        if bytes_:
            bytes_[chance.randrange(len(bytes_))] ^= 1 << chance.randrange(8)
        try:
            found = coder.decode(memoryview(bytes_), *levels.shape).ravel().tolist()
        except FileError:
            with pytest.raises(Malformed):
                coder.decode_plain(bytes(bytes_), Shape(*levels.shape))
        else:
            assert list(coder.decode_plain(bytes(bytes_), Shape(*levels.shape))) == found


@each_coder
def test_few_bytes_cannot_ask_for_much_memory(coder):
    zeros = np.zeros((600, 1000, 1), np.int32)
    data = coder.encode(zeros)
    assert len(data) == least_bytes(zeros.size) == 10 or coder in (prefix_code, numeral_system)
    assert zeros.size <= most_numbers(len(data))
    assert not coder.decode(data, *zeros.shape).any()
    with pytest.raises(FileError, match="524288 at most"):
        coder.decode(b"", 600, 1000, 1)
    with pytest.raises(FileError, match="at most"):
        coder.decode(data, -1, -1, 1)
    for wrong in (data + b"\0", data[:-1] + b"\1"):
        with pytest.raises(
            FileError, match=r"bytes are left over|not filled with zeros|do not end where they began|it ends too early"
        ):
            coder.decode(wrong, *zeros.shape)
    if coder in (fixed_width, by_neighbours, by_mixing):
        with pytest.raises(Malformed, match="bytes are left over"):
            coder.decode_plain(data[:-1] + b"\1", Shape(*zeros.shape))


def bits_at(data: bytes, **bytes_: int) -> bytes:
    """The payload with single bytes changed: at0=7."""
    changed = bytearray(data)
    for name, byte in bytes_.items():
        changed[int(name.removeprefix("at"))] = byte
    return bytes(changed)


def test_every_error_in_a_payload_is_told():
    levels = np.array([[[3], [-1], [0], [2]]], np.int32)
    table = tokens.encode_table([1, 2, 2])
    alone = tokens.encode_table([1 << 14])
    states = (1 << 16).to_bytes(4, "big") * 4
    top = RangeEncoder()
    for yes in (True, False, *[True] * 31):  # other than zero, positive, 32 bits
        top.code(yes, 32768)
    for coder, data, message in (
        (fixed_width, bits_at(fixed_width.encode(levels), at0=33), "a number of more than 32 bits"),
        (fixed_width, bytes.fromhex("20 7f ff ff ff") + bytes([255] * 16), "a number of more than 32 bits"),
        (fixed_width, fixed_width.encode(levels)[:-1], "it ends too early"),
        (fixed_width, fixed_width.encode(levels) + b"\1", "bytes are left over"),
        (fixed_width, bits_at(fixed_width.encode(levels[:, :3]), at6=0x41), "the last byte is not filled with zeros"),
        (prefix_code, bytes(4), "a table of no length that there is"),
        (prefix_code, bytes([3, 0, 0, 0]), "a table of no length that there is"),
        (prefix_code, tokens.encode_table([1, 1, 1]), "more words than there are"),
        (prefix_code, tokens.encode_table([1, 2]), "words that mean nothing"),
        (prefix_code, tokens.encode_table([16, 1]), "a word of more than 15 bits"),
        (prefix_code, tokens.encode_table([1, 1, 0]), "a table that ends in nothing"),
        (prefix_code, table[:3], "it ends too early"),
        (prefix_code, table[:-1], "it ends too early"),
        (prefix_code, table + b"\0\0\0", "bytes are left over"),
        (numeral_system, table, "shares that do not add up"),
        (numeral_system, alone, "it ends too early"),
        (numeral_system, alone + bytes(16), "a state that there is not"),
        (numeral_system, alone + bits_at(states, at3=1), "states that do not end where they began"),
        (numeral_system, alone + states + b"\1", "bytes are left over"),
        (by_neighbours, b"\x21", "a number of more than 32 bits"),
        (by_neighbours, b"", "it ends too early"),
        (by_neighbours, b"\0\1", "bytes are left over"),
        (by_neighbours, b"\x05" + b"\xab" * 40, "bytes are left over"),
        (by_neighbours, b"\x20" + bytes(8), "a number of more than 32 bits"),
        (by_mixing, b"\x21", "a number of more than 32 bits"),
        (by_mixing, b"\x05" + b"\xab" * 40, "bytes are left over"),
    ):
        shape = (1, 3, 1) if coder is fixed_width and "filled" in message else (1, 4, 1)
        with pytest.raises(FileError, match=message):
            coder.decode(data, *shape)
        with pytest.raises((FileError, Malformed), match=message):
            coder.decode_plain(data, Shape(*shape))


def test_without_compiled_coders_the_plain_ones_work_and_say_so_once(monkeypatch):
    levels = structured(2, 5, 4)
    expected = [coder.encode(levels) for coder in CODERS]
    monkeypatch.setattr(payload, "native", None)
    payload.say_that_there_is_none.cache_clear()
    with pytest.warns(RuntimeWarning, match="installed without its coders"):
        found = [coder.encode(levels) for coder in CODERS]
    assert found == expected
    for coder, data in zip(CODERS, found, strict=True):
        assert np.array_equal(coder.decode(data, *levels.shape), levels)
        assert coder.decode(coder.encode(levels[:0]), 0, 5, 4).shape == (0, 5, 4)
    assert len(fixed_width.encode(np.zeros((600, 1000, 1), np.int32))) == 10


def test_another_build_is_loaded_where_one_is_named(monkeypatch):
    monkeypatch.setenv(native_module.BUILD_VARIABLE, "notes.txt")
    with pytest.raises(SecateursError, match=r"SECATEURS_CODING_NATIVE=notes.txt: that is no extension module"):
        native_module._extension()
    monkeypatch.setenv(native_module.BUILD_VARIABLE, "none")
    assert native_module._extension() is None
    if native is not None:
        monkeypatch.setenv(native_module.BUILD_VARIABLE, native.__file__)
        assert native_module._extension().mixed_encode(structured(1, 2, 3)) == by_mixing.encode(structured(1, 2, 3))


def test_huffman_lengths_are_the_best():
    """Against the sum of all joints of Huffman's own tree; where that is too deep, the code is full and as deep as it may be."""
    chance = random.Random(0)
    for _ in range(20):
        counts = [chance.choice((0, 1, 3, 50, 700)) for _ in range(chance.randrange(3, 40))] + [2, 9]
        lengths, heap, total = prefix_code.lengths_of(counts), [count for count in counts if count], 0
        heapq.heapify(heap)
        while len(heap) > 1:
            joint = heapq.heappop(heap) + heapq.heappop(heap)
            total += joint
            heapq.heappush(heap, joint)
        assert sum(count * length for count, length in zip(counts, lengths, strict=True)) == total
    deep = prefix_code.lengths_of([2**each for each in range(20)])
    assert max(deep) == 15 and sum(2.0**-length for length in deep) == 1 and deep == sorted(deep, reverse=True)


@real_data
@pytest.mark.parametrize(("coder", "limit"), [(by_neighbours, 89_450), (by_mixing, 87_650)])
def test_sizes_of_layers_of_the_pruned_squeezenet(coder, limit):
    from safetensors.numpy import load_file

    total = 0
    for name, weight in load_file(Path(os.environ["SECATEURS_DATA"]) / "squeezenet_v1_0_pruned.safetensors").items():
        if name.startswith("fire9") and name.endswith("weight"):
            values = np.unique(np.append(weight, 0))
            levels = (np.searchsorted(values, weight) - np.searchsorted(values, 0)).astype(np.int32)
            levels = levels.reshape(*weight.shape[:2], -1)
            data = coder.encode(levels)
            total += len(data)
            assert np.array_equal(coder.decode(data, *levels.shape), levels)
    assert total < limit
