"""What is observed of the data that pass through a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateurs.evidence import input_norm, observe
from secateurs.patterns import Channel, Element, find_sites
from secateurs.types import Accumulator, SecateursError, Statistic, Task, TaskError


def observed(model: nn.Module, batches, statistic: Statistic | None = None, **selection):
    statistic = statistic or input_norm()
    task = Task(example=None, calibration=[(batch, None) for batch in batches])
    stats = observe(model, find_sites(model, Element(), **selection or {"only": "*"}), [statistic], task)
    return {name: found[statistic] for name, found in stats.items()}


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_norm_of_a_linears_inputs_is_over_all_rows_of_all_batches(p):
    inputs = torch.randn(10, 3, 6)
    norms = observed(nn.Linear(6, 2), inputs.split(4), input_norm(p))["weight"]
    assert norms.shape == (1, 1, 6)
    assert torch.allclose(norms.flatten(), inputs.flatten(0, 1).abs().pow(p).sum(0).pow(1 / p), rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3), (1, 1, 4, 1, 1)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 1, 2, 1, 1)),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 1, 1, 1, 1)),
        (nn.ConvTranspose2d(4, 6, 3), (1, 1, 4, 1, 1)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 1, 2, 1, 1)),
    ],
)
def test_the_norm_of_a_convolutions_inputs_is_by_channel_in_the_order_of_its_groups(layer, shape):
    inputs = torch.randn(5, 4, 6, 6) * torch.arange(1, 5).view(4, 1, 1)
    norms = observed(layer, [inputs])["weight"]
    assert norms.shape == shape
    assert torch.allclose(norms.flatten(), inputs.transpose(0, 1).flatten(1).norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "single"),
    [(nn.Linear(4, 2), torch.randn(4)), (nn.Conv1d(4, 2, 3), torch.randn(4, 5)), (nn.Conv2d(4, 2, 3), torch.randn(4, 5, 5))],
)
def test_a_sample_without_a_batch_dimension_counts_as_a_batch_of_one(layer, single):
    assert torch.allclose(observed(layer, [(single,)])["weight"], observed(layer, [single[None]])["weight"])


def test_the_inputs_of_a_recurrent_layer_are_those_of_its_first_weights():
    inputs = torch.randn(7, 2, 5)
    norms = observed(nn.LSTM(5, 3), [inputs], only="weight_ih_l0")["weight_ih_l0"]
    assert norms.shape == (1, 1, 5)
    assert torch.allclose(norms.flatten(), inputs.flatten(0, 1).norm(dim=0))


def test_query_key_and_value_of_an_attention_have_each_their_own_norms():
    query, memory = torch.randn(3, 2, 4), 10 * torch.randn(6, 2, 4)
    norms = observed(nn.MultiheadAttention(4, 2), [(query, memory, memory + 1)], only="in_proj_weight")["in_proj_weight"]
    expected = [source.flatten(0, 1).norm(dim=0) for source in (query, memory, memory + 1)]
    assert torch.allclose(norms.expand(3, 1, 4)[:, 0], torch.stack(expected))


def test_half_precision_inputs_are_summed_in_single_precision():
    inputs = torch.full((64, 4), 100.0, dtype=torch.float16)
    norms = observed(nn.Linear(4, 2, dtype=torch.float16), [inputs])["weight"]
    assert torch.allclose(norms, torch.full((1, 1, 4), 800.0))


def test_layers_see_what_reaches_them_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.ReLU(), nn.Linear(4, 2)).train()
    inputs = torch.randn(8, 4)
    norms = observed(model, [inputs])["3.weight"]
    assert torch.allclose(norms.flatten(), model[0](inputs).relu().norm(dim=0))
    assert model.training
    assert model[1].training


def test_a_layer_that_is_called_twice_counts_both_inputs():
    layer = nn.Linear(4, 4)
    inputs = torch.randn(3, 4)
    norms = observed(nn.Sequential(layer, layer), [inputs])["0.weight"]
    both = torch.cat([inputs, layer(inputs).detach()])
    assert torch.allclose(norms.flatten(), both.norm(dim=0))


def test_batches_of_the_training_loader_serve_where_there_are_none_for_calibration():
    layer, statistic, batch = nn.Linear(4, 2), input_norm(), (torch.ones(9, 4), None)
    sites = find_sites(layer, Element())
    assert torch.equal(
        observe(layer, sites, [statistic], Task(example=None, train=[batch]))["weight"][statistic],
        observe(layer, sites, [statistic], Task(example=None, calibration=[batch]))["weight"][statistic],
    )
    few = Task(example=None, train=[batch], calibration=[(torch.ones(1, 4), None)])
    assert observe(layer, sites, [statistic], few)["weight"][statistic].unique().tolist() == [1.0]


def test_nothing_is_run_where_nothing_is_needed():
    def fail(batch):
        raise RuntimeError("this batch must not be looked at")

    layer = nn.Linear(2, 2)
    assert observe(layer, find_sites(layer, Element()), [], Task(example=None, train=[1], unpack=fail)) == {}


def test_an_empty_calibration_loader_is_an_error():
    layer = nn.Linear(4, 2)
    with pytest.raises(TaskError, match="the calibration loader is empty: it gave no batch to observe"):
        observe(layer, find_sites(layer, Element()), [input_norm()], Task(example=None, calibration=[]))


def test_no_calibration_data_is_an_error_that_names_what_is_needed():
    layer = nn.Linear(4, 2)
    with pytest.raises(TaskError, match=r"input_norm\(p=2\) must be observed on data: give Task\(calibration=...\)"):
        observe(layer, find_sites(layer, Element()), [input_norm()], Task(example=None))


def test_a_calibration_batch_of_another_kind_than_the_model_is_an_error():
    with pytest.raises(TaskError, match=r"a calibration batch is torch.float64 but the model's weights are torch.float32"):
        observed(nn.Linear(4, 2), [torch.ones(2, 4, dtype=torch.float64)])


def test_batches_are_moved_to_the_models_device():
    assert observed(nn.Linear(4, 2, device="meta"), [torch.ones(2, 4)])["weight"].is_meta


def test_calibration_batches_are_moved_to_where_the_model_is():
    norms = observed(nn.Linear(4, 2).to("meta"), [(torch.ones(2, 4),)])
    assert norms["weight"].device.type == "meta"


@pytest.mark.parametrize(
    ("model", "batch", "name"),
    [
        (nn.Embedding(4, 3), torch.zeros(2, dtype=torch.long), "weight"),
        (nn.LSTM(4, 3), torch.zeros(2, 4), "weight_hh_l0"),
        (nn.LSTM(4, 3, num_layers=2), torch.zeros(2, 4), "weight_ih_l1"),
        (nn.LSTM(4, 3, proj_size=2), torch.zeros(2, 4), "weight_hr_l0"),
        (nn.MultiheadAttention(4, 2), (torch.zeros(2, 1, 4),) * 3, "out_proj"),
        (nn.MultiheadAttention(4, 2, kdim=3), (torch.zeros(2, 1, 4),) * 3, "k_proj_weight"),
    ],
)
def test_a_weight_whose_inputs_cannot_be_seen_is_an_error_that_names_it(model, batch, name):
    with pytest.raises(SecateursError, match=rf"^{name}.*: .*skip it with skip=\["):
        observed(model, [batch], only=name)


def test_the_inputs_of_a_bare_parameter_cannot_be_seen():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(8, 3)), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(nn.functional.linear(x, self.weight))

    model, batch = Bare(), torch.randn(2, 3)
    with pytest.raises(SecateursError, match="weight: the inputs of this weight cannot be observed"):
        observe(model, find_sites(model, Channel(), batch), [input_norm()], Task(batch, calibration=[(batch, None)]))


def test_a_layer_that_no_batch_passes_is_an_error_that_names_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.forward = lambda x: model[0](x)
    with pytest.raises(SecateursError, match=r"^1.weight: no calibration batch passed this layer"):
        observed(model, [torch.zeros(1, 4)])


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.Linear(4, 4), lambda layer, x: layer(input=x)),
        (nn.MultiheadAttention(4, 2), lambda layer, x: layer(x, key=x + 1, value=x + 2)),
    ],
)
def test_a_layer_that_is_called_with_keywords_is_an_error_that_names_it(layer, call):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return call(self.layer, x)

    with pytest.raises(SecateursError, match=r"^layer.*weight: .*keyword.*skip=\["):
        observed(Named(), [torch.zeros(1, 4)])


def test_hooks_are_gone_afterwards_even_after_an_error():
    layer = nn.Linear(4, 2)
    observed(layer, [torch.zeros(1, 4)])
    with pytest.raises(TaskError, match=r"the model rejects a calibration batch \(tensor \(1, 5\)"):
        observed(layer, [torch.zeros(1, 5)])
    assert not layer._forward_hooks


def test_a_statistic_of_ones_own_sees_inputs_and_output_of_each_pass():
    class Largest:
        def __init__(self) -> None:
            self.value = torch.zeros(())

        def add(self, seen) -> None:
            self.value = torch.maximum(self.value, seen.output.abs().max())

        def result(self) -> torch.Tensor:
            return self.value

    def start(member) -> Accumulator:
        return Largest()

    layer, batches = nn.Linear(4, 2), [torch.randn(3, 4), torch.randn(3, 4)]
    got = observed(layer, batches, Statistic("largest output", start))["weight"]
    assert torch.allclose(got, layer(torch.cat(batches)).abs().max())
