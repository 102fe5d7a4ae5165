"""Convolutions whose result lies where their input did: as wide, or narrower."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.firmware.arena import Step, lay_out
from secateurs.firmware.emulator import CORES, M4, M55, Core, missing
from secateurs.firmware.formats import choices
from secateurs.firmware.host import compiler
from secateurs.firmware.overwriting import overwriting
from secateurs.firmware.write import fitting
from secateurs.integers.build import built
from secateurs.integers.layers import Conv
from secateurs.integers.quantise import quantised
from secateurs.integers.ranges import calibrated
from secateurs.targets import microcontroller

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


def pointwise(inputs: int, outputs: int, height: int = 5, width: int = 3, sparse: bool = True) -> Conv:
    """A pointwise convolution of int8, with blocks of zeros."""
    torch.manual_seed(inputs + 100 * outputs)
    layer = nn.Conv2d(inputs, outputs, 1)
    if sparse:
        blocks = torch.rand(outputs, -(-inputs // 4), 1).expand(-1, -1, 4).reshape(outputs, -1)[:, :inputs]
        layer.weight.data *= (blocks < 0.5)[:, :, None, None]
    x = torch.randn(4, inputs, height, width)
    network = built(layer, x)
    (found,) = quantised(network, calibrated(network, [x])).layers
    assert isinstance(found, Conv)
    return found


def shared_trials() -> list[trials.Trial]:
    """All formats, widths and numbers of places at which a kernel could write over what it has not read yet."""
    found, random = [], np.random.default_rng(0)
    for inputs, outputs in ((16, 16), (16, 15), (16, 9), (7, 3), (12, 1), (5, 4), (32, 12)):
        for height, width in ((1, 2), (5, 3)):
            layer = pointwise(inputs, outputs, height, width)
            for number in range(len(choices(layer, "n"))):
                ready = overwriting(choices(layer, f"n{len(found)}")[number])
                assert ready.in_place == "x"
                found.append(trials.trial(ready, random, shared=True))
    return found


@needs_compiler
def test_a_narrower_result_may_lie_where_the_input_does():
    assert trials.wrong_on_host(shared_trials()) == []


@needs_emulator
@pytest.mark.parametrize("core", [M4, M55, CORES[0]], ids=lambda core: core.name)
def test_on_emulated_cores_too(core: Core):
    found = shared_trials()
    if core is CORES[0]:
        found = found[::9]  # its memory is small
    assert trials.counted(found, core)[0] == []


def test_a_wider_result_would_overwrite_what_is_still_to_be_read():
    call = choices(pointwise(9, 12), "n")[0]
    assert overwriting(call).in_place is None


def test_a_narrowing_chain_lies_in_one_place():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(inputs, outputs, 1) for inputs, outputs in ((32, 24), (24, 16), (16, 8))))
    x = torch.randn(2, 32, 8, 8)
    network = built(model, x)
    program = fitting(quantised(network, calibrated(network, [x])), "net", microcontroller())
    assert len({place.offset for place in program.arena.places.values()}) == 1
    most = max(call.scratch for call in program.calls)
    assert program.arena.bytes <= 32 * 64 + most + 4


def test_overwriting_something_large_for_long_is_not_taken_where_it_costs():
    """`b` in the place of `a` would keep all of `a` while `c` is needed: 100 + 90 bytes, where 110 are enough."""
    steps = [Step("1", ("a",), ("b",), in_place=("a",)), Step("2", ("b",), ("c",)), Step("3", ("b", "c"), ("d",))]
    arena = lay_out(steps, {"a": 100, "b": 10, "c": 90, "d": 4}, ["a"], ["d"])
    assert arena.bytes <= 112
