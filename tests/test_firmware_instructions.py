"""What is predicted of instructions, beside what an emulated core counts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secateurs.firmware.emulator import M4, missing
from secateurs.firmware.formats import FORMATS, conv_call
from secateurs.firmware.instructions import Size, counted, features, instructions, names, size_of
from secateurs.integers.layers import Conv

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials
from products_in_c import apart, conv, of_four, pruned

needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


def _layers(random: np.random.Generator) -> list[tuple[str, Conv]]:
    pointwise = conv(random, (25, 5, 64), 64, largest=40)
    linear = conv(random, (1, 1, 256), 60, largest=40)
    square = conv(random, (10, 10, 16), 16, (3, 3), padding=(1, 1, 1, 1), largest=40)
    found = [("dense", each) for each in (pointwise, linear, square)]
    found.append(("dense", conv(random, (49, 10, 1), 32, (10, 4), stride=(2, 2), padding=(4, 5, 1, 1), largest=40)))
    found += [("depthwise", conv(random, (25, 5, 64), 64, (3, 3), padding=(1, 1, 1, 1), groups=64))]
    found += [("depthwise", conv(random, (24, 24, 8), 8, (3, 3), padding=(0, 1, 0, 1), stride=(2, 2), groups=8))]
    for each in (pointwise, linear, square):
        found += [("blocks of 4", pruned(each, random, 0.3, 1, 4)), ("blocks of 2 x 4", pruned(each, random, 0.3, 2, 4))]
        found += [("blocks of 4 x 4", pruned(each, random, 0.3, 4, 4)), ("CSR", pruned(each, random, 0.2, 1, 1))]
        found += [("2 of 4", of_four(each, random, 2)), ("1 of 4", of_four(each, random, 1))]
    return found


@needs_emulator
def test_predictions_are_within_a_tenth_of_what_is_counted() -> None:
    """On layers that nothing was fitted to; in the mean within four hundredths."""
    random = np.random.default_rng(7)
    calls = [conv_call(layer, "c", format=format) for format, layer in _layers(random)]
    wrong, taken = trials.counted([trials.trial(call, random) for call in apart(calls)], M4)
    assert not wrong
    errors = np.array([call.instructions for call in calls]) / np.array(taken) - 1
    assert np.abs(errors).max() < 0.1, dict(zip((call.label for call in calls), errors.round(3).tolist(), strict=True))
    assert np.abs(errors).mean() < 0.04


def test_each_coefficient_has_a_name() -> None:
    for format in FORMATS:
        assert len(names(format)) == len(features(format, Size(3, 4, (3, 3), 4, 8, kept=5))) == len(set(names(format)))


def test_cores_without_coefficients_take_those_of_a_cortex_m4() -> None:
    size = Size(5, 5, (3, 3), 8, 8)
    assert (
        instructions("dense", size, "cortex-m7")
        == instructions("dense", size, "cortex-m4")
        != instructions("dense", size, "cortex-m3")
    )


def test_a_call_is_counted_for_its_core() -> None:
    layer = conv(np.random.default_rng(0), (5, 5, 8), 8)
    call = conv_call(layer, "c")
    assert counted(call, core="cortex-m0").instructions > 3 * call.instructions == 3 * instructions("dense", size_of(layer))


def test_more_of_anything_takes_more() -> None:
    """No coefficient is negative, so that searches over sizes are not led astray."""
    for format in FORMATS:
        size = Size(6, 6, (3, 3), 16, 16, kept=100) if format != "depthwise" else Size(6, 6, (3, 3), 1, 1, groups=16)
        for core in ("cortex-m4", "cortex-m3", "cortex-m0"):
            assert instructions(format, replace(size, high=12), core) > instructions(format, size, core) > 0
