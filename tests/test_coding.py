"""Coding: levels are found to the bit, positions and floats come back, and the smallest way is taken."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from secateurs import coding
from secateurs.coding import Levels, fixed, huffman, levels_in, positions
from secateurs.coding.bits import same
from secateurs.coding.coder import count_of, counted
from secateurs.coding.found import order_of, value_of
from secateurs.coding.tensors import DTYPES, decode, encode
from secateurs.types import FileError, SecateursError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
few = settings(max_examples=40, deadline=None)


def back(tensor: Tensor, codecs: coding.Codecs | None = None, levels: Levels | None = None) -> dict[str, Any]:
    """How a tensor is coded; it has come back to the bit."""
    coded = encode("w", tensor, codecs, levels)
    assert same(decode("w", coded.document, memoryview(coded.payload), tuple(tensor.shape), tensor.dtype), tensor)
    return {**coded.document, "bytes": len(coded.payload)}


# ---------------------------------------------------------------- levels that are there


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(FLOATS), st.sampled_from([1, 6]), st.sampled_from([1, 3, 100]))
def test_multiples_of_a_scale_are_found(seed: int, dtype: torch.dtype, runs: int, largest: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(runs, generator=generator) * 10.0 ** float(torch.randint(-6, 3, (1,), generator=generator)) + 1e-7
    numbers = torch.randint(-largest, largest + 1, (6, 50), generator=generator, dtype=torch.int32)
    tensor = Levels(numbers, scale=scale, dtype=dtype).values()
    found = levels_in(tensor)
    assert found is None or same(found.values(), tensor)
    if dtype is torch.float32:  # half precision rounds the multiples of a scale, which may then be those of none
        assert found is not None
    if dtype is torch.float32 and largest > 1:  # of plus and minus one value, a table may be as good
        assert found is not None and found.scale is not None and len(found.scale) <= runs


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from(FLOATS), st.integers(1, 20), st.booleans())
def test_few_values_are_found_of_a_tensor_or_of_channels(seed: int, dtype: torch.dtype, count: int, by_channel: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4 if by_channel else 1, count, generator=generator).to(dtype)
    values[:, 0] = -0.0
    tensor = values.expand(4, -1).gather(1, torch.randint(0, count, (4, 200), generator=generator)).view(4, 10, 20)
    found = levels_in(tensor)
    assert found is not None and same(found.values(), tensor)
    assert found.table is None or found.table.shape[1] <= count * (2 if found.runs > 1 else 4) + 1
    assert same(found.values()[found.numbers == 0], torch.zeros(int((found.numbers == 0).sum()), dtype=dtype))


def test_numbers_of_levels_have_the_order_of_their_values() -> None:
    tensor = torch.tensor([0.3, -0.1, 0.0, 0.1, -0.3, 0.0, -0.1, -0.0, 0.7] * 8)
    found = levels_in(tensor)
    assert found is not None and found.table is not None
    assert found.numbers[:9].tolist() == [2, -2, 0, 1, -3, 0, -2, -1, 3]
    assert found.lowest == -3 and bool((order_of(found.table[0]).diff() > 0).all())


@pytest.mark.parametrize(
    "tensor", [torch.randn(300), torch.tensor([float("nan"), 1.0] * 9), torch.tensor([]), torch.tensor([1j] * 4)]
)
def test_where_there_are_no_levels_none_are_found(tensor: Tensor) -> None:
    assert levels_in(tensor) is None


@given(arrays(numpy.int32, st.integers(0, 30)))
def test_floats_as_whole_numbers_keep_their_order(bits: Any) -> None:
    values = torch.from_numpy(bits.copy()).view(torch.float32)
    assert same(value_of(order_of(values), torch.float32), values)
    finite = values[values.isfinite()]
    ascending = finite[order_of(finite).argsort()]
    assert bool((ascending[1:] >= ascending[:-1]).all())


def test_levels_whose_parts_do_not_fit_are_told() -> None:
    numbers = torch.zeros(6, dtype=torch.int32)
    for wrong, words in (
        ({"numbers": numbers.long()}, "int32"),
        ({"numbers": numbers, "scale": torch.ones(1), "table": torch.ones(1, 1)}, "not both"),
        ({"numbers": numbers, "scale": torch.ones(1, 1)}, "at least one run"),
        ({"numbers": numbers, "scale": torch.ones(4)}, "4 equally long runs"),
    ):
        with pytest.raises(SecateursError, match=words):
            Levels(**wrong)


# ---------------------------------------------------------------- positions

SHAPES = st.tuples(st.integers(0, 6), st.sampled_from([1, 3, 8, 16]), st.sampled_from([1, 4]))


@few
@given(SHAPES, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_places_come_back_and_leave_nothing_out(shape: tuple[int, int, int], density: float, seed: int) -> None:
    there = numpy.random.default_rng(seed).random(shape) < density
    kinds = [positions.relative(1, huffman), positions.relative(4, fixed), positions.gaps(huffman), positions.bitmap()]
    kinds += [positions.elias_fano()]
    if shape[0] % 2 == 0:
        kinds.append(positions.blocks(2, shape[2], fixed))
    if shape[1] % 8 == 0:
        most = int(there.transpose(0, 2, 1).reshape(-1, 8).sum(1).max()) if there.size else 1
        kinds += [positions.n_of_m(min(7, max(1, most)), 8, fixed)] if most < 8 else []
    for kind in kinds:
        data, places = kind.encode(there)
        assert numpy.array_equal(kind.decode(memoryview(data), shape), places)
        assert set(there.reshape(-1).nonzero()[0]) <= set(places.tolist())
        if kind.document["is"] in ("gaps", "bitmap", "elias-fano"):
            assert len(places) == there.sum()
        if kind.document["is"] == "relative":
            assert numpy.diff(places, prepend=-1).max(initial=0) <= 2 ** kind.document["bits"]  # type: ignore[operator]


def test_relative_indices_have_as_many_fillers_as_they_need() -> None:
    there = numpy.zeros((1, 100, 1), bool)
    there[0, [0, 16, 33, 99]] = True
    assert positions.relative(4, fixed).encode(there)[1].tolist() == [0, 16, 32, 33, 49, 65, 81, 97, 99]


@few
@given(st.sets(st.integers(0, 10_000)), st.integers(10_001, 10**9))
def test_ascending_numbers_take_about_two_bits_more_than_they_must(numbers: set[int], bound: int) -> None:
    ascending = numpy.array(sorted(numbers), numpy.int64)
    data = positions.ascending(ascending, bound)
    assert numpy.array_equal(positions.from_ascending(memoryview(data), bound, strictly=True), ascending)
    if numbers:
        assert 8 * len(data) <= len(numbers) * (2 + numpy.log2(bound / len(numbers))) + 64


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (positions.bitmap(), b"\xff"),
        (positions.bitmap(), b"\xff\xff\xff\x01"),
        (positions.elias_fano(), b"\x7f"),
        (positions.elias_fano(), b"\x01\x00\x00\x00\x00"),
        (positions.gaps(fixed), b"\xff\xff\x01"),
        (positions.gaps(fixed), b""),
    ],
)
def test_bytes_that_are_no_places_are_refused(kind: positions.Positions, data: bytes) -> None:
    with pytest.raises(FileError, match="damaged"):
        kind.decode(memoryview(data), (1, 25, 1))


@given(st.integers(0, 2**63 - 1))
@example(0)
@example(127)
@example(128)
def test_counts_come_back(count: int) -> None:
    assert count_of(memoryview(counted(count) + b"rest")) == (count, b"rest")


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x01"])
def test_what_is_no_count_is_refused(data: bytes) -> None:
    with pytest.raises(FileError, match="damaged"):
        count_of(memoryview(data))


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (4, 3), (4, 2, 3, 3)], ids=str)
def test_a_tensor_of_any_dtype_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    numbers = (torch.randn(shape) * 3 * (torch.rand(shape) < 0.6)).abs()
    back(numbers.to(dtype))
    back(torch.zeros(shape).to(dtype))
    if dtype in FLOATS and numbers.numel() > 2:
        odd = numbers.to(dtype).reshape(-1)
        odd[:3] = torch.tensor([float("nan"), -0.0, float("inf")], dtype=dtype)
        back(odd.view(shape))


@few
@given(arrays(numpy.uint8, st.integers(0, 300)), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_any_bits_of_floats_come_back(content: Any, dtype: torch.dtype) -> None:
    count = len(content) // dtype.itemsize * dtype.itemsize
    back(torch.from_numpy(content[:count].copy()).view(dtype) if count else torch.zeros(0, dtype=dtype))


def test_each_kind_of_tensor_is_coded_as_what_it_is() -> None:
    torch.manual_seed(0)
    values = torch.randn(15)
    assert back(values[torch.randint(0, 15, (40, 40))])["values"] == "table"
    assert back(torch.randint(-7, 8, (40, 40)) * 0.01)["values"] == "scale"
    assert back(torch.randint(-7, 8, (40, 40)) * torch.rand(40, 1))["runs"] == 40
    assert back(torch.randint(0, 9, (40, 40)))["values"] == "numbers"
    assert back(torch.randn(5000))["is"] == "floats"
    assert back(torch.randn(5000).masked_fill(torch.rand(5000) < 0.9, 0))["zeros"] is not None
    channels = torch.randn(8, 6).gather(1, torch.randint(0, 6, (8, 300)))
    assert back(channels)["runs"] == 8 and "tables" in back(channels)


def test_patterns_of_zeros_cost_what_they_must() -> None:
    torch.manual_seed(0)
    numbers = torch.randint(1, 8, (64, 256)).float()
    two_of_four = torch.rand(64, 64, 4).argsort(-1).lt(2).view(64, 256)
    rows = (torch.rand(64, 1) < 0.5).expand(64, 256)
    values = numbers[two_of_four].numel() * numpy.log2(7) / 8
    assert back(numbers * two_of_four)["bytes"] < values + 64 * 64 * numpy.log2(6) / 8 + 150
    assert back(numbers * rows)["bytes"] < int(rows.sum()) * numpy.log2(7) / 8 + 150


def test_deep_compression_has_relative_indices_and_huffmans_code() -> None:
    torch.manual_seed(0)
    tensor = torch.randint(1, 8, (50, 50)) * 0.5 * (torch.rand(50, 50) < 0.1)
    told = back(tensor, coding.deep_compression(5))
    assert told["numbers"] == "huffman" and told["positions"] in (None, {"is": "relative", "bits": 5, "coder": "huffman"})
    assert told["bytes"] > back(tensor)["bytes"]


def test_levels_that_are_known_are_taken_and_must_be_those_of_the_tensor() -> None:
    levels = Levels(torch.randint(-3, 4, (8, 64), dtype=torch.int32), scale=torch.rand(512 // 16) + 0.1, dtype=torch.float16)
    assert back(levels.values(), levels=levels)["runs"] == 32
    with pytest.raises(SecateursError, match="w: its levels do not give"):
        encode("w", levels.values() + 1, levels=levels)


def test_what_has_no_name_in_the_format_is_refused() -> None:
    with pytest.raises(SecateursError, match=r"w is torch\.bits8"):
        encode("w", torch.zeros(4, dtype=torch.uint8).view(torch.bits8))
