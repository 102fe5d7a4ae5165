"""Units taken out one by one, and units merged, against plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.evidence import observe
from secateurs.methods import castellano_
from secateurs.patterns import find_sites
from secateurs.types import NonFiniteError, PatternError


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def mlp(seed: int, hidden: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, 4), nn.Tanh(), nn.Linear(4, 2))


def cnn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).eval()


def correlated(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(shape, generator=generator)
    return data + 2 * data.mean(1, keepdim=True)


def task_on(data: Tensor) -> sc.Task:
    return sc.Task(data[:1], calibration=[(data, None)])


# ---------------------------------------------------------------- one by one, the others making up for it


def left_over(features: Tensor, answers: Tensor, rows: Tensor, there: list[int], ridge: float) -> float:
    """What the best weights for some features still miss, with the pull towards the weights as they are."""
    columns = [*there, features.shape[1] - 1]
    pull = ridge**0.5 * torch.eye(features.shape[1], dtype=torch.float64)
    system, wanted = torch.cat([features, pull]), torch.cat([answers, pull @ rows.T])
    solved = torch.linalg.lstsq(system[:, columns], wanted).solution
    return float((system[:, columns] @ solved - wanted).square().sum())


@pytest.mark.parametrize("seed", range(4))
def test_each_unit_that_goes_is_the_one_that_the_others_make_up_for_best(seed):
    model, data = mlp(seed), correlated(seed, 64, 5)
    hidden = model[1](model[0](data)).detach().double()
    features = torch.cat([hidden, torch.ones(64, 1)], dim=1) / 8  # of 64 samples the mean
    rows = torch.cat([model[2].weight, model[2].bias[:, None]], dim=1).detach().double()
    ridge = 1e-4 * float((features.T @ features).diagonal().mean())
    there, order = list(range(7)), []
    while there:
        costs = [left_over(features, features @ rows.T, rows, [unit for unit in there if unit != gone], ridge) for gone in there]
        order.append(there.pop(costs.index(min(costs))))
    task = task_on(data)
    site = find_sites(model, sc.Channel(), task.example)[0]
    solver = sc.ZipLM()
    stats = observe(model, [site], solver.needs, task)
    (scores,) = solver.scores([site], stats)
    assert scores[0].argsort().tolist() == order
    for kept in range(1, 8):
        assert solver(site, kept, stats).kept[0].nonzero().flatten().tolist() == sorted(order[7 - kept :])


@pytest.mark.parametrize("seed", range(3))
def test_units_of_convolutions_go_with_all_their_columns_and_score_what_is_left_over(seed):
    model, data = cnn(seed), correlated(seed, 12, 2, 6, 6)
    task = task_on(data)
    site, solver = find_sites(model, sc.Channel(), task.example)[0], sc.ZipLM()
    stats = observe(model, [site], solver.needs, task)
    (scores,) = solver.scores([site], stats)
    best = float(scores.min())
    given = nn.functional.unfold(model[:3](data).detach().double(), 2).transpose(1, 2).reshape(-1, 24)
    rows = model[3].weight.detach().double().flatten(1)
    features = given / len(given) ** 0.5
    pull = (1e-4 * float((features.T @ features).diagonal().mean())) ** 0.5 * torch.eye(24, dtype=torch.float64)
    system = torch.cat([features, pull])
    costs = []
    for gone in range(6):
        columns = [column for column in range(24) if column // 4 != gone]
        solved = torch.linalg.lstsq(system[:, columns], system @ rows.T).solution
        costs.append(float((system[:, columns] @ solved - system @ rows.T).square().sum()))
    assert int(scores.argmin()) == costs.index(min(costs))
    assert best == pytest.approx(min(costs), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_what_an_earlier_pruning_removed_stays_gone_and_the_order_goes_on(seed):
    model, data = mlp(seed), correlated(seed, 64, 5)
    task = task_on(data)
    masks = None
    for kept in (6, 5, 4, 3):
        masks = sc.prune_(model, sc.Channel(), sc.ZipLM(), sc.by_layer({"0": 1 - kept / 7}), task, masks=masks, only="0")
    at_once = mlp(seed)
    others = sc.prune_(at_once, sc.Channel(), sc.ZipLM(), sc.by_layer({"0": 4 / 7}), task, only="0")
    assert torch.equal(masks["0.weight"], others["0.weight"])
    assert torch.allclose(model(data), at_once(data), atol=1e-3)


def test_it_misses_less_than_the_choice_by_magnitude_with_the_same_least_squares():
    missed = {}
    for seed in range(5):
        for solver in (sc.ZipLM(), sc.LeastSquares(sc.TopK(sc.magnitude())), sc.ThiNet(), sc.Lasso()):
            model, data = mlp(seed, hidden=24), correlated(seed, 256, 5)
            before = model[:3](data)
            sc.prune_(model, sc.Channel(), solver, sc.by_layer({"0": 0.5}), task_on(data), only="0")
            missed.setdefault(type(solver).__name__, []).append(float((model[:3](data) - before).square().mean()))
    means = {name: sum(values) for name, values in missed.items()}
    assert means["ZipLM"] == min(means.values()), means


def test_units_that_nothing_reads_in_sight_are_refused():
    with pytest.raises(PatternError, match=r"ZipLM chooses units that other layers read, so it needs Channel\(\) or Head\(\)"):
        sc.prune_(mlp(0), sc.Filter(), sc.ZipLM(), sc.uniform(sparsity=0.5), task_on(torch.randn(8, 5)))
    with pytest.raises(sc.SecateursError, match="damping"):
        sc.ZipLM(damping=-1)


# ---------------------------------------------------------------- merged


def merged_by_hand(incoming: Tensor, outgoing: Tensor, kept: int) -> tuple[list[int], Tensor]:
    """The pair that costs least, again and again; ``outgoing`` is ``(outputs, units)``."""
    outgoing, there = outgoing.clone(), list(range(len(incoming)))
    while len(there) > kept:
        pairs = [
            (float(outgoing[:, gone].square().mean() * (incoming[gone] - incoming[into]).square().sum()), gone, into)
            for gone in there
            for into in there
            if gone != into
        ]
        _, gone, into = min(pairs)
        outgoing[:, into] += outgoing[:, gone]
        there.remove(gone)
    return there, outgoing[:, there]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kept", [1, 3, 6])
def test_the_pair_that_costs_least_is_merged_again_and_again(seed, kept):
    model = mlp(seed)
    incoming = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1).detach().double()
    there, outgoing = merged_by_hand(incoming, model[2].weight.detach().double(), kept)
    sc.prune_(model, sc.Channel(), sc.Merge(), sc.by_layer({"0": 1 - kept / 7}), sc.Task(torch.zeros(1, 5)), only="0")
    assert model[0].weight.any(1).nonzero().flatten().tolist() == there
    assert torch.allclose(model[2].weight[:, there].double(), outgoing, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kept", [2, 4])
def test_a_batchnorm_behind_is_folded_in_scale_shift_and_all(seed, kept):
    model = cnn(seed)
    conv, norm, reader = model[0], model[1], model[3]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(6) * 2 + 0.2)
    norm.running_mean.mul_(5)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias + (conv.bias - norm.running_mean) * scale
    incoming = torch.cat([conv.weight.flatten(1) * scale[:, None], shift[:, None]], dim=1).double()
    outgoing = reader.weight.permute(0, 2, 3, 1).reshape(-1, 6).double()
    there, merged = merged_by_hand(incoming, outgoing, kept)
    sc.prune_(model, sc.Channel(), sc.Merge(), sc.by_layer({"0": 1 - kept / 6}), sc.Task(torch.zeros(1, 2, 6, 6)), only="0")
    assert conv.weight.flatten(1).any(1).nonzero().flatten().tolist() == there
    found = reader.weight.permute(0, 2, 3, 1).reshape(-1, 6)[:, there].double()
    assert torch.allclose(found, merged, atol=1e-5)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_equal_units_are_merged_without_any_change(make):
    model = make(0)
    data = torch.randn(4, 5) if make is mlp else torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        if make is cnn:
            model[1].running_mean.normal_()
            model[1].weight.uniform_(0.5, 2)
        for tensor in model[0].state_dict().values():
            tensor[3:6] = tensor[:3].clone()
        for tensor in model[1].state_dict().values() if make is cnn else ():
            if tensor.ndim:
                tensor[3:6] = tensor[:3].clone()
    before = model(data)
    masks = sc.prune_(model, sc.Channel(), sc.Merge(), sc.by_layer({"0": 3 / len(model[0].weight)}), sc.Task(data), only="0")
    assert int(masks["0.weight"].flatten(1).any(1).sum()) == len(model[0].weight) - 3
    assert torch.allclose(model(data), before, atol=1e-5)
    sc.shrink_(model, masks, data)
    assert torch.allclose(model(data), before, atol=1e-5)


def test_a_scale_that_the_normalisation_takes_back_does_not_count():
    model, data = cnn(1), torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = 10 * model[0].weight[1], 10 * model[0].bias[1]
        model[1].running_var[4] = 100 * (model[1].running_var[1] + model[1].eps) - model[1].eps
    before = model(data)
    sc.prune_(model, sc.Channel(), sc.Merge(), sc.by_layer({"0": 1 / 6}), sc.Task(data), only="0")
    assert torch.allclose(model(data), before, atol=1e-4)


def test_merging_loses_less_than_cutting_where_units_are_alike():
    lost = {"Merge": 0.0, "TopK": 0.0}
    for seed in range(5):
        for solver in (sc.Merge(), sc.TopK(sc.magnitude())):
            model, data = mlp(seed, hidden=16), torch.randn(64, 5)
            with torch.no_grad():
                model[0].weight[8:] = model[0].weight[:8] + 0.05 * torch.randn(8, 5)
                model[0].bias[8:] = model[0].bias[:8]
            before = model(data)
            sc.prune_(model, sc.Channel(), solver, sc.by_layer({"0": 0.5}), task_on(data), only="0")
            lost[type(solver).__name__] += float((model(data) - before).square().mean())
    assert lost["Merge"] < 0.2 * lost["TopK"], lost


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(PatternError, match="Merge adds the weights that read one unit"):
        sc.prune_(mlp(0), sc.Filter(), sc.Merge(), sc.uniform(sparsity=0.5), sc.Task(torch.zeros(1, 5)))
    model = mlp(0)
    model[0].weight.data[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match=r"0\.weight: a weight is NaN"):
        sc.prune_(model, sc.Channel(), sc.Merge(), sc.uniform(sparsity=0.5), sc.Task(torch.zeros(1, 5)))
    assert all(torch.equal(value, before[name]) or name == "0.weight" for name, value in model.state_dict().items())


# ---------------------------------------------------------------- the method


def test_castellano_takes_the_unit_that_adds_least_and_solves_anew_each_time():
    model, data = mlp(3), correlated(3, 64, 5)
    by_hand, masks = copy.deepcopy(model), None
    for left in (10, 9, 8):
        there = None if masks is None else {name: masks[name] for name in ("0.weight", "2.weight")}
        adds = {}
        for layer, reader in ((0, 2), (2, 4)):
            hidden = by_hand[: layer + 2](data)
            for unit in range(hidden.shape[1]):
                if there is None or there[f"{layer}.weight"][unit].any():
                    reads = by_hand[reader].weight[:, unit]
                    adds[layer, unit] = float((hidden[:, unit].square().mean().sqrt() * reads.norm()).detach())
        layer, unit = min(adds, key=adds.__getitem__)
        kept = int(by_hand[layer].weight.any(1).sum()) - 1
        chosen = sc.Criterion("all but one", lambda evidence: evidence.weight, torch.sum, compare=_all_but(unit))
        rates = {str(each): 1 - float(by_hand[each].weight.any(1).float().mean()) for each in (0, 2)}
        rates[str(layer)] = 1 - kept / len(by_hand[layer].weight)
        masks = sc.prune_(by_hand, sc.Channel(), sc.LeastSquares(sc.TopK(chosen)), sc.by_layer(rates), task_on(data), masks=masks)
        assert int(sum(by_hand[each].weight.any(1).sum() for each in (0, 2))) == left
    castellano_(model, task_on(data), sparsity=3 / 11)
    assert torch.allclose(model(data), by_hand(data), atol=1e-4)


def test_an_interrupted_castellano_leaves_the_model_as_it_was(monkeypatch):
    from secateurs.methods import castellano

    model, data, prune, rounds = mlp(3), correlated(3, 64, 5), castellano.prune_, iter(range(3))
    before = copy.deepcopy(model.state_dict())

    def interrupted(*given, **told):
        if next(rounds) == 2:
            raise KeyboardInterrupt
        return prune(*given, **told)

    monkeypatch.setattr(castellano, "prune_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        castellano_(model, task_on(data), sparsity=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _all_but(unit: int) -> Callable[[Tensor], Tensor]:
    def compare(values: Tensor) -> Tensor:
        scores = torch.ones(values.shape[:2])
        scores[:, unit if unit < scores.shape[1] else 0] = 0
        return scores

    return compare
