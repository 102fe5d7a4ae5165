"""Sparse weights times one vector: each format on each instruction set against its reference, and the reference against W x."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from secateurs.run.kernels import gemv
from secateurs.run.kernels.gemv import Array, Packed
from secateurs.run.kernels.machine import InstructionSet, available, native_module

FORMATS: list[tuple[gemv.Format, gemv.Values]] = [
    ("lanes", "float32"),
    ("lanes", "int8"),
    ("columns", "float32"),
    ("columns", "bfloat16"),
    ("columns", "int8"),
    ("masks", "float32"),
]

each_format = pytest.mark.parametrize(("format", "values"), FORMATS, ids=[" ".join(pair) for pair in FORMATS])
each_isa = pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def matrices(draw: st.DrawFn) -> Array:
    """Matrices of awkward shapes whose rows are unevenly full, some of them empty."""
    outputs, inputs = draw(st.integers(0, 70)), draw(st.sampled_from([0, 1, 2, 15, 16, 31, 32, 33, 47, 48, 64, 100, 300]))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    keep = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])) * generator.choice(
        [0.0, 0.3, 1.0], size=(outputs, 1), p=[0.1, 0.2, 0.7]
    )
    weight = generator.normal(size=(outputs, inputs)) * (generator.random((outputs, inputs)) < keep)
    return weight.astype(np.float32)


def multiply(
    packed: Packed, x: Array, isa: InstructionSet, bias: Array | None = None, low: float = -np.inf, high: float = np.inf
) -> Array:
    """What the kernel gives, its groups split among three jobs."""
    outputs = packed.shape[0]
    y = np.full(outputs, np.nan, dtype=np.float32)
    program = native_module().Program()
    program.gemv(
        isa=isa.name, format=packed.format, number=packed.values, rows=packed.rows, steps=packed.steps, nonzeros=packed.nonzeros,
        spans=packed.spans, counts=packed.counts, codes=packed.codes, data=packed.data.view(np.uint8),
        scale=np.zeros(0, np.float32) if packed.scale is None else packed.scale,
        bias=np.zeros(outputs, np.float32) if bias is None else bias,
        bounds=np.linspace(0, packed.groups, 4).astype(np.int64), inputs=packed.shape[1], outputs=outputs, blocks=packed.blocks,
        vectors=1, stride=1, x=(0, 0), y=(1, 0), residual=(-1, 0), activation=0, low=low, high=high,
    )  # fmt: skip
    program.run([x.ctypes.data, y.ctypes.data], 1)
    return y


def has(isa: InstructionSet, format: str, values: str) -> bool:
    return (format, values) in native_module().gemv_formats(isa.name)


def error_of(weight: Array, format: str, values: str) -> Array:
    """How far packing may move each weight."""
    size = np.abs(weight.astype(np.float64))
    peak = size.max(axis=1, initial=0, keepdims=True) * (weight != 0)
    if values == "int8":
        return peak * 1.001 * (16 / 32751 if format == "lanes" else 0.5 / 127)
    parts = {"lanes float32": 16 * 2.0**-23, "columns float32": 0.0, "masks float32": 0.0, "columns bfloat16": 2.0**-8}
    return size * parts[f"{format} {values}"]


@each_format
@fuzz
@given(weight=matrices())
def test_packing_keeps_the_weights(format: gemv.Format, values: gemv.Values, weight: Array) -> None:
    packed = gemv.pack(weight, format, values)
    found = gemv.unpack(packed)
    assert np.all(np.abs(found.astype(np.float64) - weight) <= error_of(weight, format, values))
    assert not found[weight == 0].any()
    assert len(packed.work) == packed.groups == -(-len(weight) // 16)
    assert sorted(packed.rows[packed.rows >= 0].tolist()) == list(range(len(weight)))
    x = np.linspace(-1, 1, weight.shape[1], dtype=np.float32)
    np.testing.assert_allclose(gemv.reference(packed, x), found.astype(np.float64) @ x, atol=1e-4)


@each_isa
@each_format
@fuzz
@given(weight=matrices(), seed=st.integers(0, 99), clamps=st.booleans())
@example(weight=np.ones((33, 100), dtype=np.float32), seed=0, clamps=False)
@example(weight=np.eye(40, 70, dtype=np.float32), seed=0, clamps=True)
def test_a_kernel_gives_what_its_reference_gives(
    isa: InstructionSet, format: gemv.Format, values: gemv.Values, weight: Array, seed: int, clamps: bool
) -> None:
    if not has(isa, format, values):
        pytest.skip(f"{isa.name} has no kernel for {format} of {values}")
    generator = np.random.default_rng(seed)
    x, bias = (generator.normal(size=size).astype(np.float32) for size in weight.shape[::-1])
    packed = gemv.pack(weight, format, values)
    low, high = (-0.5, 0.75) if clamps else (-np.inf, np.inf)
    expected = np.clip(gemv.reference(packed, x) + bias, low, high)
    size = np.abs(weight) @ np.abs(x) + np.abs(bias)
    assert np.all(np.abs(multiply(packed, x, isa, bias, low, high) - expected) <= 3e-6 * size)


@each_isa
@each_format
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinite_input_reaches_only_the_rows_that_read_it(
    isa: InstructionSet, format: gemv.Format, values: gemv.Values, bad: float
) -> None:
    if not has(isa, format, values):
        pytest.skip(f"{isa.name} has no kernel for {format} of {values}")
    generator = np.random.default_rng(0)
    weight = (generator.uniform(1, 2, size=(50, 90)) * (generator.random((50, 90)) < 0.1)).astype(np.float32)
    x = np.ones(90, dtype=np.float32)
    x[[0, 37]] = bad
    reads = weight[:, [0, 37]].any(axis=1)
    assert 0 < reads.sum() < 50
    found = multiply(gemv.pack(weight, format, values), x, isa)
    assert np.isfinite(found[~reads]).all()
    np.testing.assert_array_equal(found[reads], np.full(reads.sum(), bad, dtype=np.float32))


@each_isa
@each_format
def test_inputs_by_the_hundred_thousand(isa: InstructionSet, format: gemv.Format, values: gemv.Values) -> None:
    if not has(isa, format, values):
        pytest.skip(f"{isa.name} has no kernel for {format} of {values}")
    weight = np.zeros((20, 140_001), dtype=np.float32)
    weight[3, [0, 65535, 65536, 140_000]] = [1, 2, 3, 4]  # the last two are further apart than one advance reaches
    weight[4, 70_000:70_040] = 5
    weight[19, 131_072] = 6
    x = np.arange(140_001, dtype=np.float32) % 97
    packed = gemv.pack(weight, format, values)
    expected = weight.astype(np.float64) @ x
    assert np.all(np.abs(gemv.reference(packed, x) - expected) <= error_of(weight, format, values) @ x + 1e-2)
    np.testing.assert_allclose(multiply(packed, x, isa), gemv.reference(packed, x), rtol=1e-5)


@each_format
@pytest.mark.parametrize("size", [1e-42, 1e-38, 3.4e38])
def test_the_ends_of_the_range_stay_finite(format: gemv.Format, values: gemv.Values, size: float) -> None:
    if values == "bfloat16":
        size = min(size, 3.3e38)  # the largest bfloat16 is 3.39e38
    weight = np.full((17, 40), size, dtype=np.float32)
    weight[::2] *= -1
    found = gemv.unpack(gemv.pack(weight, format, values))
    floor = 16 * 2.0**-149 if values == "float32" else 16 * 2.0**-126  # rounding among the smallest numbers there are
    assert np.all(np.abs(found.astype(np.float64) - weight) <= error_of(weight, format, values) + floor)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite(bad: float) -> None:
    weight = np.ones((3, 40), dtype=np.float32)
    weight[1, 2] = bad
    for format, values in FORMATS:
        if format == "columns" and values != "int8":
            np.testing.assert_array_equal(gemv.unpack(gemv.pack(weight, format, values))[1, 2], np.float32(bad))
        else:
            with pytest.raises(ValueError, match=f"1 weights are infinite or NaN, which {format} {values} cannot hold"):
                gemv.pack(weight, format, values)


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"format 'lanes' with values 'bfloat16' is not among those that can be packed: lanes float32"
    ):
        gemv.pack(np.ones((2, 2), dtype=np.float32), "lanes", "bfloat16")
    with pytest.raises(ValueError, match=r"expected a matrix \(outputs, inputs\), got the shape \(2,\)"):
        gemv.pack(np.ones(2, dtype=np.float32), "columns")


def test_every_format_is_tested() -> None:
    assert {format for format, _ in FORMATS} == set(get_args(gemv.Format))
    assert {values for _, values in FORMATS} == set(get_args(gemv.Values))


@pytest.mark.parametrize("format", get_args(gemv.Format))
def test_one_full_row_does_not_make_the_others_long(format: gemv.Format) -> None:
    generator = np.random.default_rng(0)
    weight = (generator.random((160, 1000)) < 0.02).astype(np.float32)
    without = gemv.pack(weight, format).work
    if format == "masks":
        return  # rows are as they come
    weight[77] = 1
    work = gemv.pack(weight, format).work
    assert work[0] > 5 * work[1]
    np.testing.assert_allclose(work[1:], without[1:], rtol=0.2)
