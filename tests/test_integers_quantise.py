"""How integers are chosen: ranges, equalisation, rounding, biases, and the best of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateurs import models
from secateurs.integers.best import best, decibels
from secateurs.integers.build import built
from secateurs.integers.correct import Pair, corrected, rounded_together, unbiased
from secateurs.integers.equalise import equalised, reaches
from secateurs.integers.layers import Array, Conv, Network
from secateurs.integers.quantise import quantised
from secateurs.integers.ranges import Seen, calibrated, least_error, minmax, percentile, seen_in
from secateurs.integers.reference import run
from secateurs.types import NonFiniteError, SecateursError, TaskError

# ---------------------------------------------------------------- what arrays show


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from([1e-6, 0.1, 1.0, 50.0, 1e7])), min_size=1, max_size=5))
def test_a_histogram_of_growing_bins_counts_what_numpy_counts(parts):
    given_ = []
    seen = Seen()
    for seed, size in parts:
        rng = np.random.default_rng(seed)
        numbers = (rng.normal(rng.normal(), 1, 200) * size * (rng.random(200) > 0.3)).astype(np.float32)
        seen.add(numbers)
        given_.append(numbers)
    everything = np.concatenate(given_)
    assert (seen.low, seen.high, seen.total) == (everything.min(), everything.max(), everything.size)
    assert len(seen.counts) <= 4096 and seen.zeros == (everything == 0).sum()
    others = everything[everything != 0].astype(np.float64)
    edges = (seen.first + np.arange(len(seen.counts) + 1)) * seen.width
    np.testing.assert_array_equal(seen.counts, np.histogram(others, edges)[0] if len(seen.counts) else [])


def _seen(numbers):
    seen = Seen()
    seen.add(np.asarray(numbers, np.float64))
    return seen


def test_a_percentile_leaves_out_as_many_on_either_side():
    numbers = np.random.default_rng(0).normal(size=50_000)
    low, high = percentile(99).range_of(_seen(numbers), "int8")
    assert low == pytest.approx(np.percentile(numbers, 1), abs=0.01)
    assert high == pytest.approx(np.percentile(numbers, 99), abs=0.01)
    assert percentile(100).range_of(_seen(numbers), "int8") == (numbers.min(), numbers.max())


@pytest.mark.parametrize("within", [50, 101, 0.99])
def test_percentiles_that_are_none(within):
    with pytest.raises(SecateursError, match="clips one of 10,000"):
        percentile(within)


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_the_least_error_is_that_of_rounding_with_each_range(kind):
    rng = np.random.default_rng(1)
    numbers = np.concatenate([rng.laplace(size=30_000), [60.0, -35.0]])

    def error(within):
        array = quantised_array(within, kind)
        least, most = (-128, 127) if kind == "int8" else (-32768, 32767)
        whole = np.clip(np.rint(numbers / array.scale) + array.zero, least, most)
        return ((numbers - (whole - array.zero) * array.scale) ** 2).mean()

    found = least_error().range_of(_seen(numbers), kind)
    tried = [(low * -35.0, high * 60.0) for low in np.linspace(0.2, 1, 17) for high in np.linspace(0.2, 1, 17)]
    assert error(found) <= 1.05 * min(map(error, tried))


def quantised_array(within, kind):
    from secateurs.integers.quantise import of_range

    return of_range(Array("x", (1, 1, 1)), within, kind)


def test_arrays_of_zeros_have_their_range():
    for method in (minmax(), percentile(), least_error()):
        assert method.range_of(_seen([0.0, 0.0]), "int8") == (0.0, 0.0)


# ---------------------------------------------------------------- calibration


def _small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()


def test_calibration_takes_batches_of_all_kinds_and_keeps_extremes():
    model, inputs = _small(), torch.randn(12, 2, 5, 5)
    network = built(model, inputs)
    wanted = calibrated(network, [inputs])
    assert wanted["input"] == (float(inputs.min()), float(inputs.max()))
    with torch.no_grad():
        out = model(inputs)
    assert wanted[network.outputs[0].array.name] == pytest.approx((float(out.min()), float(out.max())), rel=1e-5)
    halves = inputs.split(6)
    pairs = [(half, torch.zeros(6)) for half in halves]
    for batches in (halves, pairs, iter(pairs), [{"input": half} for half in halves], [{"x": half.numpy()} for half in halves]):
        assert calibrated(network, batches) == wanted
    assert calibrated(network, [[half] for half in halves]) == wanted


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "0 batches and no sample"),
        ([torch.zeros(0, 2, 5, 5)], "1 batches and no sample"),
        (torch.zeros(3, 2, 5, 5), "one tensor .3, 2, 5, 5., but must be batches"),
        (7, "calibration is 7"),
        ([torch.zeros(3, 2, 5, 6)], r"batch 1: the input is \(3, 2, 5, 6\), but the network was built for \(samples, 2, 5, 5\)"),
        ([torch.zeros(3, 2, 5, 5), "word"], "batch 2: 1 parts of str"),
        ([[torch.zeros(3, 2, 5, 5)] * 3], "batch 1: 3 parts of Tensor, where the network takes 1"),
    ],
)
def test_batches_that_do_not_fit(batches, told):
    network = built(_small(), torch.zeros(1, 2, 5, 5))
    with pytest.raises(TaskError, match=told):
        calibrated(network, batches)


def test_what_is_not_finite_is_told_with_layer_and_batch():
    model = _small()
    network = built(model, torch.zeros(1, 2, 5, 5))
    wrong = torch.randn(3, 2, 5, 5)
    wrong[1, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="batch 2: input has 1 of 150 numbers"):
        calibrated(network, [torch.randn(3, 2, 5, 5), wrong])
    with torch.no_grad():
        model[0].weight.mul_(100)
    with pytest.raises(NonFiniteError, match="batch 1: 0 gives"):
        calibrated(built(model, torch.zeros(1, 2, 5, 5)), [torch.full((1, 2, 5, 5), 3e38)])


def test_arrays_that_are_always_zero_are_warned_of():
    model = _small()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    network = built(model, torch.zeros(1, 2, 5, 5))
    with pytest.warns(UserWarning, match="nothing but 0 in 0, .*calibrate on more inputs"):
        calibrated(network, [torch.randn(4, 2, 5, 5)])


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x, y):
        return self.one(x) + self.two(y)


def test_networks_of_two_inputs():
    network = built(_Two(), (torch.zeros(1, 3), torch.zeros(1, 5)))
    x, y = torch.randn(6, 3), torch.randn(6, 5)
    wanted = calibrated(network, [((x, y), torch.zeros(6))])
    names = [face.name for face in network.inputs]
    assert calibrated(network, [dict(zip(names, (x, y), strict=True))]) == wanted
    with pytest.raises(TaskError, match=f"batch 1: it has no {names[1]}"):
        calibrated(network, [{names[0]: x}])
    with pytest.raises(TaskError, match=r"the inputs have \[6, 5\] samples"):
        calibrated(network, [((x, y[:5]), None)])


# ---------------------------------------------------------------- equalisation


def _uneven(seed=0, spread=1.5):
    """A model whose channels have very different ranges."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).eval()
    with torch.no_grad():
        for place in (0, 2, 9):
            size = torch.exp(spread * torch.randn(model[place].weight.shape[0]))
            model[place].weight.mul_(size.reshape(-1, *[1] * (model[place].weight.ndim - 1)))
            model[place].bias.mul_(size)
    return model


@pytest.mark.parametrize("how", ["weights", 0.0, 0.25, 0.5, 1.0])
def test_an_equalised_network_answers_the_same(how):
    model, inputs = _uneven(), torch.randn(20, 3, 8, 8)
    network = built(model, inputs)
    made = equalised(network) if how == "weights" else equalised(network, reaches(network, [inputs]), how)
    (before,), (after,) = (run(each, [network.inputs[0].packed(inputs.numpy())]) for each in (network, made))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    changed = [one.name for one, two in zip(network.layers, made.layers, strict=True) if one is not two]
    assert changed == ["0", "2", "5", "7", "9", "11"]  # not across ReLU6: 5 reads 2, and 7 writes 9
    six, seven = (next(layer for layer in each.layers if layer.name == "5") for each in (network, made))
    assert np.array_equal(six.bias, seven.bias)


def test_equalised_by_weights_both_sides_are_as_large():
    network = built(_uneven(), torch.randn(1, 3, 8, 8))
    layers = {layer.name: layer for layer in equalised(network).layers}
    writing = np.abs(layers["9"].weight).max((1, 2, 3))
    reading = np.abs(layers["11"].weight).max((0, 1, 2))
    np.testing.assert_allclose(writing, reading, rtol=5e-3)


def test_equalised_by_ranges_a_depthwise_layer_reads_channels_of_one_range():
    model, inputs = _uneven(spread=0.8), torch.randn(20, 3, 8, 8)
    network = built(model, inputs)
    after = reaches(equalised(network, reaches(network, [inputs])), [inputs])
    np.testing.assert_allclose(after["0"], after["0"].max(), rtol=1e-4)


def test_equalisation_loses_less():
    model, inputs = _uneven(), torch.randn(64, 3, 8, 8)
    network = built(model, inputs)
    packed = [network.inputs[0].packed(inputs.numpy())]
    wanted = run(network, packed)
    made = equalised(network, reaches(network, [inputs]))
    before, after = (decibels(quantised(each, calibrated(each, [inputs])), packed, wanted) for each in (network, made))
    assert after > before + 2


def test_a_tensor_that_two_read_is_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.one(x)
            return self.two(y) + self.three(y)

    network = built(Shared(), torch.randn(1, 2, 4, 4))
    assert all(one is two for one, two in zip(network.layers, equalised(network).layers, strict=True))


def test_equalisation_refuses_integers_and_strengths_that_are_none():
    model, inputs = _uneven(), torch.randn(9, 3, 8, 8)
    network = built(model, inputs)
    with pytest.raises(SecateursError, match="equalise it in float32"):
        equalised(quantised(network, calibrated(network, [inputs])))
    with pytest.raises(SecateursError, match="strength=2 must be from 0 to 1"):
        equalised(network, reaches(network, [inputs]), 2)


# ---------------------------------------------------------------- corrections


def _prepared(kind="int8", even=0.0):
    """A network in float32 and in integers, and inputs, a part of which is the same at all places."""
    model, inputs = _uneven(3), torch.randn(48, 3, 8, 8)
    inputs = inputs.lerp(torch.randn(48, 3, 1, 1), even)
    network = built(model, inputs)
    return network, quantised(network, calibrated(network, [inputs]), kind), inputs


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_after_a_correction_of_biases_means_are_those_of_float32(kind):
    network, whole, inputs = _prepared(kind)
    seen = []

    def looked(pair):
        made = unbiased(pair)
        for layer, errors in ((pair.whole, []), (made, [])):
            from secateurs.integers.reference import sums_of

            wanted = sums_of(pair.real, pair.real_x).mean((0, 1, 2))
            found = sums_of(layer, pair.whole_x).mean((0, 1, 2)) * pair.unit
            errors.append(np.abs(wanted - found) / pair.unit)
            seen.append(errors[0].max())
        return made

    corrected(whole, network, [inputs], [looked])
    before, after = seen[::2], seen[1::2]
    assert max(after) <= 0.51 and max(before) > 5  # half a step of the sums


def test_rounding_together_beats_rounding_each_to_the_nearest():
    network, whole, inputs = _prepared("int16", even=0.9)
    packed = [network.inputs[0].packed(inputs.numpy())]
    wanted = run(network, packed)
    plain = decibels(whole, packed, wanted)
    rounded = decibels(corrected(whole, network, [inputs], [rounded_together]), packed, wanted)
    assert rounded > plain + 3


def test_weights_of_zero_stay_zero_when_rounded_together():
    network, _, inputs = _prepared()
    rng = np.random.default_rng(0)
    layers = [
        replace(layer, weight=layer.weight * (rng.random(layer.weight.shape) > 0.6)) if isinstance(layer, Conv) else layer
        for layer in network.layers
    ]
    pruned = replace(network, layers=tuple(layers))
    made = corrected(quantised(pruned, calibrated(pruned, [inputs])), pruned, [inputs], [rounded_together, unbiased])
    for layer, exact in zip(made.layers, pruned.layers, strict=True):
        if isinstance(layer, Conv):
            assert not layer.weight[exact.weight == 0].any() and np.abs(layer.weight).max() <= 127


def test_one_weight_alone_is_rounded_to_the_nearest_at_its_step():
    """With inputs that have nothing to do with each other there is nothing to make up for."""
    x, y = Array("x", (1, 1, 6)), Array("y", (1, 1, 3))
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 1, 1, 6)).astype(np.float32)
    network = Network((), (), (Conv("fc", x, y, weight, np.zeros(3, np.float32)),))
    whole = quantised(network, {"x": (-1, 1), "y": (-5, 5)}).layers[0]
    inputs = np.repeat(np.eye(6), 3, 0).reshape(-1, 1, 1, 6).astype(np.float32)
    made = rounded_together(Pair(network.layers[0], whole, inputs, np.rint(inputs * 127).astype(np.int8)))
    steps = made.weight_scale[:, None, None, None]
    np.testing.assert_array_equal(made.weight, np.clip(np.rint(weight / steps), -127, 127))


def test_corrections_refuse_other_networks_and_no_samples():
    network, whole, inputs = _prepared()
    with pytest.raises(SecateursError, match="not of the layers of the one in float32"):
        corrected(whole, replace(network, layers=network.layers[:-1]), [inputs], [unbiased])
    with pytest.raises(TaskError, match="no sample to correct by"):
        corrected(whole, network, [], [unbiased])


# ---------------------------------------------------------------- the best


def test_the_best_is_the_same_each_time_and_better_than_the_plain_one():
    torch.manual_seed(0)
    model = models.ds_cnn(width=0.25).eval()
    inputs = torch.randn(48, 1, 49, 10)
    network = built(model, inputs)
    first, second = (best(network, [inputs[:20], inputs[20:]]) for _ in range(2))
    assert first.tried == second.tried
    for one, two in zip(first.network.layers, second.network.layers, strict=True):
        if isinstance(one, Conv):
            assert np.array_equal(one.weight, two.weight) and np.array_equal(one.bias, two.bias)
    assert first.kept.decibels == max(each.decibels for each in first.tried) > first.tried[0].decibels
    assert (first.tried[0].ranges, first.tried[0].equalised, first.tried[0].corrected) == ("minmax", "no", "no")
    assert (first.samples, first.held_out) == (36, 12)
    assert f"{first.kept.decibels:.1f} ← kept" in str(first)


def test_too_few_samples_to_choose_by():
    network = built(_small(), torch.zeros(1, 2, 5, 5))
    with pytest.raises(TaskError, match="7 calibration samples are too few"):
        best(network, [torch.randn(7, 2, 5, 5)])
    with pytest.raises(SecateursError, match="kind='float32' is neither"):
        best(network, [torch.randn(9, 2, 5, 5)], "float32")


def test_what_arrays_show_does_not_depend_on_how_samples_are_batched():
    network = built(_small(), torch.zeros(1, 2, 5, 5))
    inputs = torch.randn(70, 2, 5, 5)
    one, two = seen_in(network, [inputs]), seen_in(network, inputs.split(7))
    for name, seen in one.items():
        assert (seen.low, seen.high, seen.total) == (two[name].low, two[name].high, two[name].total)


class _Spoken(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates, self.fc = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.gates(x)[0])


def test_networks_with_recurrent_layers_are_chosen_too():
    torch.manual_seed(0)
    found = best(built(_Spoken().eval(), torch.randn(2, 6, 5)), [torch.randn(24, 6, 5)])
    assert found.kept.corrected != "no" and found.kept.decibels > 25
