"""Energy on machines: fetches held against loops that are walked through, costs against their laws and against published networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateurs as sc
from secateurs import models
from secateurs.costs import (
    EYERISS,
    Accelerator,
    Hierarchy,
    NoLocalReuse,
    RowStationary,
    Shape,
    Technology,
    Work,
    energy,
    energy_on,
    shape_of,
    workload,
)
from secateurs.costs.dataflow import parts
from secateurs.costs.hierarchy import energy_of
from secateurs.testing import NETWORKS, check_cost
from secateurs.types import KindError, SecateursError, Task

PRICES = (200.0, 6.0, 2.0)

# ---------------------------------------------------------------- loops, walked through


def walked(shape: Shape, buffer: int, flow: RowStationary) -> tuple[float, list[list[float]]]:
    """The least traffic of all ways to work through a layer, each walked through loop by loop; and what it fetches."""
    best: tuple[float, list[list[float]]] = (float("inf"), [])
    held = max(1, flow.registers[1] // shape.wide)
    filters_held = max(1, min(flow.registers[2], flow.registers[0] // (held * shape.wide)))
    for strips, batches, chunks in product(parts(shape.rows), parts(shape.images), parts(shape.outputs)):
        rows, images, filters = (ceil(a / b) for a, b in ((shape.rows, strips), (shape.images, batches), (shape.outputs, chunks)))
        high = min(shape.height, (rows - 1) * shape.stride + shape.high)
        sums, strip = images * filters * rows * shape.columns, images * high * shape.width
        smallest = (strips, batches, chunks) == (shape.rows, shape.images, shape.outputs)
        stays = {
            "one channel": sums + strip <= buffer or smallest,
            "all channels": sums + strip * shape.inputs <= buffer,
            "weights": sums + strip + filters * shape.inputs * shape.high * shape.wide <= buffer,
        }
        columns = min(rows, flow.array[1])
        copies = max(1, flow.array[0] * flow.array[1] // (min(shape.high, flow.array[0]) * columns))
        per_image = shape.inputs * shape.width * max(shape.height, strips * high)
        for name, fits in stays.items():
            for on_channels in parts(flow.array[0] * flow.array[1]):
                if not fits or on_channels > copies:
                    continue
                on_filters = max(1, copies // on_channels)
                weights, inputs, outputs = [0.0] * 4, [0.0] * 4, [0.0] * 4
                if name == "weights":
                    weights[0] = shape.weights
                if name == "all channels":
                    inputs[0] = shape.images * per_image
                for _ in range(strips * batches):
                    weights[0] += shape.weights if name != "weights" else 0
                    weights[1] += shape.weights
                    weights[2] += shape.weights * columns
                for _ in range(chunks):
                    inputs[0] += shape.images * per_image if name != "all channels" else 0
                    for _ in range(0, filters, filters_held * on_filters):
                        inputs[1] += shape.images * per_image
                        inputs[2] += (
                            shape.images
                            * per_image
                            * ceil(shape.high / shape.stride)
                            * min(on_filters, ceil(filters / filters_held))
                        )
                made = shape.images * shape.outputs * shape.rows * shape.columns
                outputs[0] = made
                for _ in range(0, shape.inputs, held * on_channels):
                    outputs[1] += 2 * made
                    outputs[2] += made * (shape.high * min(on_channels, ceil(shape.inputs / held)) - 1)
                for levels, each in ((weights, 1), (inputs, 1), (outputs, 2)):
                    levels[3] = each * shape.macs
                found = [weights, inputs, outputs]
                traffic = sum(200 * levels[0] + 6 * levels[1] + 2 * levels[2] for levels in found)
                best = min(best, (traffic, found), key=lambda way: way[0])
    return best


SHAPES = st.builds(
    Shape,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(5, 12),
    st.integers(5, 12),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 2),
)


@given(SHAPES, st.sampled_from([1, 60, 300, 3000, 10**6]), st.sampled_from([RowStationary(), RowStationary((3, 4), (12, 5, 3))]))
@settings(max_examples=40, deadline=None)
def test_the_best_way_fetches_what_the_best_of_all_loops_does(shape, buffer, flow):
    found = flow.accesses(shape, buffer, PRICES)
    levels = [[each.dram, each.buffer, each.array, each.registers] for each in (found.weights, found.inputs, found.sums)]
    traffic, naive = walked(shape, buffer, flow)
    assert sum(200 * a + 6 * b + 2 * c for a, b, c, _ in levels) == pytest.approx(traffic)
    assert [each[3] for each in levels] == [each[3] for each in naive]
    assert found.weights.dram >= shape.weights and found.sums.dram == shape.images * shape.outputs * shape.rows * shape.columns
    a, b, c, d = found.weights.reuse(shape.weights)
    assert a * b * c * d * shape.weights == pytest.approx(shape.macs)


@given(SHAPES, st.sampled_from([60, 300, 3000]), st.integers(0, 3), st.integers(0, 3), st.sampled_from([PRICES, (640.0, 5.0, 2.0)]))
@settings(max_examples=80, deadline=None)
def test_fewer_channels_never_cost_more(shape, buffer, inputs, outputs, prices):
    smaller = replace(shape, inputs=max(1, shape.inputs - inputs), outputs=max(1, shape.outputs - outputs))
    few, many = (RowStationary().accesses(each, buffer, prices) for each in (smaller, shape))
    costs = [sum(Hierarchy(*prices).of(each) for each in (found.weights, found.inputs, found.sums)) for found in (few, many)]
    assert costs[0] <= costs[1] * (1 + 1e-12)


def test_more_room_never_makes_more_traffic():
    shape = Shape(4, 64, 96, 28, 28, 28, 28, 3, 3, 1)
    dram = []
    for buffer in (10, 1000, 10_000, 100_000, 10**7):
        found = RowStationary().accesses(shape, buffer, PRICES)
        dram.append(found.weights.dram + found.inputs.dram)
    assert dram == sorted(dram, reverse=True) and dram[-1] == shape.weights + 4 * 64 * 28 * 28


def test_without_reuse_everything_comes_from_the_buffer():
    shape = Shape(2, 3, 4, 6, 6, 4, 4, 3, 3, 1)
    found = NoLocalReuse().accesses(shape, 100, PRICES)
    assert found.weights.buffer == found.inputs.buffer == shape.macs == 2 * 3 * 4 * 16 * 9
    machine = Accelerator(dataflow=NoLocalReuse())
    layer, x = torch.nn.Conv2d(3, 4, 3, bias=False), torch.zeros(2, 3, 6, 6)
    numbers, outputs = 2 * 3 * 36, 2 * 4 * 16
    by_hand = 200 * (108 + numbers + outputs) + 6 * (2 * shape.macs + outputs) + 2 * 2 * shape.macs + 2 * shape.macs + shape.macs
    assert energy_on(machine)(layer, x) == by_hand > energy(layer, x)


# ---------------------------------------------------------------- what a number costs


def test_the_energy_of_a_layer_by_hand_with_zeros_and_bits():
    """1 × 100 → 10: every weight once from everywhere; of the sums, what passes between the elements of a column of 8 copies."""
    work = Work("fc", "fc.weight", 1, 100, 10, (), 1, 100, 10, 1000.0)
    found = EYERISS.fetched(work)
    assert (found.weights.dram, found.weights.buffer, found.weights.array, found.weights.registers) == (1000, 1000, 1000, 1000)
    layer, x = torch.nn.Linear(100, 10, bias=False), torch.zeros(1, 100)
    layer.weight.data[:, 50:] = 0
    stored = 0.5 * (1 + 5 / 16)
    sums = 200 * 10 * 0.5 * (1 + 5 / 16) + 6 * found.sums.buffer + 2 * found.sums.array + 0.25 * 2000
    inputs = 200 * 100 * 0.5 * (1 + 5 / 16) + 6 * found.inputs.buffer + 2 * found.inputs.array + 0.5 * 1000
    weights = (200 + 6) * 1000 * stored + 2 * 1000 * 0.5 + 0.25 * 1000
    assert energy_on(activations={"weight": 0.5})(layer, x) == pytest.approx(weights + inputs + sums + 0.25 * 1000)
    plain = Accelerator(skips_zeros=False)
    assert energy_on(plain, activations={"weight": 0.5})(layer, x) == energy_on(plain)(layer, x)
    full = energy_on(plain)(layer, x)
    halved = energy_on(plain, weight_bits=8, activation_bits=8)(layer, x)
    assert halved == pytest.approx((full - 1000) / 2 + 250)


def test_horowitz_says_what_operations_cost_and_how_that_scales():
    assert Technology().hierarchy() == Hierarchy(640, 5, 2, 1, 3.7 + 0.9, 32, "pJ")
    assert Technology().hierarchy(16, integer=True).mac == pytest.approx(3.1 / 4 + 0.1 / 2)
    smaller = Technology().at(9)
    assert smaller.dram == 640 and smaller.float_multiply == pytest.approx(0.74) and smaller.nanometres == 9
    cost = energy_on(Accelerator(Technology().hierarchy(bits=16)))
    layer, x = torch.nn.Linear(10, 10), torch.zeros(1, 10)
    assert cost.unit == "pJ" and cost(layer, x) > 320 * 120


def test_a_batch_shares_what_weights_take_from_dram():
    layer, x = torch.nn.Linear(512, 512), torch.zeros(1, 512)
    alone, together = energy_on()(layer, x), energy_on(batch=32)(layer, x)
    assert together < alone / 10 and energy_on()(layer, torch.zeros(32, 512)) == pytest.approx(32 * together)


@pytest.mark.parametrize("network", [0, 1])
def test_energy_keeps_the_laws_of_costs(network):
    check_cost(energy, counted=lambda model, example, masks: energy(model, example), on=NETWORKS[network : network + 1])


def test_of_channels_the_promise_is_what_the_smaller_model_takes_and_a_budget_is_met():
    model, x = models.resnet_20(), torch.zeros(1, 3, 32, 32)
    dense = energy(model, x)
    limit = sc.within_budget(sc.Budget(sc.energy, keep=0.3), sc.uniform)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.random(0)), limit, Task(x))
    sc.shrink_(model, masks)
    assert masks.plan.promised["energy"] == pytest.approx(energy(model, x)) and energy(model, x) <= 0.3 * dense
    assert energy(model, x) == pytest.approx(sum(energy.by_layer(model, x).values()))


def test_what_convolutions_of_other_dimensions_look_like():
    def first(layer: torch.nn.Module, x: torch.Tensor) -> Shape:
        return shape_of(workload(layer, x).under(None)[0].left({}))

    assert first(torch.nn.Conv1d(3, 4, 5), torch.zeros(2, 3, 20)) == Shape(2, 3, 4, 1, 20, 1, 16, 1, 5, 1)
    assert first(torch.nn.Conv3d(3, 4, 3), torch.zeros(2, 3, 6, 5, 5)).macs == 2 * 36 * 3 * 4 * 27
    assert first(torch.nn.Conv2d(4, 4, 3, groups=4, stride=2), torch.zeros(1, 4, 9, 9)) == Shape(1, 1, 1, 9, 9, 4, 4, 3, 3, 2)
    assert first(torch.nn.Linear(4, 5), torch.zeros(2, 7, 4)) == Shape(14, 4, 5, 1, 1, 1, 1, 1, 1, 1)


# ---------------------------------------------------------------- Yang et al., 1611.05128

ALEXNET = [
    (1, 3, 96, 11, 227, 55, 4, 0.84, 1.0),
    (2, 48, 128, 5, 27, 27, 1, 0.38, 0.88),
    (1, 256, 384, 3, 13, 13, 1, 0.35, 0.52),
    (2, 192, 192, 3, 13, 13, 1, 0.37, 0.37),
    (2, 192, 128, 3, 13, 13, 1, 0.37, 0.40),
    (1, 9216, 4096, 0, 0, 1, 1, 0.09, 0.34),
    (1, 4096, 4096, 0, 0, 1, 1, 0.09, 0.36),
    (1, 4096, 1000, 0, 0, 1, 1, 0.25, 0.40),
]
"""Groups, inputs and outputs of each, kernel, input, output, stride; what magnitude pruning keeps, and nonzero inputs (1506.02626)."""


def alexnet(pruned: bool) -> float:
    total = 0.0
    for groups, inputs, outputs, kernel, size, made, stride, keep, busy in ALEXNET:
        weights = groups * inputs * outputs * max(1, kernel) ** 2
        space, sizes = ((size, size), (kernel, kernel)) if kernel else ((), ())
        taken = groups * inputs * max(1, size) ** 2
        work = Work(
            "", "", groups, inputs, outputs, sizes, made**2, taken, groups * outputs * made**2, weights * (keep if pruned else 1)
        )
        total += price(replace(work, space=space, grid=(made, made) if kernel else (), stride=(stride, stride), busy=busy), 44)
    return total


def price(work: Work, batch: int) -> float:
    return energy_of(work, EYERISS, batch, 1.0, 1.0) / batch


def test_networks_take_what_is_published_in_this_order():
    dense, pruned = alexnet(False), alexnet(True)
    assert dense == pytest.approx(3.97e9, rel=0.15) and pruned == pytest.approx(1.85e9, rel=0.15)
    squeezenet, x = models.squeezenet_1_0(), torch.zeros(1, 3, 227, 227)
    names = dict.fromkeys(layer.name for layer in workload(squeezenet, x).under(None))
    half = dict.fromkeys(list(names)[1:], 0.5)
    found = energy_on(batch=48, activations=half)(squeezenet, x)
    assert found == pytest.approx(5.28e9, rel=0.15)
    assert pruned < dense < found and sc.params(squeezenet) < 61e6 / 48


def test_what_is_refused():
    with pytest.raises(KindError, match="energy_on: machine is 3, but must be an Accelerator"):
        energy_on(3)  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match="energy_on: batch=0, but must be at least 1"):
        energy_on(batch=0)
    with pytest.raises(SecateursError, match="Hierarchy: dram=-1, but must be above 0"):
        Hierarchy(dram=-1)
    with pytest.raises(SecateursError, match="Technology: sram=0, but must be above 0"):
        Technology(sram=0)
    with pytest.raises(SecateursError, match=r"Technology\.at: nanometres=0, but must be above 0"):
        Technology().at(0)
    with pytest.raises(SecateursError, match=r"Technology\.hierarchy: bits=0"):
        Technology().hierarchy(bits=0)
    with pytest.raises(SecateursError, match="Accelerator: buffer_bytes=0, but must be at least 1"):
        Accelerator(buffer_bytes=0)
    with pytest.raises(KindError, match="Accelerator: dataflow is 'rows', but must be a dataflow"):
        Accelerator(dataflow="rows")  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"RowStationary: array=\(0, 3\), but each must be at least 1"):
        RowStationary((0, 3))
    with pytest.raises(SecateursError, match=r"RowStationary: registers=\(1, 2\), but must be 3 whole numbers"):
        RowStationary(registers=(1, 2))  # type: ignore[arg-type]
