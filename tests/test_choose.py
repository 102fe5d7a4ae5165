"""One format a layer: exactly the best of all combinations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.choose import chosen
from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Array, View

_LAYER = View("layer", Array("x", (1, 1, 1)), Array("y", (1, 1, 1)))


def _call(instructions: float, flash: int) -> Call:
    return Call(_LAYER, (), (Constant("c", "int8_t", np.zeros(flash, np.int8)),), "", instructions=instructions)


OPTIONS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4), min_size=0, max_size=4)


@given(OPTIONS, st.none() | st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_the_best_of_all_combinations_is_found(numbers: list[list[tuple[int, int]]], flash: int | None) -> None:
    options = [[_call(float(each), size) for each, size in layer] for layer in numbers]
    fitting = [
        (sum(call.instructions for call in calls), sum(call.flash for call in calls))
        for calls in product(*options)
        if flash is None or sum(call.flash for call in calls) <= flash
    ]
    if not fitting:
        with pytest.raises(FirmwareError, match="bytes of flash in their smallest formats"):
            chosen(options, flash)
        return
    found = chosen(options, flash)
    assert all(any(call is one for one in each) for call, each in zip(found, options, strict=True))
    assert (sum(call.instructions for call in found), sum(call.flash for call in found)) == min(fitting)


def test_a_hundred_layers_are_chosen() -> None:
    random = np.random.default_rng(0)
    options = []
    for _ in range(100):
        size = int(random.integers(500, 20_000))
        options.append([_call(size * float(random.uniform(5, 500)), int(size * random.uniform(0.3, 1.2))) for _ in range(6)])
    smallest, largest = (sum(pick(call.flash for call in each) for each in options) for pick in (min, max))
    found = chosen(options, (smallest + largest) // 2)
    assert sum(call.flash for call in found) <= (smallest + largest) // 2


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(
        FirmwareError, match=r"take 12 bytes of flash in their smallest .*, 2 more than there are: prune with sc\.Budget"
    ):
        chosen([[_call(1, 5), _call(2, 7)], [_call(1, 7)]], 10)
