"""Levels that weigh error against bits: the laws of such a choice, and what levels would take."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.coding import bits_of, context, distortion, rate_distortion
from secateurs.coding.coders.native import native
from secateurs.types import NonFiniteError, SecateursError

compiled = pytest.mark.skipif(native is None, reason="the coders were not compiled")


def laplacian(*shape: int) -> np.ndarray:
    """Weights as pruning leaves them: most are zero, the others with heavy tails."""
    values = np.random.default_rng(0).laplace(size=shape).astype(np.float32)
    return np.where(abs(values) < 1, np.float32(0), values)


def values_of(levels: np.ndarray, scale: float) -> np.ndarray:
    return levels.astype(np.float32) * np.float32(scale)


def scale_of(number: float) -> np.ndarray:
    return np.array([number], np.float32)


def error_of(values: np.ndarray, levels: np.ndarray, scale: float) -> float:
    return float(((values - values_of(levels, scale)).astype(np.float64) ** 2).sum())


@st.composite
def problems(draw) -> dict[str, object]:
    """Values, with a table or a scale of one or more runs, perhaps with weights."""
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.sampled_from((1, 2, 4))), draw(st.integers(1, 5)), draw(st.sampled_from((1, 4, 9))))
    values = (source.laplace(size=shape) * (source.random(shape) < 0.7)).astype(np.float32)
    problem: dict[str, object] = {"values": values, "price": draw(st.sampled_from((0.0, 0.003, 0.1, 2.0)))}
    runs = draw(st.sampled_from((1, shape[0])))
    if draw(st.booleans()):
        problem["scale"] = (source.random(runs) * draw(st.sampled_from((0.0, 0.1, 0.7)))).astype(np.float32)
        problem["most"] = draw(st.sampled_from((1, 7, 1 << 24)))
    else:
        below, above = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        rounded = np.round(source.random((runs, below + above)) * 4, draw(st.sampled_from((0, 3))))
        signed = np.concatenate([-rounded[:, :below], np.zeros((runs, 1)), rounded[:, below:]], axis=1)
        problem |= {"table": np.sort(signed, axis=1).astype(np.float32), "lowest": -below}
    if draw(st.booleans()):
        problem["weights"] = source.random(shape).astype(np.float32)
    return problem


@compiled
@settings(max_examples=40)
@given(problems())
def test_compiled_and_plain_choose_the_same(problem):
    fast = rate_distortion(**problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distortion, "native", None)
        patch.setattr(distortion, "say_that_there_is_none", lambda: None)
        assert np.array_equal(fast, rate_distortion(**problem))


@given(problems())
def test_without_a_price_the_nearest_are_taken_and_zero_stays_zero(problem):
    values = problem["values"]
    dear = rate_distortion(**problem)
    assert not dear[values == 0].any()
    levels = rate_distortion(**problem | {"price": 0.0})
    assert not levels[values == 0].any() and (abs(dear.astype(int)) <= abs(levels.astype(int))).all()
    if "table" in problem:
        tables = np.repeat(problem["table"], values.size // len(problem["table"]), axis=0).astype(np.float64)
        chosen = np.take_along_axis(tables, levels.reshape(-1, 1) - problem["lowest"], axis=1)[:, 0]
        assert np.array_equal(abs(values.ravel() - chosen), abs(values.reshape(-1, 1) - tables).min(1))
    elif problem["scale"].all():
        scale = np.repeat(problem["scale"], values.size // len(problem["scale"])).astype(np.float64)
        exact = np.clip(values.ravel() / scale, -problem["most"], problem["most"])
        assert (abs(exact - levels.ravel()) <= 0.5).all()


def test_bits_fall_and_errors_rise_with_the_price():
    values = laplacian(64, 64, 1)
    levels = [rate_distortion(values, scale=scale_of(0.2), price=price) for price in (0.0, 0.002, 0.01, 0.05, 0.3)]
    sizes = [len(context.encode(each)) for each in levels]
    errors = [error_of(values, each, 0.2) for each in levels]
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and sizes[-1] < 0.7 * sizes[0]


def test_it_beats_rounding_at_the_same_bytes():
    values = laplacian(96, 96, 1)
    levels = rate_distortion(values, scale=scale_of(0.35), price=0.02)
    size, error = len(context.encode(levels)), error_of(values, levels, 0.35)
    coarser = [
        scale for scale in np.arange(0.36, 0.8, 0.02) if len(context.encode(np.rint(values / scale).astype(np.int32))) <= size
    ]
    best = min(error_of(values, np.rint(values / scale).astype(np.int32), scale) for scale in coarser)
    assert coarser and error < 0.97 * best


def test_what_counts_more_keeps_its_level():
    values = np.where(np.random.default_rng(0).random((20, 20, 1)) < 0.1, np.float32(0.6), np.float32(0))
    weights = np.ones_like(values)
    few = np.count_nonzero(rate_distortion(values, scale=scale_of(1.0), price=0.2, weights=weights))
    weights[10:] = 50
    levels = rate_distortion(values, scale=scale_of(1.0), price=0.2, weights=weights)
    assert few == np.count_nonzero(levels[:10]) < 4 and np.array_equal(levels[10:], (values[10:] > 0).astype(np.int32))


def test_what_does_not_fit_is_told():
    values, scale, table = laplacian(4, 6, 1), scale_of(0.5), np.array([-1, 0, 2], np.float32)
    for arguments, message in (
        ({}, "give one of the two"),
        ({"scale": scale, "table": table, "lowest": -1}, "give one of the two"),
        ({"table": table}, "this one begins with level 0"),
        ({"table": table, "lowest": -2}, "ascending values, 0 at level 0"),
        ({"table": table[::-1].copy(), "lowest": -1}, "ascending values"),
        ({"table": table.astype(np.float64), "lowest": -1}, "the table: a float32 array of 2 dimensions"),
        ({"scale": -scale}, "a scale is not negative"),
        ({"scale": scale, "most": 0}, "between 1 and 16777216"),
        ({"scale": np.ones(5, np.float32)}, "24 values are not 5 equally long runs"),
        ({"scale": np.ones(0, np.float32)}, "24 values are not 0 equally long runs"),
        ({"scale": scale, "weights": np.ones((4, 6), np.float32)}, "weights: a float32 array of 3 dimensions"),
        ({"scale": scale, "weights": np.ones((6, 4, 1), np.float32)}, "weights are of the values' shape"),
        ({"scale": scale, "weights": -np.ones((4, 6, 1), np.float32)}, "not negative"),
        ({"scale": scale, "price": float("nan")}, "the price of a bit"),
        ({"scale": scale, "price": -1.0}, "the price of a bit"),
    ):
        with pytest.raises(SecateursError, match=message):
            rate_distortion(values, **{"price": 0.1} | arguments)
    with pytest.raises(NonFiniteError, match="values: 1 of 24 numbers are NaN"):
        rate_distortion(np.where(np.arange(24).reshape(4, 6, 1) == 3, np.float32("nan"), values), scale=scale, price=0.1)
    assert rate_distortion(values[:0], scale=scale, price=0.1).shape == (0, 6, 1)


def test_bits_are_estimated(monkeypatch):
    levels = np.rint(laplacian(64, 64, 1) * 3).astype(np.int32)
    size = len(context.encode(levels))
    assert native is None or abs(bits_of(levels) / 8 - size) < 5
    monkeypatch.setattr(distortion, "native", None)
    assert abs(bits_of(levels) / 8 / size - 1) < 0.05
    assert bits_of(levels[:0]) == 0 and bits_of(levels * 0) == 8
    with pytest.raises(SecateursError, match="a coder takes int32 levels"):
        bits_of(levels.astype(np.int64))


@pytest.mark.skipif(
    "SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the folder with the published weights"
)
def test_bits_of_the_pruned_squeezenet(monkeypatch):
    from safetensors.numpy import load_file

    estimated = plain = real = 0.0
    for name, weight in load_file(Path(os.environ["SECATEURS_DATA"]) / "squeezenet_v1_0_pruned.safetensors").items():
        if name.startswith(("fire4", "fire9")) and name.endswith("weight"):
            values = np.unique(np.append(weight, 0))
            levels = (np.searchsorted(values, weight) - np.searchsorted(values, 0)).astype(np.int32)
            levels = levels.reshape(*weight.shape[:2], -1)
            size, fast, slow = len(context.encode(levels)), bits_of(levels) / 8, distortion.bits_of_plain(levels) / 8
            assert abs(fast / size - 1) < 0.03 and abs(slow / size - 1) < 0.06
            estimated, plain, real = estimated + fast, plain + slow, real + size
    assert abs(estimated / real - 1) < 0.001 or native is None
    assert abs(plain / real - 1) < 0.04
