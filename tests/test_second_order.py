"""Second derivatives, the flow without data, gates on heads: each criterion against its definition in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

import secateurs as sc
from secateurs.criteria import grasp, head_importance, hessian_trace, magnitude, obd, synflow, taylor
from secateurs.evidence import curvature, observe, recorded
from secateurs.patterns import find_sites
from secateurs.solve import scores_of
from secateurs.types import Criterion, Curvature, NonFiniteError, SecateursError, Statistic, TaskError


def scores(model: nn.Module, pattern: Any, criterion: Criterion, task: sc.Task, site: int = 0, only: Any = "*") -> Tensor:
    coupled = isinstance(pattern, (sc.Channel, sc.Head))
    sites = find_sites(model, pattern, task.example, only=None if coupled else only)
    return scores_of(sites[site], criterion, observe(model, sites, criterion.needs, task))


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def labelled(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for size in sizes]


def task_of(data: list[Any], loss: Any = cross_entropy) -> sc.Task:
    return sc.Task(example=data[0][0][:1], calibration=data, loss=loss)


def whole_hessian(model: nn.Module, data: list[tuple[Tensor, Tensor]], loss: Any = cross_entropy) -> tuple[Tensor, Tensor, Tensor]:
    """H, g and w of the two weights of a perceptron, biases left out, over all samples, in float64."""
    double = copy.deepcopy(model).double()
    names = ["0.weight", "2.weight"]
    shapes = [double.get_parameter(name).shape for name in names]
    start = torch.cat([double.get_parameter(name).detach().flatten() for name in names])
    x, y = torch.cat([x for x, _ in data]).double(), torch.cat([y for _, y in data])
    y = y.double() if y.is_floating_point() else y

    def of(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        own = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return loss(torch.func.functional_call(double, own, (x,)), y)

    return torch.func.jacrev(torch.func.jacrev(of))(start), torch.func.grad(of)(start), start


@pytest.mark.parametrize("sizes", [(6,), (5, 2, 1)])
def test_obd_with_the_exact_diagonal(sizes):
    model, data = perceptron(), labelled(*sizes)
    matrix, _, weight = whole_hessian(model, data)
    expected = matrix.diagonal() * weight.square() / 2
    for site, part in enumerate(expected.split([20, 15])):
        got = scores(model, sc.Element(), obd("exact"), task_of(data), site)
        assert torch.allclose(got.double(), part[None], rtol=1e-4, atol=1e-8)
    filters = scores(model, sc.Filter(), obd("exact"), task_of(data))
    assert torch.allclose(filters.double(), expected[:20].view(5, 4).sum(1)[None], rtol=1e-4, atol=1e-8)
    layer = scores(model, sc.Filter(), hessian_trace("exact"), task_of(data))
    assert torch.allclose(layer.double(), matrix.diagonal()[:20].mean().expand(1, 5), rtol=1e-4)


def test_hutchinson_comes_closer_with_more_vectors_and_is_the_same_for_a_seed():
    model, data = perceptron(), labelled(8)
    expected = whole_hessian(model, data)[0].diagonal()[:20].view(1, 5, 4).detach()
    errors = []
    for probes in (10, 4000):
        statistic = curvature(probes=probes)
        found = observe(model, find_sites(model, sc.Element(), only="*"), [statistic], task_of(data))["0.weight"][statistic]
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.1 < errors[0]
    one, same, other = (scores(model, sc.Element(), obd(seed=seed), task_of(data)) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("sizes", [(6,), (4, 2)])
def test_gauss_newton_is_what_is_left_without_second_derivatives_of_the_network(sizes):
    model, data = perceptron(), labelled(*sizes)
    double, expected = copy.deepcopy(model).double(), torch.zeros(20, dtype=torch.float64)
    for x in torch.cat([x for x, _ in data]).double():
        jacobian = torch.autograd.functional.jacobian(
            lambda w, x=x: torch.func.functional_call(double, {"0.weight": w}, (x,)), double[0].weight.detach()
        )
        chances = double(x).detach().softmax(0)
        of_loss = chances.diag() - chances[:, None] * chances[None]
        expected += torch.einsum("ci,cd,di->i", jacobian.flatten(1), of_loss, jacobian.flatten(1)) / sum(sizes)
    statistic = curvature("gauss_newton", probes=3000)
    found = observe(model, find_sites(model, sc.Element(), only="*"), [statistic], task_of(data))["0.weight"][statistic]
    assert bool((found >= 0).all()) and float((found.flatten() - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("criterion", [obd("exact"), obd("gauss_newton", probes=5000), obd(probes=5000)], ids=repr)
def test_obd_is_the_change_of_a_quadratic_loss_at_its_minimum(criterion):
    torch.manual_seed(0)
    x, noise = torch.randn(50, 3), torch.randn(50, 2)
    model = nn.Linear(3, 2, bias=False)
    y = x @ torch.randn(3, 2) + noise
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    got, dense, changes = scores(model, sc.Element(), criterion, task_of([(x, y)], mse_loss)), mse_loss(model(x), y), []
    for row in range(2):
        for column in range(3):
            pruned = copy.deepcopy(model)
            pruned.weight.data[row, column] = 0
            changes.append(mse_loss(pruned(x), y) - dense)
    exact = criterion.name == "obd('exact')"
    assert torch.allclose(got, torch.stack(changes)[None].detach(), rtol=1e-3 if exact else 0.1, atol=1e-6)


@pytest.mark.parametrize(
    ("hessian", "probes"), [("exact", 1), ("gauss_newton", 3000), ("hutchinson", 3000)], ids=lambda value: str(value)
)
def test_obd_of_weights_together_is_the_change_of_a_quadratic_loss_for_whole_units(hessian, probes):
    """Inputs that go together: the diagonal alone is far from it."""
    torch.manual_seed(0)
    x = torch.randn(50, 3) @ torch.tensor([[1.0, 0.9, 0.8], [0.0, 0.5, 0.4], [0.0, 0.0, 0.3]])
    y = x @ torch.randn(3, 4) + torch.randn(50, 4)
    model = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    task, dense, changes = task_of([(x[:20], y[:20]), (x[20:], y[20:])], mse_loss), mse_loss(model(x), y), []
    for row in range(4):
        pruned = copy.deepcopy(model)
        pruned.weight.data[row] = 0
        changes.append(mse_loss(pruned(x), y) - dense)
    expected = torch.stack(changes)[None].detach()
    got = scores(model, sc.Filter(), obd(hessian, probes, together=True), task)
    assert torch.allclose(got, expected, rtol=1e-3 if hessian == "exact" else 0.1)
    apart = scores(model, sc.Filter(), obd("exact"), task)
    assert not torch.allclose(apart, expected, rtol=0.2)


def test_obd_of_coupled_weights_together_is_a_second_difference_of_the_loss():
    """wᵀHw is the second derivative of the loss as a channel's weights are scaled, in every layer where it lies."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = labelled(8)[0]
    double, expected, eps = copy.deepcopy(model).double(), [], 1e-3

    def loss(channel: int, factor: float) -> float:
        scaled = copy.deepcopy(double)
        for weight in (scaled[0].weight[channel], scaled[0].bias[channel : channel + 1], scaled[2].weight[:, channel]):
            weight.data.mul_(factor)
        return float(cross_entropy(scaled(x.double()), y).detach())

    for channel in range(5):
        ends = [loss(channel, factor) for factor in (1 - eps, 1, 1 + eps)]
        expected.append((ends[0] - 2 * ends[1] + ends[2]) / eps**2 / 2)
    got = scores(model, sc.Channel(), obd("exact", members="all", together=True), task_of([(x, y)]))
    assert torch.allclose(got.double(), torch.tensor([expected]).double(), rtol=1e-3, atol=1e-6)
    single = scores(model, sc.Element(), obd("exact", together=True), task_of([(x, y)]))
    assert torch.allclose(single, scores(model, sc.Element(), obd("exact"), task_of([(x, y)])), rtol=1e-4, atol=1e-8)


def test_grasp_is_the_change_of_the_flow_of_gradients():
    """A weight made smaller by ε changes gᵀg by -2ε·w·Hg."""
    model, data = perceptron(), labelled(6)
    matrix, gradient, weight = whole_hessian(model, data)
    got = torch.cat([scores(model, sc.Element(), grasp(), task_of(data), site) for site in (0, 1)], dim=1)
    assert torch.allclose(got.double(), (weight * (matrix @ gradient))[None], rtol=1e-4, atol=1e-9)
    eps, double = 1e-6, copy.deepcopy(model).double()
    x, y = data[0][0].double(), data[0][1]

    def flow(factor: float) -> float:
        changed = copy.deepcopy(double)
        changed[0].weight.data[1, 2] *= factor
        found = torch.autograd.grad(cross_entropy(changed(x), y), [changed[0].weight, changed[2].weight])
        return float(sum(each.square().sum() for each in found))

    slope = (flow(1 - eps) - flow(1 + eps)) / (2 * eps)
    assert float(got[0, 1 * 4 + 2]) == pytest.approx(-slope / 2, rel=1e-4)


class Attentive(nn.Module):
    """Attention of every kind that has fused kernels, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.attention = nn.Linear(8, 24), nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.lstm(self.attention(x, x, x, need_weights=False)[0])[0][:, -1])


def test_attention_and_recurrent_layers_have_second_derivatives_and_no_trace_is_left():
    torch.manual_seed(0)
    model = Attentive().train()
    data = [(torch.randn(3, 5, 8), torch.tensor([0, 1, 2]))] * 2
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for criterion in (obd(), obd("gauss_newton"), grasp(), hessian_trace(), synflow()):
        got = scores(model, sc.Element(), criterion, task_of(data))
        assert bool(got.isfinite().all()) and float(got.abs().sum()) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(chance, torch.get_rng_state())
    assert all(bool((parameter.grad == 7).all()) and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() and torch._C._get_mkldnn_enabled()


def test_half_precision_models_have_second_derivatives_in_float32():
    model, data = perceptron().bfloat16(), [(x.bfloat16(), y) for x, y in labelled(4)]
    for criterion in (obd(), obd("gauss_newton"), grasp(), synflow()):
        got = scores(model, sc.Element(), criterion, task_of(data))
        assert got.dtype == torch.float32 and bool(got.isfinite().all())


def test_several_statistics_of_second_order_in_one_walk_are_those_of_one_each():
    model, data = perceptron(), labelled(4, 3)
    needs = [curvature("exact"), curvature(probes=2), grasp().needs[0], synflow().needs[0]]
    sites = find_sites(model, sc.Element(), only="*")
    together = observe(model, sites, needs, task_of(data))
    for need in needs:
        alone = observe(model, sites, [need], task_of(data))
        assert torch.equal(alone["0.weight"][need], together["0.weight"][need])


def test_sensitivity_shares_a_budget_over_layers():
    """The layer to which the loss is blind goes first, though its weights are large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight *= 20  # saturated
    criterion = hessian_trace("gauss_newton", probes=20) * magnitude()
    masks = sc.prune_(model, sc.Element(), sc.TopK(criterion), sc.global_threshold(sparsity=0.4), task_of(labelled(64)))
    assert float(masks["0.weight"].float().mean()) < 0.5 < float(masks["2.weight"].float().mean())


# ---------------------------------------------------------------- the flow without data


def test_synflow_is_what_flows_through_absolute_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3, bias=False))
    task = sc.Task(example=torch.randn(1, 2, 4, 4))  # neither batches nor a loss
    first, second = (scores(model, sc.Element(), synflow(), task, site) for site in (0, 1))
    absolute = copy.deepcopy(model).double()
    for parameter in absolute.parameters():
        parameter.data.abs_()
    dense, expected = float(absolute(torch.ones(1, 2, 4, 4).double()).sum().detach()), []
    for place in range(36):  # the flow is linear in each weight: without it, so much less passes
        less = copy.deepcopy(absolute)
        less[3].weight.data.view(-1)[place] = 0
        expected.append(1 - float(less(torch.ones(1, 2, 4, 4).double()).sum().detach()) / dense)
    assert torch.allclose(second, torch.tensor(expected)[None], rtol=1e-4)
    assert float(first.sum()) == pytest.approx(1, rel=1e-5) and float(second.sum()) == pytest.approx(1, rel=1e-5)


def test_synflow_of_a_deep_network_needs_more_than_float32_and_leaves_the_model():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(24)]
    model = nn.Sequential(*layers).train()
    with torch.no_grad():
        for layer in layers:
            layer[0].weight *= 100
            layer[1].running_mean.fill_(5.0)
    before = copy.deepcopy(model.state_dict())
    task = sc.Task(example=torch.zeros(1, 32, 6, 6))
    totals = [float(scores(model, sc.Element(), synflow(), task, site).sum()) for site in (0, 12, 23)]
    assert totals[2] == pytest.approx(1, abs=1e-3) and all(0.5 < total <= 1.001 for total in totals)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model[0].training


def test_synflow_tells_what_is_wrong():
    model = perceptron()
    with pytest.raises(TaskError, match=r"the flow through the network needs an input of the example's shape: give Task\(example"):
        scores(model, sc.Element(), synflow(), sc.Task(example=None))
    task = sc.Task(example=torch.zeros(1, 4))
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    with pytest.raises(SecateursError, match=r"what flows through the network of absolute weights is 0.0: everything is pruned"):
        scores(model, sc.Element(), synflow(), task)
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="is nan, even in float64: are there weights of NaN"):
        scores(model, sc.Element(), synflow(), task)
    with pytest.raises(SecateursError, match=r"0.weight is frozen \(requires_grad=False\)"):
        scores(perceptron().requires_grad_(False), sc.Element(), synflow(), task)
    assert model[0].weight.dtype == torch.float32 and bool((model[0].weight < 0).any())


# ---------------------------------------------------------------- heads


class Gated(nn.Module):
    """Attention whose heads are multiplied with gates, ones in the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(4))
        self.embed, self.out, self.head = nn.Linear(6, 6), nn.Linear(12, 6), nn.Linear(6, 3)
        self.gates: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (layer(x).unflatten(2, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        context = scaled_dot_product_attention(q, k, v)
        context = context if self.gates is None else context * self.gates[:, :, None, None]
        return self.head((x + self.out(context.transpose(1, 2).flatten(2))).mean(1))


@pytest.mark.parametrize("sizes", [(6,), (3, 2)])
def test_head_importance_is_the_mean_size_of_the_gradient_by_a_gate(sizes):
    torch.manual_seed(0)
    model = Gated()
    data = [(torch.randn(size, 5, 6), torch.randint(0, 3, (size,))) for size in sizes]
    double, expected = copy.deepcopy(model).double(), torch.zeros(3, dtype=torch.float64)
    for x, y in data:
        gates = torch.ones(len(x), 3, dtype=torch.float64, requires_grad=True)
        double.gates = gates
        loss = cross_entropy(double(x.double()), y, reduction="sum")
        expected += torch.autograd.grad(loss, gates)[0].abs().sum(0) / sum(sizes)
    got = scores(model, sc.Head(), head_importance(normalise=False), task_of(data))
    assert torch.allclose(got.double(), expected[None], rtol=1e-4)
    assert torch.allclose(got, scores(model, sc.Head(), taylor(activations=True), task_of(data)))
    normalised = scores(model, sc.Head(), head_importance(), task_of(data))
    assert torch.allclose(normalised.double(), (expected / expected.norm())[None], rtol=1e-4)


def test_head_importance_of_a_bert_like_encoder():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=12, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    data = [{"input_ids": torch.randint(0, 20, (4, 7)), "labels": torch.tensor([0, 1, 2, 0])} for _ in range(2)]
    task = sc.Task(example={"input_ids": data[0]["input_ids"][:1]}, calibration=data)
    sites = find_sites(model, sc.Head(), task.example)
    criterion = head_importance(normalise=False)
    stats = observe(model, sites, [*criterion.needs], task)
    for number, site in enumerate(sites):
        expected, layer = torch.zeros(4), model.bert.encoder.layer[number].attention.output.dense
        for batch in data:
            gates = torch.ones(4, 4, requires_grad=True)
            hook = layer.register_forward_pre_hook(
                lambda module, given, gates=gates: (given[0] * gates.repeat_interleave(4, 1)[:, None],)
            )
            expected += torch.autograd.grad(model(**batch).loss * 4, gates)[0].abs().sum(0) / 8
            hook.remove()
        assert torch.allclose(scores_of(site, criterion, stats), expected[None], rtol=1e-3)
    masks = sc.prune_(model, sc.Head(within="model"), sc.TopK(head_importance()), sc.global_threshold(sparsity=0.25), task)
    assert sum(int(mask.sum()) for name, mask in masks.items() if name.endswith("self.value.weight")) == 6 * 4 * 16


# ---------------------------------------------------------------- what was recorded


def test_what_was_recorded_needs_no_data_and_must_be_of_the_model():
    model, numbers = perceptron(), torch.rand(5, 4)
    statistic = recorded("mine", {"0.weight": numbers})
    sites, task = find_sites(model, sc.Element(), only="0"), sc.Task(example=torch.zeros(1, 4))
    assert torch.equal(observe(model, sites, [statistic], task)["0.weight"][statistic], numbers[None])
    with pytest.raises(SecateursError, match=r"^2.weight: nothing was recorded of it for mine: record it with the same model"):
        observe(model, find_sites(model, sc.Element(), only="2"), [statistic], task)
    with pytest.raises(SecateursError, match=r"^0.weight: a tensor of \(1,\), not of \(5, 4\), was recorded of it"):
        observe(model, sites, [recorded("mine", {"0.weight": torch.ones(1)})], task)


# ---------------------------------------------------------------- what cannot be


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(-x)


class Fused(nn.Module):
    """Calls a fused kernel by its name, so that no setting can take it apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)[:, None, None]
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0][:, 0, 0]


def test_bad_input_is_told():
    model, data = perceptron(), labelled(4)
    with pytest.raises(TaskError, match=r"there is no loss: give Task\(loss=...\)"):
        scores(model, sc.Element(), obd(), task_of(data, None))
    with pytest.raises(SecateursError, match=r"0.weight is frozen \(requires_grad=False\)"):
        scores(perceptron().requires_grad_(False), sc.Element(), grasp(), task_of([(data[0][0].requires_grad_(), data[0][1])]))
    with pytest.raises(SecateursError, match=r"0.weight is frozen \(requires_grad=False\)"):
        scores(perceptron().requires_grad_(False), sc.Filter(), obd(together=True), task_of([(data[0][0], data[0][1])]))
    with pytest.raises(
        SecateursError, match=r"members='norms': the weights of whole units are \"producers\", \"consumers\" or \"all\""
    ):
        scores(model, sc.Channel(), obd(members="norms", together=True), task_of(data))
    nan = [(torch.full((2, 4), torch.nan), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(NonFiniteError, match=r"^0.weight: curvature\('hutchinson', probes=4, seed=0\) is NaN or infinite"):
        scores(model, sc.Element(), obd(), task_of(nan))
    with pytest.raises(NonFiniteError, match="second derivatives of the loss by the model's answers are NaN or infinite"):
        scores(model, sc.Element(), obd("gauss_newton"), task_of(nan))
    with pytest.raises(SecateursError, match=r'^hessian=\'kfac\' is none of "hutchinson", "gauss_newton" and "exact"'):
        obd("kfac")
    with pytest.raises(SecateursError, match=r"^probes=0 must be a number of random vectors, at least 1"):
        hessian_trace(probes=0)
    with pytest.raises(SecateursError, match=r'^hessian="exact" takes a backward pass for each of 40,000 weights'):
        scores(nn.Linear(200, 200), sc.Element(), obd("exact"), task_of([(torch.ones(1, 200), torch.ones(1, 200))], mse_loss))
    with pytest.raises(SecateursError, match=r"by the 1,200 numbers that the model answers to a sample, and is for 1,024 at most"):
        scores(nn.Linear(4, 1200), sc.Element(), obd("gauss_newton"), task_of([(torch.ones(1, 4), torch.ones(1, 1200))], mse_loss))
    both = task_of(data, lambda output, target: output[0].square().mean() + output[1].square().mean())
    with pytest.raises(SecateursError, match=r"one tensor that the model answers, and here it depends on 2: take hessian="):
        scores(Twice(), sc.Element(), obd("gauss_newton"), both)
    with pytest.raises(
        SecateursError, match=r"an operation of this model has no second derivative \(derivative for aten::_scaled_dot"
    ):
        scores(Fused(), sc.Element(), obd(), task_of(data))
    assert bool(scores(Fused(), sc.Element(), obd("gauss_newton"), task_of(data)).isfinite().all())
    with pytest.raises(SecateursError, match=r"^odd: curvature= says which second derivatives are watched"):
        Statistic("odd", print, "inputs", curvature=Curvature("exact"))
