"""Each criterion against its definition: plain loops in float64, finite differences, numbers worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.criteria import (
    activation,
    apoz,
    batchnorm_scale,
    cosine,
    fisher,
    fpgm,
    lamp,
    magnitude,
    normalised,
    random,
    snip,
    taylor,
    variance,
)
from secateurs.evidence import gradient, observe
from secateurs.patterns import find_sites
from secateurs.solve import scores_of
from secateurs.types import Criterion, KindError, NonFiniteError, PatternError, Seen, Statistic, TaskError

CNN: Callable[[], nn.Module] = lambda: nn.Sequential(  # noqa: E731
    nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, 3)
)


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 2, 6, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for size in sizes]


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = CNN().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.0, 3.0]))
        model[1].running_mean.normal_()
    return model


def task_of(data: list[tuple[Tensor, Tensor]], **more: Any) -> sc.Task:
    return sc.Task(example=data[0][0][:1], calibration=data, **{"loss": nn.functional.cross_entropy, **more})


def scores(model: nn.Module, pattern: Any, criterion: Criterion, task: sc.Task, site: int = 0) -> Tensor:
    sites = find_sites(model, pattern, task.example, only="*" if not isinstance(pattern, sc.Channel) else None)
    return scores_of(sites[site], criterion, observe(model, sites, criterion.needs, task))


def gradients(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    """The gradient of each batch's mean loss by each parameter, in float64."""
    double, found = copy.deepcopy(model).double(), []
    for x, y in data:
        double.zero_grad()
        nn.functional.cross_entropy(double(x.double()), y).backward()
        found.append({name: parameter.grad.clone() for name, parameter in double.named_parameters()})
    return found


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("sizes", [(8,), (5, 2, 1)])
def test_snip_is_the_gradient_of_all_samples_times_the_weight(sizes):
    model, data = made(), batches(*sizes)
    by_batch = gradients(model, data)
    whole = sum(size * each["3.weight"] for size, each in zip(sizes, by_batch, strict=True)) / sum(sizes)
    expected = (whole * model[3].weight.detach().double()).abs()
    assert torch.allclose(
        scores(model, sc.Element(), snip(), task_of(data), 1).double(), expected.reshape(1, -1), rtol=1e-4, atol=1e-9
    )
    filters = scores(model, sc.Filter(), snip(), task_of(data), 1)
    assert torch.allclose(filters.double(), expected.flatten(1).sum(1)[None], rtol=1e-4)


def test_fisher_and_taylor_are_means_over_batches_of_squares():
    model, sizes = made(), (5, 2, 1)
    data, by_batch = batches(*sizes), gradients(made(), batches(*sizes))
    weight = model[3].weight.detach().double()
    squared = sum(size * each["3.weight"].square() for size, each in zip(sizes, by_batch, strict=True)) / 8
    changes = [(each["3.weight"] * weight).flatten(1).sum(1).square() for each in by_batch]
    changed = sum(size * each for size, each in zip(sizes, changes, strict=True)) / 8
    expected = (squared * weight.square() / 2).flatten(1).sum(1)
    assert torch.allclose(scores(model, sc.Filter(), fisher(), task_of(data), 1).double(), expected[None], rtol=1e-4)
    assert torch.allclose(scores(model, sc.Filter(), taylor(), task_of(data), 1).double(), changed[None], rtol=1e-4)
    single = scores(model, sc.Element(), taylor(), task_of(batches(8)), 1)
    assert torch.allclose(single, scores(model, sc.Element(), snip(), task_of(batches(8)), 1).square(), rtol=1e-4, atol=1e-12)


def test_taylor_of_coupled_units_is_the_finite_difference_of_the_loss():
    """Scaling all weights of a channel by 1 - ε changes the loss by -ε Σ g·w."""
    model, data = made(), batches(6)
    double, eps = copy.deepcopy(model).double(), 1e-6
    loss = lambda: nn.functional.cross_entropy(double(data[0][0].double()), data[0][1])  # noqa: E731
    expected = []
    with torch.no_grad():
        for channel in range(5):
            ends = []
            for factor in (1 - eps, 1 + eps):
                double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
                double[0].weight[channel] *= factor
                double[3].weight[:, channel] *= factor
                for vector in (double[0].bias, double[1].weight, double[1].bias):
                    vector[channel] *= factor
                ends.append(loss())
            expected.append(((ends[1] - ends[0]) / (2 * eps)).square())
    got = scores(model, sc.Channel(), taylor(members="all"), task_of(data))
    assert torch.allclose(got.double(), torch.stack(expected)[None], rtol=1e-3)


@pytest.mark.parametrize("sizes", [(4,), (3, 1)])
def test_taylor_of_activations_is_the_mean_over_samples_of_the_size_of_their_sums(sizes):
    model, data = made(), batches(*sizes)
    double, expected = copy.deepcopy(model).double(), torch.zeros(5, dtype=torch.float64)
    for x, y in data:
        for one, label in zip(x.double(), y, strict=True):
            hidden = double[:3](one[None]).detach().requires_grad_()
            nn.functional.cross_entropy(double[3:](hidden), label[None]).backward()
            expected += (hidden * hidden.grad).sum((0, 2, 3)).abs() / sum(sizes)
    got = scores(model, sc.Channel(), taylor(activations=True), task_of(data))
    assert torch.allclose(got.double(), expected[None].detach(), rtol=1e-4)


def test_gradients_are_watched_without_leaving_a_trace():
    model, data = CNN().train(), batches(4, 4)
    first = model[0].weight
    first.grad = torch.full_like(first, 7.0)
    model[3].bias.requires_grad_(False)
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for criterion in (taylor(members="producers"), taylor(activations=True), snip(), fisher()):
        scores(model, sc.Channel(), criterion, task_of(data))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(chance, torch.get_rng_state())
    assert bool((first.grad == 7).all()) and model[3].weight.grad is None and not model[3].bias.requires_grad


def test_writing_into_an_output_does_not_disturb_its_gradient():
    statistic = Statistic("seen", lambda member: _Kept(), "output_gradients")
    data, found = batches(4), []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = CNN().eval()
        model[2], model[4] = nn.ReLU(inplace), nn.ReLU(inplace)
        found.append(observe(model, find_sites(model, sc.Element(), only=["0", "3"]), [statistic], task_of(data)))
    for name in ("0.weight", "3.weight"):
        assert torch.allclose(found[0][name][statistic], found[1][name][statistic])


class _Kept:
    """Σ inputs, outputs and gradients of one layer, to compare two runs."""

    sums = ("total",)
    total: Tensor | None = None

    def add(self, seen: Seen) -> None:
        assert seen.gradient.shape == seen.output.shape
        self.total = torch.stack([seen.inputs[0].detach().sum(), seen.output.sum(), seen.gradient.abs().sum()])

    def result(self) -> Tensor:
        return self.total


def test_layers_behind_which_nothing_is_trained_show_gradients_of_outputs_and_values():
    model, data = made(), batches(4)
    trained = scores(model, sc.Channel(), taylor(activations=True), task_of(data))
    assert torch.allclose(scores(model.requires_grad_(False), sc.Channel(), taylor(activations=True), task_of(data)), trained)


def test_half_precision_models_are_observed_in_float32():
    model, data = made().bfloat16(), [(x.bfloat16(), y) for x, y in batches(4)]
    for criterion in (snip(), taylor(), taylor(activations=True), apoz()):
        got = scores(model, sc.Channel(), criterion, task_of(data))
        assert got.dtype == torch.float32 and bool(got.isfinite().all())


# ---------------------------------------------------------------- activations


def test_apoz_counts_zeros_behind_the_relu():
    """Three channels with 11, 12 and 14 zeros in 32 places."""
    zeros, model = (11, 12, 14), nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    x = torch.ones(2, 3, 4, 4)
    for channel, count in enumerate(zeros):
        x.transpose(0, 1)[channel].reshape(-1)
        flat = torch.ones(32)
        flat[torch.randperm(32, generator=torch.Generator().manual_seed(channel))[:count]] = -1
        x[:, channel] = flat.view(2, 4, 4)
    task = sc.Task(example=x[:1], calibration=[(x[:1], None), (x[1:], None)])
    got = scores(model, sc.Channel(), apoz(), task)
    assert torch.allclose(1 - got, torch.tensor([[count / 32 for count in zeros]]))


@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_those_that_the_readers_are_given(batch):
    model, data = made(), batches(batch, 4)
    hidden = torch.cat([model[:3](x) for x, _ in data]).detach().transpose(0, 1).flatten(1)
    expected = {
        "activation(p=1)": hidden.abs().mean(1),
        "activation(p=2)": hidden.square().mean(1).sqrt(),
        "variance()": hidden.var(1, correction=0),
    }
    for criterion in (activation(), activation(p=2), variance()):
        got = scores(model, sc.Channel(), criterion, task_of(data, loss=None))
        assert torch.allclose(got, expected[criterion.name][None], rtol=1e-4, atol=1e-6)
    flat = torch.cat([model[:5](x) for x, _ in data]).detach().transpose(0, 1).flatten(1)  # four numbers a channel behind Flatten
    assert torch.allclose(scores(model, sc.Channel(), activation(), task_of(data), 1), flat.abs().mean(1)[None], rtol=1e-4)


def test_heads_and_recurrent_layers_have_readers_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LSTM(6, 5, batch_first=True))
    data = [(torch.randn(3, 7, 4), None)]
    hidden = model[:2](data[0][0]).detach()
    task = sc.Task(example=data[0][0], calibration=data)
    assert torch.allclose(scores(model, sc.Channel(), activation(), task), hidden.mean((0, 1))[None], rtol=1e-5)


# ---------------------------------------------------------------- weights


def test_batchnorm_scale_is_the_scale_and_needs_one():
    model, task = made(), task_of(batches(2))
    assert scores(model, sc.Channel(), batchnorm_scale(), task).tolist() == [[0.5, 2.0, 1.0, 0.0, 3.0]]
    with pytest.raises(
        PatternError, match=r"^3: no normalisation with a scale lies on its units: take Channel\(\) on a model with"
    ):
        scores(model, sc.Channel(), batchnorm_scale(), task, 1)


@pytest.mark.parametrize("shape", [(1, 7, 4), (3, 5, 1), (2, 1, 3), (1, 300, 1)])
def test_fpgm_is_the_sum_of_all_distances(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    pairs = (values[:, :, None].double() - values[:, None].double()).norm(dim=3).sum(2)
    assert torch.allclose(fpgm().compare(values).double(), pairs, rtol=1e-5)


def test_cosine_and_lamp_by_their_definitions():
    values = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    alike = nn.functional.cosine_similarity(values[:, :, None], values[:, None], dim=3).abs()
    alike.diagonal(dim1=1, dim2=2).zero_()
    assert torch.allclose(cosine().compare(values), 1 - alike.amax(2), atol=1e-6)
    sizes = values.square().sum(2)
    expected = [[size / sum(other for other in row if other >= size) for size in row] for row in sizes.tolist()]
    assert torch.allclose(lamp().compare(values), torch.tensor(expected), rtol=1e-5)
    with pytest.raises(PatternError, match="single numbers have none"):
        scores(made(), sc.Element(), cosine(), task_of(batches(1)))
    with pytest.raises(PatternError, match="fpgm compares each unit with each, and here 40,000 compete"):
        fpgm().compare(torch.zeros(1, 40_000, 2))


def test_lamp_shares_a_budget_over_layers_as_published():
    """Global ranking by LAMP scores never takes the largest weight of a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 4))
    with torch.no_grad():
        model[1].weight *= 1e-3
    task = sc.Task(example=torch.zeros(1, 30))
    masks = sc.prune_(model, sc.Element(), sc.TopK(lamp()), sc.global_threshold(sparsity=0.9), task)
    assert [int(mask.sum()) for mask in masks.values()][1] > 50
    by_size = sc.prune_(
        copy.deepcopy(model), sc.Element(), sc.TopK(magnitude()), sc.global_threshold(sparsity=0.95), task, masks=None
    )
    assert int(by_size["1.weight"].sum()) < 5


def test_products_of_units_multiply_unit_by_unit():
    model, task = made(), task_of(batches(4))
    product, left, right = (scores(model, sc.Channel(), each, task) for each in (apoz() * magnitude(p=1), apoz(), magnitude(p=1)))
    assert torch.allclose(product, left * right)
    assert (apoz() * magnitude(p=1)).name == "apoz() * magnitude(p=1)"


# ---------------------------------------------------------------- what cannot be


def test_bad_input_is_told():
    model, data = made(), batches(2)
    with pytest.raises(TaskError, match=r"there is no loss: give Task\(loss=...\)"):
        scores(model, sc.Channel(), taylor(), task_of(data, loss=None))
    with pytest.raises(TaskError, match=r"gradient must be observed on data: give Task\(calibration"):
        scores(model, sc.Channel(), snip(), sc.Task(example=data[0][0], loss=nn.functional.cross_entropy))
    frozen = made()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(sc.SecateursError, match=r"^0.weight is frozen \(requires_grad=False\)"):
        scores(frozen, sc.Channel(), snip(), task_of(data))
    with pytest.raises(
        sc.SecateursError, match=r"^0: nonzero_activations watches the layers that read its units, and none can be watched"
    ):
        scores(model, sc.Filter(), apoz(), task_of(data))
    with pytest.raises(NonFiniteError, match=r"^0.weight: gradient is NaN or infinite: look at the calibration batches"):
        scores(model, sc.Channel(), snip(), task_of([(torch.full((2, 2, 6, 6), float("nan")), torch.zeros(2, dtype=torch.long))]))
    with pytest.raises(
        sc.SecateursError,
        match=r"^odd: of units one can watch weight_gradients, .*, values, value_gradients, stream, removals, routing, not 'inputs'",
    ):
        Statistic("odd", print, "inputs", "units")
    with pytest.raises(sc.SecateursError, match=r"activation\(p=3\): p is 1 or 2"):
        activation(p=3)
    with pytest.raises(sc.SecateursError, match="members is one of producers, consumers, norms, all"):
        magnitude(members="some")
    with pytest.raises(KindError, match="needs is"):
        observe(model, find_sites(model, sc.Element()), [0.5], task_of(data))


def test_what_nothing_reaches_is_told():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model, data = Unused(), [(torch.randn(4, 3), torch.randn(4, 3))]
    task = sc.Task(example=data[0][0], calibration=data, loss=nn.functional.mse_loss)
    stats = observe(model, find_sites(model, sc.Element(), only="*"), [gradient()], task)
    assert float(stats["unused.weight"][gradient()].abs().sum()) == 0 < float(stats["used.weight"][gradient()].abs().sum())


def test_each_criterion_prunes_a_network_end_to_end(small_cnn, cnn_task):
    for criterion in (taylor(), taylor(activations=True), snip(), fisher(), apoz(), fpgm(), lamp(), cosine(), random(), variance()):
        model = copy.deepcopy(small_cnn)
        masks = sc.prune_(model, sc.Channel(), sc.TopK(criterion), sc.uniform(sparsity=0.5), cnn_task)
        assert 0.3 < masks.sparsity < 0.8 and not sc.shrink_(model, masks).skipped


# ---------------------------------------------------------------- in the measure of a site


def by_definition(scores: Tensor, by: str) -> Tensor:
    values = scores.double().flatten().tolist()
    mean = sum(values) / len(values)
    measure = {
        "mean": sum(map(abs, values)) / len(values),
        "max": max(map(abs, values)),
        "norm": sum(value**2 for value in values) ** 0.5,
        "deviation": (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5,
    }[by]
    return scores / measure


@pytest.mark.parametrize("by", ["mean", "max", "norm", "deviation"])
@pytest.mark.parametrize("criterion", [magnitude(), taylor(activations=True), fpgm(), magnitude() * apoz()], ids=repr)
def test_normalised_scores_are_in_the_measure_of_their_site(criterion, by):
    model, task = made(), task_of(batches(4, 4))
    plain, divided = (scores(model, sc.Channel(), each, task) for each in (criterion, normalised(criterion, by)))
    assert torch.allclose(divided, by_definition(plain, by), rtol=1e-5)


def test_layers_of_another_scale_lose_as_many_units_by_normalised_scores():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    task = sc.Task(example=torch.zeros(1, 4))
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight.repeat(1, 8) * 100)
    kept = {}
    for criterion in (magnitude(), normalised(magnitude())):
        masks = sc.prune_(copy.deepcopy(model), sc.Channel(), sc.TopK(criterion), sc.global_threshold(sparsity=0.5), task)
        kept[criterion.name] = list(masks.plan.values())
    assert kept["magnitude(p=2)"] == [1, 31]
    assert kept["normalised(magnitude(p=2), by='mean')"] == [16, 16]


def test_units_that_are_gone_do_not_count_in_the_measure_and_zeros_stay_zeros():
    layer = nn.Linear(1, 4)
    layer.weight.data = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    model = nn.Sequential(layer)
    masks = sc.prune_(model, sc.Filter(), sc.TopK(magnitude()), sc.uniform(sparsity=0.25), sc.Task(torch.zeros(1, 1)), only="*")
    site = find_sites(model, sc.Filter(), only="*", masks=masks)[0]
    assert torch.equal(scores_of(site, normalised(magnitude()), {}), torch.tensor([[-torch.inf, 0.5, 1.0, 1.5]]))
    layer.weight.data.zero_()
    alone = find_sites(model, sc.Filter(), only="*")[0]
    assert torch.equal(scores_of(alone, normalised(magnitude()), {}), torch.zeros(1, 4))


def test_a_measure_that_is_none_is_refused():
    with pytest.raises(sc.SecateursError, match="divided by one of mean, max, norm, deviation"):
        normalised(magnitude(), "median")
    with pytest.raises(sc.SecateursError, match="criterion"):
        normalised("magnitude")
