"""Rounding of factors against whole numbers of any size, as gemmlowp and TFLite define it; how large sums can get."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateurs.integers.bounds import ROOM, largest_sums, require_room
from secateurs.integers.layers import Array, Conv, Network, Rescale
from secateurs.integers.quantise import quantised
from secateurs.integers.reference import answers
from secateurs.integers.rounding import requantised, requantised_wide, rescale
from secateurs.types import SecateursError

INT32 = st.integers(-(2**31), 2**31 - 1)
EDGES = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30), 3, -3, 2**20 + 1])
MULTIPLIERS = st.one_of(
    st.just(0), st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 2**31 - 1, 0x7FFF0000, 0x7FFEFFFF, 0x7FFF8000])
)


def doubling_high_product(a: int, b: int) -> int:
    """gemmlowp's SaturatingRoundingDoublingHighMul, without a limit on the size of what is between."""
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)  # C divides towards zero


def divided_by_power(x: int, exponent: int) -> int:
    """gemmlowp's RoundingDivideByPOT: to the nearest, halves away from zero."""
    half = Fraction(abs(x), 2**exponent) + Fraction(1, 2)
    return (1 if x >= 0 else -1) * (half.numerator // half.denominator)


def plain(x: int, multiplier: int, shift: int) -> int:
    left, right = max(shift, 0), max(-shift, 0)
    x = max(-(2**31), min(2**31 - 1, x << left)) if left else x
    return divided_by_power(doubling_high_product(x, multiplier), right)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.one_of(INT32, EDGES), MULTIPLIERS, st.integers(-31, 0))
@example(-(2**31), 2**31 - 1, 0)
@example(-1, 2**30, 0)
@example(-3, 2**30, -1)
def test_numbers_times_factors_are_those_of_gemmlowp(x, multiplier, shift):
    by = Rescale(np.array([multiplier], np.int32), np.array([shift], np.int32))
    assert requantised(np.array([x]), by)[0] == plain(x, multiplier, shift)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(INT32, EDGES), MULTIPLIERS, st.integers(1, 30))
def test_what_a_shift_to_the_left_carries_beyond_32_bits_saturates(x, multiplier, shift):
    by = Rescale(np.array([multiplier], np.int32), np.array([shift], np.int32))
    most = (2**31 - 1) >> shift
    kept = max(-most - 1, min(most, x)) << shift
    assert requantised(np.array([x]), by)[0] == doubling_high_product(kept, multiplier)
    if abs(x) <= most:
        assert requantised(np.array([x]), by)[0] == plain(x, multiplier, shift)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.integers(-ROOM["int16"], ROOM["int16"]), MULTIPLIERS, st.integers(-31, 14))
def test_wide_numbers_times_factors_are_those_of_tflite(x, multiplier, shift):
    by = Rescale(np.array([multiplier], np.int32), np.array([shift], np.int32))
    reduced = (multiplier + 2**15) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    total = 15 - shift
    assert -(2**63) <= x * reduced + 2 ** (total - 1) < 2**63  # fits 64 bits
    assert requantised_wide(np.array([x]), by)[0] == (x * reduced + 2 ** (total - 1)) >> total


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.floats(2.0**-31, 2.0**30, exclude_max=True))
def test_a_factor_is_told_to_31_bits(factor):
    by = rescale(factor)
    multiplier, shift = int(by.multiplier[0]), int(by.shift[0])
    assert 2**30 <= multiplier < 2**31 and -31 <= shift <= 31
    told = Fraction(multiplier, 2**31) * (Fraction(2) ** shift)
    assert abs(told - Fraction(factor)) <= Fraction(factor) * Fraction(1, 2**31)


@pytest.mark.parametrize(
    ("factor", "multiplier", "shift"), [(0.0, 0, 0), (1.0, 2**30, 1), (1 - 2**-40, 2**30, 1), (2.0**-40, 0, 0)]
)
def test_factors_at_the_ends(factor, multiplier, shift):
    by = rescale(factor)
    assert (int(by.multiplier[0]), int(by.shift[0])) == (multiplier, shift)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(-(2**24), 2**24), st.floats(2.0**-20, 0.99))
def test_a_product_is_off_by_half_a_step_at_most_and_a_little(x, factor):
    assert abs(int(requantised(np.array([x]), rescale(factor))[0]) - x * factor) <= 0.5 + abs(x) * factor * 2.0**-30 + 0.5
    assert abs(int(requantised_wide(np.array([x]), rescale(factor))[0]) - x * factor) <= 0.5 + abs(x) * factor * 2.0**-14


# ---------------------------------------------------------------- how large sums get


def _conv(seed: int, kind: str, zero: int, bias: int) -> tuple[Conv, np.random.Generator]:
    rng = np.random.default_rng(seed)
    inputs, outputs = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    x = Array("x", (1, 1, inputs), kind, 0.1, zero)  # type: ignore[arg-type]
    weight = rng.integers(-127, 128, (outputs, 1, 1, inputs)).astype(np.int8)
    biases = rng.integers(-bias, bias + 1, outputs).astype(np.int32 if kind == "int8" else np.int64)
    return Conv("fc", x, Array("y", (1, 1, outputs), kind, 1.0), weight, biases), rng  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["int8", "int16"]), st.integers(-128, 127), st.sampled_from([0, 50, 2**29]))
def test_no_partial_sum_is_larger_than_proven(seed, kind, zero, bias):
    layer, rng = _conv(seed, kind, zero if kind == "int8" else 0, bias)
    least, most = (-128, 127) if kind == "int8" else (-32768, 32767)
    for worst in (False, True):
        for output, row in enumerate(layer.weight.reshape(len(layer.weight), -1).astype(int).tolist()):
            x = rng.integers(least, most + 1, len(row)).tolist()
            if worst:  # the extremes that add up, with either sign
                sign = int(rng.choice([-1, 1]))
                x = [most if sign * weight > 0 else least for weight in row]
            order = rng.permutation(len(row))
            limit = int(largest_sums(layer)[output])
            plain_sum = int(layer.bias[output])
            taken_off_before = plain_sum - layer.x.zero * sum(row)
            assert abs(taken_off_before) <= limit
            for place in order:
                plain_sum += row[place] * (x[place] - layer.x.zero)
                taken_off_before += row[place] * x[place]
                assert abs(plain_sum) <= limit and abs(taken_off_before) <= limit


def test_the_bound_is_not_far_from_what_is_reached():
    layer, _ = _conv(5, "int8", 0, 1000)
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int64)
    reached = np.maximum(np.abs((weight * np.where(weight > 0, 127, -128)).sum(1) + layer.bias), 128 * np.abs(weight).sum(1) - 1000)
    assert (largest_sums(layer) <= 1.02 * reached + 2000).all()


@pytest.mark.parametrize(("kind", "inputs", "fits"), [("int8", 66_000, True), ("int8", 66_600, False), ("int16", 10**6, True)])
def test_sums_that_could_leave_their_accumulator_are_refused(kind, inputs, fits):
    x = Array("x", (1, 1, inputs), kind, 1.0, 127 if kind == "int8" else 0)
    layer = Conv("fc", x, x, np.full((1, 1, 1, inputs), 127, np.int8), np.zeros(1, np.int32))
    if fits:
        require_room(layer)
    else:
        with pytest.raises(SecateursError, match=r"fc: the sum of output 0 can reach \d+, more than its accumulator holds"):
            require_room(layer)
    with pytest.raises(SecateursError, match="split it"):
        require_room(replace(layer, bias=np.array([2**62])))


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_dead_channels_and_tiny_ranges_keep_their_biases(kind):
    """Weights of 0 with a bias, and outputs whose range is nearly nothing, have factors that fit."""
    x, y = Array("x", (1, 1, 3)), Array("y", (1, 1, 4))
    weight = np.zeros((4, 1, 1, 3), np.float32)
    weight[0], weight[1] = 1.0, 1e-20
    layer = Conv("fc", x, y, weight, np.array([0.0, 0.5, -0.75, 0.0], np.float32))
    for high in (1.0, 1e-12, 0.0):
        made = quantised(Network((), (), (layer,)), {"x": (-1.0, 1.0), "y": (-high, high)}, kind).layers[0]
        assert isinstance(made, Conv) and made.rescale is not None
        assert (made.rescale.shift <= 14).all()
    made = quantised(Network((), (), (layer,)), {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}, kind).layers[0]
    (found,) = answers(made, {"x": np.full((1, 1, 1, 3), made.x.zero, kind)})
    np.testing.assert_allclose((found[0, 0, 0] - float(made.y.zero)) * made.y.scale, [0, 0.5, -0.75, 0], atol=0.005)
